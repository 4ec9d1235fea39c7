"""The interface to JAX."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import keras
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from minimand._scope import shadowed
from minimand.backend import _step_programs as step_programs  # noqa: F401
from minimand.backend._protocol import Elementwise, Function, SideGradient, Tensor, Tensors, ValueAndGradients
from minimand.backend._shared import counted, counting, hashed_noise

_CACHED_BYTES = 2**30


def value_and_gradient(function: Function, values: Tensors, *, differentiable: bool = True) -> ValueAndGradients:
    held = list(values) if differentiable else [jax.lax.stop_gradient(value) for value in values]
    return jax.value_and_grad(function, has_aux=True)(held)


def pure_value_and_gradient(function: Function, values: Tensors) -> ValueAndGradients:
    """As in the protocol, with a second derivative that is a forward pass and one backward pass.

    The product H u of the Hessian with a direction u is the gradient of the slope L' u. It takes plain convolutions and
    their gradients; the gradient of a backward pass takes convolutions in layouts that XLA has no fast code for on
    the CPU (networks of two convolutions, with and without pooling, took 2.5 and 6 times as long).

    A function with a `custom_vjp` has no forward derivative, so its backward pass is differentiated.
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


def vjp(outputs: Tensors, values: Tensors) -> None:
    return None


def traced(function: Callable[[], Any]) -> tuple[Any, Callable[[keras.Variable], bool]]:
    return function(), lambda variable: False


def clone(tensor: Tensor) -> Tensor:
    return tensor


def custom_derivative(function: Elementwise) -> Callable[..., Tensor]:
    @jax.custom_jvp
    def value_of(*tensors: Tensor) -> Tensor:
        return function(*tensors)[0]

    @value_of.defjvp
    def value_and_tangent(tensors: Any, tangents: Any) -> tuple[Tensor, Tensor]:
        value, derivatives = function(*tensors)
        pairs = zip(derivatives, tangents, strict=True)
        return value, sum(d * _broadcast(tangent, value.shape) for d, tangent in pairs if d is not None)

    return value_of


def _broadcast(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Broadcast along leading axes by a product with ones, so that the transpose, a sum over them, is a product too.

    XLA on the CPU merges a plain sum with the computation of its terms into a loop that is several times slower.
    """
    size = math.prod(shape[len(shape) - tensor.ndim :])
    if tensor.ndim == len(shape) or tensor.size != size:
        return jax.numpy.broadcast_to(tensor, shape)
    # XLA takes the product of a column and a number apart again, but not if the number is a sum of eight eighths.
    terms = 8 if size == 1 else 1
    means = jax.numpy.full((math.prod(shape) // max(size, 1), terms), 1 / terms, tensor.dtype)
    rows = jax.numpy.broadcast_to(tensor.reshape(1, size), (terms, size))
    return jax.numpy.matmul(means, rows, precision="highest").reshape(shape)


def tap(output: Tensor, shadows: Tensors, inputs: Tensors, side: SideGradient) -> Tensor:
    @jax.custom_vjp
    def same(output: Tensor, shadows: list[Tensor], inputs: list[Tensor]) -> Tensor:
        return output

    def backward(inputs: list[Tensor], gradient: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        return gradient, list(side(inputs, gradient)), [jax.numpy.zeros_like(part) for part in inputs]

    same.defvjp(lambda output, shadows, inputs: (output, inputs), backward)
    return same(output, list(shadows), list(inputs))


def noise(law: str, shapes: Sequence[tuple[int, ...]], seed: Tensor, scale: Any = 1.0) -> list[Tensor]:
    return [numbers * scale for numbers in hashed_noise(law, shapes, seed)]


def vmap(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(lambda first, *rest: jax.vmap(lambda entry: function(entry, *rest))(first))


def sum_over_rows(function: Callable[[Any], Tensors], rows: Any, chunk: int) -> list[Tensor]:
    def of(part: Any) -> list[Tensor]:
        return [jax.numpy.sum(term, axis=0) for term in jax.vmap(lambda row: list(function(row)))(part)]

    count = len(jax.tree.leaves(rows)[0])
    whole = count // chunk * chunk
    parts = [of(jax.tree.map(lambda leaf: leaf[whole:], rows))] if whole < count else []
    if whole:
        chunks = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, chunk, *leaf.shape[1:]), rows)
        start = [jax.numpy.zeros(t.shape, t.dtype) for t in jax.eval_shape(of, jax.tree.map(lambda c: c[0], chunks))]
        total, _ = jax.lax.scan(lambda s, c: ([a + b for a, b in zip(s, of(c), strict=True)], None), start, chunks)
        parts.append(total)
    return [sum(terms) for terms in zip(*parts, strict=True)]


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function)


def scatter_update(array: Tensor, positions: Tensor, values: Tensor) -> Tensor:
    return array.at[positions].set(values)


def segment_sum(values: Tensor, labels: Any, count: int) -> Tensor:
    return jax.ops.segment_sum(values, labels, num_segments=count)


def erfc(x: Tensor) -> Tensor:
    return jax.lax.erfc(x)


def devices() -> list[str]:
    return [str(device) for device in jax.devices()]


def replicas() -> int:
    return 1


def seed_unseeded_layers(seed: int) -> None:
    pass


def keep_compiled_programs(folder: Path) -> None:
    if jax.config.jax_compilation_cache_dir is None:
        settings = {
            "jax_compilation_cache_dir": str(folder / "jax"),
            "jax_compilation_cache_max_size": _CACHED_BYTES,
            "jax_persistent_cache_min_compile_time_secs": 0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        for name, value in settings.items():
            jax.config.update(name, value)
            # The processes that this one starts read the environment.
            os.environ.setdefault(name.upper(), str(value))


class TrainStep:
    """Keras's JAX train step, which differentiates `compute_loss_and_updates`, minimising the composed objective."""

    def _get_jax_state(self: Any, **wanted: bool) -> tuple[list[Tensor], ...]:
        # Keras empties the variables while it trains, and loses the values if the first step raises. Keras's own
        # `finally` restores the values that are kept here.
        state = super()._get_jax_state(**wanted)  # type: ignore[misc]
        if wanted.pop("purge_model_variables", False):
            self._jax_state = dict(zip((name for name in wanted if wanted[name]), state, strict=True))
        return state

    def make_train_function(self: Any, force: bool = False) -> None:
        # A conditional slows a compiled step by up to 70 %, so each combination of due transforms has its own step.
        transforms = counting(self)
        for transform in transforms:
            transform.start_counting()
        if not transforms:
            super().make_train_function(force)  # type: ignore[misc]
        elif force or self.train_function is None:
            # All steps are made now, since in training Keras empties the variables that hold their distribution.
            every = itertools.product((False, True), repeat=len(transforms))
            steps = {due: self._compiled_train_step() for due in every}

            def step(state: Any, data: Any) -> Any:
                with counted(transforms) as due:
                    return steps[due](state, data)

            self.train_function = self._make_function(step)

    def _compiled_train_step(self: Any) -> Callable[..., Any]:
        """Keras's compiled step, of a new function, since JAX reuses the program that it compiled for an equal one."""
        made: list[Any] = []
        train_step = self.train_step
        own = shadowed(self, "train_step", lambda state, data: train_step(state, data))
        with own, shadowed(self, "_make_function", made.append):
            super().make_train_function(force=True)  # type: ignore[misc]
        return made[0]

    def compute_loss_and_updates(
        self: Any, *arguments: Any, training: bool = False, optimizer_variables: Any = None
    ) -> tuple[Tensor, tuple[Tensor, Any, list[Tensor], list[Tensor]]]:
        if not (training and self.transforms):
            return super().compute_loss_and_updates(  # type: ignore[misc]
                *arguments, training=training, optimizer_variables=optimizer_variables
            )
        *state, x, y, sample_weight = arguments
        loss, (y_pred, non_trainable, metrics) = self.evaluate_objective(*state, (x, y, sample_weight))
        with keras.StatelessScope(zip(self.optimizer.variables, optimizer_variables or [], strict=True)):
            scaled = self.optimizer.scale_loss(loss)
        return scaled, (loss, y_pred, non_trainable, metrics)
