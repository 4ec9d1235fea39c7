"""Statistics of paired differences, and verdicts on runs with known results."""

import dataclasses
import itertools
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from minimand.study._candidates import Candidate
from minimand.study._comparison import (
    Comparison,
    corrected_resampled_t,
    counted,
    crossed_t,
    crossed_variances,
    holm,
    mean_of_splits,
)
from minimand.study._metrics import Metrics
from minimand.study._splits import resampled_rows
from minimand.study._targets import target_of
from minimand.study._training import DIVERGED, FINISHED, Run

SEEDS, OVERLAP = 10, 0.25
METRICS = [of.metric for of in Metrics([target_of([0.5, 1.5])]).every.values()]
NULL = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "null_studies.py"))


def runs(name, random, shift, spread=0.1, diverged=0, seconds=1.0):
    """Test results of every metric: about 10, shifted."""
    result = []
    for seed in range(SEEDS):
        failed = seed < diverged
        value = math.nan if failed else 10.0 + shift + spread * random.normal()
        test = {metric.key: value for metric in METRICS}
        result.append(Run(name, seed, DIVERGED if failed else FINISHED, 0, test, [], seconds, split=seed))
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
        Run(name, seed, FINISHED, 0, {METRICS[metric].key: score}, [], 1.0, split=seed)
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


def test_trainings_on_one_split_count_once(random):
    """The number of trainings on a split and the order of the runs change nothing."""
    d, times = random.normal(0.5, 1.0, size=5), np.array([1, 2, 3, 1, 2])
    splits = np.repeat(np.array([7, 3, 5, 1, 9]), times)
    order = random.permutation(len(splits))
    repeated = mean_of_splits(np.repeat(d, times)[order], splits[order])
    assert sorted(repeated) == pytest.approx(sorted(d))
    assert mean_of_splits([1.0, 2.0, 6.0], ["b", "a", "b"]) == pytest.approx([2.0, 3.5])
    one, other = corrected_resampled_t(d, 0.25), corrected_resampled_t(repeated, 0.25)
    assert (one.low, one.p_value, one.pairs) == pytest.approx((other.low, other.p_value, other.pairs))


def test_whole_groups_are_drawn_with_replacement(random):
    groups = random.permutation(np.repeat(np.arange(12), np.arange(1, 13)))
    drawn = np.array([np.bincount(rows, minlength=len(groups)) for rows in resampled_rows(groups, 2000)])
    times = np.array([[one[groups == group] for group in range(12)] for one in drawn[:3]], dtype=object)
    assert all(np.ptp(rows) == 0 for rows in times.ravel())
    times = np.stack([drawn[:, np.flatnonzero(groups == group)[0]] for group in range(12)], axis=1)
    assert (times.sum(axis=1) == 12).all()
    # Multinomial: 12 draws of 12 groups, whose counts have variance 1 - 1/12, and fourth moments below 5.
    assert times.mean(axis=0) == pytest.approx(np.ones(12), abs=4 * math.sqrt(1 / 2000))
    assert times.var() == pytest.approx(1 - 1 / 12, abs=4 * math.sqrt(5 / 2000))
    assert all((a == b).all() for a, b in zip(resampled_rows(groups, 3), resampled_rows(groups, 3), strict=True))


def crossed(random, shape, of_rows, of_seeds, of_both, mean=0.0):
    """Differences of rows and seeds (studies, rows, seeds): crossed random effects with these standard deviations."""
    studies, rows, seeds = shape
    return (
        mean
        + of_rows * random.normal(size=(studies, rows, 1))
        + of_seeds * random.normal(size=(studies, 1, seeds))
        + of_both * random.normal(size=shape)
    )


def counts(rows, resamples=200):
    drawn = resampled_rows(np.arange(rows), resamples)
    return np.stack([np.bincount(each, minlength=rows) for each in drawn])


@pytest.mark.parametrize(("of_rows", "of_seeds", "of_both"), [(1.0, 0.2, 2.0), (0.5, 1.0, 1.0), (0.0, 0.0, 1.0)])
def test_the_variance_over_rows_and_seeds_is_unbiased(of_rows, of_seeds, of_both, random):
    studies, rows, seeds = 1000, 30, 4
    resamples = counts(rows) / rows
    every = crossed(random, (studies, rows, seeds), of_rows, of_seeds, of_both)
    found = np.array([crossed_variances(one.mean(axis=0), resamples @ one, rows) for one in every])
    both = of_both**2 / (rows * seeds)
    expected = [of_seeds**2 / seeds + both, of_rows**2 / rows + both, both]
    error = found.std(axis=0) / math.sqrt(studies)
    # All studies share the resamples, of which the variance has a relative standard error of sqrt(2 / (B - 1)) / sqrt(R).
    shared = math.sqrt(2 / 199 / rows)
    assert (np.abs(found.mean(axis=0) - expected) <= 4 * error + 4 * shared * np.array([0, 1, 1]) * expected).all()
    total = found @ [1, 1, -1]
    means = every.mean(axis=(1, 2))
    assert total.mean() == pytest.approx(means.var(), rel=4 * math.sqrt(2 / studies) + 4 * total.std() / total.mean() / math.sqrt(studies))  # fmt: skip


def test_many_rows_leave_the_t_test_over_seeds_and_many_seeds_the_bootstrap(random):
    of_seeds = random.normal(0.5, 1.0, size=6)
    found = crossed_t(of_seeds, np.tile(of_seeds, (50, 1)), 10**6)
    plain = stats.ttest_1samp(of_seeds, 0.0)
    assert (found.low, found.high) == pytest.approx(tuple(plain.confidence_interval()))
    assert (found.p_value, found.pairs) == (pytest.approx(plain.pvalue, rel=1e-6), 6)
    resampled = 0.3 + random.normal(size=5000)
    found = crossed_t(np.full(1000, 0.3), np.tile(resampled[:, None], 1000), 10**6)
    assert found.low == pytest.approx(0.3 - stats.norm.ppf(0.975) * resampled.std(), rel=1e-3)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(0.3 / resampled.std()), rel=1e-3)


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_the_p_value_is_the_level_whose_interval_ends_at_zero(seeds, random):
    differences = crossed(random, (1, 40, seeds), 1.0, 0.2, 1.0)[0]
    resamples = counts(40) / 40
    resampled = resamples @ differences
    v_seeds, v_rows, v_both = crossed_variances(differences.mean(axis=0), resampled, 40)
    quantile = {level: (stats.t.isf(level / 2, seeds - 1), stats.t.isf(level / 2, 1 / (1 / 39 + 1 / 199))) for level in (0.05, 1e-6)}  # fmt: skip
    for level, (of_seeds, of_rows) in quantile.items():
        half = math.sqrt(max(of_seeds**2 * v_seeds + of_rows**2 * (v_rows - v_both), of_rows**2 * v_rows))
        for sign in (-1, 1):
            shift = sign * half - differences.mean()
            found = crossed_t(differences.mean(axis=0) + shift, resampled + shift, 40)
            assert found.p_value == pytest.approx(level, rel=1e-6)
            if level == 0.05:
                assert (found.low, found.high) == pytest.approx((sign * half - half, sign * half + half))
    none = crossed_t(differences.mean(axis=0) - differences.mean(), resampled, 40)
    assert none.p_value == pytest.approx(1.0)
    assert crossed_t(np.array([1.0, 1.0 + 1e-6]) * 1e6, np.ones((5, 2)), 40).p_value < 1e-5


def test_what_a_given_test_set_cannot_tell_is_unknown():
    for of_seeds, resampled, units in (
        ([1.0], np.arange(5.0)[:, None], 9),
        ([1.0, 2.0], np.full((5, 2), np.nan), 9),
        ([1.0, 2.0], np.ones((5, 2)), 1),
    ):
        found = crossed_t(np.array(of_seeds), resampled, units)
        assert (found.mean, found.pairs, found.interval) == (np.mean(of_seeds), len(of_seeds), "unknown")
        assert math.isnan(found.p_value)
    assert math.isnan(crossed_t(np.array([]), np.ones((5, 0)), 9).mean)
    # Equal on all rows, up to rounding.
    found = crossed_t(np.array([1 - 29 / 30, 12 / 30 - 11 / 30]), np.full((5, 2), 1 / 30), 30)
    assert (found.p_value, found.interval) == (0.5, "unknown")
    assert crossed_t(np.zeros(3), np.zeros((5, 3)), 30).p_value == 1.0
    # A metric that some resamples leave undefined.
    defined = np.array([[0.1, 0.3], [0.2, 0.1], [0.3, 0.4]])
    some = np.insert(defined, 1, [0.5, np.nan], axis=0)
    assert crossed_t(np.array([0.2, 0.3]), some, 9) == crossed_t(np.array([0.2, 0.3]), defined, 9)


def test_seeds_that_agree_by_chance_leave_the_interval_over_rows(random):
    differences = crossed(random, (1, 40, 2), 1.0, 0.0, 1.0)[0]
    differences -= differences.mean(axis=0)
    resampled = counts(40) / 40 @ differences
    found = crossed_t(differences.mean(axis=0) + 0.1, resampled + 0.1, 40)
    of_rows = stats.t.isf(0.025, 1 / (1 / 39 + 1 / 199)) * math.sqrt(40 / 39) * resampled.mean(axis=1).std(ddof=1)
    assert found.high - found.low == pytest.approx(2 * of_rows)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("of_seeds", [0.0, 0.4, 4.0])
def test_the_level_on_a_given_test_set_holds_whatever_varies(seeds, of_seeds, random):
    """Holm's correction for four candidates asks for 1.25 % too, where two seeds by Welch and Satterthwaite err thrice as often."""
    studies, rows = 500, 50
    every = crossed(random, (studies, rows, seeds), 1.0, of_seeds, 1.0)
    resamples = counts(rows) / rows
    found = [crossed_t(one.mean(axis=0), resamples @ one, rows) for one in every]
    for level in (0.05, 0.0125):
        wrong = np.mean([each.p_value < level for each in found])
        assert wrong <= level + 3 * math.sqrt(level * (1 - level) / studies)
    assert np.mean([each.low <= 0 <= each.high for each in found]) >= 0.95 - 3 * math.sqrt(0.0475 / studies)
    if (seeds, of_seeds) == (2, 0.4):
        v_seeds, v_rows, v_both = np.array(
            [crossed_variances(one.mean(axis=0), resamples @ one, rows) for one in every]
        ).T
        total = v_seeds + v_rows - v_both
        freedom = total**2 / (v_seeds**2 / (seeds - 1) + (v_rows - v_both) ** 2 / (rows - 1))
        welch = 2 * stats.t.sf(np.abs([each.mean for each in found]) / np.sqrt(total), freedom)
        assert np.mean(welch < 0.0125) > 0.0125 + 3 * math.sqrt(0.0125 / studies)


def test_groups_of_test_rows_are_resampled_whole(random):
    """Twelve groups of unequal sizes have the stated level; rows taken for independent have far more false differences."""
    studies, seeds = 400, 5
    groups = np.repeat(np.arange(12), np.arange(12) % 3 + 4)
    every = crossed(random, (studies, len(groups), seeds), 0.5, 0.1, 1.0)
    every += crossed(random, (studies, 12, seeds), 1.0, 0.0, 0.3)[:, groups]

    def wrong(of_rows, units):
        resamples = np.stack([np.bincount(rows, minlength=len(groups)) for rows in resampled_rows(of_rows)])
        resamples = resamples / resamples.sum(axis=1, keepdims=True)
        return np.mean([crossed_t(one.mean(axis=0), resamples @ one, units).p_value < 0.05 for one in every])

    error = math.sqrt(0.0475 / studies)
    assert wrong(groups, 12) <= 0.05 + 3 * error
    assert wrong(np.arange(len(groups)), len(groups)) > 0.05 + 10 * error


def test_a_difference_on_a_given_test_set_is_found(random):
    """A difference of three standard errors is found by five seeds in most studies."""
    rows, seeds = 200, 5
    error = math.sqrt(1 / rows + 0.1**2 / seeds + 1 / (rows * seeds))
    resamples = counts(rows) / rows
    every = crossed(random, (100, rows, seeds), 1.0, 0.1, 1.0, mean=-4 * error)
    found = [crossed_t(one.mean(axis=0), resamples @ one, rows) for one in every]
    assert np.mean([each.high < 0 for each in found]) > 0.5


HONEST = [name for name in NULL["ON_SPLITS"] if not name.endswith("splits of rows")]


def false_winners(simulated, *case, studies):
    """Rates of false winners with 1 and with 4 candidates, in studies of data sets in which nothing helps."""
    rates = NULL["false_winners"](NULL[simulated](np.random.default_rng(0), *case, studies))
    return np.array([rates["1 candidate"], rates["4 candidates"]])


@pytest.mark.parametrize("studies", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", HONEST)
def test_splits_that_suit_the_data_have_few_false_winners(name, studies):
    wrong = false_winners("differences_on_splits", *NULL["ON_SPLITS"][name], studies=studies)
    assert (wrong <= 0.05 + 3 * math.sqrt(0.0475 / studies)).all()


def test_random_splits_of_a_series_have_many_false_winners():
    """A test row resembles its neighbours in the training set, so a study warns of such splits."""
    random_rows = NULL["ON_SPLITS"]["series (0.9), 10 random splits of rows"]
    assert (
        false_winners("differences_on_splits", *random_rows, studies=100) > 0.05 + 3 * math.sqrt(0.0475 / 100)
    ).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NULL["ON_TEST_SET"])
def test_a_given_test_set_has_few_false_winners_by_any_metric(name):
    wrong = false_winners("differences_on_test_set", *NULL["ON_TEST_SET"][name], studies=300)
    assert (wrong <= 0.05 + 3 * math.sqrt(0.0475 / 300)).all()


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


def test_repeats_on_a_split_are_one_pair():
    """Whatever the trainings on a split are, their mean is what counts."""
    _, everything = compare(0, baseline={"shift": 0.0}, a={"shift": -0.1})
    repeated = [dataclasses.replace(run, split=run.seed // 2) for run in everything]
    row = Comparison((Candidate("baseline"), Candidate("a")), repeated, METRICS[0], OVERLAP).rows[1]
    own, baseline = (np.array([r.test["mae"] for r in everything if r.candidate == n]) for n in ("a", "baseline"))
    assert row.differences["mae"] == corrected_resampled_t((own - baseline).reshape(-1, 2).mean(axis=1), OVERLAP)


def test_on_a_given_test_set_rows_and_seeds_are_crossed(random):
    """The metric of the verdict has an interval, by pairs of runs that share the resamples; all others have means."""
    _, everything = compare(0, baseline={"shift": 0.0}, a={"shift": -0.1, "diverged": 1})
    drawn = [
        dataclasses.replace(run, resampled=(run.test["mae"] + random.normal(size=50)).tolist()) for run in everything
    ]
    row = Comparison((Candidate("baseline"), Candidate("a")), drawn, METRICS[0], OVERLAP, test_units=30).rows[1]
    pairs = [(drawn[SEEDS + seed], drawn[seed]) for seed in range(1, SEEDS)]
    of_seeds = np.array([one.test["mae"] - other.test["mae"] for one, other in pairs])
    resampled = np.array([np.subtract(one.resampled, other.resampled) for one, other in pairs]).T
    assert row.differences["mae"] == crossed_t(of_seeds, resampled, 30)
    of_other = row.differences["rmse"]
    assert (of_other.mean, of_other.pairs, of_other.interval) == (pytest.approx(of_seeds.mean()), 9, "unknown")


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


def test_a_baseline_alone_is_compared_with_nothing():
    comparison, _ = compare(0, baseline={"shift": 0.0})
    assert comparison.verdict == "Only the baseline was trained."


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
