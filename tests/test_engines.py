"""Engines: the same numbers wherever runs are trained, whatever happens to who trains them."""

import os
import signal

import pytest

from minimand import backend
from minimand.study import Candidate, LocalEngine, Part, ProcessesEngine, RayEngine, Study, StudyError
from minimand.study._engines import engine_named
from tests.helpers import told
from tests.small_networks import one_layer

# Each test starts processes.
pytestmark = pytest.mark.slow

CANDIDATES = (Candidate("baseline"), Candidate("noise", transforms=(Part("WeightNoise", {"stddev": 0.1}),)))
SETTINGS = {"candidates": CANDIDATES, "seeds": 2, "epochs": 2}


def numbers(study):
    return [(run.candidate, run.seed, run.best_epoch, run.test, run.epochs) for run in study.results.runs]


def ran(folder, engine, build_model=one_layer):
    told = {candidate.name: 0 for candidate in CANDIDATES}
    study = Study(build_model, "iris", folder=folder, engine=engine, **SETTINGS)

    def count(name, epochs):
        told[name] += epochs

    study.run(count)
    # Each run once, and each of its epochs.
    assert len(list(folder.glob("runs/*.json"))) == 4
    assert told == {"baseline": 4, "noise": 4}
    return numbers(study)


class Once:
    """A network whose building kills its process, once."""

    def __init__(self, mark):
        self.mark = mark

    def __call__(self, input_shape, outputs):
        if os.getpid() != self.parent() and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return one_layer(input_shape, outputs)

    def parent(self):
        return int(self.mark.with_suffix(".parent").read_text())


def dying_once(folder):
    folder.mkdir()
    (folder / "mark.parent").write_text(str(os.getpid()))
    return Once(folder / "mark")


def test_processes_give_the_same_numbers_and_one_that_is_killed_is_replaced(tmp_path):
    expected = ran(tmp_path / "local", LocalEngine())
    dying = dying_once(tmp_path / "dying")
    assert ran(tmp_path / "processes", ProcessesEngine(2), dying) == expected
    assert (tmp_path / "dying" / "mark").exists()


class Always(Once):
    def __call__(self, input_shape, outputs):
        self.mark.unlink(missing_ok=True)
        return super().__call__(input_shape, outputs)


@pytest.mark.skipif(backend.name != "jax", reason="processes take long to start; this is the same on all backends")
def test_processes_that_keep_dying_are_an_error(tmp_path, monkeypatch):
    # Each takes long to start.
    monkeypatch.setattr("minimand.study._engines._DEATHS", 1)
    dying_once(tmp_path / "dying")
    always = Always(tmp_path / "dying" / "mark")
    study = Study(always, "iris", folder=tmp_path / "s", engine=ProcessesEngine(1), **SETTINGS)
    with told(StudyError, ["died 1 times", "--workers", "kept"]):
        study.run()


@pytest.mark.skipif(backend.name != "jax", reason="Ray takes long to start; what its tasks do is the same")
def test_ray_gives_the_same_numbers_and_retries_lost_workers(tmp_path):
    pytest.importorskip("ray")
    expected = ran(tmp_path / "local", LocalEngine())
    dying = dying_once(tmp_path / "dying")
    assert ran(tmp_path / "ray", RayEngine(), dying) == expected
    assert (tmp_path / "dying" / "mark").exists()


def test_ray_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with told(StudyError, ["minimand[ray]"]):
        engine_named("ray")


def test_names():
    at_once = backend.step_programs is not None
    assert isinstance(engine_named("auto"), LocalEngine if at_once else ProcessesEngine)
    assert engine_named("processes", 3).workers == 3
    for name, workers, words in (
        ("slurm", None, ["--engine", "processes", "'slurm'"]),
        ("processes", 0, ["--workers", "at least 1", "0"]),
        ("local", 2, ["--workers", "--engine processes", "2 with --engine local"]),
    ):
        with told(StudyError, words):
            engine_named(name, workers)
    for workers in (0, -1, 1.5, "all"):
        with told(StudyError, ["--workers", "whole number", repr(workers)]):
            ProcessesEngine(workers)
