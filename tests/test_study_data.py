"""Data of a study from files: what is read of a table, an NPZ file and a folder of images, and what is refused."""

import numpy as np
import polars as pl
import pytest
from PIL import Image

from minimand.study import StudyError, array_data, load_data
from tests.helpers import told


def frame(rows=60, **columns):
    random = np.random.default_rng(0)
    columns = {"a": random.normal(size=rows), "b": random.choice(["x", "y", "z"], size=rows), **columns}
    return pl.DataFrame({"target": random.normal(size=rows), **columns})


def written(folder, name="t.csv", **columns):
    path = folder / name
    frame(**columns).write_csv(path)
    return str(path)


def values(data):
    return data.targets[0].values[:, 0]


@pytest.mark.parametrize(
    ("suffix", "write"), [("csv", "write_csv"), ("parquet", "write_parquet"), ("arrow", "write_ipc"), ("jsonl", "write_ndjson")]
)  # fmt: skip
def test_formats_give_equal_data(suffix, write, tmp_path):
    table = frame()
    path = tmp_path / f"table.{suffix}"
    getattr(table, write)(path)
    data = load_data(str(path), target="target")
    assert (data.task, data.name, data.rows) == ("regression", "table", 60)
    assert data.x.columns == ["a", "b"]
    np.testing.assert_allclose(values(data), table["target"].to_numpy())
    assert data.fold(0).x_train.shape == (36, 4)


@pytest.mark.parametrize("name", ["a[b]*?", "{x}", "~t", "t.csv"])
@pytest.mark.parametrize(
    ("suffix", "write"), [("csv", "write_csv"), ("parquet", "write_parquet"), ("feather", "write_ipc")]
)
def test_names_of_files_are_no_patterns(name, suffix, write, tmp_path):
    getattr(frame(), write)(tmp_path / f"{name}.{suffix}")
    getattr(frame(70), write)(tmp_path / f"ab-b.{suffix}")
    data = load_data(str(tmp_path / f"{name}.{suffix}"), target="target")
    assert (data.rows, data.name) == (60, name)


def test_rows_without_a_target_are_left_out_and_told(tmp_path):
    targets = ["N/A", "1.5", "2.5", "", "0.5"] * 12
    data = load_data(written(tmp_path, target=targets), target="target")
    assert data.rows == 36
    assert set(values(data)) == {1.5, 2.5, 0.5}
    assert "24 of 60 rows have no target 'target'" in data.notes[0]


def test_numbers_with_a_few_words_are_told(tmp_path):
    column = [str(k) for k in range(57)] + ["N/A", "unknown", "N/A"]
    data = load_data(written(tmp_path, a=column), target="target")
    assert data.x["a"].dtype == pl.Float64
    assert any("'a'" in note and "'unknown'" in note for note in data.notes)


def test_several_targets(tmp_path):
    path = written(tmp_path, c=np.linspace(0, 1, 60))
    data = load_data(path, target="target, c")
    assert data.task == "regression of 2 quantities"
    np.testing.assert_allclose(data.targets[0].values[:, 1], np.linspace(0, 1, 60))
    assert data.x.columns == ["a", "b"]
    with told(StudyError, ["must all be numbers", "'b'", "minimand.compare"]):
        load_data(path, target="target,b")


def test_a_column_with_the_values_of_the_target_is_left_out(tmp_path):
    table = frame()
    table.with_columns(copy=pl.col("target")).write_csv(tmp_path / "t.csv")
    data = load_data(str(tmp_path / "t.csv"), target="target")
    assert data.x.columns == ["a", "b"]
    assert "column 'copy' holds the values of the target" in " ".join(data.notes)


def test_columns_of_groups_times_and_weights(tmp_path):
    days = [f"2026-{1 + k // 28:02}-{1 + k % 28:02}" for k in range(60)]
    path = written(tmp_path, site=np.arange(60) // 6, day=days, weight=np.linspace(1, 2, 60))
    data = load_data(path, target="target", groups="site", weights="weight")
    assert data.x.columns == ["a", "b", "day"]
    assert data.splits.kind == "groups"
    np.testing.assert_allclose(data.sample_weight, np.linspace(1, 2, 60))
    for number in range(3):
        parts = [set(np.asarray(data.splits.groups)[part]) for part in data.splits.split(number, 10)]
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    data = load_data(path, target="target", time="day")
    for number in range(3):
        train, validation, test = data.splits.split(number, 3)
        assert train.max() < validation.min() < validation.max() < test.min()


def test_a_test_file_is_the_test_set(tmp_path):
    path, other = written(tmp_path), tmp_path / "other.csv"
    rows = frame(40, b=["x", "new"] * 20, extra=[1] * 40)
    rows.write_csv(other)
    data = load_data(path, target="target", test=str(other))
    assert (data.rows, data.splits.kind) == (100, "test")
    np.testing.assert_array_equal(data.splits.split(0, 10).test, np.arange(60, 100))
    np.testing.assert_allclose(values(data)[60:], rows["target"].to_numpy())
    # A category of the test file only is in none of the columns.
    assert data.fold(0).x.shape[1] == 1 + 3
    with told(StudyError, ["--test has no column 'b'"]):
        frame().drop("b").write_csv(other)
        load_data(path, target="target", test=str(other))


def test_npz_files_of_columns_are_tables_and_others_are_arrays(tmp_path):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "t.npz", X=random.normal(size=(40, 3)), y=np.linspace(0, 1, 40))
    assert load_data(str(tmp_path / "t.npz"), target="y").x.columns == ["X_0", "X_1", "X_2"]
    assert load_data(str(tmp_path / "t.npz")).task == "regression"
    np.savez(tmp_path / "u.npz", x=random.integers(0, 256, size=(40, 5, 6)).astype("uint8"), y=np.arange(40) % 2)
    data = load_data(str(tmp_path / "u.npz"))
    assert (data.x.shape, data.task) == ((40, 5, 6, 1), "2 classes")
    np.savez(
        tmp_path / "v.npz",
        x=random.normal(size=(40, 9, 2)),
        z=np.ones((40, 1)),
        who=np.arange(40) // 4,
        sold=np.arange(40) % 2,
    )
    data = load_data(str(tmp_path / "v.npz"), target="sold", groups="who")
    assert {key: values.shape for key, values in data.x.items()} == {"x": (40, 9, 2), "z": (40, 1)}
    assert data.splits.kind == "groups"


def images(folder, sides=("",), classes=("cat", "dog"), count=12):
    random = np.random.default_rng(0)
    for side in sides:
        for name in classes:
            (folder / side / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, size=(6, 8), dtype="uint8")
                Image.fromarray(pixels).save(folder / side / name / f"{index}.png")
    return str(folder)


def test_folders_of_images(tmp_path):
    data = load_data(images(tmp_path / "photos"))
    assert (data.name, data.x.shape, data.targets[0].classes) == ("photos", (24, 6, 8, 1), ("cat", "dog"))
    assert load_data(str(tmp_path / "photos"), image_size=4).x.shape == (24, 4, 4, 1)
    data = load_data(images(tmp_path / "split", ("train", "test")))
    assert (data.splits.kind, data.rows) == ("test", 48)
    other = images(tmp_path / "other", count=3)
    data = load_data(str(tmp_path / "photos"), test=other)
    assert (data.splits.kind, data.rows) == ("test", 30)
    for option, words in (({"groups": "a"}, ["--groups", "folder"]), ({"labels": "none.csv"}, ["none.csv"])):
        with told(StudyError, words):
            load_data(str(tmp_path / "photos"), **option)


def unreadable(path):
    path.write_bytes(b"\x00\x01 not a table")


@pytest.mark.parametrize(
    ("name", "write", "arguments", "words"),
    [
        ("none.csv", lambda path: None, {}, ["No such file", "diabetes"]),
        ("t.doc", lambda path: path.write_text("a"), {}, [".csv", ".parquet"]),
        ("t.parquet", unreadable, {}, ["cannot be read as PARQUET"]),
        ("t.npz", unreadable, {}, ["cannot be read as NPZ"]),
        (
            "t.npz",
            lambda path: np.savez(path, X=np.ones((40, 3)), y=np.ones(40), m=np.ones((2, 40))),
            {},
            ["same number", "X (40, 3), y (40,), m (2, 40)"],
        ),
        ("t.npz", lambda path: np.savez(path, X=np.ones((40, 2)), X_1=np.ones(40)), {}, ["'X_1'", "Rename"]),
        ("t.npz", lambda path: np.savez(path), {}, ["same number"]),
        ("t.npz", lambda path: np.savez(path, target=np.ones((40, 2, 2))), {}, ["no array besides the target"]),
        ("t.csv", lambda path: path.write_text(""), {}, ["cannot be read as CSV"]),
        ("t.csv", lambda path: path.write_text("a,target\n"), {}, ["no rows"]),
        ("t.csv", lambda path: frame().write_csv(path), {"target": None}, ["--target", "a, b"]),
        ("t.csv", lambda path: frame().write_csv(path), {"target": "y"}, ["'y'", "target, a, b"]),
        ("t.csv", lambda path: frame().write_csv(path), {"groups": "c"}, ["--groups", "a, b", "'c'"]),
        ("t.csv", lambda path: frame().write_csv(path), {"groups": "target"}, ["--groups", "'target'"]),
        ("t.csv", lambda path: frame().write_csv(path), {"time": "b"}, ["--time 'b'", "numbers or dates"]),
        ("t.csv", lambda path: frame().write_csv(path), {"image_size": 8}, ["--image-size", "folder of images"]),
        ("t.csv", lambda path: frame(b=["x", None, "y"] * 20).write_csv(path), {"groups": "b"}, ["missing in 20 rows"]),
        ("t.csv", lambda path: frame(target=[1.5] * 60).write_csv(path), {}, ["constant", "1.5"]),
        ("t.csv", lambda path: frame(target=[None] * 60).write_csv(path), {}, ["missing in all rows"]),
        ("t.parquet", lambda path: frame(target=[float("inf"), 1.0, 2.0] * 20).write_parquet(path), {}, ["'target'", "infinite"]),
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
        ("t.csv", lambda path: frame(a=[1] * 60, b=["x"] * 60).write_csv(path), {}, ["no feature that varies", "identifier"]),
    ],
)  # fmt: skip
def test_bad_data_is_told(name, write, arguments, words, tmp_path):
    path = tmp_path / name
    write(path)
    with told(StudyError, words):
        load_data(str(path), **{"target": "target", **arguments})


def test_a_built_in_set_has_its_own_target():
    with told(StudyError, ["--target", "'iris'"]):
        load_data("iris", target="species")


def test_a_digest_is_of_every_value_name_and_place():
    table = frame()
    x, y = table.drop("target"), table["target"].to_numpy()
    other_target = y.copy()
    other_target[-1] = np.nextafter(y[-1], np.inf)
    other_cell = x.with_columns(a=pl.when(pl.int_range(pl.len()) == 59).then(0.25).otherwise("a"))
    arrays = {"a": x["a"].to_numpy(), "b": np.arange(60)}
    others = [
        (x, y, {}),
        (x, other_target, {}),
        (other_cell, y, {}),
        (x.rename({"a": "c"}), y, {}),
        (x.select("b", "a"), y, {}),
        (x[::-1], y, {}),
        (x, y, {"groups": np.arange(60) // 3}),
        (x, y, {"sample_weight": np.ones(60)}),
        (x, y, {"sample_weight": 2 * np.ones(60)}),
        (arrays, y, {}),
        ({"a": arrays["b"], "b": arrays["a"]}, y, {}),
        (arrays["b"][:, None], y, {}),
        (arrays["b"][:, None].astype("int32"), y, {}),
    ]
    digests = [array_data(x, y, **arguments).digest() for x, y, arguments in others]
    assert len(set(digests)) == len(digests)
    assert array_data(x.clone(), y.copy()).digest() == digests[0]
