"""PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from kriterion.backend._in_place import minimise
from kriterion.backend._protocol import Tensor


def value_and_gradient(
    function: Callable[[Sequence[Tensor]], tuple[Tensor, Any]], values: Sequence[Tensor]
) -> tuple[tuple[Tensor, Any], list[Tensor]]:
    with torch.enable_grad():
        values = [value if value.requires_grad else value.detach().requires_grad_() for value in values]
        value, aux = function(values)
        gradients = torch.autograd.grad(value, values, create_graph=True, allow_unused=True, materialize_grads=True)
    return (value, aux), list(gradients)


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
            # A second derivative is wanted (`create_graph`); the saved derivatives have no history.
            derivatives = ctx.function(*tensors)[1]
        wanted = zip(ctx.needs_input_grad[1:], tensors, derivatives, strict=True)
        return None, *((upstream * d).sum_to_size(t.shape) if needed else None for needed, t, d in wanted)


def elementwise(function: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]) -> Callable[..., Tensor]:
    return lambda *tensors: _Elementwise.apply(function, *tensors)


def devices() -> list[str]:
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def replicas() -> int:
    return 1


def _differentiate(objective: Callable[[list[Tensor]], tuple[Tensor, Any]], variables: Any) -> Any:
    values = [variable.value for variable in variables]
    with torch.enable_grad():
        scaled_loss, aux = objective(values)
    return aux, list(torch.autograd.grad(scaled_loss, values, allow_unused=True))


class TrainStep:
    """Keras's PyTorch train step, minimising the composed objective where there are transforms."""

    def train_step(self: Any, data: Any) -> dict[str, Tensor]:
        if not self.transforms:
            return super().train_step(data)  # type: ignore[misc]
        with torch.no_grad():
            return minimise(self, data, _differentiate)
