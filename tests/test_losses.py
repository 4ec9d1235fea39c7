"""The losses: what they converge to, and Keras's contract for each."""

import keras
import mpmath
import numpy as np
import pytest
from scipy import stats

import minimand
from minimand import testing
from minimand.losses import AdaptiveRobust, AdaptiveStudentT, GeneralRobust
from minimand.losses._robust import _NORMAL_QUANTILE, _QUANTILE_LEVEL, _STIRLING
from minimand.testing._losses import built
from tests.helpers import KERAS, compiled, dtype_policy, gradient, mostly_slow, numpy, told
from tests.parts import LOSSES, suite_of


@pytest.mark.slow
def test_the_adaptive_loss_is_a_density(float64):
    """exp(-loss) integrates to 1 at any shape and scale."""
    loss = AdaptiveRobust(alpha_init=0.6, scale_init=0.4, reduction=None)
    loss.build_once((None, 1), (None, 1))
    u = np.linspace(-20, 20, 40001)
    x = np.sinh(u)
    values = numpy(loss(np.zeros((len(x), 1)), x[:, None]))
    assert np.sum(np.exp(-values) * np.cosh(u)) * (u[1] - u[0]) == pytest.approx(1.0, abs=1e-5)


def test_collapse_the_variables_alone_find_the_closed_form(random):
    """Fixed residuals and a shape held next to 2: the likelihood is the normal one, optimal at scale = RMS."""
    residuals = random.normal(0.0, 0.5, size=(2000, 1)).astype("float32")
    loss, _ = fitted_to(residuals, init="reference", alpha_range=(1.998, 1.999))
    assert loss.scale[0] == pytest.approx(np.sqrt(np.mean(residuals**2)), rel=0.01)


def test_the_shape_tells_heavy_tails_from_light_ones(random):
    normal, _ = fitted_to(random.normal(size=(2000, 1)).astype("float32"))
    cauchy, _ = fitted_to(random.standard_t(1.0, size=(2000, 1)).astype("float32"))
    assert cauchy.alpha[0] < 0.3
    assert normal.alpha[0] > 1.5


def fitted_to(residuals, make=AdaptiveRobust, steps=300, **arguments):
    """The loss after training its variables alone, each step on all of these residuals."""
    loss = make(**arguments)
    trainer = minimand.Trainer(keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(1.0)]))
    trainer.compile(keras.optimizers.Adam(0.05), loss)
    repeated = np.tile(residuals, (steps, 1))
    return loss, trainer.fit(repeated, 0 * repeated, batch_size=len(residuals), shuffle=False, verbose=0)


def test_start_is_as_stated():
    loss = AdaptiveRobust(alpha_range=(0.1, 1.1), alpha_init=0.3, scale_init=2.5)
    loss.build_once((None, 3), (None, 3))
    np.testing.assert_allclose(loss.alpha, [0.3] * 3, rtol=1e-5)
    np.testing.assert_allclose(loss.scale, [2.5] * 3, rtol=1e-5)
    reference = AdaptiveRobust(init="reference")
    reference.build_once((None, 1), (None, 1))
    assert reference.alpha[0] == pytest.approx(1.0)
    assert reference.scale[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "sizes", "axes"),
    [
        ({}, (3,), (0, 1, 2)),
        pytest.param({"axis": (1, 3)}, (4, 3), (0, 2), marks=pytest.mark.slow),
        pytest.param({"axis": 2}, (5,), (0, 1, 3), marks=pytest.mark.slow),
        pytest.param({"shared": True}, (1,), (0, 1, 2, 3), marks=pytest.mark.slow),
        ({"groups": [0, 1, 0]}, (3,), (0, 1, 2)),
    ],
)
@pytest.mark.parametrize("make", mostly_slow([AdaptiveRobust, AdaptiveStudentT], AdaptiveRobust))
@pytest.mark.slow
def test_the_first_scale_is_a_fraction_of_the_first_spread(make, arguments, sizes, axes, random):
    """Of the entries that count: for normal residuals, of their standard deviation."""
    loss = make(**arguments)
    loss.build_once((None, 4, 5, 3), (None, 4, 5, 3))
    residual = (random.normal(size=(21, 4, 5, 3)) * random.uniform(0.5, 2, size=(4, 5, 3))).astype("float32")
    counts = np.arange(21) % 3 > 0
    weight = np.repeat(counts, 20).reshape(21, 4, 5).astype("float32")
    loss(0 * residual, np.where(counts[:, None, None, None], residual, 1e3), sample_weight=weight)
    quartile = np.quantile(np.abs(residual[counts]), 0.25, axis=axes, method="inverted_cdf")
    spread = quartile / stats.norm.ppf(0.625)
    spread = np.reshape(spread, sizes)
    if "groups" in arguments:
        spread[[0, 2]] = spread[[0, 2]].mean()
    expected = 0.2 * spread + 1e-5 if make is AdaptiveRobust else 0.2 * np.sqrt(2) * spread
    np.testing.assert_allclose(loss.scale, expected, rtol=1e-5)
    loss(0 * residual, 100 * residual)
    np.testing.assert_allclose(loss.scale, expected, rtol=1e-5)


@pytest.mark.slow
def test_both_likelihoods_start_as_the_same_cauchy_density(random):
    """The first spread of residuals decides on its width, so both losses have the same value in the first step."""
    y, p = np.zeros((64, 1), "float32"), random.normal(size=(64, 1)).astype("float32")
    values = []
    for loss in (AdaptiveRobust(alpha=0.0, reduction=None), AdaptiveStudentT(df=1.0, reduction=None)):
        loss.build_once((None, 1), (None, 1))
        values.append(numpy(loss(y, p)))
    # The lower bound of 1e-5 is added to one of the scales.
    np.testing.assert_allclose(*values, atol=1e-3)


@pytest.mark.parametrize("arguments", [{}, {"scale_init": 3.0}])
def test_the_scale_of_student_t_stays_above_a_quarter_of_the_first(arguments, random):
    loss = AdaptiveStudentT(**arguments)
    loss.build_once((None, 1), (None, 1))
    residual = random.normal(size=(64, 1)).astype("float32")
    loss(0 * residual, residual)
    first = float(loss.scale[0])
    loss.steps.assign(500)
    # A softplus of -60 is 0, and of 2 log(e - 1) times a half is 1.
    for latent, growth in ((-60.0, 0.0), (2 * np.log(np.e - 1), 1 / np.log(2))):
        loss.latent_scale.assign([latent])
        assert loss.scale[0] == pytest.approx(first * (0.25 + 0.75 * growth), rel=1e-5)
    if arguments:
        assert first == pytest.approx(3.0)
    reference = AdaptiveStudentT(init="reference")
    reference.build_once((None, 1), (None, 1))
    reference.latent_scale.assign([-60.0])
    assert reference.scale[0] == pytest.approx(1e-5)


@pytest.mark.slow
def test_shape_and_scale_are_released_little_by_little():
    """Their trained numbers times t/(t + 500)."""
    loss = AdaptiveRobust(alpha_init=1.0, alpha_range=(0.5, 1.5), scale_init=2.0)
    loss.build_once((None, 1), (None, 1))
    loss.latent_shape.assign([1.0])
    loss.latent_scale.assign([1.0])
    for step in range(3):
        released = step / (step + 500)
        assert loss.alpha[0] == pytest.approx(0.5 + 1 / (1 + np.exp(-released)), rel=1e-5)
        assert loss.scale[0] == pytest.approx(2 * np.log1p(np.exp(released)) / np.log(2), rel=1e-5)
        loss(np.zeros((2, 1)), np.ones((2, 1)))
    loss.training = False
    loss(np.zeros((2, 1)), np.ones((2, 1)))
    assert float(numpy(loss.steps.value)) == 3


@pytest.mark.slow
def test_residuals_that_tell_no_spread_start_as_the_others():
    y, p = np.zeros((8, 2), "float32"), np.float32([[1, 0], [-1, 0]] * 4)
    loss = AdaptiveRobust()
    loss.build_once((None, 2), (None, 2))
    loss(y, p)
    assert loss.scale[0] == pytest.approx(0.2 / stats.norm.ppf(0.625), rel=1e-3)
    assert loss.scale[1] == pytest.approx(0.1 / stats.norm.ppf(0.625), rel=1e-3)
    few = AdaptiveRobust()
    few.build_once((None, 2), (None, 2))
    few(y[:1], np.float32([[1.0, 3.0]]))
    np.testing.assert_allclose(few.scale, 0.4 / stats.norm.ppf(0.625), rtol=1e-3)
    same = AdaptiveRobust()
    same.build_once((None, 2), (None, 2))
    same(y, y)
    np.testing.assert_allclose(same.scale, 0.2, rtol=1e-3)


@pytest.mark.slow
def test_the_start_does_not_depend_on_the_unit_nor_on_evaluation(random):
    x, y = random.normal(size=(64, 3)).astype("float32"), random.normal(size=(64, 1)).astype("float32")
    scales = []
    for unit in (1.0, 1e4):
        trainer = minimand.Trainer(
            keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        )
        trainer.compile(keras.optimizers.SGD(0.0), AdaptiveRobust())
        trainer.evaluate(x, 7 * unit * y, verbose=0)
        trainer.fit(x, unit * y, batch_size=64, verbose=0)
        scales.append(trainer.loss.scale[0] / unit)
    assert scales[0] == pytest.approx(scales[1], rel=1e-4)


def parameters_for(shape, **arguments):
    loss = AdaptiveRobust(init="reference", **arguments)
    loss.build_once(shape, shape)
    return loss


@pytest.mark.parametrize(
    ("arguments", "shape", "size"),
    [
        ({}, (None, 4, 5, 3), (3,)),
        ({"axis": 1}, (None, 4, None, None), (4,)),
        ({"axis": (1, 2)}, (None, 4, 5, 3), (4, 5)),
        ({"axis": (-1, 1)}, (None, 4, None, 3), (4, 3)),
        ({"shared": True}, (None, 4, 5, None), (1,)),
        ({"groups": [0, 1, 0]}, (None, 3), (3,)),
    ],
)
@pytest.mark.slow
def test_where_shapes_and_scales_are_kept(arguments, shape, size, random):
    """Against a loop over the positions, each with the shape and scale that it is said to have."""
    loss = parameters_for(shape, reduction=None, **arguments)
    for variable in loss.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    assert loss.alpha.shape == loss.scale.shape == size
    full = tuple(4 if length is None else length for length in shape)
    y, p = (random.normal(size=full).astype("float32") for _ in range(2))
    axes = sorted(axis % len(full) for axis in np.atleast_1d(arguments.get("axis", -1)))
    shapes, scales = np.zeros(full, "float32"), np.zeros(full, "float32")
    alpha, scale = loss.alpha, loss.scale
    for position in np.ndindex(full):
        own = (0,) if arguments.get("shared") else tuple(position[axis] for axis in axes)
        shapes[position], scales[position] = alpha[own], scale[own]
    expected = -numpy(compiled(minimand.losses.robust_log_density)(p - y, shapes, scales))
    loss.training = False
    np.testing.assert_allclose(numpy(compiled(loss)(y, p)), expected.mean(axis=-1), rtol=1e-4, atol=1e-5)


def test_positions_of_a_group_share():
    loss = parameters_for((None, 4), groups=[0, 1, 1, 0])
    assert [tuple(v.shape) for v in loss.trainable_variables] == [(2,), (2,)]
    loss.latent_scale.assign([0.0, 1.0])
    assert loss.scale[0] == loss.scale[3] != loss.scale[1] == loss.scale[2]


def test_a_fixed_shape_or_scale_is_not_learned():
    loss = parameters_for((None, 2), alpha=2.0, scale=3.0)
    assert loss.trainable_variables == []
    y, p = np.zeros((1, 2), "float32"), np.float32([[1.0, 2.0]])
    normal = (np.array([1.0, 4.0]) / 18 + np.log(3) + np.log(2 * np.pi) / 2).mean()
    assert float(numpy(loss(y, p))) == pytest.approx(normal, rel=1e-6)
    assert [v.name for v in parameters_for((None, 2), alpha=1).trainable_variables] == ["latent_scale"]
    assert parameters_for((None, 2), alpha=1).alpha.tolist() == [1.0, 1.0]
    assert [v.name for v in parameters_for((None, 2), scale=0.5).trainable_variables] == ["latent_alpha"]


def test_the_shape_starts_where_it_is_told_to_and_keeps_its_range():
    loss = parameters_for((None, 3), alpha_init=0.7, alpha_range=(0.2, 1.9))
    np.testing.assert_allclose(loss.alpha, 0.7, rtol=1e-5)
    loss.latent_shape.assign([-50.0, 0.0, 50.0])
    np.testing.assert_allclose(loss.alpha[[0, 2]], [0.2, 1.9], rtol=1e-5)


@pytest.mark.slow
def test_tails_lighter_than_normal_ones(random):
    """Uniform residuals: the best shape lies beyond 2, and its likelihood is higher than the normal one's."""
    residuals = random.uniform(-1, 1, size=(2000, 1)).astype("float32")
    loss, _ = fitted_to(residuals, init="reference", alpha_range=(0.001, 30.0), alpha_init=1.9)
    assert loss.alpha[0] > 4
    normal = np.log(residuals.std()) + np.log(2 * np.pi) / 2 + 0.5
    assert float(numpy(loss(0 * residuals, residuals))) < normal


def test_shape_and_scale_are_in_the_logs(random):
    loss, history = fitted_to(random.normal(size=(300, 2)).astype("float32"), steps=3)
    assert history.history["adaptive_robust_alpha"][-1] == pytest.approx(loss.alpha.mean(), abs=0.1)
    assert history.history["adaptive_robust_scale"][-1] == pytest.approx(loss.scale.mean(), abs=0.1)
    assert "adaptive_robust_alpha" not in fitted_to(np.ones((9, 1), "float32"), steps=1, alpha=1.0)[1].history


@pytest.mark.parametrize("df", [0.05, 0.3, 1.0, 3.0, 40.0, 1e4])
def test_student_t_is_the_likelihood_of_scipy(df, float64):
    loss = AdaptiveStudentT(df=df, scale=0.7, reduction=None)
    loss.build_once((None, 1), (None, 1))
    x = np.array([0.0, 1e-3, 0.4, -3.0, 50.0, 1e6])
    expected = -stats.t.logpdf(x, df, scale=0.7)
    np.testing.assert_allclose(numpy(loss(np.zeros((6, 1)), x[:, None])), expected, rtol=1e-10, atol=1e-11)


def test_stirlings_series():
    """The series is that of log Gamma(x) - log Gamma(x + 1/2): B_2k (2 - 2^(1 - 2k))/((2k - 1) 2k), B the Bernoulli numbers."""
    for k, coefficient in enumerate(_STIRLING, start=1):
        expected = mpmath.bernoulli(2 * k) * (2 - mpmath.mpf(2) ** (1 - 2 * k)) / ((2 * k - 1) * 2 * k)
        assert coefficient == pytest.approx(float(expected), rel=1e-14)


def test_the_quantile_of_normal_residuals():
    """P(|x| < q) = erf(q/sqrt 2)."""
    assert float(mpmath.erf(_NORMAL_QUANTILE / mpmath.sqrt(2))) == pytest.approx(_QUANTILE_LEVEL, rel=1e-14)


@pytest.mark.parametrize("make", [AdaptiveRobust, AdaptiveStudentT])
def test_the_first_shape_and_scale_are_exact(make, float64):
    loss = make(scale_init=0.7, **{f"{make.density.shape_name}_init": 1.3}, dtype="float64")
    loss.build_once((None, 1), (None, 1))
    np.testing.assert_allclose([loss.scale, getattr(loss, make.density.shape_name)], [[0.7], [1.3]], rtol=1e-14)


def test_degrees_of_freedom_are_found(random):
    """The maximum of the likelihood, found by SciPy."""
    residuals = random.standard_t(2.5, size=(2000, 1)).astype("float32")
    loss, _ = fitted_to(residuals, AdaptiveStudentT, init="reference")
    df, _, scale = stats.t.fit(residuals[:, 0], floc=0)
    assert loss.df[0] == pytest.approx(df, rel=0.03)
    assert loss.scale[0] == pytest.approx(scale, rel=0.02)


def test_an_enormous_residual_has_a_finite_gradient():
    loss = AdaptiveStudentT()
    loss.build_once((None, 1), (None, 1))
    x = np.float32([[1e30], [-3e38], [0.0]])
    assert np.isfinite(gradient(lambda p: loss(0 * x, p), x)[0]).all()


def test_a_large_residual_in_half_precision(random):
    """300^2 overflows float16."""
    with dtype_policy("mixed_float16"):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(1.0)])
    trainer = minimand.Trainer(model)
    trainer.compile(keras.optimizers.SGD(1e-3), AdaptiveRobust(init="reference"))
    history = trainer.fit(np.full((4, 1), 300.0), np.zeros((4, 1)), verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert history.history["loss"][0] == pytest.approx(
        299.0 + float(numpy(minimand.losses.log_partition(1.0))), rel=1e-3
    )


# What the conformance suite does not ask of every loss.


@pytest.mark.parametrize("name", [name for name, part in LOSSES.items() if not part.attributes])
def test_targets_without_the_last_axis(name, random):
    """(n,) with predictions (n, 1): not broadcast to (n, n)."""
    y, p = (random.normal(size=(4, 1)).astype("float32") for _ in range(2))
    loss = built(LOSSES[name].make(reduction=None), y[:, 0], p)
    flat = numpy(loss(y[:, 0], p))
    assert flat.shape == (4,)
    np.testing.assert_allclose(flat, numpy(loss(y, p)), rtol=1e-6)
    with pytest.raises(ValueError, match="same shape"):
        loss(np.ones((4, 3)), np.ones((4, 2, 3)))


@pytest.mark.parametrize("name", [name for name, part in LOSSES.items() if part.attributes.get("targets") == "classes"])
def test_class_indices_and_one_hot_targets(name, random):
    y = random.integers(3, size=(4, 6)).astype("float32")
    p = random.dirichlet(np.ones(3), size=(4, 6)).astype("float32")
    loss = built(LOSSES[name].make(reduction=None), y, p)
    loss.training = False
    each = numpy(loss(y, p))
    np.testing.assert_allclose(each, numpy(loss(y[..., None], p)), rtol=1e-5)
    if not hasattr(loss, "loss"):
        np.testing.assert_allclose(each, numpy(loss(np.eye(3)[y.astype(int)], p)), rtol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch.compile")
@pytest.mark.skipif(KERAS < (3, 15), reason="Keras before 3.15 walks the arguments of each operation in compiled code")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("name", list(LOSSES)[::3])  # the compiler traces each for seconds
def test_torch_does_not_compile_the_loss_in_every_step(name, random):
    import torch

    suite = suite_of(testing.LossSuite, LOSSES[name])()
    program = torch.compile(built(suite.make(), *suite.examples(random, 9)), backend="eager")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for _ in range(torch._dynamo.config.recompile_limit + 3):
            program(*map(keras.ops.convert_to_tensor, suite.examples(random, 9)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GeneralRobust(scale=0.0), ["`scale`", "> 0", "0.0"]),
        (lambda: GeneralRobust(alpha=float("nan")), ["`alpha`", "nan"]),
        (lambda: GeneralRobust(alpha="one"), ["`alpha`", "'one'"]),
        (lambda: AdaptiveRobust(alpha_range=(1.0, 0.5)), ["`alpha_range`", "increase", "(1.0, 0.5)"]),
        (lambda: AdaptiveRobust(alpha_range=(-0.5, 1.5)), ["`alpha_range`", "-0.5"]),
        (lambda: AdaptiveRobust(alpha_range=(0.0, float("inf"))), ["`alpha_range`", "inf"]),
        (lambda: AdaptiveRobust(alpha_init=1.9995), ["`alpha_init`", "1.9995"]),
        (lambda: AdaptiveRobust(scale_init=1e-6), ["`scale_init`", "1e-06"]),
        (lambda: AdaptiveRobust(alpha=-1.0), ["`alpha`", ">= 0", "-1.0"]),
        (lambda: AdaptiveRobust(scale=-1.0), ["`scale`", "-1.0"]),
        (lambda: AdaptiveRobust(groups=[0, 2]), ["`groups`", "[0, 2]"]),
        (lambda: AdaptiveRobust(groups=[0, 1], shared=True), ["`groups`", "shared"]),
        (lambda: AdaptiveRobust(groups=[0, 1]).build((None, 3), (None, 3)), ["`groups`", "3", "2"]),
        (lambda: AdaptiveRobust(axis=0).build((None, 3), (None, 3)), ["`axis`", "batch"]),
        (lambda: AdaptiveRobust(axis=2).build((None, 3), (None, 3)), ["`axis`", "(2,)"]),
        (lambda: AdaptiveStudentT(df=0.0), ["`df`", "> 0"]),
        (lambda: AdaptiveStudentT(df_range=(2.0, 1.0)), ["`df_range`", "increase"]),
        (lambda: AdaptiveStudentT(df_init=0.1), ["`df_init`", "inside"]),
        (lambda: AdaptiveStudentT().df, ["df", "fit"]),
        (lambda: AdaptiveRobust().alpha, ["fit"]),
        (lambda: AdaptiveRobust().build((None, None), (None, None)), ["known size"]),
    ],
)
def test_bad_arguments_are_told(make, words):
    with told(ValueError, words):
        make()
