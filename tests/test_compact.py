"""Compacted random graphs with random zeros have the same outputs and cannot be compacted further."""

import keras
import numpy as np
import pytest
from keras import layers

from minimand.sparsity import compact
from tests.graphs import Graph
from tests.helpers import numpy


def with_zeros(model, random):
    """Set random weights; a third of the units, of the inputs of each kernel and of the scales are zero."""
    for variable in model.variables:
        if variable.name == "seed_generator_state":
            continue
        value = random.normal(size=variable.shape)
        if "variance" in variable.path:
            value = random.uniform(0.5, 2.0, size=variable.shape)
        elif len(variable.shape) >= 2:
            value *= random.uniform(size=variable.shape[-1]) < 0.67
            value *= (random.uniform(size=variable.shape[-2]) < 0.67)[:, None]
        elif random.integers(2):
            value *= random.uniform(size=variable.shape) < 0.67
        variable.assign(value)


@pytest.mark.parametrize("shape", [(4,), (7, 3)], ids=["vectors", "sequences"])
@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_keep_their_outputs(shape, seed):
    random = np.random.default_rng([seed, len(shape)])
    graph = Graph(random, shape)
    for _ in range(random.integers(3, 9)):
        graph.grow()
    model = graph.model()
    with_zeros(model, random)
    smaller = compact(model)
    x = random.normal(size=(6, *shape)).astype("float32")
    expected = numpy(model(x))
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(numpy(smaller(x)) / scale, expected / scale, atol=2e-5)
    assert smaller.count_params() <= model.count_params()
    # Nothing is left that could go.
    assert compact(smaller).count_params() == smaller.count_params()


def test_what_it_takes_and_gives_has_the_same_structure(random):
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    hidden = layers.Dense(4, "relu")(layers.Concatenate()([left, right]))
    outputs = {"a": layers.Dense(1)(hidden), "b": (layers.Dense(2)(hidden), right)}
    x = {"left": random.normal(size=(5, 3)).astype("float32"), "right": random.normal(size=(5, 2)).astype("float32")}
    for model, given in [
        (keras.Model({"left": left, "right": right}, outputs), x),
        (keras.Model([left, right], [outputs["a"]]), list(x.values())),
        (keras.Model([left, right], outputs["a"]), list(x.values())),
        (keras.Model(right, layers.Dense(3)(right)), x["right"]),
        (keras.Sequential([right, layers.Dense(3)]), x["right"]),
    ]:
        with_zeros(model, random)
        expected, found = model(given), compact(model)(given)
        keras.tree.assert_same_structure(expected, found)
        for one, other in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
            np.testing.assert_allclose(numpy(one), numpy(other), atol=1e-5)
