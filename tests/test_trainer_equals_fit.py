"""With no transform, and with one that changes nothing, a trainer's `fit` is the model's `fit`."""

import keras
import numpy as np
import pytest
from keras import layers

import minimand
from tests.helpers import assert_same, data, dtype_policy, network, weights_of
from tests.kinds import AddsLoss

# Each test trains twice.
pytestmark = pytest.mark.slow

BACKEND = keras.backend.backend()
EPOCHS, BATCH = 2, 16


def _regression(random):
    return *data(random), {}


def _functional(random):
    x, y = data(random)
    weights = random.uniform(0.5, 2.0, size=len(x)).astype("float32")
    return {"a": x, "b": x[:, :3]}, {"u": y, "v": y[:, :1]}, {"sample_weight": {"u": weights, "v": weights}}


def _two_inputs_two_outputs():
    a, b = keras.Input((5,), name="a"), keras.Input((3,), name="b")
    hidden = layers.Dense(6, activation="relu")(layers.Concatenate()([a, b]))
    return keras.Model(
        {"a": a, "b": b}, {"u": layers.Dense(2, name="u")(hidden), "v": layers.Dense(1, name="v")(hidden)}
    )


def _sequences(random):
    x = random.integers(0, 6, size=(40, 7))
    return x, random.normal(size=(40, 7, 2)).astype("float32"), {}


def _masked():
    return keras.Sequential([keras.Input((7,)), layers.Embedding(6, 4, mask_zero=True), layers.LSTM(5, return_sequences=True), layers.Dense(2)])  # fmt: skip


def _classes(random):
    x = random.normal(size=(70, 5)).astype("float32")
    return x, random.integers(0, 2, size=70), {"class_weight": {0: 1.0, 1: 3.0}}


def _adding_loss():
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, activity_regularizer="l2"), AddsLoss(), layers.Dense(2)]
    )


CASES = {
    "batch_norm_and_dropout": (_regression, network, {"loss": "mse", "metrics": ["mae"]}),
    "regularizers": (_regression, lambda: network(kernel_regularizer="l2", bias_regularizer="l1"), {"loss": "mse"}),
    "add_loss": (_regression, _adding_loss, {"loss": "mse"}),
    "two_outputs_and_sample_weights": (
        _functional,
        _two_inputs_two_outputs,
        {"loss": {"u": "mse", "v": "mae"}, "loss_weights": {"u": 1.0, "v": 0.5}, "weighted_metrics": {"u": ["mse"], "v": []}},
    ),
    "masks": (_sequences, _masked, {"loss": "mse"}),
    "class_weights": (
        _classes,
        lambda: network(outputs=2),
        {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "metrics": ["accuracy"]},
    ),
    "gradient_accumulation": (
        _regression,
        network,
        {"loss": "mse", "optimizer": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)},
    ),
    "run_eagerly": (_regression, network, {"loss": "mse", "run_eagerly": True}),
}  # fmt: skip
if BACKEND != "torch":
    CASES["steps_per_execution"] = (_regression, network, {"loss": "mse", "steps_per_execution": 3})
    CASES["jit_compile"] = (_regression, network, {"loss": "mse", "jit_compile": True})
    CASES["no_jit_compile"] = (_regression, network, {"loss": "mse", "jit_compile": False})


def _fit(trained, inputs, compile_arguments, **more):
    x, y, fit_arguments = inputs
    compile_arguments = dict(compile_arguments)
    optimizer = compile_arguments.pop("optimizer", lambda: keras.optimizers.AdamW(0.01))()
    trained.compile(optimizer, **compile_arguments, **more)
    keras.utils.set_random_seed(5)
    return trained.fit(x, y, epochs=EPOCHS, batch_size=BATCH, verbose=0, **fit_arguments).history


# How Keras runs a step is its own business where there is no transform.
MODES = {"gradient_accumulation", "run_eagerly", "steps_per_execution", "jit_compile", "no_jit_compile"}
ZERO_NOISE = (minimand.transforms.WeightNoise,)


@pytest.mark.parametrize(
    ("case", "transforms"),
    [
        *((case, ZERO_NOISE) for case in CASES),
        *((case, ()) for case in CASES if case not in MODES and BACKEND == "torch"),
    ],
)
def test_same_losses_and_weights(case, transforms, random):
    make_data, make_model, arguments = CASES[case]
    inputs = make_data(random)
    keras.utils.set_random_seed(3)
    plain = make_model()
    keras.utils.set_random_seed(3)
    wrapped = make_model()
    expected = _fit(plain, inputs, arguments)
    actual = _fit(minimand.Trainer(wrapped), inputs, arguments, transforms=[t(0.0) for t in transforms])
    assert actual.keys() == expected.keys()
    for key in expected:
        np.testing.assert_allclose(actual[key], expected[key], rtol=2e-6, err_msg=key)
    assert_same(weights_of(wrapped), weights_of(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transforms", [(), (minimand.transforms.WeightNoise,)], ids=["plain", "zero_noise"])
def test_mixed_precision_loss_scaling(transforms, random):
    x, y = data(random)
    results = []
    for wrap in (False, True):
        keras.utils.set_random_seed(3)
        with dtype_policy("mixed_float16"):
            model = network()
            trained = minimand.Trainer(model) if wrap else model
            history = _fit(
                trained, (x, y, {}), {"loss": "mse"}, **({"transforms": [t(0.0) for t in transforms]} if wrap else {})
            )
        assert isinstance(trained.optimizer, keras.optimizers.LossScaleOptimizer)
        results.append((history["loss"], weights_of(model)))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=2e-3)
    assert_same(results[1][1], results[0][1], rtol=1e-2, atol=2e-3)


def test_a_subclassed_model_that_is_not_built(random):
    @keras.saving.register_keras_serializable(package="tests")
    class Subclassed(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.hidden, self.out = layers.Dense(4, activation="relu"), layers.Dense(2)

        def call(self, inputs):
            return self.out(self.hidden(inputs))

    x, y = data(random)
    keras.utils.set_random_seed(3)
    expected = _fit(Subclassed(), (x, y, {}), {"loss": "mse"})
    keras.utils.set_random_seed(3)
    model = Subclassed()
    # Transforms whose variables can be made only when the model's are.
    transforms = [
        minimand.transforms.WeightNoise(1e-12),
        minimand.transforms.VariationalWeightNoise(init=1e-12, kl_weight=0.0),
    ]
    actual = _fit(minimand.Trainer(model), (x, y, {}), {"loss": "mse"}, transforms=transforms)
    for weight in model.trainable_variables:
        log_stddev = transforms[1].variable_of(weight, "log_stddev")
        np.testing.assert_allclose(log_stddev.numpy(), np.log(1e-12), atol=0.2)
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=2e-6)


def test_evaluate_and_predict_equal_the_models(random):
    x, y = data(random)
    model = network()
    trainer = minimand.Trainer(model)
    trainer.compile("sgd", "mse", transforms=[minimand.transforms.WeightNoise(5.0)])
    model.compile("sgd", "mse")
    assert trainer.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-6)
    np.testing.assert_allclose(trainer.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6)
    np.testing.assert_array_equal(trainer.predict(x, verbose=0), trainer.predict(x, verbose=0))
