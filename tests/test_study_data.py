"""Data of a study: files, inference, folds, and what is refused."""

import datetime

import numpy as np
import polars as pl
import pytest

from kriterion.study import StudyError, load_data
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


def test_folds_are_disjoint_reproducible_and_standardised_by_training_rows():
    data = load_data("diabetes")
    fold, again = data.fold(1), data.fold(1)
    assert [len(fold.x_train), len(fold.x_validation), len(fold.x_test)] == [264, 89, 89]
    np.testing.assert_array_equal(fold.x_test, again.x_test)
    assert not np.array_equal(fold.y_test, data.fold(2).y_test)
    rows = np.concatenate([fold.x_train, fold.x_validation, fold.x_test])
    assert len(np.unique(rows, axis=0)) == 442
    np.testing.assert_allclose(fold.x_train.mean(axis=0), 0, atol=1e-5)
    units = fold.y_test * fold.target_scale + fold.target_center
    assert set(np.round(units.ravel())) <= set(data.target)


@pytest.mark.parametrize("name", ["diabetes", "iris"])
def test_corruption_is_of_training_targets_only(name):
    data = load_data(name)
    clean, corrupt = data.fold(0), data.fold(0, corrupt_targets=0.25)
    back = [f.y_train * f.target_scale + f.target_center for f in (clean, corrupt)]
    changed = (np.abs(back[0] - back[1]) > 1e-3).any(axis=1).mean()
    assert changed == pytest.approx(0.25, abs=0.01)
    units = [f.y_test * f.target_scale + f.target_center for f in (clean, corrupt)]
    np.testing.assert_allclose(units[0], units[1], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(clean.x_train, corrupt.x_train)


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
        ("t.csv", lambda path: path.write_text(""), {}, ["cannot be read as CSV"]),
        ("t.csv", lambda path: path.write_text("a,target\n"), {}, ["no rows"]),
        ("t.csv", lambda path: frame().write_csv(path), {"target": None}, ["--target", "a, b"]),
        ("t.csv", lambda path: frame().write_csv(path), {"target": "y"}, ["'y'", "target, a, b"]),
        ("t.csv", lambda path: frame(target=[1.5] * 60).write_csv(path), {}, ["constant", "1.5"]),
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
        ("t.parquet", lambda path: frame(a=[[1.0]] * 60).write_parquet(path), {}, ["'a'", "List", "no number"]),
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
