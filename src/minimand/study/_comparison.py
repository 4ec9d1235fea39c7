"""The comparison of a study's runs: paired differences to the baseline, and a verdict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from minimand.study._candidates import Candidate
from minimand.study._metrics import Measure
from minimand.study._settings import counted
from minimand.study._training import FINISHED, Run

# The level of significance, after Holm's correction; intervals have 1 minus it.
_LEVEL = 0.05

# Statistics of differences, on overlapping splits or on a given test set.


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


def mean_of_splits(differences: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """One difference for each split: the mean over the trainings on it.

    Trainings on one split share all their rows, so only the splits count as repetitions.

    Args:
        differences: (n,) paired differences, one for each training.
        splits: (n,) the split of each.
    """
    _, split = np.unique(splits, return_inverse=True)
    return np.bincount(split, np.asarray(differences, dtype="float64")) / np.bincount(split)


def corrected_resampled_t(differences: np.ndarray, test_over_train: float) -> Difference:
    """Student's t-test for repeated splits, whose training sets overlap.

    t = mean / sqrt((1/k + n_test/n_train) s^2), with k - 1 degrees of freedom

    The plain t-test assumes that the k differences are independent, and finds differences that do not exist. If all
    differences are equal, as those of accuracies on few rows can be by chance, s is 0 and tells nothing. Then p is the
    sign test's, 2^(1 - k), and the interval is unknown.

    The same formula serves random splits of rows or of whole groups, the k folds of a cross-validation, for which
    n_test/n_train is 1/(k - 1), and windows of time that expand. Differences on windows and on groups have unequal
    variances, which make a t-test at 5 % err less often (Bakirov and Szekely).

    Args:
        differences: (k,) paired differences, one for each split (`mean_of_splits`); k >= 2.
        test_over_train: n_test / n_train, where n_train counts all rows that a run learns from; the mean over splits.

    Source: Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52 (2003), section 4;
    Bouckaert and Frank, "Evaluating the replicability of significance tests for comparing learning algorithms", PAKDD
    (2004); Bakirov and Szekely, "Student's t-test for Gaussian scale mixtures", J. of Mathematical Sciences 139 (2006).
    """
    differences = np.asarray(differences, dtype="float64")
    count = len(differences)
    mean = float(differences.mean()) if count else math.nan
    if count < 2:
        return Difference(mean, math.nan, math.nan, math.nan, count)
    # Equal up to rounding.
    if np.ptp(differences) <= 1e-9 * np.abs(differences).max():
        return _of_equal(mean, count)
    error = math.sqrt((1 / count + test_over_train) * float(differences.var(ddof=1)))
    half = float(stats.t.ppf(1 - _LEVEL / 2, count - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    return Difference(mean, mean - half, mean + half, p_value, count)


def _of_equal(mean: float, count: int) -> Difference:
    """The sign test of equal differences, whose interval is unknown."""
    return Difference(mean, math.nan, math.nan, 1.0 if mean == 0.0 else 2.0 ** (1 - count), count)


def crossed_t(of_seeds: np.ndarray, resampled: np.ndarray, units: int) -> Difference:
    """Student's t-test for a given test set, whose rows are a sample as the seeds are.

    interval = mean +- sqrt(max(t_S^2 V_S + t_R^2 (V_R - V_SR), t_R^2 V_R))

    V_S, V_R and V_SR are the `crossed_variances` of seeds, of rows, and of both together. t_S and t_R are Student's
    quantiles with S - 1 degrees of freedom and, for B resamples, 1 / (1 / (R - 1) + 1 / (B - 1)). For many rows this is
    the plain t-test over seeds. For many seeds it is the bootstrap's interval over rows, of which it is never narrower.

    Each variance has its own quantile, which keeps the level for any ratio of the variances (Banerjee). One quantile
    with Welch and Satterthwaite's degrees of freedom does not: two seeds that are close by chance would count as many.

    If all differences are equal on all resamples, p is the sign test's, 2^(1 - S), and the interval is unknown. With
    one seed everything but the mean is unknown.

    Args:
        of_seeds: (S,) paired differences of the metric on the test set, one for each seed; S >= 2.
        resampled: (B, S) the same on resampled test sets (`Splits.resampled_test`). Resamples on which the metric is
            not finite, as the area under a curve of one class, are left out.
        units: number R of test rows, or of groups if whole groups were drawn.

    Source: Banerjee, "Approximate confidence interval for linear functions of means of k populations when the
    population variances are not equal", Sankhya 22 (1960).
    """
    of_seeds, resampled = np.asarray(of_seeds, dtype="float64"), np.asarray(resampled, dtype="float64")
    seeds = len(of_seeds)
    mean = float(of_seeds.mean()) if seeds else math.nan
    resampled = resampled[np.isfinite(resampled).all(axis=1)]
    if min(seeds, units, len(resampled)) < 2:
        return Difference(mean, math.nan, math.nan, math.nan, seeds)
    v_seeds, v_rows, v_both = crossed_variances(of_seeds, resampled, units)
    # Equal up to rounding.
    if v_seeds + v_rows <= (1e-9 * np.abs(of_seeds).max()) ** 2:
        return _of_equal(mean, seeds)
    freedom = 1 / (1 / (units - 1) + 1 / (len(resampled) - 1))

    def half(level: float) -> float:
        t_seeds, t_rows = special.stdtrit([seeds - 1, freedom], level / 2)
        return math.sqrt(t_rows**2 * v_rows + max(t_seeds**2 * v_seeds - t_rows**2 * v_both, 0.0))

    # The level whose interval ends at zero, by its logarithm.
    smallest = -60.0
    exponent = smallest
    if half(math.exp(smallest)) > abs(mean):
        exponent = optimize.bisect(lambda e: half(math.exp(e)) - abs(mean), smallest, 0.0)
    return Difference(mean, mean - half(_LEVEL), mean + half(_LEVEL), math.exp(exponent), seeds)


def crossed_variances(of_seeds: np.ndarray, resampled: np.ndarray, units: int) -> tuple[float, float, float]:
    """Variances of the mean difference by seeds, by rows, and by both together, which the first two include.

    V_S = s^2 / S, where s^2 is the variance of the differences of seeds
    V_R = R / (R - 1) times the variance over resamples of the mean over seeds
    V_SR = R / (R - 1) times the mean variance over resamples of a seed's deviation from that mean, over S - 1

    The variance of the mean is V_S + V_R - V_SR. If the metric is a mean of rows, all three are unbiased.

    Args:
        of_seeds, resampled, units: see `crossed_t`.

    Source: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2007), for the three variances; Efron and
    Tibshirani, "An introduction to the bootstrap" (1993), for those of rows.
    """
    means = resampled.mean(axis=1, keepdims=True)
    several, seeds = units / (units - 1), len(of_seeds)
    of_both = (resampled - means).var(axis=0, ddof=1).mean() / (seeds - 1)
    return float(of_seeds.var(ddof=1)) / seeds, several * float(means.var(ddof=1)), several * float(of_both)


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
        test_units: number of rows or groups of a given test set, which all runs share; None for splits.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        runs: Sequence[Run],
        metric: Measure,
        test_over_train: float,
        test_units: int | None = None,
    ) -> None:
        self.metric, self._test_units = metric, test_units
        self.rows = self._rows(candidates, runs, test_over_train)
        baseline, *others = self.rows
        better = [
            row
            for row in others
            if self._difference(row).p_value < _LEVEL and self._loss(row) < 0 and row.diverged <= baseline.diverged
        ]
        self.better = sorted(better, key=self._loss)
        self.winner = self.better[0].candidate if better else baseline.candidate
        self.verdict = self._verdict()

    def _rows(self, candidates: Sequence[Candidate], runs: Sequence[Run], test_over_train: float) -> list[Row]:
        """A row for each candidate, the baseline first; p-values are after Holm's correction."""
        rows: list[Row] = []
        # Runs that were stored for another metric of the verdict may have one more.
        keys = [key for key in runs[0].test if all(key in run.test for run in runs)]
        for candidate in candidates:
            own = [run for run in runs if run.candidate == candidate.name]
            seconds = float(np.median([run.seconds_per_epoch for run in own]))
            finished = {run.seed: run for run in own if run.status == FINISHED}
            if not rows:
                baseline, baseline_seconds = finished, seconds
            pairs = [(finished[seed], baseline[seed]) for seed in sorted(finished.keys() & baseline.keys())]
            means, differences = {}, {}
            for key in keys:
                means[key] = float(np.mean([run.test[key] for run in finished.values()])) if finished else math.nan
                differences[key] = self._compared(key, pairs, test_over_train)
            diverged = len(own) - len(finished)
            rows.append(Row(candidate, means, differences, seconds / baseline_seconds, len(own), diverged))
        for key in keys:
            adjusted = holm([row.differences[key].p_value for row in rows[1:]])
            for row, p_value in zip(rows[1:], adjusted, strict=True):
                row.differences[key] = dataclasses.replace(row.differences[key], p_value=p_value)
        return rows

    def _compared(self, key: str, pairs: Sequence[tuple[Run, Run]], test_over_train: float) -> Difference:
        """The difference of a metric between runs and the baseline's runs of the same seeds."""
        every = np.array([run.test[key] - other.test[key] for run, other in pairs])
        if self._test_units is not None:
            if key != self.metric.key or not pairs:
                mean = float(every.mean()) if len(every) else math.nan
                return Difference(mean, math.nan, math.nan, math.nan, len(every))
            resampled = np.array([np.subtract(run.resampled, other.resampled) for run, other in pairs]).T
            return crossed_t(every, resampled, self._test_units)
        splits = np.array([run.split for run, _ in pairs])
        return corrected_resampled_t(mean_of_splits(every, splits), test_over_train)

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

        if not others:
            verdict = "Only the baseline was trained."
        elif self.better:
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
