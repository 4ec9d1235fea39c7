"""Data of a study: files, inference, and what is refused."""

import datetime

import numpy as np
import polars as pl
import pytest

from minimand.study import Data, StudyError, load_data
from tests.helpers import told


def frame(rows=60, **columns):
    random = np.random.default_rng(0)
    columns = {"a": random.normal(size=rows), "b": random.choice(["x", "y", "z"], size=rows), **columns}
    return pl.DataFrame({"target": random.normal(size=rows), **columns})


@pytest.mark.parametrize(
    ("suffix", "write"), [("csv", "write_csv"), ("parquet", "write_parquet"), ("arrow", "write_ipc")]
)
def test_formats_give_equal_data(suffix, write, tmp_path):
    table = frame()
    path = tmp_path / f"table.{suffix}"
    getattr(table, write)(path)
    data = load_data(str(path), target="target")
    assert data.task == "regression"
    assert data.features.columns == ["a", "b"]
    np.testing.assert_allclose(data.target, table["target"].to_numpy())
    assert data.fold(0).x_train.shape == (36, 4)


@pytest.mark.parametrize("name", ["a[b]*?", "{x}", "~t", "t.csv"])
@pytest.mark.parametrize(
    ("suffix", "write"), [("csv", "write_csv"), ("parquet", "write_parquet"), ("feather", "write_ipc")]
)
def test_names_of_files_are_no_patterns(name, suffix, write, tmp_path):
    getattr(frame(), write)(tmp_path / f"{name}.{suffix}")
    getattr(frame(70), write)(tmp_path / f"ab-b.{suffix}")
    data = load_data(str(tmp_path / f"{name}.{suffix}"), target="target")
    assert (len(data.target), data.name) == (60, name)


def test_npz(tmp_path):
    np.savez(tmp_path / "t.npz", X=np.random.default_rng(0).normal(size=(40, 3)), y=np.arange(40.0))
    assert load_data(str(tmp_path / "t.npz"), target="y").features.columns == ["X_0", "X_1", "X_2"]


def test_missing_values_categories_and_constant_columns(tmp_path):
    table = frame(c=[None, 1.0, 3.0] * 20, d=[None, "u", "v"] * 20, constant=[7] * 60)
    table.write_csv(tmp_path / "t.csv")
    data = load_data(str(tmp_path / "t.csv"), target="target")
    assert data.notes == ("constant columns left out: constant",)
    fold = data.fold(3)
    # a and c as they are; b and d one-hot with three categories each, missing being one of d's
    assert fold.x_train.shape[1] == 1 + 1 + 3 + 3
    assert np.isfinite(np.concatenate([fold.x_train, fold.x_validation, fold.x_test])).all()
    np.testing.assert_allclose(fold.x_train[:, :2].mean(axis=0), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "task"),
    [([0.5, 1.5] * 30, "regression"), ([0, 1] * 30, "classification"), (list(range(60)), "regression"), (["no", "yes"] * 30, "classification")],
)  # fmt: skip
def test_inferred_task(values, task, tmp_path):
    frame().with_columns(target=pl.Series(values)).write_parquet(tmp_path / "t.parquet")
    assert load_data(str(tmp_path / "t.parquet"), target="target").task == task


def unreadable(path):
    path.write_bytes(b"\x00\x01 not a table")


@pytest.mark.parametrize(
    ("name", "write", "arguments", "words"),
    [
        ("none.csv", lambda path: None, {}, ["No such file", "diabetes"]),
        ("t.xlsx", lambda path: path.write_text("a"), {}, [".csv", ".parquet"]),
        ("t.parquet", unreadable, {}, ["cannot be read as PARQUET"]),
        ("t.npz", unreadable, {}, ["cannot be read as NPZ"]),
        (
            "t.npz",
            lambda path: np.savez(path, X=np.ones((40, 3)), y=np.ones(40), m=np.ones((2, 40))),
            {},
            ["same number", "X (40, 3), y (40,), m (2, 40)"],
        ),
        ("t.npz", lambda path: np.savez(path, X=np.ones((40, 3, 3)), y=np.ones(40)), {}, ["(n, d)", "X (40, 3, 3)"]),
        ("t.npz", lambda path: np.savez(path, X=np.ones((40, 2)), X_1=np.ones(40)), {}, ["'X_1'", "Rename"]),
        ("t.npz", lambda path: np.savez(path), {}, ["same number"]),
        ("t.csv", lambda path: path.write_text(""), {}, ["cannot be read as CSV"]),
        ("t.csv", lambda path: path.write_text("a,target\n"), {}, ["no rows"]),
        ("t.csv", lambda path: frame().write_csv(path), {"target": None}, ["--target", "a, b"]),
        ("t.csv", lambda path: frame().write_csv(path), {"target": "y"}, ["'y'", "target, a, b"]),
        ("t.csv", lambda path: frame(target=[1.5] * 60).write_csv(path), {}, ["constant", "1.5"]),
        ("t.csv", lambda path: frame(target=range(2**60, 2**60 + 60)).write_csv(path), {}, ["double precision"]),
        ("t.csv", lambda path: frame(target=[None, 1.0, 2.0] * 20).write_csv(path), {}, ["missing in 20 of 60"]),
        (
            "t.parquet",
            lambda path: frame(target=[float("nan"), 1.0, 2.0] * 20).write_parquet(path),
            {},
            ["missing in 20"],
        ),
        (
            "t.parquet",
            lambda path: frame(target=[float("inf"), 1.0, 2.0] * 20).write_parquet(path),
            {},
            ["infinite", "20"],
        ),
        ("t.parquet", lambda path: frame(a=[float("inf"), 1.0, 2.0] * 20).write_parquet(path), {}, ["'a'", "infinite"]),
        ("t.csv", lambda path: frame(rows=10).write_csv(path), {}, ["20 rows", "10"]),
        ("t.csv", lambda path: frame(target=["u"] * 57 + ["v"] * 3).write_csv(path), {}, ["'v' (3)", "5 rows"]),
        (
            "t.csv",
            lambda path: frame(target=["u", "v"] * 30).write_csv(path),
            {"task": "regression"},
            ["numeric target"],
        ),
        ("t.csv", lambda path: frame().write_csv(path), {"task": "ranking"}, ["--task", "'ranking'"]),
        ("t.parquet", lambda path: frame(a=[[1.0]] * 60).write_parquet(path), {}, ["'a'", "List", "not a number"]),
        ("t.csv", lambda path: frame(a=[1] * 60, b=["x"] * 60).write_csv(path), {}, ["no feature that varies"]),
    ],
)
def test_bad_data_is_told(name, write, arguments, words, tmp_path):
    path = tmp_path / name
    write(path)
    with told(StudyError, words):
        load_data(str(path), **{"target": "target", **arguments})


def test_a_built_in_set_has_its_own_target():
    with told(StudyError, ["--target", "'iris'"]):
        load_data("iris", target="species")


def test_dates_are_numbers(tmp_path):
    days = [datetime.date(2026, 1, 1) + datetime.timedelta(days=k) for k in range(60)]
    frame(a=days).write_parquet(tmp_path / "t.parquet")
    column = load_data(str(tmp_path / "t.parquet"), target="target").features["a"]
    np.testing.assert_array_equal(np.diff(column.to_numpy()), 1)


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt64, pl.Float32, pl.Decimal(12, 3), pl.Boolean, pl.Categorical, pl.Datetime, pl.Duration])  # fmt: skip
def test_columns_of_every_kind_are_numbers_or_categories(kind, tmp_path):
    counts = pl.Series("a", [k % 7 for k in range(60)])
    column = {
        pl.Boolean: lambda: counts > 3,
        pl.Categorical: lambda: counts.cast(pl.String).cast(kind),
        pl.Duration: lambda: counts.cast(kind("us")),
        pl.Datetime: lambda: counts.cast(kind("us")),
    }.get(kind, lambda: counts.cast(kind))()
    frame().with_columns(column.alias("a")).write_parquet(tmp_path / "t.parquet")
    data = load_data(str(tmp_path / "t.parquet"), target="target")
    categories = {pl.Boolean: 2, pl.Categorical: 7}.get(kind)
    assert data.features["a"].dtype == (pl.String if categories else pl.Float64)
    assert data.fold(0).x_train.shape[1] == (categories or 1) + 3
    if not categories:
        np.testing.assert_allclose(data.features["a"], counts)


def test_a_digest_is_of_every_value_name_and_place():
    table = frame()
    features, target = table.drop("target"), table["target"].to_numpy()
    other_target = target.copy()
    other_target[-1] = np.nextafter(target[-1], np.inf)
    other_cell = features.with_columns(a=pl.when(pl.int_range(pl.len()) == 59).then(0.25).otherwise("a"))
    others = [
        (features, other_target),
        (other_cell, target),
        (features.rename({"a": "c"}), target),
        (features.select("b", "a"), target),
        (features[::-1], target),
    ]
    digests = [Data("t", "regression", x, y, (), "").digest() for x, y in ((features, target), *others)]
    assert len(set(digests)) == len(digests)
    assert Data("t", "regression", features.clone(), target.copy(), (), "").digest() == digests[0]
