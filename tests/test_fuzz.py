"""Files of all kinds: a study can use them, or says in a `StudyError` why not; options likewise."""

import inspect
import string
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minimand import cli
from minimand.study import StudyError, default_candidates, load_data, read_candidates, target_of
from minimand.study._candidates import choose, resolved
from minimand.study._metrics import Metrics
from minimand.study._settings import Settings

# Hypothesis draws hundreds of inputs.
pytestmark = pytest.mark.slow

fuzzed = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CELLS = st.one_of(
    st.sampled_from(["", "NA", "nan", "inf", "-inf", "1e400", "0", "-0.0", "1", "2", "3.5", "true", "2024-01-31", '"', "a,b", "ä", "\x00"]),
    st.floats(width=64).map(repr),
    st.integers(-(2**70), 2**70).map(str),
    st.text(max_size=4),
)  # fmt: skip


def attempt(function, *arguments, **named):
    """Its result, or None where it is refused with a sentence."""
    try:
        return function(*arguments, **named)
    except StudyError as refused:
        told = str(refused)
    assert len(told) > 10
    assert "Traceback" not in told
    return None


def check_usable(path, task=None):
    data = attempt(load_data, str(path), target="y", task=task)
    if data is not None:
        for fraction in (0.0, 0.5):
            fold = data.fold(0, corrupt_targets=fraction)
            for part in (fold.x_train, fold.x_validation, fold.x_test, fold.y_train, fold.y_validation, fold.y_test):
                assert np.isfinite(part).all()
                assert len(part) > 0


@fuzzed
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".parquet", ".arrow", ".npz", ".txt", ""]))
def test_files_of_bytes(content, suffix, tmp_path):
    path = tmp_path / f"table{suffix}"
    path.write_bytes(content)
    check_usable(path)


@fuzzed
@given(
    rows=st.lists(st.lists(CELLS, min_size=0, max_size=4), max_size=40),
    names=st.lists(st.sampled_from(["y", "x", "", "z", "y"]), min_size=1, max_size=4),
    task=st.sampled_from([None, "regression", "classification"]),
)
def test_tables_of_odd_cells(rows, names, task, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("\n".join([",".join(names), *(",".join(row) for row in rows)]), encoding="utf-8")
    check_usable(path, task)


@fuzzed
@given(
    cells=st.lists(st.tuples(CELLS.filter(lambda c: "," not in c), st.sampled_from(["0", "1", "2.5", "7", "a"])), min_size=30, max_size=40),
    task=st.sampled_from([None, "regression", "classification"]),
)  # fmt: skip
def test_tables_that_nearly_work(cells, task, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(
        "\n".join(["x,y,number", *(f"{x},{y},{k % 5}" for k, (x, y) in enumerate(cells))]), encoding="utf-8"
    )
    check_usable(path, task)


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-5, 2**40), st.floats(), st.text(string.printable, max_size=6), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["type", "stddev", "alpha", "a"]), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip
PARTS = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["WeightNoise", "AdaptiveRobust", "Huber", "Adam", "Proximal", "WeightPenalty", "os", "Trainer"])},
        optional={"stddev": VALUES, "alpha": VALUES, "optimizer": VALUES, "regularizer": VALUES, "learning_rate": VALUES},
    ),
)  # fmt: skip


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.encode("unicode_escape").decode().replace('"', "").replace("\\", "") + '"'
    return '""' if value is None else repr(value)


@fuzzed
@given(
    table=st.dictionaries(
        st.sampled_from(["loss", "optimizer", "transforms", "search", "optional", "summary", "loss_learning_rate", "los"]),
        st.one_of(PARTS, st.lists(PARTS, max_size=2)),
        max_size=4,
    ),
    name=st.sampled_from(["mine", "a/b", "ä", "x y", "baseline"]),
)  # fmt: skip
def test_candidates_of_odd_parts(table, name, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        f'[candidates."{name}"]\n' + "\n".join(f"{key} = {toml(v)}" for key, v in table.items()), encoding="utf-8"
    )
    for candidate in attempt(read_candidates, path) or ():
        assert candidate.name == name


@fuzzed
@given(content=st.binary(max_size=100))
def test_candidates_of_bytes(content, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    attempt(read_candidates, path)


NUMBERS = st.one_of(st.integers(-3, 10**6), st.floats(), st.just("many"), st.none())


@fuzzed
@given(
    seeds=NUMBERS,
    repeats=NUMBERS,
    epochs=NUMBERS,
    batch=NUMBERS,
    corrupt=NUMBERS,
    patience=NUMBERS,
    metric=st.text(max_size=5),
)
def test_settings_of_odd_numbers(seeds, repeats, epochs, batch, corrupt, patience, metric):
    attempt(Settings, seeds, epochs, batch, corrupt, metric, patience=patience, repeats=repeats)
    attempt(Metrics, [target_of([0.5, 1.5])], metric, metric)


@fuzzed
@given(names=st.lists(st.text(max_size=8), max_size=3))
def test_names_of_candidates(names):
    attempt(choose, names, default_candidates())
    attempt(resolved, names)


@pytest.mark.parametrize("name", ["a" * 300, "x\x00y", "~", "."])
def test_paths_that_are_none(name):
    assert attempt(load_data, name, target="y") is None


FLAGS = {"as_json": "--json", "prune": "--prune", "augment": "--augment"}
WORDS = st.one_of(
    st.text(string.printable, max_size=6),
    st.integers(-2, 10**12).map(str),
    st.floats().map(str),
    st.sampled_from(["baseline", "accuracy", "mae", "regression", "local", "processes", "ray", "iris", ".", "os:getcwd", "a:b", "a.b:c"]),
)  # fmt: skip


def values_of(option):
    """Of its type, mostly."""
    annotation = str(option.annotation)
    numbers = st.integers(-1, 100) if "int" in annotation else st.floats(-0.5, 1.5) if "float" in annotation else WORDS
    return st.one_of(numbers.map(str), numbers.map(str), WORDS)


OPTIONS = {
    name: values_of(option)
    for name, option in inspect.signature(cli.study).parameters.items()
    if name not in ("data", *FLAGS)
}


@fuzzed
@given(
    options=st.lists(st.sampled_from(sorted(OPTIONS)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: OPTIONS[name] for name in names})
    ),
    flags=st.sets(st.sampled_from(sorted(FLAGS.values()))),
    data=st.one_of(st.sampled_from(["iris", "diabetes"]), WORDS),
)
def test_options_of_the_command(options, flags, data, tmp_path, monkeypatch, capsys):
    """Up to where it would begin to train: a sentence and the exit code 2, or training."""

    class Trains(Exception):
        pass

    def train(comparing, *arguments, **named):
        raise Trains

    given_options = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.Study, "run", train)
    monkeypatch.setattr(sys, "argv", ["minimand", "study", *given_options, *flags, "--", data])
    with pytest.raises((SystemExit, Trains)) as ended:
        cli.main()
    if ended.type is SystemExit:
        assert ended.value.code == 2
        assert len(capsys.readouterr().err) > 20
