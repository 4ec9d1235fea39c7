"""Losses with variables, in `fit`: trained, bounded, saved, logged, frozen, and refused where they would be lost."""

import copy

import keras
import numpy as np
import pytest
from scipy import special

import kriterion
from kriterion.losses import (
    CVaR,
    LearnedClassWeights,
    LearnedThreshold,
    LogitAdjusted,
    Mahalanobis,
    QuantileThreshold,
    SoftBoundary,
    TaskUncertainty,
    TemperatureScaled,
    TrainableLoss,
    UncertaintyWeighted,
)
from kriterion.losses._metric_forms import large_margin, neighbourhood_components, squared_distances
from kriterion.parametrizations import Bounded, Positive, PositiveDefinite, Simplex
from tests.helpers import gradient, numpy, told

BACKEND = keras.backend.backend()
SPARSE = "sparse_categorical_crossentropy"


def steps(count):
    """Steps of a call of the compiled program; Keras has no such on PyTorch."""
    return 1 if BACKEND == "torch" else count


def problem(kind, random, rows=48):
    x = random.normal(size=(rows, 4)).astype("float32")
    score = x @ random.normal(size=(4, 3)).astype("float32")
    if kind == "binary":
        return x, (score[:, :1] > 0.5).astype("float32"), keras.layers.Dense(1, "sigmoid", dtype="float32")
    if kind == "numbers":
        return x, score, keras.layers.Dense(3)
    activation = "softmax" if kind == "classes" else None
    return x, score.argmax(axis=-1), keras.layers.Dense(3, activation, dtype="float32")


def trainer_of(loss, *layers, **arguments):
    keras.utils.set_random_seed(3)
    trainer = kriterion.Trainer(keras.Sequential([keras.Input((4,)), *layers]))
    trainer.compile(keras.optimizers.Adam(0.02), loss, **arguments)
    return trainer


def identity(shape=(1,), trainable=True):
    model = keras.Sequential([keras.Input(shape), keras.layers.Rescaling(1.0)])
    model.trainable = trainable
    return model


# What `fit` finds.


def test_value_at_risk_has_no_bias_of_small_batches(random):
    """Exponential losses: 1 + log 10 = 3.3026, where the batches' own worst tenths have 3.17.

    The standard error of the mean of t + 10 (l - t)+ over 64000 is sqrt(1900 - ...)/253 < 0.018; t adds its wandering.
    """
    y = random.exponential(size=(64000, 1)).astype("float32")
    loss = CVaR("mean_absolute_error", 0.9)
    trainer = kriterion.Trainer(identity())
    trainer.compile(keras.optimizers.Adam(0.005), loss, steps_per_execution=steps(50))
    history = trainer.fit(0 * y, y, batch_size=64, verbose=0)
    assert history.history["loss"][0] == pytest.approx(1 + np.log(10), abs=0.07)
    assert loss.threshold == pytest.approx(np.log(10), abs=0.15)


def test_a_threshold_follows_scores_that_fall_by_orders_of_magnitude(random):
    y = random.exponential(size=(64 * 800, 1)).astype("float32")
    factor = np.exp(-np.linspace(0, 5, len(y)))[:, None].astype("float32")
    loss = QuantileThreshold(0.8)
    trainer = kriterion.Trainer(identity())
    trainer.compile(keras.optimizers.Adam(0.02), loss, steps_per_execution=steps(50))
    trainer.fit(100 * y * factor, y, batch_size=64, shuffle=False, verbose=0)
    assert loss.threshold == pytest.approx(100 * np.exp(-5) * np.log(5), rel=0.25)


@pytest.mark.parametrize(
    "arguments",
    [
        {"objective": "soft_f1"},
        {"objective": "cost", "costs": (1.0, 3.0)},
        {"objective": "precision_at_recall", "target": 0.8},
        {"objective": "recall_at_precision", "target": 0.7},
    ],
    ids=lambda arguments: arguments["objective"],
)
def test_the_threshold_is_at_the_sweeps_optimum(arguments, random):
    """Hard decisions at the trained threshold are as good as those at the best one, to 2 points."""
    y = (random.uniform(size=(8192, 1)) < 0.3).astype("float32")
    s = special.expit(random.normal(size=y.shape) + 2 * y - 1.8).astype("float32")
    loss = LearnedThreshold(loss="binary_crossentropy", **arguments)
    trainer = kriterion.Trainer(identity())
    trainer.compile(keras.optimizers.Adam(0.01), loss, steps_per_execution=steps(32))
    trainer.fit(s, y, batch_size=256, epochs=12, verbose=0)
    grid = np.append(np.linspace(0.01, 0.99, 197), loss.threshold)
    decisions = s >= grid
    tp, fp, p = (decisions * y).mean(axis=0), (decisions * (1 - y)).mean(axis=0), y.mean()
    recall, precision = tp / p, tp / np.maximum(tp + fp, 1e-9)
    merit, limit, target = {
        "soft_f1": (2 * tp / (tp + fp + p), recall, 0.0),
        "cost": (-fp - 3 * (p - tp), recall, 0.0),
        "precision_at_recall": (precision, recall, 0.8),
        "recall_at_precision": (recall, precision, 0.7),
    }[arguments["objective"]]
    assert limit[-1] > target - 0.02
    assert merit[-1] > merit[limit >= target].max() - 0.02


# What each objective minimises, and the violation of its target, as the docstring has them.
STATED = {
    "soft_f1": lambda tp, fp, p: (1 - 2 * tp / (tp + fp + p), None),
    "cost": lambda tp, fp, p: (2 * fp + 5 * (p - tp), None),
    "precision_at_recall": lambda tp, fp, p: (fp / (1 - p), 0.9 - tp / p),
    "recall_at_precision": lambda tp, fp, p: (1 - tp / p, (0.8 * (tp + fp) - tp) / p),
}


@pytest.mark.parametrize("objective", STATED)
def test_a_threshold_minimises_the_stated_lagrangian(objective, random):
    """In training, with running means and the multiplier of each step; the third batch's weights are 0."""
    extra = {
        "cost": {"costs": (2.0, 5.0)},
        "precision_at_recall": {"target": 0.9},
        "recall_at_precision": {"target": 0.8},
    }
    loss = LearnedThreshold(objective, temperature=0.5, momentum=0.6, **extra.get(objective, {}))
    trainer = kriterion.Trainer(identity())
    trainer.compile(keras.optimizers.SGD(0.0), loss)
    running, multiplier = None, 0.0
    for step in range(5):
        y = (random.uniform(size=(16, 1)) < 0.4).astype("float32")
        s = random.uniform(0.05, 0.95, size=(16, 1)).astype("float32")
        weights = random.integers(1, 3, size=16).astype("float32") * (step != 2)
        if step != 2:
            decisions = special.expit((special.logit(s) - special.logit(0.5)) / 0.5)
            of_batch = [np.average(v[:, 0], weights=weights) for v in (y * decisions, (1 - y) * decisions, y)]
            running = np.array(of_batch) if running is None else 0.6 * running + 0.4 * np.array(of_batch)
        expected, violation = STATED[objective](*running)
        if violation is not None:
            multiplier = max(multiplier + 0.1 * np.clip(violation, -0.1, 0.1), 0.0)
            expected += (max(multiplier + 10 * violation, 0.0) ** 2 - multiplier**2) / 20
        trainer.reset_metrics()
        found = trainer.train_on_batch(s, y, sample_weight=weights, return_dict=True)["loss"]
        assert found == pytest.approx(expected * weights.mean(), rel=1e-4, abs=1e-6)


def test_an_adversary_equalises_the_classes(random):
    """Two classes of 1 : 20 around -1 and 1: the network's worst class gets better, the mean worse."""
    y = (random.uniform(size=2048) < 1 / 21).astype("int32")
    x = (random.normal(size=(2048, 1)) + 2 * y[:, None] - 1).astype("float32")
    losses = {}
    for name, loss in {
        "plain": SPARSE,
        "adversarial": LearnedClassWeights(2, "adversarial", SPARSE, step=0.02),
    }.items():
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, "softmax")])
        trainer = kriterion.Trainer(model)
        trainer.compile(keras.optimizers.Adam(0.02), loss, steps_per_execution=steps(16))
        trainer.fit(x, y, batch_size=64, epochs=10, verbose=0)
        each = -np.log(model.predict(x, verbose=0)[np.arange(2048), y])
        losses[name] = np.array([each[y == 0].mean(), each[y == 1].mean()])
    assert losses["plain"][1] > 1.0
    assert abs(losses["adversarial"][1] - losses["adversarial"][0]) < 0.15
    assert losses["adversarial"].max() < 0.6 * losses["plain"].max()


def test_tasks_in_different_units_get_their_weights(random):
    x = random.normal(size=(512, 4)).astype("float32")
    targets = {"metres": x[:, :1] + random.normal(size=(512, 1)), "kind": (x[:, 1] > 0).astype("int32")}
    targets["metres"] = (10 * targets["metres"]).astype("float32")
    inputs = keras.Input((4,))
    outputs = {"metres": keras.layers.Dense(1)(inputs), "kind": keras.layers.Dense(2, "softmax")(inputs)}
    losses = UncertaintyWeighted({"metres": "mean_squared_error", "kind": SPARSE}, classification=["kind"])
    trainer = kriterion.Trainer(keras.Model(inputs, outputs))
    trainer.compile(
        keras.optimizers.Adam(0.1), losses, loss_weights={"metres": 1.0, "kind": 2.0},
        transforms=[kriterion.transforms.WeightNoise(0.01)], steps_per_execution=steps(8),
    )  # fmt: skip
    history = trainer.fit(x, targets, batch_size=64, epochs=40, verbose=0).history
    predicted = trainer.predict(x, verbose=0)
    squared = np.mean((predicted["metres"] - targets["metres"]) ** 2)
    # The batches' order makes s wander: by about lr.
    assert losses["metres"].log_variance == pytest.approx(np.log(squared), abs=0.3)
    assert losses.weights["metres"] == pytest.approx(np.exp(-losses["metres"].log_variance) / 2)
    assert history["metres_uncertainty_log_variance"][-1] == pytest.approx(losses["metres"].log_variance, abs=0.2)


def test_calibration_on_held_out_data(random):
    """Probabilities of logits that are three times too large."""
    logits = random.normal(size=(4000, 3))
    y = (logits + random.gumbel(size=logits.shape)).argmax(axis=-1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])
    model.trainable = False
    trainer = kriterion.Trainer(model)
    trainer.compile(keras.optimizers.Adam(0.02), TemperatureScaled(SPARSE), steps_per_execution=steps(20))
    trainer.fit(3 * logits, y, batch_size=200, epochs=10, verbose=0)
    assert trainer.loss.temperature == pytest.approx(3.0, rel=0.08)
    calibrated = trainer.loss.to_inference(model)
    # Keras clips probabilities at 1e-7.
    known = np.log(np.clip(special.softmax(3 * logits, axis=-1), 1e-7, 1))
    expected = special.softmax(known / trainer.loss.temperature, axis=-1)
    np.testing.assert_allclose(calibrated.predict(3 * logits, verbose=0), expected, atol=1e-5)


# Metrics against brute force.


def test_neighbourhood_components_by_brute_force(random, float64):
    z, labels = random.normal(size=(7, 2)), np.array([0, 1, 0, 2, 1, 1, 0])
    counts = np.array([1.0, 1, 2, 1, 0, 1, 3])

    def brute(z):
        errors = []
        for i in range(7):
            weights = [0.0 if j == i else counts[j] * np.exp(-((z[i] - z[j]) ** 2).sum()) for j in range(7)]
            errors.append(1 - sum(w for w, own in zip(weights, labels == labels[i], strict=True) if own) / sum(weights))
        return np.array(errors)

    members, importance = keras.ops.convert_to_tensor(np.eye(3)[labels]), keras.ops.convert_to_tensor(counts)
    ours = numpy(neighbourhood_components(keras.ops.convert_to_tensor(z), members, importance))
    np.testing.assert_allclose(ours, brute(z), rtol=1e-5)
    slope = gradient(lambda v: keras.ops.sum(neighbourhood_components(v, members, importance)), z)[0]
    for index in np.ndindex(z.shape):
        shift = np.zeros_like(z)
        shift[index] = 1e-6
        assert slope[index] == pytest.approx((brute(z + shift) - brute(z - shift)).sum() / 2e-6, abs=1e-5)


def test_distances_far_from_the_origin(random):
    z = random.normal(size=(6, 3))
    expected = ((z[:, None] - z) ** 2).sum(axis=-1)
    actual = numpy(squared_distances(keras.ops.convert_to_tensor(z + 1000, "float32")))
    # In float32 the inputs are exact to 3e-5.
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_large_margins_by_brute_force(random, float64):
    """With a class of one example, which has no target neighbour, and one that does not count."""
    x, z = random.normal(size=(8, 3)), random.normal(size=(8, 2))
    labels, counts = np.array([0, 1, 0, 2, 1, 1, 0, 0]), np.array([1.0, 1, 1, 1, 1, 1, 0, 1])
    expected = np.zeros(8)
    for i in range(8):
        others = [j for j in range(8) if j != i and labels[j] == labels[i] and counts[j] > 0]
        targets = sorted(others, key=lambda j: ((x[i] - x[j]) ** 2).sum())[:2]
        for j in targets:
            d = ((z[i] - z[j]) ** 2).sum()
            impostors = [k for k in range(8) if labels[k] != labels[i] and counts[k] > 0]
            pushed = sum(max(0.0, 1 + d - ((z[i] - z[k]) ** 2).sum()) for k in impostors)
            expected[i] += (0.3 * d + 0.7 * pushed) / len(targets)
    same = (labels[:, None] == labels).astype("float64")
    tensors = map(keras.ops.convert_to_tensor, (z, x, same, counts))
    np.testing.assert_allclose(numpy(large_margin(*tensors, neighbors=2, push=0.7)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "loss", [Mahalanobis(3), Mahalanobis(3, 2), Mahalanobis(3, 2, "nca", num_classes=2)], ids=["full", "low", "nca"]
)
def test_transform_distance_and_precision_agree(loss, random):
    loss = copy.deepcopy(loss)
    loss.build_once((None, 3), (None, 3))
    for variable in loss.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    a, b = random.normal(size=(5, 3)), random.normal(size=(5, 3))
    quadratic = np.einsum("ni,ij,nj->n", a - b, loss.precision, a - b)
    np.testing.assert_allclose(loss.distance(a, b), np.sqrt(quadratic), rtol=1e-4)
    loss(np.arange(5) % 2 if loss.form == "nca" else a, b)
    eigenvalues = np.linalg.eigvalsh(loss.precision)
    told_by_log = eigenvalues.sum() if loss.form == "nca" else np.log(eigenvalues).sum()
    assert numpy(loss._log.result()) == pytest.approx(told_by_log, rel=1e-3, abs=1e-3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Rescaling(2.0)])
    mapped = loss.to_inference(model).predict(a, verbose=0)
    np.testing.assert_allclose(mapped, loss.transform(2 * a), rtol=1e-4, atol=1e-5)


def test_loadings_in_one_direction(random):
    """Where I + V'V, 1e8 and 1 in its eigenvalues, is singular in single precision."""
    y, direction = random.normal(size=(64, 6)).astype("float32"), random.normal(size=(6, 1))
    loss = Mahalanobis(6, rank=2)
    trainer = kriterion.Trainer(identity((6,), trainable=False))
    trainer.compile(keras.optimizers.SGD(1e-3), loss)
    trainer.prepare(0 * y, y)
    loadings = np.float32(1e4 * direction / np.linalg.norm(direction) * [1.0, 1.0])
    next(v for v in loss.trainable_variables if v.name == "loadings").assign(loadings)
    covariance = np.eye(6) + loadings.astype("float64") @ loadings.T
    logarithm = np.linalg.slogdet(2 * np.pi * covariance)[1]
    expected = np.mean(np.einsum("ni,ij,nj->n", y, np.linalg.inv(covariance), y) + logarithm) / 2
    # A diagonal entry of R, of order 1, is what remains of numbers of 1e4.
    value = trainer.evaluate(0 * y, y, verbose=0, return_dict=True)["loss"]
    assert value == pytest.approx(expected, abs=6e4 * 2**-23)
    trainer.train_on_batch(0 * y, y)
    assert all(np.isfinite(v.numpy()).all() for v in loss.trainable_variables)


# Published identities.


def test_logit_adjustment_is_cross_entropy_of_shifted_logits(random):
    logits, labels = random.normal(size=(6, 3)).astype("float32"), np.array([0, 1, 2, 2, 1, 0])
    shifted = logits + 0.7 * np.log([0.7, 0.2, 0.1])
    expected = -special.log_softmax(shifted, axis=-1)[np.arange(6), labels]
    for loss, p in (
        (LogitAdjusted([70, 20, 10], tau=0.7, from_logits=True, reduction=None), logits),
        (LogitAdjusted([70, 20, 10], tau=0.7, reduction=None), special.softmax(logits, axis=-1)),
    ):
        np.testing.assert_allclose(numpy(loss(labels, p)), expected, rtol=1e-4)
    binary = LogitAdjusted([9, 1], from_logits=True, reduction=None)
    z, y = logits[:, :1], np.float32([0, 1, 1, 0, 1, 0])
    expected = np.logaddexp(0, (1 - 2 * y) * (z[:, 0] + np.log(1 / 9)))
    np.testing.assert_allclose(numpy(binary(y, z)), expected, rtol=1e-4)
    np.testing.assert_allclose(numpy(binary(y[:, None], z)), expected, rtol=1e-4)


def test_uncertainty_is_a_barrier_of_a_half(random):
    y, p = random.integers(3, size=9), special.softmax(random.normal(size=(9, 3)), axis=-1)
    values = []
    for loss in (LearnedClassWeights(3, "uncertainty"), LearnedClassWeights(3, "barrier", strength=0.5)):
        loss.build_once((None,), (None, 3))
        loss.trainable_variables[0].assign([0.1, -0.2, 0.3])
        values.append(float(numpy(loss(y, p))))
    assert values[0] == values[1]


def test_rare_classes_are_not_forgotten_between_batches(random):
    """Adversarial weights of batches of one example each: the means over all of them are q_c L_c, to the last digit."""
    y, p = np.array([0, 0, 0, 0, 0, 0, 0, 1]), special.softmax(random.normal(size=(8, 2)), axis=-1)
    loss = LearnedClassWeights(2, "adversarial", step=1e-9, reduction="sum")
    loss.build_once((None,), (None, 2))
    loss(y, p)
    loss.training = False
    total = sum(float(numpy(loss(y[i : i + 1], p[i : i + 1]))) for i in range(8)) / 8
    each = -np.log(p[np.arange(8), y])
    assert total == pytest.approx((each[:7].mean() + each[7]) / 2, rel=1e-5)


def test_deciding_model(random):
    loss = LearnedThreshold("cost", from_logits=True)
    loss.build_once((None, 1), (None, 1))
    loss._threshold.assign(0.3)
    z = random.normal(size=(20, 1)).astype("float32")
    decided = loss.to_inference(identity()).predict(z, verbose=0)
    np.testing.assert_array_equal(decided, special.expit(z) >= 0.3)


def test_score_is_positive_outside_of_the_sphere():
    loss = SoftBoundary(0.5, center=[1.0, 0.0])
    loss.build_once((None,), (None, 2))
    loss(np.zeros(4), np.float32([[1, 1], [1, 2], [1, 3], [1, 4]]))
    assert loss.radius == pytest.approx(2.0)
    np.testing.assert_allclose(loss.score([[1.0, 0.0], [4.0, 0.0]]), [-4.0, 5.0], rtol=1e-5)


def test_the_first_centre_keeps_off_zero():
    loss = SoftBoundary(0.5)
    loss.build_once((None,), (None, 3))
    p = np.float32([[1.0, 0.02, -0.02], [3.0, 0.02, -0.02], [99.0, 9.0, 9.0]])
    loss(np.zeros(3), p, sample_weight=np.float32([1, 1, 0]))
    np.testing.assert_allclose(loss.center.numpy(), [2.0, 0.1, -0.1], rtol=1e-6)


# The base class.


@keras.saving.register_keras_serializable(package="tests")
class Everything(TrainableLoss):
    """A variable of each kind."""

    def build(self, y_true_shape, y_pred_shape):
        self.plain = self.add_weight((), 1.0, name="plain")
        self.scale = self.add_weight((), 2.0, parametrization=Positive(), name="scale")
        self.parts = self.add_weight(3, [0.2, 0.3, 0.5], parametrization=Simplex(), name="parts")
        self.matrix = self.add_weight((4, 4), np.eye(4), parametrization=PositiveDefinite(), name="matrix")
        self.bounded = self.add_weight(2, 0.3, parametrization=Bounded(0.0, 1.0), name="bounded")
        self.hidden = self.add_weight((2,), [1.0, 2.0], name="hidden", logged=False)
        self.count = self.add_weight((), "zeros", name="count", trainable=False)

    def call(self, y_true, y_pred):
        ops = keras.ops
        values = [
            self.plain.value,
            self.scale.value,
            self.parts.value,
            self.matrix.value,
            self.bounded.value,
            self.hidden.value,
        ]
        return ops.mean((y_true - y_pred) ** 2, axis=-1) + sum(ops.sum(ops.square(v)) for v in values)


def test_every_variable_starts_as_told_and_is_in_the_logs(random):
    x, y, last = problem("numbers", random)
    loss = Everything(name="mine")
    trainer = trainer_of(loss, last)
    history = trainer.fit(x, y, batch_size=48, verbose=0).history
    # Of the one step, the values before it.
    parts = [history[f"mine_parts_{k}"][0] for k in range(3)]
    assert [history["mine_plain"][0], history["mine_scale"][0], *parts] == pytest.approx(
        [1, 2, 0.2, 0.3, 0.5], rel=1e-5
    )
    assert history["mine_matrix_mean"][0] == pytest.approx(0.25)
    names = {key for key in history if key.startswith("mine_")}
    assert names == {"mine_plain", "mine_scale", "mine_matrix_mean", *(f"mine_parts_{k}" for k in range(3)), "mine_bounded_0", "mine_bounded_1"}  # fmt: skip
    loss.scale.assign(7.0)
    assert loss.scale.numpy() == pytest.approx(7.0)
    with pytest.raises(ValueError, match="positive"):
        loss.scale.assign(-1.0)


def test_a_frozen_loss_stays_as_it_is(random, tmp_path):
    x, y, last = problem("numbers", random)
    loss = Everything()
    trainer = trainer_of(loss, last)
    trainer.prepare(x, y)
    loss.trainable = False
    trainer.compile("sgd", loss)
    before = [v.numpy() for v in loss.variables]
    trainer.fit(x, y, verbose=0)
    for a, b in zip(before, loss.variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())
    assert len(trainer.trainable_variables) == len(trainer.model.trainable_variables)
    trainer.save(tmp_path / "trainer.keras")
    assert keras.saving.load_model(tmp_path / "trainer.keras").loss.trainable is False
    assert copy.deepcopy(loss).trainable is False


def test_training_goes_on_after_an_interruption(random, tmp_path):
    """BackupAndRestore: stopped in the third epoch and run again, as if it had not been stopped."""
    x, y, _ = problem("classes", random)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise InterruptedError

    def run(callbacks, **arguments):
        layer = keras.layers.Dense(3, "softmax", kernel_initializer="ones")
        trainer = trainer_of(LearnedClassWeights(3), layer, loss_learning_rate=0.1)
        trainer.fit(x, y, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
        return trainer.loss.class_weights

    expected = run([])
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    with pytest.raises(InterruptedError):
        run([backup, Stop()])
    np.testing.assert_array_equal(run([backup]), expected)


class Focal(TrainableLoss):
    """A learned focal exponent: ever larger, ever less loss."""

    has_finite_minimum = False

    def __init__(self, regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.regularizer = regularizer

    def build(self, y_true_shape, y_pred_shape):
        self.gamma = self.add_weight((), 1.0, parametrization=Positive(), name="gamma", regularizer=self.regularizer)

    def call(self, y_true, y_pred):
        entropy = keras.losses.binary_crossentropy(y_true, y_pred)
        return (1 - keras.ops.exp(-entropy)) ** self.gamma.value * entropy


def test_without_a_finite_minimum_a_regularizer_is_demanded(random):
    x, y, last = problem("binary", random)
    with told(ValueError, ["no finite minimum", "`regularizer`", "latent_gamma"]):
        trainer_of(Focal(), last).fit(x, y, verbose=0)
    with told(ValueError, ["Focal", "no finite minimum"]):
        trainer_of(CVaR(Focal(), 0.5), last).fit(x, y, verbose=0)
    trainer_of(Focal(keras.regularizers.L2(0.1)), keras.layers.Dense(1, "sigmoid")).fit(x, y, verbose=0)


@pytest.mark.parametrize("known", ["new", "built", "trained"])
def test_stock_compile_is_refused_whatever_happened_before(known, random):
    x, y, last = problem("numbers", random)
    loss = TaskUncertainty("mean_squared_error")
    if known == "built":
        loss.build_once((None, 3), (None, 3))
    if known == "trained":
        trainer_of(loss, keras.layers.Dense(3)).fit(x, y, verbose=0)
    model = keras.Sequential([keras.Input((4,)), last])
    model.compile("sgd", loss)
    with pytest.raises(RuntimeError, match=r"kriterion\.Trainer"):
        model.fit(x, y, verbose=0)
    if known != "new":
        # In a loop of one's own it works.
        assert np.isfinite(numpy(loss(y, y + 1)))


def test_masks_in_fit(random):
    """What the targets of padded steps are does not matter."""
    x = random.normal(size=(32, 5, 4)).astype("float32")
    y = random.normal(size=(32, 5, 3)).astype("float32")
    counts = random.integers(1, 6, size=32)
    mask = np.arange(5) < counts[:, None]
    found = []
    for garbage in (0.0, 1e6):
        keras.utils.set_random_seed(3)
        inputs = keras.Input((5, 4))
        model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Masking(-1.0)(inputs)))
        trainer = kriterion.Trainer(model)
        trainer.compile(keras.optimizers.SGD(0.1), CVaR("mean_squared_error", 0.5))
        padded = np.where(mask[..., None], y, garbage)
        trainer.fit(np.where(mask[..., None], x, -1.0), padded, verbose=0, shuffle=False)
        found.append(trainer.loss.threshold)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CVaR("mse", 1.0), ["`level`", "< 1", "1.0"]),
        (lambda: CVaR(None, 0.5), ["`loss`", "None"]),
        (lambda: CVaR("mse", 0.5).threshold, ["`fit`"]),
        (lambda: QuantileThreshold(0.0), ["`level`", "> 0"]),
        (lambda: SoftBoundary(1.5), ["`nu`", "1.5"]),
        (lambda: SoftBoundary(center=[1.0]).build((None,), (None, 2)), ["center", "(None, 2)"]),
        (lambda: LearnedThreshold("f2"), ["`objective`", "'f2'"]),
        (lambda: LearnedThreshold("precision_at_recall"), ["`target`", "None"]),
        (lambda: LearnedThreshold("soft_f1", target=0.5), ["`target`", "0.5"]),
        (lambda: LearnedThreshold("soft_f1", costs=(1, 2)), ["`costs`"]),
        (lambda: LearnedThreshold("cost", costs=(0.0, 1.0)), ["`costs`", "> 0"]),
        (lambda: LearnedClassWeights(1), ["`num_classes`", ">= 2"]),
        (lambda: LearnedClassWeights(3, "softmax"), ["`mode`", "'softmax'"]),
        (lambda: LearnedClassWeights(3, "barrier", step=0.1), ["step", "strength"]),
        (lambda: LearnedClassWeights(3, strength=[1.0, 2.0]), ["`strength`", "3 numbers"]),
        (lambda: LearnedClassWeights(3, "adversarial", step=1.0, tau=2.0), ["`step` times `tau`"]),
        (lambda: LogitAdjusted([1.0]), ["`frequencies`", "2 classes"]),
        (lambda: LogitAdjusted([1.0, 0.0]), ["`frequencies`", "> 0"]),
        (lambda: LogitAdjusted([1, 2, 3])(np.zeros(2), np.ones((2, 4))), ["last axis of 3", "(2, 4)"]),
        (lambda: LogitAdjusted([1, 2, 3])(np.zeros((2, 3, 1)), np.ones((2, 3))), ["one-hot", "(2, 3, 1)"]),
        (lambda: TemperatureScaled("mse"), ["`from_logits`", "mean_squared_error"]),
        (lambda: TemperatureScaled(SPARSE, temperature_range=(2.0, 3.0)), ["`temperature_range`", "< 1"]),
        (lambda: TemperatureScaled(SPARSE).to_inference(keras.Model()), ["one output"]),
        (lambda: TaskUncertainty("mse", "counts"), ["`form`", "'counts'"]),
        (lambda: TaskUncertainty("mse", log_variance_range=(1.0, 2.0)), ["`log_variance_range`", "< 0"]),
        (lambda: UncertaintyWeighted("mse"), ["`losses`", "TaskUncertainty"]),
        (lambda: UncertaintyWeighted({"a": "mse"}, classification=["b"]), ["`classification`", "['a']"]),
        (lambda: Mahalanobis(3, 3), ["`rank`", "rank=3"]),
        (lambda: Mahalanobis(3, form="nca"), ["num_classes"]),
        (lambda: Mahalanobis(3, neighbors=2), ["'gaussian'", "neighbors"]),
        (lambda: Mahalanobis(3).build((None, 2), (None, 2)), ["3", "(None, 2)"]),
        (lambda: Mahalanobis(3).precision, ["`fit`"]),
        (
            lambda: TaskUncertainty("mse").add_weight(3, "zeros", parametrization=Positive(), name="w"),
            ["`initializer`", "(3,)", "'zeros'", "'w'"],
        ),
    ],
)
def test_bad_arguments_are_told(make, words):
    with told(ValueError, words):
        make()
