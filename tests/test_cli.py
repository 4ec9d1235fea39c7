"""The command, from outside."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

SMALL = ["--seeds", "2", "--epochs", "2", "--candidates", "weight-noise"]


def kriterion(*arguments, folder, expect=0, **more):
    done = subprocess.run(
        [sys.executable, "-m", "kriterion.cli", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=400, **more,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def numbers(folder):
    runs = {}
    for path in sorted((folder / "runs").glob("*.json")):
        run = json.loads(path.read_text())
        runs[path.name] = [run["test"], [{k: v for k, v in row.items() if k != "seconds"} for row in run["epochs"]]]
    return runs


def test_study_prints_json_and_survives_kill(tmp_path):
    done = kriterion("study", "iris", *SMALL, "--out", "whole", "--json", folder=tmp_path)
    printed = json.loads(done.stdout)
    assert [c["candidate"] for c in printed["candidates"]] == ["baseline", "weight-noise"]
    assert (tmp_path / "whole" / "index.html").exists()
    assert (tmp_path / "whole" / "results.parquet").exists()
    process = subprocess.Popen(
        [sys.executable, "-m", "kriterion.cli", "study", "iris", *SMALL, "--out", "killed"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed").glob("runs/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "index.html").exists()
    done = kriterion("study", "iris", *SMALL, "--out", "killed", folder=tmp_path)
    # The table fits into 80 columns.
    assert "…" not in done.stdout
    assert max(map(len, done.stdout.split("\n\n")[0].splitlines())) <= 80
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    # The page again, from what is stored, without the data.
    page = (tmp_path / "killed" / "index.html").read_text()
    (tmp_path / "killed" / "index.html").unlink()
    kriterion("report", "killed", folder=tmp_path)
    assert (tmp_path / "killed" / "index.html").read_text() == page
    assert "no-such" in kriterion("report", "no-such", folder=tmp_path, expect=2).stderr


def test_bad_input_ends_with_exit_code_2_and_no_traceback(tmp_path):
    done = kriterion("study", "iris", "--candidates", "weight-nose", folder=tmp_path, expect=2)
    assert "Did you mean 'weight-noise'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not os.listdir(tmp_path)


def test_options_of_tuning_need_it():
    from kriterion.cli import _tuning
    from kriterion.study import StudyError

    assert _tuning(None, False, None) is None
    assert _tuning(3, False, "x.log").storage == "x.log"
    assert type(_tuning(3, True, None).pruner).__name__ == "WilcoxonPruner"
    for prune, storage in ((True, None), (False, "x.log")):
        with pytest.raises(StudyError, match="--tune N"):
            _tuning(None, prune, storage)


@pytest.mark.parametrize(("command", "words"), [("list", ["AdaptiveRobust", "weight-noise", "diabetes"]), ("doctor", ["keras", "backend"])])  # fmt: skip
def test_list_and_doctor(command, words, tmp_path):
    text = kriterion(command, folder=tmp_path, env={**os.environ, "COLUMNS": "140"}).stdout
    for word in words:
        assert word in text


def test_doctor_tells_what_to_install_for_what_is_missing(monkeypatch, capsys):
    from kriterion import cli

    monkeypatch.setattr(cli, "_PACKAGES", {"study": {"no-such-package": "no_such_package"}})
    cli.doctor()
    assert "pip install 'kriterion[study]'" in capsys.readouterr().out
