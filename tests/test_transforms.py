"""What each transform does to an objective, on objectives that can be worked out by hand."""

import keras
import numpy as np
import pytest
from keras import ops

import minimand
from minimand.testing._suite import restored
from minimand.transforms import Batch, GradientVariancePenalty, SharpnessAware, Transform, WeightNoise, WeightPenalty
from tests.helpers import finite_difference, gradient, numpy, told


def squared_error(weights, batch):
    """mean_i (x_i . w - y_i)^2 / 2, whose gradient for one example is (x_i . w - y_i) x_i."""
    residual = ops.sum(batch.x * weights[0], axis=-1) - batch.y
    # `ops.mean` computes in float32 on some backends.
    return ops.sum(residual**2) / (2 * batch.x.shape[0]), "aux"


def example_gradients(x, y, w):
    return (x @ w - y)[:, None] * x


def tensors(*arrays, dtype="float64"):
    return [ops.convert_to_tensor(a, dtype=dtype) for a in arrays]


# WeightNoise


def kernel_model(*shape):
    return keras.Sequential([keras.Input(shape[:1]), keras.layers.Dense(shape[1], use_bias=False)])


def perturbed(transform, weights, steps=1, build=True):
    """The weights at which the transform evaluates its objective, of each step a list of passes."""
    if build:
        transform.build(kernel_model(*weights[0].shape))
    seen = []

    def objective(values, batch):
        seen[-1].append([numpy(v) for v in values])
        return ops.sum(values[0]), "aux"

    for _ in range(steps):
        seen.append([])
        transform.apply(objective)(weights, Batch(None))
    return seen


# Fourth central moment of the standardised law: the variance of a sample variance is (kurtosis - 1) / n.
KURTOSIS = {"normal": 3.0, "uniform": 1.8, "rademacher": 1.0}


@pytest.mark.parametrize("distribution", KURTOSIS)
def test_noise_has_the_stated_law(distribution, random):
    """Mean, variance and correlations of two steps of 60,000 numbers each, within 5 standard errors."""
    w = random.normal(size=(200, 300)).astype("float32")
    transform = WeightNoise(0.3, distribution=distribution, seed=1)
    (((first,),), ((second,),)) = perturbed(transform, tensors(w, dtype="float32"), steps=2)
    count, kurtosis = w.size, KURTOSIS[distribution]
    for noisy in (first, second):
        e = (noisy - w).astype("float64") / 0.3
        # What rounding w + s e to float32 adds.
        rounding = 1e-6
        assert abs(e.mean()) < 5 / np.sqrt(count)
        assert abs(np.mean(e**2) - 1) < 5 * np.sqrt((kurtosis - 1) / count) + rounding
        assert abs(np.mean(e**4) - kurtosis) < 5 * np.sqrt(105 / count) + 10 * rounding
        assert abs(np.mean(e[:, 1:] * e[:, :-1])) < 5 / np.sqrt(count)
        assert abs(np.mean(e[1:] * e[:-1])) < 5 / np.sqrt(count)
    assert abs(np.mean((first - w) * (second - w))) < 5 * 0.09 / np.sqrt(count)


def test_the_scale_of_each_mode(random):
    """The noise over s c(w) is the same unit noise in each mode."""
    w = random.normal(size=(6, 4)) * [0.0, 1.0, 2.0, 3.0]
    scales = {
        "additive": np.ones_like(w),
        "relative": w,
        "layer": np.full_like(w, np.sqrt(np.mean(w**2))),
        "filter": np.broadcast_to(np.sqrt(np.mean(w**2, axis=0)), w.shape),
    }
    noise = {}
    for mode, scale in scales.items():
        (((noisy,),),) = perturbed(WeightNoise(0.3, mode=mode, seed=1), tensors(w, dtype="float32"))
        noise[mode] = noisy - w
        np.testing.assert_allclose(noisy - w, noise["additive"] * scale, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["relative", "layer", "filter"])
def test_the_gradient_goes_through_the_scale(mode, random, float64):
    """That of the objective at a fixed draw, by finite differences; finite where a whole filter is zero."""
    w = random.normal(size=(3, 2))
    transform = WeightNoise(0.3, mode=mode, seed=1)
    transform.build(kernel_model(3, 2))
    start = transform.seed_generator.state.numpy()

    def value(v):
        transform.seed_generator.state.assign(start)
        return transform.apply(lambda weights, batch: (ops.sum(weights[0] ** 3), None))([v], Batch(None))[0]

    expected = finite_difference(lambda v: numpy(value(ops.convert_to_tensor(v))), w)
    np.testing.assert_allclose(gradient(value, w)[0], expected, rtol=1e-5, atol=1e-7)
    assert np.isfinite(gradient(value, w * [0.0, 1.0])[0]).all()


def test_dropped_weights(random):
    """Each weight is 0 with probability p and else w / (1 - p), p = s^2 / (1 + s^2); the share within 5 errors."""
    w = random.uniform(1.0, 2.0, size=(200, 300)).astype("float32")
    (((noisy,),),) = perturbed(
        WeightNoise(0.5, distribution="bernoulli", mode="relative", seed=3), tensors(w, dtype="float32")
    )
    p = 0.25 / 1.25
    dropped = noisy == 0
    np.testing.assert_allclose(noisy[~dropped], w[~dropped] / (1 - p), rtol=1e-6)
    assert abs(dropped.mean() - p) < 5 * np.sqrt(p * (1 - p) / w.size)


def test_an_antithetic_pair_cancels_odd_orders(random):
    """Of a cubic: ((w + d)^3 + (w - d)^3) / 2 = w^3 + 3 w d^2, with the d of the first pass."""
    w = random.normal(size=(3, 2))
    transform = WeightNoise(0.3, antithetic=True, samples=2, seed=1)
    transform.build(kernel_model(3, 2))
    seen = []

    def cubic(weights, batch):
        seen.append(numpy(weights[0]))
        return ops.sum(weights[0] ** 3), len(seen)

    loss, aux = transform.apply(cubic)(tensors(w, dtype="float32"), Batch(None))
    first, second = seen[0] - w, seen[2] - w
    np.testing.assert_allclose([seen[1] - w, seen[3] - w], [-first, -second], atol=1e-6)
    assert np.abs(first - second).min() > 0
    expected = np.sum(w**3 + 3 * w * (first**2 + second**2) / 2)
    assert float(numpy(loss)) == pytest.approx(expected, rel=1e-4)
    assert len(seen) == 4
    assert aux == 1


def test_a_schedule_and_when_noise_starts_and_stops():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [1.0, 0.25])
    transform = WeightNoise(schedule, distribution="rademacher", start=1, stop=5)
    steps = perturbed(transform, tensors(np.zeros((3, 2)), dtype="float32"), steps=7)
    assert [float(np.abs(w).max()) for ((w,),) in steps] == [0.0, 1.0, 1.0, 0.25, 0.25, 0.0, 0.0]


@pytest.mark.slow
def test_noise_adds_half_the_trace_of_the_hessian(random):
    """On a quadratic, E[L(w + s e)] - L(w) = s^2/2 tr H exactly; within 3 standard errors of 500 pairs."""
    x, y, w = random.normal(size=(20, 4)), random.normal(size=20), random.normal(size=(1, 4))
    transform = WeightNoise(0.5, antithetic=True, seed=2)
    transform.build(kernel_model(1, 4))

    batch = Batch(*tensors(x, y, dtype="float32"))
    noisy = transform.apply(lambda weights, batch: squared_error([weights[0][0]], batch))
    weights = tensors(w, dtype="float32")
    draws = np.array([float(numpy(noisy(weights, batch)[0])) for _ in range(500)])
    clean = np.mean((x @ w[0] - y) ** 2) / 2
    expected = clean + 0.5**2 / 2 * np.trace(x.T @ x / 20)
    assert abs(draws.mean() - expected) < 3 * draws.std() / np.sqrt(len(draws))


@pytest.mark.parametrize(
    ("select", "chosen"),
    [
        ("kernels", ["kernel", "kernel"]),
        ("all", ["kernel", "bias", "kernel", "bias"]),
        ("second/", ["kernel", "bias"]),
        (lambda variable: variable.name == "bias", ["bias", "bias"]),
    ],
)
def test_selection(select, chosen):
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="first"), keras.layers.Dense(1, name="second")]
    )
    transform = WeightNoise(0.1, select=select)
    transform.build(model)
    assert [v.name for v, c in zip(model.trainable_variables, transform.mask, strict=True) if c] == chosen


@keras.saving.register_keras_serializable(package="tests")
def is_kernel(variable):
    return variable.name == "kernel"


@pytest.mark.parametrize(
    "part",
    [
        lambda select: WeightNoise(0.1, select=select),
        lambda select: minimand.transforms.VariationalWeightNoise(select=select),
        lambda select: minimand.transforms.IVONNoise(select=select),
        lambda select: SharpnessAware(0.1, select=select),
        lambda select: WeightPenalty("l2", select=select),
        lambda select: GradientVariancePenalty(0.1, select=select),
        lambda select: minimand.transforms.Fishr(0.1, "site", 2, select=select),
        lambda select: minimand.transforms.GradientNormPenalty(0.1, select=select),
        lambda select: minimand.transforms.MeasureGradient(select=select),
        lambda select: minimand.optimizers.Proximal("sgd", "l1", select=select),
    ],
)
def test_a_function_that_selects_is_restored(part):
    assert restored(part(is_kernel)).select is is_kernel


# WeightPenalty


def test_penalty_adds_the_regularizer_of_the_selected_weights(random):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    transform = WeightPenalty(keras.regularizers.L2(0.5))
    transform.build(model)
    kernel, bias = random.normal(size=(3, 1)), random.normal(size=1)
    objective = transform.apply(lambda weights, batch: (ops.sum(weights[1]), "aux"))
    loss, aux = objective(tensors(kernel, bias, dtype="float32"), Batch(None))
    assert numpy(loss) == pytest.approx(bias.sum() + 0.5 * np.sum(kernel**2), rel=1e-5)
    assert aux == "aux"


# GradientVariancePenalty


def variance_penalty(strength, **arguments):
    penalty = GradientVariancePenalty(strength, estimator="micro_batch", **arguments)
    penalty.mask, penalty.estimators = [True], ["micro_batch"]
    return penalty


@pytest.mark.parametrize(("rows", "count"), [(12, 4), (13, 4), (3, 4), (8, 8)])
def test_penalty_is_the_micro_batch_estimate(rows, count, random, float64):
    x, y, w = random.normal(size=(rows, 3)), random.normal(size=rows), random.normal(size=3)
    used = min(rows, count)
    size = max(rows // count, 1)
    parts = example_gradients(x, y, w)[: used * size].reshape(used, size, 3).mean(axis=1)
    variance = size * parts.var(axis=0, ddof=1).sum()
    penalised = variance_penalty(0.7, micro_batches=count).apply(squared_error)
    loss, aux = penalised(tensors(w), Batch(*tensors(x, y)))
    assert float(numpy(loss)) == pytest.approx(np.mean((x @ w - y) ** 2) / 2 + 0.7 * variance, rel=1e-9)
    assert aux == "aux"


@pytest.mark.slow
def test_estimate_is_unbiased(random):
    """
    Over 80 random orders of a batch, the mean is the exact per-example variance within 4 standard errors.

    A random partition of a finite batch estimates b/(K-1) sum (G_k - G)^2 with expectation exactly V_unbiased.
    """
    x, y, w = random.normal(size=(24, 3)), random.normal(size=24), random.normal(size=3)
    exact = example_gradients(x, y, w).var(axis=0, ddof=1).sum()
    penalised = variance_penalty(1.0, micro_batches=4).apply(squared_error)
    clean = np.mean((x @ w - y) ** 2) / 2
    weights = tensors(w, dtype="float32")
    draws = []
    for _ in range(80):
        order = random.permutation(24)
        draws.append(float(numpy(penalised(weights, Batch(*tensors(x[order], y[order], dtype="float32")))[0])) - clean)
    assert abs(np.mean(draws) - exact) < 4 * np.std(draws) / np.sqrt(len(draws)) + 1e-4 * exact


def test_gradient_of_the_penalty(random, float64):
    x, y, w = random.normal(size=(8, 3)), random.normal(size=8), random.normal(size=3)
    batch = Batch(*tensors(x, y))
    penalised = variance_penalty(0.7, micro_batches=4).apply(squared_error)
    actual = gradient(lambda v: penalised([v], batch)[0], w)[0]
    expected = finite_difference(lambda v: numpy(penalised(tensors(v), batch)[0]), w)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_one_example_has_no_variance(random):
    x, y, w = random.normal(size=(1, 3)), random.normal(size=1), random.normal(size=3)
    batch = Batch(*tensors(x, y, dtype="float32"))
    penalised = variance_penalty(100.0).apply(squared_error)
    clean = squared_error(tensors(w, dtype="float32"), batch)[0]
    assert float(numpy(penalised(tensors(w, dtype="float32"), batch)[0])) == pytest.approx(
        float(numpy(clean)), rel=1e-6
    )


# SharpnessAware


def quadratic(weights, batch):
    """sum_l (w_l - 1)^T A_l (w_l - 1) / 2, A_l diagonal and given by the batch."""
    pairs = zip(weights, batch.x, strict=True)
    return sum(ops.sum(a * (w - 1.0) ** 2) for w, a in pairs) / 2, "aux"


def sharp_gradient(transform, arrays, matrices):
    transform.build(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    return gradient(lambda *values: transform.apply(quadratic)(list(values), Batch(tensors(*matrices)))[0], *arrays)


PERTURBATIONS = {
    "sam": ({}, lambda w, g: 0.3 * g / np.linalg.norm(g)),
    "asam": ({"adaptive": True}, lambda w, g: 0.3 * w**2 * g / np.linalg.norm(np.abs(w) * g)),
}


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_sharpness_aware_gradient_of_a_quadratic(kind, random, float64):
    """A (w + e - 1) with e of the formula, over all tensors."""
    arrays = random.normal(size=(3, 2)), random.normal(size=2)
    matrices = random.uniform(0.5, 2.0, size=(3, 2)), random.uniform(0.5, 2.0, size=2)
    arguments, perturbation = PERTURBATIONS[kind]
    w, a = (np.concatenate([part.ravel() for part in parts]) for parts in (arrays, matrices))
    expected = a * (w + perturbation(w, a * (w - 1)) - 1)
    actual = sharp_gradient(SharpnessAware(0.3, **arguments), arrays, matrices)
    np.testing.assert_allclose(np.concatenate([g.ravel() for g in actual]), expected, rtol=1e-6)


def test_adversarial_weight_perturbation_of_a_quadratic(random, float64):
    """Each selected tensor by its own norm; the bias is not selected."""
    arrays = random.normal(size=(3, 2)), random.normal(size=2)
    matrices = random.uniform(0.5, 2.0, size=(3, 2)), random.uniform(0.5, 2.0, size=2)
    kernel, bias = sharp_gradient(SharpnessAware(0.3, per_layer=True, select="kernels"), arrays, matrices)
    g = matrices[0] * (arrays[0] - 1)
    e = 0.3 * np.linalg.norm(arrays[0]) * g / np.linalg.norm(g)
    np.testing.assert_allclose(kernel, matrices[0] * (arrays[0] + e - 1), rtol=1e-6)
    np.testing.assert_allclose(bias, matrices[1] * (arrays[1] - 1), rtol=1e-6)


@pytest.mark.parametrize(("rows", "parts"), [(12, 4), (11, 4), (2, 4)])
@pytest.mark.slow
def test_each_part_of_the_batch_has_its_own_perturbation(rows, parts, random, float64):
    x, y, w = random.normal(size=(rows, 3)), random.normal(size=rows), random.normal(size=3)
    expected = np.zeros(3)
    for part in np.split(np.arange(rows), [k * rows // parts for k in range(1, parts)]):
        if len(part):
            g = example_gradients(x[part], y[part], w).mean(axis=0)
            expected += example_gradients(x[part], y[part], w + 0.2 * g / np.linalg.norm(g)).sum(axis=0) / rows
    transform = SharpnessAware(0.2, micro_batches=parts)
    transform.build(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)]))
    batch = Batch(*tensors(x, y))
    loss = transform.apply(squared_error)
    np.testing.assert_allclose(gradient(lambda v: loss([v], batch)[0], w)[0], expected, rtol=1e-6)
    assert loss(tensors(w), batch)[1] == "aux"


def test_no_gradient_no_perturbation(float64):
    arrays, matrices = (np.ones((3, 2)), np.ones(2)), (np.ones((3, 2)), np.ones(2))
    for arguments in ({}, {"adaptive": True}, {"per_layer": True}):
        actual = sharp_gradient(SharpnessAware(0.3, **arguments), arrays, matrices)
        np.testing.assert_array_equal(actual[0], 0.0)


def test_both_passes_see_the_same_noise(random):
    """Two passes, whose weights differ by the perturbation alone; the next step draws other noise."""
    seen = []

    def objective(weights, batch):
        seen.append(numpy(weights[0]))
        return ops.sum(weights[0] * batch.x), "aux"

    a = random.normal(size=(3, 2)).astype("float32")
    noise, sharp = WeightNoise(0.5, seed=1), SharpnessAware(0.1)
    for transform in (noise, sharp):
        transform.build(kernel_model(3, 2))
    composed = sharp.apply(noise.apply(objective))
    state = noise.seed_generator.state
    for _ in range(2):
        with keras.StatelessScope([(state, state.value)]) as scope:
            composed(tensors(np.zeros((3, 2)), dtype="float32"), Batch(*tensors(a, dtype="float32")))
        state.assign(scope.get_current_value(state))
    assert len(seen) == 4
    for clean, sharp_weights in (seen[:2], seen[2:]):
        np.testing.assert_allclose(sharp_weights - clean, 0.1 * a / np.linalg.norm(a), atol=1e-6)
    assert np.abs(seen[2] - seen[0]).max() > 0.01


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: WeightNoise(-0.1), ValueError, ["`stddev`", ">= 0", "-0.1"]),
        (lambda: WeightNoise(float("nan")), ValueError, ["`stddev`", "nan"]),
        (lambda: WeightNoise(0.1, mode="both"), ValueError, ["`mode`", "'additive'", "'both'"]),
        (lambda: WeightNoise(0.1, distribution="cauchy"), ValueError, ["`distribution`", "'normal'", "'cauchy'"]),
        (
            lambda: WeightNoise(0.1, distribution="bernoulli"),
            ValueError,
            ["drops weights", 'mode="relative"', "'additive'"],
        ),
        (lambda: WeightNoise(0.1, samples=0), ValueError, ["`samples`", ">= 1", "0"]),
        (lambda: WeightNoise(0.1, antithetic=1), TypeError, ["`antithetic`", "True or False", "1"]),
        (lambda: WeightNoise(0.1, start=5, stop=5), ValueError, ["`stop`", ">= 6", "5"]),
        (lambda: SharpnessAware(0.0), ValueError, ["`rho`", "> 0", "0.0"]),
        (lambda: SharpnessAware(0.1, micro_batches=0), ValueError, ["`micro_batches`", ">= 1", "0"]),
        (lambda: SharpnessAware(0.1, adaptive=True, per_layer=True), ValueError, ["`adaptive`", "`per_layer`"]),
        (lambda: WeightNoise(0.1, select="["), ValueError, ["`select`", "regular expression"]),
        (lambda: WeightNoise(0.1, select=3), TypeError, ["`select`", "3"]),
        (lambda: WeightNoise(0.1, seed=1.5), TypeError, ["`seed`", "1.5"]),
        (lambda: WeightPenalty(None), ValueError, ["`regularizer`", "None"]),
        (lambda: GradientVariancePenalty(float("inf")), ValueError, ["`strength`", "inf"]),
        (lambda: GradientVariancePenalty(1.0, micro_batches=1), ValueError, ["`micro_batches`", ">= 2", "1"]),
    ],
)
def test_bad_arguments_are_told(make, error, words):
    with told(error, words):
        make()


def test_base_class_says_what_to_implement():
    with pytest.raises(NotImplementedError, match="apply"):
        minimand.transforms.Transform().apply(squared_error)


@keras.saving.register_keras_serializable(package="tests")
class Level(Transform):
    """A user's transform that hands `seed` and `name` on by `**kwargs`."""

    def __init__(self, level, **kwargs):
        super().__init__(**kwargs)
        self.level = level

    def apply(self, objective):
        return objective


def test_a_configuration_has_the_arguments_that_kwargs_hand_on():
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(Level(0.5, seed=3, name="mine")))
    assert (again.level, again.seed, again.name) == (0.5, 3, "mine")
