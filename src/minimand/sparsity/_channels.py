"""The channels of a model's tensors: the ones that belong together, the constant ones and the needed ones.

A channel is an entry of a tensor's last axis: a unit, filter or feature. Each channel gets a number where a layer makes
it, and keeps the number through layers that work on each channel alone. An addition unites the channels of its terms.
An unknown layer needs all of its inputs and makes channels that are needed, so nothing around it is ever removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from minimand._keras import graph_nodes


def _of_each_rank(*names: str) -> tuple[type, ...]:
    """Keras's layers for one, two and three spatial axes."""
    return tuple(getattr(keras.layers, f"{name}{rank}D") for name in names for rank in (1, 2, 3))


LINEAR = (keras.layers.Dense, *_of_each_rank("Conv"))
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_NOT_ELEMENTWISE = ("softmax", "log_softmax", "sparsemax", "glu")
_ACTIVATIONS = (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
# In inference these layers keep a constant channel constant and unchanged; the windows below do without padding.
_SAME_CONSTANT = (
    keras.layers.Dropout,
    keras.layers.GaussianNoise,
    keras.layers.GaussianDropout,
    *_of_each_rank("SpatialDropout", "GlobalAveragePooling", "GlobalMaxPooling", "Cropping", "UpSampling"),
)
_WINDOWS = _of_each_rank("MaxPooling", "AveragePooling")
_ZERO_PADDING = _of_each_rank("ZeroPadding")


@dataclass
class Step:
    """A call of a layer, with the numbers of the channels of its inputs and its output.

    The role is `"linear"` for a layer that makes new channels (Dense, convolutions), `"scale"` for weights on each
    channel alone (normalisation, depthwise convolutions), `"pass"` for no weights, and `"other"` for an unknown layer.
    """

    role: str
    layer: Any
    inputs: list[np.ndarray]
    output: np.ndarray
    constants: np.ndarray
    """The values of the first input's channels that are the same everywhere, and NaN for other channels."""
    positions: tuple[int | None, ...]
    """Sizes of the output's axes between the first and the last."""


class Channels:
    """The channels of a functional or Sequential model.

    Args:
        model: the built model.
        owner: name of the public function, for error messages.

    Attributes:
        steps: the calls of its layers, in order.
        roots: for each channel's number, the least number among the channels that are united with it.
        kept: for each channel's number, whether the outputs depend on the channel.
    """

    def __init__(self, model: keras.Model, owner: str) -> None:
        self.roots = np.zeros(0, int)
        self._required: list[int] = []
        self.steps: list[Step] = []
        values: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        calls = _calls(model, owner)
        layers = [call.operation for call in calls]
        for call in calls:
            inputs = [values[id(tensor)] for tensor in call.arguments.keras_tensors]
            results = self._call(call.operation, inputs, call.output_tensors, shared=layers.count(call.operation) > 1)
            for tensor, result in zip(call.output_tensors, results, strict=True):
                values[id(tensor)] = result
        for tensor in model.outputs:
            self._required.extend(values[id(tensor)][0])
        self.kept = self._needed()

    # Numbers of channels.

    def _new(self, count: int) -> np.ndarray:
        numbers = np.arange(len(self.roots), len(self.roots) + count)
        self.roots = np.append(self.roots, numbers)
        return numbers

    def _unite(self, left: np.ndarray, right: np.ndarray) -> None:
        for a, b in zip(left, right, strict=True):
            first, second = sorted((self.roots[a], self.roots[b]))
            self.roots[self.roots == second] = first

    @property
    def required(self) -> np.ndarray:
        """For each number, whether its channel belongs to the inputs, the outputs or an unknown layer."""
        return np.isin(self.roots, self.roots[np.array(self._required, int)])

    # One call.

    def _call(self, layer: Any, inputs: Any, outputs: Any, shared: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        """Add the step, and return the channels and constants of its outputs."""
        known = None if shared or not inputs or len(outputs) > 1 else self._known(layer, inputs, outputs[0].shape)
        numbers, constants = [each for each, _ in inputs], inputs[0][1] if inputs else np.zeros(0)
        if known is not None:
            role, channels, values = known
            if role == "linear" and not _elementwise(layer.activation):
                self._required.extend(channels)
            self.steps.append(Step(role, layer, numbers, channels, constants, tuple(outputs[0].shape[1:-1])))
            return [(channels, values)]
        counts = [int(output.shape[-1] or 0) if len(output.shape) else 0 for output in outputs]
        results = [(self._new(count), np.full(count, np.nan)) for count in counts]
        for each in [*numbers, *(channels for channels, _ in results)]:
            self._required.extend(each)
        self.steps.append(Step("other", layer, numbers, results[0][0], constants, ()))
        return results

    def _known(self, layer: Any, inputs: Any, shape: Any) -> tuple[str, np.ndarray, np.ndarray] | None:
        """Role, channels and constants of the output; None for an unknown layer or an unusual configuration."""
        (numbers, constants), kind, count = inputs[0], type(layer), shape[-1]
        last = (-1, len(shape) - 1)
        if getattr(layer, "data_format", "channels_last") != "channels_last" or count is None:
            return None
        if kind in LINEAR and _is_plain(layer):
            return "linear", self._new(count), _activated(layer.activation, _linear_constants(layer, constants))
        if kind in DEPTHWISE and layer.depth_multiplier == 1 and _elementwise(layer.activation):
            return "scale", numbers, _activated(layer.activation, _depthwise_constants(layer, constants))
        if kind is keras.layers.BatchNormalization and layer.axis in last:
            return "scale", numbers, _normalised(layer, constants)
        if kind in _ACTIVATIONS and (kind is not keras.layers.Activation or _elementwise(layer.activation)):
            return "pass", numbers, _activated(layer, constants)
        if kind in _SAME_CONSTANT:
            return "pass", numbers, constants
        if kind in _WINDOWS + _ZERO_PADDING:
            padded = kind in _ZERO_PADDING or layer.padding == "same"
            return "pass", numbers, np.where(constants == 0, 0.0, np.nan) if padded else constants
        if kind is keras.layers.Flatten:
            repeats = count // max(len(numbers), 1)
            return "pass", np.tile(numbers, repeats), np.tile(constants, repeats)
        if kind is keras.layers.Concatenate and layer.axis in last:
            return "pass", np.concatenate([n for n, _ in inputs]), np.concatenate([c for _, c in inputs])
        if _is_addition(kind) and len(inputs) > 1 and all(len(n) == count for n, _ in inputs):
            for other, _ in inputs[1:]:
                self._unite(numbers, other)
            return "pass", numbers, np.sum([c for _, c in inputs], axis=0)
        return None

    # The channels that are needed.

    def _needed(self) -> np.ndarray:
        roots, needed = self.roots, self.required
        linear = [step for step in reversed(self.steps) if step.role == "linear"]
        used = [uses(step.layer) & ~foldable(step.layer, step.constants)[:, None] for step in linear]
        while True:
            before = needed.sum()
            for step, use in zip(linear, used, strict=True):
                by_any = use[:, needed[roots[step.output]]].any(axis=1)
                needed[roots[step.inputs[0][by_any]]] = True
                if not needed[roots[step.output]].any():
                    # Each layer keeps a unit.
                    needed[roots[step.output[0]]] = True
            if needed.sum() == before:
                return needed[roots]


def uses(layer: Any) -> np.ndarray:
    """(inputs, outputs): whether an output of a linear layer has a non-zero weight for an input."""
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    return (kernel.reshape(-1, *kernel.shape[-2:]) != 0).any(axis=0)


def window_sums(layer: Any) -> np.ndarray:
    """(inputs, outputs): a kernel's sums over the positions of its window, in double precision."""
    kernel = keras.ops.convert_to_numpy(layer.kernel).astype("float64")
    return kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0)


def foldable(layer: Any, constants: np.ndarray) -> np.ndarray:
    """For each input of a layer with a kernel, whether its share of the outputs can become a part of the bias."""
    if getattr(layer, "padding", "valid") != "valid":
        # With padding the share of a constant differs between positions, unless the constant is zero.
        return constants == 0
    return np.isfinite(constants)


def _linear_constants(layer: Any, constants: np.ndarray) -> np.ndarray:
    """The constant outputs of a linear layer before its activation; NaN for outputs that vary."""
    total, known = window_sums(layer), foldable(layer, constants)
    fixed = ~(uses(layer) & ~known[:, None]).any(axis=0)
    value = np.where(known, constants, 0.0) @ total + _array(layer.bias, total.shape[1])
    return np.where(fixed, value, np.nan)


def _depthwise_constants(layer: Any, constants: np.ndarray) -> np.ndarray:
    """The same for a convolution of each channel alone."""
    kernel = keras.ops.convert_to_numpy(layer.kernel).astype("float64").reshape(-1, len(constants))
    constants = np.where((kernel == 0).all(axis=0), 0.0, constants)
    value = constants * kernel.sum(axis=0) + _array(layer.bias, len(constants))
    return np.where(foldable(layer, constants), value, np.nan)


def _calls(model: keras.Model, owner: str) -> Sequence[Any]:
    """The nodes of the model's graph, inputs first."""
    nodes = graph_nodes(model)
    if not nodes:
        raise ValueError(
            f"{owner}: `model` must be a built Sequential or functional model, whose layers' connections are known. "
            f"Received: {model.name} of type {type(model).__name__}. Pass `trainer.model` of a minimand.Trainer."
        )
    return [node for depth in sorted(nodes, reverse=True) for node in nodes[depth]]


def _is_addition(kind: type) -> bool:
    """Tell whether it is the layer `Add`, or the operation of `a + b` on symbolic tensors, which has no public name."""
    return kind is keras.layers.Add or (kind.__module__ == "keras.src.ops.numpy" and kind.__name__ == "Add")


def _is_plain(layer: Any) -> bool:
    """Tell whether a linear layer has only its kernel and bias: no groups, LoRA or quantization."""
    return getattr(layer, "groups", 1) == 1 and not layer.lora_enabled and layer.quantization_mode is None


def _elementwise(activation: Any) -> bool:
    """Tell whether the activation is None, or one of Keras's that work on each entry alone."""
    if activation is None:
        return True
    name = getattr(activation, "__name__", "")
    return name not in _NOT_ELEMENTWISE and getattr(keras.activations, name, None) is activation


def _activated(activation: Any, constants: np.ndarray) -> np.ndarray:
    """Constants after an activation function or layer."""
    if activation is None:
        return constants
    if not isinstance(activation, keras.layers.Layer) and not _elementwise(activation):
        return np.full_like(constants, np.nan)
    known = np.isfinite(constants)
    values = keras.ops.convert_to_tensor(np.where(known, constants, 0.0).astype("float32")[None])
    return np.where(known, keras.ops.convert_to_numpy(activation(values))[0], np.nan)


def _array(variable: Any, count: int) -> np.ndarray:
    return np.zeros(count) if variable is None else keras.ops.convert_to_numpy(variable).astype("float64")


def _normalised(layer: Any, constants: np.ndarray) -> np.ndarray:
    """Constants after a batch normalisation in inference; a scale of 0 makes its offset a constant."""
    count = len(constants)
    scale = np.ones(count) if layer.gamma is None else _array(layer.gamma, count)
    deviation = np.sqrt(_array(layer.moving_variance, count) + layer.epsilon)
    offset = _array(layer.beta, count)
    value = scale * (constants - _array(layer.moving_mean, count)) / deviation + offset
    return np.where(scale == 0, offset, value)
