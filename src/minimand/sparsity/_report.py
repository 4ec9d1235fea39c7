"""A report of the zeros of a model and of the operations that they save."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from minimand.sparsity._channels import DEPTHWISE, LINEAR, Channels, Step, uses


@dataclass(frozen=True)
class LayerSparsity:
    """The zeros of a Dense or convolution layer, and its outputs that `compact` removes.

    Read it in the `layers` of a `SparsityReport`.

    Attributes:
        name: name of the layer.
        weights: number of entries of the kernel.
        zeros: number of them that are exactly zero.
        zero_inputs: number of inputs (rows, input channels) with only zero weights.
        inputs: number of inputs.
        zero_outputs: number of outputs (columns, filters) with only zero weights, biases apart.
        outputs: number of outputs.
        removable: number of outputs that `compact` removes.
        flops: multiplications and additions for an example; None where the output's shape is not known.
        flops_left: the same after `compact`.

    Source: counts.

    Examples:
        >>> import keras, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_initializer="zeros")])
        >>> layer = minimand.sparsity.report(model).layers[0]
        >>> layer.zeros, layer.zero_outputs, layer.removable
        (6, 2, 0)
    """

    name: str
    weights: int
    zeros: int
    zero_inputs: int
    inputs: int
    zero_outputs: int
    outputs: int
    removable: int
    flops: int | None
    flops_left: int | None


@dataclass(frozen=True)
class SparsityReport:
    """The result of `report`, which prints as a table.

    Use `figure` for a picture of it.

    Attributes:
        layers: the numbers of each Dense and convolution layer.
        weights: number of trainable weights of the model.
        zeros: number of them that are exactly zero.

    Source: counts.

    Examples:
        >>> import keras, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_initializer="zeros")])
        >>> found = minimand.sparsity.report(model)
        >>> found.weights, found.sparsity
        (8, 1.0)
    """

    layers: list[LayerSparsity] = field(repr=False)
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """The share of zeros among the trainable weights."""
        return self.zeros / max(self.weights, 1)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the layers whose shapes are known, for an example."""
        return sum(layer.flops or 0 for layer in self.layers)

    @property
    def flops_left(self) -> int:
        """The same after `compact`."""
        return sum(layer.flops_left or 0 for layer in self.layers)

    def __str__(self) -> str:
        rows = [["layer", "weights", "zero", "inputs zero", "outputs zero", "removable", "flops", "left"]]
        for layer in self.layers:
            shares = f"{layer.zero_inputs}/{layer.inputs}", f"{layer.zero_outputs}/{layer.outputs}"
            flops = ("?" if n is None else f"{n:,}" for n in (layer.flops, layer.flops_left))
            zeros = f"{layer.zeros / layer.weights:.1%}"
            rows.append([layer.name, f"{layer.weights:,}", zeros, *shares, str(layer.removable), *flops])
        totals = f"{self.flops:,}", f"{self.flops_left:,}"
        rows.append(["all", f"{self.weights:,}", f"{self.sparsity:.1%}", "", "", "", *totals])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)

    def figure(self) -> Any:
        """A Matplotlib figure: for each layer, the shares of zero weights, removable outputs and saved operations.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("SparsityReport.figure needs Matplotlib: pip install 'minimand[study]'") from error
        bars = {
            "weights that are zero": [layer.zeros / layer.weights for layer in self.layers],
            "outputs that can be removed": [layer.removable / layer.outputs for layer in self.layers],
            "operations saved by compact": [
                1 - layer.flops_left / layer.flops if layer.flops and layer.flops_left is not None else 0.0
                for layer in self.layers
            ],
        }
        figure = Figure(figsize=(6.4, 1.2 + 0.6 * len(self.layers)), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(self.layers))
        for k, (label, shares) in enumerate(bars.items()):
            axes.barh(places + 0.27 * (k - 1), shares, 0.25, label=label)
        axes.set_yticks(places, [layer.name for layer in self.layers])
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="share")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=7, frameon=False)
        return figure


def report(model: keras.Model) -> SparsityReport:
    """Count the exactly zero weights, inputs and outputs of a model, and the operations that `compact` saves.

    Use report after training with a sparse penalty, to see which layers became smaller. A weight counts as zero if it
    is exactly 0.0.

    Args:
        model: a built Sequential or functional model.

    Returns:
        A `SparsityReport`.

    Raises:
        ValueError: the connections of the model's layers are not known, because it is subclassed or not built.

    Source: counts; a layer has two operations for each weight and position.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "relu"), keras.layers.Dense(1)])
        >>> model.layers[1].set_weights([np.array([[1.0], [0.0]]), np.zeros(1)])
        >>> found = minimand.sparsity.report(model)
        >>> found.layers[0].removable, found.flops, found.flops_left
        (1, 16, 8)
    """
    channels = Channels(model, "report")
    layers = [
        _layer(step, channels.kept)
        for step in channels.steps
        if type(step.layer) in LINEAR + DEPTHWISE and step.role != "other"
    ]
    values = [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    return SparsityReport(layers, sum(v.size for v in values), sum(int((v == 0).sum()) for v in values))


def _layer(step: Step, kept: np.ndarray) -> LayerSparsity:
    layer = step.layer
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    depthwise = step.role == "scale"
    used = uses(layer)
    by_input, by_output = used.any(axis=1), used.any(axis=1) if depthwise else used.any(axis=0)
    positions = step.positions
    left_in, left_out = int(kept[step.inputs[0]].sum()), int(kept[step.output].sum())
    window = math.prod(kernel.shape[:-2])
    weights_left = window * left_out * (1 if depthwise else left_in)
    places = None if None in positions else math.prod(size or 0 for size in positions)
    return LayerSparsity(
        name=layer.name,
        weights=kernel.size,
        zeros=int((kernel == 0).sum()),
        zero_inputs=int((~by_input).sum()),
        inputs=len(step.inputs[0]),
        zero_outputs=int((~by_output).sum()),
        outputs=len(step.output),
        removable=len(step.output) - left_out,
        flops=None if places is None else 2 * kernel.size * places,
        flops_left=None if places is None else 2 * weights_left * places,
    )
