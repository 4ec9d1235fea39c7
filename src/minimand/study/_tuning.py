"""Tuning: an equal number of trials for each candidate, scored by validation rows of splits that judge nothing.

Trials are in Optuna's storage, which processes on several machines may share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from minimand.study._candidates import Candidate, number_at, search_ranges, with_numbers
from minimand.study._engines import Train, divided
from minimand.study._problem import TUNING_SPLIT, Problem
from minimand.study._results import Storage
from minimand.study._settings import StudyError, Tuning
from minimand.study._training import FINISHED, OnEpochs

# Trials are asked for in this many rounds; those of a round train together, and do not know of each other's scores.
_ROUNDS = 4
# Seconds between looks for the end of other processes' trials.
_LOOK = 1.0
# Seconds between signs of life, and seconds without one after which others take over.
_SIGN, _SILENCE = 5.0, 60.0


def tune(
    problem: Problem,
    candidates: Sequence[Candidate],
    tuning: Tuning,
    folder: Storage,
    train: Train,
    on_epochs: OnEpochs,
    on_wait: Callable[[], None],
) -> list[tuple[Candidate, dict[str, Any]]]:
    """Each candidate with the numbers of its best trial, and a record as in `Trials.tuned`.

    Args:
        problem: data, network and settings.
        candidates: candidates to tune.
        tuning: number of trials and splits, storage, sampler and pruner.
        folder: folder of the study, which holds the database unless `tuning` names a storage. Studies of equal
            identity share trials.
        train: trains pieces of work.
        on_epochs: `on_epochs(candidate, n)` is called when n more epochs have passed.
        on_wait: called before waiting for trials of other processes.
    """
    shared = {**folder.identity, "tuning": tuning.splits}
    url = tuning.storage or f"sqlite:///{folder.folder / 'tuning.db'}"
    with contextlib.ExitStack() as stack:
        stack.callback(optuna.logging.set_verbosity, optuna.logging.get_verbosity())
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = stack.enter_context(contextlib.closing(SharedStorage(url, folder.name)))
        every = [Trials(storage, problem.data.name, candidate, tuning, shared) for candidate in candidates]
        for trials in every:
            on_epochs(trials.candidate.name, tuning.splits * problem.settings.epochs * len(trials.finished()))
        together = math.ceil(tuning.trials / _ROUNDS)
        waiting = False
        with storage.alive([trials.study for trials in every]):
            while not all(trials.done for trials in every):
                asked = [(trials, trial) for trials in every for trial in trials.ask(together)]
                if asked:
                    _train(problem, asked, tuning, train, on_epochs)
                    continue
                if not waiting:
                    on_wait()
                    waiting = True
                time.sleep(_LOOK)
        return [trials.tuned() for trials in every]


def _train(
    problem: Problem, asked: Sequence[tuple[Trials, Trial]], tuning: Tuning, train: Train, on_epochs: OnEpochs
) -> None:
    """Train the trials that were asked for on all splits, and store their scores."""
    selection, settings = problem.metrics.selection, problem.settings
    epochs = settings.epochs
    going = {f"{of.candidate.name}, trial {trial.number}": (of, trial) for of, trial in asked}
    scores: dict[str, list[float]] = {name: [] for name in going}
    seeds = tuple((TUNING_SPLIT + split) * settings.repeats for split in range(tuning.splits))
    # A pruner may end a trial after each split, so that splits train one after the other.
    for some in [(seed,) for seed in seeds] if tuning.pruner else [seeds]:
        named = [dataclasses.replace(of.candidate_of(trial), name=name) for name, (of, trial) in going.items()]
        works = divided(problem, named, some)
        for runs in train(works, lambda name, n: on_epochs(going[name][0].candidate.name, n)):
            for run in runs:
                of, trial = going[run.candidate]
                finished = run.status == FINISHED
                score = selection.sign * float(run.epochs[run.best_epoch][selection.key]) if finished else math.inf
                scores[run.candidate].append(score)
                of.report(trial, seeds.index(run.seed), score)
                on_epochs(of.candidate.name, epochs - len(run.epochs))
                if len(scores[run.candidate]) == len(seeds):
                    of.tell(trial, scores[run.candidate])
        if tuning.pruner:
            for name, (of, trial) in list(going.items()):
                left = len(seeds) - len(scores[name])
                if left and of.pruned(trial):
                    del going[name]
                    on_epochs(of.candidate.name, left * epochs)


# Trials in a storage that processes share.


class SharedStorage:
    """Optuna's storage, and this process's sign of life in it.

    Args:
        url: URL of a database, or path of a journal file.
        place: name of a study's folder, in which at most one process works at a time.
    """

    def __init__(self, url: str, place: str) -> None:
        self.url = url
        self.owner = f"{place}/{uuid.uuid4().hex}"
        # The last sign of each other process, and the time at which it was new.
        self._signs: dict[str, tuple[float, float]] = {}
        with self.errors():
            self.storage: Any = RDBStorage(url) if "://" in url else JournalStorage(JournalFileBackend(url))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the errors of the storage into a `StudyError`."""
        try:
            yield
        except (optuna.exceptions.OptunaError, SQLAlchemyError, OSError, ImportError, ValueError) as error:
            words = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise StudyError(
                f"--storage {self.url} cannot be used: {words}. Trials stored before are kept. Give the URL of a "
                "database that can be written (sqlite:///FILE, postgresql://...), or the path of a journal file."
            ) from error

    def close(self) -> None:
        """Close the connections to a database."""
        if isinstance(self.storage, RDBStorage):
            self.storage.remove_session()
            self.storage.engine.dispose()

    @contextlib.contextmanager
    def alive(self, studies: Sequence[optuna.Study]) -> Iterator[None]:
        """Write signs of life of this process into the attributes of these studies."""
        ended = threading.Event()

        def tell() -> None:
            while not ended.wait(_SIGN):
                # If the storage is gone, writing a trial raises the error.
                with contextlib.suppress(StudyError), self.errors():
                    for study in studies:
                        study.set_user_attr(self.owner, time.time())

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def abandoned(self, owner: str, signs: Mapping[str, float]) -> bool:
        """Tell whether the owner of a trial seems dead, by the signs of life of all processes."""
        if owner.partition("/")[0] == self.owner.partition("/")[0]:
            # At most one process works in a folder, and now it is this one.
            return owner != self.owner
        sign = signs.get(owner, 0.0)
        seen, since = self._signs.get(owner, (None, 0.0))
        if seen != sign:
            # By the clock of this process, because those of other machines may differ.
            self._signs[owner] = (sign, time.monotonic())
            return False
        return time.monotonic() - since > _SILENCE


class Trials:
    """A candidate's trials.

    Args:
        storage: the storage that holds the trials.
        name: beginning of the Optuna study's name; the candidate's name and a digest follow.
        candidate: the candidate that is tuned.
        tuning: number of trials and splits, sampler and pruner.
        identity: properties, besides the candidate, that processes must have in common to share the trials.
    """

    def __init__(
        self, storage: SharedStorage, name: str, candidate: Candidate, tuning: Tuning, identity: Mapping[str, Any]
    ) -> None:
        self.candidate, self.ranges = candidate, search_ranges(candidate)
        self._storage, self._tuning = storage, tuning
        content = json.dumps([identity, candidate.to_dict(), self.ranges], sort_keys=True)
        study_name = f"{name} {candidate.name} {hashlib.sha256(content.encode()).hexdigest()[:12]}"
        first = {}
        for path, (low, high) in self.ranges.items():
            own = number_at(candidate, path)
            # A number that the candidate leaves to a default begins at the low end.
            first[path] = low if own is None else min(max(own, low), high)
        sampler = tuning.sampler or (lambda seed: TPESampler(seed=seed))
        with storage.errors():
            self.study = optuna.create_study(
                storage=storage.storage,
                study_name=study_name,
                direction="minimize",
                load_if_exists=True,
                sampler=_Reproducible(study_name, first, sampler),
                pruner=tuning.pruner or optuna.pruners.NopPruner(),
            )

    def ask(self, count: int) -> list[Trial]:
        """Up to `count` trials to train: those of processes that died, then new ones, within the budget.

        New trials beside those of dead processes complete the round of `count` trials. The scores that are known when a
        trial's numbers are chosen are then the same as if no process had died.
        """
        trials = []
        storage = self._storage.storage
        with self._storage.errors():
            for of in self._abandoned()[:count]:
                # The owner may live after all, and end the trial now.
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    storage.set_trial_user_attr(of._trial_id, "owner", self._storage.owner)
                    trials.append(self._begun(of._trial_id))
            there = len(self._counted())
            new = min(count - len(trials), -there % count) if trials else count
            for _ in range(min(new, self._tuning.trials - there)):
                # `study.ask` would leave a moment in which the trial has no owner.
                ours = create_trial(state=TrialState.RUNNING, user_attrs={"owner": self._storage.owner})
                trial_id = storage.create_new_trial(self.study._study_id, ours)
                if trial_id not in [of._trial_id for of in self._counted()[: self._tuning.trials]]:
                    # Another process took the last trial at the same moment.
                    storage.set_trial_state_values(trial_id, TrialState.FAIL)
                    break
                trials.append(self._begun(trial_id))
        return trials

    def _begun(self, trial_id: int) -> Trial:
        trial = Trial(self.study, trial_id)
        for path, (low, high) in self.ranges.items():
            trial.suggest_float(path, low, high, log=low > 0)
        return trial

    def candidate_of(self, trial: Trial | FrozenTrial) -> Candidate:
        """The candidate with a trial's numbers."""
        return with_numbers(self.candidate, self.numbers_of(trial))

    def numbers_of(self, trial: Trial | FrozenTrial) -> dict[str, float]:
        """A trial's numbers, rounded to three digits."""
        return {
            path: min(max(float(f"{number:.3g}"), self.ranges[path][0]), self.ranges[path][1])
            for path, number in trial.params.items()
        }

    def report(self, trial: Trial, split: int, score: float) -> None:
        """Store the score of a trial on a split, infinite if it diverged, unless another process ended the trial."""
        with self._storage.errors(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            # `trial.report` would warn of a score that a dead process has stored already, and so would `trial` below.
            self._storage.storage.set_trial_intermediate_value(trial._trial_id, split, score)

    def pruned(self, trial: Trial) -> bool:
        """Tell whether the pruner ends the trial; if so, the trial is stored as pruned."""
        with self._storage.errors():
            if self.study.pruner.prune(self.study, self._storage.storage.get_trial(trial._trial_id)):
                self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
                return True
        return False

    def tell(self, trial: Trial, scores: Sequence[float]) -> None:
        """End a trial with its scores on all splits, unless another process has ended it."""
        with self._storage.errors():
            self.study.tell(trial, math.fsum(scores) / len(scores), skip_if_finished=True)

    def finished(self) -> list[FrozenTrial]:
        """The trials within the budget that have ended."""
        return [of for of in self._counted()[: self._tuning.trials] if of.state.is_finished()]

    @property
    def done(self) -> bool:
        """Tell whether all trials have ended."""
        return len(self.finished()) >= self._tuning.trials

    def tuned(self) -> tuple[Candidate, dict[str, Any]]:
        """The candidate with the numbers of its best trial, and a record of the tuning.

        The record has the searched `ranges` by path, the `trials`, and the index of the `chosen` trial, which is None
        if all diverged and the candidate is as it was given. A trial has its `numbers` by path and its `score`: the
        mean over splits, infinite if a run diverged, None if the trial was pruned.
        """
        finished = self.finished()
        scores = [of.value if of.state == TrialState.COMPLETE else None for of in finished]
        known = [(score, index) for index, score in enumerate(scores) if score is not None and math.isfinite(score)]
        _, chosen = min(known, default=(math.inf, None))
        trials = [{"numbers": self.numbers_of(of), "score": s} for of, s in zip(finished, scores, strict=True)]
        candidate = self.candidate if chosen is None else self.candidate_of(finished[chosen])
        return candidate, {"ranges": self.ranges, "trials": trials, "chosen": chosen}

    def _counted(self) -> list[FrozenTrial]:
        with self._storage.errors():
            return [of for of in self.study.get_trials(deepcopy=False) if of.state != TrialState.FAIL]

    def _abandoned(self) -> list[FrozenTrial]:
        running = [of for of in self._counted() if of.state == TrialState.RUNNING]
        signs = self.study.user_attrs if running else {}
        return [of for of in running if self._storage.abandoned(of.user_attrs["owner"], signs)]


class _Reproducible(BaseSampler):
    """Samples by a trial's number and the scores that are known, so that a trial that is begun again has equal numbers.

    Args:
        name: name of the Optuna study.
        first: numbers of the first trial.
        sampler: function of a seed that returns a sampler. Each number that is sampled alone has a sampler of its own,
            because a process that begins a trial again does not sample the numbers that are stored.
    """

    def __init__(self, name: str, first: Mapping[str, float], sampler: Callable[[int], BaseSampler]) -> None:
        self._name, self._first, self._sampler = name, first, sampler

    def _of(self, trial: FrozenTrial, path: str = "") -> BaseSampler:
        return self._sampler(zlib.crc32(f"{self._name} {trial.number} {path}".encode()))

    def before_trial(self, study: Any, trial: FrozenTrial) -> None:
        self._of(trial).before_trial(study, trial)

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, Any]:
        self._together = self._of(trial)
        return self._together.infer_relative_search_space(study, trial) if trial.number else {}

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return self._together.sample_relative(study, trial, search_space) if trial.number else {}

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        if trial.number == 0:
            return self._first[param_name]
        return self._of(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._of(trial).after_trial(study, trial, state, values)
