"""The interface to PyTorch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from minimand._batches import first_leaf
from minimand._keras import torch_device
from minimand.backend._protocol import Elementwise, Function, SideGradient, Tensor, Tensors, ValueAndGradients
from minimand.backend._shared import counted, counting, minimise, normal_quantiles, stacked

step_programs = None


def value_and_gradient(function: Function, values: Tensors, *, differentiable: bool = True) -> ValueAndGradients:
    with torch.enable_grad():
        attached = [differentiable and value.requires_grad for value in values]
        values = [v if kept else v.detach().requires_grad_() for v, kept in zip(values, attached, strict=True)]
        # PyTorch's other implementations of attention cannot be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH) if differentiable else contextlib.nullcontext():
            value, aux = function(values)
        if not value.requires_grad:
            return (value, aux), [torch.zeros_like(v) for v in values]
        gradients = torch.autograd.grad(value, values, create_graph=differentiable, materialize_grads=True)
    return (value, aux), list(gradients)


pure_value_and_gradient = value_and_gradient


def vjp(outputs: Tensors, values: Tensors) -> Callable[[Tensors], list[Tensor]] | None:
    if not all(tensor.requires_grad for tensor in (*outputs, *values)):
        return None

    def product(cotangents: Tensors) -> list[Tensor]:
        return list(torch.autograd.grad(outputs, values, cotangents, retain_graph=True, materialize_grads=True))

    return product


def traced(function: Callable[[], Any]) -> tuple[Any, Callable[[keras.Variable], bool]]:
    with torch.enable_grad():
        result = function()
    outputs = [tensor for tensor in keras.tree.flatten(result) if torch.is_tensor(tensor) and tensor.requires_grad]

    def depends_on(variable: keras.Variable) -> bool:
        if not outputs:
            return False
        ones = [torch.ones_like(output) for output in outputs]
        (found,) = torch.autograd.grad(outputs, variable.value, ones, retain_graph=True, allow_unused=True)
        return found is not None

    return result, depends_on


def clone(tensor: Tensor) -> Tensor:
    return tensor.clone()


class _Elementwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Any, *tensors: Tensor) -> Tensor:
        value, derivatives = function(*tensors)
        ctx.function = function
        ctx.save_for_backward(*tensors, *derivatives)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        half = len(ctx.saved_tensors) // 2
        tensors, derivatives = ctx.saved_tensors[:half], ctx.saved_tensors[half:]
        if torch.is_grad_enabled():
            # A second derivative is wanted (`create_graph`), but the saved derivatives have no history.
            derivatives = ctx.function(*tensors)[1]
        wanted = zip(ctx.needs_input_grad[1:], tensors, derivatives, strict=True)
        return None, *(
            (upstream * d).sum_to_size(t.shape) if needed and d is not None else None for needed, t, d in wanted
        )


def custom_derivative(function: Elementwise) -> Callable[..., Tensor]:
    return lambda *tensors: _Elementwise.apply(function, *tensors)


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, side: Any, count: int, *tensors: Tensor) -> Tensor:
        ctx.side, ctx.count = side, count
        ctx.save_for_backward(*tensors[count:])
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        inputs = ctx.saved_tensors
        return gradient, None, None, *ctx.side(inputs, gradient), *(None for _ in inputs)


def tap(output: Tensor, shadows: Tensors, inputs: Tensors, side: SideGradient) -> Tensor:
    return _Tap.apply(output, side, len(shadows), *shadows, *inputs)


# The quantile at (k + 1/2) / 65536 is sqrt(2) erfinv((2 k + 1) / 65536 - 1); this factor also makes the variance 1.
_NORMAL_SCALE = float(normal_quantiles()[-1] / torch.erfinv(torch.tensor(1 - 2.0**-16)))


@torch.compiler.disable
def noise(law: str, shapes: Sequence[tuple[int, ...]], seed: Tensor, scale: Any = 1.0) -> list[Tensor]:
    counts = [math.prod(shape) for shape in shapes]
    numbers = _flat_noise(law, sum(counts), seed, scale)
    return [part.view(shape) for part, shape in zip(numbers.split(counts), shapes, strict=True)]


def _flat_noise(law: str, count: int, seed: Tensor, scale: Any) -> Tensor:
    device = torch_device()
    if device == "meta":
        return torch.empty(count, device=device)
    words = [word & 0xFFFFFFFF for word in seed.tolist()]
    if device != "cpu":
        return _device_noise(law, count, device, words).mul_(scale)
    # PyTorch's own generator draws one number at a time on a CPU, which takes longer than these steps together.
    bits = np.random.SFC64(words)

    def centred(dtype: Any) -> Tensor:
        """All values of the integer type plus 1/2, as numbers between -1 and 1."""
        size = np.dtype(dtype).itemsize
        integers = torch.from_numpy(bits.random_raw(-(-count * size // 8)).view(dtype)[:count])
        unit = 2.0 ** (1 - 8 * size)
        return torch.add(torch.tensor(unit / 2, dtype=torch.float32), integers, alpha=unit)

    if law == "normal":
        return centred(np.int16).erfinv_().mul_(_NORMAL_SCALE * scale)
    if law == "rademacher":
        return centred(np.int8).sign_().mul_(scale)
    return centred(np.int32).mul_(math.sqrt(3) * scale)


def _device_noise(law: str, count: int, device: str, words: list[int]) -> Tensor:
    generator = torch.Generator(device=device)
    # Consecutive counts must not make consecutive seeds.
    generator.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1)
    if law == "normal":
        return torch.randn(count, generator=generator, device=device)
    uniform = torch.rand(count, generator=generator, device=device).sub_(0.5)
    return uniform.sign_() if law == "rademacher" else uniform.mul_(math.sqrt(12))


def vmap(function: Callable[..., Any]) -> Callable[..., Any]:
    def each(first: Tensor, *rest: Any) -> Any:
        with torch.no_grad():
            return stacked([function(entry, *rest) for entry in first])

    return each


def sum_over_rows(function: Callable[[Any], Tensors], rows: Any, chunk: int) -> list[Tensor]:
    def term(index: int) -> list[Tensor]:
        return list(function(keras.tree.map_structure(lambda leaf: leaf[index], rows)))

    total = term(0)
    for index in range(1, len(first_leaf(rows))):
        total = [a + b for a, b in zip(total, term(index), strict=True)]
    return total


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def scatter_update(array: Tensor, positions: Tensor, values: Tensor) -> Tensor:
    # In place: otherwise PyTorch would copy the whole array for each of many small changes.
    return array.index_copy_(0, positions.long(), values)


def segment_sum(values: Tensor, labels: Any, count: int) -> Tensor:
    start = torch.zeros(count, dtype=values.dtype, device=values.device)
    return start.index_add(0, torch.as_tensor(labels, dtype=torch.int64, device=values.device), values)


def erfc(x: Tensor) -> Tensor:
    return torch.erfc(x)


def devices() -> list[str]:
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def replicas() -> int:
    return 1


def _differentiate(objective: Callable[[list[Tensor]], tuple[Tensor, Any]], variables: Any) -> Any:
    values = [variable.value for variable in variables]
    with torch.enable_grad():
        scaled_loss, aux = objective(values)
    return aux, list(torch.autograd.grad(scaled_loss, values, allow_unused=True))


def seed_unseeded_layers(seed: int) -> None:
    torch.manual_seed(seed)


def keep_compiled_programs(folder: Path) -> None:
    pass


def _refuse_processes(trainer: Any) -> None:
    # From version 3.16, Keras averages the gradients of a backward pass over the processes, but a transformed step does
    # not take that pass. Keras adds up metrics, which is wrong for the latest value of a variable. It does not join
    # running statistics.
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    processes = torch.distributed.get_world_size() if distributed else 1
    if processes > 1 and trainer.objective_state.parts:
        names = [part.name for part in trainer.objective_state.parts]
        raise NotImplementedError(
            "Trainer: transforms and losses with variables do not work with several processes of torch.distributed, "
            f"because each process would have variables of its own. Received: {names} in {processes} processes. Train "
            "in one process, or on JAX with keras.distribution."
        )


class TrainStep:
    """Keras's PyTorch train step, minimising the composed objective where there are transforms."""

    def make_train_function(self: Any, force: bool = False) -> Any:
        _refuse_processes(self)
        for transform in counting(self):
            transform.start_counting()
        return super().make_train_function(force)  # type: ignore[misc]

    def make_test_function(self: Any, force: bool = False) -> Any:
        _refuse_processes(self)
        return super().make_test_function(force)  # type: ignore[misc]

    def train_step(self: Any, data: Any) -> dict[str, Tensor]:
        if not self.transforms:
            return super().train_step(data)  # type: ignore[misc]
        with torch.no_grad(), counted(counting(self)):
            return minimise(self, data, _differentiate)
