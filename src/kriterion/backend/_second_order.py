"""JAX: gradients whose own derivative is a forward pass and one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from kriterion.backend._protocol import Tensor


def pure_value_and_gradient(
    function: Callable[[Sequence[Tensor]], tuple[Tensor, Any]], values: Sequence[Tensor]
) -> tuple[tuple[Tensor, Any], list[Tensor]]:
    """As in the protocol.

    The derivative of g = grad L along a gradient u by it, H u, is the gradient of the slope L' u. So it takes plain
    convolutions and their gradients, where the gradient of a backward pass takes convolutions whose layout XLA has no
    fast code for on the CPU (a network of two, with and without pooling, took 2.5 and 6 times as long).

    What can be differentiated backwards only goes the way through the backward pass.
    """
    values = list(values)
    program, shape = jax.make_jaxpr(function, return_shape=True)(values)

    def pure(values: list[Tensor], held: list[Tensor]) -> tuple[Tensor, Any]:
        found = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, held))(*values)
        return jax.tree.unflatten(jax.tree.structure(shape), found)

    plain = jax.value_and_grad(pure, has_aux=True)
    if "custom_vjp_call" in str(program):
        return plain(values, program.consts)

    @jax.custom_vjp
    def value_and_own_gradient(values: list[Tensor], held: list[Tensor]) -> Any:
        return plain(values, held)

    def backward(inputs: Any, cotangents: Any) -> Any:
        (of_value, of_aux), direction = cotangents

        def with_slope(values: list[Tensor], held: list[Tensor]) -> tuple[Any, Tensor]:
            (value, aux), (slope, _) = jax.jvp(lambda v: pure(v, held), (values,), (direction,))
            return (value, aux), slope

        (_, slope), pull = jax.vjp(with_slope, *inputs)
        return pull(((of_value, of_aux), jax.numpy.ones_like(slope)))

    value_and_own_gradient.defvjp(lambda *inputs: (value_and_own_gradient(*inputs), inputs), backward)
    return value_and_own_gradient(values, program.consts)
