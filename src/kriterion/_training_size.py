"""How many examples an epoch of `fit` has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras

from kriterion._structure import first_leaf


def training_examples(arguments: Mapping[str, Any]) -> int | None:
    """The number of training examples that these arguments of `keras.Model.fit` give; None if it is not known."""
    x: Any = arguments.get("x")
    if isinstance(x, keras.utils.PyDataset):
        batches = x.num_batches
        if not batches:
            return None
        return _of_batches(batches, x[0], x[batches - 1])
    # A tf.data.Dataset; its cardinality is negative where it is infinite or not known.
    if hasattr(x, "cardinality"):
        batches = int(x.cardinality())
        return _of_batches(batches, next(iter(x)), next(iter(x.skip(batches - 1)))) if batches > 0 else None
    # A torch DataLoader.
    if hasattr(x, "dataset") and hasattr(x.dataset, "__len__"):
        return len(x.dataset)
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    if not leaves or not all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
        return None
    return math.floor(_rows(x) * (1.0 - (arguments.get("validation_split") or 0.0)))


def _of_batches(count: int, first: Any, last: Any) -> int:
    """All batches but the last have one size."""
    first, last = (keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in (first, last))
    return (count - 1) * _rows(first) + _rows(last)


def _rows(x: Any) -> int:
    return int(first_leaf(x).shape[0])
