"""Data of a study: inputs and targets, and how a split prepares them for a network."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import polars as pl
from sklearn.base import clone
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from minimand.study._settings import StudyError
from minimand.study._splits import Split, Splits, unseen_classes
from minimand.study._tables import Column, TableEncoder, inspection, typed
from minimand.study._targets import Target, target_of

if TYPE_CHECKING:
    from minimand.study._streams import Stream

# Names of columns whose values are likely those of persons or places with several rows each.
_SHARED = "id|ids|uuid|patient|subject|person|participant|user|customer|client|household|session"
_IDENTIFIERS = rf"(^|[_ .-])({_SHARED})([_ .-]?(id|no|nr|number|code|key|name))?$|[a-z]I[dD]$"
_MIN_ROWS = 20
_MIN_ROWS_A_CLASS = 5


@dataclass(frozen=True)
class Fold:
    """A split that is ready for a network.

    Use `Data.fold` to get one. For regression, y = (target - center) / scale, where the center is the median of the
    training targets and the scale is 1.4826 times their median absolute deviation.

    Attributes:
        x: inputs of all rows, prepared by the training rows: an array or a structure of arrays.
        y: for each output, the targets of all rows in float32.
        weights: for each output, (n, ...) weights of all rows and positions; or None for each.
        split: row numbers of the parts.
        scaling: for each output, center and scale of its quantities in the target's units.
        names: name of each output; empty for the only one.

    Examples:
        >>> from minimand.study import load_data
        >>> fold = load_data("iris").fold(0)
        >>> len(fold.x_train), fold.y_train.shape[1]
        (90, 3)
    """

    x: Any
    y: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray | None, ...]
    split: Split
    scaling: tuple[tuple[np.ndarray, np.ndarray], ...]
    names: tuple[str, ...]

    @property
    def input_shape(self) -> Any:
        """Shape of a row of each input."""
        return keras.tree.map_structure(lambda values: tuple(values.shape[1:]), self.x)

    def weights_of(self, rows: np.ndarray) -> list[np.ndarray | None]:
        """For each output, the weights of these rows, or None."""
        return [None if values is None else values[rows] for values in self.weights]

    def _y(self, rows: np.ndarray) -> Any:
        return self._by_output([values[rows] for values in self.y])

    def _weights(self, rows: np.ndarray) -> Any:
        return None if self.weights[0] is None else self._by_output(self.weights_of(rows))

    def _by_output(self, parts: Sequence[Any]) -> Any:
        return parts[0] if self.names == ("",) else dict(zip(self.names, parts, strict=True))

    @property
    def x_train(self) -> Any:
        """Inputs of the training rows."""
        return take(self.x, self.split.train)

    @property
    def x_validation(self) -> Any:
        """Inputs of the validation rows."""
        return take(self.x, self.split.validation)

    @property
    def x_test(self) -> Any:
        """Inputs of the test rows."""
        return take(self.x, self.split.test)

    @property
    def y_train(self) -> Any:
        """Targets of the training rows; a dictionary by output if there are several."""
        return self._y(self.split.train)

    @property
    def y_validation(self) -> Any:
        """Targets of the validation rows; a dictionary by output if there are several."""
        return self._y(self.split.validation)

    @property
    def y_test(self) -> Any:
        """Targets of the test rows; a dictionary by output if there are several."""
        return self._y(self.split.test)

    @property
    def weights_train(self) -> Any:
        """Weights of the training rows, as `sample_weight` of `fit`; None if there are none."""
        return self._weights(self.split.train)

    @property
    def weights_validation(self) -> Any:
        """Weights of the validation rows, as `sample_weight` of `fit`; None if there are none."""
        return self._weights(self.split.validation)


def take(structure: Any, rows: Any) -> Any:
    """These rows of each array or data frame of a structure."""
    return keras.tree.map_structure(lambda values: values[rows], structure)


def concatenated(*structures: Any) -> Any:
    """The rows of all structures of arrays."""
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *structures)


class Data:
    """Inputs and targets of a study, and how they are split.

    `load_data` reads one from a file, and `array_data` makes one of arrays.

    Args:
        name: name of the data set.
        x: an array, a structure of arrays, or a data frame of typed columns.
        targets: one for each output of the network.
        splits: splits of the rows.
        prepare: a transformer of scikit-learn, a function, a structure of these as `x`, or None.
        sample_weight: (n,) weights of rows, or None.
        stream: training batches that are not rows of x, or None.
        scaling: for each output, center and scale of its quantities if the stream determines them; otherwise None.
        source: file, built-in data set or "arrays".
        arguments: arguments of `load_data` that the page shows in its code.
        notes: sentences about what was inferred or left out.
        columns: for a table, the rows of `inspection`.

    Examples:
        >>> from minimand.study import load_data
        >>> load_data("iris").outputs
        3
    """

    def __init__(
        self,
        name: str,
        x: Any,
        targets: Sequence[Target],
        splits: Splits,
        *,
        prepare: Any = None,
        sample_weight: np.ndarray | None = None,
        stream: Stream | None = None,
        scaling: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
        source: str = "arrays",
        arguments: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
        columns: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.name, self.x, self.targets, self.splits = name, x, tuple(targets), splits
        self.prepare, self.sample_weight = prepare, sample_weight
        self.stream, self._scaling = stream, scaling
        self.source, self.arguments, self.notes = source, dict(arguments or {}), tuple(notes)
        self.columns = tuple(columns)
        self.rows = splits.rows
        self._made: dict[tuple[int, int], np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Pickle only what another process cannot make again."""
        kept = {key: value for key, value in vars(self).items() if key not in ("_weights", "_same_for_all")}
        return {**kept, "_made": {}}

    @property
    def task(self) -> str:
        """The tasks of all outputs in words."""
        return ", ".join(target.described for target in self.targets)

    @property
    def outputs(self) -> Any:
        """Number of units that a network needs; a dictionary by output if there are several."""
        if len(self.targets) == 1 and not self.targets[0].name:
            return self.targets[0].units
        return {target.name: target.units for target in self.targets}

    def digest(self) -> str:
        """A hash of all values; studies with equal digests have equal data."""
        digest = hashlib.sha256()
        weights = () if self.sample_weight is None else (self.sample_weight,)
        for path, values in keras.tree.flatten_with_path((self.x, [t.values for t in self.targets], weights)):
            digest.update(str(path).encode())
            if isinstance(values, pl.DataFrame):
                digest.update(values.write_json().encode())
            else:
                digest.update(f"{values.dtype} {values.shape}".encode())
                digest.update(
                    np.ascontiguousarray(values).data if values.dtype.kind in "biuf" else repr(values.tolist()).encode()
                )
        digest.update(self.splits.digest().encode())
        return digest.hexdigest()[:16]

    def fold(
        self, split: int, *, count: int = 1, corrupt_targets: float = 0.0, units: Sequence[int] | None = None
    ) -> Fold:
        """A split, prepared for a network.

        Args:
            split: number of the split; equal numbers give equal folds.
            count: number of splits in all, which matters for windows of time.
            corrupt_targets: fraction of the *training* targets to corrupt. Regression adds noise of ten standard
                deviations; classification draws another class.
            units: number of units of the network for each output; by default as many as a target needs.
        """
        parts = self.splits.split(split, count)
        units = [target.units for target in self.targets] if units is None else units
        targets = list(self.targets)
        if corrupt_targets:
            random = np.random.default_rng([split, 1])
            targets = [target.corrupted(parts.train, corrupt_targets, random) for target in targets]
        targets = [target.widened(number) for target, number in zip(targets, units, strict=True)]
        scaling = self._scaling or [target.center_and_scale(parts.train) for target in targets]
        y = tuple(
            target.encoded(number, *scales)
            if corrupt_targets or target.task == "regression"
            else self._encoded(index, number)
            for index, (target, number, scales) in enumerate(zip(targets, units, scaling, strict=True))
        )
        return Fold(
            self._prepared(parts.train, targets[0].values),
            y,
            self._weights,
            parts,
            tuple(scaling),
            tuple(t.name for t in targets),
        )

    def _encoded(self, index: int, units: int) -> np.ndarray:
        """The classes or labels of an output as a loss takes them: one array for all splits."""
        if (index, units) not in self._made:
            self._made[index, units] = self.targets[index].widened(units).encoded(units, np.zeros(1), np.ones(1))
        return self._made[index, units]

    @cached_property
    def _weights(self) -> tuple[np.ndarray | None, ...]:
        return tuple(weighted(self.targets, self.sample_weight))

    @cached_property
    def _same_for_all(self) -> Any:
        """The prepared inputs if they do not depend on the split."""
        every = [each for each in keras.tree.flatten(self.prepare) if each is not None]
        if any(hasattr(each, "transform") for each in every):
            return None
        return self._prepared_by(None, None)

    def _prepared(self, train: np.ndarray, y: np.ndarray) -> Any:
        return self._prepared_by(train, y) if self._same_for_all is None else self._same_for_all

    def _prepared_by(self, train: Any, y: Any) -> Any:
        prepared = keras.tree.map_structure(finished, self._applied(self.prepare, self.x, train, y))
        for array in keras.tree.flatten(prepared):
            if array.ndim == 0 or len(array) != self.rows:
                raise StudyError(f"x must have {self.rows} rows after `prepare`. Received: shape {array.shape}")
        return prepared

    def _applied(self, prepare: Any, x: Any, train: Any, y: Any) -> Any:
        if prepare is None:
            return x
        if isinstance(prepare, dict):
            return {key: self._applied(prepare.get(key), values, train, y) for key, values in x.items()}
        if isinstance(prepare, (list, tuple)):
            return type(x)(self._applied(each, values, train, y) for each, values in zip(prepare, x, strict=True))
        try:
            if not hasattr(prepare, "transform"):
                return prepare(x)
            fitted, others = clone(prepare), np.setdiff1d(np.arange(self.rows), train)
            # Some transformers treat the rows that they are fitted on in a way of their own.
            y = y[:, 0] if y.shape[1:] == (1,) else y
            first = _dense(fitted.fit_transform(x[train], y[train]))
            result = np.empty((self.rows, *first.shape[1:]), first.dtype)
            result[train], result[others] = first, _dense(fitted.transform(x[others]))
        # The user's transformer may raise anything.
        except Exception as error:
            raise StudyError(f"`prepare` cannot prepare x. {type(error).__name__}: {error}") from error
        return result

    def warnings(self, count: int) -> list[str]:
        """Sentences about splits that look wrong: rows on two sides, and classes that no training row has.

        Raises:
            StudyError: a class is in test rows but never in training rows.
        """
        if self.stream is not None:
            return []
        notes, first = [], self.splits.split(0, count)
        hashes = self._hashes()
        shared = int(np.isin(hashes[first.test], hashes[np.concatenate(first[:2])]).sum())
        if shared:
            advice = "Give --groups if rows belong together, or remove" if self.splits.kind == "random" else "Remove"
            notes.append(
                f"{shared} of {len(first.test)} test rows of the first split are equal to training or validation rows. "
                f"{advice} duplicates"
            )
        for target in self.targets:
            if target.has_classes and not target.positions:
                for number in range(count):
                    missing = unseen_classes(self.splits.split(number, count), target.values)
                    if len(missing := missing[missing >= 0]):
                        raise StudyError(
                            f"Split {number} has no training row of the class {target.classes[missing[0]]!r}, but "
                            "validation or test rows of it. Merge or leave out rare classes, or use other splits."
                        )
        return notes

    def _hashes(self) -> np.ndarray:
        """(n,) a hash of each row's inputs and targets."""
        every = np.zeros(self.rows, "uint64")
        for number, values in enumerate([*keras.tree.flatten(self.x), *(target.values for target in self.targets)]):
            if isinstance(values, pl.DataFrame):
                own = values.hash_rows(seed=number).to_numpy()
            else:
                rows = np.ascontiguousarray(values).reshape(self.rows, -1)
                rows = rows if rows.dtype.kind in "biuf" else rows.astype(str)
                own = np.array([hash((number, row.tobytes())) for row in rows], "int64").view("uint64")
            every = every * np.uint64(31) + own
        return every


def finished(values: Any) -> np.ndarray:
    """An array of the types that networks take.

    Raises:
        StudyError: values are not numbers, missing or infinite.
    """
    array = keras.ops.convert_to_numpy(values) if keras.ops.is_tensor(values) else _dense(values)
    if array.dtype.kind not in "biuf":
        raise StudyError(
            f"x must be numbers. Received: an array of type {array.dtype}. Turn it into numbers by `prepare`, or "
            "give a table as a data frame."
        )
    array = array.astype({"f": "float32", "i": "int32", "u": "int32"}.get(array.dtype.kind, array.dtype), copy=False)
    if array.dtype.kind == "f" and (count := int(array.size - np.isfinite(array).sum())):
        raise StudyError(f"{count} values of x are missing or infinite. Replace them, or give `prepare` an imputer.")
    return array


def weighted(targets: Sequence[Target], weights: np.ndarray | None) -> list[np.ndarray | None]:
    """For each target, the weights of its rows and positions, 0 where the label is ignored.

    All are None if all weights of all targets are 1.
    """
    every: list[np.ndarray | None] = []
    for target in targets:
        known = target.known()
        if weights is None or known is None:
            every.append(known if weights is None else np.asarray(weights, "float32"))
        else:
            every.append(known * np.asarray(weights, "float32").reshape(-1, *(1 for _ in known.shape[1:])))
    if all(values is None for values in every):
        return every
    ones = np.ones(len(targets[0].values), "float32")
    return [ones if values is None else values for values in every]


def _dense(values: Any) -> np.ndarray:
    if isinstance(values, pl.DataFrame):
        return values.to_numpy()
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values)


def array_data(
    x: Any,
    y: Any,
    *,
    name: str = "arrays",
    task: Any = None,
    ignore_class: Any = None,
    prepare: Any = "auto",
    sample_weight: Any = None,
    groups: Any = None,
    time: Any = None,
    cv: Any = None,
    test: tuple[Any, Any] | None = None,
    notes: Sequence[str] = (),
    **others: Any,
) -> Data:
    """Data of a study from arrays or data frames.

    Use it for the data of a `Study` that another study will use too; `Study` and `compare` take arrays themselves.

    Args:
        x: an array of any shape, a data frame, or a dictionary, tuple or list of arrays; rows come first.
        y: as in `target_of`; a dictionary by output, or a tuple or list, for several outputs.
        name: name of the data set.
        task: as in `target_of`; a dictionary by output for several outputs.
        ignore_class: as in `target_of`.
        prepare: a transformer of scikit-learn, fitted on training rows only; a function of all of `x`; a dictionary of
            these by input; or None. By default 2-D floats are standardised, images of type uint8 are scaled to [0, 1],
            the columns of data frames are encoded, and the rest stays as it is.
        sample_weight: (n,) weights >= 0 of rows in training, validation and test.
        groups: (n,) groups; no group is in two parts of a split.
        time: (n,) times; training rows come before validation rows, and these before test rows.
        cv: splitter of scikit-learn, number of folds, or pairs of row numbers.
        test: inputs and targets of a test set, as `x` and `y`. Groups and weights may be those of the training rows
            alone, or of the training rows and then the test rows.
        notes: sentences that the page shows.
        **others: other arguments of `Data`.

    Returns:
        The data.

    Raises:
        StudyError: a study cannot use the arrays.

    Examples:
        >>> import numpy as np
        >>> from minimand.study import array_data
        >>> array_data(np.random.rand(30, 8, 8, 1), np.arange(30) % 3).task
        '3 classes'
    """
    x, y = _inputs(x), _outputs(y)
    given_test = None
    rows = len(keras.tree.flatten(x)[0])
    if test is not None:
        if not isinstance(test, tuple) or len(test) != 2:
            raise StudyError(f"`test` must be a pair of inputs and targets (x, y). Received: {type(test).__name__}")
        given, x, y = rows, _joined(x, _inputs(test[0]), "x"), _joined(y, _outputs(test[1]), "y")
        rows = len(keras.tree.flatten(x)[0])
        given_test = np.arange(rows) >= given
    for values in keras.tree.flatten(x):
        if len(values) != rows:
            raise StudyError(f"All inputs must have the same number of rows. Received: {rows} and {len(values)}")
    targets = targets_of(y, task, ignore_class)
    for target in targets:
        if len(target.values) != rows:
            raise StudyError(f"x and y must have the same number of rows. Received: {rows} and {len(target.values)}")
    if rows < _MIN_ROWS:
        raise StudyError(f"A study needs at least {_MIN_ROWS} rows for the splits. Received: {rows}")
    first = targets[0]
    classes = first.values if first.has_classes and not first.positions else None
    splits = Splits(
        rows,
        classes=classes,
        groups=None if groups is None else _of_all_rows(groups, rows, given_test, "(test)"),
        times=None if time is None else np.asarray(time),
        cv=cv,
        test=given_test,
    )
    if classes is not None and splits.kind == "random":
        counts = np.bincount(classes[classes >= 0], minlength=len(first.classes))
        if counts.min() < _MIN_ROWS_A_CLASS:
            rare = [f"{c!r} ({k})" for c, k in zip(first.classes, counts, strict=True) if k < _MIN_ROWS_A_CLASS]
            raise StudyError(
                f"Every class needs at least {_MIN_ROWS_A_CLASS} rows to be in training, validation and test rows. "
                f"These have fewer: {', '.join(rare)}. Merge or remove them, or give --task regression."
            )
    columns: Sequence[Column] = ()
    if isinstance(x, pl.DataFrame):
        columns = typed(x)
        x = pl.DataFrame([column.values for column in columns if column.used])
        if x.width == 0:
            raise StudyError(
                "The inputs have no feature that varies and is not an identifier. Add such a column to the table."
            )
        notes = list(dict.fromkeys([*notes, *(f"column {c.name!r}: {c.note}" for c in columns if c.note)]))
        automatic: Any = TableEncoder({column.name: column.kind for column in columns if column.used})
        if splits.kind == "random":
            notes += _warnings_of(columns)
    else:
        automatic = keras.tree.map_structure(_usual_preparation, x)
    weights = (
        None if sample_weight is None else _checked_weights(_of_all_rows(sample_weight, rows, given_test, 1), rows)
    )
    return Data(
        name,
        x,
        targets,
        splits,
        prepare=automatic if isinstance(prepare, str) and prepare == "auto" else prepare,
        sample_weight=weights,
        notes=[*notes, *(note for target in targets for note in target.notes)],
        columns=inspection(columns).to_dicts(),
        **others,
    )


def _inputs(x: Any) -> Any:
    """Arrays, or a data frame of polars."""
    if isinstance(x, pl.DataFrame):
        return x
    if hasattr(x, "columns") and hasattr(x, "dtypes"):
        return pl.DataFrame({str(column): x[column].tolist() for column in x.columns})
    if isinstance(x, Mapping):
        return {key: _inputs(values) for key, values in x.items()}
    if isinstance(x, tuple) or (isinstance(x, list) and x and all(hasattr(each, "shape") for each in x)):
        return type(x)(_inputs(values) for values in x)
    array = np.asarray(x)
    if array.ndim == 0 or len(array) == 0:
        raise StudyError(f"x must be arrays with rows. Received: {type(x).__name__} of shape {array.shape}")
    return array


def _outputs(y: Any) -> Any:
    """A dictionary or list of arrays for several outputs, or one array."""
    if isinstance(y, Mapping):
        return {str(key): np.asarray(values) for key, values in y.items()}
    if isinstance(y, (tuple, list)) and y and all(hasattr(each, "shape") and np.ndim(each) for each in y):
        return [np.asarray(values) for values in y]
    return np.asarray(y)


def targets_of(y: Any, task: Any, ignore_class: Any) -> list[Target]:
    """The targets of one array, or of a dictionary or list of arrays."""
    if isinstance(y, np.ndarray):
        return [target_of(y, task, ignore_class=ignore_class)]
    named = y if isinstance(y, dict) else {str(index): values for index, values in enumerate(y)}
    tasks = task if isinstance(task, Mapping) else dict.fromkeys(named, task)
    ignored = ignore_class if isinstance(ignore_class, Mapping) else dict.fromkeys(named, ignore_class)
    if unknown := {*tasks, *ignored} - {*named}:
        raise StudyError(f"`task` names the output {min(unknown)!r}. Outputs: {', '.join(named)}.")
    return [target_of(values, tasks.get(key), ignore_class=ignored.get(key), name=key) for key, values in named.items()]


def _joined(first: Any, second: Any, name: str) -> Any:
    """The rows of both, which must have the same structure."""
    if isinstance(first, pl.DataFrame) and isinstance(second, pl.DataFrame):
        if missing := [column for column in first.columns if column not in second.columns]:
            raise StudyError(f"The test set has no column {missing[0]!r}. Columns: {', '.join(second.columns)}.")
        return pl.concat([first, second.select(first.columns)], how="vertical_relaxed")
    try:
        keras.tree.assert_same_structure(first, second)
        return concatenated(first, second)
    except (ValueError, TypeError) as error:
        raise StudyError(f"`test` must have {name} of the same form as the training data. {error}") from error


def _of_all_rows(values: Any, rows: int, test: np.ndarray | None, of_test: Any) -> np.ndarray:
    """Groups or weights of all rows, of which those of a given test set may be left out."""
    array = np.asarray(values)
    if test is None or len(array) == rows:
        return array
    return np.concatenate([array, np.full(int(test.sum()), of_test)])


def _checked_weights(sample_weight: Any, rows: int) -> np.ndarray:
    weights = np.asarray(sample_weight, dtype="float32")
    if weights.shape != (rows,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise StudyError(
            f"`sample_weight` must be ({rows},) finite weights >= 0, some of them positive. Received: shape "
            f"{weights.shape} with values from {np.min(weights)} to {np.max(weights)}"
        )
    return weights


def _warnings_of(columns: Sequence[Column]) -> list[str]:
    """Sentences about columns that make random splits look wrong."""
    notes = []
    for column in columns:
        distinct, rows = column.values.n_unique(), len(column.values)
        if column.kind == "date":
            notes.append(
                f"column {column.name!r} looks like a time. If rows follow each other, give --time {column.name}"
            )
        elif column.kind in ("category", "number") and 1 < distinct <= rows / 2:
            named = re.search(_IDENTIFIERS, column.name, re.IGNORECASE) is not None
            if (named and distinct > 2) or (column.kind == "category" and distinct > 50):
                notes.append(
                    f"column {column.name!r} looks like an identifier that rows share. If rows with the same value "
                    f"belong together, give --groups {column.name}"
                )
    return notes


def _usual_preparation(x: np.ndarray) -> Any:
    """The usual preparation of an array, which standardises floats in columns and scales pixels to [0, 1]."""
    if x.ndim == 2 and x.dtype.kind == "f":
        return make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    return unit_interval if x.dtype == np.uint8 and x.ndim >= 3 else None


def unit_interval(pixels: np.ndarray) -> np.ndarray:
    """Values from 0 to 255 scaled to [0, 1]."""
    return pixels.astype("float32") / np.float32(255)
