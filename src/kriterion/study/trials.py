"""The trials of a candidate in Optuna's storage, which processes on several machines may share."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from kriterion.study.candidates import Candidate
from kriterion.study.errors import StudyError
from kriterion.study.search import number_at, search_of, with_numbers
from kriterion.study.tuning import Tuning

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

    def abandoned(self, owner: str, sign: float) -> bool:
        """Whether a process that gave this sign of life has died, as far as can be told."""
        if owner == self.owner:
            return False
        if owner.partition("/")[0] == self.owner.partition("/")[0]:
            # Only one process at a time is there: now this one.
            return True
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
        """Up to `count` trials to do: those of processes that died, then new ones, as many as the budget allows."""
        with self._storage.errors():
            trials = []
            for of in self._abandoned()[:count]:
                # Its owner may live after all, and end it now.
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    trials.append(self._begun(Trial(self.study, of._trial_id)))
            while len(trials) < count and len(self._counted()) < self._tuning.trials:
                trial = self.study.ask()
                if [of.number for of in self._counted()].index(trial.number) >= self._tuning.trials:
                    # Another process asked for the last one at the same moment.
                    self.study.tell(trial, state=TrialState.FAIL)
                    break
                trials.append(self._begun(trial))
        return trials

    def _begun(self, trial: Trial) -> Trial:
        trial.set_user_attr("owner", self._storage.owner)
        # By the trial's number and what is known by then, whichever process asks: begun again it is the same trial.
        seed = zlib.crc32(f"{self._name} {trial.number}".encode())
        sampler = self._tuning.sampler(seed) if self._tuning.sampler else optuna.samplers.TPESampler(seed=seed)
        self.study.sampler = _Given(self.given) if trial.number == 0 else sampler
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
            trial.report(score, step=split)

    def pruned(self, trial: Trial) -> bool:
        """Whether the pruner ends the trial, which it then does."""
        with self._storage.errors():
            if trial.should_prune():
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
        return [of for of in running if self._is_abandoned(of, signs)]

    def _is_abandoned(self, trial: FrozenTrial, signs: Mapping[str, float]) -> bool:
        owner = trial.user_attrs.get("owner")
        if owner is None:
            # Its process died before it could sign, unless it is about to. (Should clocks differ, it is done twice.)
            return bool((datetime.datetime.now() - trial.datetime_start).total_seconds() > _SIGN)
        return self._storage.abandoned(owner, signs.get(owner, 0.0))


class _Given(optuna.samplers.BaseSampler):
    """These numbers."""

    def __init__(self, numbers: Mapping[str, float]) -> None:
        self._numbers = numbers

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> float:
        return self._numbers[param_name]
