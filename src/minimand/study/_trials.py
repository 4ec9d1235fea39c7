"""The trials of a candidate in Optuna's storage, which processes on several machines may share."""

from __future__ import annotations

import contextlib
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
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from minimand.study._candidates import Candidate
from minimand.study._errors import StudyError
from minimand.study._search import number_at, search_of, with_numbers
from minimand.study._tuning import Tuning

# Seconds between signs of life, and without one until others take over.
_SIGN, _SILENCE = 5.0, 60.0


class SharedStorage:
    """Optuna's storage, and this process's sign of life in it.

    Args:
        url: a database's URL, or the path of a journal file.
        place: what at most one process at a time works in: a study's folder, by a name of its own.
    """

    def __init__(self, url: str, place: str) -> None:
        self.url = url
        self.owner = f"{place}/{uuid.uuid4().hex}"
        # Of others: the sign that was seen last, and when it was new.
        self._signs: dict[str, tuple[float, float]] = {}
        with self.errors():
            if "://" in url:
                self.storage: Any = optuna.storages.RDBStorage(url)
            else:
                self.storage = optuna.storages.JournalStorage(JournalFileBackend(url))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """What goes wrong with the storage, as a StudyError."""
        try:
            yield
        except (optuna.exceptions.OptunaError, SQLAlchemyError, OSError, ImportError, ValueError) as error:
            words = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise StudyError(
                f"--storage {self.url} cannot be used: {words}. Trials stored before are kept. It must be the URL of a "
                "database that can be written (sqlite:///FILE, postgresql://...), or the path of a journal file."
            ) from error

    def close(self) -> None:
        """Close the connections to a database."""
        if isinstance(self.storage, optuna.storages.RDBStorage):
            self.storage.remove_session()
            self.storage.engine.dispose()

    @contextlib.contextmanager
    def alive(self, studies: Sequence[optuna.Study]) -> Iterator[None]:
        """Tell others, in these studies' attributes, that this process is at work."""
        ended = threading.Event()

        def tell() -> None:
            while not ended.wait(_SIGN):
                # A storage that is gone tells of itself where trials are written.
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
        """Whether a process has died, as far as can be told from the signs of life of all."""
        if owner == self.owner:
            return False
        if owner.partition("/")[0] == self.owner.partition("/")[0]:
            # Only one process at a time is there: now this one.
            return True
        sign = signs.get(owner, 0.0)
        seen, since = self._signs.get(owner, (None, 0.0))
        if seen != sign:
            # By this process's clock: other machines' may differ.
            self._signs[owner] = (sign, time.monotonic())
            return False
        return time.monotonic() - since > _SILENCE


class Trials:
    """A candidate's trials.

    Args:
        storage: where they are.
        name: of the Optuna study, to begin with: the candidate's and a digest follow.
        candidate: what is tuned.
        tuning: how.
        identity: what processes that share the trials have in common, besides the candidate.
    """

    def __init__(
        self, storage: SharedStorage, name: str, candidate: Candidate, tuning: Tuning, identity: Mapping[str, Any]
    ) -> None:
        self.candidate, self.ranges = candidate, search_of(candidate)
        self._storage, self._tuning = storage, tuning
        content = json.dumps([identity, candidate.to_dict(), self.ranges], sort_keys=True)
        self._name = f"{name} {candidate.name} {hashlib.sha256(content.encode()).hexdigest()[:12]}"
        with storage.errors():
            self.study = optuna.create_study(
                storage=storage.storage,
                study_name=self._name,
                direction="minimize",
                load_if_exists=True,
                sampler=_Reproducible(self._name, self.given, tuning.sampler or (lambda seed: TPESampler(seed=seed))),
                pruner=tuning.pruner or optuna.pruners.NopPruner(),
            )

    @property
    def given(self) -> dict[str, float]:
        """The candidate's own numbers, in their ranges; the lowest where it leaves one to the default."""
        numbers = {}
        for path, (low, high) in self.ranges.items():
            own = number_at(self.candidate, path)
            numbers[path] = low if own is None else min(max(own, low), high)
        return numbers

    def ask(self, count: int) -> list[Trial]:
        """Up to `count` trials to do: those of processes that died, then new ones, as many as the budget allows.

        With the former come new ones up to a multiple of `count` in all: what is known when a trial's numbers are
        chosen is then what would have been known, had no process died.
        """
        trials = []
        with self._storage.errors():
            for of in self._abandoned()[:count]:
                # Its owner may live after all, and end it now.
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self._storage.storage.set_trial_user_attr(of._trial_id, "owner", self._storage.owner)
                    trials.append(self._begun(of._trial_id))
            there = len(self._counted())
            new = min(count - len(trials), -there % count) if trials else count
            for _ in range(min(new, self._tuning.trials - there)):
                trial_id = self._created()
                if trial_id not in [of._trial_id for of in self._counted()[: self._tuning.trials]]:
                    # Another process took the last one at the same moment.
                    self._storage.storage.set_trial_state_values(trial_id, TrialState.FAIL)
                    break
                trials.append(self._begun(trial_id))
        return trials

    def _created(self) -> int:
        """The id of a new trial, this process's. (`study.ask` leaves a moment in which nobody knows whose it is.)"""
        storage = self._storage.storage
        ours = create_trial(state=TrialState.RUNNING, user_attrs={"owner": self._storage.owner})
        trial_id: int = storage.create_new_trial(storage.get_study_id_from_name(self._name), ours)
        return trial_id

    def _begun(self, trial_id: int) -> Trial:
        trial = Trial(self.study, trial_id)
        for path, (low, high) in self.ranges.items():
            trial.suggest_float(path, low, high, log=low > 0)
        return trial

    def candidate_of(self, trial: Trial | FrozenTrial) -> Candidate:
        """The candidate with a trial's numbers."""
        return with_numbers(self.candidate, self.numbers_of(trial))

    def numbers_of(self, trial: Trial | FrozenTrial) -> dict[str, float]:
        """A trial's numbers, to three digits: what anybody would write."""
        return {
            path: min(max(float(f"{number:.3g}"), self.ranges[path][0]), self.ranges[path][1])
            for path, number in trial.params.items()
        }

    def report(self, trial: Trial, split: int, score: float) -> None:
        """Tell the score of a trial on a split, infinite where it diverged, unless another process ended it."""
        with self._storage.errors(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            # Not by `trial.report`, which warns where a process that died had told it already; so below.
            self._storage.storage.set_trial_intermediate_value(trial._trial_id, split, score)

    def pruned(self, trial: Trial) -> bool:
        """Whether the pruner ends the trial, which it then does."""
        with self._storage.errors():
            if self.study.pruner.prune(self.study, self._storage.storage.get_trial(trial._trial_id)):
                self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
                return True
        return False

    def tell(self, trial: Trial, scores: Sequence[float]) -> None:
        """End a trial with its scores on all splits; if another process did so before, nothing happens."""
        with self._storage.errors():
            self.study.tell(trial, math.fsum(scores) / len(scores), skip_if_finished=True)

    def finished(self) -> list[FrozenTrial]:
        """Those within the budget that have ended."""
        return [of for of in self._counted()[: self._tuning.trials] if of.state.is_finished()]

    @property
    def done(self) -> bool:
        """Whether all trials have ended."""
        return len(self.finished()) >= self._tuning.trials

    def best(self) -> FrozenTrial | None:
        """The trial with the least mean score, or None if all have diverged."""
        known = [of for of in self.finished() if of.state == TrialState.COMPLETE and math.isfinite(of.value)]
        return min(known, key=lambda of: (of.value, of.number), default=None)

    def _counted(self) -> list[FrozenTrial]:
        with self._storage.errors():
            return [of for of in self.study.get_trials(deepcopy=False) if of.state != TrialState.FAIL]

    def _abandoned(self) -> list[FrozenTrial]:
        running = [of for of in self._counted() if of.state == TrialState.RUNNING]
        signs = self.study.user_attrs if running else {}
        return [of for of in running if self._storage.abandoned(of.user_attrs["owner"], signs)]


class _Reproducible(BaseSampler):
    """Samples by a trial's number and what is known by then, whichever process asks: begun again it is the same trial.

    Args:
        name: of the Optuna study.
        first: the numbers of the first trial.
        sampler: of a seed. There is one for each number that is sampled alone, since whoever begins a trial again
            does not sample those that are stored.
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
