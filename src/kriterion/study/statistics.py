"""Intervals for differences measured on overlapping splits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


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
