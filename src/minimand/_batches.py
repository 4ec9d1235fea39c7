"""A training batch, its parts, and the number of training examples in an epoch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from types import GeneratorType
from typing import Any, NamedTuple

import keras
import numpy as np
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


# The number of training examples: of the rows of an epoch of `fit` whose sample weight is not 0.


def training_examples(arguments: Mapping[str, Any]) -> tuple[int | None, Any]:
    """`(N, x)`: the number of training examples for these arguments of `keras.Model.fit`, and the `x` to pass on.

    N is None if the number is not known. A generator is read for its first batch, so `x` then starts with that batch.
    """
    x: Any = arguments.get("x")
    steps = arguments.get("steps_per_epoch")
    if 0 in (arguments.get("class_weight") or {}).values():
        return None, x
    if isinstance(x, GeneratorType):
        return _of_generator(x, steps)
    if isinstance(x, keras.utils.PyDataset):
        counts = [count for count in (x.num_batches, steps) if count is not None]
        return (sum(_examples(x[index]) for index in range(min(counts))) if counts else None), x
    if hasattr(x, "cardinality") and hasattr(x, "take"):
        return _of_tf_data(x, steps), x
    if hasattr(x, "batch_sampler"):
        return _of_data_loader(x, steps), x
    return _of_arrays(arguments, steps), x


def _of_arrays(arguments: Mapping[str, Any], steps: int | None) -> int | None:
    x, weights = arguments.get("x"), arguments.get("sample_weight")
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    if not leaves or not all(hasattr(leaf, "shape") and len(leaf.shape) and leaf.shape[0] for leaf in leaves):
        return None
    rows = int(leaves[0].shape[0])
    if arguments.get("validation_data") is None:
        rows = math.floor(rows * (1.0 - (arguments.get("validation_split") or 0.0)))
    counted = rows if weights is None else _nonzero_rows(weights, rows)
    in_steps = rows if steps is None else min(rows, steps * (arguments.get("batch_size") or 32))
    # Which rows a shorter epoch takes is not known.
    return in_steps if counted == rows else counted if in_steps == rows else None


def _of_generator(x: Any, steps: int | None) -> tuple[int | None, Any]:
    first = next(x, None)
    if first is None:
        return None, x

    def restored() -> Iterator[Any]:
        yield first
        yield from x

    return _equal_batches(first, steps), restored()


def _of_tf_data(x: Any, steps: int | None) -> int | None:
    # Negative if it is infinite or unknown.
    batches = int(x.cardinality())
    if steps is not None:
        batches = steps if batches < 0 else min(batches, steps)
    inputs, _, weights = keras.utils.unpack_x_y_sample_weight(x.element_spec)
    size = first_leaf(inputs).shape[0]
    if batches < 0:
        return None
    return batches * size if size and weights is None else sum(map(_examples, x.take(batches)))


def _of_data_loader(x: Any, steps: int | None) -> int | None:
    """For a torch `DataLoader`, of any sampler or batch sampler, or an iterable data set."""
    try:
        batches = len(x)
    except TypeError:
        return None if steps is None else _equal_batches(next(iter(x)), steps)
    in_steps = batches if steps is None else min(batches, steps)
    sampler = x.batch_sampler
    if type(sampler).__module__.startswith("torch.") and not hasattr(x.dataset, "__iter__"):
        item = x.collate_fn([x.dataset[next(iter(sampler.sampler))]])
        if keras.utils.unpack_x_y_sample_weight(item)[2] is None:
            return min(len(sampler.sampler), in_steps * sampler.batch_size)
    return sum(map(_examples, itertools.islice(x, in_steps)))


def _equal_batches(first: Any, steps: int | None) -> int | None:
    """The number of examples in so many batches like this one; None if their weights may be 0."""
    x, _, weights = keras.utils.unpack_x_y_sample_weight(first)
    return None if steps is None or weights is not None else steps * _row_count(x)


def _examples(batch: Any) -> int:
    x, _, weights = keras.utils.unpack_x_y_sample_weight(batch)
    return _row_count(x) if weights is None else _nonzero_rows(weights, _row_count(x))


def _nonzero_rows(weights: Any, rows: int) -> int:
    """The number of the first rows that have a weight which is not 0, in any output and at any position."""
    arrays = [ops.convert_to_numpy(leaf)[:rows] for leaf in keras.tree.flatten(weights) if leaf is not None]
    return int(np.any([array.reshape(len(array), -1).any(axis=1) for array in arrays], axis=0).sum())


def _row_count(x: Any) -> int:
    return int(first_leaf(x).shape[0])
