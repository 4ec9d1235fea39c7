"""How a study is made."""

from __future__ import annotations

from dataclasses import dataclass

from minimand.study._errors import StudyError, check_count


@dataclass(frozen=True)
class Settings:
    """How a study is made.

    Args:
        seeds: number of splits, each with its own initial weights and batch order; at least 2.
        epochs: epochs of each training; the epoch that is best on validation rows counts.
        batch_size: examples a step.
        corrupt_targets: fraction in [0, 1) of the training targets to corrupt.
        metric: key of the metric that the verdict is about, or None for the task's first.
        patience: epochs without a better one that end a training; None for no end.

    Raises:
        StudyError: a number is out of its range.

    Examples:
        >>> from minimand.study import Settings
        >>> Settings(seeds=20, epochs=30).batch_size
        32
    """

    seeds: int = 10
    epochs: int = 60
    batch_size: int = 32
    corrupt_targets: float = 0.0
    metric: str | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        check_count("--seeds", self.seeds, 2)
        check_count("--epochs", self.epochs)
        check_count("--batch-size", self.batch_size)
        if self.patience is not None:
            check_count("--patience", self.patience)
        fraction = self.corrupt_targets
        if not isinstance(fraction, (int, float)) or isinstance(fraction, bool) or not 0.0 <= fraction < 1.0:
            raise StudyError(f"--corrupt-targets must be in [0, 1). Received: {fraction!r}")
