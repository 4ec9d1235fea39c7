"""Metrics of a study: each is its formula, with weights, by name or as the user's own, and inside of programs."""

import numpy as np
import pytest
from keras import ops
from sklearn import metrics as sk

from minimand.study import Metric, StudyError, target_of
from minimand.study._metrics import Metrics
from tests.helpers import told

N = 60


def example(task, random):
    """Targets, and predictions as metrics take them."""
    if task == "regression":
        y = random.normal(3.0, 1.0, size=N)
        return target_of(y), y, y + random.normal(size=N)
    if task == "multilabel":
        y = random.integers(0, 2, size=(N, 3))
        return target_of(y), y, random.uniform(size=(N, 3))
    classes = 2 if task == "binary" else 4
    y = np.arange(N) % classes
    return target_of(y), y, random.dirichlet(np.ones(classes), size=N)


def by_hand(task, key, y, p, w):
    """The metric by its formula or by scikit-learn's function."""
    if task == "regression":
        error = np.abs(y - p)
        return {
            "mae": np.average(error, weights=w),
            "rmse": np.sqrt(np.average(error**2, weights=w)),
            "median_absolute_error": sk.median_absolute_error(y, p, sample_weight=w),
            "r2": 1 - np.average(error**2, weights=w) / np.average((y - np.average(y, weights=w)) ** 2, weights=w),
            "mape": np.average(error / np.abs(y), weights=w),
        }[key]
    if task == "multilabel":
        losses = -np.log(np.where(y == 1, p, 1 - p)).mean(axis=1)
        labels = range(y.shape[1])
        return {
            "macro_f1": np.mean([sk.f1_score(y[:, k], p[:, k] > 0.5, sample_weight=w) for k in labels]),
            "log_loss": np.average(losses, weights=w),
            "roc_auc": np.mean([sk.roc_auc_score(y[:, k], p[:, k], sample_weight=w) for k in labels]),
            "average_precision": np.mean(
                [sk.average_precision_score(y[:, k], p[:, k], sample_weight=w) for k in labels]
            ),
            "accuracy": np.average(((p > 0.5) == y).all(axis=1), weights=w),
        }[key]
    decided, classes = p.argmax(axis=1), range(p.shape[1])
    rest = [(y == k, p[:, k]) for k in classes][-1 if task == "binary" else 0 :]
    return {
        "accuracy": np.average(decided == y, weights=w),
        "log_loss": np.average(-np.log(p[np.arange(N), y]), weights=w),
        "macro_f1": np.mean([sk.f1_score(y == k, decided == k, sample_weight=w) for k in classes]),
        "ece": None,  # tests/test_metrics.py
        "balanced_accuracy": np.mean([np.average(decided[y == k] == k, weights=w[y == k]) for k in classes]),
        "roc_auc": np.mean([sk.roc_auc_score(t, s, sample_weight=w) for t, s in rest]),
        "average_precision": np.mean([sk.average_precision_score(t, s, sample_weight=w) for t, s in rest]),
        "brier": np.average(((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1), weights=w),
        "iou": np.mean([w[(y == k) & (decided == k)].sum() / w[(y == k) | (decided == k)].sum() for k in classes]),
        "f1": sk.f1_score(y == 1, decided == 1, sample_weight=w),
    }[key]


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass", "multilabel"])
def test_every_metric_is_its_formula(task, random):
    target, y, p = example(task, random)
    assert target.task == task
    for key, judged in Metrics([target]).every.items():
        for weights in (None, random.uniform(0.5, 2.0, size=N)):
            expected = by_hand(task, key, y, p, np.ones(N) if weights is None else weights)
            if expected is not None:
                assert judged.metric.function(y, p, weights) == pytest.approx(expected, rel=1e-9), key


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("units", [1, None])
def test_the_score_inside_of_a_program_is_the_metric(task, units, random):
    target, y, p = example(task, random)
    if units == 1 and task != "binary":
        units = None
    metrics, weights = Metrics([target]), random.uniform(0.5, 2.0, size=N).astype("float32")
    unscaled = np.zeros(1), np.ones(1)
    encoded = target.encoded(units or target.units, *unscaled)
    predicted = (p[:, 1:] if units == 1 else p if p.ndim == 2 else p[:, None]).astype("float32")
    arguments = [ops.convert_to_tensor(encoded)], [ops.convert_to_tensor(predicted)]
    for given in (None, weights):
        expected = metrics.of(metrics.selection.key).function(y, p, given)
        score = float(metrics.selection.score(*arguments, [given if given is None else ops.convert_to_tensor(given)]))
        assert score == pytest.approx(expected, rel=1e-5)


def test_a_score_of_positions_leaves_out_what_is_ignored(random):
    y = random.integers(0, 3, size=(5, 4))
    target = target_of(np.where(y == 2, 9, y), ignore_class=9)
    p = random.dirichlet(np.ones(2), size=(5, 4)).astype("float32")
    encoded = target.encoded(2, np.zeros(1), np.ones(1))
    score = Metrics([target]).selection.score(
        [ops.convert_to_tensor(encoded)], [ops.convert_to_tensor(p)], [ops.convert_to_tensor(target.known())]
    )
    known = y < 2
    assert float(score) == pytest.approx(-np.log(p[known][np.arange(known.sum()), y[known]]).mean(), rel=1e-5)


def test_several_outputs_have_names_and_a_mean_score(random):
    _, y, p = example("regression", random)
    _, z, q = example("binary", random)
    targets = [target_of(y, name="days"), target_of(z, name="sold")]
    metrics = Metrics(targets, "sold.roc_auc", "days.rmse")
    assert metrics.main == "sold.roc_auc"
    assert metrics.shown[0] == "days.mae"
    assert metrics.of("days.rmse").title == "days RMSE"
    mean = Metrics(targets).selection
    encoded = [t.encoded(t.units, np.zeros(1), np.ones(1)) for t in targets]
    tensors = [ops.convert_to_tensor(each) for each in encoded]
    predictions = [ops.convert_to_tensor(each.astype("float32")) for each in (p[:, None], q)]
    expected = (np.abs(y - p).mean() - np.log(q[np.arange(N), z]).mean()) / 2
    assert float(mean.score(tensors, predictions, [None, None])) == pytest.approx(expected, rel=1e-5)
    assert (mean.key, mean.judged, mean.unit) == ("score", None, None)


@pytest.mark.parametrize(
    ("task", "name", "greater", "expected"),
    [
        ("regression", "pinball_0.9", False, lambda y, p: np.maximum(0.9 * (y - p), -0.1 * (y - p)).mean()),
        ("regression", "neg_mean_squared_error", True, lambda y, p: -((y - p) ** 2).mean()),
        ("regression", "explained_variance", True, lambda y, p: 1 - (y - p).var() / y.var()),
        ("regression", "MeanSquaredError", False, lambda y, p: ((y - p) ** 2).mean()),
        ("regression", "R2Score", True, lambda y, p: sk.r2_score(y, p)),
        ("binary", "neg_brier_score", True, lambda y, p: -((p[:, 1] - y) ** 2).mean()),
        ("binary", "BinaryAccuracy", True, lambda y, p: ((p[:, 1] > 0.5) == y).mean()),
        ("multiclass", "top_k_accuracy", True, lambda y, p: np.mean(np.argsort(p)[:, -2:] == y[:, None]) * 2),
        ("multiclass", "CategoricalAccuracy", True, lambda y, p: (p.argmax(axis=1) == y).mean()),
        ("multilabel", "f1_micro", True, lambda y, p: sk.f1_score(y, p > 0.5, average="micro")),
    ],
)
def test_metrics_by_the_names_of_others(task, name, greater, expected, random):
    target, y, p = example(task, random)
    metric = Metrics([target], name).of(name)
    assert metric.greater_is_better is greater
    assert metric.function(y, p, None) == pytest.approx(expected(y, p), rel=1e-5)
    if name != "R2Score":
        halves = np.repeat([1.0, 0.0], N // 2)
        assert metric.function(y, p, halves) == pytest.approx(expected(y[: N // 2], p[: N // 2]), rel=1e-5)


def test_a_metric_of_ones_own():
    target = target_of(np.linspace(0, 1, 30))
    worst = Metric("worst", "largest error", False, lambda y, p, w: float(np.abs(y - p).max()))
    metrics = Metrics([target], worst, worst)
    assert metrics.main == metrics.selection.key == "worst"
    assert metrics.selection.losses == ()


def test_an_area_under_a_curve_of_one_class_is_unknown():
    metric = Metrics([target_of([0, 1, 1])]).of("roc_auc")
    assert np.isnan(metric.function(np.ones(3, int), np.full((3, 2), 0.5), None))


@pytest.mark.parametrize(
    ("name", "words"),
    [("accuracy", ["--metric 'accuracy'", "does not suit regression"]), ("score", ["--metric", "mae", "scorer", "'score'"]), ("pinball_1.5", ["'pinball_1.5'"]), ("MeanIoU", ["keras.metrics.MeanIoU", "arguments"])],
)  # fmt: skip
def test_a_metric_that_does_not_exist_is_told(name, words):
    with told(StudyError, words):
        Metrics([target_of([0.5, 1.5])], name)
