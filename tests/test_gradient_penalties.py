"""Transforms that penalise the gradient and its variance between examples; weights of examples' gradients."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from minimand.gradients import GradientMoments, gradient_moments
from minimand.optimizers import SVAG
from minimand.transforms import (
    Batch,
    Fishr,
    GradientNormPenalty,
    GradientVariancePenalty,
    MeasureGradient,
    MiniBatchVariance,
    SharpnessAware,
    WeightNoise,
    WeightPenalty,
)
from tests.helpers import compiled, finite_difference, gradient, mostly_slow, numpy, told
from tests.small_networks import batch_for, objective_of, small_network, squares, trainer_of, value_and_gradient


class Linear(layers.Layer):
    """A dense layer that computes in float64 on every backend, which Keras's activations do not."""

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], 2))
        self.bias = self.add_weight((2,), "ones")

    def call(self, x):
        z = ops.sum(x[:, :, None] * self.kernel, axis=1) + self.bias
        return z + 0.2 * z * z


def double_network():
    keras.utils.set_random_seed(4)
    return keras.Sequential([keras.Input((3,)), Linear(), Linear()])


def sequence_network():
    """Layers without a closed form, and layers with one that see several positions."""
    keras.utils.set_random_seed(4)
    parts = [layers.Conv1D(4, 2), layers.LayerNormalization(), layers.Dense(3, "tanh"), layers.SimpleRNN(3)]
    return keras.Sequential([keras.Input((5, 3)), *parts, layers.Dense(2)])


def example_gradients(trainer, x, y):
    """For each weight (n, ...), by a pass for each example."""
    each = []
    for row in range(len(x)):
        found = trainer.value_and_gradient(x[row : row + 1], y[row : row + 1])[1]
        each.append([numpy(g).astype("float64") for g in found])
    return [np.stack(same) for same in zip(*each, strict=True)]


class MeanOfSquares(keras.losses.Loss):
    """The mean over the batch in float64; Keras takes it in float32 on PyTorch."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        y_true, y_pred = ops.convert_to_tensor(y_true, y_pred.dtype), ops.convert_to_tensor(y_pred)
        return ops.sum(squares(y_true, y_pred)) / y_pred.shape[0]


PENALTIES = {
    "probe": lambda: GradientVariancePenalty(0.7, estimator="probe", seed=1),
    "micro_batch": lambda: GradientVariancePenalty(0.7, estimator="micro_batch", micro_batches=3),
    "exact": lambda: GradientVariancePenalty(0.7, estimator="exact"),
    "fishr": lambda: Fishr(0.7, lambda batch: batch.x[:, 0] > 0, 2),
    "norm": lambda: GradientNormPenalty(0.7),
    "root": lambda: GradientNormPenalty(0.7, squared=False),
    "after_noise": lambda: [WeightNoise(0.3, seed=2), GradientVariancePenalty(0.7, estimator="probe", seed=1)],
    "after_a_penalty": lambda: [WeightPenalty("l2"), GradientVariancePenalty(0.7)],
    "norm_after_variance": lambda: [GradientVariancePenalty(0.7, select="kernels"), GradientNormPenalty(0.2)],
}


@pytest.mark.parametrize("name", mostly_slow(PENALTIES, "probe", "norm"))
def test_the_gradient_of_each_penalised_objective(name, random, float64):
    """By finite differences in float64, at the same draws."""
    made = PENALTIES[name]()
    model = double_network()
    trainer = trainer_of(model, *(made if isinstance(made, list) else [made]), loss=MeanOfSquares())
    objective = objective_of(trainer, *batch_for(model, random))
    values = [v.numpy() for v in trainer.trainable_variables]
    for index in (0, 3):

        def at(value, index=index):
            changed = [ops.convert_to_tensor(v) for v in values]
            changed[index] = ops.convert_to_tensor(value)
            return objective(changed)

        found = gradient(at, values[index])[0]
        expected = finite_difference(lambda v, at=at: numpy(at(v)), values[index], step=1e-5)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", mostly_slow([sequence_network, small_network], small_network))
def test_the_gradient_of_the_exact_penalty_in_closed_form(make, random):
    """Micro-batches of one example give the same function in float32, and so does "auto" with such parts."""
    x, y = (part.astype("float32") for part in batch_for(make(), random, rows=3))
    found = []
    for estimator in ("micro_batch", "exact", "auto"):
        penalty = GradientVariancePenalty(0.7, estimator=estimator, micro_batches=3)
        loss, gradients = value_and_gradient(trainer_of(make(), penalty), x, y)
        found.append([numpy(loss), *map(numpy, gradients)])
    for b, *others in zip(*found, strict=True):
        for a in others:
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * np.abs(b).max())


def test_auto_is_exact_where_there_is_a_closed_form(random):
    """The layers of `sequence_network` are Conv1D, LayerNormalization, Dense, SimpleRNN and Dense."""
    penalty = GradientVariancePenalty(0.7)
    trainer_of(sequence_network(), penalty)
    exact, others = ["exact"] * 2, ["micro_batch"] * 2
    assert penalty.estimators == [*exact, *others, *exact, *others, "micro_batch", *exact]
    penalty = GradientVariancePenalty(0.7, select="kernels")
    trainer_of(sequence_network(), penalty)
    kernels = ["exact", None, None, None, "exact", None, "micro_batch", "micro_batch", None, "exact", None]
    assert penalty.estimators == kernels
    penalty = GradientVariancePenalty(0.7)
    trainer_of(small_network(), WeightNoise(0.1), penalty)
    assert penalty.estimators == ["micro_batch"] * 4


def test_auto_takes_micro_batches_for_batch_normalisation(random):
    """Frozen, the normalisation no longer mixes the examples."""
    model = batch_normalised()
    x, y = (part.astype("float32") for part in batch_for(model, random, rows=6))
    found = []
    for estimator in ("auto", "micro_batch"):
        penalty = GradientVariancePenalty(0.7, estimator=estimator, micro_batches=3)
        loss, gradients = value_and_gradient(trainer_of(batch_normalised(), penalty), x, y)
        assert penalty.estimators == ["micro_batch"] * 6
        found.append([numpy(loss), *map(numpy, gradients)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
    penalty = GradientVariancePenalty(0.7)
    trainer = trainer_of(model, penalty)
    model.layers[1].trainable = False
    trainer.compile("sgd", squares, transforms=[penalty])
    assert penalty.estimators == ["exact"] * 4


@pytest.mark.slow
def test_penalties_have_their_values(random, float64):
    model = small_network()
    x, y = batch_for(model, random, rows=6)
    moments = GradientMoments.of_examples(example_gradients(trainer_of(model), x, y))
    plain = float(numpy(trainer_of(model).value_and_gradient(x, y)[0]))
    squared_norm = sum(np.sum(m**2) for m in moments.mean)
    kernels = sum(np.sum(v) for v in moments.variance if v.ndim == 2)
    for transform, expected in (
        (GradientVariancePenalty(0.7), 0.7 * moments.trace),
        (GradientVariancePenalty(0.7, estimator="exact"), 0.7 * moments.trace),
        (GradientVariancePenalty(0.7, estimator="micro_batch", micro_batches=6), 0.7 * moments.trace),
        (GradientVariancePenalty(0.7, select="kernels"), 0.7 * kernels),
        (GradientNormPenalty(0.7), 0.7 * squared_norm),
        (GradientNormPenalty(0.7, squared=False), 0.7 * np.sqrt(squared_norm)),
    ):
        loss = value_and_gradient(trainer_of(model, transform), x, y)[0]
        assert float(numpy(loss)) == pytest.approx(plain + expected, rel=1e-5)


def test_probe_penalty_is_unbiased(random):
    """Over 400 steps without an update, the mean penalty is the exact one within 4 standard errors."""
    model = small_network()
    x, y = (part.astype("float32") for part in batch_for(model, random, rows=12))
    exact = gradient_moments(trainer_of(model), x, y).trace
    trainer = trainer_of(
        model, GradientVariancePenalty(1.0, estimator="probe", seed=3), optimizer=keras.optimizers.SGD(0.0)
    )
    plain = trainer.evaluate(x, y, verbose=0)
    draws = np.array([float(trainer.train_on_batch(x, y)) for _ in range(400)])
    # Keras returns the running mean of the loss: undo it.
    draws = np.diff(np.concatenate([[0.0], draws * np.arange(1, 401)])) - plain
    assert abs(draws.mean() - exact) < 4 * draws.std() / np.sqrt(400)


@pytest.mark.slow
def test_differences_of_variances_between_domains(random, float64):
    """By a key of the inputs and by a function; a domain of one example is left out."""
    keras.utils.set_random_seed(4)
    features, domain = keras.Input((3,), name="x"), keras.Input((), dtype="int32", name="domain")
    model = keras.Model({"x": features, "domain": domain}, layers.Dense(2)(layers.Dense(4, "tanh")(features)))
    x, y = random.normal(size=(9, 3)), random.normal(size=(9, 2))
    for domains in ([0, 1, 1, 0, 2, 2, 0, 1, 2], [0, 1, 1, 0, 2, 1, 0, 1, 1]):
        inputs = {"x": x, "domain": np.array(domains, "int32")}
        plain = trainer_of(model)
        each = [
            plain.value_and_gradient({"x": x[k : k + 1], "domain": np.zeros(1, "int32")}, y[k : k + 1])[1]
            for k in range(9)
        ]
        last = [np.stack([numpy(g[index]) for g in each]) for index in (2, 3)]
        present = [e for e in range(3) if domains.count(e) > 1]
        variances = [
            np.concatenate([g[np.array(domains) == e].var(axis=0, ddof=1).ravel() for g in last]) for e in present
        ]
        expected = np.mean([np.sum((v - np.mean(variances, axis=0)) ** 2) for v in variances])
        for spec in ("domain", lambda batch: batch.x["domain"]):
            penalty = Fishr(0.7, spec, 3, select=lambda v: any(v is last for last in model.trainable_variables[2:]))
            loss = value_and_gradient(trainer_of(model, penalty), inputs, y)[0]
            clean = plain.value_and_gradient(inputs, y)[0]
            assert float(numpy(loss) - numpy(clean)) == pytest.approx(0.7 * expected, rel=1e-5)


@pytest.mark.parametrize("make", mostly_slow([GradientVariancePenalty, GradientNormPenalty], GradientNormPenalty))
@pytest.mark.slow
def test_a_schedule_of_the_strength(make, random, tmp_path):
    """Off for two steps, then on; counted from a file on."""
    x, y = (part.astype("float32") for part in batch_for(small_network(), random, rows=8))
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.0, 1.0])
    plain = trainer_of(small_network(), optimizer=keras.optimizers.SGD(0.0)).train_on_batch(x, y)
    trainer = trainer_of(small_network(), make(schedule), optimizer=keras.optimizers.SGD(0.0))
    losses = [float(numpy(trainer.value_and_gradient(x, y)[0])) for _ in range(3)]
    assert losses[:2] == pytest.approx([float(plain)] * 2, rel=1e-6)
    assert losses[2] > losses[1] + 0.01
    trainer.save(tmp_path / "t.keras")
    loaded = keras.saving.load_model(tmp_path / "t.keras")
    assert float(numpy(loaded.value_and_gradient(x, y)[0])) > losses[1] + 0.01


def test_a_single_example_adds_nothing(random):
    model = small_network()
    x, y = batch_for(model, random, rows=1)
    plain = float(numpy(trainer_of(model).value_and_gradient(x, y)[0]))
    for estimator in ("auto", "probe", "micro_batch", "exact"):
        loss = value_and_gradient(trainer_of(model, GradientVariancePenalty(10.0, estimator=estimator)), x, y)[0]
        assert float(numpy(loss)) == pytest.approx(plain, rel=1e-5)


# Weights of examples' gradients


@pytest.mark.parametrize(
    "transforms",
    [
        lambda: [WeightNoise(0.3, seed=1)],
        lambda: [WeightPenalty("l2"), WeightNoise(0.3, antithetic=True, seed=1)],
        lambda: [SharpnessAware(0.1)],
        lambda: [GradientNormPenalty(0.1)],
        lambda: [MeasureGradient(every=1)],
    ],
    ids=["noise", "penalty_and_noise", "sharpness_aware", "norm", "measured"],
)
def test_example_weights_reach_through_transforms(transforms, random, float64):
    """Equal weights give the gradient of the data's part; sums over one-hot weights are that of equal ones."""
    from minimand.gradients._examples import ExampleGradients

    model = small_network()
    trainer = trainer_of(model, *transforms())
    x, y, _ = trainer.prepare(*batch_for(model, random, rows=4))
    state = [(v, v.value) for v in trainer.variables]

    def each(weights):
        with keras.StatelessScope(state):
            gradients = ExampleGradients(trainer._composed, weights, Batch(x, y), [True] * 4, differentiable=False)
            alone = [gradients.sum(ops.convert_to_tensor(row)) for row in np.eye(4)]
            shared = gradients.of(Batch(x, y, gradient_weight=0.0))
            return gradients.sum(ops.ones(4, "float64")), gradients.of(Batch(x, y)), shared, alone

    total, everything, shared, alone = keras.tree.map_structure(
        numpy, compiled(each)([v.value for v in model.trainable_variables])
    )
    for t, e, s, parts in zip(total, everything, shared, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(t, sum(parts), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(t / 4 + s, e, rtol=1e-5, atol=1e-7)


def batch_normalised():
    return small_network(layers.BatchNormalization())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GradientVariancePenalty(float("inf")), ["`strength`", "inf"]),
        (lambda: GradientVariancePenalty(1.0, estimator="all"), ["`estimator`", "'probe'", "'all'"]),
        (lambda: GradientVariancePenalty(1.0, micro_batches=1), ["`micro_batches`", ">= 2", "1"]),
        (lambda: Fishr(-1.0, "d", 2), ["`strength`", ">= 0", "-1.0"]),
        (lambda: Fishr(1.0, "d", 1), ["`num_domains`", ">= 2", "1"]),
        (lambda: trainer_of(batch_normalised(), Fishr(1.0, "d", 2)), ["batch_normalization", '"micro_batch"']),
        (lambda: trainer_of(small_network(), WeightNoise(0.1), Fishr(1.0, "d", 2)), ["Fishr", "first"]),
        (lambda: GradientNormPenalty(-1.0), ["`strength`", ">= 0", "-1.0"]),
        (lambda: MeasureGradient(every=0), ["`every`", ">= 1", "0"]),
        (lambda: MeasureGradient(estimator="none"), ["`estimator`", "'none'"]),
        (lambda: MiniBatchVariance(micro_batches=0), ["`micro_batches`", ">= 2", "0"]),
        (lambda: trainer_of(batch_normalised(), GradientVariancePenalty(1.0, estimator="probe")), ["batch_normalization", '"micro_batch"']),
        (lambda: trainer_of(batch_normalised(), MeasureGradient()), ["batch_normalization", '"micro_batch"']),
        (lambda: trainer_of(small_network(), WeightNoise(0.1), MeasureGradient(estimator="exact")), ["first", '"exact"']),
        (lambda: trainer_of(small_network(), WeightNoise(0.1), GradientVariancePenalty(1.0, estimator="exact")), ["first", '"exact"']),
        (lambda: trainer_of(small_network(), MiniBatchVariance()), ["MiniBatchVariance", "MSVAG", "SGD"]),
        (lambda: trainer_of(small_network(), MiniBatchVariance(), optimizer=SVAG(variance="mini_batch"), loss_learning_rate=0.1), ["`loss_learning_rate`", "SVAG"]),
    ],
)  # fmt: skip
def test_bad_arguments_are_told(make, words):
    with told(ValueError, words):
        make()


def test_micro_batches_are_not_chosen_for_a_loss_that_is_a_sum(random):
    """A part of a batch has a smaller sum, but not a smaller mean."""
    model = small_network(layers.LayerNormalization())
    trainer = trainer_of(model, GradientVariancePenalty(0.1), loss=keras.losses.MeanSquaredError(reduction="sum"))
    with told(ValueError, ["micro-batches", 'reduction="sum"', "sum_over_batch_size"]):
        trainer.value_and_gradient(*batch_for(model, random))


def test_wrong_types_are_told():
    with told(TypeError, ["`domains`", "3"]):
        Fishr(1.0, 3, 2)
    with told(TypeError, ["`squared`", "1"]):
        GradientNormPenalty(1.0, squared=1)
