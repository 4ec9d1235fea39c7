"""Tables of data: how they are read, how their task is inferred, and how they are split into folds."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import sklearn.datasets
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from minimand.study._settings import StudyError

BUILT_IN = {
    "diabetes": "regression",
    "breast_cancer": "classification",
    "digits": "classification",
    "iris": "classification",
    "wine": "classification",
}
_READERS = {
    ".csv": lambda file: pl.read_csv(file, infer_schema_length=None, null_values=["", "NA", "NaN", "nan", "null", "?"]),
    ".parquet": pl.read_parquet,
    ".arrow": pl.read_ipc,
    ".feather": pl.read_ipc,
    ".npz": lambda file: _read_npz(file),
}
_MAX_CATEGORIES = 50
# An integer target with more distinct values is a quantity, not a class.
_MAX_CLASSES = 20
_MIN_ROWS = 20
_MIN_ROWS_A_CLASS = 5


@dataclass(frozen=True)
class Fold:
    """A train/validation/test split that is ready for a network.

    Use `Data.fold` to get one. For regression, y = (target - center) / scale, where the center is the median of the
    training targets and the scale is 1.4826 times their median absolute deviation.

    Attributes:
        x_train, x_validation, x_test: features (n, features) in float32, standardised by the training rows.
        y_train, y_validation, y_test: targets in float32: one-hot (n, classes), or (n, 1) for regression.
        target_center: in the target's units; 0 for classification.
        target_scale: in the target's units; 1 for classification.

    Examples:
        >>> from minimand.study import load_data
        >>> fold = load_data("iris").fold(seed=0)
        >>> len(fold.x_train), fold.y_train.shape[1]
        (90, 3)
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    target_center: float
    target_scale: float

    @property
    def test_over_train(self) -> float:
        """Number of test rows over the number of training and validation rows, which a run learns from."""
        return len(self.x_test) / (len(self.x_train) + len(self.x_validation))

    def in_units(self, task: str, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The targets of the test rows and predictions (n_test, outputs) for them, as the metrics take them."""
        predicted = np.asarray(predictions, dtype="float64")
        if task == "classification":
            return self.y_test.argmax(axis=1), predicted
        truth = self.y_test[:, 0].astype("float64")
        predicted = predicted[:, 0]
        return truth * self.target_scale + self.target_center, predicted * self.target_scale + self.target_center


@dataclass(frozen=True)
class Data:
    """A table of features and a target.

    Use `load_data` to read one, or make one of your own columns.

    Attributes:
        name: name of the data set.
        task: `"regression"` or `"classification"`.
        features: a column for each feature, including missing values and categories.
        target: floats for regression, indices into `classes` for classification.
        classes: names of the classes; empty for regression.
        source: file or built-in data set.
        target_name: name of the target's column in the file.
        notes: sentences about columns that were left out.

    Examples:
        >>> from minimand.study import load_data
        >>> load_data("iris").outputs
        3
    """

    name: str
    task: str
    features: pl.DataFrame
    target: np.ndarray
    classes: tuple[str, ...]
    source: str
    target_name: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Number of output units that a network needs for this task."""
        return 1 if self.task == "regression" else len(self.classes)

    def digest(self) -> str:
        """A hash of all values; studies with equal digests have equal data."""
        digest = hashlib.sha256(np.ascontiguousarray(self.target).tobytes())
        digest.update(self.features.write_csv().encode())
        return digest.hexdigest()[:16]

    def fold(self, seed: int, corrupt_targets: float = 0.0) -> Fold:
        """The split of a seed: 60 % training, 20 % validation and 20 % test rows.

        Args:
            seed: equal seeds give equal folds.
            corrupt_targets: fraction of the *training* targets to corrupt. Regression adds noise of ten standard
                deviations; classification draws another class.
        """
        rows = np.arange(len(self.target))
        classes = self.target if self.task == "classification" else None
        rest, test = train_test_split(rows, test_size=0.2, random_state=seed, stratify=classes)
        train, validation = train_test_split(
            rest, test_size=0.25, random_state=seed, stratify=None if classes is None else classes[rest]
        )
        x = _encoder(self.features).fit(self.features[train]).transform(self.features).astype("float32")
        target = self._corrupted(train, seed, corrupt_targets)
        if self.task == "regression":
            center, scale = _center_and_scale(target[train])
            y = ((target - center) / scale).astype("float32")[:, None]
        else:
            center, scale = 0.0, 1.0
            y = np.eye(len(self.classes), dtype="float32")[target]
        return Fold(x[train], y[train], x[validation], y[validation], x[test], y[test], center, scale)

    def _corrupted(self, train: np.ndarray, seed: int, fraction: float) -> np.ndarray:
        """The targets, of which a fraction of the training rows is corrupted."""
        target = self.target.copy()
        random = np.random.default_rng([seed, 1])
        chosen = random.choice(train, size=round(fraction * len(train)), replace=False)
        if self.task == "regression":
            target[chosen] += random.normal(0.0, 10.0 * self.target[train].std(), size=len(chosen))
        else:
            shift = random.integers(1, len(self.classes), size=len(chosen))
            target[chosen] = (target[chosen] + shift) % len(self.classes)
        return target


def load_data(source: str, *, target: str | None = None, task: str | None = None) -> Data:
    """Read a built-in data set or a table from a file.

    Use it for the data of a `Study`. Constant columns are left out.

    Args:
        source: one of `BUILT_IN`, or the path of a CSV, Parquet, Arrow (Feather) or NPZ file.
        target: name of the target column; required for files.
        task: `"regression"` or `"classification"`; by default inferred from the target.

    Returns:
        The data.

    Raises:
        StudyError: a study cannot use the file, the target or the features.

    Examples:
        >>> from minimand.study import load_data
        >>> load_data("diabetes").task
        'regression'
    """
    if task not in (None, "regression", "classification"):
        raise StudyError(f"--task must be regression or classification. Received: {task!r}")
    if source in BUILT_IN:
        if target is not None:
            raise StudyError(f"Leave out --target: the built-in data set {source!r} has its own target.")
        return _built_in(source)
    path = Path(source)
    # `Path.exists` would raise for names that no file can have.
    if not os.path.exists(source):
        raise StudyError(f"No such file or built-in data set: {source}. Give a path or one of {', '.join(BUILT_IN)}.")
    return _from_frame(path, _read(path), target, task)


def _built_in(name: str) -> Data:
    bunch: Any = getattr(sklearn.datasets, f"load_{name}")()
    features = pl.DataFrame(np.asarray(bunch.data, dtype="float64"), schema=[str(n) for n in bunch.feature_names])
    kept, notes = _usable(features)
    classes = tuple(map(str, bunch.target_names)) if BUILT_IN[name] == "classification" else ()
    target = bunch.target.astype("int64" if classes else "float64")
    return Data(name, BUILT_IN[name], kept, target, classes, name, notes=notes)


def _read(path: Path) -> pl.DataFrame:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise StudyError(f"{path}: the file name must end in one of {', '.join(_READERS)}.")
    try:
        # Polars would take brackets and stars in a name for a pattern.
        with path.open("rb") as file:
            frame = reader(file)
    # The libraries of the formats raise errors of many types for a file that is not what its name says.
    except Exception as error:
        raise StudyError(f"{path} cannot be read as {path.suffix[1:].upper()}: {error}") from error
    if frame.height == 0:
        raise StudyError(f"{path} has no rows. Give a file with at least {_MIN_ROWS}.")
    return frame


def _read_npz(file: Any) -> pl.DataFrame:
    with np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if any(array.ndim not in (1, 2) for array in arrays.values()) or len({len(a) for a in arrays.values()}) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(
            f"the arrays must be (n,) or (n, d), all with the same number n of rows. Received: {shapes}. Save a file "
            "with only the arrays of the study."
        )
    columns = [
        pl.Series(name if array.ndim == 1 else f"{name}_{index}", column)
        for name, array in arrays.items()
        for index, column in enumerate(np.atleast_2d(array.T))
    ]
    names = [column.name for column in columns]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two columns are named {min(twice)!r}. Rename an array; the columns of X are X_0, X_1.")
    return pl.DataFrame(columns)


def _from_frame(path: Path, frame: pl.DataFrame, target: str | None, task: str | None) -> Data:
    columns = ", ".join(frame.columns)
    if target is None:
        raise StudyError(f"--target must name the column to predict. Columns: {columns}.")
    if target not in frame.columns:
        raise StudyError(f"--target must be one of the columns {columns}. Received: {target!r}")
    column = frame[target]
    if missing := column.null_count() + (column.is_nan().sum() if column.dtype.is_float() else 0):
        raise StudyError(f"The target {target!r} is missing in {missing} of {len(column)} rows. Remove those rows.")
    if column.n_unique() < 2:
        raise StudyError(f"The target {target!r} is constant ({column[0]!r}). Choose a column that varies.")
    many = column.dtype.is_integer() and column.n_unique() > _MAX_CLASSES
    task = task or ("regression" if column.dtype.is_float() or many else "classification")
    features, notes = _usable(frame.drop(target))
    if task == "classification":
        labels = column.cast(pl.String).to_numpy().astype(str)
        classes, indices, counts = np.unique(labels, return_inverse=True, return_counts=True)
        names = classes.tolist()
        if counts.min() < _MIN_ROWS_A_CLASS:
            rare = ", ".join(f"{name!r} ({k})" for name, k in zip(names, counts, strict=True) if k < _MIN_ROWS_A_CLASS)
            raise StudyError(
                f"Every class needs at least {_MIN_ROWS_A_CLASS} rows to be in training, validation and test rows. "
                f"These have fewer: {rare}. Merge or remove them, or give --task regression."
            )
        return Data(path.stem, task, features, indices.astype("int64"), tuple(names), str(path), target, notes)
    if not column.dtype.is_numeric():
        raise StudyError(f"--task regression needs a numeric target. Received: {target!r} of type {column.dtype}")
    values = column.cast(pl.Float64).to_numpy().copy()
    if infinite := np.isinf(values).sum():
        raise StudyError(f"{infinite} values of the target {target!r} are infinite. Remove them.")
    if np.ptp(values) == 0:
        raise StudyError(
            f"The target {target!r} varies less than double precision can tell. Subtract {values[0]:g} from it first."
        )
    if len(values) < _MIN_ROWS:
        raise StudyError(f"A study needs at least {_MIN_ROWS} rows for the splits. Received: {len(values)}")
    return Data(path.stem, task, features, values, (), str(path), target, notes)


def _usable(features: pl.DataFrame) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Features as floats (NaN where missing) and strings, and a note of the constant columns, which are dropped."""
    kept: list[pl.Series] = []
    dropped: list[pl.Series] = []
    for column in features.iter_columns():
        if column.dtype.is_nested() or column.dtype in (pl.Object, pl.Binary):
            raise StudyError(f"Column {column.name!r} ({column.dtype}) is not a number or a category. Remove it.")
        if column.dtype.is_temporal():
            column = column.to_physical()
        if column.dtype.is_numeric():
            column = column.cast(pl.Float64).fill_null(float("nan"))
            if column.is_infinite().any():
                raise StudyError(f"Column {column.name!r} has infinite values. Remove or replace them first.")
            constant = column.drop_nans().n_unique() < 2
        else:
            column = column.cast(pl.String).fill_null("(missing)")
            constant = column.n_unique() < 2
        (dropped if constant else kept).append(column)
    if not kept:
        raise StudyError("There is no feature that varies. Add one to predict the target from.")
    notes = (f"constant columns left out: {', '.join(c.name for c in dropped)}",) if dropped else ()
    return pl.DataFrame(kept), notes


def _encoder(features: pl.DataFrame) -> ColumnTransformer:
    """Replaces missing numbers by the median and standardises; encodes categories as one-hot, with rare ones merged."""
    numeric = [i for i, dtype in enumerate(features.dtypes) if dtype == pl.Float64]
    categorical = [i for i in range(features.width) if i not in numeric]
    numbers = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    categories = OneHotEncoder(handle_unknown="ignore", max_categories=_MAX_CATEGORIES, sparse_output=False)
    return ColumnTransformer([("numbers", numbers, numeric), ("categories", categories, categorical)])


def _center_and_scale(values: np.ndarray) -> tuple[float, float]:
    center = float(np.median(values))
    scale = 1.4826 * float(np.median(np.abs(values - center)))
    # The median deviation is 0 if more than half of the targets are equal.
    return center, scale or float(values.std()) or 1.0
