"""Hyperparameters: what is searched, how trials are shared, and what is chosen."""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import sys

import keras
import numpy as np
import optuna
import pytest

from minimand.study import Candidate, LocalEngine, Part, Study, StudyError, Tuning, default_candidates, mlp
from minimand.study._candidates import number_at, search_ranges, with_numbers
from minimand.study._data import Data
from minimand.study._problem import Problem
from minimand.study._training import FINISHED, Work, train_in_a_loop
from minimand.study._tuning import SharedStorage, Trials
from tests.helpers import told
from tests.small_networks import one_layer

# Each test trains trials.
pytestmark = pytest.mark.slow

NOISE = Candidate(
    "noise",
    transforms=(Part("WeightNoise", {"stddev": 0.1}),),
    search={"transforms.0.stddev": (0.01, 0.5)},
)
CANDIDATES = (Candidate("baseline"), NOISE)
same_everywhere = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="about which trials there are, not how they are trained"
)


def study(folder, tuning, candidates=CANDIDATES, model=one_layer, **settings):
    settings = {"seeds": 2, "epochs": 2, **settings}
    return Study(model, "iris", candidates=candidates, folder=folder, engine=LocalEngine(), tuning=tuning, **settings)


def share(folder, storage):
    """As a process does it."""
    study(folder, Tuning(4, splits=1, storage=storage)).run()


# Search


def test_the_learning_rate_and_weight_decay_are_searched_wherever_the_optimizer_is():
    wrapped = Candidate("w", optimizer=Part("SNRScaling", {"optimizer": Part("SGD", {"learning_rate": 0.1})}))
    assert search_ranges(wrapped)["optimizer.optimizer.learning_rate"] == pytest.approx((0.01, 1.0))
    assert "optimizer.optimizer.weight_decay" in search_ranges(wrapped)
    # Keras's own default.
    assert search_ranges(Candidate("r", optimizer=Part("RMSprop")))["optimizer.learning_rate"] == pytest.approx(
        (1e-4, 1e-2)
    )
    own = dataclasses.replace(NOISE, search={"optimizer.learning_rate": [0.1, 0.2]})
    assert search_ranges(own)["optimizer.learning_rate"] == (0.1, 0.2)


@pytest.mark.parametrize("candidate", default_candidates(), ids=lambda c: c.name)
def test_numbers_are_put_where_they_are_searched(candidate):
    ranges = search_ranges(candidate)
    assert len(ranges) >= 2
    numbers = {path: low + 0.25 * (high - low) for path, (low, high) in ranges.items()}
    changed = with_numbers(candidate, numbers)
    assert {path: number_at(changed, path) for path in ranges} == pytest.approx(numbers)
    assert changed.search == candidate.search
    # All else is as it was, and all of it is built.
    given = {path: number_at(candidate, path) for path in ranges}
    back = with_numbers(changed, {path: number for path, number in given.items() if number is not None})
    known = [path for path, number in given.items() if number is None]
    assert {p for p in ranges if number_at(back, p) != given[p]} == set(known)
    for path, ends in ranges.items():
        for end in ends:
            code = with_numbers(candidate, {path: end}).code(Part("MeanSquaredError"))
            assert eval("dict(\n" + code.partition("compile(")[2], {**globals(), **namespaces()})


def namespaces():
    import minimand

    return {"keras": keras, "minimand": minimand}


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"transforms.1.stddev": (0.1, 1.0)}, ["'noise'", "'transforms.1.stddev'", "leads to no component"]),
        ({"transforms.stddev": (0.1, 1.0)}, ["leads to no component"]),
        ({"loss.alpha": (0.1, 1.0)}, ["leads to no component"]),
        ({"loss": (0.1, 1.0)}, ["leads to no component"]),
        ({"transforms.0.type": (0.1, 1.0)}, ["'noise'", "WeightNoise", "type"]),
        ({"transforms.0.stddev": (1.0, 0.1)}, ["[low, high]", "Received: (1.0, 0.1)"]),
        ({"transforms.0.stddev": "wide"}, ["[low, high]", "Received: 'wide'"]),
        ({"transforms.0.stddev": (0.1, float("nan"))}, ["[low, high]"]),
        ({"transforms.0.stddev": (-1.0, 0.1)}, ["'noise'", "stddev", "-1"]),
        ({"transforms.0.wideness": (0.0, 0.1)}, ["'noise'", "wideness"]),
        ({"loss_learning_rate": (-0.1, 1.0)}, ["'noise'", "loss_learning_rate"]),
    ],
)
def test_a_search_that_cannot_be_is_told_before_anything_is_trained(search, words, tmp_path):
    candidates = (CANDIDATES[0], dataclasses.replace(NOISE, search=search))
    with told(StudyError, words) as error:
        study(tmp_path / "s", Tuning(2), candidates)
    assert str(error.value).count("candidate 'noise'") == 1
    assert not (tmp_path / "s").exists()


# Choosing


def test_all_have_as_many_trials_and_the_best_is_judged_on_other_splits(tmp_path):
    seen = []
    original = Problem.fold

    def fold(self, seed):
        seen.append(seed)
        return original(self, seed)

    done = study(tmp_path / "s", Tuning(5, splits=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Problem, "fold", fold)
        results = done.run()
    judged = {run.seed for run in results.runs}
    assert judged == {0, 1}
    assert len(set(seen) - judged) == 3
    for candidate in CANDIDATES:
        tuned = results.tuning[candidate.name]
        assert len(tuned["trials"]) == 5
        first = tuned["trials"][0]["numbers"]
        assert first["optimizer.learning_rate"] == 0.002
        assert first.get("transforms.0.stddev", 0.1) == 0.1
        # Within the ranges, and no two alike.
        for path, (low, high) in tuned["ranges"].items():
            values = [trial["numbers"][path] for trial in tuned["trials"]]
            assert min(values) >= low
            assert max(values) <= high
        assert len({tuple(trial["numbers"].values()) for trial in tuned["trials"]}) == 5
        scores = [trial["score"] for trial in tuned["trials"]]
        assert tuned["chosen"] == int(np.argmin(scores))
        # The score is the mean over the splits of the best epoch's, as a loop of `fit` has it.
        numbers = tuned["trials"][tuned["chosen"]]["numbers"]
        work = Work(with_numbers(candidate, numbers), tuple(sorted(set(seen) - judged)))
        alone = list(train_in_a_loop(done.problem, work, ignore))
        expected = np.mean([run.epochs[run.best_epoch]["log_loss"] for run in alone])
        np.testing.assert_allclose(scores[tuned["chosen"]], expected, rtol=1e-4)
        of = next(c for c in results.candidates if c.name == candidate.name)
        assert {path: number_at(of, path) for path in numbers} == numbers
        assert all(run.specification == of.to_dict() for run in results.runs if run.candidate == candidate.name)


def ignore(candidate, epochs):
    pass


@same_everywhere
def test_repeats_leave_the_splits_of_trials_as_they_are(tmp_path):
    """Their seeds, of which there are more, are too great for some generators."""
    once, often = (
        study(tmp_path / str(repeats), Tuning(2, splits=2), CANDIDATES[:1], epochs=1, repeats=repeats)
        for repeats in (1, 5)
    )
    tuned = often.run().tuning["baseline"]
    assert all(np.isfinite(trial["score"]) for trial in tuned["trials"])
    for split in range(2):
        folds = [each.problem.fold((10**9 + split) * each.settings.repeats).split for each in (once, often)]
        for one, other in zip(*folds, strict=True):
            np.testing.assert_array_equal(one, other)


@same_everywhere
def test_test_rows_choose_nothing(tmp_path):
    """Whatever the test rows are, the same trials with the same scores."""
    first = study(tmp_path / "first", Tuning(4, splits=2), CANDIDATES[:1]).run()
    original = Data.fold

    def other_test_rows(self, split, **arguments):
        fold = original(self, split, **arguments)
        x, y = fold.x.copy(), fold.y[0].copy()
        x[fold.split.test] *= -3
        y[fold.split.test] = fold.y_test[::-1]
        return dataclasses.replace(fold, x=x, y=(y,))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Data, "fold", other_test_rows)
        second = study(tmp_path / "second", Tuning(4, splits=2), CANDIDATES[:1]).run()
    assert first.tuning == second.tuning
    assert [run.test for run in first.runs] != [run.test for run in second.runs]


@same_everywhere
def test_a_learning_rate_that_is_far_too_low_is_raised(tmp_path):
    slow = Part("Adam", {"learning_rate": 1e-6})
    candidate = Candidate("baseline", optimizer=slow, search={"optimizer.learning_rate": (1e-6, 1e-1)})
    results = study(tmp_path / "s", Tuning(8, splits=2), [candidate]).run()
    assert number_at(results.candidates[0], "optimizer.learning_rate") > 1e-4


@same_everywhere
def test_diverged_trials_are_infinite_and_are_not_chosen(tmp_path):
    # Squared weights overflow with such a rate.
    explosive = Candidate(
        "baseline",
        optimizer=Part("SGD", {"learning_rate": 0.01}),
        search={"optimizer.learning_rate": (0.01, 1e30), "optimizer.weight_decay": (0.0, 0.0)},
    )
    results = study(tmp_path / "s", Tuning(6, splits=2), [explosive], mlp).run()
    tuned = results.tuning["baseline"]
    assert np.inf in [trial["score"] for trial in tuned["trials"]]
    assert np.isfinite(tuned["trials"][tuned["chosen"]]["score"])
    assert all(run.status == FINISHED for run in results.runs)


@same_everywhere
def test_where_all_diverge_the_candidate_stays_as_it_was(tmp_path):
    hopeless = Candidate(
        "hopeless",
        optimizer=Part("SGD", {"learning_rate": 1e30}),
        search={"optimizer.learning_rate": (1e29, 1e30), "optimizer.weight_decay": (0.0, 0.0)},
    )
    results = study(tmp_path / "s", Tuning(2, splits=2), (CANDIDATES[0], hopeless), mlp).run()
    assert results.tuning["hopeless"]["chosen"] is None
    assert results.candidates[1].to_dict() == hopeless.to_dict()
    assert "Diverged runs" in results.verdict


class EndsTheSecondTrialAfterTwoSplits(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return trial.number == 1 and len(trial.intermediate_values) == 2


def test_a_pruner_ends_trials_between_splits(tmp_path):
    epochs = []
    tuning = Tuning(3, splits=3, pruner=EndsTheSecondTrialAfterTwoSplits())
    done = study(tmp_path / "s", tuning, CANDIDATES[:1])
    results = done.run(lambda name, n: epochs.append(n))
    # Progress ends at the whole: what was pruned counts as passed.
    assert sum(epochs) == 2 * (2 + 3 * 3)
    tuned = results.tuning["baseline"]
    assert [trial["score"] is None for trial in tuned["trials"]] == [False, True, False]
    assert tuned["chosen"] != 1
    (stored,) = stored_trials(f"sqlite:///{tmp_path / 's' / 'tuning.db'}").values()
    assert [len(trial.intermediate_values) for trial in stored] == [3, 2, 3]


def stored_trials(url):
    """By the names of Optuna's studies."""
    with contextlib.closing(SharedStorage(url, "here")) as shared:
        names = sorted(optuna.get_all_study_names(shared.storage))
        return {name: optuna.load_study(study_name=name, storage=shared.storage).trials for name in names}


# Sharing


@same_everywhere
def test_trials_are_in_optunas_storage(tmp_path):
    results = study(tmp_path / "s", Tuning(3, splits=2)).run()
    stored = stored_trials(f"sqlite:///{tmp_path / 's' / 'tuning.db'}")
    for (name, trials), candidate in zip(stored.items(), CANDIDATES, strict=True):
        assert name.startswith(f"iris {candidate.name} ")
        scores = [trial["score"] for trial in results.tuning[candidate.name]["trials"]]
        assert [trial.value for trial in trials] == pytest.approx(scores)
        assert [np.mean(list(trial.intermediate_values.values())) for trial in trials] == pytest.approx(scores)
    if sys.platform == "linux":
        files = (os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
        assert not [file for file in files if file.startswith(str(tmp_path))]


@same_everywhere
def test_a_journal_file_and_another_sampler(tmp_path):
    path = str(tmp_path / "trials.log")
    tuning = Tuning(3, splits=2, storage=path, sampler=lambda seed: optuna.samplers.RandomSampler(seed))
    first = study(tmp_path / "a", tuning, CANDIDATES[:1]).run()
    # Another folder finds all trials done.
    done = study(tmp_path / "b", tuning, CANDIDATES[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minimand.study._tuning._train", None)
        assert done.run().tuning == first.tuning
    assert [len(trials) for trials in stored_trials(path).values()] == [3]


@same_everywhere
def test_more_trials_go_on_from_those_there_are(tmp_path):
    path = str(tmp_path / "trials.log")
    few = study(tmp_path / "a", Tuning(4, splits=2, storage=path), CANDIDATES[:1]).run()
    more = study(tmp_path / "b", Tuning(6, splits=2, storage=path), CANDIDATES[:1]).run()
    assert more.tuning["baseline"]["trials"][:4] == few.tuning["baseline"]["trials"]
    assert len(more.tuning["baseline"]["trials"]) == 6


@same_everywhere
def test_other_settings_do_not_share_trials(tmp_path):
    path = str(tmp_path / "trials.log")
    tuning = Tuning(1, splits=2, storage=path)
    study(tmp_path / "a", tuning, CANDIDATES[:1]).run()
    study(tmp_path / "b", tuning, CANDIDATES[:1], epochs=3).run()
    study(tmp_path / "c", dataclasses.replace(tuning, splits=1), CANDIDATES[:1]).run()
    changed = Candidate("baseline", search={"optimizer.learning_rate": (0.01, 0.6)})
    study(tmp_path / "d", tuning, [changed]).run()
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
    assert len(optuna.get_all_study_names(storage)) == 4


def trials(storage, place, tuning):
    return Trials(SharedStorage(storage, place), "iris", NOISE, tuning, {})


def test_the_budget_holds_for_all_together(tmp_path):
    tuning = Tuning(3, splits=1, storage=str(tmp_path / "trials.log"))
    one, other = (trials(tuning.storage, place, tuning) for place in ("a", "b"))
    asked = one.ask(2) + other.ask(2)
    assert [trial.number for trial in asked] == [0, 1, 2]
    assert one.ask(1) == other.ask(1) == []
    assert not one.done
    for trial in asked:
        one.tell(trial, [0.5])
    assert one.done
    assert other.done


def test_what_a_dead_process_began_is_begun_again_with_the_same_numbers(tmp_path, monkeypatch):
    tuning = Tuning(4, splits=1, storage=str(tmp_path / "trials.log"))
    dead = trials(tuning.storage, "here", tuning)
    begun = dead.ask(3)
    dead.tell(begun[1], [0.5])
    # Whoever works in the same folder now, knows at once.
    again = trials(tuning.storage, "here", tuning).ask(3)
    assert [trial.number for trial in again] == [0, 2]
    assert [trial.params for trial in again] == [begun[0].params, begun[2].params]
    # It is told once, whoever does it.
    dead.tell(begun[0], [7.0])
    late = trials(tuning.storage, "here", tuning)
    late.report(again[0], 0, 9.0)
    late.tell(again[0], [9.0])
    assert dead.study.trials[0].value == 7.0


def test_other_machines_wait_for_a_silence(tmp_path, monkeypatch):
    tuning = Tuning(3, splits=1, storage=str(tmp_path / "trials.log"))
    dead, other = (trials(tuning.storage, place, tuning) for place in ("here", "elsewhere"))
    begun = dead.ask(2)
    now = [100.0]
    monkeypatch.setattr("minimand.study._tuning.time.monotonic", lambda: now[0])
    assert [trial.number for trial in other.ask(3)] == [2]
    now[0] += 59.0
    assert other.ask(3) == []
    dead.study.set_user_attr(begun[0].user_attrs["owner"], 1.0)
    now[0] += 2.0
    assert other.ask(3) == []
    now[0] += 59.0
    assert other.ask(3) == []
    now[0] += 2.0
    assert [trial.number for trial in other.ask(3)] == [0, 1]


def searched(storage, tuning):
    """All trials done by one process, with a score that depends on their numbers."""
    of = trials(storage, "here", tuning)
    while not of.done:
        for trial in of.ask(2):
            scores = [abs(math.log(number)) for number in trial.params.values()]
            for split, score in enumerate(scores):
                of.report(trial, split, score)
            of.tell(trial, scores)
    return [(trial.number, trial.state.name, trial.params, trial.value) for trial in of.study.trials]


@pytest.mark.parametrize(
    "sampler",
    [
        lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=2),
        lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=2, multivariate=True),
    ],
    ids=["each-alone", "all-together"],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_killed_at_any_moment_it_ends_with_the_same_trials(sampler, tmp_path):
    tuning = Tuning(7, splits=3, sampler=sampler)
    journal = tmp_path / "whole.log"
    whole = searched(str(journal), tuning)
    assert len({tuple(params.values()) for _, _, params, _ in whole}) == 7
    # Not along the diagonal of their ranges.
    ranges = search_ranges(NOISE)
    for _, _, params, _ in whole[1:]:
        shares = [math.log(params[path] / low) / math.log(high / low) for path, (low, high) in ranges.items()]
        assert np.ptp(shares) > 1e-3
    # A journal grows by lines: its beginnings are what kills leave.
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > 7 * len(ranges)
    for count in range(len(lines)):
        killed = tmp_path / f"killed-{count}.log"
        killed.write_bytes(b"".join(lines[:count]))
        assert searched(str(killed), tuning) == whole, lines[count - 1]


@same_everywhere
def test_processes_share_trials_and_come_to_the_same(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minimand.study", "tests.test_tuning"])
    storage = f"sqlite:///{tmp_path / 'trials.db'}"
    SharedStorage(storage, "here").close()
    processes = [context.Process(target=share, args=(tmp_path / name, storage)) for name in ("a", "b")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    a, b = (study(tmp_path / name, Tuning(4, splits=1, storage=storage)).run() for name in ("a", "b"))
    assert a.tuning == b.tuning
    assert [run.test for run in a.runs] == [run.test for run in b.runs]
    stored = stored_trials(storage)
    for trials in stored.values():
        ended = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
        assert len(ended) == 4
        assert {trial.state for trial in trials} <= {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL}
    if sys.platform == "linux":
        owners = {trial.user_attrs["owner"] for trials in stored.values() for trial in trials if trial.value}
        assert len(owners) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"trials": 0}, ["--tune", "at least 1", "Received: 0"]),
        ({"trials": "ten"}, ["--tune", "whole number", "'ten'"]),
        ({"trials": 1, "splits": 0}, ["splits", "at least 1", "Received: 0"]),
        ({"trials": 1, "splits": 2.5}, ["splits", "whole number", "2.5"]),
    ],
)
def test_bad_numbers_are_told(arguments, words):
    with told(StudyError, words):
        Tuning(**arguments)


@pytest.mark.parametrize("url", ["nonsense://x", "sqlite:////no/such/folder/x.db", "/no/such/folder/trials.log"])
def test_a_storage_that_cannot_be_used_is_told(url, tmp_path):
    with told(StudyError, ["--storage", url]):
        study(tmp_path / "s", Tuning(1, storage=url)).run()


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with told(StudyError, ["pip install 'minimand[tune]'"]):
        Tuning(2)
