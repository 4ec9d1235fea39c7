"""Arrays that belong to variables: one, or one for each path; in a configuration as text."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kriterion._selection import match_path


def arrays_of(owner: str, name: str, value: Any) -> dict[str | None, np.ndarray]:
    """Arrays by path; a single one, for whatever weights it is used on, has the path None.

    Args:
        owner: the class, for messages.
        name: the argument, for messages.
        value: a model, whose trainable weights as they are now are copied; a mapping of paths to arrays; an array.
    """
    if isinstance(value, keras.Model):
        if not value.built:
            raise ValueError(
                f"{owner}: `{name}` must be a built model. Received: {value.name}, which has no weights yet"
            )
        value = {variable.path: variable.numpy() for variable in value.trainable_variables}
    if isinstance(value, Mapping):
        arrays = {path: np.array(keras.ops.convert_to_numpy(each)) for path, each in value.items()}
    else:
        arrays = {None: np.array(keras.ops.convert_to_numpy(value))}
    for path, array in arrays.items():
        if not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
            raise ValueError(f"{owner}: `{name}` must be finite numbers. Received: others, for {path or 'the weights'}")
    return arrays


def array_for(owner: str, name: str, arrays: Mapping[str | None, np.ndarray], variable: Any) -> np.ndarray:
    """The array of a variable, or of a tensor if there is a single array."""
    own = getattr(variable, "path", "")
    path = None if None in arrays else match_path(own, [path for path in arrays if path])
    if path not in arrays:
        raise ValueError(
            f"{owner}: `{name}` must have an array for each weight that is penalised. "
            f"Received: none for {own or 'weights without a path'}, but for {list(arrays)}"
        )
    if arrays[path].shape != tuple(variable.shape):
        raise ValueError(
            f"{owner}: `{name}` must have the shape of the weights. "
            f"Received: an array of shape {arrays[path].shape} for weights of shape {tuple(variable.shape)}"
        )
    return arrays[path]


def to_text(arrays: Mapping[str | None, np.ndarray]) -> list[list[Any]]:
    """Rows of path, type, shape and base64: exact, and a quarter of the size of decimal numbers."""
    return [
        [path, str(each.dtype), list(each.shape), base64.b64encode(np.ascontiguousarray(each).tobytes()).decode()]
        for path, each in arrays.items()
    ]


def from_text(rows: list[list[Any]]) -> Any:
    """What `arrays_of` takes, from `to_text`."""
    arrays = {path: np.frombuffer(base64.b64decode(text), dtype).reshape(shape) for path, dtype, shape, text in rows}
    return arrays.get(None, arrays)
