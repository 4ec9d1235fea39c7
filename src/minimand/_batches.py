"""A training batch, its parts, and the number of training examples in an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
from keras import ops


class Batch(NamedTuple):
    """The data of one training step; each field is a tensor, a structure of tensors, or None.

    A transform of your own passes the batch on to the objective that it transforms.

    With a `gradient_weight` c, a tensor (batch,), an objective's value is meaningless and its gradient is
    sum_i c_i g_i / n. Here g_i is the gradient of example i: its contribution to the gradient of the compiled loss,
    through its own row of the outputs. Terms that do not depend on any row (penalties) keep their gradient. The number
    0.0 stands for zeros and skips the model. A transform passes the `gradient_weight` on, but gradients that it takes
    itself are those of `plain()`.

    Attributes:
        x: inputs (batch, ...).
        y: targets.
        sample_weight: weights of the examples, as in `fit`.
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


def first_leaf(structure: Any) -> Any:
    """The first array or tensor of a structure whose leaves all have the same rows."""
    return next(leaf for leaf in keras.tree.flatten(structure) if leaf is not None)


# Parts of a batch.


def micro_batches(batch: Batch, count: int) -> tuple[list[Batch], Any, list[Any]]:
    """`(micro-batches, their size, the share of each in the mean)`.

    If the framework traces with an unknown batch size, the number of examples is a tensor. Then a batch of fewer than
    `count` examples repeats its last example, with share 0.
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

    If the framework traces with an unknown batch size, a batch of fewer than `count` examples has parts of share 0,
    which repeat an example of another part.
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


# The number of training examples.


def training_examples(arguments: Mapping[str, Any]) -> int | None:
    """The number of training examples in these arguments of `keras.Model.fit`; None if it is unknown."""
    x: Any = arguments.get("x")
    if isinstance(x, keras.utils.PyDataset):
        batches = x.num_batches
        return _of_batches(batches, x[0], x[batches - 1]) if batches else None
    # A tf.data.Dataset, whose cardinality is negative if it is infinite or unknown.
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
    """The number of examples; all batches but the last have the size of the first."""
    first, last = (keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in (first, last))
    return (count - 1) * _row_count(first) + _row_count(last)


def _row_count(x: Any) -> int:
    return int(first_leaf(x).shape[0])
