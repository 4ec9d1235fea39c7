"""The network that all candidates train."""

from __future__ import annotations

import hashlib
import importlib
import random
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import keras
import numpy as np

from minimand.study._settings import StudyError

ModelFunction = Callable[[int, int], keras.Model]


def mlp(features: int, outputs: int) -> keras.Model:
    """A network of two hidden layers with 64 rectified units each and dropout 0.1.

    Use it for tables. Initial weights and dropout follow Python's `random`, as those of any Keras model do.

    Args:
        features: number of inputs.
        outputs: number of outputs. One output is linear; several end in a softmax.

    Returns:
        The network, not compiled.

    Examples:
        >>> from minimand.study import mlp
        >>> mlp(4, 3).output_shape
        (None, 3)
    """
    # Without a seed, Keras's dropout on PyTorch draws from a generator that no file restores.
    seeds = [random.randrange(2**31) for _ in range(2)]
    return keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(0.1, seed=seeds[0]),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(0.1, seed=seeds[1]),
            keras.layers.Dense(outputs, activation="linear" if outputs == 1 else "softmax"),
        ],
        name="mlp",
    )


def model_function(specification: str) -> ModelFunction:
    """The function `module:function(features, outputs)` that builds the user's model."""
    module_name, _, function_name = specification.partition(":")
    if not module_name or not function_name:
        raise StudyError(f"--model must have the form module:function. Received: {specification!r}")
    # A module in the working directory is found, as with `python -m`.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module_name), function_name)
    # The user's module may raise anything.
    except Exception as error:
        raise StudyError(f"--model {specification} cannot be imported. {_words(error)}") from error


def model_identity(function: ModelFunction) -> str:
    """The function's name and, unless it is `mlp`, a digest of its content."""
    if function is mlp:
        return "mlp"
    # Addresses in memory differ between processes.
    content = re.sub(r" at 0x[0-9a-f]+", "", repr(_content(function)))
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)} ({digest})"


def _content(value: Any) -> Any:
    """The code of a function and the values that it encloses, or the attributes of an object."""
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, [_content(constant) for constant in value.co_consts]
    if isinstance(value, FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
        return _content(value.__code__), value.__defaults__, value.__kwdefaults__, enclosed
    if isinstance(value, partial):
        return _content(value.func), value.args, value.keywords
    if isinstance(value, frozenset):
        # The order of a set differs between processes.
        return sorted(map(repr, value))
    return value, sorted(getattr(value, "__dict__", {}).items())


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def check_model(build: Callable[[], keras.Model], x: np.ndarray, outputs: int) -> None:
    """Raise a `StudyError` unless `build` returns a model of (n, outputs), with probabilities if outputs > 1."""
    try:
        model = build()
    # The user's function may raise anything.
    except Exception as error:
        raise StudyError(
            f"--model: no network of {x.shape[1]} features and {outputs} outputs can be built: {_words(error)}"
        ) from error
    if not isinstance(model, keras.Model):
        raise StudyError(f"--model must return a keras.Model. Received: {type(model).__name__}")
    try:
        predicted = keras.ops.convert_to_numpy(model(x[:4]))
    # The user's layers may raise anything.
    except Exception as error:
        raise StudyError(
            f"--model must accept inputs of shape (n, {x.shape[1]}). Calling the model raises {_words(error)}"
        ) from error
    if predicted.shape != (len(x[:4]), outputs):
        raise StudyError(f"--model must have outputs of shape (n, {outputs}). Received: shape {predicted.shape}")
    if outputs > 1 and (np.min(predicted) < 0 or not np.allclose(predicted.sum(axis=1), 1, atol=1e-3)):
        raise StudyError("--model must return probabilities for classification. End the network in a softmax.")
