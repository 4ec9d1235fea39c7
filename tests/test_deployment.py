"""What losses have learned, as plain Keras models: `to_inference`."""

import zipfile

import keras
import numpy as np
import pytest
from keras import layers
from scipy import special

from minimand.losses import CostThreshold, Mahalanobis, TemperatureScaled
from tests.helpers import numpy


def threshold():
    loss = CostThreshold(from_logits=True)
    loss.build_once((None, 1), (None, 1))
    loss._threshold.assign(0.3)
    return loss, lambda outputs: special.expit(outputs) >= 0.3


def temperature():
    loss = TemperatureScaled(keras.losses.CategoricalCrossentropy(from_logits=True))
    loss.build_once((None, 3), (None, 3))
    loss.trainable_variables[0].assign(1.2)
    return loss, lambda logits: logits / loss.temperature


def metric():
    loss = Mahalanobis(2)
    loss.build_once((None, 2), (None, 2))
    for variable in loss.trainable_variables:
        variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    return loss, loss.transform


CASES = [(threshold, 1), (temperature, 3), (metric, 2)]
NAMES = ["threshold", "temperature", "metric"]


def of_one(units):
    return keras.Sequential([keras.Input((4,)), layers.Dense(units)])


def of_an_array(units):
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(units)(inputs))


def of_names(units):
    inputs = {"left": keras.Input((3,), name="left"), "right": keras.Input((1,), name="right")}
    return keras.Model(inputs, layers.Dense(units)(layers.Concatenate()(list(inputs.values()))))


@pytest.mark.parametrize("build", [of_one, of_an_array, of_names])
@pytest.mark.parametrize(("make", "units"), CASES, ids=NAMES)
def test_the_model_takes_what_the_given_one_takes_and_shares_its_weights(make, units, build, random):
    loss, function = make()
    model = build(units)
    x = random.normal(size=(7, 4)).astype("float32")
    given = {"left": x[:, :3], "right": x[:, 3:]} if build is of_names else x
    deployed = loss.to_inference(model)
    for _ in range(2):
        np.testing.assert_allclose(numpy(deployed(given)), function(numpy(model(given))), rtol=1e-4, atol=1e-5)
        # What the model learns later, this one has learned.
        model.layers[-1].kernel.assign(random.normal(size=(4, units)))
    assert deployed.name.startswith(model.name)


@pytest.mark.parametrize(("make", "units"), CASES, ids=NAMES)
def test_its_file_is_keras_s_alone(make, units, random, tmp_path):
    loss, _ = make()
    deployed = loss.to_inference(of_one(units))
    deployed.save(tmp_path / "deployed.keras")
    with zipfile.ZipFile(tmp_path / "deployed.keras") as file:
        assert b"minimand" not in file.read("config.json")
    loaded = keras.saving.load_model(tmp_path / "deployed.keras", safe_mode=True)
    x = random.normal(size=(7, 4)).astype("float32")
    np.testing.assert_allclose(numpy(loaded(x)), numpy(deployed(x)), rtol=1e-6)
    # What the loss learns later, this one has not.
    before = numpy(deployed(x))
    for variable in loss.trainable_variables:
        variable.assign(variable.value + 1.0)
    np.testing.assert_array_equal(numpy(deployed(x)), before)
