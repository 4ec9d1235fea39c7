"""A smaller model with the same outputs, and the groups of weights that must be zero for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from minimand.regularizers import WeightRegularizer
from minimand.sparsity._channels import Channels, Step, foldable, window_sums


def compact(model: keras.Model) -> keras.Model:
    """Return the model without the units, filters and channels that its outputs do not depend on.

    Use compact after training with a group lasso, to get a smaller and faster model with the same outputs in inference,
    up to rounding.

    A unit is removed if all of its outgoing weights are zero, or if its output is constant, for instance because its
    incoming weights are zero. The constant is then added to the biases of the next layers. Units that only feed
    removed units are removed too.

    Dense and convolution layers get smaller, through activations, batch normalisation, dropout, pooling, padding,
    flattening, concatenation, depthwise convolutions and additions, whose terms lose the same channels. Layers of other
    kinds and layers that are called twice keep all of their inputs and outputs. The model keeps its inputs and outputs,
    and each layer keeps one unit. Regularizers of `minimand.regularizers` are left out, because they are for the larger
    weights.

    Args:
        model: a built Sequential or functional model.

    Returns:
        A Keras model of the same kind, inputs and outputs, not compiled, that shares nothing with the given one.

    Raises:
        ValueError: the connections of the model's layers are not known, because it is subclassed or not built.

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
        # A clone of `model` itself would be compiled as `model` is, with an optimizer for the larger weights.
        same = keras.Model(model.input, model.output, name=model.name)
        smaller = keras.models.clone_model(same, clone_function=resized)
    for layer in model.layers:
        if not layer.weights:
            # The copy of an input layer may have another name.
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
    config |= {name: None for name in config if isinstance(getattr(layer, name, None), WeightRegularizer)}
    step = steps.get(layer.name)
    if step is not None and step.role == "linear":
        config["units" if isinstance(layer, keras.layers.Dense) else "filters"] = int(kept[step.output].sum())
        config["use_bias"] = layer.use_bias or bool(np.any(_folded(step, kept)))
    if "activation" not in vars(layer):
        return type(layer).from_config(config)
    # A configuration only has the activation's name, and the user's own function may have the name of one of Keras's.
    copy = type(layer).from_config({**config, "activation": None})
    copy.activation = layer.activation
    return copy


def _folded(step: Step, kept: np.ndarray) -> np.ndarray:
    """The sum that the dropped inputs add to each output."""
    dropped = ~kept[step.inputs[0]] & foldable(step.layer, step.constants)
    return np.where(dropped, step.constants, 0.0) @ window_sums(step.layer)


def _set_linear(target: Any, step: Step, kept: np.ndarray) -> None:
    inputs, outputs = kept[step.inputs[0]], kept[step.output]
    target.kernel.assign(keras.ops.convert_to_numpy(step.layer.kernel)[..., inputs, :][..., outputs])
    if target.use_bias:
        bias = 0.0 if step.layer.bias is None else keras.ops.convert_to_numpy(step.layer.bias)
        target.bias.assign((bias + _folded(step, kept))[outputs])


def _set_scale(target: Any, step: Step, kept: np.ndarray) -> None:
    """Copy a normalisation or depthwise convolution; a weight's channels are its only axis or its last but one."""
    own = kept[step.output]
    for old, new in zip(step.layer.weights, target.weights, strict=True):
        value = keras.ops.convert_to_numpy(old)
        new.assign(value[own] if value.ndim == 1 else value[..., own, :])


# Groups of weights.


def unit_groups(model: keras.Model, *, incoming: bool = True, outgoing: bool = False) -> list[dict[str, np.ndarray]]:
    """Return, for each unit, filter or channel that `compact` can remove, the group of weights that must be zero.

    Use unit_groups for the groups of `regularizers.JointGroupLasso`, so that training removes whole units.

    A unit's incoming weights are its column of a Dense kernel or its filter, its bias, and its entries in batch
    normalisations and depthwise convolutions after it. Its outgoing weights are its rows or input channels in the next
    layers. Channels that are added to each other are one unit. Inputs and outputs of the model have no groups.

    Args:
        model: a built Sequential or functional model.
        incoming: whether the incoming weights are in the groups.
        outgoing: whether the outgoing weights are in the groups. With both, groups of successive layers overlap.

    Returns:
        Groups for `regularizers.JointGroupLasso`: a list of mappings of paths of variables to labels. Groups of
        different mappings may overlap; groups of one mapping do not.

    Raises:
        ValueError: the connections of the model's layers are not known; both `incoming` and `outgoing` are False; no
            unit can be removed.

    Source: Scardapane et al., "Group sparse regularization for deep neural networks", Neurocomputing 241 (2017)
    (outgoing); Wen et al., "Learning structured sparsity in deep neural networks", NIPS 2016 (incoming).

    Examples:
        >>> import keras, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)])
        >>> (groups,) = minimand.sparsity.unit_groups(model, outgoing=True)
        >>> [labels.shape for labels in groups.values()]
        [(1, 2), (2,), (2, 1)]
    """
    if not (incoming or outgoing):
        raise ValueError("unit_groups: `incoming` or `outgoing` must be True. Received: both False")
    channels = Channels(model, "unit_groups")
    roots, required = channels.roots, channels.required
    # A space has the channels of one layer and the channels that are added to them; one mapping gets all of a space.
    space = np.full(len(roots), -1)
    for index, step in reversed(list(enumerate(channels.steps))):
        # The first step that has a channel is assigned last.
        space[roots[step.output]] = index
    placed: list[dict[str, np.ndarray]] = []
    for index in sorted(set(space[roots[~required]].tolist())):
        found: dict[str, np.ndarray] = {}
        for step in channels.steps:
            for path, numbers, shape in _members(step, incoming, outgoing):
                labels = np.where((space[roots[numbers]] == index) & ~required[numbers], roots[numbers], -1)
                if (labels >= 0).any():
                    found[path] = labels.reshape(shape)
        if found:
            target = next((each for each in placed if not set(each) & set(found)), None)
            if target is None:
                placed.append(found)
            else:
                target.update(found)
    if not placed:
        raise ValueError(
            "unit_groups: `model` must have a unit that can be removed. "
            f"Received: {model.name}, which has no hidden layer of a known kind"
        )
    return placed


def _members(step: Step, incoming: bool, outgoing: bool) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Trainable variables of a layer with the channels' numbers along an axis, and the labels' shape."""
    layer = step.layer
    if step.role == "linear":
        rank = len(layer.kernel.shape)
        if incoming:
            yield layer.kernel.path, step.output, (1,) * (rank - 1) + (-1,)
            if layer.bias is not None:
                yield layer.bias.path, step.output, (-1,)
        if outgoing:
            yield layer.kernel.path, step.inputs[0], (1,) * (rank - 2) + (-1, 1)
    elif step.role == "scale" and incoming:
        for variable in layer.trainable_variables:
            rank = len(variable.shape)
            yield variable.path, step.output, (-1,) if rank == 1 else (1,) * (rank - 2) + (-1, 1)
