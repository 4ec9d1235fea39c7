"""Noise on the selected weights: one draw for the batch, or in linear layers another one for each example."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import keras
from keras import ops

from minimand import backend
from minimand._keras import AutocastScope
from minimand._ops import at_least_float32, nonzero_sqrt
from minimand._scope import changed_outputs, forked_scope, isolated
from minimand._selection import shifted
from minimand.backend import Tensor
from minimand.gradients._exact import LayerWeights, einsum_labels, whole_bias, with_own_weights
from minimand.transforms._base import Batch, Objective, Weights

# The mean of an objective over draws of the noise.

PER = ("batch", "example")
# Signs of the passes of one draw, without and with antithetic ones.
SIGNS = {False: (1,), True: (1, -1)}
Pass: TypeAlias = Callable[[Batch], tuple[Tensor, Any]]


def mean_of(passes: Sequence[Pass], batch: Batch) -> tuple[Tensor, Any]:
    """The mean loss of the passes, and the aux of the first one."""
    loss, aux = passes[0](batch)
    for one in passes[1:]:
        loss = loss + isolated(one)(batch)[0]
    return loss / len(passes) if len(passes) > 1 else loss, aux


class NoisePlacement:
    """For each selected weight, the place of its noise: in the weight's layer, by example, or on the weight itself.

    Args:
        transform: the transform, with its arguments `per`, `samples` and `antithetic`, and the `mask` of its weights.
        model: the built model.
        law: law of the noise, as in `Backend.noise`.
    """

    def __init__(self, transform: Any, model: keras.Model, law: str) -> None:
        self.transform, self.law = transform, law
        self.layers = _linear_layers(model, transform) if transform.per == "example" else []
        self.in_layers = [k for part in self.layers for k in part.indices]
        self.on_weights = [c and k not in self.in_layers for k, c in enumerate(transform.mask)]

    def mean_over_draws(
        self,
        objective: Objective,
        weights: Weights,
        batch: Batch,
        draw: Callable[[Tensor], Sequence[Tensor]],
        stddev_of: Callable[[int], Tensor],
    ) -> tuple[Tensor, Any]:
        """The mean of the objective over draws of the noise, and the aux of the first one.

        Args:
            objective: the objective.
            weights: values for the model's trainable variables.
            batch: the batch.
            draw: gives, from a seed, the noise on each of the weights `on_weights`.
            stddev_of: gives the standard deviation of the noise on a weight `in_layers`, by the weight's index.
        """
        next_seed = self.transform.seed_generator.next
        stddevs = {index: stddev_of(index) for index in self.in_layers}
        passes = []
        for _ in range(self.transform.samples):
            steps = draw(next_seed()) if any(self.on_weights) else []
            seeds = [(next_seed(), next_seed()) for _ in self.layers]
            for sign in SIGNS[self.transform.antithetic]:
                shared = partial(objective, shifted(weights, self.on_weights, steps, sign))
                passes.append(partial(_with_example_noise, shared, self.layers, stddevs, seeds, self.law, sign))
        return mean_of(passes, batch)


# Linear layers whose noise differs from example to example.

_CONVOLUTIONS = (
    keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D,
    keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D,
)  # fmt: skip
_LINEAR = {kind.call for kind in (keras.layers.Dense, keras.layers.EinsumDense, *_CONVOLUTIONS)}


def _linear_layers(model: keras.Model, transform: Any) -> list[LayerWeights]:
    """The layers whose selected kernel can have noise of its own for each example.

    They are Dense, EinsumDense and convolution layers, without LoRA, that share their weights with no other layer.
    Their biases are included if they are selected.

    Raises:
        ValueError: there is no such layer.
    """
    linear = [layer for layer in model._flatten_layers() if type(layer).call in _LINEAR and not _per_row(layer)]
    found = with_own_weights(linear, model, transform.mask)
    if not found:
        raise ValueError(
            f'{type(transform).__name__}: per="example" needs the kernel of a Dense, EinsumDense or convolution layer '
            f"without LoRA among the weights that `select` chooses. Received: {[v.path for v in transform.selected]}. "
            'Use per="batch", which works for all weights.'
        )
    return [part if whole_bias(part.layer) else part._replace(bias=None) for part in found]


def _with_example_noise(
    function: Callable[[Batch], Any],
    layers: Sequence[LayerWeights],
    stddevs: Mapping[int, Tensor],
    seeds: Sequence[tuple[Tensor, Tensor]],
    law: str,
    sign: int,
    batch: Batch,
) -> Any:
    """The value of a function of the batch, with noise in the layers that it calls.

    Args:
        function: any function that calls the layers.
        layers: the layers.
        stddevs: the standard deviation of the noise on each of their weights, by its index; it broadcasts to it.
        seeds: two for each layer.
        law: law of the noise on a weight, as in `Backend.noise`.
        sign: 1, or -1 for the opposite noise.
        batch: the batch.
    """
    called = set()

    def noisy(index: int, call: Callable[[Tensor], Tensor], inputs: Tensor, outputs: Tensor) -> Tensor:
        layer, *own = layers[index]
        deviations = [None if k is None else stddevs[k] for k in own]
        axes = _axes(layer, len(inputs.shape))
        # If an example uses each weight once, noise on the weights and noise on the sums of products are the same.
        once = not isinstance(layer, _CONVOLUTIONS) and len(axes[0]) == len(inputs.shape) - 1
        linear = partial(_with_weights, layer, call)
        if law != "normal" or not once:
            noise = _flipout(layer, linear, inputs, deviations, axes, tuple(outputs.shape), law, seeds[index])
        elif index not in called:
            noise = _local(layer, linear, inputs, deviations, ops.shape(outputs), seeds[index][0])
        else:
            raise NotImplementedError(
                'per="example" needs layers that are called once in a pass, since the noise of several calls would be '
                f"the same numbers. Received: the layer {layer.name}, which is called more than once. "
                'Use per="batch", or leave its kernel out with `select`.'
            )
        called.add(index)
        noise = ops.cast(noise, outputs.dtype)
        return outputs + noise if sign > 0 else outputs - noise

    with changed_outputs([part.layer for part in layers], noisy):
        return function(batch)


def _with_weights(layer: Any, call: Callable[[Tensor], Tensor], x: Tensor, kernel: Any, bias: Any) -> Tensor:
    """The outputs of the layer with another kernel and bias; the bias None stands for 0."""
    values = [(layer.kernel, ops.broadcast_to(kernel, layer.kernel.shape))]
    if layer.bias is not None:
        values.append((layer.bias, ops.broadcast_to(0.0 if bias is None else bias, layer.bias.shape)))
    with forked_scope([(variable, ops.cast(value, x.dtype)) for variable, value in values]):
        return call(x)


def _local(layer: Any, linear: Any, x: Tensor, stddevs: Sequence[Any], shape: Any, seed: Tensor) -> Tensor:
    """Local reparameterisation: sqrt(x^2 S^2) n, with S^2 the variances of the weights."""
    x = at_least_float32(x)
    squares = ops.square(x)
    kernel: Any
    kernel, bias = (None if stddev is None else ops.square(ops.cast(stddev, x.dtype)) for stddev in stddevs)
    with AutocastScope(keras.backend.standardize_dtype(x.dtype)):
        if isinstance(layer, keras.layers.Dense) and math.prod(kernel.shape[:-1]) == 1:
            # All inputs have the same deviation, so the length of x replaces a product of matrices.
            variance = ops.sum(squares, axis=-1, keepdims=True) * ops.reshape(kernel, (-1,))
            variance = variance if bias is None else variance + bias
        else:
            variance = linear(squares, kernel, bias)
    stddev = nonzero_sqrt(variance)
    (normal,) = backend.noise("normal", [shape], seed)
    return stddev * ops.cast(normal, stddev.dtype)


def _flipout(
    layer: Any,
    linear: Any,
    x: Tensor,
    stddevs: Sequence[Any],
    axes: tuple[list[int], list[int]],
    shape: Any,
    law: str,
    seeds: tuple[Tensor, Tensor],
) -> Tensor:
    """Flipout: one draw E for the batch, and for each example random signs: ((x r) E) q."""
    variables = [v for v, stddev in zip((layer.kernel, layer.bias), stddevs, strict=True) if stddev is not None]
    draws = iter(backend.noise(law, [tuple(v.shape) for v in variables], seeds[0]))
    kernel, bias = (None if stddev is None else stddev * next(draws) for stddev in stddevs)
    used, made = axes
    counts = [math.prod(x.shape[axis] for axis in used), math.prod(shape[axis] for axis in made)]
    rows = ops.shape(x)[0]
    (signs,) = backend.noise("rademacher", [(rows, sum(counts))], seeds[1])
    signs = ops.cast(signs, x.dtype)

    def broadcast(part: Tensor, axes: list[int], sizes: Sequence[int]) -> Tensor:
        return ops.reshape(part, [rows, *(size if k in axes else 1 for k, size in enumerate(sizes) if k > 0)])

    flipped = x * broadcast(signs[:, : counts[0]], used, x.shape)
    return linear(flipped, kernel, bias) * broadcast(signs[:, counts[0] :], made, shape)


def _axes(layer: Any, rank: int) -> tuple[list[int], list[int]]:
    """The axes of inputs and outputs along which the layer has weights of their own."""
    if not isinstance(layer, keras.layers.EinsumDense):
        channels = 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1
        return [channels], [channels]
    inputs, kernel, outputs = einsum_labels(layer)
    hidden = "." * (rank - len(inputs.replace("...", "")))

    def positions(labels: str) -> list[int]:
        """The axes whose labels are the kernel's; the ellipsis stands for the hidden axes."""
        return [axis for axis, label in enumerate(labels.replace("...", hidden)) if label != "." and label in kernel]

    return positions(inputs), positions(outputs)


def _per_row(layer: Any) -> bool:
    """Tell whether the layer has different weights for different rows of a batch."""
    return isinstance(layer, keras.layers.EinsumDense) and einsum_labels(layer)[0][0] in einsum_labels(layer)[1]
