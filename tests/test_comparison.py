"""Statistics of paired differences, and verdicts on runs with known results."""

import math

import numpy as np
import pytest
from scipy import stats

from kriterion.study.candidates import Candidate
from kriterion.study.comparison import Comparison
from kriterion.study.metrics import metrics_of
from kriterion.study.run import DIVERGED, FINISHED, Run
from kriterion.study.statistics import Difference, corrected_resampled_t, holm

SEEDS, OVERLAP = 10, 0.25
METRICS = metrics_of("regression")


def runs(name, random, shift, spread=0.1, diverged=0, seconds=1.0):
    """Test results of every metric: about 10, shifted."""
    result = []
    for seed in range(SEEDS):
        failed = seed < diverged
        value = math.nan if failed else 10.0 + shift + spread * random.normal()
        test = {metric.key: value for metric in METRICS}
        result.append(Run(name, seed, DIVERGED if failed else FINISHED, 0, test, [], seconds))
    return result


def compare(metric, **candidates):
    random = np.random.default_rng(0)
    everything = [run for name, kind in candidates.items() for run in runs(name, random, **kind)]
    named = tuple(Candidate(name) for name in candidates)
    return Comparison(named, everything, METRICS, METRICS[metric], OVERLAP), everything


def names(rows):
    return [row.candidate.name for row in rows]


def test_corrected_t_is_the_formula_and_the_plain_test_without_overlap(random):
    d = random.normal(0.3, 1.0, size=10)
    plain = stats.ttest_1samp(d, 0.0)
    uncorrected = corrected_resampled_t(d, 0.0)
    assert uncorrected.p_value == pytest.approx(plain.pvalue)
    assert (uncorrected.low, uncorrected.high) == pytest.approx(tuple(plain.confidence_interval()))
    corrected = corrected_resampled_t(d, 0.25)
    widening = math.sqrt((1 / 10 + 0.25) / (1 / 10))
    assert corrected.high - corrected.low == pytest.approx(widening * (uncorrected.high - uncorrected.low))
    assert corrected_resampled_t(np.zeros(5), 0.25).p_value == 1.0
    assert corrected_resampled_t(np.full(5, -0.5), 0.25) == Difference(-0.5, -0.5, -0.5, 0.0, 5)
    alone = corrected_resampled_t(np.array([1.0]), 0.25)
    assert (alone.mean, alone.pairs, math.isnan(alone.low), math.isnan(alone.p_value)) == (1.0, 1, True, True)
    nothing = corrected_resampled_t(np.array([]), 0.25)
    assert (math.isnan(nothing.mean), nothing.pairs) == (True, 0)
    two = corrected_resampled_t(np.array([1.0, 3.0]), 0.0)
    assert two.p_value == pytest.approx(stats.ttest_1samp([1.0, 3.0], 0.0).pvalue)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    adjusted = holm([0.02, math.nan, 0.2])
    assert adjusted[0] == pytest.approx(0.04)
    assert math.isnan(adjusted[1])


def test_differences_are_paired_and_p_values_holms():
    comparison, everything = compare(0, baseline={"shift": 0.0}, a={"shift": -0.1}, b={"shift": 0.2})
    values = {name: [run.test["mae"] for run in everything if run.candidate == name] for name in ("baseline", "a", "b")}
    expected = [corrected_resampled_t(np.subtract(values[name], values["baseline"]), OVERLAP) for name in ("a", "b")]
    for row, one, p_value in zip(comparison.rows[1:], expected, holm([one.p_value for one in expected]), strict=True):
        difference = row.differences["mae"]
        assert (difference.mean, difference.low, difference.high) == (one.mean, one.low, one.high)
        assert difference.p_value == p_value


@pytest.mark.parametrize(("metric", "expected"), [("mae", ["lower", "low"]), ("r2", ["high"])])
def test_better_is_lower_or_greater_as_the_metric_says_and_the_best_is_first(metric, expected):
    index = [m.key for m in METRICS].index(metric)
    shifts = {"baseline": 0.0, "low": -2.0, "same": 0.0, "lower": -3.0, "high": 2.0}
    comparison, _ = compare(index, **{name: {"shift": shift} for name, shift in shifts.items()})
    assert names(comparison.better) == expected
    assert comparison.winner.name == expected[0]
    assert comparison.verdict.startswith(f"{expected[0]} beats the baseline")


def test_nothing_is_better():
    comparison, _ = compare(0, baseline={"shift": 0.0}, a={"shift": 0.0}, b={"shift": 1.0})
    assert comparison.better == []
    assert comparison.winner.name == "baseline"
    assert comparison.verdict.startswith("Nothing beats the baseline on MAE: of 2 candidates")
    assert "closest is a" in comparison.verdict


def test_what_diverges_more_often_than_the_baseline_is_not_better():
    good = {"shift": -2.0}
    comparison, _ = compare(0, baseline={"shift": 0.0}, good=good, flaky={"shift": -3.0, "diverged": 2})
    assert names(comparison.better) == ["good"]
    assert "Diverged, and left out of the comparison: flaky (2 of 10)" in comparison.verdict
    assert [row.differences["mae"].pairs for row in comparison.rows] == [10, 10, 8]
    comparison, _ = compare(0, baseline={"shift": 0.0, "diverged": 2}, flaky={"shift": -3.0, "diverged": 2})
    assert names(comparison.better) == ["flaky"]


def test_cost_is_a_ratio():
    comparison, _ = compare(0, baseline={"shift": 0.0, "seconds": 2.0}, slow={"shift": 0.0, "seconds": 5.0})
    assert [row.cost for row in comparison.rows] == [1.0, 2.5]
