"""The base of the suites: numbers, assertions with sentences, small models, and the tests of training."""

from __future__ import annotations

import contextlib
import json
import tempfile
import unittest
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import minimand
from minimand import backend

BATCH = 16


def numpy(value: Any) -> np.ndarray:
    """The value of a tensor or a variable, without its gradient."""
    if isinstance(value, keras.Variable):
        return value.numpy()
    return keras.ops.convert_to_numpy(keras.ops.stop_gradient(value))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function without its assignments of variables; JAX compiles the function as one program."""

    def stateless(*arguments: Any) -> Any:
        with keras.StatelessScope():
            return function(*arguments)

    return backend.jit(stateless) if backend.name == "jax" else stateless


def gradient(function: Callable[..., Any], *values: Any) -> list[np.ndarray]:
    """Gradients of a scalar function of arrays by each of them, by the framework.

    Args:
        function: takes as many tensors as there are `values`; gives a scalar. JAX compiles it.
        *values: arrays.

    Returns:
        Arrays of their shapes.

    Examples:
        >>> import keras, numpy as np
        >>> from minimand import testing
        >>> testing.gradient(lambda v: keras.ops.sum(v**2), np.array([1.0, 2.0]))[0].tolist()
        [2.0, 4.0]
    """
    tensors = [keras.ops.convert_to_tensor(value) for value in values]
    scalar = compiled(function)
    return [numpy(g) for g in backend.value_and_gradient(lambda t: (scalar(*t), None), tensors)[1]]


def finite_difference(function: Callable[[np.ndarray], Any], value: Any, step: float = 1e-6) -> np.ndarray:
    """Central differences of a scalar function of one float64 array.

    (f(v + h e_j) - f(v - h e_j)) / 2h for each entry j: right to h^2 f'''/6 and the rounding of f over h.

    Args:
        function: takes a float64 array; gives a number.
        value: where.
        step: h > 0.

    Returns:
        An array of the value's shape.

    Examples:
        >>> from minimand import testing
        >>> testing.finite_difference(lambda v: (v**2).sum(), [1.0, 2.0]).round(6).tolist()
        [2.0, 4.0]
    """
    value = np.array(value, dtype="float64")
    result = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        shift = np.zeros_like(value)
        shift[index] = step
        result[index] = (float(function(value + shift)) - float(function(value - shift))) / (2 * step)
    return result


class Suite:
    """Methods `test_...`, which pytest collects of a subclass whose name begins with `Test`."""

    def setup_method(self) -> None:
        """Called by pytest before each test: the same seeds for each."""
        keras.utils.set_random_seed(7)
        self.random = np.random.default_rng(0)


def require(condition: Any, sentence: str) -> None:
    """Raise an `AssertionError` with the sentence, unless the condition holds."""
    if not condition:
        raise AssertionError(sentence)


def raises(errors: Any, sentence: str) -> Any:
    """A context in which one of these errors must be raised; if not, an `AssertionError` ends with the sentence."""
    return unittest.TestCase().assertRaises(errors, msg=sentence)  # noqa: PT027 (the suites do not need pytest)


def skip(reason: str) -> None:
    """End the test as one that does not apply here."""
    raise unittest.SkipTest(reason)


def same_numbers(actual: Any, expected: Any, sentence: str, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Raise an `AssertionError` that begins with the sentence, unless the arrays agree."""
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=atol, err_msg=sentence)


def restored(part: Any) -> Any:
    """The part made anew from its configuration, which has gone through JSON as in a `.keras` file.

    It must have the same class and the same configuration.
    """
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(part))))
    require(type(again) is type(part), f"Deserialised as {type(again)}: register the class with Keras.")
    found, expected = again.get_config(), part.get_config()
    require(found == expected, f"The configuration must come back as it was. Received: {found}, not {expected}")
    return again


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Within it layers are made with this policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def saved_and_loaded(model: keras.Model, *, compiled: bool = True) -> Any:
    """The model that Keras makes of the file that this model is saved to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return keras.saving.load_model(path, compile=compiled)


def network(last: Callable[[], Sequence[keras.layers.Layer]], *, dropout: bool = False) -> keras.Sequential:
    """A small network of 4 inputs with the last layers that the function makes, always from the same seed."""
    keras.utils.set_random_seed(11)
    hidden = [keras.layers.Dense(6, "tanh"), *([keras.layers.Dropout(0.2, seed=5)] if dropout else [])]
    return keras.Sequential([keras.Input((4,)), *hidden, *last()])


def trainer_of(model: keras.Model, optimizer: Any, loss: Any, **arguments: Any) -> minimand.Trainer:
    """A compiled trainer."""
    trainer = minimand.Trainer(model)
    trainer.compile(optimizer, loss, **arguments)
    return trainer


def fit(trained: keras.Model, x: Any, y: Any, epochs: int = 1, **arguments: Any) -> dict[str, list[float]]:
    """The history of training in an order that is always the same; the last batch may be a smaller one."""
    found = trained.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, **arguments).history
    for key, values in found.items():
        require(np.isfinite(values).all(), f"`fit` gave {key} = {values}, which must be finite.")
    return found


def values_of(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """The values of variables."""
    return [numpy(variable) for variable in variables]


def same_values(
    variables: Sequence[keras.Variable], expected: Sequence[np.ndarray], sentence: str, **tolerance: float
) -> None:
    """Raise an `AssertionError` that begins with the sentence, unless the variables have these values."""
    for variable, value in zip(variables, expected, strict=True):
        same_numbers(numpy(variable), value, f"{sentence} ({variable.path})", **tolerance)


class TrainedSuite(Suite):
    """Tests of `fit` with a part, for a subclass that says by `_compiled` what is trained, and on what."""

    # How a step may be run, in arguments of `compile`; the first is what the others must agree with.
    _modes: tuple[dict[str, Any], ...] = ({"run_eagerly": True}, {"jit_compile": True})

    def _compiled(self, *, dropout: bool = False, **arguments: Any) -> keras.Model:
        """A new compiled model with the part, always of the same weights; `arguments` are those of `compile`.

        Dropout draws other numbers in half precision, and on TensorFlow when XLA compiles it.
        """
        raise NotImplementedError

    def _targets(self, random: np.random.Generator, rows: int) -> np.ndarray:
        """Targets for the model."""
        return random.normal(size=(rows, 2)).astype("float32")

    def _data(self, rows: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, always the same; by default two batches."""
        random = np.random.default_rng(3)
        return random.normal(size=(rows, 4)).astype("float32"), self._targets(random, rows)

    def test_fit_saves_and_goes_on(self) -> None:
        """With a last batch of one row; loaded from its file, a model goes on as the saved one does, bit for bit."""
        x, y = self._data(rows=33)
        model = self._compiled(dropout=True)
        fit(model, x, y)
        loaded = saved_and_loaded(model)
        same_values(loaded.variables, values_of(model.variables), "Not what was saved")
        expected, found = fit(model, x, y, epochs=2), fit(loaded, x, y, epochs=2)
        require(found == expected, f"A loaded model does not go on as the saved one does: {found}, not {expected}")
        same_values(loaded.variables, values_of(model.variables), "A loaded model does not go on as the saved one does")

    def test_the_same_seeds_give_the_same_numbers(self) -> None:
        x, y = self._data()
        first, second = (fit(self._compiled(dropout=True), x, y) for _ in range(2))
        # Keras numbers the names of parts that are not named.
        require([*first.values()] == [*second.values()], f"The same seeds gave {first} and {second}.")

    def test_compiled_and_eager_training_agree(self) -> None:
        if backend.name == "torch":
            skip("Keras trains eagerly on PyTorch")
        x, y = self._data()
        losses = [fit(self._compiled(**mode), x, y, epochs=2)["loss"] for mode in self._modes]
        for mode, loss in zip(self._modes, losses, strict=True):
            same_numbers(loss, losses[0], f"Eager training differs from that with {mode}.", rtol=1e-3, atol=1e-4)

    def test_mixed_precision(self) -> None:
        """Keras scales the loss in float16; the part must see it as it is."""
        x, y = self._data()
        expected = fit(self._compiled(), x, y)["loss"]
        for policy in ("mixed_float16", "mixed_bfloat16"):
            with dtype_policy(policy):
                model = self._compiled()
            scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
            require(scaled == (policy == "mixed_float16"), f"The optimizer in {policy} is {model.optimizer}.")
            # bfloat16 has 8 bits: each of the network's layers adds an error of up to 2^-8.
            same_numbers(fit(model, x, y)["loss"], expected, f"Training in {policy}.", rtol=0.1, atol=0.05)

    def test_two_devices_train_as_one(self) -> None:
        if backend.name != "jax":
            skip("keras.distribution is for JAX")
        devices = keras.distribution.list_devices()[:2]
        if len(devices) < 2:
            skip("one device; XLA_FLAGS=--xla_force_host_platform_device_count=2 gives JAX two of a CPU")
        x, y = self._data()
        expected = fit(self._compiled(dropout=True), x, y, epochs=2)["loss"]
        with keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False).scope():
            actual = fit(self._compiled(dropout=True), x, y, epochs=2)["loss"]
        # Sums over devices are taken in another order.
        same_numbers(actual, expected, "Two devices differ from one.", rtol=1e-3, atol=1e-4)
