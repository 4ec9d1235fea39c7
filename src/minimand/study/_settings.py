"""The settings of a study, and the error that tells a user what to correct."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

    from minimand.study._metrics import Metric


class StudyError(ValueError):
    """A mistake in the input of a study, with what to correct; the command prints it and ends with exit code 2."""


def counted(number: int, noun: str) -> str:
    """The number and the noun, in the plural unless the number is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def check_count(option: str, value: Any, minimum: int = 1) -> int:
    """Return `value` if it is an integer of at least `minimum`, or raise a `StudyError`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise StudyError(f"{option} must be a whole number of at least {minimum}. Received: {value!r}")
    return value


@dataclass(frozen=True)
class Settings:
    """Number of splits, length of a training, and the metric of the verdict, as `Study` takes them.

    Args:
        seeds: number of splits, each with its own initial weights and batch order; at least 2.
        repeats: trainings on each split, with other initial weights and batch orders; their results are averaged.
        epochs: epochs of each training; a run is judged at the epoch that is best on the validation rows.
        batch_size: examples per step.
        corrupt_targets: fraction in [0, 1) of the training targets to corrupt.
        metric: key of the metric that the verdict is about, or a `Metric`; None for the first one of the task.
        select: key of the metric on validation rows that selects the epoch, or a `Metric`; None for one that changes
            smoothly: MAE or log loss.
        patience: a training ends after this many epochs without a better one; None to train all epochs.

    Raises:
        StudyError: a number is out of its range.
    """

    seeds: int = 10
    epochs: int = 60
    batch_size: int = 32
    corrupt_targets: float = 0.0
    metric: str | Metric | None = None
    select: str | Metric | None = None
    patience: int | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        check_count("--seeds", self.seeds, 2)
        check_count("--repeats", self.repeats)
        check_count("--epochs", self.epochs)
        check_count("--batch-size", self.batch_size)
        if self.patience is not None:
            check_count("--patience", self.patience)
        fraction = self.corrupt_targets
        if not isinstance(fraction, (int, float)) or isinstance(fraction, bool) or not 0.0 <= fraction < 1.0:
            raise StudyError(f"--corrupt-targets must be a number in [0, 1). Received: {fraction!r}")


@dataclass(frozen=True)
class Tuning:
    """An equal number of hyperparameter trials for each candidate.

    Pass it to `Study` to compare tuned candidates with a tuned baseline.

    Args:
        trials: trials of each candidate, the baseline included; the first trial is the candidate as it is given.
        splits: number of splits that score a trial, by their validation rows.
        storage: URL of a database (`sqlite:///FILE`, `postgresql://...`) or path of a journal file. Processes and
            machines share its trials; each needs a folder of its own. By default a database in the study's folder.
        sampler: function of a seed that returns an Optuna sampler; by default TPE.
        pruner: Optuna pruner that may end a trial after each split; by default none. `wilcoxon_pruner` suits.

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
            raise StudyError("--tune needs the package 'optuna'. Install it: pip install 'minimand[tune]'") from error
        check_count("--tune", self.trials)
        check_count("splits", self.splits)


def wilcoxon_pruner() -> optuna.pruners.BasePruner:
    """Optuna's pruner for scores on several splits.

    Use it for `Tuning(pruner=...)`. Optuna calls the pruner experimental; this function silences that warning.

    Returns:
        The pruner.

    Source: `optuna.pruners.WilcoxonPruner`.

    Examples:
        >>> from minimand.study import Tuning, wilcoxon_pruner
        >>> tuning = Tuning(trials=20, pruner=wilcoxon_pruner())
    """
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.pruners.WilcoxonPruner()
