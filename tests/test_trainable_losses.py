"""Losses with variables, in `fit`: trained, bounded, saved, logged, frozen, and refused where they would be lost."""

import copy

import keras
import numpy as np
import pytest
from scipy import special

import minimand
from minimand.losses import (
    NCA,
    CostThreshold,
    CVaR,
    DeepSVDD,
    Focal,
    GroupDRO,
    LearnedClassWeights,
    LogitAdjusted,
    Mahalanobis,
    PrecisionAtRecallThreshold,
    QuantileThreshold,
    TaskUncertainty,
    TemperatureScaled,
    TrainableLoss,
    UncertaintyWeighted,
)
from minimand.parametrizations import Bounded, Positive, PositiveDefinite, Simplex
from tests.helpers import numpy, steps, told

SPARSE = "sparse_categorical_crossentropy"


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
    trainer = minimand.Trainer(keras.Sequential([keras.Input((4,)), *layers]))
    trainer.compile(keras.optimizers.Adam(0.02), loss, **arguments)
    return trainer


# What `fit` finds.


def test_an_adversary_equalises_the_classes(random):
    """Two classes of 1 : 20 around -1 and 1: the network's worst class gets better, the mean worse."""
    y = (random.uniform(size=2048) < 1 / 21).astype("int32")
    x = (random.normal(size=(2048, 1)) + 2 * y[:, None] - 1).astype("float32")
    losses = {}
    for name, loss in {
        "plain": SPARSE,
        "adversarial": GroupDRO(2, SPARSE, step=0.02),
    }.items():
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, "softmax")])
        trainer = minimand.Trainer(model)
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
    trainer = minimand.Trainer(keras.Model(inputs, outputs))
    trainer.compile(
        keras.optimizers.Adam(0.1), losses, loss_weights={"metres": 1.0, "kind": 2.0},
        transforms=[minimand.transforms.WeightNoise(0.01)], steps_per_execution=steps(8),
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
    trainer = minimand.Trainer(model)
    trainer.compile(keras.optimizers.Adam(0.02), TemperatureScaled(SPARSE), steps_per_execution=steps(20))
    trainer.fit(3 * logits, y, batch_size=200, epochs=10, verbose=0)
    assert trainer.loss.temperature == pytest.approx(3.0, rel=0.08)
    calibrated = trainer.loss.to_inference(model)
    # Keras clips probabilities at 1e-7.
    known = np.log(np.clip(special.softmax(3 * logits, axis=-1), 1e-7, 1))
    expected = special.softmax(known / trainer.loss.temperature, axis=-1)
    np.testing.assert_allclose(calibrated.predict(3 * logits, verbose=0), expected, atol=1e-5)


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


def test_class_weights_of_strength_a_half_are_those_of_task_uncertainty(random):
    """Kendall's form: of each class the loss e^-s l + s/2, with e^-s the class's weight."""
    y, p = random.integers(3, size=9), special.softmax(random.normal(size=(9, 3)), axis=-1)
    loss = LearnedClassWeights(3, strength=0.5, reduction=None)
    loss.build_once((None,), (None, 3))
    weights = np.array([0.4, 1.5, 3.0])
    loss._weights.assign(weights)
    expected = np.zeros(9)
    for c in range(3):
        task = TaskUncertainty(SPARSE, "classification", reduction=None)
        task.build_once((None,), (None, 3))
        task._log_variance.assign(-np.log(weights[c]))
        expected = np.where(y == c, numpy(task(y, p)), expected)
    np.testing.assert_allclose(numpy(loss(y, p)), expected, rtol=1e-5)


def test_rare_classes_are_not_forgotten_between_batches(random):
    """Adversarial weights of batches of one example each: the means over all of them are q_c L_c, to the last digit."""
    y, p = np.array([0, 0, 0, 0, 0, 0, 0, 1]), special.softmax(random.normal(size=(8, 2)), axis=-1)
    loss = GroupDRO(2, step=1e-9, reduction="sum")
    loss.build_once((None,), (None, 2))
    loss(y, p)
    loss.training = False
    total = sum(float(numpy(loss(y[i : i + 1], p[i : i + 1]))) for i in range(8)) / 8
    each = -np.log(p[np.arange(8), y])
    assert total == pytest.approx((each[:7].mean() + each[7]) / 2, rel=1e-5)


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


@keras.saving.register_keras_serializable(package="tests")
class Scaled(TrainableLoss):
    """A user's own loss of another loss: l / s + log s."""

    def __init__(self, loss, **kwargs):
        super().__init__(**kwargs)
        self.loss = self.wrap(loss)

    def build(self, y_true_shape, y_pred_shape):
        self.scale = self.add_weight((), 2.0, parametrization=Positive(), name="scale")

    def call(self, y_true, y_pred):
        values = self.values_of(self.loss, y_true, y_pred)
        return values / self.scale.value + keras.ops.log(self.scale.value)


@pytest.mark.slow
def test_a_loss_trains_and_saves_the_variables_of_the_losses_inside(random, tmp_path):
    """Also through a loss without variables, which in turn needs the sample weights."""
    x, y, last = problem("classes", random)
    inner = TemperatureScaled(SPARSE)
    loss = Scaled(Focal(inner, normalize=True), name="mine")
    trainer = trainer_of(loss, last)
    history = trainer.fit(x, y, sample_weight=np.arange(48) % 3, verbose=0).history
    assert {"mine_scale", "temperature_scaled_temperature"} <= set(history)
    assert len(loss.trainable_variables) == 2
    assert inner.temperature != 1.0
    inner.trainable = False
    trainer.compile("sgd", loss)
    before = inner.temperature
    trainer.fit(x, y, verbose=0)
    assert inner.temperature == before
    trainer.save(tmp_path / "trainer.keras")
    for twin in (keras.saving.load_model(tmp_path / "trainer.keras").loss, copy.deepcopy(loss)):
        assert twin.trainable
        assert not twin.loss.loss.trainable
        assert twin.loss.loss.temperature == before
        assert twin.scale.numpy() == loss.scale.numpy()
    loss.training = False
    p = trainer.predict(x, verbose=0)
    repeats = np.arange(48) % 3
    weighted = numpy(loss(y, p, sample_weight=repeats)) * 48
    repeated = numpy(loss(np.repeat(y, repeats), np.repeat(p, repeats, axis=0))) * repeats.sum()
    assert weighted == pytest.approx(repeated, rel=1e-5)


def test_a_loss_inside_a_loss_without_a_minimum_is_refused(random):
    x, y, last = problem("binary", random)
    with told(ValueError, ["LearnedFocal", "no finite minimum"]):
        trainer_of(Focal(LearnedFocal()), last).fit(x, y, verbose=0)


class LearnedFocal(TrainableLoss):
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
        trainer_of(LearnedFocal(), last).fit(x, y, verbose=0)
    with told(ValueError, ["LearnedFocal", "no finite minimum"]):
        trainer_of(CVaR(LearnedFocal(), 0.5), last).fit(x, y, verbose=0)
    trainer_of(LearnedFocal(keras.regularizers.L2(0.1)), keras.layers.Dense(1, "sigmoid")).fit(x, y, verbose=0)


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
    with pytest.raises(RuntimeError, match=r"minimand\.Trainer"):
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
        trainer = minimand.Trainer(model)
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
        (lambda: DeepSVDD(1.5), ["`nu`", "1.5"]),
        (lambda: DeepSVDD(center=[1.0]).build((None,), (None, 2)), ["center", "(None, 2)"]),
        (lambda: PrecisionAtRecallThreshold(1.0), ["`recall`", "< 1", "1.0"]),
        (lambda: CostThreshold(false_negative_cost=0.0), ["`false_negative_cost`", "> 0"]),
        (lambda: LearnedClassWeights(1), ["`num_classes`", ">= 2"]),
        (lambda: LearnedClassWeights(3, strength=[1.0, 2.0]), ["`strength`", "3 numbers"]),
        (lambda: GroupDRO(3, step=1.0, tau=2.0), ["`step` times `tau`"]),
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
        (lambda: NCA(3, 1), ["`num_classes`", ">= 2"]),
        (lambda: NCA(3, 2).build((None,), (None, 5, 3)), ["(batch, 3)", "(None, 5, 3)"]),
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
