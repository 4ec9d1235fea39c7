"""Noise on the weights of linear layers that differs from example to example."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from minimand import backend
from minimand._keras import AutocastScope
from minimand._ops import at_least_float32, nonzero_sqrt
from minimand._scope import forked_scope, shadowed
from minimand.backend import Tensor

_CONVOLUTIONS = (
    keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D,
    keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D,
)  # fmt: skip
_LINEAR = {kind.call for kind in (keras.layers.Dense, keras.layers.EinsumDense, *_CONVOLUTIONS)}


class LinearLayer(NamedTuple):
    """A layer that is linear before its activation, and which of the model's trainable weights are its own."""

    layer: Any
    kernel: int
    bias: int | None


def linear_layers(model: keras.Model, mask: Sequence[bool], owner: str) -> list[LinearLayer]:
    """The layers whose chosen kernel can have noise of its own for each example.

    These are Dense, EinsumDense and convolutions, without LoRA, that share their kernel with no other layer; with
    their biases, where those are chosen.

    Raises:
        ValueError: there is none.
    """
    index = {id(v): k for k, (v, c) in enumerate(zip(model.trainable_variables, mask, strict=True)) if c}
    found = [
        LinearLayer(layer, index[id(layer.kernel)], index.get(id(layer.bias)) if _whole_bias(layer) else None)
        for layer in model._flatten_layers()
        if type(layer).call in _LINEAR and id(layer.kernel) in index and not _per_row(layer)
    ]
    kernels = [part.kernel for part in found]
    found = [part for part in found if kernels.count(part.kernel) == 1]
    if not found:
        raise ValueError(
            f'{owner}: per="example" and per="position" need the kernel of a Dense, EinsumDense or convolution layer '
            "without LoRA among the weights that `select` chooses. Received: "
            f"{[v.path for v, c in zip(model.trainable_variables, mask, strict=True) if c]}. "
            'Use per="batch", which works for all weights.'
        )
    return found


def with_example_noise(
    function: Callable[..., Any],
    layers: Sequence[LinearLayer],
    stddevs: Mapping[int, Tensor],
    seeds: Sequence[tuple[Tensor, Tensor]],
    *,
    law: str,
    per: str,
    sign: int,
) -> Callable[..., Any]:
    """The function, such that these layers have noise when it calls them.

    Args:
        function: any function that calls the layers.
        layers: the layers.
        stddevs: the standard deviation of the noise on each of their weights, by its index; it broadcasts to it.
        seeds: two for each layer.
        law: law of the noise on a weight, as in `Backend.noise`.
        per: `"example"` or `"position"`, for independent noise wherever the weights are used.
        sign: 1, or -1 for the opposite noise.
    """

    def wrapped(*args: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for part, pair in zip(layers, seeds, strict=True):
                bias = None if part.bias is None else stddevs[part.bias]
                call = _noisy_call(part.layer, (stddevs[part.kernel], bias), pair, law, per, sign)
                stack.enter_context(shadowed(part.layer, "call", call))
            return function(*args)

    return wrapped


def _noisy_call(
    layer: Any, stddevs: tuple[Any, Any], seeds: tuple[Tensor, Tensor], law: str, per: str, sign: int
) -> Callable[..., Tensor]:
    call, activation = layer.call, layer.activation
    calls = 0

    def linear(x: Tensor, kernel: Any, bias: Any) -> Tensor:
        """The layer with other weights."""
        values = [(layer.kernel, ops.broadcast_to(kernel, layer.kernel.shape))]
        if layer.bias is not None:
            values.append((layer.bias, ops.broadcast_to(0.0 if bias is None else bias, layer.bias.shape)))
        with forked_scope([(variable, ops.cast(value, x.dtype)) for variable, value in values]):
            return call(x)

    def noisy(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        axes = _axes(layer, len(inputs.shape))
        # Where an example uses each weight once, noise on the weights and on what they are summed to are the same.
        once = not isinstance(layer, _CONVOLUTIONS) and len(axes[0]) == len(inputs.shape) - 1
        on_output = law == "normal" and (once or per == "position")
        if on_output and calls > 1:
            raise NotImplementedError(
                f"per={per!r}: the layer {layer.name} is called more than once in one pass, and the noise of its calls "
                'would be the same numbers. Use per="batch", or leave its kernel out with `select`.'
            )
        with shadowed(layer, "activation", None):
            outputs = call(inputs, *args, **kwargs)
            if on_output:
                noise = _local(layer, linear, inputs, stddevs, ops.shape(outputs), seeds[0])
            else:
                noise = _flipout(layer, linear, inputs, stddevs, axes, tuple(outputs.shape), law, seeds)
        noise = ops.cast(noise, outputs.dtype)
        outputs = outputs + noise if sign > 0 else outputs - noise
        return outputs if activation is None else activation(outputs)

    return noisy


def _local(layer: Any, linear: Any, x: Tensor, stddevs: tuple[Any, Any], shape: Any, seed: Tensor) -> Tensor:
    """Local reparameterisation: sqrt(x^2 S^2) n, with S^2 the variances of the weights."""
    x = at_least_float32(x)
    squares = ops.square(x)
    kernel: Any
    kernel, bias = (None if stddev is None else ops.square(ops.cast(stddev, x.dtype)) for stddev in stddevs)
    with AutocastScope(keras.backend.standardize_dtype(x.dtype)):
        if isinstance(layer, keras.layers.Dense) and math.prod(kernel.shape[:-1]) == 1:
            # The same deviation for all inputs: the length of x, without a product of matrices.
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
    stddevs: tuple[Any, Any],
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

    def spread(part: Tensor, axes: list[int], sizes: Sequence[int]) -> Tensor:
        return ops.reshape(part, [rows, *(size if k in axes else 1 for k, size in enumerate(sizes) if k > 0)])

    flipped = x * spread(signs[:, : counts[0]], used, x.shape)
    return linear(flipped, kernel, bias) * spread(signs[:, counts[0] :], made, shape)


def _axes(layer: Any, rank: int) -> tuple[list[int], list[int]]:
    """The axes of inputs and outputs along which the layer has weights of their own."""
    if isinstance(layer, _CONVOLUTIONS):
        channels = 1 if layer.data_format == "channels_first" else rank - 1
        return [channels], [channels]
    if isinstance(layer, keras.layers.Dense):
        return [rank - 1], [rank - 1]
    inputs, kernel, outputs = _labels(layer)
    spread = rank - len(inputs.replace("...", ""))
    return _positions(inputs, kernel, spread), _positions(outputs, kernel, spread)


def _positions(labels: str, kernel: str, spread: int) -> list[int]:
    """Where the labels of the kernel stand, when the ellipsis stands for `spread` axes."""
    expanded = labels.replace("...", "." * spread)
    return [axis for axis, label in enumerate(expanded) if label != "." and label in kernel]


def _labels(layer: Any) -> tuple[str, str, str]:
    """Of inputs, kernel and outputs in an EinsumDense's equation."""
    operands, outputs = layer.equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    return inputs, kernel, outputs


def _per_row(layer: Any) -> bool:
    """Whether the layer has different weights for different rows of a batch."""
    return isinstance(layer, keras.layers.EinsumDense) and _labels(layer)[0][0] in _labels(layer)[1]


def _whole_bias(layer: Any) -> bool:
    """Whether the layer's bias has all the axes that its kernel adds to the outputs: each output's is its own."""
    if not isinstance(layer, keras.layers.EinsumDense) or layer.bias is None:
        return True
    _, kernel, outputs = _labels(layer)
    sizes = [size for label, size in zip(kernel, layer.kernel.shape, strict=True) if label in outputs]
    return math.prod(layer.bias.shape) == math.prod(sizes)
