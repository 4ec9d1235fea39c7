"""Selected weights: a mask from a pattern or a function, and lists in which the selected weights are replaced."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any

import keras
from keras import ops

from minimand.backend import Tensor

Select = str | Callable[[keras.Variable], bool]


def selection(variables: Sequence[keras.Variable], select: Select, owner: str) -> list[bool]:
    """The mask of the variables that `select` selects.

    `"kernels"` selects variables of rank 2 or more, `"all"` selects every variable, any other string is a regular
    expression that is searched in the variable's path (`"dense_1/kernel"`), and a callable receives the variable.

    Raises:
        ValueError: no variable is selected, so that `owner` would silently do nothing.
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
            f"{owner}: `select` must select at least one trainable weight of the model. "
            f"Received: select={select!r}, which selects none of: {paths}. "
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
            f"{owner}: `select` must be a valid regular expression. Received: select={select!r} ({error}). "
            "Escape special characters, for example with `re.escape`."
        ) from error
    return select


def match_path(path: str, candidates: Iterable[str]) -> str | None:
    """The candidate that equals this path, or else the only candidate that differs from it by leading names alone.

    A path has or lacks the names of the models around a layer, depending on when Keras made the weight:
    `"sequential/dense/kernel"` may be `"dense/kernel"` in the same model loaded from a file.
    """
    candidates = list(candidates)
    if path in candidates:
        return path
    ends = [c for c in candidates if f"/{path}".endswith(f"/{c}") or f"/{c}".endswith(f"/{path}")]
    return ends[0] if len(ends) == 1 else None


def by_path(owner: str, variables: Sequence[keras.Variable], values: Iterable[Any]) -> dict[str, Any]:
    """The values by the paths of the variables.

    Raises:
        ValueError: two variables have one path, as in two towers made by the same function, so that a value would be
            lost.
    """
    paths = [variable.path for variable in variables]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(
            f"{owner}: the weights must have different paths. Received: two weights with the path {twice!r}. Give "
            "the layers different names."
        )
    return dict(zip(paths, values, strict=True))


def shifted(weights: Sequence[Tensor], mask: Sequence[bool], steps: Iterable[Tensor], sign: int = 1) -> list[Tensor]:
    """The weights, with the steps added to the selected ones in order, or subtracted with the sign -1."""
    move = operator.add if sign > 0 else operator.sub
    pairs = zip(compress(weights, mask), steps, strict=True)
    return merged(weights, mask, (move(weight, ops.cast(step, weight.dtype)) for weight, step in pairs))


def merged(weights: Sequence[Tensor], mask: Sequence[bool], values: Iterable[Tensor]) -> list[Tensor]:
    """The weights, with these values in place of the selected ones, in order."""
    value: Any = iter(values)
    return [next(value) if selected else weight for weight, selected in zip(weights, mask, strict=True)]
