"""Checks of arguments. Each message names the argument, the rule and the received value."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import keras


def is_number(value: Any) -> bool:
    """Tell whether the value is a number, or an array or tensor of rank 0."""
    scalar = getattr(value, "shape", None) == () and hasattr(value, "__float__")
    return (isinstance(value, (int, float)) or scalar) and not isinstance(value, bool)


def check_float(
    owner: str,
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    minimum: float = -math.inf,
    maximum: float = math.inf,
) -> float:
    """Return `value` as a finite float with `above < value < below` and `minimum <= value <= maximum`, or raise."""
    if is_number(value):
        number = float(value)
        if math.isfinite(number) and above < number < below and minimum <= number <= maximum:
            return number
    limits = {">": above, "<": below, ">=": minimum, "<=": maximum}
    rule = " and ".join(f"{sign} {limit:g}" for sign, limit in limits.items() if math.isfinite(limit))
    raise ValueError(f"{owner}: `{name}` must be a finite number {rule}".rstrip() + f". Received: {name}={value!r}")


def check_int(owner: str, name: str, value: Any, *, minimum: int | None = None) -> int:
    """Return `value` if it is an integer of at least `minimum`, or raise a `ValueError`."""
    with contextlib.suppress(TypeError):
        number = operator.index(value)
        if not isinstance(value, bool) and (minimum is None or number >= minimum):
            return number
    rule = "" if minimum is None else f" >= {minimum}"
    raise ValueError(f"{owner}: `{name}` must be an integer{rule}. Received: {name}={value!r}")


def check_several(owner: str, name: str, value: Any, count: int | None = None) -> list[Any]:
    """Return the numbers of a sequence or array, of length `count` if it is given, or raise a `ValueError`."""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and not is_number(value):
        numbers = list(value)
        if count is None or len(numbers) == count:
            return numbers
    rule = f"a sequence of {count} numbers" if count else "a sequence of numbers"
    raise ValueError(f"{owner}: `{name}` must be {rule}. Received: {name}={value!r}")


def check_bool(owner: str, name: str, value: Any) -> bool:
    """Return `value` if it is True or False, or raise a `TypeError`."""
    if isinstance(value, bool):
        return value
    raise TypeError(f"{owner}: `{name}` must be True or False. Received: {name}={value!r}")


def check_choice(owner: str, name: str, value: Any, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`, or raise a `ValueError`."""
    if isinstance(value, str) and value in choices:
        return value
    options = ", ".join(repr(choice) for choice in choices)
    raise ValueError(f"{owner}: `{name}` must be one of {options}. Received: {name}={value!r}")


def check_rows(owner: str, names: str, data: Any) -> int:
    """The number of rows, the same in all leaves of a structure of arrays; None is not a leaf."""
    leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
    if not leaves or not all(hasattr(leaf, "shape") and len(leaf.shape) > 0 for leaf in leaves):
        kinds = [type(leaf).__name__ for leaf in leaves]
        raise TypeError(f"{owner}: {names} must be arrays or tensors with an axis of rows. Received: {kinds}")
    counts = [int(leaf.shape[0]) for leaf in leaves]
    if len(set(counts)) > 1 or counts[0] == 0:
        raise ValueError(f"{owner}: {names} must have the same number of rows, at least 1. Received: {counts}")
    return counts[0]
