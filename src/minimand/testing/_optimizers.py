"""The contract of an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

import minimand
from minimand.testing._suite import (
    TrainedSuite,
    fit,
    network,
    numpy,
    require,
    restored,
    same_numbers,
    same_values,
    skip,
    values_of,
)
from minimand.transforms import Transform


def path_of(optimizer: keras.optimizers.Optimizer, gradients: Any) -> np.ndarray:
    """The values of a variable of the gradients' shape, which begins at 1 everywhere, after each of them."""
    variable = keras.Variable(np.ones(np.shape(gradients)[1:], "float32"), name="weights")
    optimizer.build([variable])
    path = []
    for g in gradients:
        optimizer.apply([ops.convert_to_tensor(np.float32(g))], [variable])
        path.append(variable.numpy())
    return np.array(path)


class OptimizerSuite(TrainedSuite):
    """The contract of a `keras.optimizers.Optimizer`, as tests that pytest collects.

    w_t = w_(t-1) - step of the gradients g_1, ..., g_t

    A subclass whose name begins with `Test` gives `make` and `reference`. Checked are the path against the reference;
    learning rates, also as schedules and assigned; weight decay, its exclusions, clipping, averaging and accumulation,
    as Keras defines them; vanishing, tiny, huge and NaN gradients; configuration, saving and resuming; `fit`, compiled
    and eager, in mixed precision, with frozen layers, on two devices; and that the same seeds give the same numbers.

    Attributes:
        alone: whether it works on gradients that are handed to it, without `transforms`; else there is no reference.
        rests: whether a weight whose gradient is always 0 stays, but for Keras's weight decay, w - rate decay w.
        stops: whether weights stay at a learning rate of 0; those of Keras's momentum go on, whose velocity has the
            earlier rates in it.
        averages: whether `use_ema` is for it.
        rtol: relative tolerance of the path.

    Source: `keras.optimizers.Optimizer`.

    Examples:
        >>> import keras, numpy as np
        >>> from minimand import testing
        >>> class TestSGD(testing.OptimizerSuite):
        ...     def make(self, learning_rate, **arguments):
        ...         return keras.optimizers.SGD(learning_rate, **arguments)
        ...     def reference(self, learning_rate, weights, gradients):
        ...         return weights - learning_rate * np.cumsum(gradients, axis=0)
        >>> suite = TestSGD()
        >>> suite.setup_method()
        >>> suite.test_the_path_is_the_references()
    """

    alone: bool = True
    rests: bool = True
    stops: bool = True
    averages: bool = True
    rtol: float = 1e-4

    def make(self, learning_rate: Any, **arguments: Any) -> keras.optimizers.Optimizer:
        """A new optimizer; `arguments` are those of `keras.optimizers.Optimizer`: `clipnorm`, `use_ema`..."""
        raise NotImplementedError

    def reference(self, learning_rate: float, weights: np.ndarray, gradients: np.ndarray) -> np.ndarray:
        """The weights (steps, n) after each of the gradients (steps, n), in float64 NumPy, from `weights` (n,)."""
        raise NotImplementedError

    def transforms(self) -> Sequence[Transform]:
        """What `Trainer.compile` must be given beside the optimizer."""
        return ()

    # The steps themselves.

    def _gradients(self, steps: int = 12) -> np.ndarray:
        return self.random.normal(0.5, 1.0, size=(steps, 5)).astype("float32")

    def _path(self, gradients: Any, learning_rate: Any = 0.1, **arguments: Any) -> np.ndarray:
        """The path of a new optimizer; ends the test of one that needs its transforms."""
        if not self.alone:
            skip("only with its transforms, in a trainer")
        return path_of(self.make(learning_rate, **arguments), gradients)

    def test_the_path_is_the_references(self) -> None:
        gradients = self._gradients(30)
        actual = self._path(gradients)
        expected = self.reference(0.1, np.ones(5), gradients.astype("float64"))
        same_numbers(actual, expected, "Not the reference's path.", rtol=self.rtol, atol=self.rtol)

    def test_learning_rates(self) -> None:
        """A schedule's is that of each step; one that is assigned counts from then on; 0 stands still."""
        gradients = self._gradients(6)
        plain = self._path(gradients)
        constant = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.1, 0.1])
        same_numbers(self._path(gradients, constant), plain, "A constant schedule.", rtol=1e-6)
        stopped = self._path(gradients, keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.1, 0.0]))
        same_numbers(stopped[:3], plain[:3], "The first steps of a schedule.", rtol=1e-6)
        if self.stops:
            same_numbers(stopped[3:], stopped[2:3].repeat(3, axis=0), "At a learning rate of 0.", rtol=1e-6)
        assigned = self.make(1.0)
        assigned.learning_rate = 0.1
        same_numbers(path_of(assigned, gradients), plain, "An assigned learning rate.", rtol=1e-6)
        same_numbers(numpy(assigned.learning_rate), 0.1, "`learning_rate` is not what was assigned.", rtol=1e-6)

    def test_clipping(self) -> None:
        """Of the gradient, before anything else."""
        gradients = self._gradients(6)
        lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
        shortened = gradients * np.minimum(1.0, 0.5 / lengths)
        for arguments, clipped in (
            ({"clipvalue": 0.25}, np.clip(gradients, -0.25, 0.25)),
            ({"clipnorm": 0.5}, shortened),
            ({"global_clipnorm": 0.5}, shortened),
        ):
            actual = self._path(gradients, **arguments)
            same_numbers(actual, self._path(clipped), f"With {arguments}.", rtol=1e-4, atol=1e-5)

    def test_accumulation_is_a_step_of_the_mean(self) -> None:
        gradients = self._gradients(8)
        actual = self._path(gradients, gradient_accumulation_steps=2)
        expected = self._path(gradients.reshape(4, 2, -1).mean(axis=1))
        same_numbers(actual[1::2], expected, "Accumulated gradients.", rtol=1e-4, atol=1e-5)
        same_numbers(actual[0], np.ones(5), "Before the first accumulated step.")

    def test_weight_decay(self) -> None:
        """Beside the step, w <- w - rate decay w; not for variables that are excluded."""
        if not (self.alone and self.rests):
            skip("weights move without a gradient, or only in a trainer")
        variables = [keras.Variable(np.ones(5, "float32"), name=name) for name in ("decayed", "excluded")]
        optimizer = self.make(0.1, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_names=["excluded"])
        optimizer.build(variables)
        for _ in range(3):
            optimizer.apply([ops.zeros(5), ops.zeros(5)], variables)
        same_numbers(variables[0].numpy(), 0.95**3 * np.ones(5), "Three steps of decay.", rtol=1e-6)
        same_numbers(variables[1].numpy(), np.ones(5), "Decay of a variable that is excluded from it.")

    def test_averaging(self) -> None:
        """The moving average, which takes the weights' place where Keras says."""
        if not self.averages:
            skip("no averages")
        gradients = self._gradients(6)
        plain = self._path(gradients)
        variable = keras.Variable(np.ones(5, "float32"), name="weights")
        optimizer = self.make(0.1, use_ema=True, ema_momentum=0.8)
        optimizer.build([variable])
        # Keras begins with the first weights that it sees.
        average = plain[0]
        for g, expected in zip(gradients, plain, strict=True):
            optimizer.apply([ops.convert_to_tensor(g)], [variable])
            same_numbers(variable.numpy(), expected, "Averaging changes the path.", rtol=1e-6)
            average = 0.8 * average + 0.2 * expected
        optimizer.finalize_variable_values([variable])
        same_numbers(variable.numpy(), average, "Not the moving average.", rtol=1e-5, atol=1e-6)

    def test_vanishing_tiny_and_huge_gradients(self) -> None:
        nothing = self._path(np.zeros((4, 5)))
        require(np.isfinite(nothing).all(), f"Gradients of 0 give {nothing}")
        if self.rests:
            same_numbers(nothing, np.ones((4, 5)), "Without a gradient weights must stay.")
        extreme = [[1e30, 1e-30, 1.0, 0.0, -1e30], [-1e30, 0.0, 1e-38, 1.0, -1e30]] * 3
        path = self._path(extreme, 1e-32)
        require(np.isfinite(path).all(), f"Gradients of 1e30 and 1e-30 give {path}")

    def test_nan_is_not_hidden(self) -> None:
        """The weight must show that its gradient was NaN, then and later."""
        gradients = self._gradients(4)
        gradients[1, 2] = np.nan
        path = self._path(gradients)
        require(np.isfinite(path[0]).all(), f"The first gradient gives {path[0]}")
        require(np.isnan(path[1:, 2]).all(), f"A gradient of NaN leaves the weight at {path[1:, 2]}.")

    # In a model.

    def _compiled(self, *, dropout: bool = False, **arguments: Any) -> Any:
        """In stock `compile`, or in a trainer where there are transforms."""
        transforms = self.transforms()
        # Keras does not save the state of dropout; a trainer does.
        model = network(lambda: [keras.layers.Dense(2, dtype="float32")], dropout=dropout and bool(transforms))
        trained = minimand.Trainer(model) if transforms else model
        self._compile(trained, **arguments)
        return trained

    def _compile(self, trained: Any, **arguments: Any) -> None:
        if isinstance(trained, minimand.Trainer):
            arguments["transforms"] = self.transforms()
        trained.compile(self.make(0.01), "mse", **arguments)

    def test_the_configuration_makes_an_equal_optimizer(self) -> None:
        restored(self.make(0.1, use_ema=self.averages, clipnorm=2.0, gradient_accumulation_steps=3))
        restored(self.make(keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.2])))

    def test_training_moves_every_weight(self) -> None:
        x, y = self._data()
        model = self._compiled()
        before = values_of(model.trainable_variables)
        fit(model, x, y, epochs=2)
        for variable, old in zip(model.trainable_variables, before, strict=True):
            require(np.any(numpy(variable) != old), f"Training left {variable.path} as it was.")

    def test_frozen_layers_stay(self) -> None:
        """After they were trained, and the model was compiled anew."""
        x, y = self._data()
        model = self._compiled()
        fit(model, x, y)
        layer = getattr(model, "model", model).layers[0]
        layer.trainable = False
        frozen = values_of(layer.variables)
        self._compile(model)
        fit(model, x, y)
        same_values(layer.variables, frozen, "A frozen layer was trained.")
