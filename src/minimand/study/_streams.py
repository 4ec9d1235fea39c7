"""Data of a study that cannot be indexed: batches that come one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from minimand.study._data import Data, concatenated, targets_of
from minimand.study._settings import StudyError
from minimand.study._splits import Split, Splits


class Stream:
    """Batches of training examples, which can be read any number of times.

    Args:
        batches: an iterable of batches (x, y) or (x, y, sample_weight), such as a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or a `DataLoader`.

    Attributes:
        steps: number of batches.
        examples: number of rows in all batches.
        y: the targets of each batch.

    Raises:
        StudyError: `batches` can be read once only, or its batches are not pairs.
    """

    def __init__(self, batches: Any, name: str = "train") -> None:
        self.batches, self.name = batches, name
        self.y = [y for _, y, _ in self]
        self.steps, self.examples = len(self.y), sum(len(keras.tree.flatten(y)[0]) for y in self.y)
        if not self.steps:
            raise StudyError(f"`{name}` has no batches. Give a data set with some.")

    def __iter__(self) -> Iterator[tuple[Any, Any, np.ndarray | None]]:
        """Batches of arrays."""
        batches = self.batches
        if iter(batches) is batches if hasattr(batches, "__iter__") else not hasattr(batches, "__len__"):
            raise StudyError(
                f"`{self.name}` must be batches that can be read again for each training, such as a tf.data.Dataset, a "
                f"PyDataset or a DataLoader. Received: {type(batches).__name__}. Put a generator into a class with "
                "`__iter__`, or give arrays as x and y."
            )
        # A PyDataset has batches by number, without an end.
        numbered = isinstance(batches, keras.utils.PyDataset)
        for batch in (batches[index] for index in range(len(batches))) if numbered else batches:
            if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
                raise StudyError(
                    f"`{self.name}` must yield (x, y) or (x, y, sample_weight). Received: {type(batch).__name__}"
                )
            x, y, *weights = (keras.tree.map_structure(_array, part) for part in batch)
            yield x, y, weights[0] if weights else None


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.numpy() if hasattr(values, "numpy") else values)


def _joined(stream: Stream) -> tuple[Any, Any, np.ndarray | None]:
    """All inputs, targets and weights of a stream."""
    x, y, weights = zip(*stream, strict=True)
    return concatenated(*x), concatenated(*y), None if weights[0] is None else np.concatenate(weights)


class _StreamSplits(Splits):
    """The validation rows and then the test rows, the same ones for all seeds."""

    def __init__(self, validation: int, rows: int) -> None:
        super().__init__(rows, test=np.arange(rows) >= validation)
        self._parts_of_all = Split(np.arange(0), np.arange(validation), np.arange(validation, rows))

    def split(self, number: int, count: int) -> Split:
        """The validation rows and the test rows."""
        return self._parts_of_all

    @property
    def described(self) -> str:
        """The splits in words."""
        return "the given training, validation and test data, the same ones for all seeds"


def stream_data(
    train: Any,
    validation: Any,
    test: Any,
    *,
    name: str = "stream",
    task: Any = None,
    ignore_class: Any = None,
    notes: Sequence[str] = (),
) -> Data:
    """Data of a study from batches that cannot be indexed.

    Use it for data that do not fit into memory. The training batches are read again in each epoch. The validation and
    test batches are read once and kept. Seeds differ in initial weights, and in the order of training batches if
    `train` shuffles. Runs train one after the other.

    Args:
        train: batches of training examples (x, y) or (x, y, sample_weight) that can be read any number of times: a
            `tf.data.Dataset`, `keras.utils.PyDataset`, `DataLoader` or another iterable.
        validation: batches of validation examples.
        test: batches of test examples.
        name: name of the data set.
        task: as in `target_of`.
        ignore_class: as in `target_of`.
        notes: sentences that the page shows.

    Returns:
        The data.

    Raises:
        StudyError: the batches can be read once only, or a study cannot use them.

    Examples:
        >>> import numpy as np
        >>> from minimand.study import stream_data
        >>> random = np.random.default_rng(0)
        >>> train, validation, test = ([(random.normal(size=(8, 3)), random.normal(size=8))] * 4 for _ in range(3))
        >>> stream_data(train, validation, test).task
        'regression'
    """
    stream = Stream(train)
    parts = [_joined(Stream(validation, "validation")), _joined(Stream(test, "test"))]
    try:
        x, y = (concatenated(parts[0][k], parts[1][k]) for k in (0, 1))
        every = targets_of(concatenated(*stream.y, y), task, ignore_class)
    except ValueError as error:
        raise StudyError(f"`train`, `validation` and `test` must have batches of the same form. {error}") from error
    # The targets of training rows fix classes and scales, and are not rows of the data.
    own = keras.tree.flatten(y) if not isinstance(y, dict) else [y[target.name] for target in every]
    targets = [target.like(values) for target, values in zip(every, own, strict=True)]
    rows, of_validation = len(targets[0].values), len(keras.tree.flatten(parts[0][1])[0])
    weights = None
    if any(part[2] is not None for part in parts):
        weights = np.concatenate([np.ones(len(keras.tree.flatten(p[1])[0])) if p[2] is None else p[2] for p in parts])
    scaling = [target.center_and_scale(np.arange(stream.examples)) for target in every]
    return Data(
        name,
        x,
        targets,
        _StreamSplits(of_validation, rows),
        sample_weight=weights,
        stream=stream,
        scaling=scaling,
        notes=[*notes, *(note for target in every for note in target.notes)],
    )
