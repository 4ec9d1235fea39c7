"""Roots of sums of squares, in any precision, that may be differentiated and divided by where they are zero."""

from __future__ import annotations

import numpy as np
from keras import ops

from kriterion.backend import Tensor


def root(squares: Tensor) -> Tensor:
    """Of at least the least normal float32: never 0, and with the derivative 0 there."""
    # Not `maximum`, with which Keras gives up float64 on PyTorch.
    limits = np.finfo("float32")
    return ops.sqrt(ops.clip(squares, float(limits.tiny), float(limits.max)))
