"""Values against loops in float64 for each kind of kernel, gradients finite at zero, and use in stock Keras."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import minimand
from minimand.regularizers import (
    L2SP,
    ElasticWeightConsolidation,
    GroupLasso,
    JointGroupLasso,
    Range,
    SparseGroupLasso,
    TotalVariation,
    fisher_information,
)
from tests.helpers import compiled, data, finite_difference, gradient, mostly_slow, network, numpy, told
from tests.parts.regularizers import REGULARIZERS, norms, out_of_range, total_variation

SHAPES = st.sampled_from([(2, 4), (4, 3), (3, 2, 2), (2, 3, 4), (2, 4, 3, 2)])


def isotropic(w):
    total = 0.0
    for index in np.ndindex(w.shape):
        squares = 0.0
        for axis in (0, 1):
            after = tuple(i + (k == axis) for k, i in enumerate(index))
            if after[axis] < w.shape[axis]:
                squares += (w[after] - w[index]) ** 2
        total += np.sqrt(squares)
    return total


def second_order(w):
    return sum(abs(w[i + 2][j] - 2 * w[i + 1][j] + w[i][j]) for i in range(len(w) - 2) for j in np.ndindex(w.shape[1:]))


def periodic(w):
    return sum(abs(w[(i + 1) % len(w)][j] - w[i][j]) for i in range(len(w)) for j in np.ndindex(w.shape[1:]))


@functools.cache
def penalty(name):
    return compiled(REGULARIZERS[name].make())


@pytest.mark.parametrize("name", [name for name, part in REGULARIZERS.items() if not part.attributes])
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**16))
def test_value_against_a_loop(name, shape, seed):
    w = np.random.default_rng(seed).normal(size=shape)
    actual = numpy(penalty(name)(w.astype("float32")))
    assert actual.shape == ()
    assert actual == pytest.approx(0.3 * REGULARIZERS[name].reference(w), rel=1e-5, abs=1e-6)


LABELS = np.array([[0, 1, -1], [1, 0, 2]])
FORMS = {
    "tv order 2": (TotalVariation(1.0, 0, order=2), (4, 3), second_order),
    "tv periodic": (TotalVariation(1.0, 0, periodic=True), (4, 3), periodic),
    "tv two axes": (TotalVariation(1.0, (0, 1)), (4, 3), lambda w: total_variation(w, (0, 1))),
    "tv isotropic": (TotalVariation(1.0, (0, 1), isotropic=True), (4, 3, 2), isotropic),
    "tv shape": (
        TotalVariation(1.0, "spatial", shape=(2, 3)),
        (6, 4),
        lambda w: total_variation(w.reshape(2, 3, 4), (0, 1)),
    ),
    "tv gates": (TotalVariation(1.0, -1, gates=4), (3, 8), lambda w: total_variation(w.reshape(3, 4, 2), (2,))),
    "tv gates, inputs": (TotalVariation(1.0, 0, gates=4), (3, 8), total_variation),
    "tv mean": (TotalVariation(1.0, 0, reduction="mean"), (4, 3), lambda w: total_variation(w) / 12),
    "range power 1": (Range(1.0, -0.2, 0.4, power=1), (5,), lambda w: out_of_range(w, 1)),
    "block": (GroupLasso(1.0, ("block", (2, 3))), (4, 6), norms(lambda i, s: (i[0] // 2, i[1] // 3))),
    "block of a convolution": (
        GroupLasso(1.0, ("block", (2, 1))),
        (2, 4, 3),
        norms(lambda i, s: (i[0], i[1] // 2, i[2])),
    ),
    "gates": (GroupLasso(1.0, ("gates", 4)), (3, 8), norms(lambda i, s: i[1] % 2)),
    "labels": (GroupLasso(1.0, LABELS), (2, 3), norms(lambda i, s: None if LABELS[i] < 0 else LABELS[i])),
    "labels of columns": (GroupLasso(1.0, [0, 0, 7]), (2, 2, 3), norms(lambda i, s: i[-1] // 2)),
    "unweighted": (GroupLasso(1.0, weight_by_size=False), (2, 3), norms(lambda i, s: i[1], weight_by_size=False)),
    "mean": (GroupLasso(1.0, reduction="mean"), (2, 3), lambda w: norms(lambda i, s: i[1])(w) / 6),
    "distance": (L2SP(1.0, np.ones((2, 3))), (2, 3), lambda w: np.sum((w - 1.0) ** 2)),
    "elastic": (
        ElasticWeightConsolidation(1.0, np.arange(6.0).reshape(2, 3), np.ones((2, 3))),
        (2, 3),
        lambda w: np.sum(np.arange(6).reshape(2, 3) * (w - 1.0) ** 2) / 2,
    ),
}


@pytest.mark.parametrize(
    "name", mostly_slow(FORMS, "tv order 2", "tv isotropic", "tv gates", "range power 1", "block", "labels", "elastic")
)
def test_forms_against_loops_with_their_gradients(name, random, float64):
    regularizer, shape, reference = FORMS[name]
    w = random.normal(size=shape)
    assert float(numpy(regularizer(w))) == pytest.approx(reference(w), rel=1e-12)
    np.testing.assert_allclose(gradient(regularizer, w)[0], finite_difference(reference, w), rtol=1e-5, atol=1e-8)
    slope = gradient(regularizer, np.zeros(shape))[0]
    if name not in ("distance", "elastic"):
        assert (slope == 0).all()


def kernels():
    """A weight of each kind of layer."""
    inputs = {
        "dense": (keras.layers.Dense(3), (5,)),
        "conv1d": (keras.layers.Conv1D(3, 4), (8, 2)),
        "conv2d": (keras.layers.Conv2D(3, (2, 3)), (5, 5, 2)),
        "conv3d": (keras.layers.Conv3D(3, 2), (3, 3, 3, 2)),
        "depthwise": (keras.layers.DepthwiseConv2D(2, depth_multiplier=2), (4, 4, 3)),
        "einsum": (keras.layers.EinsumDense("ab,bcd->acd", (2, 3)), (4,)),
        "embedding": (keras.layers.Embedding(5, 3), ()),
        "lstm": (keras.layers.LSTM(2), (4, 3)),
        "gru": (keras.layers.GRU(2), (4, 3)),
    }
    for name, (layer, shape) in inputs.items():
        layer.build((None, *shape))
        yield name, layer.trainable_variables[0]


KINDS = {
    "dense": [(GroupLasso(1.0), norms(lambda i, s: i[1])), (TotalVariation(1.0, 0), total_variation)],
    "conv1d": [(TotalVariation(1.0, "spatial"), total_variation), (GroupLasso(1.0, "channel"), norms(lambda i, s: i[1]))],
    "conv2d": [
        (TotalVariation(1.0, "spatial"), lambda w: total_variation(w, (0, 1))),
        (GroupLasso(1.0, "position"), norms(lambda i, s: i[:2])),
        (GroupLasso(1.0), norms(lambda i, s: i[3])),
    ],
    "conv3d": [
        (TotalVariation(1.0, "spatial"), lambda w: total_variation(w, (0, 1, 2))),
        (GroupLasso(1.0, "position"), norms(lambda i, s: i[:3])),
    ],
    "depthwise": [
        (TotalVariation(1.0, "spatial"), lambda w: total_variation(w, (0, 1))),
        (GroupLasso(1.0, "channel"), norms(lambda i, s: i[2])),
        (GroupLasso(1.0, ("axes", (-2, -1))), norms(lambda i, s: i[2:])),
    ],
    "einsum": [(GroupLasso(1.0, ("axes", 1)), norms(lambda i, s: i[1]))],
    "embedding": [(GroupLasso(1.0, "input"), norms(lambda i, s: i[0])), (TotalVariation(1.0, 0), total_variation)],
    "lstm": [(GroupLasso(1.0, ("gates", 4)), norms(lambda i, s: i[1] % 2))],
    "gru": [
        (GroupLasso(1.0, ("gates", 3)), norms(lambda i, s: i[1] % 2)),
        (TotalVariation(1.0, 1, gates=3), lambda w: total_variation(w.reshape(3, 3, 2), (2,))),
    ],
}  # fmt: skip


def test_axes_and_groups_of_each_kind_of_kernel():
    for name, kernel in kernels():
        for regularizer, reference in KINDS.pop(name):
            expected = reference(kernel.numpy().astype("float64"))
            assert float(numpy(compiled(regularizer)(kernel.value))) == pytest.approx(expected, rel=1e-5), name
    assert not KINDS


@pytest.mark.parametrize("name", FORMS)
def test_configurations_make_equal_regularizers(name, random):
    regularizer, shape, _ = FORMS[name]
    w = ops.convert_to_tensor(random.normal(size=shape).astype("float32"))
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(regularizer))
    assert copy.get_config() == regularizer.get_config()
    assert float(numpy(copy(w))) == float(numpy(regularizer(w)))


def test_anchors_survive_saving_and_training(random, tmp_path):
    """The anchor is the weights when the regularizer was made, in the model and in a loaded model."""
    x, y = data(random)
    model = network()
    anchors = [v.numpy() for v in model.trainable_variables]
    trainer = minimand.Trainer(model)
    distance = L2SP(0.5, model)
    trainer.compile("adam", "mse", transforms=[minimand.transforms.WeightPenalty(distance, select="all")])
    trainer.fit(x, y, epochs=2, verbose=0)

    def penalty(of):
        return float(
            numpy(of.transforms[0].regularizer.total(of.model.trainable_variables, of.model.trainable_variables))
        )

    expected = 0.5 * sum(np.sum((v.numpy() - a) ** 2) for v, a in zip(model.trainable_variables, anchors, strict=True))
    assert expected > 0
    assert penalty(trainer) == pytest.approx(expected, rel=1e-5)
    trainer.save(tmp_path / "t.keras")
    assert penalty(keras.saving.load_model(tmp_path / "t.keras")) == pytest.approx(expected, rel=1e-5)


def test_anchored_kernel_in_stock_keras(random, tmp_path):
    anchor = random.normal(size=(4, 2)).astype("float32")
    layer = keras.layers.Dense(2, kernel_regularizer=L2SP(1.0, anchor))
    model = keras.Sequential([keras.Input((4,)), layer])
    expected = np.sum((layer.kernel.numpy() - anchor) ** 2)
    assert float(numpy(model.losses[0])) == pytest.approx(expected, rel=1e-5)
    model.save(tmp_path / "m.keras")
    assert float(numpy(keras.saving.load_model(tmp_path / "m.keras").losses[0])) == pytest.approx(expected, rel=1e-5)


def test_fisher_information_is_the_mean_square_of_each_examples_gradient(random):
    """The gradient of logistic regression is (p - y) x, which is exactly zero where an input is zero."""
    x = random.normal(size=(20, 3)).astype("float32")
    x[:, 2] = 0.0
    y = random.integers(2, size=20)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, "sigmoid", name="units")])
    fisher = fisher_information(model, x, y[:, None], "binary_crossentropy")
    residuals = model.predict(x, verbose=0)[:, 0].astype("float64") - y
    expected = np.mean([(r * row) ** 2 for r, row in zip(residuals, x, strict=True)], axis=0)
    kernel, bias = (fisher[variable.path] for variable in model.trainable_variables)
    np.testing.assert_allclose(kernel[:, 0], expected, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(bias, [np.mean(residuals**2)], rtol=1e-4)
    assert kernel[2] == 0.0


@pytest.mark.parametrize(("rows", "targets"), [(3, 2), (0, 0)])
def test_fisher_information_of_rows_that_do_not_match_is_told(rows, targets):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with told(ValueError, ["`x`", "`y`", str([rows, targets])]):
        fisher_information(model, np.zeros((rows, 3)), np.zeros((targets, 1)), "mse")


def test_a_scheduled_strength_goes_by_the_steps_of_the_penalty(random):
    """Each step of SGD on a constant loss subtracts rate * strength(step) * gradient."""
    strength = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.0, 0.5])
    trainer = minimand.Trainer(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]))
    penalty = minimand.transforms.WeightPenalty(Range(strength, -1.0, 1.0))
    trainer.compile(keras.optimizers.SGD(0.1), "mse", transforms=[penalty])
    trainer.model.set_weights([np.array([[3.0]])])
    expected = [3.0]
    for k in range(4):
        trainer.train_on_batch(np.zeros((2, 1)), np.zeros((2, 1)))
        expected.append(expected[-1] - 0.1 * (0.0 if k < 2 else 0.5) * 2 * (expected[-1] - 1.0))
    assert float(trainer.model.weights[0].numpy()[0, 0]) == pytest.approx(expected[-1], rel=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: TotalVariation(-1.0, axis=0), ValueError, ["`strength`", ">= 0", "-1.0"]),
        (lambda: TotalVariation(1.0, axis=0.5), TypeError, ["`axis`", "0.5"]),
        (lambda: TotalVariation(1.0, axis=()), TypeError, ["`axis`", "()"]),
        (lambda: TotalVariation(1.0, axis=2)(np.ones((2, 2))), ValueError, ["`axis`", "(2, 2)"]),
        (lambda: TotalVariation(1.0, axis="spatial")(np.ones((2, 2))), ValueError, ["convolution", "(2, 2)", "order"]),
        (lambda: TotalVariation(1.0, axis=0)(np.ones((1, 2))), ValueError, ["2 entries", "(1, 2)"]),
        (lambda: TotalVariation(1.0, axis=0, order=2)(np.ones((2, 2))), ValueError, ["3 entries", "(2, 2)"]),
        (lambda: TotalVariation(1.0, axis=0, shape=(2, 2))(np.ones((5, 2))), ValueError, ["`shape`", "(2, 2)", "(5, 2)"]),
        (lambda: TotalVariation(1.0, axis=1, gates=4)(np.ones((5, 6))), ValueError, ["`gates`", "4", "(5, 6)"]),
        (lambda: TotalVariation(1.0, axis=0, isotropic=True), ValueError, ["isotropic=True", "several axes"]),
        (lambda: TotalVariation(1.0, axis=0, order=2).prox(np.ones(4), 1.0), NotImplementedError, ["order=2"]),
        (lambda: TotalVariation(1.0, "spatial").prox(np.ones((3, 3, 1, 1)), 1.0), NotImplementedError, ["single axis"]),
        (lambda: Range(1.0, 1.0, -1.0), ValueError, ["`low`", "`high`", "-1.0"]),
        (lambda: Range(1.0, float("-inf"), 1.0), ValueError, ["`low`", "-inf"]),
        (lambda: Range(1.0, 0.0, 1.0, power=3), ValueError, ["`power`", "3"]),
        (lambda: Range(1.0, 0.0, 1.0, reduction="max"), ValueError, ["`reduction`", "'max'"]),
        (lambda: GroupLasso(1.0, groups="units"), ValueError, ["`groups`", "'output'", "'units'"]),
        (lambda: GroupLasso(1.0, groups=("block", (2,))), ValueError, ["`groups`", "rows", "(2,)"]),
        (lambda: GroupLasso(1.0, groups=[0.5, 1.0]), ValueError, ["integers", "0.5"]),
        (lambda: GroupLasso(1.0, groups=[-1, -1]), ValueError, ["`groups`", "-1"]),
        (lambda: GroupLasso(1.0, ("gates", 0)), ValueError, ["`groups`", '("gates", number)', "('gates', 0)"]),
        (lambda: GroupLasso(1.0)(np.ones(3)), ValueError, ["rank 2", "(3,)"]),
        (lambda: GroupLasso(1.0, "position")(np.ones((3, 3))), ValueError, ["rank 3", "(3, 3)"]),
        (lambda: GroupLasso(1.0, ("block", (2, 2)))(np.ones((3, 4))), ValueError, ["divide", "(3, 4)"]),
        (lambda: GroupLasso(1.0, ("axes", 2))(np.ones((3, 4))), ValueError, ["axes", "(3, 4)"]),
        (lambda: GroupLasso(1.0, ("gates", 4))(np.ones((3, 6))), ValueError, ["gates", "divide", "(3, 6)"]),
        (lambda: GroupLasso(1.0, [0, 1])(np.ones((3, 3))), ValueError, ["broadcast", "(2,)", "(3, 3)"]),
        (lambda: SparseGroupLasso(1.0, 1.5), ValueError, ["`l1_ratio`", "1.5"]),
        (lambda: L2SP(1.0, np.ones(3))(np.ones(4)), ValueError, ["shape", "(3,)", "(4,)"]),
        (lambda: L2SP(1.0, {"a": np.ones(3)})(np.ones(3)), ValueError, ["`anchor`", "'a'"]),
        (lambda: L2SP(1.0, [np.nan]), ValueError, ["`anchor`", "finite"]),
        (lambda: L2SP(1.0, keras.Sequential([keras.layers.Dense(1)])), ValueError, ["built"]),
        (lambda: ElasticWeightConsolidation(1.0, -np.ones(3), np.ones(3)), ValueError, ["`fisher`", ">= 0"]),
        (lambda: JointGroupLasso(1.0, [[0]]), TypeError, ["mapping"]),
        (lambda: JointGroupLasso(1.0, {"a": [-1]}), ValueError, ["integers", ">= 0"]),
        (lambda: JointGroupLasso(1.0, {"a": [0]})(np.ones((1, 1))), TypeError, ["WeightPenalty"]),
        (lambda: Range(keras.optimizers.schedules.CosineDecay(1.0, 5), 0.0, 1.0)(np.ones(2)), ValueError, ["schedule", "WeightPenalty"]),
    ],
)  # fmt: skip
def test_bad_arguments_are_told(make, error, words):
    with told(error, words):
        make()
