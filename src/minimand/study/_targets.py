"""Targets of a study: what kind of quantity each output predicts, and how losses and metrics take it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minimand.study._settings import StudyError

TASKS = ("regression", "binary", "multiclass", "multilabel")
# An integer target with more distinct values is a quantity, not a class.
_MAX_CLASSES = 20


@dataclass(frozen=True)
class Target:
    """The targets of one output of a network.

    Use `target_of` to make one.

    Attributes:
        task: `"regression"`, `"binary"`, `"multiclass"` or `"multilabel"`.
        values: (n, ..., quantities) floats for regression; (n, labels) zeros and ones for several labels; otherwise
            (n, ...) indices into `classes`, with -1 where the label is ignored.
        classes: names of the classes or labels; empty for regression.
        name: name of the output; empty if the network has one output.
        distinct: the classes as the data have them, in ascending order; None for quantities, labels and one-hot rows.
        notes: sentences about what was inferred.

    Examples:
        >>> from minimand.study import Target, target_of
        >>> target_of(["no", "yes", "yes"]).classes
        ('no', 'yes')
    """

    task: str
    values: np.ndarray
    classes: tuple[str, ...] = ()
    name: str = ""
    distinct: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """Number of units that a network needs for this output; a binary output may have one or two."""
        return len(self.classes) if self.classes else self.values.shape[-1]

    @property
    def has_classes(self) -> bool:
        """Tell whether each value is one class."""
        return self.task in ("binary", "multiclass")

    @property
    def positions(self) -> tuple[int, ...]:
        """The axes between the rows and the units: a value for each pixel or token has some."""
        return self.values.shape[1:] if self.has_classes else self.values.shape[1:-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a network's output for one row."""
        return (*self.positions, self.units)

    @property
    def described(self) -> str:
        """The task in a few words."""
        what = {
            "regression": "regression" if self.units == 1 else f"regression of {self.units} quantities",
            "multilabel": f"{self.units} labels",
        }.get(self.task, f"{len(self.classes)} classes")
        where = f" at each of {' x '.join(map(str, self.positions))} positions" if self.positions else ""
        return f"{self.name}: {what}{where}" if self.name else f"{what}{where}"

    @property
    def largest(self) -> int | None:
        """The largest class if the classes are whole numbers from 0, which may be the units of a network."""
        if self.distinct is None or self.distinct.dtype.kind not in "iuf" or self.distinct[0] < 0:
            return None
        return int(self.distinct[-1]) if np.array_equal(self.distinct, np.floor(self.distinct)) else None

    def widened(self, units: int) -> Target:
        """The target for a network with a unit for each whole number, some of which are not classes of the data."""
        if self.largest is None or self.distinct is None or units <= len(self.classes):
            return self
        # The last one is for ignored values.
        values = np.array([*self.distinct.astype("int64"), -1])[self.values]
        every = tuple(range(units))
        return replace(
            self, task="multiclass", values=values, classes=tuple(map(str, every)), distinct=np.arange(units)
        )

    def like(self, y: Any) -> Target:
        """Other targets with the same classes, such as those of a batch.

        Raises:
            StudyError: a class is not one of this target's.
        """
        values = np.asarray(y)
        if self.task == "regression":
            values = values.astype("float64").reshape(len(values), *self.values.shape[1:])
        elif self.task == "multilabel":
            values = values.astype("int64")
        elif self.distinct is None:
            values = values.argmax(axis=-1)
        else:
            values = values.reshape(len(values), *self.positions).astype(self.distinct.dtype)
            indices = np.searchsorted(self.distinct, values).clip(max=len(self.distinct) - 1)
            values = np.where(self.distinct[indices] == values, indices, -1)
        return replace(self, values=values)

    def known(self) -> np.ndarray | None:
        """(n, ...) zeros where the label is ignored and ones elsewhere; None if no label is."""
        known = self.values >= 0 if self.has_classes else np.True_
        return None if known.all() else known.astype("float32")

    def center_and_scale(self, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The median of the training rows for each quantity, and 1.4826 times the median absolute deviation."""
        if self.task != "regression":
            return np.zeros(1), np.ones(1)
        values = self.values[train].reshape(-1, self.units)
        center = np.median(values, axis=0)
        scale = 1.4826 * np.median(np.abs(values - center), axis=0)
        # The median deviation is 0 if more than half of the targets are equal.
        scale = np.where(scale > 0, scale, values.std(axis=0))
        return center, np.where(scale > 0, scale, 1.0)

    def encoded(self, units: int, center: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """(n, ..., units) targets in float32 as a loss takes them: scaled, one-hot, or of one unit for two classes."""
        if self.task == "regression":
            return ((self.values - center) / scale).astype("float32")
        if self.task == "multilabel":
            return self.values.astype("float32")
        if units == 1:
            return (self.values == 1).astype("float32")[..., None]
        # The last row is that of ignored labels.
        return np.concatenate([np.eye(units, dtype="float32"), np.zeros((1, units), "float32")])[self.values]

    def judged(
        self, rows: np.ndarray, predictions: np.ndarray, center: np.ndarray, scale: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Truth, predictions and indices into `rows` as metrics take them, with positions that are not ignored as rows.

        The truth is (m,) classes, or (m,) or (m, quantities) floats in the target's units; the predictions are
        (m, classes) probabilities or as the truth.
        """
        predicted = np.asarray(predictions, dtype="float64")
        truth, index = self.values[rows], np.arange(len(rows)).repeat(int(np.prod(self.positions, dtype="int64")))
        predicted = predicted.reshape(-1, predicted.shape[-1])
        if self.task == "regression":
            truth, predicted = truth.reshape(-1, self.units), predicted * scale + center
            return (truth[:, 0], predicted[:, 0], index) if self.units == 1 else (truth, predicted, index)
        if self.task == "multilabel":
            return truth.reshape(-1, self.units).astype("int64"), predicted, index
        if predicted.shape[1] == 1:
            predicted = np.concatenate([1.0 - predicted, predicted], axis=1)
        truth = truth.ravel()
        known = truth >= 0
        return truth[known], predicted[known], index[known]

    def corrupted(self, train: np.ndarray, fraction: float, random: np.random.Generator) -> Target:
        """The target with a fraction of the training rows corrupted.

        Quantities get noise of ten standard deviations, a class becomes another class, and labels are inverted.
        """
        values = self.values.copy()
        chosen = random.choice(train, size=round(fraction * len(train)), replace=False)
        if self.task == "regression":
            deviation = self.values[train].std(axis=tuple(range(self.values.ndim - 1)))
            values[chosen] += random.normal(0.0, 10.0 * deviation, size=values[chosen].shape)
        elif self.task == "multilabel":
            values[chosen] = 1 - values[chosen]
        else:
            shift = random.integers(1, len(self.classes), size=values[chosen].shape)
            values[chosen] = np.where(values[chosen] < 0, -1, (values[chosen] + shift) % len(self.classes))
        return replace(self, values=values)


def target_of(y: Any, task: str | None = None, *, ignore_class: Any = None, name: str = "") -> Target:
    """The targets of an output, with the task that their values suggest.

    Use it to see what a study makes of your targets. Strings, booleans, and at most 20 distinct whole numbers are
    classes. Rows of zeros and ones are several labels, or one class if each row has a single one. Everything else is
    regression. An array with more axes has a class or quantity at each position.

    Args:
        y: (n,), (n, quantities), (n, labels), one-hot (n, classes), or (n, ...) with a label for each position.
        task: `"regression"`, `"binary"`, `"multiclass"`, `"multilabel"` or `"classification"` (binary or multiclass);
            by default inferred.
        ignore_class: label of positions or rows that count nowhere, such as 255 or -100.
        name: name of the output, for messages.

    Returns:
        The target.

    Raises:
        StudyError: a value is missing or infinite, the target is constant, or it does not suit the task.

    Examples:
        >>> from minimand.study import target_of
        >>> target_of([[0.5, 1.0], [2.5, 3.0], [4.5, 0.0]]).described
        'regression of 2 quantities'
    """
    called = f"target {name!r}" if name else "target"
    if task not in (None, "classification", *TASKS):
        raise StudyError(f"--task must be classification or one of {', '.join(TASKS)}. Received: {task!r}")
    values = np.asarray(y)
    if values.ndim == 0 or len(values) == 0:
        raise StudyError(f"The {called} has no rows. Give at least one value for each row of x.")
    if values.dtype.kind == "O" and all(isinstance(each, (bool, int, float, np.number)) for each in values.flat):
        values = values.astype("float64")
    if values.dtype.kind not in "biufOUST":
        raise StudyError(f"The {called} must be numbers or classes. Received: an array of type {values.dtype}")
    if values.dtype.kind == "f":
        values = values.astype("float64")
        for wrong, words in ((np.isnan(values), "missing"), (np.isinf(values), "infinite")):
            if count := int(wrong.sum()):
                raise StudyError(f"{count} of {values.size} values of the {called} are {words}. Remove those rows.")
    if values.ndim > 1 and values.shape[-1] == 1:
        values = values[..., 0]
    known = np.full(values.shape, True) if ignore_class is None else values != ignore_class
    if not known.any():
        raise StudyError(f"ignore_class={ignore_class!r} is every value of the {called}. Give another one.")
    distinct = np.unique(values[known] if values.dtype.kind != "O" else values[known].astype(str))
    if len(distinct) < 2:
        raise StudyError(f"The {called} is constant ({distinct[0]!r}). Choose one that varies.")
    # A label that is ignored is one of single classes.
    single = ignore_class is not None
    notes: tuple[str, ...] = ()
    if task in (None, "classification"):
        task, notes = _inferred(values, distinct, "classification" if single else task, called)
    if task == "regression":
        return Target(task, _quantities(values, called), name=name, notes=notes)
    one_hot = not single and _is_one_hot(values)
    if task == "multilabel":
        if values.ndim != 2 or not np.isin(distinct, (0, 1)).all():
            raise StudyError(
                f"The {called} of several labels must be (n, labels) zeros and ones. Received: shape {values.shape} "
                f"with the values {_some(distinct)}"
            )
        return Target(task, values.astype("int64"), tuple(map(str, range(values.shape[1]))), name, notes=notes)
    if one_hot:
        return Target("multiclass", values.argmax(axis=-1), tuple(map(str, range(values.shape[-1]))), name, notes=notes)
    indices = np.full(values.shape, -1)
    indices[known] = np.searchsorted(distinct, values[known].astype(distinct.dtype))
    classes = tuple(f"{each:g}" if isinstance(each, np.floating) else str(each) for each in distinct)
    if task == "binary" and len(classes) > 2:
        raise StudyError(f"--task binary needs two classes in the {called}. Received: {_some(distinct)}")
    return Target("binary" if len(classes) == 2 else "multiclass", indices, classes, name, distinct, notes)


def _inferred(values: np.ndarray, distinct: np.ndarray, task: str | None, called: str) -> tuple[str, tuple[str, ...]]:
    """The task that values suggest, and a note if the values could mean something else."""
    if values.dtype.kind in "bOUST":
        return "multiclass", ()
    # Scikit-learn's `type_of_target` would overflow for numbers that no integer can hold.
    if task is None and values.dtype.kind == "f" and (values != np.floor(values)).any():
        return "regression", ()
    if _is_one_hot(values):
        return "multiclass", ()
    if values.ndim == 2 and task is None and np.isin(distinct, (0, 1)).all():
        return "multilabel", ()
    if task is None and len(distinct) > _MAX_CLASSES:
        few = f"the {called} has {len(distinct)} distinct whole numbers, so the task is regression (--task)"
        return "regression", (few,) if len(distinct) <= 1000 and values.ndim > 1 else ()
    numbers = values.dtype.kind == "f" or len(distinct) > 2
    note = f"the whole numbers {_some(distinct)} of the {called} are classes, not quantities (--task regression)"
    return "multiclass", (note,) if task is None and numbers and values.ndim == 1 else ()


def _is_one_hot(values: np.ndarray) -> bool:
    numeric = values.dtype.kind in "biuf" and values.ndim > 1 and values.shape[-1] > 1
    return bool(numeric and np.isin(values, (0, 1)).all() and (values.sum(axis=-1) == 1).all())


def _some(distinct: np.ndarray) -> str:
    words = [f"{each:g}" if isinstance(each, np.floating) else str(each) for each in distinct[:6]]
    return ", ".join(words) + (", ..." if len(distinct) > 6 else "")


def _quantities(values: np.ndarray, called: str) -> np.ndarray:
    if values.dtype.kind not in "biuf":
        raise StudyError(f"--task regression needs a numeric {called}. Received: values such as {values.flat[0]!r}")
    quantities = values.astype("float64")[..., None] if values.ndim == 1 else values.astype("float64")
    if (np.ptp(quantities.reshape(-1, quantities.shape[-1]), axis=0) == 0).any():
        raise StudyError(
            f"The {called} varies less than double precision can tell, or one of its quantities is constant "
            f"({quantities.flat[0]:g}). Subtract a constant first, or leave the quantity out."
        )
    return quantities
