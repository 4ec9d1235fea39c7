"""The groups of weights that belong to a unit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from minimand.sparsity._channels import Channels, Step

Labels = dict[str, np.ndarray]


def unit_groups(model: keras.Model, *, incoming: bool = True, outgoing: bool = False) -> list[Labels]:
    """For each unit, filter or channel that `compact` can remove, the weights that must be zero for it to go.

    A unit's incoming weights are its column of a Dense kernel or its filter, its bias, and its entries in batch
    normalisations and depthwise convolutions after it; the outgoing ones are its rows or input channels in the next
    layers. Channels that are added to each other are one unit. Inputs and outputs of the model have no groups.

    Args:
        model: a built Sequential or functional model.
        incoming: whether the incoming weights are in the groups.
        outgoing: whether the outgoing ones are. With both, groups of successive layers overlap.

    Returns:
        Groups for `regularizers.JointGroupLasso`: a list of mappings of paths of variables to labels. Groups of
        different mappings may overlap, those of one do not.

    Raises:
        ValueError: the connections of the model's layers are not known; neither `incoming` nor `outgoing`; there is
            no unit that could be removed.

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
    roots, required = channels.roots(np.arange(len(channels.kept))), channels.required
    # Channels of one layer, and those that are one with them, are a space; it is placed in a mapping as a whole.
    space = np.full(len(roots), -1)
    for index, step in enumerate(channels.steps):
        fresh = roots[step.output][space[roots[step.output]] < 0]
        space[fresh] = index
    placed: list[Labels] = []
    for index in sorted(set(space[roots[~required]].tolist())):
        found: Labels = {}
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
        raise ValueError(f"unit_groups: `model` must have a unit that can be removed. Received: {model.name}")
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
