"""What the robust losses need to know of a floating point format."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from kriterion.backend import Tensor


class Float(NamedTuple):
    """Constants of a format."""

    name: str
    epsilon: float
    largest: float
    square_limit: float  # up to here squares are finite, with room for a division by a number of order 1
    shape_limit: float  # shapes beyond it give the same loss as infinite ones
    splitter: float  # Veltkamp's constant, 2^ceil(digits / 2) + 1
    series_terms: int  # of sum (-t)^k / (k + 2)!, |t| < 1


FLOATS = {
    "float32": Float("float32", 2.0**-23, 3.4028234e38, 2.0**63, 2.0**40, 2.0**12 + 1, 10),
    "float64": Float("float64", 2.0**-52, 1.797693134862315e308, 2.0**511, 2.0**70, 2.0**27 + 1, 18),
}


def working_float(*values: Any) -> Float:
    """float64 where one of the tensors has it, else float32: half precision overflows at a residual of 256."""
    dtypes = [keras.backend.standardize_dtype(v.dtype) for v in values if hasattr(v, "dtype")]
    if "float64" in dtypes or (not dtypes and keras.config.floatx() == "float64"):
        return FLOATS["float64"]
    return FLOATS["float32"]


def absolute(value: Tensor) -> Tensor:
    """|v|, with derivative 1 at 0 on every backend."""
    return ops.where(value < 0, -value, value)


def mean_over_last_axis(value: Tensor) -> Tensor:
    """As `ops.mean`, which would compute in float32."""
    return ops.sum(value, axis=-1) / ops.cast(ops.shape(value)[-1], value.dtype)
