"""A batch of training: its arrays, its parts, and how many examples an epoch has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
from keras import ops


class Batch(NamedTuple):
    """What `fit` hands to one training step; each part a tensor, a structure of tensors, or None.

    With a `gradient_weight` c, a tensor (batch,), an objective's value means nothing and its gradient is
    sum_i c_i g_i / n, where the g_i are the examples' gradients: what each contributes to that of the compiled loss,
    through the row of outputs that is its own. Terms that no row has a part in (penalties) keep their gradient. The
    number 0.0 stands for zeros, and leaves the model out. A transform hands it on, but leaves it out of gradients that
    it takes itself.

    Attributes:
        x: inputs.
        y: targets.
        sample_weight: as in `fit`.
        gradient_weight: c.

    Examples:
        >>> import numpy as np
        >>> from minimand.transforms import Batch
        >>> Batch(np.ones((4, 2)), gradient_weight=0.0).plain().gradient_weight is None
        True
    """

    x: Any
    y: Any = None
    sample_weight: Any = None
    gradient_weight: Any = None

    def plain(self) -> Batch:
        """The batch without a `gradient_weight`."""
        return self._replace(gradient_weight=None)


# Structures of arrays, as Keras takes them for inputs.


def first_leaf(structure: Any) -> Any:
    """The first array or tensor: all have the same rows."""
    return next(leaf for leaf in keras.tree.flatten(structure) if leaf is not None)


# Parts of a batch.


def micro_batches(batch: Batch, count: int) -> tuple[list[Batch], Any, list[Any]]:
    """`(micro-batches, their size, the share of each in the mean)`.

    The number of examples is a tensor where the framework traces with an unknown batch size. Then a batch of fewer
    than `count` gives its last example again, with share 0.
    """
    examples = ops.shape(first_leaf(batch.x))[0]
    if isinstance(examples, int):
        size, kept = max(examples // count, 1), [1.0] * min(examples, count)
        starts = [k * size for k in range(len(kept))]
    else:
        size, kept = ops.maximum(examples // count, 1), [k < examples for k in range(count)]
        starts = [ops.minimum(k * size, examples - size) for k in range(count)]

    return [_rows(batch, start, start + size) for start in starts], size, kept


def split(batch: Batch, count: int) -> list[tuple[Batch, Any]]:
    """`(part, its share of the examples)`: consecutive parts, as equal as possible, that make up the batch.

    Where the framework traces with an unknown batch size, a batch of fewer than `count` examples has parts of share 0,
    which hold an example that is another's.
    """
    examples = ops.shape(first_leaf(batch.x))[0]
    bounds = [(k * examples // count, (k + 1) * examples // count) for k in range(count)]
    if isinstance(examples, int):
        return [(_rows(batch, start, end), (end - start) / examples) for start, end in bounds if start < end]
    total = ops.cast(examples, "float32")
    return [
        (_rows(batch, start, ops.maximum(end, start + 1)), ops.cast(end - start, "float32") / total)
        for start, end in bounds
    ]


def _rows(batch: Batch, start: Any, end: Any) -> Batch:
    return keras.tree.map_structure(lambda leaf: leaf[start:end] if hasattr(leaf, "shape") else leaf, batch)


# How many examples an epoch of `fit` has.


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
    return math.floor(_row_count(x) * (1.0 - (arguments.get("validation_split") or 0.0)))


def _of_batches(count: int, first: Any, last: Any) -> int:
    """All batches but the last have one size."""
    first, last = (keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in (first, last))
    return (count - 1) * _row_count(first) + _row_count(last)


def _row_count(x: Any) -> int:
    return int(first_leaf(x).shape[0])
