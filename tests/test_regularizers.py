"""Values against loops in float64, gradients finite at zero, and use in stock Keras."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from kriterion.regularizers import GroupSparsity, Range, TotalVariation
from tests.helpers import REGULARIZERS, finite_difference, gradient, numpy, told

SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)


def total_variation(w):
    return 0.3 * sum(abs(w[i + 1][j] - w[i][j]) for i in range(len(w) - 1) for j in np.ndindex(w.shape[1:]))


def out_of_range(w):
    return 0.3 * sum(max(v - 0.4, 0) ** 2 + max(-0.2 - v, 0) ** 2 for v in w.ravel())


def groups(axis):
    def value(w):
        parts = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
        return 0.3 * sum(np.sqrt(part.size) * np.sqrt(sum(v * v for v in part)) for part in parts)

    return value


REFERENCES = {
    "total_variation": total_variation,
    "range": out_of_range,
    "group_sparsity_output": groups(-1),
    "group_sparsity_input": groups(-2),
}


@pytest.mark.parametrize("name", REGULARIZERS)
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**16))
def test_value_against_a_loop(name, shape, seed):
    w = np.random.default_rng(seed).normal(size=shape)
    actual = numpy(REGULARIZERS[name]()(ops.convert_to_tensor(w.astype("float32"))))
    assert actual.shape == ()
    assert actual == pytest.approx(REFERENCES[name](w), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_gradient(name, random, float64):
    w = random.normal(size=(3, 4))
    actual = gradient(REGULARIZERS[name](), w)[0]
    np.testing.assert_allclose(actual, finite_difference(REFERENCES[name], w), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("make", REGULARIZERS.values(), ids=REGULARIZERS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gradient_is_finite_where_groups_and_differences_vanish(make, dtype):
    w = np.array([[0.0, 0.3, 0.0], [0.0, 0.0, 0.0], [0.0, 0.3, 0.0]], dtype=dtype)
    slope = gradient(make(), w)[0]
    assert np.isfinite(slope).all()
    assert slope.dtype == dtype
    assert (gradient(make(), np.zeros((3, 3), dtype))[0] == 0).all()


@pytest.mark.parametrize("make", REGULARIZERS.values(), ids=REGULARIZERS)
def test_in_stock_keras_and_back_from_a_file(make, random, tmp_path):
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), keras.layers.Conv2D(3, 2, kernel_regularizer=make()), keras.layers.Flatten(), keras.layers.Dense(1, kernel_regularizer=make())]
    )  # fmt: skip
    model.compile("sgd", "mse")
    x, y = random.normal(size=(8, 6, 6, 2)), random.normal(size=(8, 1))
    model.fit(x, y, verbose=0)
    expected = [float(numpy(loss)) for loss in model.losses]
    assert len(expected) == 2
    kernels = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]
    assert expected == pytest.approx([float(numpy(make()(ops.convert_to_tensor(k)))) for k in kernels], rel=1e-6)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert [float(numpy(loss)) for loss in loaded.losses] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", REGULARIZERS.values(), ids=REGULARIZERS)
def test_strength_is_a_factor(make, random):
    w = ops.convert_to_tensor(random.normal(size=(3, 4)).astype("float32"))
    assert float(numpy(make(0.6)(w))) == pytest.approx(2 * float(numpy(make(0.3)(w))), rel=1e-6)
    assert float(numpy(make(0.0)(w))) == 0.0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: TotalVariation(-1.0, axis=0), ValueError, ["`strength`", ">= 0", "-1.0"]),
        (lambda: TotalVariation(1.0, axis=0.5), TypeError, ["`axis`", "0.5"]),
        (lambda: TotalVariation(1.0, axis=2)(np.ones((2, 2))), ValueError, ["`axis`", "(2, 2)"]),
        (lambda: Range(1.0, 1.0, -1.0), ValueError, ["`low`", "`high`", "-1.0"]),
        (lambda: Range(1.0, float("-inf"), 1.0), ValueError, ["`low`", "-inf"]),
        (lambda: GroupSparsity(1.0, groups="units"), ValueError, ["`groups`", "'output'", "'units'"]),
        (lambda: GroupSparsity(1.0)(np.ones(3)), ValueError, ["rank 2", "(3,)"]),
    ],
)  # fmt: skip
def test_bad_arguments_are_told(make, error, words):
    with told(error, words):
        make()
