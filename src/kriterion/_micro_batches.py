"""Parts of a batch."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kriterion._objective import Batch
from kriterion._structure import first_leaf


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
