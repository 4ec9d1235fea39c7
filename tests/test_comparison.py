"""Statistics of paired differences, and verdicts on runs with known results."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from minimand.study._candidates import Candidate
from minimand.study._comparison import Comparison, corrected_resampled_t, counted, holm
from minimand.study._metrics import metrics_of
from minimand.study._training import DIVERGED, FINISHED, Run

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
    return Comparison(named, everything, METRICS[metric], OVERLAP), everything


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
    alone = corrected_resampled_t(np.array([1.0]), 0.25)
    assert (alone.mean, alone.pairs, math.isnan(alone.low), math.isnan(alone.p_value)) == (1.0, 1, True, True)
    nothing = corrected_resampled_t(np.array([]), 0.25)
    assert (math.isnan(nothing.mean), nothing.pairs) == (True, 0)
    two = corrected_resampled_t(np.array([1.0, 3.0]), 0.0)
    assert two.p_value == pytest.approx(stats.ttest_1samp([1.0, 3.0], 0.0).pvalue)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_equal_differences_are_judged_by_their_signs(count):
    """A spread of none is no certainty: accuracies on 30 rows are often equally far apart."""
    sign_test = stats.binomtest(count, count).pvalue
    # 30 / 30 - 29 / 30 and 12 / 30 - 11 / 30 are not the same number.
    right = np.array([30, 12] * count)[:count]
    of_rows = right / 30 - (right - 1) / 30
    assert of_rows[0] != of_rows[1]
    for differences in (np.full(count, -0.5), of_rows):
        found = corrected_resampled_t(differences, 0.25)
        assert (found.mean, found.p_value) == pytest.approx((differences[0], sign_test))
        assert math.isnan(found.low)
        assert found.interval == "unknown"
    assert corrected_resampled_t(np.zeros(count), 0.25).p_value == 1.0


def correlated(random, count, rho, shape):
    """Normal numbers of variance 1, `count` of which in a row have correlation rho."""
    common = random.normal(size=(*shape, 1))
    return math.sqrt(rho) * common + math.sqrt(1 - rho) * random.normal(size=(*shape, count))


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_corrected_test_is_exact_for_splits_that_share_rows(count, random):
    """Where differences correlate by n_test / (n_test + n_train), as Nadeau and Bengio assume; the plain test is not."""
    studies, level = 4000, 0.05
    differences = correlated(random, count, 0.2, (studies,))
    found = [corrected_resampled_t(row, 0.25) for row in differences]
    error = math.sqrt(level * (1 - level) / studies)
    assert np.mean([each.p_value < level for each in found]) == pytest.approx(level, abs=4 * error)
    assert np.mean([each.low <= 0.0 <= each.high for each in found]) == pytest.approx(1 - level, abs=4 * error)
    plain = np.mean(stats.ttest_1samp(differences, 0.0, axis=1).pvalue < level)
    assert plain > level + 10 * error * (count > 2)


def found_something(scores, metric=0):
    """Whether a study says that one beats the baseline; scores are (candidates, seeds)."""
    names = ["baseline", *(f"other-{index}" for index in range(1, len(scores)))]
    everything = [
        Run(name, seed, FINISHED, 0, {METRICS[metric].key: score}, [], 1.0)
        for name, row in zip(names, scores, strict=True)
        for seed, score in enumerate(row)
    ]
    candidates = tuple(map(Candidate, names))
    return Comparison(candidates, everything, METRICS[metric], OVERLAP).better != []


@pytest.mark.parametrize("others", [1, 4])
@pytest.mark.parametrize("seeds", [2, 10])
def test_studies_in_which_nothing_helps_seldom_say_otherwise(others, seeds, random):
    """At most at the level of the test, whatever the number of candidates; half of that, as half of what differs is worse.

    Splits share rows, so that all differences of a candidate correlate.
    """
    studies, level = 1000, 0.05
    scores = correlated(random, seeds, 0.2, (studies, 1 + others))
    wrong = np.mean([found_something(each) for each in scores])
    assert wrong <= level / 2 + 4 * math.sqrt(level / 2 / studies)
    shifted = scores + np.where(np.arange(1 + others) == others, -100.0, 0.0)[:, None]
    assert np.mean([found_something(each) for each in shifted]) > 0.4


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_accuracies_on_few_rows_are_not_taken_for_more_than_they_are(seeds, random):
    """On 30 test rows two or three differences are often equal, which the formula alone takes for certainty."""
    studies, level = 1000, 0.05
    scores = -random.binomial(30, 0.95, size=(studies, 3, seeds)) / 30
    wrong = np.mean([found_something(each) for each in scores])
    assert wrong <= level + 4 * math.sqrt(level / studies)


def test_a_verdict_without_an_interval_says_so():
    comparison, _ = compare(0, baseline={"shift": 0.0, "spread": 0.0}, same={"shift": -1.0, "spread": 0.0})
    # (1/2)^9 of ten signs.
    assert comparison.winner.name == "same"
    assert "a difference of -1 (its own 95 % interval is unknown, p = 0.002" in comparison.verdict


@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 1.0])), max_size=6))
@settings(deadline=None, derandomize=True)
def test_holm_is_bonferroni_of_every_subset(p_values):
    """The closure principle: one is rejected if each set of hypotheses that it is in is."""
    closed = [
        max(
            min(1.0, len(subset) * min(p_values[j] for j in subset))
            for size in range(1, len(p_values) + 1)
            for subset in itertools.combinations(range(len(p_values)), size)
            if index in subset
        )
        for index in range(len(p_values))
    ]
    assert holm(p_values) == pytest.approx(closed)


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
    assert comparison.verdict.startswith("Nothing beats the baseline on MAE. None of 2 candidates")
    assert "closest is a" in comparison.verdict


def test_one_candidate_is_in_the_singular():
    comparison, _ = compare(0, baseline={"shift": 0.0}, a={"shift": 0.0})
    assert (
        "MAE. The candidate is not better by more than chance explains on 10 splits. The closest" in comparison.verdict
    )
    assert "Holm" not in comparison.verdict
    assert [counted(number, "split") for number in (0, 1, 2)] == ["0 splits", "1 split", "2 splits"]


def test_what_diverges_more_often_than_the_baseline_is_not_better():
    good = {"shift": -2.0}
    comparison, _ = compare(0, baseline={"shift": 0.0}, good=good, flaky={"shift": -3.0, "diverged": 2})
    assert names(comparison.better) == ["good"]
    assert "Diverged runs are left out of the comparison: flaky (2 of 10)." in comparison.verdict
    assert [row.differences["mae"].pairs for row in comparison.rows] == [10, 10, 8]
    comparison, _ = compare(0, baseline={"shift": 0.0, "diverged": 2}, flaky={"shift": -3.0, "diverged": 2})
    assert names(comparison.better) == ["flaky"]


def test_without_a_baseline_there_is_no_comparison():
    all_diverged = {"shift": 0.0, "diverged": SEEDS}
    comparison, _ = compare(0, baseline=all_diverged, a={"shift": 0.0}, b=all_diverged, c={"shift": 0.0, "diverged": 2})
    assert comparison.better == []
    assert comparison.verdict == (
        "The baseline diverged on all 10 splits, so nothing can be compared on MAE. "
        "These candidates finished some splits: a, c."
    )
    comparison, _ = compare(0, baseline=all_diverged, a=all_diverged)
    assert comparison.verdict.endswith("compared on MAE.")


def test_cost_is_a_ratio():
    comparison, _ = compare(0, baseline={"shift": 0.0, "seconds": 2.0}, slow={"shift": 0.0, "seconds": 5.0})
    assert [row.cost for row in comparison.rows] == [1.0, 2.5]
