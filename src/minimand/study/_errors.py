"""What a user can mend."""

from __future__ import annotations

from typing import Any


class StudyError(ValueError):
    """Bad input to a study; the message says what, and what to do. The command ends with exit code 2."""


def check_count(option: str, value: Any, minimum: int = 1) -> int:
    """Return `value` if it is an integer of at least `minimum`, or raise a `StudyError`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise StudyError(f"{option} must be a whole number of at least {minimum}. Received: {value!r}")
    return value
