"""The network that all candidates train."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import keras
import numpy as np

from minimand.study._settings import StudyError
from minimand.study._targets import Target

ModelFunction = Callable[..., keras.Model]
"""A function without required arguments, or of the shapes of a row's inputs and the numbers of output units."""


def model_function(specification: str) -> ModelFunction:
    """The function `module:function` that builds the user's model."""
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
    """The name and a digest of a function, or of the model that it copies."""
    if isinstance(function, Copies):
        return f"{function.model.name} ({function.identity()})"
    return function_identity(function)


def function_identity(function: Callable[..., Any]) -> str:
    """The name of a function and a digest of its content."""
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


class Copies:
    """A function that returns copies of a model.

    Args:
        model: a built model that Keras can make again from its configuration.
        initial: `"new"` for new weights in each copy, or `"given"` for the model's own.

    Raises:
        StudyError: the model cannot be copied, or `initial` is something else.
    """

    def __init__(self, model: keras.Model, initial: str = "new") -> None:
        if initial not in ("new", "given"):
            raise StudyError(f'`initial` must be "new" or "given". Received: {initial!r}')
        self.model, self.initial = model, initial

    def __call__(self) -> keras.Model:
        """A copy of the model."""
        try:
            return keras.models.clone_model(self.model)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise StudyError(
                f"The model {self.model.name!r} cannot be made again from its configuration ({error}). Give a function "
                "that builds the model, or define `get_config`."
            ) from error

    def restore(self, copy: keras.Model) -> None:
        """Give a built copy the model's weights, or only what its preprocessing layers have learned from data."""
        if self.initial == "given":
            copy.set_weights(self.model.get_weights())
            return
        pairs = zip(self.model._flatten_layers(), copy._flatten_layers(), strict=True)
        for layer, other in pairs:
            if hasattr(layer, "adapt"):
                store: dict[str, Any] = {}
                layer.save_own_variables(store)
                other.load_own_variables(store)

    def identity(self) -> str:
        """A digest of the configuration, and of the weights if copies have them."""
        digest = hashlib.sha256(repr(self.model.get_config()).encode())
        if self.initial == "given":
            for values in self.model.get_weights():
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:8]


def takes_shapes(function: ModelFunction) -> bool:
    """Tell whether a function takes the input shape and the number of outputs; otherwise it takes nothing.

    Raises:
        StudyError: the function takes something else.
    """
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) not in (0, 2):
        raise StudyError(
            "--model must be a function without required arguments, or of (input_shape, outputs). Received: a "
            f"function of ({', '.join(parameter.name for parameter in required)})"
        )
    return bool(required)


def build(function: ModelFunction, input_shape: Any, outputs: Any, x: Any) -> keras.Model:
    """A new network, built by a few rows if it has no input layer."""
    model = function(input_shape, outputs) if takes_shapes(function) else function()
    if isinstance(model, keras.Model) and not model.built:
        model(x)
    if isinstance(function, Copies):
        function.restore(model)
    return model


class Outputs(NamedTuple):
    """The outputs of a network.

    Attributes:
        targets: indices of the targets in the order of the network's outputs.
        units: number of units of each output.
        structure: outputs of the network for a few rows, for their structure.
    """

    targets: tuple[int, ...]
    units: tuple[int, ...]
    structure: Any

    def pack(self, values: Sequence[Any]) -> Any:
        """Values of the outputs in the network's structure."""
        return keras.tree.pack_sequence_as(self.structure, list(values))


def check_model(make: Callable[[], keras.Model], x: Any, targets: Sequence[Target]) -> Outputs:
    """The outputs of the network that `make` returns; raise a `StudyError` if it does not suit the data."""
    shapes = keras.tree.map_structure(lambda values: ("n", *values.shape[1:]), x)
    shapes = str(shapes).replace("'n'", "n")
    try:
        model = make()
    except StudyError:
        raise
    # The user's function may raise anything.
    except Exception as error:
        raise StudyError(f"--model: no network for inputs of shape {shapes} can be built. {_words(error)}") from error
    if not isinstance(model, keras.Model):
        raise StudyError(f"--model must return a keras.Model. Received: {type(model).__name__}")
    try:
        structure = keras.tree.map_structure(keras.ops.convert_to_numpy, model(x))
    # The user's layers may raise anything.
    except Exception as error:
        raise StudyError(
            f"--model must accept inputs of shape {shapes}. Calling the model raises {_words(error)}"
        ) from error
    every = keras.tree.flatten(structure)
    order = _order(structure, model, targets)
    if len(every) != len(targets):
        raise StudyError(f"--model must have {len(targets)} outputs, one for each target. Received: {len(every)}")
    rows = len(every[0])
    for values, target in zip(every, (targets[index] for index in order), strict=True):
        where = f"the output {target.name!r} of --model" if target.name else "--model"
        allowed = [(rows, *target.shape)] + [(rows, *target.positions, 1)] * (target.task == "binary")
        # Whole numbers as classes may be those of a network with more units.
        wider = target.largest is not None and values.shape[-1] > target.largest
        wider = wider and values.shape[:-1] == allowed[0][:-1]
        if values.shape not in allowed and not wider:
            wanted = " or ".join(str(("n", *shape[1:])).replace("'n'", "n") for shape in allowed)
            raise StudyError(
                f"{where} must have outputs of shape {wanted} for {target.described}. Received: shape {values.shape}. "
                "Change the network or --task."
            )
        if target.task == "regression":
            continue
        sums = values.sum(axis=-1) if values.shape[-1] > 1 and target.has_classes else 1.0
        if np.min(values) < 0 or np.max(values) > 1 + 1e-3 or not np.allclose(sums, 1, atol=1e-3):
            last = "softmax" if target.has_classes and values.shape[-1] > 1 else "sigmoid"
            raise StudyError(
                f"{where} must return probabilities for {target.described}. End the network in a {last}: "
                f'keras.Sequential([network, keras.layers.Activation("{last}")]).'
            )
    return Outputs(order, tuple(values.shape[-1] for values in every), structure)


def _order(structure: Any, model: keras.Model, targets: Sequence[Target]) -> tuple[int, ...]:
    """The index of the target of each output."""
    names = [target.name for target in targets]
    if isinstance(structure, dict):
        outputs = sorted(structure)
    else:
        # Only functional models name their outputs.
        outputs = list(getattr(model, "output_names", names))
        if set(outputs) != set(names):
            return tuple(range(len(targets)))
    if set(outputs) != set(names):
        raise StudyError(f"y must be a dictionary with the outputs of --model, {', '.join(outputs)}. Received: {names}")
    return tuple(names.index(name) for name in outputs)
