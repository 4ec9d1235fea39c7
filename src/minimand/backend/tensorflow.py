"""The interface to TensorFlow."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from minimand.backend._protocol import Elementwise, Function, SideGradient, Tensor, Tensors, ValueAndGradients
from minimand.backend._shared import hashed_noise, minimise, stacked

step_programs = None


def value_and_gradient(function: Function, values: Tensors, *, differentiable: bool = True) -> ValueAndGradients:
    values = [tf.convert_to_tensor(value) for value in values]
    if not differentiable:
        values = [tf.stop_gradient(value) for value in values]
    with tf.GradientTape() as tape:
        tape.watch(values)
        value, aux = function(values)
    gradients = tape.gradient(value, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return (value, aux), [tf.convert_to_tensor(gradient) for gradient in gradients]


pure_value_and_gradient = value_and_gradient


def vjp(outputs: Tensors, values: Tensors) -> None:
    return None


def traced(function: Callable[[], Any]) -> tuple[Any, Callable[[keras.Variable], bool]]:
    with tf.GradientTape() as tape:
        result = function()
    return result, lambda variable: any(variable.value is watched for watched in tape.watched_variables())


def clone(tensor: Tensor) -> Tensor:
    return tensor


def custom_derivative(function: Elementwise) -> Callable[..., Tensor]:
    @tf.custom_gradient
    def value_of(*tensors: Tensor) -> Any:
        value, derivatives = function(*tensors)

        def backward(upstream: Tensor) -> list[Tensor]:
            pairs = zip(derivatives, tensors, strict=True)
            return [tf.zeros_like(t) if d is None else _sum_to(upstream * d, t) for d, t in pairs]

        return value, backward

    return value_of


def tap(output: Tensor, shadows: Tensors, inputs: Tensors, side: SideGradient) -> Tensor:
    @tf.custom_gradient
    def same(output: Tensor, *shadows: Tensor) -> Any:
        return tf.identity(output), lambda gradient: (gradient, *side(inputs, gradient))

    return same(output, *shadows)


def _sum_to(value: Tensor, tensor: Tensor) -> Tensor:
    """The transpose of broadcasting `tensor` to the shape of `value`."""
    if value.shape.is_fully_defined() and value.shape == tensor.shape:
        return value
    _, axes = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(value), s1=tf.shape(tensor))
    return tf.reshape(tf.reduce_sum(value, axes), tf.shape(tensor))


# Without XLA each operation of the hash passes over memory, at nine times the price. On macOS XLA may be missing.
_hashed_noise = tf.function(hashed_noise, jit_compile=platform.system() != "Darwin")


def noise(law: str, shapes: Sequence[tuple[int, ...]], seed: Tensor, scale: Any = 1.0) -> list[Tensor]:
    return [numbers * scale for numbers in _hashed_noise(law, tuple(shapes), seed)]


def vmap(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = tf.function(function, reduce_retracing=True)
    return lambda first, *rest: stacked([compiled(entry, *rest) for entry in first])


def sum_over_rows(function: Callable[[Any], Tensors], rows: Any, chunk: int) -> list[Tensor]:
    def add(total: list[Tensor], row: Any) -> list[Tensor]:
        return [a + b for a, b in zip(total, function(row), strict=True)]

    first = list(function(tf.nest.map_structure(lambda leaf: leaf[0], rows)))
    return list(tf.foldl(add, tf.nest.map_structure(lambda leaf: leaf[1:], rows), initializer=first))


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    return tf.function(function, reduce_retracing=True)


def scatter_update(array: Tensor, positions: Tensor, values: Tensor) -> Tensor:
    return tf.tensor_scatter_nd_update(array, positions[:, None], values)


def segment_sum(values: Tensor, labels: Any, count: int) -> Tensor:
    return tf.math.unsorted_segment_sum(values, labels, count)


def erfc(x: Tensor) -> Tensor:
    return tf.math.erfc(x)


def devices() -> list[str]:
    return [device.name for device in tf.config.list_physical_devices()]


def replicas() -> int:
    return tf.distribute.get_strategy().num_replicas_in_sync


def _differentiate(objective: Callable[[list[Tensor]], tuple[Tensor, Any]], variables: Any) -> Any:
    values = [tf.convert_to_tensor(variable.value) for variable in variables]
    with tf.GradientTape() as tape:
        tape.watch(values)
        scaled_loss, aux = objective(values)
    return aux, tape.gradient(scaled_loss, values)


def seed_unseeded_layers(seed: int) -> None:
    pass


def keep_compiled_programs(folder: Path) -> None:
    pass


class TrainStep:
    """Keras's TensorFlow train step, minimising the composed objective where there are transforms."""

    def _maybe_symbolic_build(self: Any, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras makes variables while it traces the first step; variables of losses and transforms must exist before.
        if self._distribute_strategy is None and self.objective_state.parts:
            self._symbolic_build(iterator=iterator, data_batch=data_batch)
        else:
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)  # type: ignore[misc]

    def train_step(self: Any, data: Any) -> dict[str, Tensor]:
        if not self.transforms:
            return super().train_step(data)  # type: ignore[misc]
        if replicas() > 1:
            raise NotImplementedError(
                "Trainer: `transforms` do not work with tf.distribute, because each replica would add its own penalty. "
                f"Received: transforms={[transform.name for transform in self.transforms]!r} on {replicas()} replicas. "
                "Train on one device, or on JAX with keras.distribution."
            )
        return minimise(self, data, _differentiate)
