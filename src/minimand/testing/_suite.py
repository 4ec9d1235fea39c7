"""What the suites share: seeds, sentences that say what is wrong, models, and training in a trainer."""

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
from minimand.testing._numbers import numpy

BATCH = 16


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


def skip(reason: str) -> None:
    """End the test as one that does not apply here."""
    raise unittest.SkipTest(reason)


def same_numbers(actual: Any, expected: Any, sentence: str, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Raise an `AssertionError` that begins with the sentence, unless the arrays agree."""
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=atol, err_msg=sentence)


def restored(part: Any) -> Any:
    """The part made anew from its configuration, which has gone through JSON as in a `.keras` file."""
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(part)))
    return keras.saving.deserialize_keras_object(stored)


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Within it layers are made with this policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def file(name: str) -> Iterator[Path]:
    """The path of a file of that name in a folder that is removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / name


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


def same_weights(left: keras.Model, right: keras.Model, sentence: str, **tolerance: float) -> None:
    """Raise an `AssertionError` that begins with the sentence, unless the models' variables are the same."""
    for a, b in zip(left.variables, right.variables, strict=True):
        same_numbers(numpy(a), numpy(b), f"{sentence} ({a.path})", **tolerance)


def require_two_devices() -> list[str]:
    """The first two devices; ends the test where there are none, or where Keras does not distribute."""
    if backend.name != "jax":
        skip("keras.distribution is for JAX")
    devices = keras.distribution.list_devices()
    if len(devices) < 2:
        skip("one device; XLA_FLAGS=--xla_force_host_platform_device_count=2 before JAX is imported gives two of a CPU")
    return devices[:2]


@contextlib.contextmanager
def data_parallel(devices: Sequence[str]) -> Iterator[None]:
    """Within it what is made is replicated, and batches are split, over the devices."""
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=list(devices), auto_shard_dataset=False)
    )
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)
