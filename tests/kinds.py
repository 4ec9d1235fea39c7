"""Kinds of models and of losses, and what a transform does with each: what docs/compatibility.py makes a table of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

import minimand
from minimand.losses import AdaptiveRobust, CVaR, GeneralRobust, LearnedClassWeights, SelfPaced
from minimand.testing import TransformSuite
from tests.helpers import numpy
from tests.parts import TRANSFORMS, suite_of
from tests.small_networks import value_and_gradient

ROWS = 8


@keras.saving.register_keras_serializable(package="tests")
class AddsLoss(layers.Layer):
    def call(self, inputs):
        self.add_loss(0.1 * keras.ops.mean(inputs**2))
        return inputs


class Kind(NamedTuple):
    """Inputs of an example (or integers below `words`), and the layers up to two outputs."""

    shape: tuple[int, ...]
    make: Callable[[Any], Any]
    words: int | None = None


def _sequential(*parts):
    def outputs(x):
        for part in parts:
            x = part(x)
        return x

    return outputs


def _shared(x):
    twice = layers.Dense(4, "tanh")
    return layers.Dense(2)(twice(twice(x)))


def _lora(x):
    dense = layers.Dense(6, "tanh")
    result = layers.Dense(2)(dense(x))
    dense.enable_lora(2)
    return result


def _attention(x):
    attended = layers.MultiHeadAttention(2, 3)(x, x)
    return layers.Dense(2)(layers.GlobalAveragePooling1D()(attended))


def _nested(x):
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(4)])
    return layers.Dense(2)(inner(x))


def _two_outputs(x):
    hidden = layers.Dense(5, "tanh")(x)
    return {"first": layers.Dense(2)(hidden), "second": layers.Dense(2)(hidden)}


KINDS = {
    "Dense": Kind((4,), lambda x: _sequential(layers.Dense(5, "tanh"), layers.Dense(2))(x)),
    "Conv2D": Kind((5, 5, 2), lambda x: _sequential(layers.Conv2D(3, 2, activation="tanh"), layers.Flatten(), layers.Dense(2))(x)),
    "DepthwiseConv2D": Kind((5, 5, 2), lambda x: _sequential(layers.DepthwiseConv2D(2, activation="tanh"), layers.Flatten(), layers.Dense(2))(x)),
    "BatchNormalization": Kind((4,), lambda x: _sequential(layers.Dense(5), layers.BatchNormalization(), layers.Dense(2))(x)),
    "LayerNormalization": Kind((4,), lambda x: _sequential(layers.Dense(5), layers.LayerNormalization(), layers.Dense(2))(x)),
    "GroupNormalization": Kind((4,), lambda x: _sequential(layers.Dense(6), layers.GroupNormalization(2), layers.Dense(2))(x)),
    "Dropout": Kind((4,), lambda x: _sequential(layers.Dense(5, "tanh"), layers.Dropout(0.3, seed=1), layers.Dense(2))(x)),
    "Embedding": Kind((3,), lambda x: _sequential(layers.Embedding(6, 3), layers.Flatten(), layers.Dense(2))(x), 6),
    "LSTM": Kind((3, 2), lambda x: _sequential(layers.LSTM(3), layers.Dense(2))(x)),
    "GRU": Kind((3, 2), lambda x: _sequential(layers.GRU(3), layers.Dense(2))(x)),
    "MultiHeadAttention": Kind((3, 4), _attention),
    "tied weights": Kind((4,), _shared),
    "LoRA": Kind((4,), _lora),
    "SpectralNormalization": Kind((4,), lambda x: _sequential(layers.SpectralNormalization(layers.Dense(5, "tanh")), layers.Dense(2))(x)),
    "nested model": Kind((4,), _nested),
    "two inputs": Kind((4,), lambda x: layers.Dense(2)(layers.Concatenate()([layers.Dense(3, "tanh")(part) for part in x]))),
    "two outputs": Kind((4,), _two_outputs),
    "add_loss": Kind((4,), lambda x: _sequential(layers.Dense(5, "tanh"), AddsLoss(), layers.Dense(2))(x)),
    "masks": Kind((3,), lambda x: _sequential(layers.Embedding(6, 3, mask_zero=True), layers.LSTM(3, return_sequences=True), layers.Dense(2))(x), 6),
}  # fmt: skip
LOSSES = {
    "plain": lambda: "mean_squared_error",
    "robust": lambda: GeneralRobust(0.5),
    "with variables": AdaptiveRobust,
    "with a threshold": lambda: CVaR("mean_squared_error", 0.5),
    "by batch statistics": lambda: SelfPaced("mean_squared_error"),
    "with class weights": lambda: LearnedClassWeights(2, loss=keras.losses.SparseCategoricalCrossentropy(True)),
}


def problem(kind, loss, random):
    """A model of the kind, inputs, targets, and what `compile` takes as its loss."""
    shape, make, words = KINDS[kind]
    # The names in a sentence are always the same.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(11)
    two_inputs = kind == "two inputs"
    inputs = [keras.Input(shape) for _ in range(1 + two_inputs)]
    outputs = make(inputs if two_inputs else inputs[0])
    model = keras.Model(inputs if two_inputs else inputs[0], outputs)

    def rows():
        size = (ROWS, *shape)
        return random.integers(words, size=size) if words else random.normal(size=size).astype("float32")

    x = [rows(), rows()] if two_inputs else rows()

    def targets(output):
        size = (ROWS, *output.shape[1:])
        if loss == "with class weights":
            return random.integers(2, size=size[:-1])
        return random.normal(size=size).astype("float32")

    if isinstance(outputs, dict):
        return model, x, {k: targets(v) for k, v in outputs.items()}, {k: LOSSES[loss]() for k in outputs}
    return model, x, targets(outputs), LOSSES[loss]()


def outcome(transform, loss, kind):
    """`"works"`, or the sentence of the refusal; raises an `AssertionError` where something is wrong in silence."""
    random = np.random.default_rng(0)
    model, x, y, compiled_loss = problem(kind, loss, random)
    part = TRANSFORMS[transform]
    optimizer = suite_of(TransformSuite, part)().optimizer(0.1)
    trainer = minimand.Trainer(model)
    try:
        trainer.compile(optimizer, compiled_loss, transforms=[part.make()])
        value, gradients = value_and_gradient(trainer, x, y)
    except (NotImplementedError, ValueError) as error:
        return str(error)
    position = {id(v): k for k, v in enumerate(trainer.trainable_variables)}
    transformed = [numpy(gradients[position[id(v)]]) for v in model.trainable_variables]
    model, x, y, compiled_loss = problem(kind, loss, np.random.default_rng(0))
    plain = minimand.Trainer(model)
    plain.compile("sgd", compiled_loss)
    plain_value, plain_gradients = value_and_gradient(plain, x, y)
    position = {id(v): k for k, v in enumerate(plain.trainable_variables)}
    assert np.isfinite(numpy(value))
    same = np.isclose(numpy(value), numpy(plain_value), rtol=1e-6)
    for variable, mine in zip(model.trainable_variables, transformed, strict=True):
        own = numpy(plain_gradients[position[id(variable)]])
        assert np.isfinite(mine).all(), f"{variable.path}: {mine}"
        assert np.any(mine != 0) or not np.any(own != 0), f"{variable.path} has no gradient"
        same = same and np.allclose(mine, own, rtol=1e-5, atol=1e-7)
    measures = part.attributes.get("changes", True) is not True
    assert same == measures or transform == "ivon_noise", (
        f"the transform {'changes' if measures else 'does not change'} the objective"
    )
    return "works"
