"""How a study's runs are judged: metrics by their formulas, in the target's units, at the best epoch."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

from minimand.study import Candidate, load_data, mlp, target_of
from minimand.study._metrics import Metrics
from minimand.study._problem import Problem
from minimand.study._settings import Settings
from minimand.study._training import DIVERGED, FINISHED, epoch_record, run_of

EPOCHS = [{"epoch": 0, "loss": 2.0}, {"epoch": 1, "loss": 1.0}]


TARGETS = {
    "regression": [0.5, 1.5],
    "binary": ["no", "yes"],
    "multiclass": ["a", "b", "c"],
    "multilabel": [[0, 1], [1, 1]],
}


def metrics_of(task):
    """The metrics of a task by key."""
    return {key: of.metric for key, of in Metrics([target_of(TARGETS[task], task)]).every.items()}


def score(task, key, truth, predicted, weights=None):
    return metrics_of(task)[key].function(np.asarray(truth), np.asarray(predicted), weights)


def test_metrics_of_regression_are_their_formulas(random):
    y = random.normal(size=41)
    p = y + random.standard_t(2, size=41)
    errors = np.abs(y - p)
    assert score("regression", "mae", y, p) == pytest.approx(errors.mean())
    assert score("regression", "rmse", y, p) == pytest.approx(math.sqrt((errors**2).mean()))
    assert score("regression", "median_absolute_error", y, p) == pytest.approx(np.sort(errors)[20])
    assert score("regression", "r2", y, p) == pytest.approx(1 - (errors**2).sum() / ((y - y.mean()) ** 2).sum())
    assert score("regression", "r2", y, np.full(41, y.mean())) == pytest.approx(0.0)


def test_metrics_of_classification_are_their_formulas(random):
    classes = random.integers(0, 3, size=50)
    p = random.dirichlet([1.0, 1.0, 1.0], size=50)
    said = p.argmax(axis=1)
    assert score("multiclass", "accuracy", classes, p) == pytest.approx((said == classes).mean())
    logs = [math.log(row[label]) for row, label in zip(p, classes, strict=True)]
    assert score("multiclass", "log_loss", classes, p) == pytest.approx(-np.mean(logs))
    harmonic = []
    for label in range(3):
        hits = ((said == label) & (classes == label)).sum()
        harmonic.append(2 * hits / ((said == label).sum() + (classes == label).sum()))
    assert score("multiclass", "macro_f1", classes, p) == pytest.approx(np.mean(harmonic))
    bins = np.minimum((p.max(axis=1) * 15).astype(int), 14)
    gaps = [abs((said == classes)[bins == each].sum() - p.max(axis=1)[bins == each].sum()) for each in np.unique(bins)]
    assert score("multiclass", "ece", classes, p) == pytest.approx(sum(gaps) / 50, rel=1e-5)


def test_certainty_that_is_wrong_costs_no_infinity():
    assert score("multiclass", "log_loss", [1], [[1.0, 0.0]]) == pytest.approx(-math.log(1e-7))


PERFECT = {
    "regression": ([1.0, 2.0, 5.0], [1.0, 2.0, 5.0]),
    "binary": ([0, 1, 1], [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]),
    "multiclass": ([0, 1, 2], np.eye(3)),
    "multilabel": ([[0, 1], [1, 0], [1, 1]], [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]),
}


@pytest.mark.parametrize("task", PERFECT)
def test_perfect_predictions_are_the_best(task):
    truth, perfect = map(np.asarray, PERFECT[task])
    for metric in metrics_of(task).values():
        # Probabilities of labels are cut off at 1e-7.
        slack = 1.1e-7 if task == "multilabel" else 0.0
        best = 1.0 if metric.greater_is_better else 0.0
        assert metric.function(truth, perfect, None) == pytest.approx(best, rel=0, abs=slack)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["diabetes", "iris"])
def test_the_score_that_picks_an_epoch_is_the_metric_of_the_validation_rows(name, weighted, random):
    """What compiled programs compute, in units of the scale, is what is written of an epoch."""
    data = load_data(name)
    fold, selection = data.fold(0), Metrics(data.targets).selection
    rows = len(fold.y_validation)
    weights = random.uniform(size=rows).astype("float32") if weighted else None
    predicted = random.normal(size=(rows, 1)) if name == "diabetes" else random.dirichlet(np.ones(3), size=rows)
    y, y_pred = ops.convert_to_tensor(fold.y_validation), ops.convert_to_tensor(predicted.astype("float32"))
    compiled = float(selection.score([y], [y_pred], [None if weights is None else ops.convert_to_tensor(weights)]))
    ((_, scale),) = fold.scaling
    metric = selection.judged.metric
    if name == "diabetes":
        truth = fold.y_validation[:, 0] * scale
        expected = metric.function(truth, predicted[:, 0] * scale, weights)
    else:
        expected = metric.function(fold.y_validation.argmax(axis=1), predicted, weights)
    assert compiled * scale[0] == pytest.approx(expected, rel=1e-5)
    assert (metric.key, selection.sign) == ({"diabetes": "mae", "iris": "log_loss"}[name], 1)


def test_predictions_are_judged_in_the_targets_units(random):
    data = load_data("diabetes")
    fold, (target,) = data.fold(3), data.targets
    ((center, scale),) = fold.scaling
    # Targets are whole numbers: what the first one is off by, in units of the scale.
    shifted = fold.y_test + 2.0 / scale
    truth, predicted, index = target.judged(fold.split.test, shifted, center, scale)
    np.testing.assert_array_equal(index, np.arange(len(fold.y_test)))
    np.testing.assert_array_equal(truth, np.round(truth))
    np.testing.assert_allclose(truth, fold.y_test[:, 0] * scale + center, atol=1e-3)
    np.testing.assert_allclose(predicted - truth, 2.0, rtol=1e-3)
    run = run_of(Problem(data, mlp, Settings()), Candidate("c"), 3, EPOCHS, 1, [shifted], seconds_per_epoch=1.0)
    assert run.status == FINISHED
    assert run.test["mae"] == pytest.approx(2.0, rel=1e-4)
    assert run.test["median_absolute_error"] == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize(
    ("epochs", "best", "bad"),
    [
        (EPOCHS, -1, 0.0),
        ([*EPOCHS, {"epoch": 2, "loss": math.nan}], 1, 0.0),
        ([*EPOCHS, {"epoch": 2, "loss": math.inf}], 1, 0.0),
        (EPOCHS, 1, math.nan),
        (EPOCHS, 1, math.inf),
    ],
)
def test_what_diverged_has_no_scores(epochs, best, bad):
    """No epoch was best, the loss ended in no number, or a prediction is none."""
    problem = Problem(load_data("iris"), mlp, Settings())
    predictions = problem.fold(0).y_test.copy()
    predictions[4, 1] += bad
    run = run_of(problem, Candidate("c"), 0, epochs, best, [predictions], seconds_per_epoch=1.0)
    assert run.status == DIVERGED
    assert {"accuracy", "log_loss", "macro_f1", "ece"} <= set(run.test) == set(problem.metrics.every)
    assert all(math.isnan(value) for value in run.test.values())


def test_what_is_kept_of_an_epoch():
    problem = Problem(load_data("iris"), mlp, Settings())
    record = epoch_record(problem, 0, 3, {"loss": np.float32(0.5), "alpha": 1}, 0.25)
    assert record == {"epoch": 3, "loss": 0.5, "alpha": 1.0, "log_loss": 0.25}
    assert all(type(value) in (int, float) for value in record.values())
    # A score of a regression is in units of the fold's scale.
    problem = Problem(load_data("diabetes"), mlp, Settings())
    assert epoch_record(problem, 1, 0, {}, 0.25) == {"epoch": 0, "mae": 0.25 * problem.fold(1).scaling[0][1][0]}


@given(hnp.arrays("float64", st.integers(2, 30), elements=st.floats(-1e3, 1e3)), st.floats(0.1, 10.0))
@settings(deadline=None, derandomize=True)
def test_errors_grow_with_the_units(y, factor):
    p = y[::-1]
    for key in ("mae", "rmse", "median_absolute_error"):
        assert score("regression", key, y * factor, p * factor) == pytest.approx(
            factor * score("regression", key, y, p)
        )
