"""The network that the candidates train."""

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
    """Two hidden layers of 64 rectified units with dropout 0.1; `outputs` = 1 is linear, more are a softmax.

    Initial weights and dropout follow Python's `random`, as those of any Keras model do.

    Args:
        features: number of inputs.
        outputs: number of outputs.

    Returns:
        The network, not compiled.

    Examples:
        >>> from minimand.study import mlp
        >>> mlp(4, 3).output_shape
        (None, 3)
    """
    # Unseeded, Keras's dropout on PyTorch would draw from a generator that no file restores.
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
    # As `python -m` does: a module beside the user is found.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except AttributeError as error:
        raise StudyError(f"--model {specification}: {error}") from error
    # Whatever the user's module raises.
    except Exception as error:
        raise StudyError(f"--model {specification}: the module cannot be imported: {_words(error)}") from error
    return function


def model_identity(function: ModelFunction) -> str:
    """The function's name and, unless it is `mlp`, a digest of what it does."""
    if function is mlp:
        return "mlp"
    # Where things are in memory does not matter.
    does = re.sub(r" at 0x[0-9a-f]+", "", repr(_content(function)))
    digest = hashlib.sha256(does.encode()).hexdigest()[:8]
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)} ({digest})"


def _content(value: Any) -> Any:
    """What a function does and with what it was made; what an object holds."""
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, [_content(constant) for constant in value.co_consts]
    if isinstance(value, FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
        return _content(value.__code__), value.__defaults__, value.__kwdefaults__, enclosed
    if isinstance(value, partial):
        return _content(value.func), value.args, value.keywords
    if isinstance(value, frozenset):
        # In an order that is the same in every process.
        return sorted(map(repr, value))
    return value, sorted(getattr(value, "__dict__", {}).items())


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def check_model(build: Callable[[], keras.Model], x: np.ndarray, outputs: int) -> None:
    """Raise a `StudyError` unless it builds a model from batches to (n, outputs), probabilities where outputs > 1."""
    try:
        model = build()
    # Whatever the user's function raises.
    except Exception as error:
        raise StudyError(
            f"--model: a network of {x.shape[1]} features and {outputs} outputs cannot be built: {_words(error)}"
        ) from error
    if not isinstance(model, keras.Model):
        raise StudyError(f"--model must return a keras.Model. Received: {type(model).__name__}")
    try:
        predicted = keras.ops.convert_to_numpy(model(x[:4]))
    # Whatever the user's layers raise.
    except Exception as error:
        raise StudyError(f"The model cannot be called on inputs of shape (n, {x.shape[1]}): {_words(error)}") from error
    if predicted.shape != (len(x[:4]), outputs):
        raise StudyError(
            f"The model's output does not fit: {outputs} output unit(s) are needed, shape (n, {outputs}). "
            f"Received: {predicted.shape}"
        )
    if outputs > 1 and (np.min(predicted) < 0 or not np.allclose(predicted.sum(axis=1), 1, atol=1e-3)):
        raise StudyError("The model's outputs must be probabilities (end it in a softmax) for classification.")
