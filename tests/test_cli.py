"""The command."""

import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from minimand import cli
from tests.helpers import mostly_slow

SMALL = ["--seeds", "2", "--epochs", "2", "--candidates", "weight-noise"]


def run(monkeypatch, folder, *arguments, code=0):
    """As `minimand ARGUMENTS` in this folder, in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["minimand", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code or 0) == code


@pytest.mark.slow
def test_study_and_report_from_outside(tmp_path):
    def minimand(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "minimand.cli", *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=True, timeout=400,
        ).stdout  # fmt: skip

    printed = json.loads(minimand("study", "iris", *SMALL, "--out", "s", "--json"))
    assert [c["candidate"] for c in printed["candidates"]] == ["baseline", "weight-noise"]
    assert (tmp_path / "s" / "results.parquet").exists()
    # The page again, from what is stored, without the data.
    page = (tmp_path / "s" / "index.html").read_text()
    (tmp_path / "s" / "index.html").unlink()
    minimand("report", "s")
    assert (tmp_path / "s" / "index.html").read_text() == page


@pytest.mark.slow
def test_a_study_that_is_stored_is_printed_again(tmp_path, monkeypatch, capsys):
    tables = set()
    for _ in range(2):
        run(monkeypatch, tmp_path, "study", "iris", *SMALL, "--out", "s")
        text = capsys.readouterr().out
        assert "weight-noise" in text
        # The table fits into 80 columns.
        assert "…" not in text
        table, *_ = text.split("\n\n")
        assert max(map(len, table.splitlines())) <= 80
        tables.add(table)
    assert len(tables) == 1


def test_inspect_fits_into_80_columns(tmp_path, monkeypatch, capsys):
    names = ["a long name of a column in a file", "same", "other"]
    pl.DataFrame({name: [k * (name != "same") + 0.5 for k in range(9)] for name in names}).write_csv(tmp_path / "t.csv")
    run(monkeypatch, tmp_path, "inspect", "t.csv")
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    words = text.split()
    assert (words.count("standardised,"), words.count("left")) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["study", "iris", "--candidates", "weight-nose"], "Did you mean 'weight-noise'"),
        (["study", "iris", "--prune"], "--tune N"),
        (["report", "no-such"], "no-such"),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_no_traceback(arguments, words, tmp_path, monkeypatch, capsys):
    run(monkeypatch, tmp_path, *arguments, code=2)
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told
    assert not os.listdir(tmp_path)


def table(rows=40, **columns):
    random = np.random.default_rng(0)
    return {"a": random.normal(size=rows), "target": random.normal(size=rows), **columns}


TABLES = {
    "twenty-rows": table(20),
    "an-outlier": table(target=[1e20, *np.linspace(0, 1, 39)]),
    "huge": table(target=1e12 * np.linspace(0, 1, 40) ** 2),
    "hardly-varies": table(target=1e9 + np.linspace(0, 1, 40)),
    "mostly-one-number": table(target=[0.0] * 38 + [1.0, 2.0]),
    "a-category-a-row": table(c=[f"c{k}" for k in range(40)]),
    "truths": table(target=[True, False] * 20),
    "few-of-a-class": table(205, target=["u"] * 200 + ["v"] * 5),
    "[red]brackets*": table(target=["<b>", "no", "[/]", "ä ö"] * 10),
}


@pytest.mark.parametrize("name", mostly_slow(TABLES, "[red]brackets*"))
def test_tables_of_many_kinds(name, tmp_path, monkeypatch, capsys):
    """Each ends with a page, with numbers that JSON has, and with a verdict; nothing warns."""
    pl.DataFrame(TABLES[name]).write_csv(tmp_path / f"{name}.csv")
    options = ["--seeds", "2", "--epochs", "3", "--patience", "1", "--candidates", "general-robust", "--json"]
    # Few whole numbers would be classes.
    options += ["--task", "regression"] * (name == "mostly-one-number")
    run(monkeypatch, tmp_path, "study", f"{name}.csv", "--target", "target", *options)
    printed = capsys.readouterr()
    found = json.loads(printed.out, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert f"{name}: " in printed.err
    assert "<svg" in (tmp_path / "studies" / name / "index.html").read_text(encoding="utf-8")
    baseline, robust = found["candidates"]
    assert robust["diverged"] == 0
    assert all(value is not None for value in robust["means"].values())
    # Only squares of 1e20 are more than single precision has.
    assert baseline["diverged"] == (2 if name == "an-outlier" else 0)
    words = "baseline diverged on all 2 splits, so nothing can be compared on MAE." if name == "an-outlier" else "beats"
    assert words in found["verdict"]


def test_options_of_tuning_need_it():
    from minimand.study import StudyError

    assert cli._tuning(None, False, None) is None
    assert cli._tuning(3, False, "x.log").storage == "x.log"
    assert type(cli._tuning(3, True, None).pruner).__name__ == "WilcoxonPruner"
    for prune, storage in ((True, None), (False, "x.log")):
        with pytest.raises(StudyError, match="--tune N"):
            cli._tuning(None, prune, storage)


@pytest.mark.parametrize(("command", "words"), [("list", ["AdaptiveRobust", "weight-noise", "diabetes"]), ("doctor", ["keras", "backend"])])  # fmt: skip
def test_list_and_doctor(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "140")
    run(monkeypatch, tmp_path, command)
    text = capsys.readouterr().out
    for word in words:
        assert word in text


def test_doctor_tells_what_to_install_for_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_PACKAGES", {"study": {"no-such-package": "no_such_package"}})
    cli.doctor()
    assert "pip install 'minimand[study]'" in capsys.readouterr().out
