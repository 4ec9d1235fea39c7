"""What the runs of a study say: paired differences to the baseline, and a verdict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from minimand.study._candidates import Candidate
from minimand.study._metrics import Metric
from minimand.study._run import FINISHED, Run

# Intervals for differences measured on overlapping splits.


@dataclass(frozen=True)
class Difference:
    """Mean paired difference to the baseline, its confidence interval, and its p-value (Holm's where adjusted).

    What cannot be known from so few or such equal differences is NaN.
    """

    mean: float
    low: float
    high: float
    p_value: float
    pairs: int

    @property
    def interval(self) -> str:
        """The confidence interval in words."""
        return "unknown" if math.isnan(self.low) else f"{self.low:+.3g} to {self.high:+.3g}"


def corrected_resampled_t(differences: np.ndarray, test_over_train: float, confidence: float = 0.95) -> Difference:
    """Student's t for repeated random splits, whose training sets overlap.

    t = mean / sqrt((1/k + n_test/n_train) s^2), with k - 1 degrees of freedom: the plain t-test takes the k
    differences for independent, and finds differences where there are none. Where all differences are one number, as
    those of accuracies on few rows are by chance, s is 0 and says nothing: then p is the sign test's, 2^(1 - k), and
    the interval is unknown.

    Args:
        differences: (k,) paired differences, one a split; k >= 2.
        test_over_train: n_test / n_train.
        confidence: level of the interval.

    Source: Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52 (2003), section 4.
    """
    differences = np.asarray(differences, dtype="float64")
    count = len(differences)
    if count < 2:
        return Difference(float(differences.mean()) if count else math.nan, math.nan, math.nan, math.nan, count)
    mean = float(differences.mean())
    # But for rounding.
    if np.ptp(differences) <= 1e-9 * np.abs(differences).max():
        return Difference(mean, math.nan, math.nan, 1.0 if mean == 0.0 else 2.0 ** (1 - count), count)
    error = math.sqrt((1 / count + test_over_train) * float(differences.var(ddof=1)))
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    return Difference(mean, mean - half, mean + half, p_value, count)


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p-values: rejecting those below a level makes any false rejection at most that likely.

    Missing values (NaN) stay missing and do not count as comparisons.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian J. of Statistics 6 (1979).
    """
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


# What the runs of a study say: paired differences to the baseline, and a verdict.


@dataclass(frozen=True)
class Row:
    """One candidate's results: means of the test metrics, differences to the baseline, and seconds over its seconds."""

    candidate: Candidate
    means: dict[str, float]
    differences: dict[str, Difference]
    cost: float
    runs: int
    diverged: int


class Comparison:
    """Compares candidates by their runs; the first one is the baseline.

    Args:
        candidates: in the order of the table.
        runs: of all candidates; those that diverged are counted and left out, and who has more of them than the
            baseline is not better.
        metrics: all that are shown.
        metric: the one of them that the verdict is about.
        test_over_train: rows of a test set over rows of a training set, for the overlap of the splits.
        level: of significance, after Holm's correction over the candidates.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        runs: Sequence[Run],
        metrics: Sequence[Metric],
        metric: Metric,
        test_over_train: float,
        level: float = 0.05,
    ) -> None:
        self.metric = metric
        self._sign = -1 if metric.greater_is_better else 1
        self.rows = _rows(candidates, runs, metrics, test_over_train)
        baseline, *others = self.rows
        better = [
            row
            for row in others
            # What diverges more often is no better, however good its other runs are.
            if self._difference(row).p_value < level and self._worse_by(row) < 0 and row.diverged <= baseline.diverged
        ]
        self.better = sorted(better, key=self._worse_by)
        self.winner = self.better[0].candidate if better else baseline.candidate
        self.verdict = self._verdict()

    def _difference(self, row: Row) -> Difference:
        return row.differences[self.metric.key]

    def _worse_by(self, row: Row) -> float:
        """How much worse than the baseline; negative where better."""
        return self._sign * self._difference(row).mean

    def _verdict(self) -> str:
        """One or two sentences: what is better than the baseline, if anything is."""
        key, title = self.metric.key, self.metric.title
        baseline, *others = self.rows
        diverged = [f"{row.candidate.name} ({row.diverged} of {row.runs})" for row in self.rows if row.diverged]
        warning = f" Diverged, and left out of the comparison: {', '.join(diverged)}." if diverged else ""
        if baseline.diverged == baseline.runs:
            finished = [row.candidate.name for row in others if row.diverged < row.runs]
            return f"Nothing can be compared on {title}: the baseline diverged on all {baseline.runs} splits." + (
                f" Others finished some: {', '.join(finished)}." if finished else ""
            )
        if not self.better:
            return (
                f"Nothing beats the baseline on {title}: of {len(others)} candidates, none is better than it by more "
                f"than chance explains on {baseline.runs} splits.{self._closest(others)}{warning}"
            )
        best, *rest = self.better
        d = self._difference(best)
        also = f" Also better: {', '.join(row.candidate.name for row in rest)}." if rest else ""
        return (
            f"{best.candidate.name} beats the baseline on {title}: {best.means[key]:.4g} against "
            f"{baseline.means[key]:.4g}, a difference of {d.mean:+.3g} (95 % interval {d.interval}, "
            f"p = {d.p_value:.2g} after Holm's correction for {len(others)} candidates).{also}{warning}"
        )

    def _closest(self, others: Sequence[Row]) -> str:
        known = [row for row in others if math.isfinite(self._difference(row).p_value)]
        if not known:
            return ""
        best = min(known, key=self._worse_by)
        d = self._difference(best)
        return (
            f" The closest is {best.candidate.name}: {d.mean:+.3g}, 95 % interval {d.interval} by "
            f"itself, p = {d.p_value:.2g} after correction for all candidates."
        )


def _rows(
    candidates: Sequence[Candidate], runs: Sequence[Run], metrics: Sequence[Metric], test_over_train: float
) -> list[Row]:
    """One row a candidate, the baseline first; p-values are Holm's over the candidates."""
    baseline = _finished(runs, candidates[0])
    base_seconds = _seconds(runs, candidates[0])
    rows = []
    for candidate in candidates:
        finished = _finished(runs, candidate)
        common = sorted(set(finished) & set(baseline))
        means, differences = {}, {}
        for key in (metric.key for metric in metrics):
            values = [run.test[key] for run in finished.values()]
            means[key] = float(np.mean(values)) if values else math.nan
            paired = np.array([finished[s].test[key] - baseline[s].test[key] for s in common])
            differences[key] = corrected_resampled_t(paired, test_over_train)
        total = sum(run.candidate == candidate.name for run in runs)
        cost = _seconds(runs, candidate) / base_seconds
        rows.append(Row(candidate, means, differences, cost, total, total - len(finished)))
    for key in (metric.key for metric in metrics):
        adjusted = holm([row.differences[key].p_value for row in rows[1:]])
        for row, p_value in zip(rows[1:], adjusted, strict=True):
            row.differences[key] = dataclasses.replace(row.differences[key], p_value=p_value)
    return rows


def _finished(runs: Sequence[Run], candidate: Candidate) -> dict[int, Run]:
    return {run.seed: run for run in runs if run.candidate == candidate.name and run.status == FINISHED}


def _seconds(runs: Sequence[Run], candidate: Candidate) -> float:
    return float(np.median([run.seconds_per_epoch for run in runs if run.candidate == candidate.name]))
