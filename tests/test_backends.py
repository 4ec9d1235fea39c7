"""Each function of the backend in use does what the protocol says."""

import math

import keras
import numpy as np
from keras import ops
from scipy import stats

from minimand import backend
from minimand.backend._shared import _pcg3d, normal_quantiles
from minimand.testing import gradient
from minimand.testing._suite import (
    Suite,
    fit,
    network,
    numpy,
    require,
    same_numbers,
    same_values,
    skip,
    trainer_of,
    values_of,
)
from minimand.transforms import WeightNoise

# The fourth central moment of the standardised law: the variance of a sample variance is (kurtosis - 1) / n.
KURTOSIS = {"normal": 3.0, "uniform": 1.8, "rademacher": 1.0}


DIFFERENTIATE = [backend.value_and_gradient, backend.pure_value_and_gradient]


class TestBackend(Suite):
    # Derivatives.

    def test_value_aux_and_gradient(self):
        values = [ops.convert_to_tensor([1.0, 2.0]), ops.convert_to_tensor(3.0)]
        (value, aux), gradients = backend.value_and_gradient(lambda v: (ops.sum(v[0] ** 2) * v[1], v[1] + 1.0), values)
        require(numpy(value) == 15.0 and numpy(aux) == 4.0, f"Value and aux are {value} and {aux}, not 15 and 4.")
        same_numbers(numpy(gradients[0]), [6.0, 12.0], "The first gradient.")
        same_numbers(numpy(gradients[1]), 5.0, "The second gradient.")

    def test_the_gradient_of_an_unused_value_is_zero(self):
        unused = gradient(lambda used, unused: ops.sum(used), [1.0], [2.0, 3.0])[1]
        same_numbers(unused, [0.0, 0.0], "The gradient of an unused value.")

    def test_the_gradient_of_an_embedding_is_dense(self):
        table = np.ones((4, 2), "float32")
        found = gradient(lambda t: ops.sum(ops.take(t, ops.convert_to_tensor([1, 1, 3]), axis=0)), table)[0]
        same_numbers(found, [[0, 0], [2, 2], [0, 0], [1, 1]], "The gradient of a table.")

    def test_the_gradient_of_a_gradient(self):
        """With g = 3 v^2, d/dv of g^2 = 36 v^3; and once more."""
        for differentiate in DIFFERENTIATE:

            def squared(function, differentiate=differentiate):
                return lambda v: ops.sum(differentiate(lambda w: (ops.sum(function(w[0])), None), [v])[1][0] ** 2)

            second = gradient(squared(lambda v: v**3), [1.0, -2.0])[0]
            same_numbers(second, [36.0, -288.0], "The second derivative.", rtol=1e-6)
            # v^3, 9 v^4, (36 v^3)^2
            third = gradient(squared(squared(lambda v: v**3)), 2.0)[0]
            same_numbers(third, 6 * 36**2 * 2.0**5, "The third derivative.", rtol=1e-6)

    def test_what_is_differentiated_by_what_the_function_holds(self):
        """Of a v^3 + v^2 + (3 a v^2)^2 at v = 2, a = 3, of value, aux and gradient."""
        for differentiate in DIFFERENTIATE:

            def penalised(v, a, differentiate=differentiate):
                (value, (aux, _)), (g,) = differentiate(lambda w: (a * w[0] ** 3, (w[0] ** 2, ops.arange(2))), [v])
                return value + aux + g**2

            by_value, by_held = gradient(penalised, 2.0, 3.0)
            same_numbers(by_value, 3 * 3 * 4 + 2 * 2 + 36 * 9 * 8, "The derivative by the value.", rtol=1e-6)
            same_numbers(by_held, 8 + 18 * 3 * 16, "The derivative by what the function holds.", rtol=1e-6)

    def test_the_vjp_is_the_gradient(self):
        x = ops.convert_to_tensor(self.random.normal(size=(4, 3)).astype("float32"))
        w = self.random.normal(size=(3, 2)).astype("float32")
        cotangent = ops.convert_to_tensor(self.random.normal(size=(4, 2)).astype("float32"))
        found = []

        def output(v):
            return ops.tanh(ops.matmul(x, v))

        def loss(v):
            outputs = output(v)
            pull = backend.vjp([outputs], [v])
            if pull is not None:
                found.extend(numpy(pull([k * cotangent])[0]) for k in (1.0, 2.0))
            return ops.sum(outputs * cotangent)

        expected = gradient(loss, w)[0]
        if not found:
            skip("the framework keeps no pass")
        same_numbers(found[0], expected, "The vector-Jacobian product.", rtol=1e-6, atol=1e-7)
        same_numbers(found[1], 2 * expected, "The product, once more.", rtol=1e-6, atol=1e-7)

    def test_derivatives_in_closed_form(self):
        """Of sin(a b), with derivatives that broadcast, and those of the derivatives."""

        def function(a, b):
            return ops.sin(a * b), (b * ops.cos(a * b), a * ops.cos(a * b))

        closed = backend.custom_derivative(function)
        a, b = self.random.normal(size=(3, 1)).astype("float32"), self.random.normal(size=4).astype("float32")
        same_numbers(numpy(closed(*map(ops.convert_to_tensor, (a, b)))), np.sin(a * b), "The value.", rtol=1e-5)
        first = gradient(lambda *t: ops.sum(closed(*t)), a, b)
        same_numbers(first[0], (b * np.cos(a * b)).sum(axis=1, keepdims=True), "By the first.", rtol=1e-5, atol=1e-6)
        same_numbers(first[1], (a * np.cos(a * b)).sum(axis=0), "By the second.", rtol=1e-5, atol=1e-6)

        def slope(t):
            held = ops.convert_to_tensor(b)
            return ops.sum(backend.value_and_gradient(lambda v: (ops.sum(closed(v[0], held)), None), [t])[1][0])

        held = backend.custom_derivative(lambda a, b: (a * b, (b, None)))
        for_nothing = gradient(lambda *t: ops.sum(held(*t)), a, b)[1]
        same_numbers(for_nothing, 0 * b, "By what is constant to a first derivative.")
        second = gradient(slope, a)[0]
        expected = -((b**2) * np.sin(a * b)).sum(axis=1, keepdims=True)
        same_numbers(second, expected, "Twice by the first.", rtol=1e-5, atol=1e-6)

    def test_a_tap_has_a_gradient_on_the_side(self):
        """The output's own gradient is as without; the shadow gets sum_i x_i g_i^2."""
        x = self.random.normal(size=(4, 2)).astype("float32")

        def side(inputs, g):
            return [ops.sum(inputs[0] * g**2, axis=0)]

        def loss(output, shadow):
            tapped = backend.tap(output, [shadow], [ops.convert_to_tensor(x)], side)
            return ops.sum(tapped**3)

        output = self.random.normal(size=(4, 2)).astype("float32")
        own, shadow = gradient(loss, output, np.zeros(2, "float32"))
        same_numbers(own, 3 * output**2, "The output's gradient.", rtol=1e-5)
        same_numbers(shadow, (x * (3 * output**2) ** 2).sum(axis=0), "The shadow's gradient.", rtol=1e-5)

    # Random numbers and loops.

    def test_noise_has_the_stated_law(self):
        """Mean, variance and correlation of two draws of 60,000 numbers each, within five standard errors."""
        for law, kurtosis in KURTOSIS.items():
            draws = []
            for seed in (1, 2):
                words = ops.convert_to_tensor([seed, 0], "uint32")
                draws.append([numpy(part) for part in backend.noise(law, [(200, 200), (20000,)], words, 0.5)])
            again = backend.noise(law, [(200, 200), (20000,)], ops.convert_to_tensor([1, 0], "uint32"), 0.5)
            same_numbers(numpy(again[0]), draws[0][0], f"The same seed draws other numbers ({law}).")
            first, second = (np.concatenate([part.ravel() for part in parts]).astype("float64") for parts in draws)
            for e in (first, second):
                mean, excess = e.mean() / 0.5, np.mean(e**2) / 0.25 - 1
                require(abs(mean) < 5 / np.sqrt(e.size), f"The mean of {law} noise is {mean}.")
                # A finite set of quantiles has a variance that rounding makes 1.
                bound = 5 * np.sqrt((kurtosis - 1) / e.size) + 1e-6
                require(abs(excess) < bound, f"The variance of {law} noise is {1 + excess}.")
            correlation = np.mean(first * second) / 0.25
            require(abs(correlation) < 5 / np.sqrt(first.size), f"Two seeds correlate by {correlation} ({law}).")

    def test_normal_numbers_are_quantiles(self):
        """They are those at (k + 1/2) / 65536, scaled to variance 1, to the rounding of float32."""
        expected = stats.norm.ppf((np.arange(65536) + 0.5) / 65536)
        expected /= np.sqrt(np.mean(expected**2))
        same_numbers(normal_quantiles(), expected, "The quantiles.", rtol=1e-7)
        (drawn,) = backend.noise("normal", [(60000,)], ops.convert_to_tensor([1, 0], "uint32"), 0.5)
        drawn = np.sort(2 * numpy(drawn).astype("float64"))
        places = np.searchsorted(expected, drawn)
        near = [expected[np.clip(places - k, 0, 65535)] for k in (0, 1)]
        distance = np.abs(near - drawn).min(axis=0)
        require(np.all(distance < 3e-6 * np.abs(drawn) + 1e-9), f"Numbers between the quantiles: {distance.max()}")

    def test_the_hash_is_pcg3d(self):
        """As published, in whole numbers modulo 2^32."""
        if keras.backend.backend() == "torch":
            skip("PyTorch has generators of its own")
        seed, size = (123456789, 4000000000), 2**32
        for index in (0, 1, 77, 4294967295):
            x, y, z = ((v * 1664525 + 1013904223) % size for v in (index, *seed))
            x = (x + y * z) % size
            y = (y + z * x) % size
            z = (z + x * y) % size
            x, y, z = (v ^ v >> 16 for v in (x, y, z))
            found = _pcg3d(*(ops.convert_to_tensor(np.array(v, "uint32")) for v in (index, seed)))
            require(int(numpy(found)) == (x + y * z) % size, f"The hash of {index} is {found}.")

    def test_loops(self):
        rows = ops.convert_to_tensor(self.random.normal(size=(5, 3)).astype("float32"))
        factor = ops.convert_to_tensor(2.0)
        mapped = backend.vmap(lambda row, k: {"sum": k * ops.sum(row)})(rows, factor)
        same_numbers(numpy(mapped["sum"]), 2 * numpy(rows).sum(axis=1), "A function of each row.", rtol=1e-5)
        for chunk in (1, 2, 5):
            (total,) = backend.sum_over_rows(lambda row: [row["a"] ** 2], {"a": rows}, chunk)
            same_numbers(numpy(total), (numpy(rows) ** 2).sum(axis=0), "A sum over rows.", rtol=1e-5)
        slope = gradient(lambda r: ops.sum(backend.sum_over_rows(lambda row: [row**2], r, 2)[0]), numpy(rows))[0]
        same_numbers(slope, 2 * numpy(rows), "The gradient of a sum over rows.", rtol=1e-5)
        compiled = backend.jit(lambda tree: tree["a"] + 1.0)
        same_numbers(numpy(compiled({"a": rows})), numpy(rows) + 1.0, "A compiled function.")

    def test_scatter_update(self):
        array = ops.convert_to_tensor([1.0, 2.0, 3.0])
        found = backend.scatter_update(array, ops.convert_to_tensor([2, 0], "int32"), ops.convert_to_tensor([5.0, 7.0]))
        same_numbers(numpy(found), [7.0, 2.0, 5.0], "Values put into an array.")

    def test_segment_sum(self):
        values, labels = np.array([1.0, 2.0, 4.0, 8.0, 16.0], "float32"), np.array([2, 0, 2, 3, 2], "int32")
        found = numpy(backend.segment_sum(ops.convert_to_tensor(values), labels, 5))
        same_numbers(found, [2.0, 0.0, 21.0, 8.0, 0.0], "Sums by label.")
        by_values = gradient(lambda v: ops.sum(backend.segment_sum(v, labels, 5) * ops.arange(5.0)), values)[0]
        same_numbers(by_values, labels, "The gradient of sums by label.")

    def test_erfc(self):
        x = [-3.0, 0.0, 0.5, 4.0, 8.0]
        # exp(-x^2) carries the rounding of x^2 = 64, a relative error of 64 / 2^24.
        found = numpy(backend.erfc(ops.convert_to_tensor(x)))
        same_numbers(found, [math.erfc(each) for each in x], "erfc.", rtol=1e-5)

    def test_devices_and_replicas(self):
        found = backend.devices()
        require(found and all(isinstance(name, str) for name in found), f"`devices` must name some. Received: {found}")
        require(backend.replicas() == 1, "Outside of a step there is one replica.")

    # The train step.

    def test_the_train_step_is_kerass(self):
        """Without transforms, and with noise of size 0: losses and weights of the model's own `fit`."""
        x, y = self.random.normal(size=(33, 4)), self.random.normal(size=(33, 2))

        def model():
            normal = keras.layers.BatchNormalization()
            return network(lambda: [normal, keras.layers.Dropout(0.2, seed=5), keras.layers.Dense(2)])

        plain = model()
        plain.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
        expected = fit(plain, x, y, epochs=2)
        for transforms in ([], [WeightNoise(0.0)]):
            wrapped = model()
            trainer = trainer_of(wrapped, keras.optimizers.Adam(0.01), "mse", metrics=["mae"], transforms=transforms)
            found = fit(trainer, x, y, epochs=2)
            for key in expected:
                same_numbers(found[key], expected[key], f"{key} with {transforms}.", rtol=1e-5)
            same_values(
                wrapped.variables, values_of(plain.variables), f"Weights with {transforms}", rtol=1e-4, atol=1e-6
            )
