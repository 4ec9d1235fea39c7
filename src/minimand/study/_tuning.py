"""Choosing hyperparameters: as many trials for each candidate, by validation rows of splits that judge nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimand.study._candidates import Candidate
from minimand.study._errors import StudyError, check_count
from minimand.study._problem import Problem
from minimand.study._run import FINISHED, Run
from minimand.study._training import OnEpochs, Train, divided

if TYPE_CHECKING:
    import optuna

    from minimand.study._trials import Trials

# Times that trials are asked for: those asked for together train together, and know nothing of each other.
_ROUNDS = 4
# The first of the splits' seeds: none that judges.
_SEED = 10**9
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Tuning:
    """How hyperparameters are chosen.

    Args:
        trials: for each candidate, the baseline among them; the first is the candidate as it is given.
        splits: on whose validation rows a trial is scored.
        storage: URL of a database (`sqlite:///FILE`, `postgresql://...`) or path of a journal file that processes and
            machines share, each with a folder of its own; by default a database in the study's folder.
        sampler: of a seed, an Optuna sampler; by default TPE.
        pruner: an Optuna pruner that ends trials between splits, whose scores it is told by their numbers; by default
            none does. `WilcoxonPruner` is made for that.

    Raises:
        StudyError: Optuna is not installed, or a number is below 1.

    Examples:
        >>> from minimand.study import Tuning
        >>> Tuning(20, storage="sqlite:///trials.db").splits
        5
    """

    trials: int
    splits: int = 5
    storage: str | None = None
    sampler: Callable[[int], optuna.samplers.BaseSampler] | None = None
    pruner: optuna.pruners.BasePruner | None = None

    def __post_init__(self) -> None:
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise StudyError("--tune needs the package 'optuna': pip install 'minimand[tune]'") from error
        check_count("--tune", self.trials)
        check_count("splits", self.splits)


def wilcoxon_pruner() -> optuna.pruners.BasePruner:
    """Optuna's pruner for scores on several splits, which it calls experimental.

    Returns:
        The pruner, for `Tuning(pruner=...)`.

    Source: `optuna.pruners.WilcoxonPruner`.

    Examples:
        >>> from minimand.study import Tuning, wilcoxon_pruner
        >>> tuning = Tuning(trials=20, pruner=wilcoxon_pruner())
    """
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.pruners.WilcoxonPruner()


@dataclass(frozen=True)
class Tuned:
    """A candidate with the numbers that were chosen for it, and what they were chosen from.

    Args:
        candidate: with its numbers.
        ranges: that were searched, by path.
        trials: each with `numbers` by path, and `score`: the mean over splits, infinite if one diverged, None if the
            trial was pruned.
        chosen: index of the one chosen; None if all diverged, and the candidate is as it was given.
    """

    candidate: Candidate
    ranges: dict[str, tuple[float, float]]
    trials: list[dict[str, Any]]
    chosen: int | None

    def to_dict(self) -> dict[str, Any]:
        """All but the candidate."""
        return {"ranges": self.ranges, "trials": self.trials, "chosen": self.chosen}


def tune(
    problem: Problem,
    candidates: Sequence[Candidate],
    tuning: Tuning,
    *,
    folder: Path,
    place: str,
    identity: Mapping[str, Any],
    train: Train,
    on_epochs: OnEpochs,
    on_wait: Callable[[], None],
) -> list[Tuned]:
    """The candidates with the best of their trials' numbers; goes on from what is stored.

    Args:
        problem: what is trained.
        candidates: to tune.
        tuning: how.
        folder: for the database, unless `tuning` names a storage.
        place: as in `SharedStorage`.
        identity: of the study: processes for which it is equal share trials.
        train: trains them.
        on_epochs: `on_epochs(candidate, n)` is told of n epochs as they pass.
        on_wait: called before waiting for trials of other processes.
    """
    from minimand.study._trials import SharedStorage, Trials

    shared = {**identity, "tuning": tuning.splits}
    url = tuning.storage or f"sqlite:///{folder / 'tuning.db'}"
    with _quiet_optuna(), contextlib.closing(SharedStorage(url, place)) as storage:
        every = [Trials(storage, problem.data.name, candidate, tuning, shared) for candidate in candidates]
        length = tuning.splits * problem.epochs
        for trials in every:
            on_epochs(trials.candidate.name, length * len(trials.finished()))
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
                time.sleep(_LOOK_SECONDS)
        return [_tuned(trials) for trials in every]


def _train(
    problem: Problem,
    asked: Sequence[tuple[Trials, Any]],
    tuning: Tuning,
    train: Train,
    on_epochs: OnEpochs,
) -> None:
    going = {f"{of.candidate.name}, trial {trial.number}": (of, trial) for of, trial in asked}
    names = {name: of.candidate.name for name, (of, _) in going.items()}
    scores: dict[str, list[float]] = {name: [] for name in going}
    seeds = tuple(range(_SEED, _SEED + tuning.splits))
    # What a pruner may end between splits is trained a split at a time.
    for some in [(seed,) for seed in seeds] if tuning.pruner else [seeds]:
        named = [dataclasses.replace(of.candidate_of(trial), name=name) for name, (of, trial) in going.items()]
        works = divided(problem, named, some)
        for runs in train(works, lambda name, n: on_epochs(names[name], n)):
            for run in runs:
                of, trial = going[run.candidate]
                scores[run.candidate].append(_score(run, problem.metric.key))
                of.report(trial, run.seed - _SEED, scores[run.candidate][-1])
                on_epochs(of.candidate.name, problem.epochs - len(run.epochs))
                if len(scores[run.candidate]) == len(seeds):
                    of.tell(trial, scores[run.candidate])
        if tuning.pruner:
            for name, (of, trial) in list(going.items()):
                left = len(seeds) - len(scores[name])
                if left and of.pruned(trial):
                    del going[name]
                    on_epochs(of.candidate.name, left * problem.epochs)


def _score(run: Run, metric: str) -> float:
    return float(run.epochs[run.best_epoch][metric]) if run.status == FINISHED else math.inf


def _tuned(trials: Trials) -> Tuned:
    finished, best = trials.finished(), trials.best()
    records = [
        {"numbers": trials.numbers_of(of), "score": of.value if of.state.name == "COMPLETE" else None}
        for of in finished
    ]
    candidate = trials.candidate if best is None else trials.candidate_of(best)
    return Tuned(candidate, trials.ranges, records, None if best is None else finished.index(best))


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
