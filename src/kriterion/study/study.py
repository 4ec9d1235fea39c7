"""A study: candidates times seeds, trained, stored and compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kriterion.study.candidates import Candidate
from kriterion.study.data import Data
from kriterion.study.engine import FINISHED, Engine, Run
from kriterion.study.errors import StudyError
from kriterion.study.metrics import Metric, metrics_of
from kriterion.study.models import check_model, model_function
from kriterion.study.statistics import Difference, corrected_resampled_t, holm
from kriterion.study.storage import Storage


@dataclass(frozen=True)
class Settings:
    """How a study is made.

    Args:
        seeds: number of splits, each with its own initial weights and batch order; at least 2.
        epochs: epochs of each training; the epoch that is best on validation rows counts.
        batch_size: examples a step.
        corrupt_targets: fraction in [0, 1) of the training targets to corrupt.
        model: `module:function` that builds the network, or None for a small MLP.
        metric: key of the metric that the verdict is about, or None for the task's first.
    """

    seeds: int = 10
    epochs: int = 60
    batch_size: int = 32
    corrupt_targets: float = 0.0
    model: str | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        for name, minimum in (("seeds", 2), ("epochs", 1), ("batch_size", 1)):
            if getattr(self, name) < minimum:
                option = name.replace("_", "-")
                raise StudyError(f"--{option} must be at least {minimum}. Received: {getattr(self, name)}")
        if not 0.0 <= self.corrupt_targets < 1.0:
            raise StudyError(f"--corrupt-targets must be in [0, 1). Received: {self.corrupt_targets}")


@dataclass(frozen=True)
class Row:
    """One candidate's results."""

    candidate: Candidate
    means: dict[str, float]
    differences: dict[str, Difference]
    cost: float
    runs: int
    diverged: int


class Study:
    """Compare candidates on data: same splits, initial weights and batch orders for all.

    Args:
        data: from `load_data`.
        candidates: the first one is the baseline.
        settings: how many seeds, epochs and so on.
        folder: where runs are stored as they finish, and found again by the same study.

    Raises:
        StudyError: the model does not fit, the metric is unknown, or the folder holds a different study.
    """

    def __init__(self, data: Data, candidates: tuple[Candidate, ...], settings: Settings, folder: Path) -> None:
        self.data, self.candidates, self.settings = data, candidates, settings
        self.metrics = metrics_of(data.task)
        self.metric = self._metric(settings.metric)
        self._build_model = model_function(settings.model)
        fold = data.fold(0)
        check_model(self._build_model(fold.x_train.shape[1], data.outputs), fold.x_train, data.outputs)
        self.storage = Storage(folder, self._identity())
        self.runs: list[Run] = []

    def _identity(self) -> dict[str, Any]:
        return {
            "data": self.data.digest(),
            "name": self.data.name,
            "task": self.data.task,
            "backend": keras.backend.backend(),
            "epochs": self.settings.epochs,
            "batch_size": self.settings.batch_size,
            "corrupt_targets": self.settings.corrupt_targets,
            "model": self.settings.model or "mlp",
        }

    def _metric(self, key: str | None) -> Metric:
        if key is None:
            return self.metrics[0]
        for metric in self.metrics:
            if metric.key == key:
                return metric
        raise StudyError(f"--metric must be one of {', '.join(m.key for m in self.metrics)}. Received: {key!r}")

    def run(self, on_epoch: Callable[[str, int], None] = lambda candidate, epochs: None) -> None:
        """Train what is not stored yet. `on_epoch(candidate, n)` is told of epochs as they pass (n at a time)."""
        self.runs = []
        for candidate in self.candidates:
            engine = Engine(
                candidate,
                self.data,
                self._build_model,
                epochs=self.settings.epochs,
                batch_size=self.settings.batch_size,
                corrupt_targets=self.settings.corrupt_targets,
            )
            for seed in range(self.settings.seeds):
                run = self.storage.load(candidate.name, seed, candidate.to_dict())
                passed = 0 if run is None else self.settings.epochs
                if run is None:

                    def tell(name: str = candidate.name) -> None:
                        nonlocal passed
                        passed += 1
                        on_epoch(name, 1)

                    run = engine.run(seed, tell)
                    self.storage.save(run)
                    # A diverged run ends early.
                    on_epoch(candidate.name, self.settings.epochs - passed)
                else:
                    on_epoch(candidate.name, passed)
                self.runs.append(run)
        self.storage.write_results(self.runs)

    def table(self) -> list[Row]:
        """One row a candidate, the baseline first; p-values are Holm's over the candidates."""
        baseline = self._finished(self.candidates[0])
        ratio = self.data.fold(0).test_over_train
        rows = []
        for candidate in self.candidates:
            runs = self._finished(candidate)
            common = sorted(set(runs) & set(baseline))
            differences = {
                metric.key: corrected_resampled_t(
                    np.array([runs[s].test[metric.key] - baseline[s].test[metric.key] for s in common]), ratio
                )
                for metric in self.metrics
            }
            values = {m.key: [run.test[m.key] for run in runs.values()] for m in self.metrics}
            means = {key: float(np.mean(v)) if v else math.nan for key, v in values.items()}
            total = sum(run.candidate == candidate.name for run in self.runs)
            rows.append(Row(candidate, means, differences, self._seconds(candidate), total, total - len(runs)))
        adjusted = {m.key: holm([row.differences[m.key].p_value for row in rows[1:]]) for m in self.metrics}
        base_seconds = rows[0].cost
        result = []
        for index, row in enumerate(rows):
            differences = row.differences
            if index:
                differences = {
                    key: Difference(d.mean, d.low, d.high, adjusted[key][index - 1], d.pairs)
                    for key, d in differences.items()
                }
            result.append(Row(row.candidate, row.means, differences, row.cost / base_seconds, row.runs, row.diverged))
        return result

    def better(self, level: float = 0.05) -> list[Row]:
        """Candidates that beat the baseline on the metric, at this level after Holm's correction, best first."""
        sign = -1 if self.metric.greater_is_better else 1
        rows = [
            row
            for row in self.table()[1:]
            if row.differences[self.metric.key].p_value < level and sign * row.differences[self.metric.key].mean < 0
        ]
        return sorted(rows, key=lambda row: sign * row.means[self.metric.key])

    def verdict(self) -> str:
        """One or two sentences: what is better than the baseline, if anything is."""
        key, title = self.metric.key, self.metric.title
        better = self.better()
        rows = self.table()
        diverged = [f"{row.candidate.name} ({row.diverged} of {row.runs})" for row in rows if row.diverged]
        warning = f" Diverged, and left out of the comparison: {', '.join(diverged)}." if diverged else ""
        compared = len(rows) - 1
        if not better:
            return (
                f"Nothing beats the baseline on {title}: of {compared} candidates, none is better than it by more than "
                f"chance explains on {self.settings.seeds} splits.{self._closest(rows)}{warning}"
            )
        best = better[0]
        difference = best.differences[key]
        others = f" Also better: {', '.join(row.candidate.name for row in better[1:])}." if better[1:] else ""
        return (
            f"{best.candidate.name} beats the baseline on {title}: {best.means[key]:.4g} against "
            f"{rows[0].means[key]:.4g}, a difference of {difference.mean:+.3g} (95 % interval {difference.low:+.3g} to "
            f"{difference.high:+.3g}, p = {difference.p_value:.2g} after Holm's correction for {compared} candidates)."
            f"{others}{warning}"
        )

    def _closest(self, rows: list[Row]) -> str:
        sign = -1 if self.metric.greater_is_better else 1
        known = [r for r in rows[1:] if math.isfinite(r.differences[self.metric.key].p_value)]
        if not known:
            return ""
        best = min(known, key=lambda row: sign * row.differences[self.metric.key].mean)
        d = best.differences[self.metric.key]
        return (
            f" The closest is {best.candidate.name}: {d.mean:+.3g}, 95 % interval {d.low:+.3g} to {d.high:+.3g} by "
            f"itself, p = {d.p_value:.2g} after correction for all candidates."
        )

    def winner(self) -> Candidate:
        """The candidate to use: the best of those that beat the baseline, or the baseline."""
        better = self.better()
        return better[0].candidate if better else self.candidates[0]

    def _finished(self, candidate: Candidate) -> dict[int, Run]:
        return {run.seed: run for run in self.runs if run.candidate == candidate.name and run.status == FINISHED}

    def _seconds(self, candidate: Candidate) -> float:
        seconds = [run.seconds_per_epoch for run in self.runs if run.candidate == candidate.name]
        return float(np.median(seconds)) if seconds else math.nan
