"""What is stored survives whatever ends a study."""

import errno
import multiprocessing
import os
import random
import signal
import time

import pytest

from minimand.study import Candidate, LocalEngine, Part, Study, StudyError, Tuning
from tests.helpers import told
from tests.small_networks import one_layer
from tests.test_tuning import stored_trials

# Each test starts and kills processes.
pytestmark = pytest.mark.slow

CANDIDATES = (
    Candidate("baseline"),
    Candidate("noise", transforms=(Part("WeightNoise", {"stddev": 0.1}),)),
)
RUNS = [f"{candidate.name}-{seed}.json" for candidate in sorted(CANDIDATES, key=lambda c: c.name) for seed in range(3)]


def study(folder):
    return Study(one_layer, "iris", candidates=CANDIDATES, seeds=3, epochs=3, folder=folder, engine=LocalEngine())


def run(folder):
    study(folder).run()


def tuning_study(folder):
    arguments = {"seeds": 2, "epochs": 2, "engine": LocalEngine(), "tuning": Tuning(8, splits=1)}
    return Study(one_layer, "iris", candidates=CANDIDATES[:1], folder=folder, **arguments)


def tune(folder):
    tuning_study(folder).run()


def stored(folder):
    return sorted(path.name for path in folder.glob("runs/*.json"))


def numbers(finished):
    return [(run.candidate, run.seed, run.best_epoch, run.test, run.epochs) for run in finished.results.runs]


@pytest.fixture(scope="module")
def processes():
    """Processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minimand.study", "tests.test_reliability"])
    return context


def test_killed_four_times_it_ends_with_the_same_numbers(tmp_path, processes):
    for name in ("imported-and-compiled", "whole"):
        process = processes.Process(target=run, args=(tmp_path / name,))
        started = time.monotonic()
        process.start()
        process.join()
        seconds = time.monotonic() - started
    whole = study(tmp_path / "whole")
    whole.run()
    moments = random.Random(0)
    kills, partial = 0, set()
    while kills < 4:
        folder = tmp_path / f"killed-{len(partial)}"
        process = processes.Process(target=run, args=(folder,))
        process.start()
        process.join(moments.uniform(0.0, seconds))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        # Whatever is there is whole.
        partial.add(tuple(stored(folder)))
    for folder in tmp_path.glob("killed-*"):
        resumed = study(folder)
        resumed.run()
        assert stored(folder) == RUNS
        assert numbers(resumed) == numbers(whole)


def test_killed_while_it_tunes_it_ends_with_the_same_trials(tmp_path, processes):
    for name in ("imported-and-compiled", "whole"):
        process = processes.Process(target=tune, args=(tmp_path / name,))
        started = time.monotonic()
        process.start()
        process.join()
        seconds = time.monotonic() - started
    moments = random.Random(0)
    folder, kills = tmp_path / "killed", 0
    while True:
        process = processes.Process(target=tune, args=(folder,))
        process.start()
        # Longer each time, until it is long enough.
        process.join(seconds * 0.2 * 1.4**kills * moments.uniform(0.5, 1.0))
        if not process.is_alive():
            break
        process.kill()
        kills += 1
        process.join()
    assert kills >= 2
    resumed, whole = (tuning_study(tmp_path / name).run() for name in ("killed", "whole"))
    (of_resumed,), (of_whole,) = resumed.tuning.values(), whole.tuning.values()
    assert of_resumed["chosen"] == of_whole["chosen"]
    for one, other in zip(of_resumed["trials"], of_whole["trials"], strict=True):
        assert one["numbers"] == other["numbers"]
        # In float32: what is left of a round trains in a smaller program, which may round otherwise.
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)
    assert [run.test for run in resumed.runs] == [run.test for run in whole.runs]
    for trials in stored_trials(f"sqlite:///{folder}/tuning.db").values():
        assert [trial.state.name for trial in trials] == ["COMPLETE"] * 8


def test_two_processes_on_one_folder(tmp_path, processes):
    """The one that comes second waits, and finds everything done."""
    both = [processes.Process(target=run, args=(tmp_path / "s",)) for _ in range(2)]
    for process in both:
        process.start()
    waited = []
    third = study(tmp_path / "s")
    third.run(on_wait=lambda: waited.append(True))
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert stored(tmp_path / "s") == RUNS
    alone = study(tmp_path / "alone")
    alone.run()
    assert numbers(third) == numbers(alone)


def test_who_waits_is_told(tmp_path):
    first, second = study(tmp_path / "s"), study(tmp_path / "s")
    waited = []
    with first.storage.alone(lambda: None):
        # The lock is held: as the other process would, tell of it, and then give up.
        def give_up():
            waited.append(True)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            second.run(on_wait=give_up)
    assert waited == [True]


@pytest.mark.parametrize("room", [0, 4])
def test_a_full_disk_is_told_and_what_is_there_is_kept(room, tmp_path, monkeypatch):
    full = study(tmp_path / "s")
    sync, left = os.fsync, room

    def fsync(descriptor):
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= 1
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with told(StudyError, ["cannot be written", "No space left", "kept"]):
        full.run()
    assert len(stored(tmp_path / "s")) == room
    assert not list(tmp_path.glob("s/**/*.tmp"))
    monkeypatch.undo()
    resumed = study(tmp_path / "s")
    resumed.run()
    assert stored(tmp_path / "s") == RUNS


def test_a_folder_that_cannot_be_written_is_told():
    with told(StudyError, ["/proc/study", "cannot be written"]):
        study("/proc/study")


def test_an_interrupted_study_can_be_resumed(tmp_path, processes):
    folder = tmp_path / "s"
    process = processes.Process(target=run, args=(folder,))
    process.start()
    deadline = time.monotonic() + 120
    while not stored(folder) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    resumed = study(folder)
    resumed.run()
    assert stored(folder) == RUNS
