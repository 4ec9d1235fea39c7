"""Losses that weight examples: published identities, what a constant prediction converges to, weights and masks."""

import keras
import mpmath
import numpy as np
import pytest
from keras.losses import (
    BinaryCrossentropy,
    BinaryFocalCrossentropy,
    CategoricalCrossentropy,
    CategoricalFocalCrossentropy,
    CategoricalGeneralizedCrossEntropy,
    MeanSquaredError,
    SparseCategoricalCrossentropy,
)
from scipy import optimize, special

import minimand
from minimand import backend
from minimand.losses import (
    IRLS,
    AdaptiveRobust,
    Focal,
    GeneralizedCrossEntropy,
    GradientHarmonized,
    HardExampleMining,
    SelfPaced,
    StandardizedIRLS,
    TemperatureScaled,
)
from minimand.losses._base import trainable_losses, weighted_quantile
from minimand.losses._example_weighted import _MEDIAN_TO_STDDEV
from tests.helpers import compiled, gradient, mostly_slow, numpy, told

WEIGHTED = {
    "focal": lambda **kwargs: Focal("binary_crossentropy", differentiate=False, **kwargs),
    "irls": lambda **kwargs: IRLS("binary_crossentropy", scale=0.5, **kwargs),
    "hard_example_mining": lambda **kwargs: HardExampleMining("binary_crossentropy", 0.4, **kwargs),
    "gradient_harmonized": lambda **kwargs: GradientHarmonized("binary_crossentropy", bins=4, **kwargs),
    "self_paced": lambda **kwargs: SelfPaced("binary_crossentropy", share=0.6, **kwargs),
    "standardized_irls": lambda **kwargs: StandardizedIRLS("binary_crossentropy", scale=1.0, **kwargs),
}
FAST = WEIGHTED["focal"], WEIGHTED["gradient_harmonized"]
all_weighted = pytest.mark.parametrize("make", mostly_slow(WEIGHTED.values(), *FAST), ids=WEIGHTED)


def ready(loss, shape=(None, 1)):
    for part in trainable_losses(loss):
        part.build_once(shape, shape)
    return loss


@pytest.fixture
def binary(random):
    """Targets and probabilities, (40, 1)."""
    y = (random.uniform(size=(40, 1)) < 0.3).astype("float32")
    return y, random.uniform(0.02, 0.98, size=(40, 1)).astype("float32")


def effective_weights(loss, y, p):
    """The weights that act on the gradient, where each is a constant to it."""
    plain = gradient(lambda v: BinaryCrossentropy(reduction="sum")(y, v), p)[0]
    return gradient(lambda v: loss(y, v), p)[0] / plain


# Published identities.


@pytest.mark.parametrize("gamma", mostly_slow([0.5, 2.0], 2.0))
def test_focal_is_the_focal_loss_of_keras(gamma, binary, random):
    y, p = binary
    ours = Focal(BinaryCrossentropy(), gamma=gamma)
    focal = BinaryFocalCrossentropy(gamma=gamma)
    assert float(numpy(ours(y, p))) == pytest.approx(float(numpy(focal(y, p))), rel=1e-5)
    np.testing.assert_allclose(gradient(lambda v: ours(y, v), p)[0], gradient(lambda v: focal(y, v), p)[0], rtol=1e-4)

    labels, logits = random.integers(3, size=8), random.normal(size=(8, 3)).astype("float32")
    focal = CategoricalFocalCrossentropy(alpha=1.0, gamma=gamma, from_logits=True)
    expected = float(numpy(focal(np.eye(3, dtype="float32")[labels], logits)))
    for targets, entropy in (
        (labels, SparseCategoricalCrossentropy(from_logits=True)),
        (np.eye(3, dtype="float32")[labels], CategoricalCrossentropy(from_logits=True)),
    ):
        ours = Focal(entropy, gamma=gamma)
        assert float(numpy(ours(targets, logits))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("q", mostly_slow([0.3, 0.7, 0.99], 0.7))
def test_generalized_cross_entropy_is_that_of_keras(q, random):
    labels, logits = random.integers(3, size=8), random.normal(size=(8, 3)).astype("float32")
    p = special.softmax(logits, axis=-1)
    ours = GeneralizedCrossEntropy(SparseCategoricalCrossentropy(), q=q)
    theirs = CategoricalGeneralizedCrossEntropy(q=q)
    assert float(numpy(ours(labels, p))) == pytest.approx(float(numpy(theirs(labels, p))), rel=1e-5)
    actual, expected = (
        gradient(lambda v, loss=loss: loss(labels, keras.ops.softmax(v)), logits)[0] for loss in (ours, theirs)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)


def test_generalized_cross_entropy_goes_from_cross_entropy_to_the_absolute_error(binary):
    """And its gradient is that of cross-entropy times p^q."""
    y, p = binary
    entropy = numpy(BinaryCrossentropy(reduction="none")(y, p))
    for q, expected, rtol in ((1e-6, entropy, 1e-5), (1.0, np.abs(y - p)[:, 0], 1e-5)):
        loss = GeneralizedCrossEntropy("binary_crossentropy", q=q, reduction="none")
        np.testing.assert_allclose(numpy(loss(y, p)), expected, rtol=rtol)
    loss = GeneralizedCrossEntropy("binary_crossentropy", q=0.6, reduction="sum")
    np.testing.assert_allclose(effective_weights(loss, y, p)[:, 0], np.exp(-0.6 * entropy), rtol=1e-3)


@pytest.mark.parametrize("alpha", mostly_slow([2.0, 1.0, 0.0, -2.0, float("-inf")], 2.0, 0.0))
def test_error_weights_are_those_of_the_robust_loss(alpha, random):
    """The gradient is that of 2 c^2 rho: iteratively reweighted least squares."""
    y, p = random.normal(size=(9, 1)).astype("float32"), random.normal(size=(9, 1)).astype("float32")
    robust = minimand.losses.GeneralRobust(alpha, 0.6)
    ours = IRLS(MeanSquaredError(), alpha=alpha, scale=0.6)
    expected = 2 * 0.6**2 * gradient(lambda v: robust(y, v), p)[0]
    np.testing.assert_allclose(gradient(lambda v: ours(y, v), p)[0], expected, rtol=1e-4, atol=1e-7)


def test_the_hardest_fraction_counts(binary):
    y, p = binary
    losses = numpy(BinaryCrossentropy(reduction="none")(y, p))
    for fraction in (0.05, 0.25, 0.31, 1.0):
        kept = np.sort(losses)[::-1][: int(np.ceil(fraction * 40))]
        value = float(numpy(HardExampleMining("binary_crossentropy", fraction)(y, p)))
        assert value == pytest.approx(kept.sum() / 40, rel=1e-5)


def test_density_weights_are_inverse_to_the_density_of_gradients(binary):
    y, p = binary
    g = np.abs(y - p)[:, 0]
    counts = np.histogram(g, bins=5, range=(0, 1))[0]
    expected = 40 / (5 * counts[np.minimum((g * 5).astype(int), 4)])
    loss = ready(GradientHarmonized("binary_crossentropy", bins=5, reduction="sum"))
    np.testing.assert_allclose(effective_weights(loss, y, p)[:, 0], expected, rtol=1e-3)


def test_self_paced_learning_leaves_out_the_largest_losses(binary):
    y, p = binary
    losses = numpy(BinaryCrossentropy(reduction="none")(y, p))
    loss = ready(SelfPaced("binary_crossentropy", share=0.75, reduction="sum"))
    assert float(numpy(loss(y, p))) == pytest.approx(np.sort(losses)[:30].sum(), rel=1e-5)


def test_standardized_weights_do_not_change_with_the_unit(random):
    y, p = random.normal(size=(20, 1)).astype("float32"), random.normal(size=(20, 1)).astype("float32")
    values = []
    for unit in (1.0, 1000.0):
        loss = ready(StandardizedIRLS("mean_squared_error"))
        values.append(float(numpy(loss(unit * y, unit * p))) / unit**2)
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    residual = (p - y)[:, 0]
    residual_scale = 1.4826 * np.sort(np.abs(residual))[9]
    expected = np.mean(residual**2 / (1 + (residual / (2 * residual_scale)) ** 2 / 2))
    assert values[0] == pytest.approx(expected, rel=1e-4)


# What a constant prediction converges to, as the documentation says.


def constant_optimum(loss, y, low, high):
    """The zero of the loss's gradient by a constant prediction."""

    @compiled
    def slope(predictions):
        return backend.value_and_gradient(lambda p: (loss(y, p[0]), None), [predictions])[1][0]

    def at(value):
        return numpy(slope(keras.ops.full(y.shape, value, "float32"))).sum()

    return optimize.brentq(at, low, high, xtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "power"),
    [
        (Focal("binary_crossentropy", gamma=2.0, differentiate=False), 1 / 3),
        (Focal("binary_crossentropy", gamma=0.5, differentiate=False), 1 / 1.5),
        (GeneralizedCrossEntropy("binary_crossentropy", q=0.5), 2.0),
    ],
)
def test_confidence_is_not_proper(loss, power):
    """p/(1-p) = (b/(1-b))^(1/(1+gamma)) or ^(1/(1-q))."""
    y = (np.arange(50) < 15).astype("float32")[:, None]
    odds = (0.3 / 0.7) ** power
    assert constant_optimum(loss, y, 0.01, 0.99) == pytest.approx(odds / (1 + odds), abs=1e-4)


def test_error_weights_find_the_m_estimate(random):
    y = np.concatenate([random.normal(size=(90, 1)), random.uniform(8, 12, size=(10, 1))]).astype("float32")
    rho = compiled(lambda residual: minimand.losses.general_robust(residual, 0.0, 1.0))
    estimate = optimize.minimize_scalar(
        lambda m: numpy(rho(y - np.float32(m))).sum(),
        bounds=(-1, 1),
        method="bounded",
    ).x
    assert constant_optimum(IRLS("mean_squared_error"), y, -1, 1) == pytest.approx(estimate, abs=1e-3)
    assert abs(estimate) < 0.3 < y.mean()
    for fraction, expected in ((1.0, y.mean()), (0.02, (y.min() + y.max()) / 2)):
        loss = HardExampleMining("mean_squared_error", fraction)
        assert constant_optimum(loss, y, -5, 12) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("bins", "expected"), [(10, 0.5), (5, 0.4)])
def test_density_converges_to_one_half_within_a_bin(bins, expected):
    """With both groups in one bin, the middle one of an odd number, the base rate rules: to its edge and no further."""
    y = (np.arange(50) < 5).astype("float32")[:, None]
    loss = ready(GradientHarmonized("binary_crossentropy", bins=bins, momentum=0.0))
    assert constant_optimum(loss, y, 0.05, 0.95) == pytest.approx(expected, abs=1e-3)


def test_the_median_of_normal_deviations():
    """P(|x| < q) = erf(q/sqrt 2) = 1/2."""
    assert float(mpmath.erf(1 / _MEDIAN_TO_STDDEV / mpmath.sqrt(2))) == pytest.approx(0.5, rel=1e-14)


def test_standardized_irls_finds_the_m_estimate_with_the_median_absolute_deviation(random):
    y = np.concatenate([random.normal(size=(90, 1)), random.uniform(8, 12, size=(11, 1))]).astype("float32")
    found = constant_optimum(ready(StandardizedIRLS("mean_squared_error", momentum=0.0)), y, -1, 2)
    scale = 2 * _MEDIAN_TO_STDDEV * np.median(np.abs(y - found))
    weights = 1 / (1 + ((y - found) / scale) ** 2 / 2)
    assert found == pytest.approx(np.sum(weights * y) / np.sum(weights), abs=1e-3)


# Weights, masks, statistics.


@all_weighted
def test_weights_are_constants_to_the_gradient(make, binary):
    """The slope of each example's loss has one sign, that of the plain loss, and the value is weight times loss."""
    y, p = binary
    loss = ready(make(reduction="sum"))
    weights = effective_weights(loss, y, p)[:, 0]
    fresh = numpy(ready(make(reduction="none"))(y, p))
    plain = numpy(BinaryCrossentropy(reduction="none")(y, p))
    np.testing.assert_allclose(weights * plain, fresh, rtol=2e-3, atol=1e-5)
    assert len(np.unique(weights.round(4))) > 1  # never one number for the batch


@all_weighted
def test_the_mean_weight_can_be_one(make, binary, random):
    y, p = binary
    importance = random.uniform(0.1, 2.0, size=40).astype("float32")
    loss = ready(make(reduction="none", normalize=True))
    plain = numpy(BinaryCrossentropy(reduction="none")(y, p))
    weights = numpy(loss(y, p, sample_weight=importance)) / (plain * importance)
    assert np.average(weights, weights=importance) == pytest.approx(1.0, rel=1e-5)


@all_weighted
@pytest.mark.parametrize("normalize", [False, True])
def test_an_example_of_weight_two_counts_as_two_do(make, normalize, binary, random):
    y, p = binary
    repeats = random.integers(0, 4, size=40)
    once = ready(make(reduction="sum", normalize=normalize))(y, p, sample_weight=repeats.astype("float32"))
    often = ready(make(reduction="sum", normalize=normalize))(
        np.repeat(y, repeats, axis=0), np.repeat(p, repeats, axis=0)
    )
    assert float(numpy(once)) == pytest.approx(float(numpy(often)), rel=1e-4)


@all_weighted
def test_masked_examples_do_not_count(make, random):
    y = (random.uniform(size=(4, 6, 1)) < 0.5).astype("float32")
    p = random.uniform(0.02, 0.98, size=(4, 6, 1)).astype("float32")
    mask = random.uniform(size=(4, 6)) < 0.6
    prediction = keras.ops.convert_to_tensor(np.where(mask[..., None], p, np.nan))
    keras.src.backend.set_keras_mask(prediction, keras.ops.convert_to_tensor(mask))
    masked = ready(make(reduction="sum", normalize=True), (None, 6, 1))(y, prediction)
    alone = ready(make(reduction="sum", normalize=True))(y[mask], p[mask])
    assert float(numpy(masked)) == pytest.approx(float(numpy(alone)), rel=1e-4)


@all_weighted
def test_the_order_of_examples_does_not_matter(make, binary, random):
    y, p = binary
    order = random.permutation(40)
    each = numpy(ready(make(reduction="none"))(y, p))
    np.testing.assert_allclose(numpy(ready(make(reduction="none"))(y[order], p[order])), each[order], rtol=1e-5)


def test_statistics_are_running_means_of_batches(random):
    loss = ready(SelfPaced("mean_squared_error", momentum=0.75, share=0.5))
    expected = None
    for _ in range(4):
        y = random.normal(size=(11, 1)).astype("float32")
        loss(y, 0 * y)
        median = np.median(y**2)
        expected = median if expected is None else 0.75 * expected + 0.25 * median
        assert float(numpy(loss.statistic.value)) == pytest.approx(expected, rel=1e-5)
    before = float(numpy(loss.statistic.value))
    loss(np.full((3, 1), np.nan), np.zeros((3, 1)), sample_weight=np.zeros(3))
    loss.training = False
    loss(y, 0 * y + 5)
    assert float(numpy(loss.statistic.value)) == before


def test_statistics_change_in_fit_and_not_in_evaluate(binary):
    y, p = binary
    trainer = minimand.Trainer(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "sigmoid")]))
    loss = GradientHarmonized("binary_crossentropy", bins=4)
    trainer.compile("sgd", loss)
    plain = float(numpy(BinaryCrossentropy()(y, trainer.predict(p, verbose=0))))
    assert trainer.evaluate(p, y, verbose=0) == pytest.approx(plain, rel=1e-5)
    assert float(numpy(loss.started.value)) == 0
    trainer.fit(p, y, batch_size=10, verbose=0)
    assert float(numpy(loss.started.value)) == 1
    assert numpy(loss.statistic.value).sum() == pytest.approx(1.0, rel=1e-5)
    before = numpy(loss.statistic.value)
    trainer.evaluate(p, y, verbose=0)
    np.testing.assert_array_equal(numpy(loss.statistic.value), before)


def test_weights_without_statistics_work_in_stock_compile(binary, tmp_path):
    y, p = binary
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "sigmoid")])
    model.compile("sgd", HardExampleMining(Focal("binary_crossentropy", normalize=True), 0.5))
    model.fit(p, y, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    assert restored.evaluate(p, y, verbose=0) == pytest.approx(model.evaluate(p, y, verbose=0), rel=1e-5)
    model.compile("sgd", GradientHarmonized("binary_crossentropy"))
    with pytest.raises(RuntimeError, match="Trainer"):
        model.fit(p, y, verbose=0)
    for loss in (IRLS(AdaptiveRobust()), HardExampleMining(Focal(TemperatureScaled("binary_crossentropy")), 0.5)):
        for _ in ("unbuilt", "built"):
            model.compile("sgd", loss)
            with pytest.raises(RuntimeError, match="Trainer"):
                model.fit(p, y, verbose=0)
            for part in trainable_losses(loss):
                part.build_once((None, 1), (None, 1))


def test_the_variables_of_a_wrapped_loss_are_trained_and_saved(random, tmp_path):
    x = random.normal(size=(64, 1)).astype("float32")
    trainer = minimand.Trainer(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    loss = GradientHarmonized(AdaptiveRobust())
    trainer.compile(keras.optimizers.Adam(0.05), loss)
    trainer.fit(x, 3 * x, epochs=2, verbose=0)
    assert not np.allclose(loss.loss.alpha, 1.0, atol=1e-3)
    trainer.save(tmp_path / "trainer.keras")
    restored = keras.saving.load_model(tmp_path / "trainer.keras").loss
    np.testing.assert_array_equal(restored.loss.alpha, loss.loss.alpha)
    np.testing.assert_array_equal(numpy(restored.statistic.value), numpy(loss.statistic.value))


def test_predictions_of_rank_one_are_examples():
    y, p = np.float32([0.0, 0.0, 0.0]), np.float32([1.0, 2.0, 3.0])
    np.testing.assert_allclose(
        numpy(IRLS("mean_squared_error", reduction="none")(y, p)),
        numpy(IRLS("mean_squared_error", reduction="none")(y[:, None], p[:, None])),
    )


def test_a_quantile_of_weighted_values_is_that_of_repeated_ones(random):
    values, repeats = random.normal(size=(30, 2)).astype("float32"), random.integers(0, 5, size=(30, 2))
    for level in (0.1, 0.5, 0.9, 1.0):
        actual = numpy(weighted_quantile(values, repeats.astype("float32"), level))
        for column in range(2):
            every = np.repeat(values[:, column], repeats[:, column])
            assert actual[column] == np.quantile(every, level, method="inverted_cdf")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Focal("binary_crossentropy", gamma=0.0), ["`gamma`", "> 0"]),
        (lambda: Focal(None), ["Focal", "`loss`", "None"]),
        (lambda: GeneralizedCrossEntropy("binary_crossentropy", q=2.0), ["`q`", "<= 1"]),
        (lambda: IRLS("mse", alpha=3.0), ["`alpha`", "<= 2"]),
        (lambda: IRLS("mse", scale=0.0), ["`scale`", "> 0"]),
        (lambda: HardExampleMining("mse", 1.5), ["`fraction`", "<= 1"]),
        (lambda: SelfPaced(None), ["SelfPaced", "`loss`", "None"]),
        (lambda: SelfPaced("mse", momentum=1.0), ["`momentum`", "< 1"]),
        (lambda: GradientHarmonized("mse", bins=1), ["`bins`", ">= 2"]),
    ],
)
def test_bad_arguments_are_told(make, words):
    with told(ValueError, words):
        make()
