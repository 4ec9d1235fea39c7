"""Choosing weights: kernels, a pattern of names, or a predicate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
from keras import ops

from minimand.backend import Tensor

Select = str | Callable[[keras.Variable], bool]


def selection(variables: Sequence[keras.Variable], select: Select, owner: str) -> list[bool]:
    """For each variable, whether `select` chooses it.

    `"kernels"` is every variable of rank 2 or more, `"all"` is every variable, any other string is a regular
    expression searched in the variable's path (`"dense_1/kernel"`), and a callable gets the variable.

    Raises:
        ValueError: nothing is chosen, which would make `owner` a silent no-op.
    """
    if callable(select):
        mask = [bool(select(variable)) for variable in variables]
    elif select == "kernels":
        mask = [len(variable.shape) >= 2 for variable in variables]
    elif select == "all":
        mask = [True] * len(variables)
    else:
        mask = [re.search(select, variable.path) is not None for variable in variables]
    if not any(mask):
        paths = ", ".join(variable.path for variable in variables) or "none"
        raise ValueError(
            f"{owner}: `select` must choose at least one trainable weight of the model. "
            f"Received: select={select!r}, which chooses none of: {paths}. "
            'Use "kernels" (rank 2 or more), "all", a regular expression, or a function of the variable.'
        )
    return mask


def check_select(select: Select, owner: str) -> Select:
    """Return `select` if it is a string or callable, and a valid pattern if it is a string."""
    if callable(select):
        return select
    if not isinstance(select, str):
        raise TypeError(
            f'{owner}: `select` must be "kernels", "all", a regular expression or a function of the variable. '
            f"Received: select={select!r}"
        )
    try:
        re.compile(select)
    except re.error as error:
        raise ValueError(
            f"{owner}: `select` must be a valid regular expression. Received: select={select!r} ({error})"
        ) from error
    return select


def match_path(path: str, candidates: Iterable[str]) -> str | None:
    """The candidate that is this path, or else the only one that differs from it by outer names alone.

    Keras puts the names of the models around a layer before its own or leaves them out, depending on when its weights
    were made: `"sequential/dense/kernel"` may be `"dense/kernel"` in the same model loaded from a file.
    """
    candidates = list(candidates)
    if path in candidates:
        return path
    ends = [c for c in candidates if f"/{path}".endswith(f"/{c}") or f"/{c}".endswith(f"/{path}")]
    return ends[0] if len(ends) == 1 else None


def shifted(weights: Sequence[Tensor], mask: Sequence[bool], steps: Iterable[Tensor], sign: int = 1) -> list[Tensor]:
    """The weights, with a step, in order, added to each of the chosen ones; or subtracted, with the sign -1."""
    step: Any = iter(steps)

    def moved(weight: Tensor) -> Tensor:
        change = ops.cast(next(step), weight.dtype)
        return weight + change if sign > 0 else weight - change

    return [moved(weight) if c else weight for weight, c in zip(weights, mask, strict=True)]


def merged(weights: Sequence[Tensor], mask: Sequence[bool], values: Iterable[Tensor]) -> list[Tensor]:
    """The weights, with these values, in order, in place of the chosen ones."""
    value: Any = iter(values)
    return [next(value) if c else weight for weight, c in zip(weights, mask, strict=True)]
