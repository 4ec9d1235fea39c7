"""The comparison of a study's runs: paired differences to the baseline, and a verdict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from minimand.study._candidates import Candidate
from minimand.study._metrics import Metric
from minimand.study._training import FINISHED, Run

# The level of significance, after Holm's correction; intervals have 1 minus it.
_LEVEL = 0.05

# Statistics of differences on overlapping splits.


@dataclass(frozen=True)
class Difference:
    """Mean paired difference to the baseline, its confidence interval, and its p-value.

    The p-value of a `Row` is after Holm's correction. A value that few or equal differences leave unknown is NaN.
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


def corrected_resampled_t(differences: np.ndarray, test_over_train: float) -> Difference:
    """Student's t-test for repeated random splits, whose training sets overlap.

    t = mean / sqrt((1/k + n_test/n_train) s^2), with k - 1 degrees of freedom

    The plain t-test assumes that the k differences are independent, and finds differences that do not exist. If all
    differences are equal, as those of accuracies on few rows can be by chance, s is 0 and tells nothing. Then p is the
    sign test's, 2^(1 - k), and the interval is unknown.

    Args:
        differences: (k,) paired differences, one for each split; k >= 2.
        test_over_train: n_test / n_train.

    Source: Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52 (2003), section 4.
    """
    differences = np.asarray(differences, dtype="float64")
    count = len(differences)
    mean = float(differences.mean()) if count else math.nan
    if count < 2:
        return Difference(mean, math.nan, math.nan, math.nan, count)
    # Equal up to rounding.
    if np.ptp(differences) <= 1e-9 * np.abs(differences).max():
        return Difference(mean, math.nan, math.nan, 1.0 if mean == 0.0 else 2.0 ** (1 - count), count)
    error = math.sqrt((1 / count + test_over_train) * float(differences.var(ddof=1)))
    half = float(stats.t.ppf(1 - _LEVEL / 2, count - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    return Difference(mean, mean - half, mean + half, p_value, count)


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p-values: rejecting all below a level makes any false rejection at most that likely.

    Missing values (NaN) stay missing and do not count as comparisons.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian J. of Statistics 6 (1979).
    """
    values = np.asarray(p_values, dtype="float64")
    # Missing values come last.
    order = np.argsort(values)
    factors = np.isfinite(values).sum() - np.arange(len(values))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return adjusted.tolist()


# The comparison.


def counted(number: int, noun: str) -> str:
    """The number and the noun, in the plural unless the number is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True)
class Row:
    """A candidate's mean test metrics, differences to the baseline, time relative to the baseline's, and runs."""

    candidate: Candidate
    means: dict[str, float]
    differences: dict[str, Difference]
    cost: float
    runs: int
    diverged: int


class Comparison:
    """Compares candidates by their runs; the first candidate is the baseline.

    Args:
        candidates: in the order of the table.
        runs: runs of all candidates. Diverged runs are counted and left out. A candidate with more of them than the
            baseline is not better.
        metric: the metric that the verdict is about.
        test_over_train: rows of a test set over rows of a training set, for the overlap of the splits.
    """

    def __init__(
        self, candidates: Sequence[Candidate], runs: Sequence[Run], metric: Metric, test_over_train: float
    ) -> None:
        self.metric = metric
        self.rows = _rows(candidates, runs, test_over_train)
        baseline, *others = self.rows
        better = [
            row
            for row in others
            if self._difference(row).p_value < _LEVEL and self._loss(row) < 0 and row.diverged <= baseline.diverged
        ]
        self.better = sorted(better, key=self._loss)
        self.winner = self.better[0].candidate if better else baseline.candidate
        self.verdict = self._verdict()

    def _difference(self, row: Row) -> Difference:
        return row.differences[self.metric.key]

    def _loss(self, row: Row) -> float:
        """The mean difference to the baseline, with the sign that makes it negative for a better candidate."""
        return self._difference(row).mean * (-1 if self.metric.greater_is_better else 1)

    def _verdict(self) -> str:
        """A few sentences: the candidates that beat the baseline, or the closest one."""
        key, title = self.metric.key, self.metric.title
        baseline, *others = self.rows
        if baseline.diverged == baseline.runs:
            finished = [row.candidate.name for row in others if row.diverged < row.runs]
            splits = f"all {baseline.runs} splits" if baseline.runs > 1 else "the only split"
            return f"The baseline diverged on {splits}, so nothing can be compared on {title}." + (
                f" These candidates finished some splits: {', '.join(finished)}." if finished else ""
            )

        def difference(row: Row) -> str:
            d = self._difference(row)
            several = f" after Holm's correction for {len(others)} candidates" if len(others) > 1 else ""
            return (
                f"a difference of {d.mean:+.3g} (its own 95 % interval is {d.interval}, p = {d.p_value:.2g}{several})."
            )

        if self.better:
            best, *rest = self.better
            verdict = (
                f"{best.candidate.name} beats the baseline on {title}: {best.means[key]:.4g} against "
                f"{baseline.means[key]:.4g}, {difference(best)}"
            )
            if rest:
                verdict += f" These are better too: {', '.join(row.candidate.name for row in rest)}."
        else:
            none = f"None of {len(others)} candidates is" if len(others) > 1 else "The candidate is not"
            verdict = (
                f"Nothing beats the baseline on {title}. {none} better by more than chance explains on "
                f"{counted(baseline.runs, 'split')}."
            )
            known = [row for row in others if math.isfinite(self._difference(row).p_value)]
            if known:
                closest = min(known, key=self._loss)
                verdict += f" The closest is {closest.candidate.name} with {difference(closest)}"
        diverged = [f"{row.candidate.name} ({row.diverged} of {row.runs})" for row in self.rows if row.diverged]
        if diverged:
            verdict += f" Diverged runs are left out of the comparison: {', '.join(diverged)}."
        return verdict


def _rows(candidates: Sequence[Candidate], runs: Sequence[Run], test_over_train: float) -> list[Row]:
    """A row for each candidate, the baseline first; p-values are after Holm's correction."""
    rows: list[Row] = []
    for candidate in candidates:
        own = [run for run in runs if run.candidate == candidate.name]
        seconds = float(np.median([run.seconds_per_epoch for run in own]))
        finished = {run.seed: run for run in own if run.status == FINISHED}
        if not rows:
            baseline, baseline_seconds = finished, seconds
        common = sorted(finished.keys() & baseline.keys())
        means, differences = {}, {}
        for key in runs[0].test:
            means[key] = float(np.mean([run.test[key] for run in finished.values()])) if finished else math.nan
            paired = np.array([finished[seed].test[key] - baseline[seed].test[key] for seed in common])
            differences[key] = corrected_resampled_t(paired, test_over_train)
        diverged = len(own) - len(finished)
        rows.append(Row(candidate, means, differences, seconds / baseline_seconds, len(own), diverged))
    for key in runs[0].test:
        adjusted = holm([row.differences[key].p_value for row in rows[1:]])
        for row, p_value in zip(rows[1:], adjusted, strict=True):
            row.differences[key] = dataclasses.replace(row.differences[key], p_value=p_value)
    return rows
