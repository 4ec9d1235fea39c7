"""A smaller model with the same outputs."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from minimand.sparsity._channels import Channels, Step, foldable, window_sums

_SIZES = {"Dense": "units", "Conv1D": "filters", "Conv2D": "filters", "Conv3D": "filters"}


def compact(model: keras.Model) -> keras.Model:
    """The model without the units, filters and channels that its outputs do not depend on.

    A unit goes if all of its outgoing weights are zero, or if its output is constant, as where its incoming weights are
    zero: the constant is then added to the next layers' biases. What only such units use goes with them. Rounding
    apart, the outputs in inference are the same.

    Dense and convolution layers get smaller, through activations, batch normalisation, dropout, pooling, padding,
    flattening, concatenation, depthwise convolutions and additions, whose terms lose the same channels. Layers of other
    kinds, and those that are called twice, keep all of their inputs and outputs; so do the model's inputs and outputs,
    and each layer keeps one unit. Regularizers of Minimand are left out: they were for the larger weights.

    Args:
        model: a built Sequential or functional model.

    Returns:
        A Keras model of the same kind, inputs and outputs, not compiled, that shares nothing with the given one.

    Raises:
        ValueError: the connections of the model's layers are not known: it is a subclassed model or not built.

    Source: removing zero channels: Wen et al., "Learning structured sparsity in deep neural networks", NIPS 2016;
    channels that belong together: Fang et al., "DepGraph: towards any structural pruning", CVPR 2023.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
        >>> kernel = np.ones((4, 1))
        >>> kernel[1:3] = 0.0
        >>> model.layers[1].set_weights([kernel, np.zeros(1)])
        >>> minimand.sparsity.compact(model).layers[0].units
        2
    """
    channels = Channels(model, "compact")
    steps = {step.layer.name: step for step in channels.steps if step.role in ("linear", "scale")}

    def resized(layer: Any) -> Any:
        return _resized(layer, steps, channels.kept)

    if isinstance(model, keras.Sequential):
        (entry,) = model.inputs
        entry = keras.Input(batch_shape=entry.shape, dtype=entry.dtype)
        smaller = keras.Sequential([entry, *map(resized, model.layers)], name=model.name)
    else:
        # Not of `model` itself, which if compiled would be compiled again, with an optimizer for the larger weights.
        same = keras.Model(model.input, model.output, name=model.name)
        smaller = keras.models.clone_model(same, clone_function=resized)
    for layer in model.layers:
        if not layer.weights:
            continue
        target = smaller.get_layer(layer.name)
        step = steps.get(layer.name)
        if step is None:
            target.set_weights(layer.get_weights())
        elif step.role == "linear":
            _set_linear(target, step, channels.kept)
        else:
            _set_scale(target, step, channels.kept)
    return smaller


def _resized(layer: Any, steps: dict[str, Step], kept: np.ndarray) -> Any:
    """An unbuilt copy of a layer, of the size that is kept."""
    config = layer.get_config()
    for name in list(config):
        regularizer = getattr(layer, name, None) if name.endswith("_regularizer") else None
        if type(regularizer).__module__.startswith("minimand."):
            config[name] = None
    step = steps.get(layer.name)
    if step is not None and step.role == "linear":
        config[_SIZES[type(layer).__name__]] = int(kept[step.output].sum())
        config["use_bias"] = layer.use_bias or bool(np.any(_folded(step, kept)))
    if "activation" not in vars(layer):
        return type(layer).from_config(config)
    # The same function: a configuration has names only, and those of functions of one's own may be Keras's.
    copy = type(layer).from_config({**config, "activation": None})
    copy.activation = layer.activation
    return copy


def _folded(step: Step, kept: np.ndarray) -> np.ndarray:
    """What the inputs that are dropped add to each output."""
    dropped = ~kept[step.inputs[0]] & foldable(step.layer, step.constants)
    return np.where(dropped, step.constants, 0.0) @ window_sums(step.layer)


def _set_linear(target: Any, step: Step, kept: np.ndarray) -> None:
    inputs, outputs = kept[step.inputs[0]], kept[step.output]
    target.kernel.assign(keras.ops.convert_to_numpy(step.layer.kernel)[..., inputs, :][..., outputs])
    if target.use_bias:
        bias = 0.0 if step.layer.bias is None else keras.ops.convert_to_numpy(step.layer.bias)
        target.bias.assign((bias + _folded(step, kept))[outputs])


def _set_scale(target: Any, step: Step, kept: np.ndarray) -> None:
    """Each weight of a normalisation or depthwise convolution has one axis of channels: the only, or last but one."""
    own = kept[step.output]
    for old, new in zip(step.layer.weights, target.weights, strict=True):
        value = keras.ops.convert_to_numpy(old)
        new.assign(value[own] if value.ndim == 1 else value[..., own, :])
