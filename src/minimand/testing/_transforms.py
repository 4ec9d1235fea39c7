"""The contract of a transform of an objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from minimand import backend
from minimand.losses import GeneralRobust
from minimand.testing._suite import (
    BATCH,
    TrainedSuite,
    finite_difference,
    fit,
    network,
    numpy,
    raises,
    require,
    restored,
    same_numbers,
    same_values,
    skip,
    trainer_of,
    values_of,
)
from minimand.transforms import Transform, WeightPenalty


class LeastSquares(NamedTuple):
    """L(w) = mean_i (x_i . w - y_i)^2 / 2 in float64: what a transform's reference works with.

    Attributes:
        x: inputs (n, d).
        y: targets (n,).

    Examples:
        >>> import numpy as np
        >>> from minimand.testing import LeastSquares
        >>> problem = LeastSquares(np.eye(2), np.zeros(2))
        >>> problem.gradient(np.array([2.0, 4.0])).tolist()
        [1.0, 2.0]
    """

    x: np.ndarray
    y: np.ndarray

    def value(self, w: np.ndarray) -> float:
        """L(w)."""
        return float(np.mean((self.x @ w - self.y) ** 2) / 2)

    def example_gradients(self, w: np.ndarray) -> np.ndarray:
        """The gradient of each example (n, d)."""
        return (self.x @ w - self.y)[:, None] * self.x

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """Their mean (d,)."""
        return self.example_gradients(w).mean(axis=0)

    def hessian(self) -> np.ndarray:
        """(d, d), the same everywhere."""
        return self.x.T @ self.x / len(self.x)


class TransformSuite(TrainedSuite):
    """The contract of a `minimand.transforms.Transform`, as tests that pytest collects.

    L -> T(L), with T(L) of a least-squares problem L that of a reference in float64

    A subclass whose name begins with `Test` gives `make` and `reference`. Checked are the transformed objective's value
    and gradient against the reference (of a random one, their means); that batch statistics and seeds advance once a
    step, that weights are only changed by the optimizer, an error in a step leaves them as they were, and evaluation
    and prediction are those of the model; NaN in the data; configuration, saving and resuming; composition with other
    transforms; sample weights; `fit`, compiled and eager, with several steps at once, in mixed precision, on two
    devices; and that the same seeds give the same numbers.

    Attributes:
        draws: number of steps whose mean is compared with the reference, to five standard errors; 1 without noise.
        changes: whether training differs from training without it; None if the optimizer needs it.
        refuses: what it is meant to refuse, by a `ValueError` or `NotImplementedError` that says why: of
            `"batch normalisation"` and `"earlier transforms"`.
        rtol: relative tolerance of value and gradient.

    Source: `docs/architecture.md` for the contract.

    Examples:
        >>> import keras, minimand
        >>> from minimand import testing
        >>> class TestDecay(testing.TransformSuite):
        ...     def make(self):
        ...         return minimand.transforms.WeightPenalty(keras.regularizers.L2(0.1))
        ...     def reference(self, problem, w):
        ...         return problem.value(w) + 0.1 * (w**2).sum()
        >>> suite = TestDecay()
        >>> suite.setup_method()
        >>> suite.test_the_objective_is_the_references()
    """

    draws: int = 1
    changes: bool | None = True
    refuses: tuple[str, ...] = ()
    _modes = (*TrainedSuite._modes, {"steps_per_execution": 2})
    rtol: float = 1e-4

    def make(self) -> Transform:
        """A new transform; if it draws random numbers, with a fixed seed."""
        raise NotImplementedError

    def reference(self, problem: LeastSquares, w: np.ndarray) -> float:
        """T(L)(w), or its expectation, for the weights (d,) of a kernel (d, 1), in float64 NumPy."""
        raise NotImplementedError

    def reference_gradient(self, problem: LeastSquares, w: np.ndarray) -> np.ndarray:
        """The gradient by w (d,): by default central differences of `reference`."""
        return finite_difference(lambda v: self.reference(problem, v), w)

    def optimizer(self, learning_rate: float) -> keras.optimizers.Optimizer:
        """What it is trained with."""
        return keras.optimizers.SGD(learning_rate)

    # The objective.

    def _trainer(self, model: keras.Model, rate: float = 0.02, loss: Any = "mse", **arguments: Any) -> Any:
        arguments = {"transforms": [self.make()], **arguments}
        return trainer_of(model, self.optimizer(rate), loss, **arguments)

    def _is_refused(self, what: str, compiled: Callable[[], Any]) -> bool:
        """Tell whether the transform is meant to refuse this; then it must."""
        if what not in self.refuses:
            return False
        with raises((ValueError, NotImplementedError), f"The transform must refuse {what}, see `refuses`.") as refusal:
            compiled()
        error = refusal.exception
        require(len(str(error)) > 20, f"A refusal must say why. Received: {error!r}")
        return True

    def test_the_objective_is_the_references(self) -> None:
        x = self.random.normal(size=(12, 3)).astype("float32")
        y = self.random.normal(size=12).astype("float32")
        w = self.random.normal(size=3).astype("float32")
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
        trainer = self._trainer(model, loss=GeneralRobust(alpha=2.0))
        data = trainer.prepare(x, y[:, None])
        model.set_weights([w[:, None]])
        index = [id(variable) for variable in trainer.trainable_variables].index(id(model.weights[0]))

        def step(values: Any, state: Any, metrics: Any) -> Any:
            (loss, (_, *left)), gradients = backend.value_and_gradient(
                lambda v: trainer.evaluate_objective(v, state, metrics, data), values, differentiable=False
            )
            return loss, gradients[index], *left

        compiled, found = backend.jit(step), []
        variables = (trainer.trainable_variables, trainer.non_trainable_variables, trainer.metrics_variables)
        values, state, metrics = ([variable.value for variable in part] for part in variables)
        for _ in range(self.draws):
            loss, slope, state, metrics = compiled(values, state, metrics)
            found.append([float(numpy(loss)), *numpy(slope)[:, 0]])
        problem = LeastSquares(x.astype("float64"), y.astype("float64"))
        wide = w.astype("float64")
        expected = np.array([self.reference(problem, wide), *self.reference_gradient(problem, wide)])
        actual = np.mean(found, axis=0)
        tolerance = self.rtol * (1 + np.abs(expected))
        if self.draws > 1:
            require(np.std(found, axis=0).max() > 0, "A random transform always draws the same.")
            tolerance = tolerance + 5 * np.std(found, axis=0, ddof=1) / np.sqrt(self.draws)
        require(
            (np.abs(actual - expected) <= tolerance).all(),
            f"Value and gradient are {actual}, those of the reference {expected}, tolerance {tolerance}.",
        )

    # What a step leaves behind.

    def _network(self, dropout: bool = True) -> keras.Sequential:
        return network(lambda: [keras.layers.Dense(2, dtype="float32")], dropout=dropout)

    def _compiled(self, *, dropout: bool = False, **arguments: Any) -> Any:
        return self._trainer(self._network(dropout), **arguments)

    def test_statistics_and_seeds_advance_once_a_step(self) -> None:
        """The moving mean of the inputs does not depend on weights or noise."""
        x, y = self._data()
        keras.utils.set_random_seed(1)
        normal = keras.layers.BatchNormalization(momentum=0.9)
        dropout = keras.layers.Dropout(0.3, seed=1)
        model = keras.Sequential([keras.Input((4,)), normal, dropout, keras.layers.Dense(2)])
        start = dropout.seed_generator.state.numpy()[1]
        if self._is_refused("batch normalisation", lambda: self._trainer(model)):
            return
        fit(self._trainer(model), x, y)
        expected = np.zeros(4)
        for batch in np.split(x, 2):
            expected = 0.9 * expected + 0.1 * batch.mean(axis=0)
        same_numbers(normal.moving_mean.numpy(), expected, "The moving mean.", rtol=1e-5, atol=1e-7)
        steps = dropout.seed_generator.state.numpy()[1] - start
        require(steps == 2, f"Two steps advanced the dropout's seed {steps} times.")

    def test_weights_are_changed_by_the_optimizer_alone(self) -> None:
        """At a learning rate of 0 they stay, to the last bit."""
        x, y = self._data()
        model = self._network()
        trainer = self._trainer(model, rate=0.0)
        before = values_of(model.trainable_variables)
        fit(trainer, x, y)
        same_values(model.trainable_variables, before, "Changed at a learning rate of 0.")

    def test_an_error_in_a_step_leaves_the_model_as_it_was(self) -> None:
        x, y = self._data()
        model = self._network()
        trainer = self._trainer(model, transforms=[self.make(), _Fails()])
        trainer.prepare(x, y)
        before = values_of(model.variables)
        with raises(ArithmeticError, "An error in the objective was hidden."):
            fit(trainer, x, y)
        same_values(model.variables, before, "Changed by an error in a step.")

    def test_evaluation_and_prediction_are_the_models(self) -> None:
        x, y = self._data()
        model = self._network()
        trainer = self._trainer(model)
        fit(trainer, x, y)
        model.compile(loss="mse")
        clean = model.evaluate(x, y, verbose=0)
        same_numbers(trainer.evaluate(x, y, verbose=0), clean, "`evaluate` is not the model's.", rtol=1e-6)
        same_numbers(trainer.predict(x, verbose=0), model.predict(x, verbose=0), "`predict` is not the model's.")

    def test_nan_in_the_data_is_seen(self) -> None:
        """In the loss, and by Keras's callback, which ends the training."""
        x, y = self._data()
        x[20, 3] = np.nan
        ends = [keras.callbacks.TerminateOnNaN()]
        trainer = self._compiled()
        losses = trainer.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=ends).history["loss"]
        require(np.isnan(losses).tolist() == [True], f"An input is NaN, but the losses of the epochs are {losses}.")

    # What is kept.

    def test_the_configuration_makes_an_equal_transform(self) -> None:
        transform = self.make()
        require(restored(transform).name == transform.name, "`name` is not in the configuration.")

    # How it is used.

    def test_training_changes(self) -> None:
        """Or, of a transform that only measures, stays as it is without."""
        if self.changes is None:
            skip("its optimizer needs it")
        x, y = self._data()
        model, plain = self._network(), self._network()
        fit(self._trainer(model), x, y, epochs=2)
        fit(trainer_of(plain, self.optimizer(0.02), "mse"), x, y, epochs=2)
        pairs = zip(values_of(model.trainable_variables), values_of(plain.trainable_variables), strict=True)
        same = all(np.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in pairs)
        require(same != self.changes, f"With and without the transform, training is {'the same' if same else 'not'}.")

    def test_composition(self) -> None:
        """Before and after a penalty."""
        x, y = self._data()
        fit(self._compiled(transforms=[self.make(), WeightPenalty("l2", name="other")]), x, y)
        after = [WeightPenalty("l2", name="other"), self.make()]
        if not self._is_refused("earlier transforms", lambda: self._compiled(transforms=after)):
            fit(self._compiled(transforms=after), x, y)

    def test_sample_weights(self) -> None:
        x, y = self._data()
        weights = self.random.uniform(size=len(x)).astype("float32")
        plain = fit(self._compiled(dropout=True), x, y)["loss"]
        weighted = fit(self._compiled(dropout=True), x, y, sample_weight=weights)["loss"]
        require(plain != weighted, "Sample weights change nothing.")


class _Fails(Transform):
    """An error in the middle of a step, after a pass at other weights."""

    def apply(self, objective: Any) -> Any:
        def failing(weights: Any, batch: Any) -> Any:
            objective([2.0 * w for w in weights], batch)
            raise ArithmeticError("in the middle of a step")

        return failing
