"""Files of a study: tables, arrays and folders of images."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import sklearn.datasets

from minimand.study._data import Data, array_data
from minimand.study._images import read_images
from minimand.study._settings import StudyError
from minimand.study._tables import Column, read_table, typed

BUILT_IN = {
    "diabetes": "regression",
    "breast_cancer": "classification",
    "digits": "classification",
    "iris": "classification",
    "wine": "classification",
}


def load_data(
    source: Path | str,
    *,
    target: str | None = None,
    task: str | None = None,
    groups: str | None = None,
    time: str | None = None,
    weights: str | None = None,
    test: Path | str | None = None,
    labels: Path | str | None = None,
    image_size: int | None = None,
) -> Data:
    """Read a built-in data set, a table, arrays from a file, or a folder of images.

    Use it for the data of a `Study`. Columns that cannot help are left out, and `notes` says why.

    Args:
        source: one of `BUILT_IN`, or the path of a table (CSV, Parquet, Arrow, JSON lines, Excel), of an NPZ file, or
            of a folder with a folder of images for each class, also below `train` and `test`.
        target: name of the target column or array, or several names separated by commas. Tables need one; an NPZ file
            has `y` by default.
        task: as in `target_of`.
        groups: name of the column of groups, of which none is in two parts of a split.
        time: name of the column of times; training rows come before validation rows, and these before test rows.
        weights: name of the column of weights of rows.
        test: path of a file or folder of the same form whose rows are the test set.
        labels: path of a CSV file with the names of images and their labels, instead of a folder for each class.
        image_size: height and width to which images are resized; by default that of most images, or 64.

    Returns:
        The data.

    Raises:
        StudyError: a study cannot use the file, the target or the features.

    Examples:
        >>> from minimand.study import load_data
        >>> load_data("diabetes").task
        'regression'
    """
    # The page shows the arguments, and a file of results holds them.
    source, test = str(source), None if test is None else str(test)
    columns = {"--groups": groups, "--time": time, "--weights": weights}
    if source in BUILT_IN:
        given = [option for option, each in {"--target": target, "--test": test, **columns}.items() if each is not None]
        if given:
            raise StudyError(
                f"Leave out {given[0]}: the built-in data set {source!r} has its own target and no groups."
            )
        return _built_in(source, task)
    path = _existing(source)
    if path.is_dir():
        return _from_folder(path, target, task, test, labels, image_size, columns)
    if labels is not None or image_size is not None:
        raise StudyError(f"{'--labels' if labels else '--image-size'} needs a folder of images. Received: {source}")
    arguments = {"target": target, "task": task, "groups": groups, "time": time, "weights": weights, "test": test}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    read = read_table
    if path.suffix.lower() == ".npz":
        read, target = _read_npz, target or "y"
    rows, rows_of_test = read(path), None if test is None else read(_existing(test))
    if isinstance(rows, pl.DataFrame):
        x, y, special, given_test, notes = _from_table(rows, rows_of_test, target, columns)
    else:
        x, y, special, given_test, notes = _from_arrays(rows, rows_of_test, target, columns)
    return array_data(
        x,
        y,
        name=path.stem,
        task=task,
        groups=special["--groups"],
        time=special["--time"],
        sample_weight=special["--weights"],
        test=given_test,
        source=source,
        arguments=arguments,
        notes=notes,
    )


def _existing(source: str) -> Path:
    # `Path.exists` would raise for names that no file can have.
    if not os.path.exists(source):
        raise StudyError(f"No such file or built-in data set: {source}. Give a path or one of {', '.join(BUILT_IN)}.")
    return Path(source)


def _built_in(name: str, task: str | None) -> Data:
    bunch: Any = getattr(sklearn.datasets, f"load_{name}")()
    features = pl.DataFrame(np.asarray(bunch.data, dtype="float64"), schema=[str(n) for n in bunch.feature_names])
    target = np.asarray(bunch.target, dtype="float64")
    if BUILT_IN[name] == "classification":
        target = np.asarray(bunch.target_names).astype(str)[bunch.target]
    return array_data(features, target, name=name, task=task or BUILT_IN[name], source=name)


# Tables.


def _from_table(
    rows: pl.DataFrame, test: pl.DataFrame | None, target: str | None, options: Mapping[str, str | None]
) -> tuple[Any, Any, dict[str, Any], Any, list[str]]:
    """Features, target, the columns of options, test set and notes."""
    names = _names(target, rows.columns)
    _check_columns(options, rows.columns, names)
    given, every = len(rows), rows
    if test is not None:
        if missing := [column for column in rows.columns if column not in test.columns]:
            raise StudyError(f"--test has no column {missing[0]!r}. Columns: {', '.join(test.columns)}.")
        # The class of the table knows the separator of its file.
        every = type(rows)(pl.concat([rows, test.select(rows.columns)], how="vertical_relaxed"))
    columns = {column.name: column for column in typed(every)}
    absent = np.any([columns[name].values.is_null().to_numpy() for name in names], axis=0)
    if absent.all():
        raise StudyError(f"The target {target!r} is missing in all rows. Choose another column.")
    left_out = {*names, *(name for option, name in options.items() if option != "--time")}
    notes = [f"column {name!r}: {c.note}" for name, c in columns.items() if c.note and name not in left_out]
    if absent.any():
        notes.append(f"{absent.sum()} of {len(every)} rows have no target {target!r} and are left out")
    kept = np.flatnonzero(~absent)
    special = {o: None if name is None else _special(columns[name], kept, o) for o, name in options.items()}
    features = pl.DataFrame([column.values.gather(kept) for name, column in columns.items() if name not in left_out])
    for name in features.columns:
        if any(features[name].equals(columns[each].values.gather(kept)) for each in names):
            notes.append(f"column {name!r} holds the values of the target and is left out")
            features = features.drop(name)
    y = _together([columns[name] for name in names], kept)
    if test is None:
        return features, y, special, None, notes
    first, rest = np.flatnonzero(kept < given), np.flatnonzero(kept >= given)
    return features[first], y[first], special, (features[rest], y[rest]), notes


def _check_columns(columns: Mapping[str, str | None], available: list[str], targets: list[str]) -> None:
    for option, name in columns.items():
        if name is not None and (name not in available or name in targets):
            others = ", ".join(each for each in available if each not in targets)
            raise StudyError(f"{option} must be one of the columns {others}. Received: {name!r}")


def _names(target: str | None, available: list[str]) -> list[str]:
    """The names of the targets, of which commas may be a part, or those of the columns of an array."""
    if target is None:
        raise StudyError(f"--target must name the column to predict. Columns: {', '.join(available)}.")
    of_array = [name for name in available if re.fullmatch(rf"{re.escape(target)}_\d+", name)]
    names = [target] if target in available else of_array or [name.strip() for name in target.split(",")]
    for name in names:
        if name not in available:
            raise StudyError(f"--target must be one of the columns {', '.join(available)}. Received: {name!r}")
    return names


def _together(columns: list[Column], kept: np.ndarray) -> np.ndarray:
    """The targets in these columns, one beside the other."""
    words = [column.name for column in columns if not column.values.dtype.is_numeric()]
    if len(columns) > 1 and words:
        raise StudyError(
            f"Several targets must all be numbers, and {words[0]!r} is not. For outputs of different kinds use "
            "minimand.compare with a dictionary of targets."
        )
    every = [column.values.gather(kept).cast(pl.String if words else pl.Float64).to_numpy() for column in columns]
    return every[0].astype(str) if words else every[0] if len(every) == 1 else np.stack(every, axis=1)


def _special(column: Column, kept: np.ndarray, option: str) -> np.ndarray:
    """The values of the column of an option."""
    values = column.values.gather(kept)
    if values.null_count():
        raise StudyError(f"{option} {column.name!r} is missing in {values.null_count()} rows. Fill or remove them.")
    if option == "--groups":
        return values.cast(pl.String).to_numpy().astype(str)
    numbers = values.to_physical() if values.dtype.is_temporal() else values
    if not numbers.dtype.is_numeric():
        raise StudyError(f"{option} {column.name!r} must be numbers or dates. Received: values such as {values[0]!r}")
    return numbers.to_numpy()


# Images.


def _from_folder(
    folder: Path,
    target: str | None,
    task: str | None,
    test: str | None,
    labels: Path | str | None,
    image_size: int | None,
    columns: Mapping[str, str | None],
) -> Data:
    if given := [option for option, name in columns.items() if name is not None]:
        raise StudyError(f"{given[0]} needs a table. Received: the folder {folder}. Use minimand.compare with arrays.")
    labelled = None if labels is None else Path(labels)
    images = read_images(folder, labels=labelled, target=target, image_size=image_size)
    x, y, notes = images.x, _numbers_or_words(images.labels), list(images.notes)
    given_test: Any = None
    if images.test is not None:
        given_test = x[images.test], y[images.test]
        x, y = x[~images.test], y[~images.test]
        notes.append("the folders train and test are used as given")
    if test is not None:
        height, width, channels = images.x.shape[1:]
        others = read_images(_existing(test), image_size=(height, width), colour=channels == 3)
        given_test = others.x, np.asarray(others.labels)
    arguments = {
        "target": target,
        "task": task,
        "test": test,
        "labels": labels and str(labels),
        "image_size": image_size,
    }
    return array_data(
        x,
        y,
        name=folder.resolve().name,
        task=task,
        test=given_test,
        source=str(folder),
        arguments={key: value for key, value in arguments.items() if value is not None},
        notes=notes,
    )


def _numbers_or_words(labels: list[str]) -> np.ndarray:
    try:
        return np.asarray(labels, dtype="float64")
    except ValueError:
        return np.asarray(labels)


# Arrays.


def _read_npz(path: Path) -> pl.DataFrame | dict[str, np.ndarray]:
    """A table of columns, or a dictionary of arrays if one of them has more than two axes."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:
        raise StudyError(f"{path} cannot be read as NPZ: {error}") from error
    if not arrays or any(array.ndim == 0 for array in arrays.values()) or len({len(a) for a in arrays.values()}) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise StudyError(
            f"{path}: the arrays must all have the same number of rows. Received: {shapes or 'none'}. Save a file with "
            "only the arrays of the study."
        )
    if any(array.ndim > 2 for array in arrays.values()):
        return arrays
    columns = [
        pl.Series(name if array.ndim == 1 else f"{name}_{index}", column)
        for name, array in arrays.items()
        for index, column in enumerate(np.atleast_2d(array.T))
    ]
    names = [column.name for column in columns]
    if twice := {name for name in names if names.count(name) > 1}:
        raise StudyError(
            f"{path}: two columns are named {min(twice)!r}. Rename an array; the columns of X are X_0, X_1."
        )
    return pl.DataFrame(columns)


def _from_arrays(
    arrays: dict[str, np.ndarray],
    test: dict[str, np.ndarray] | None,
    target: str | None,
    columns: Mapping[str, str | None],
) -> tuple[Any, Any, dict[str, Any], Any, list[str]]:
    """As `_from_table`."""
    (name, *others) = _names(target, list(arrays))
    if others:
        raise StudyError(f"--target must be one of the arrays {', '.join(arrays)}. Received: {target!r}")
    _check_columns(columns, list(arrays), [name])
    if test is not None and set(test) != set(arrays):
        raise StudyError(f"--test must hold the arrays {', '.join(arrays)}. Received: {', '.join(test)}")
    left_out = {name, *columns.values()}

    def parts(of: dict[str, np.ndarray]) -> tuple[Any, np.ndarray]:
        # Grey images may lack the axis of channels.
        inputs = {
            k: v[..., None] if v.ndim == 3 and v.dtype == np.uint8 else v for k, v in of.items() if k not in left_out
        }
        if not inputs:
            raise StudyError(f"The file has no array besides the target {name!r}. Save the inputs as `x`.")
        return next(iter(inputs.values())) if len(inputs) == 1 else inputs, of[name]

    special = {
        option: None if key is None else np.concatenate([arrays[key], *([] if test is None else [test[key]])])
        for option, key in columns.items()
    }
    return *parts(arrays), special, None if test is None else parts(test), []
