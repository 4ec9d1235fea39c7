"""Exact sums, means and variances of the gradients of a batch's examples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import keras
from keras import ops

from minimand import backend
from minimand._keras import graph_nodes
from minimand._objective import DataObjective, pairing
from minimand._ops import at_least, at_least_float32
from minimand._scope import changed_outputs, isolated
from minimand._selection import merged
from minimand.backend import Tensor
from minimand.gradients._examples import ExampleGradients

# Layers with a closed form: one backward pass of the batch gives the sums of squares of the examples' gradients.

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_KNOWN = {kind.call for kind in (keras.layers.Dense, keras.layers.EinsumDense, *_CONVOLUTIONS)}
# Number of entries of single examples' gradients that are held at once.
CHUNK = 2**22


class LayerWeights(NamedTuple):
    """A layer, and which of the model's trainable weights are its own."""

    layer: Any
    kernel: int
    bias: int | None

    @property
    def indices(self) -> list[int]:
        return [self.kernel] if self.bias is None else [self.kernel, self.bias]


def with_own_weights(layers: Iterable[Any], model: keras.Model, mask: Sequence[bool]) -> list[LayerWeights]:
    """Those of the layers whose kernel is selected, with its index and, if it is selected, that of the bias.

    A layer that shares its weights with another one is left out, and so is a layer with LoRA, whose kernel is a sum.
    """
    index = {id(v): k for k, (v, c) in enumerate(zip(model.trainable_variables, mask, strict=True)) if c}
    found = [
        LayerWeights(layer, index[id(layer.kernel)], index.get(id(layer.bias)))
        for layer in layers
        if id(layer.kernel) in index
    ]
    weights = [k for part in found for k in part.indices]
    return [part for part in found if all(weights.count(k) == 1 for k in part.indices)]


def tapped_layers(model: keras.Model, mask: Sequence[bool]) -> list[LayerWeights]:
    """The layers with a closed form among those that hold selected weights.

    They are Dense layers, EinsumDense layers whose weights are used once for each example, and convolutions that a
    functional or Sequential model calls once. Another caller may call a layer in a loop, whose steps would be mistaken
    for different examples.
    """
    layers = [
        layer
        for layer in _called_once(model)
        if type(layer).call in _KNOWN
        and getattr(layer, "groups", 1) == 1
        and getattr(layer, "quantization_mode", None) is None
        and getattr(layer, "data_format", None) != "channels_first"
        and (not isinstance(layer, keras.layers.EinsumDense) or _once_each(layer))
    ]
    return with_own_weights(layers, model, mask)


def einsum_labels(layer: Any) -> tuple[str, str, str]:
    """The labels of inputs, kernel and outputs in an EinsumDense's equation; those of a Dense layer of vectors."""
    if isinstance(layer, keras.layers.Dense):
        return "ab", "bc", "ac"
    operands, outputs = layer.equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    return inputs, kernel, outputs


def _once_each(layer: Any) -> bool:
    """Tell whether an example uses each weight of an EinsumDense layer once, so that its gradient has no sum."""
    inputs, kernel, outputs = einsum_labels(layer)
    by_example = inputs[0] == outputs[0] and inputs[0] not in kernel
    return by_example and set(inputs[1:] + outputs[1:]) == set(kernel) and whole_bias(layer)


def whole_bias(layer: Any) -> bool:
    """Tell whether each output has a bias of its own: the bias has all axes that the kernel adds to the outputs."""
    if not isinstance(layer, keras.layers.EinsumDense) or layer.bias is None:
        return True
    _, kernel, outputs = einsum_labels(layer)
    sizes = [size for label, size in zip(kernel, layer.kernel.shape, strict=True) if label in outputs]
    return math.prod(layer.bias.shape) == math.prod(sizes)


def _called_once(model: keras.Model) -> Iterator[Any]:
    operations = [node.operation for same_depth in graph_nodes(model).values() for node in same_depth]
    for operation in operations:
        if sum(other is operation for other in operations) > 1:
            continue
        if isinstance(operation, keras.Model):
            yield from _called_once(operation)
        elif isinstance(operation, keras.layers.Layer):
            yield operation


def taps(
    layers: Sequence[LayerWeights],
    shadows: Mapping[int, Sequence[Tensor]],
    members: Tensor,
    powers: tuple[int, ...],
    calls: list[int],
) -> AbstractContextManager[None]:
    """A context in which a backward pass gives the shadows sums over examples as gradients.

    Args:
        layers: the layers.
        shadows: for each weight of the layers, by its index, zeros (groups, ...) for each power.
        members: (examples, groups), the share of each example in each of the groups whose sums are taken.
        powers: (1, 2) for sums of the gradients and of their squares, (2,) for these alone.
        calls: the numbers of calls of the layers, which are counted here.
    """

    def tapped(index: int, _: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
        calls[index] += 1
        part = layers[index]
        own = [shadow for k in part.indices for shadow in shadows[k]]
        return backend.tap(outputs, own, [inputs, members], partial(_sums, part, powers, tuple(outputs.shape)))

    return changed_outputs([part.layer for part in layers], tapped)


def _sums(
    part: LayerWeights, powers: tuple[int, ...], shape: Any, held: Sequence[Tensor], gradient: Tensor
) -> list[Tensor]:
    """For kernel and bias, and each power, the sum over the examples of each group of g^power."""
    inputs, members = held
    layer = part.layer
    gradient = at_least_float32(gradient)
    inputs, members = ops.cast(inputs, gradient.dtype), ops.cast(members, gradient.dtype)
    if isinstance(layer, keras.layers.EinsumDense) or (
        isinstance(layer, keras.layers.Dense) and len(inputs.shape) == 2
    ):
        of_inputs, of_kernel, of_outputs = einsum_labels(layer)
        equation = f"{of_inputs},{of_outputs}->{of_kernel}"
        shares = [ops.reshape(members[:, e], (-1, *(1 for _ in shape[1:]))) for e in range(members.shape[1])]
        found = [
            ops.stack([ops.einsum(equation, inputs**power, gradient**power * share) for share in shares])
            for power in powers
        ]
        of_bias = gradient
    else:
        rows = ops.shape(gradient)[0]
        outputs = ops.reshape(gradient, (rows, -1, shape[-1]))
        kernel_shape = (members.shape[1], *layer.kernel.shape)
        sums = _sums_over_positions(_patches(layer, inputs, shape[1:-1]), outputs, members, powers)
        found = [ops.reshape(total, kernel_shape) for total in sums]
        of_bias = ops.sum(outputs, axis=1)
    if part.bias is not None:
        rows = ops.reshape(of_bias, (ops.shape(of_bias)[0], -1))
        found += [ops.reshape(_grouped(members, rows**power), (-1, *layer.bias.shape)) for power in powers]
    return found


def _grouped(members: Tensor, rows: Tensor) -> Tensor:
    return ops.matmul(ops.transpose(members), rows)


def _sums_over_positions(a: Tensor, d: Tensor, members: Tensor, powers: tuple[int, ...]) -> list[Tensor]:
    """The sums of powers of g_i = sum_p a_ip d_ip', (groups, k o), where a is (n, p, k) and d is (n, p, o)."""
    entries = a.shape[-1] * d.shape[-1]

    def of(a: Tensor, d: Tensor, members: Tensor) -> list[Tensor]:
        each = ops.reshape(ops.matmul(ops.transpose(a, (0, 2, 1)), d), (-1, entries))
        return [_grouped(members, each**power) for power in powers]

    if isinstance(a.shape[0], int) and a.shape[0] * entries <= CHUNK:
        return of(a, d, members)
    return backend.sum_over_rows(
        lambda row: of(*(part[None] for part in row)), (a, d, members), max(1, CHUNK // entries)
    )


def _patches(layer: Any, inputs: Tensor, sizes: Sequence[int]) -> Tensor:
    """The inputs that each output position multiplies with the kernel: (n, positions, kernel entries of an output)."""
    rows = ops.shape(inputs)[0]
    if isinstance(layer, keras.layers.Dense):
        return ops.reshape(inputs, (rows, -1, inputs.shape[-1]))
    rank = len(layer.kernel_size)
    padding = [(0, 0)] * rank
    spans = [
        (size - 1) * stride + (k - 1) * dilation + 1
        for size, stride, k, dilation in zip(sizes, layer.strides, layer.kernel_size, layer.dilation_rate, strict=True)
    ]
    if layer.padding != "valid":
        missing = [max(0, span - length) for span, length in zip(spans, inputs.shape[1:-1], strict=True)]
        padding = [(m, 0) if layer.padding == "causal" else (m // 2, m - m // 2) for m in missing]
    inputs = ops.pad(inputs, [(0, 0), *padding, (0, 0)])
    parts = []
    for offset in itertools.product(*map(range, layer.kernel_size)):
        window = [
            slice(k * dilation, k * dilation + (size - 1) * stride + 1, stride)
            for k, dilation, size, stride in zip(offset, layer.dilation_rate, sizes, layer.strides, strict=True)
        ]
        parts.append(inputs[(slice(None), *window, slice(None))])
    stacked = ops.concatenate(parts, axis=-1)
    return ops.reshape(stacked, (rows, -1, stacked.shape[-1]))


# All layers: the closed form if there is one, and else a pass for each example.


def mixing_layers(model: keras.Model) -> list[str]:
    """Names of the layers that mix the examples of a batch in training."""
    return [
        layer.name
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]


def check_separable(estimator: str, model: keras.Model, owner: str) -> None:
    """Raise a `ValueError` if a layer mixes, in training, the examples that the estimator takes apart."""
    mixing = mixing_layers(model)
    if mixing and estimator != "micro_batch":
        raise ValueError(
            f'{owner}: estimator="{estimator}" needs examples that do not depend on each other. Received: a model with '
            f"{mixing}, which in training normalise each example by the others. Use "
            'estimator="micro_batch", whose micro-batches are normalised by themselves, or freeze these layers.'
        )


def exact_sums(gradients: ExampleGradients, members: Tensor | None = None) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """`(sums of g_i, sums of g_i^2, mismatch)`, for each selected weight.

    Args:
        gradients: the gradients, of an objective of the data.
        members: (n, groups), the share of each example in each group, for sums by group, (groups, ...).

    The mismatch is the squared difference of the outputs of examples by themselves and in the batch, over the squared
    outputs; it is 0 if no example was taken by itself.
    """
    objective, weights, mask = gradients.objective, gradients.weights, gradients.mask
    assert isinstance(objective, DataObjective), "checked by what lets users choose the estimator"
    dtype = gradients.dtype
    shares = ops.ones((gradients.count, 1), dtype) if members is None else members
    powers = (2,) if members is None else (1, 2)
    layers = tapped_layers(objective.model, mask)
    tapped = [k for part in layers for k in part.indices]
    shadows = {k: [ops.zeros((shares.shape[1], *weights[k].shape), dtype) for _ in powers] for k in tapped}
    # Sums of gradients by group come from the shadows: the weights need no gradients of their own.
    wanted = mask if members is None else [False] * len(weights)
    structure = list(compress(weights, wanted)), shadows
    batch, factor = gradients.whole()
    calls = [0] * len(layers)

    def total(values: Sequence[Tensor]) -> tuple[Tensor, None]:
        of_weights, of_layers = keras.tree.pack_sequence_as(structure, values)
        with taps(layers, of_layers, shares, powers, calls):
            return isolated(objective)(merged(weights, wanted, of_weights), batch)[0], None

    start = keras.tree.flatten(structure)
    of_all = backend.value_and_gradient(total, start, differentiable=gradients.differentiable)[1] if start else []
    of_weights, of_layers = keras.tree.pack_sequence_as(structure, of_all)
    called_once = [k for part, called in zip(layers, calls, strict=True) if called == 1 for k in part.indices]
    sums = {k: [factor**power * s for power, s in zip(powers, of_layers[k], strict=True)] for k in called_once}
    rest = [c and k not in sums for k, c in enumerate(mask)]
    mismatch = ops.zeros((), dtype)
    if any(rest):
        found, mismatch = _one_by_one(gradients, objective, rest, shares, powers)
        sums.update(zip(compress(range(len(mask)), rest), found, strict=True))
    second = [sums[k][-1] for k in sorted(sums)]
    if members is None:
        return [factor * at_least_float32(g) for g in of_weights], [s[0] for s in second], mismatch
    return [sums[k][0] for k in sorted(sums)], second, mismatch


def _one_by_one(
    gradients: ExampleGradients,
    objective: DataObjective,
    rest: Sequence[bool],
    members: Tensor,
    powers: tuple[int, ...],
) -> tuple[list[list[Tensor]], Tensor]:
    """The sums for weights without a closed form: each example passes through the model by itself."""
    weights, batch = gradients.weights, gradients.batch
    y_pred, upstream, random = objective.predictions(weights, batch)
    if random:
        paths = [v.path for v in compress(objective.model.trainable_variables, rest)]
        raise ValueError(
            'estimator="exact" passes each example through the model by itself for weights without a closed form, with '
            f"other random numbers than it has in the batch. Received: a model with dropout or noise, and {paths}. Use "
            'estimator="probe" or "micro_batch", or the model in evaluation.'
        )
    outputs = keras.tree.flatten(y_pred)
    upstream = [ops.cast(gradients.count, u.dtype) * u for u in upstream]
    # A structure without the leaves that are None.
    rows = keras.tree.flatten(batch.x), upstream, [ops.stop_gradient(o) for o in outputs]

    def of_example(values: Sequence[Tensor], row: Any) -> tuple[Tensor, Tensor]:
        x, factors, expected = row
        x = keras.tree.pack_sequence_as(batch.x, [leaf[None] for leaf in x])
        found = objective.outputs(merged(weights, rest, values), x)
        flat = keras.tree.flatten(found)
        off = sum(ops.sum(ops.square(at_least_float32(a - e[None]))) for a, e in zip(flat, expected, strict=True))
        return pairing(found, [factor[None] for factor in factors]), off

    selected = list(compress(weights, rest))
    sums, off = sums_of_powers(of_example, selected, rows, members, powers, differentiable=gradients.differentiable)
    scale = sum(ops.sum(ops.square(at_least_float32(output))) for output in outputs)
    return sums, off / (scale + 1e-30)


def sums_of_powers(
    function: Callable[[Sequence[Tensor], Any], tuple[Tensor, Tensor]],
    values: Sequence[Tensor],
    rows: Any,
    members: Tensor,
    powers: tuple[int, ...] = (2,),
    *,
    differentiable: bool = False,
) -> tuple[list[list[Tensor]], Tensor]:
    """Sums over rows of powers of the gradients of `function(values, row)`, by a pass for each row.

    Args:
        function: gives a scalar and a tensor that is summed too.
        values: the tensors by which the scalar is differentiated.
        rows: a structure of tensors (n, ...).
        members: (n, groups), the share of each row in each of the groups whose sums are taken.
        powers: the powers.
        differentiable: whether the sums can be differentiated.

    Returns:
        `(sums, total)`: for each value and power a tensor (groups, ...), and the sum of the function's second result.
    """

    def of_row(row_and_share: Any) -> list[Tensor]:
        row, share = row_and_share
        at = isolated(lambda given: function(given, row))
        (_, other), found = backend.value_and_gradient(at, values, differentiable=differentiable)
        wanted = [at_least_float32(g) ** power for g in found for power in powers]
        return [*(ops.reshape(share, (-1, *[1] * len(g.shape))) * g[None] for g in wanted), other]

    entries = sum(math.prod(value.shape) for value in values) * len(powers) * members.shape[1]
    *sums, total = backend.sum_over_rows(of_row, (rows, members), max(1, CHUNK // max(entries, 1)))
    return [sums[k : k + len(powers)] for k in range(0, len(sums), len(powers))], total


def exact_moments(
    gradients: ExampleGradients, members: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """`(means, unbiased variances, mismatch)` of the g_i, for each selected weight.

    The arguments and the mismatch are those of `exact_sums`. A group of fewer than two examples has the variance 0.
    """
    first, second, mismatch = exact_sums(gradients, members)
    counts = ops.cast(gradients.count, gradients.dtype) if members is None else ops.sum(members, axis=0)
    means, variances = [], []
    for f, s in zip(first, second, strict=True):
        n = counts if members is None else ops.reshape(counts, (-1, *[1] * (len(f.shape) - 1)))
        mean = f / at_least(n, 1.0)
        means.append(mean)
        # Rounding may make the difference negative if gradients hardly differ.
        variances.append(at_least(s - n * ops.square(mean), 0.0) / at_least(n - 1.0, 1.0))
    return means, variances, mismatch
