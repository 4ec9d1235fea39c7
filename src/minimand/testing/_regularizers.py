"""The contract of a penalty on weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand import backend
from minimand.regularizers import WeightRegularizer
from minimand.testing._suite import (
    Suite,
    dtype_policy,
    finite_difference,
    fit,
    gradient,
    numpy,
    require,
    restored,
    same_numbers,
    saved_and_loaded,
    skip,
    trainer_of,
)
from minimand.transforms import WeightPenalty


class RegularizerSuite(Suite):
    """The contract of a `keras.regularizers.Regularizer`, or a `WeightRegularizer`, as tests that pytest collects.

    strength R(w), a scalar; prox_s(w) = argmin_v |v - w|^2/2 + s strength R(v)

    A subclass whose name begins with `Test` gives `make` and `reference`. Checked are value and gradient against the
    reference; the strength; finite gradients where weights vanish, in half precision too; NaN and infinite weights;
    configuration; use as a layer's argument and as `transforms.WeightPenalty`, saved and loaded, in mixed precision;
    and, of a `minimand.regularizers.WeightRegularizer` that has a proximal map, that nothing nearby is better, that it
    is as smooth as a proximal map is, that it does not make numbers of NaN, and a schedule of the strength.

    Attributes:
        shapes: shapes of weights that it makes sense for.
        convex: whether R is.
        zero_at_zero: whether R(0) = 0, and its gradient there.
        rtol: relative tolerance of values, and that of gradients by 10.

    Source: `keras.regularizers.Regularizer`; Parikh, Boyd, "Proximal algorithms", 2014, sections 1.1 and 2.3.

    Examples:
        >>> import keras, numpy as np
        >>> from minimand import testing
        >>> class TestL1(testing.RegularizerSuite):
        ...     def make(self, strength):
        ...         return keras.regularizers.L1(strength)
        ...     def reference(self, w):
        ...         return np.abs(w).sum()
        >>> suite = TestL1()
        >>> suite.setup_method()
        >>> suite.test_the_value_is_the_references()
    """

    shapes: tuple[tuple[int, ...], ...] = ((3, 4), (2, 3, 2), (2, 2, 3, 2))
    convex: bool = True
    zero_at_zero: bool = True
    rtol: float = 1e-5

    def make(self, strength: float) -> keras.regularizers.Regularizer:
        """A new regularizer of this strength."""
        raise NotImplementedError

    def reference(self, w: np.ndarray) -> float:
        """R(w), for strength 1, in float64 NumPy."""
        raise NotImplementedError

    def _weights(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.random.normal(size=shape).astype("float32")

    # Values and gradients.

    def test_the_value_is_the_references(self) -> None:
        for shape in self.shapes:
            w = self._weights(shape)
            actual = numpy(self.make(0.3)(ops.convert_to_tensor(w)))
            require(actual.shape == (), f"The penalty must be a scalar. Received: shape {actual.shape}")
            expected = 0.3 * self.reference(w.astype("float64"))
            same_numbers(actual, expected, f"Not the reference, for {shape}.", rtol=self.rtol, atol=self.rtol)

    def test_the_gradient_is_the_references(self) -> None:
        for shape in self.shapes:
            w = self._weights(shape)
            expected = finite_difference(lambda v: 0.3 * self.reference(v), w)
            actual = gradient(self.make(0.3), w)[0]
            same_numbers(actual, expected, f"Not the gradient, for {shape}.", rtol=10 * self.rtol, atol=10 * self.rtol)

    def test_strength_is_a_factor(self) -> None:
        w = ops.convert_to_tensor(self._weights(self.shapes[0]))
        once, twice, never = (float(numpy(self.make(strength)(w))) for strength in (0.3, 0.6, 0.0))
        require(never == 0.0, f"With strength 0 the penalty is {never}.")
        same_numbers(twice, 2 * once, "Twice the strength is not twice the penalty.", rtol=1e-5)

    def test_gradients_where_weights_vanish(self) -> None:
        """A norm has no derivative at 0, and x / |x| is NaN there; in half precision squares underflow."""
        for shape in self.shapes:
            some = self._weights(shape) * (self.random.uniform(size=shape) < 0.5)
            for dtype in ("float32", "float16"):
                for w in (np.zeros(shape, dtype), some.astype(dtype), np.full(shape, 1e-4, dtype)):
                    (slope,) = gradient(self.make(0.3), w)
                    require(np.isfinite(slope).all(), f"The gradient is {slope} at {w} in {dtype}.")
                    require(slope.dtype == dtype, f"The gradient of {dtype} weights is in {slope.dtype}.")
            if self.zero_at_zero:
                (slope,) = gradient(self.make(0.3), np.zeros(shape, "float32"))
                require((slope == 0).all(), f"The gradient at 0 is {slope}: it would push weights off zero.")

    def test_nan_is_not_hidden(self) -> None:
        """Where training has diverged, the penalty must not look as if nothing had happened."""
        for shape in self.shapes:
            for bad in (np.nan, np.inf, -np.inf):
                w = self._weights(shape)
                w[(0,) * w.ndim] = bad
                value = numpy(self.make(0.3)(ops.convert_to_tensor(w)))
                require(not np.isfinite(value), f"A weight is {bad}, but the penalty is {value}.")

    # What is kept.

    def test_the_configuration_makes_an_equal_regularizer(self) -> None:
        regularizer = self.make(0.3)
        again = restored(regularizer)
        w = ops.convert_to_tensor(self._weights(self.shapes[0]))
        same_numbers(numpy(again(w)), numpy(regularizer(w)), "Made from its configuration it has another value.")

    # How it is used.

    def _model(self, regularizer: Any = None) -> keras.Sequential:
        """The sum of the inputs, each times its entry of a kernel of the first shape."""
        keras.utils.set_random_seed(11)
        axes = "abcdefgh"[: len(self.shapes[0])]
        layer = keras.layers.EinsumDense(f"yz{axes},{axes}->yz", 1, kernel_regularizer=regularizer)
        return keras.Sequential([keras.Input((1, *self.shapes[0])), layer])

    def _data(self) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(3)
        x = random.normal(size=(32, 1, *self.shapes[0])).astype("float32")
        return x, random.normal(size=(32, 1)).astype("float32")

    def test_as_an_argument_of_a_layer(self) -> None:
        x, y = self._data()
        for policy in ("float32", "mixed_float16", "mixed_bfloat16"):
            with dtype_policy(policy):
                model = self._model(self.make(0.1))
            model.compile(keras.optimizers.SGD(0.01), "mse")
            fit(model, x, y)
            expected = 0.1 * self.reference(numpy(model.weights[0]).astype("float64"))
            same_numbers(numpy(model.losses[0]), expected, "The layer's loss.", rtol=self.rtol, atol=self.rtol)
            loaded = numpy(saved_and_loaded(model, compiled=False).losses[0])
            same_numbers(loaded, expected, "The loaded layer's loss.", rtol=self.rtol, atol=self.rtol)

    def test_as_a_transform(self) -> None:
        """The same steps as with the layer's argument."""
        x, y = self._data()
        model, plain = self._model(self.make(0.1)), self._model()
        model.compile(keras.optimizers.SGD(0.01), "mse")
        penalty = WeightPenalty(self.make(0.1), select="all")
        trainer = trainer_of(plain, keras.optimizers.SGD(0.01), "mse", transforms=[penalty])
        losses = fit(model, x, y, epochs=2)["loss"]
        same_numbers(fit(trainer, x, y, epochs=2)["loss"], losses, "As a transform.", rtol=1e-4, atol=1e-5)
        same_numbers(numpy(plain.weights[0]), numpy(model.weights[0]), "As a transform.", rtol=1e-4, atol=1e-5)

    def test_a_schedule_as_strength(self) -> None:
        regularizer = self._weight_regularizer()
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.2, 0.6])
        for step, strength in ((0, 0.2), (1, 0.2), (2, 0.6)):
            config = {**regularizer.get_config(), "strength": keras.saving.serialize_keras_object(schedule)}
            w = ops.convert_to_tensor(self._weights(self.shapes[0]))
            scheduled = type(regularizer).from_config(config).of(w).at(ops.convert_to_tensor(step))
            expected = strength * numpy(self.make(1.0)(w))
            same_numbers(numpy(scheduled(w)), expected, f"Step {step} of a schedule.", rtol=1e-5)

    # Proximal maps.

    def _weight_regularizer(self) -> WeightRegularizer:
        regularizer = self.make(0.3)
        if not isinstance(regularizer, WeightRegularizer):
            skip("not a minimand.regularizers.WeightRegularizer")
        return regularizer

    def _proximal_map(self) -> Callable[[np.ndarray, Any], np.ndarray]:
        regularizer = self._weight_regularizer()
        try:
            regularizer.require_proximal()
        except NotImplementedError as error:
            skip(str(error))
        compiled = backend.jit(regularizer.prox)
        return lambda w, step: numpy(compiled(*map(ops.convert_to_tensor, (w, step))))

    def test_nothing_nearby_is_better_than_the_proximal_map(self) -> None:
        """Nor w itself, 0, or the maps of other steps; for a step, and for one of each weight."""
        for shape in self.shapes:
            proximal = self._proximal_map()
            w = self._weights(shape)
            for step in (np.full(shape, 0.5, "float32"), self.random.uniform(0.1, 2.0, size=shape).astype("float32")):
                found = proximal(w, step).astype("float64")

                def objective(v: np.ndarray, w: Any = w, step: Any = step) -> float:
                    return ((v - w) ** 2 / (2 * step)).sum() + 0.3 * self.reference(v)

                others = [w, 0 * w, *(proximal(w, np.float32(k) * step) for k in (0.9, 1.1))]
                for size in (1e-3, 1e-2, 1e-1):
                    others += [found + size * self.random.normal(size=shape) for _ in range(20)]
                best = min(objective(other.astype("float64")) for other in others)
                # In float32 the map is right to about 1e-6, which changes the objective by its square and, where it
                # has a corner, by itself.
                require(
                    objective(found) <= best + 1e-5 * (1 + abs(best)),
                    f"At the proximal map of {w} the objective is {objective(found)}; elsewhere it is {best}.",
                )

    def test_a_proximal_map_keeps_nan(self) -> None:
        """With one step for all weights, and with a step for each; and it comes to an end."""
        for shape in self.shapes[:2]:
            for step in (np.float32(0.1), np.full(shape, 0.1, "float32")):
                proximal = self._proximal_map()
                for bad in (np.nan, np.inf):
                    w = self._weights(shape)
                    w[(0,) * w.ndim] = bad
                    found = proximal(w, step)
                    require(not np.isfinite(found[(0,) * w.ndim]), f"The proximal map makes {found} of {w}.")

    def test_a_proximal_map_is_smooth(self) -> None:
        """Of a convex function |prox(a) - prox(b)| <= |a - b|, for neighbours too: where it jumps, and far apart.

        A step that vanishes changes nothing.
        """
        for shape in self.shapes:
            proximal = self._proximal_map()
            a, b = self._weights(shape), self._weights(shape)
            same_numbers(proximal(a, np.float32(1e-8)), a, "A step of 1e-8.", rtol=1e-6, atol=1e-6)
            if self.convex:
                between = [a + np.float32(t) * (b - a) for t in np.linspace(0, 1, 41)]
                found = [proximal(v, np.float32(0.5)) for v in between]
                for left, right in [*itertools.pairwise(range(41)), (0, 40)]:
                    before, after = (np.linalg.norm(v[left] - v[right]) for v in (between, found))
                    require(
                        after <= before * (1 + 1e-5) + 1e-5,
                        f"The proximal map takes {between[left]} and {between[right]}, {before} from each other, "
                        f"further apart: to {found[left]} and {found[right]}, {after} from each other.",
                    )
