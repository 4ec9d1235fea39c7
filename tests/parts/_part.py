"""A part of the library, and its suite."""

from typing import Any, NamedTuple


class Part(NamedTuple):
    """How to make it, its reference, and attributes of the suite."""

    make: Any
    reference: Any
    attributes: dict[str, Any] = {}  # noqa: RUF012


def suite_of(suite, part, **attributes):
    """The suite of a part, as a third party would write it."""
    given = {"make": staticmethod(part.make), "reference": staticmethod(part.reference), **part.attributes}
    return type("Test", (suite,), {**given, **attributes})
