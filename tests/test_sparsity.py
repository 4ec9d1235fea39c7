"""The compacted model has the same outputs, lacks the units that were set to zero, and is plain Keras."""

import keras
import numpy as np
import pytest
from keras import layers

import minimand
from minimand.sparsity import compact, report, unit_groups
from tests.helpers import data, numpy, told


def randomised(model, random):
    """The model with random weights and statistics away from zero."""
    for variable in model.weights:
        sign = 1.0 if "variance" in variable.path else random.choice([-1.0, 1.0], size=variable.shape)
        variable.assign(sign * random.uniform(0.2, 1.0, size=variable.shape))
    return model


def silence(layer, units, *, bias=None):
    """Set the incoming weights of these outputs to zero, and their biases to the given number."""
    kernel = numpy(layer.kernel).copy()
    kernel[..., units] = 0.0
    layer.kernel.assign(kernel)
    if bias is not None:
        values = numpy(layer.bias).copy()
        values[units] = bias
        layer.bias.assign(values)


def ignore(layer, units):
    """Set the weights of these inputs to zero."""
    kernel = numpy(layer.kernel).copy()
    kernel[..., units, :] = 0.0
    layer.kernel.assign(kernel)


def assert_same_outputs(model, random, rows=5):
    smaller = compact(model)
    x = [random.normal(size=(rows, *shape.shape[1:])).astype("float32") for shape in model.inputs]
    x = x if len(x) > 1 else x[0]
    for a, b in zip(keras.tree.flatten(model.predict(x, verbose=0)), keras.tree.flatten(smaller.predict(x, verbose=0)), strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max())
    assert report(smaller).flops == report(model).flops_left
    return smaller


def mlp(random):
    model = keras.Sequential(
        [
            keras.Input((5,)), layers.Dense(7, "tanh", name="a"), layers.BatchNormalization(), layers.Dropout(0.5),
            layers.Dense(6, name="b"), layers.ReLU(), layers.Dense(4, "softmax", name="c"),
        ]
    )  # fmt: skip
    return randomised(model, random)


def test_units_without_outgoing_or_incoming_weights_go(random):
    model = mlp(random)
    a, b, c = (model.get_layer(name) for name in "abc")
    ignore(b, [0, 3])
    silence(a, [5], bias=0.7)
    silence(b, [1], bias=2.0)
    silence(b, [2], bias=-1.0)
    ignore(c, [4])
    silence(c, [0], bias=3.0)
    smaller = assert_same_outputs(model, random)
    assert [smaller.get_layer(name).units for name in "abc"] == [4, 3, 4]
    found = report(model)
    assert [layer.removable for layer in found.layers] == [3, 3, 0]
    assert (found.layers[1].zero_inputs, found.layers[1].zero_outputs) == (2, 2)
    assert type(smaller) is keras.Sequential
    assert found.flops == 2 * (5 * 7 + 7 * 6 + 6 * 4)


def test_what_only_removed_units_use_goes_too(random):
    model = mlp(random)
    ignore(model.get_layer("c"), [0, 1])
    ignore(model.get_layer("b"), [2])
    kernel = numpy(model.get_layer("b").kernel).copy()
    # Unit 6 of the first layer feeds units 0 and 1 of the second alone.
    kernel[6, 2:] = 0.0
    model.get_layer("b").kernel.assign(kernel)
    smaller = assert_same_outputs(model, random)
    assert [smaller.get_layer(name).units for name in "abc"] == [5, 4, 4]


def test_a_layer_keeps_a_unit(random):
    model = mlp(random)
    silence(model.get_layer("b"), slice(None))
    smaller = assert_same_outputs(model, random)
    assert [smaller.get_layer(name).units for name in "abc"] == [1, 1, 4]


def convnet(random, padding):
    model = keras.Sequential(
        [
            keras.Input((13, 12, 3)), layers.Conv2D(6, 3, padding=padding, use_bias=False, name="a"), layers.BatchNormalization(name="norm"),
            layers.ReLU(), layers.MaxPooling2D(), layers.DepthwiseConv2D(2, padding=padding, name="depthwise"),
            layers.Conv2D(5, 2, padding=padding, activation="relu", name="b"), layers.AveragePooling2D(2, padding=padding),
            layers.Flatten(), layers.Dense(3, use_bias=False, name="c"),
        ]
    )  # fmt: skip
    return randomised(model, random)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_channels_of_convolutions(padding, random):
    model = convnet(random, padding)
    norm = model.get_layer("norm")
    # Scales of zero leave the offsets: one positive, one that the activation cuts off.
    norm.gamma.assign(numpy(norm.gamma) * np.array([0, 0, 1, 1, 1, 1]))
    norm.beta.assign(np.array([0.5, -0.5, 0.3, 0.3, 0.3, 0.3]))
    depthwise = model.get_layer("depthwise")
    depthwise.bias.assign(numpy(depthwise.bias) * np.array([1, 0, 1, 1, 1, 1]))
    ignore(model.get_layer("b"), [3])
    silence(model.get_layer("b"), [4], bias=0.4)
    smaller = assert_same_outputs(model, random)
    # The positive constants meet padding, where they are not constant.
    valid = padding == "valid"
    assert smaller.get_layer("a").filters == (4 if padding == "same" else 3)
    assert smaller.get_layer("b").filters == (4 if valid else 5)
    assert smaller.get_layer("c").use_bias == valid


def residual(random):
    x = keras.Input((6, 6, 2))
    stem = layers.Conv2D(6, 3, padding="same", name="stem")(x)
    branch = layers.Conv2D(4, 3, padding="same", activation="relu", name="in")(stem)
    branch = layers.Conv2D(6, 1, name="out")(branch)
    joined = layers.Add()([stem, branch])
    joined = layers.ReLU()(joined + stem)
    both = layers.Concatenate()([joined, layers.Conv2D(3, 1, name="side")(x)])
    pooled = layers.GlobalAveragePooling2D()(both)
    return randomised(
        keras.Model(x, [layers.Dense(2, name="head")(pooled), layers.Dense(1, name="second")(pooled)]), random
    )


@pytest.mark.slow
def test_terms_of_a_sum_lose_the_same_channels(random):
    model = residual(random)
    for name in ("in", "head", "second"):
        ignore(model.get_layer(name), [0, 1])
    ignore(model.get_layer("head"), [2, 7])
    ignore(model.get_layer("second"), [7])
    ignore(model.get_layer("out"), [3])
    smaller = assert_same_outputs(model, random)
    # Channels 0 and 1 of the sum are used nowhere, 2 by the second head and by the branch, 7 is one of the side's.
    assert [smaller.get_layer(name).filters for name in ("stem", "in", "out", "side")] == [4, 3, 4, 2]


@pytest.mark.slow
def test_layers_that_are_not_known_keep_everything(random):
    x = keras.Input((5, 4))
    shared = layers.Dense(4, name="shared")
    y = shared(shared(layers.Dense(4, "relu", name="first")(x)))
    y = layers.LSTM(6, name="lstm")(layers.LayerNormalization()(layers.Dense(7, name="before")(y)))
    y = layers.Dense(3, name="hidden")(y)
    model = randomised(keras.Model(x, layers.Dense(2, name="out")(y)), random)
    for name in ("shared", "before", "hidden"):
        silence(model.get_layer(name), [0], bias=0.0)
    smaller = assert_same_outputs(model, random)
    assert [smaller.get_layer(name).units for name in ("first", "shared", "before", "lstm", "hidden")] == [
        4,
        4,
        7,
        6,
        2,
    ]


def test_the_smaller_model_is_plain_keras_and_can_be_trained_and_saved(random, tmp_path):
    x, y = data(random)
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(8, "relu", kernel_regularizer=minimand.regularizers.GroupLasso(0.1)), layers.Dense(2, kernel_regularizer="l2")]
    )  # fmt: skip
    silence(model.layers[0], [1, 2])
    smaller = compact(model)
    assert smaller.layers[0].kernel_regularizer is None
    assert smaller.layers[1].kernel_regularizer is not None
    smaller.compile("sgd", "mse")
    smaller.fit(x, y, verbose=0)
    smaller.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), smaller.predict(x, verbose=0), rtol=1e-5)


# Groups


def test_a_unit_whose_group_is_zero_goes(random):
    """Setting a group of incoming or outgoing weights to zero removes exactly one unit."""
    for arguments in ({}, {"incoming": False, "outgoing": True}):
        model = convnet(random, "valid")
        groups = unit_groups(model, **arguments)
        labels = np.unique(np.concatenate([each.ravel() for mapping in groups for each in mapping.values()]))
        assert len(labels[labels >= 0]) == 6 + 5
        before = [v.numpy() for v in model.trainable_variables]
        for label in labels[labels >= 0]:
            for variable, value in zip(model.trainable_variables, before, strict=True):
                inside = np.zeros(variable.shape, bool)
                for mapping in groups:
                    if variable.path in mapping:
                        inside |= np.broadcast_to(mapping[variable.path] == label, variable.shape)
                variable.assign(np.where(inside, 0.0, value))
            assert sum(layer.removable for layer in report(model).layers if layer.name != "depthwise") == 1


def test_groups_of_both_sides_do_not_overlap_within_a_mapping(random):
    model = mlp(random)
    groups = unit_groups(model, outgoing=True)
    assert len(groups) == 2
    first, second = groups
    names = {variable.path for variable in model.trainable_variables}
    assert set(first) | set(second) <= names
    # The kernel between the two layers is in both, by rows and by columns.
    (shared,) = set(first) & set(second)
    assert {first[shared].shape, second[shared].shape} == {(7, 1), (1, 6)}
    penalty = minimand.regularizers.JointGroupLasso(1.0, groups)
    total = float(numpy(penalty.total(model.trainable_variables, [v.value for v in model.trainable_variables])))
    values = {v.path.split("/", 1)[-1]: numpy(v).astype("float64") for v in model.trainable_variables}
    a, b, c = values["a/kernel"], values["b/kernel"], values["c/kernel"]
    norm = next(v for k, v in values.items() if "gamma" in k), next(v for k, v in values.items() if "beta" in k)
    expected = 0.0
    for k in range(7):
        expected += np.sqrt(5 + 1 + 2 + 6) * np.sqrt(
            sum((v**2).sum() for v in (a[:, k], values["a/bias"][k], norm[0][k], norm[1][k], b[k]))
        )
    for k in range(6):
        expected += np.sqrt(7 + 1 + 4) * np.sqrt(sum((v**2).sum() for v in (b[:, k], values["b/bias"][k], c[k])))
    assert total == pytest.approx(expected, rel=1e-5)


def test_joint_penalty_and_proximal_steps_remove_units_of_a_trained_model(random):
    x, y = data(random, rows=200)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(16, "relu"), layers.Dense(2)])
    joint = minimand.regularizers.JointGroupLasso(
        keras.optimizers.schedules.PolynomialDecay(0.0, 40, 0.1), unit_groups(model, outgoing=True)
    )
    model.compile(minimand.optimizers.Proximal(keras.optimizers.Adam(0.01, epsilon=1e-3), joint, select="all"), "mse")
    model.fit(x, y, batch_size=20, epochs=20, verbose=0)
    smaller = assert_same_outputs(model, random)
    assert 1 <= smaller.layers[0].units < 16


def relu(values):
    """The activation has the name of one of Keras's, but each output depends on the others."""
    return values / (1.0 + keras.ops.sum(keras.ops.abs(values), axis=-1, keepdims=True))


def flipped(values):
    return keras.ops.flip(values, axis=-1)


@pytest.mark.parametrize("activation", ["softmax", relu, flipped])
def test_outputs_that_see_each_other_stay(activation, random):
    """Nothing uses the layer's second and third outputs, and its fourth is constant before the activation."""
    stack = [keras.Input((4,)), layers.Dense(5, activation, name="a"), layers.Dense(3, name="b")]
    for model in (keras.Sequential(stack), keras.Sequential([stack[0], layers.Dense(5), layers.Activation(activation), layers.Dense(3)])):  # fmt: skip
        first, last = randomised(model, random).layers[0], model.layers[-1]
        ignore(last, [1, 2])
        silence(first, [3], bias=0.5)
        assert assert_same_outputs(model, random).layers[0].units == 5


def test_the_report_as_a_table_and_a_picture(random):
    model = mlp(random)
    ignore(model.get_layer("b"), [0, 3])
    found = report(model)
    lines = str(found).splitlines()
    assert lines[0].split()[:2] == ["layer", "weights"]
    assert lines[1].split()[0] == "a"
    assert lines[1].split()[5] == "2"
    assert found.zeros == 12
    assert found.sparsity == pytest.approx(12 / found.weights)
    figure = found.figure()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths[:3] == pytest.approx([0.0, 12 / 42, 0.0])
    assert widths[3:6] == pytest.approx([2 / 7, 0.0, 0.0])
    assert widths[6:] == pytest.approx([1 - layer.flops_left / layer.flops for layer in found.layers])
    assert widths[6] == pytest.approx(2 / 7)
    assert lines[-1].split() == [
        "all",
        f"{found.weights:,}",
        f"{found.sparsity:.1%}",
        f"{found.flops:,}",
        f"{found.flops_left:,}",
    ]


def test_operations_of_images_of_any_size_are_not_known(random):
    model = randomised(keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3, name="a")]), random)
    found = report(model)
    assert (found.layers[0].flops, found.flops, found.flops_left) == (None, 0, 0)
    assert str(found).splitlines()[1].split()[-2:] == ["?", "?"]
    assert [bar.get_width() for bar in found.figure().axes[0].patches] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: compact(keras.Sequential([layers.Dense(1)])), ["compact", "built"]),
        (lambda: report(minimand.Trainer(keras.Sequential([keras.Input((1,)), layers.Dense(1)]))), ["report", "`model`"]),
        (lambda: unit_groups(keras.Sequential([keras.Input((1,)), layers.Dense(1)])), ["unit_groups", "removed"]),
        (lambda: unit_groups(keras.Sequential([keras.Input((1,)), layers.Dense(1)]), incoming=False), ["`incoming`", "`outgoing`"]),
    ],
)  # fmt: skip
def test_bad_models_are_told(make, words):
    with told(ValueError, words):
        make()
