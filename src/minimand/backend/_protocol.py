"""The functions that Minimand needs of a framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras

Tensor = Any
Tensors = Sequence[Tensor]
Function = Callable[[Tensors], tuple[Tensor, Any]]
"""A function of a list of tensors that returns `(scalar, aux)`."""
ValueAndGradients = tuple[tuple[Tensor, Any], list[Tensor]]
Elementwise = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""A function of tensors that returns its value and its partial derivatives, entry by entry."""
SideGradient = Callable[[Tensors, Tensor], Tensors]


class Backend(Protocol):
    """The whole interface to a framework; the modules jax, tensorflow and torch beside this one implement it.

    A backend is a module with these functions and the class `TrainStep`, a mixin placed before `keras.Model`
    that makes Keras's own train step minimise `self.evaluate_objective`.
    """

    TrainStep: type

    step_programs: Any
    """The module `_step_programs`, which maps a training step over many states; None where the framework cannot."""

    def value_and_gradient(
        self, function: Function, values: Tensors, *, differentiable: bool = True
    ) -> ValueAndGradients:
        """`((value, aux), gradients)` of a function of a list of tensors that returns `(scalar, aux)`.

        The gradients are dense, have the values' shapes, and are zero where the scalar does not depend on a value.
        They can be differentiated again, unless `differentiable` is False.
        """

    def pure_value_and_gradient(self, function: Function, values: Tensors) -> ValueAndGradients:
        """As `value_and_gradient`, for a function without side effects whose aux is a structure of tensors.

        If the framework allows it, a second derivative costs less.
        """

    def vjp(self, outputs: Tensors, values: Tensors) -> Callable[[Tensors], list[Tensor]] | None:
        """The vector-Jacobian product of the pass that made the outputs from the values; it can be called repeatedly.

        The product maps gradients by the outputs to gradients by the values, which cannot be differentiated.
        None if the framework does not keep a pass; such a framework's compiler merges equal passes instead.
        """

    def traced(self, function: Callable[[], Any]) -> tuple[Any, Callable[[keras.Variable], bool]]:
        """`(function(), depends_on)`: whether the result depends on the own value of a variable, outside of scopes.

        On JAX the answer is always False, because Keras's own training step substitutes all values.
        """

    def clone(self, tensor: Tensor) -> Tensor:
        """The tensor in memory of its own, if the framework has functions that change a tensor in place."""

    def custom_derivative(self, function: Elementwise) -> Callable[..., Tensor]:
        """An elementwise function, from a function that returns its value and its partial derivatives.

        The tensors broadcast. Value and derivatives have the broadcast shape; the derivative None is zero. One pass
        gives both. Only a second derivative differentiates the given derivatives.
        """

    def tap(self, output: Tensor, shadows: Tensors, inputs: Tensors, side: SideGradient) -> Tensor:
        """The output itself, with a hook in the backward pass that gives gradients to the shadows.

        The gradient of the shadows is `side(inputs, gradient by the output)`, of their shapes, in place of their true
        gradient 0. This gradient can be differentiated again.
        """

    def noise(self, law: str, shapes: Sequence[tuple[int, ...]], seed: Tensor, scale: Any = 1.0) -> list[Tensor]:
        """Tensors of these shapes, of independent float32 numbers of mean 0 and standard deviation `scale`, a scalar.

        Each framework uses its fastest sound generator. A single shape may have tensors as dimensions.

        Args:
            law: `"normal"` (drawn from 65,536 equally probable quantiles), `"uniform"` or `"rademacher"` (random
                signs).
            shapes: shapes of the tensors.
            seed: two integers, as `keras.random.SeedGenerator.next` returns.
            scale: the standard deviation.
        """

    def vmap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function mapped over the rows of its first argument, a tensor; compiled if the framework compiles.

        `vmap(function)(first, *rest)` is the stack of `function(row, *rest)`, leaf by leaf. It has no gradient.
        """

    def sum_over_rows(self, function: Callable[[Any], Tensors], rows: Any, chunk: int) -> list[Tensor]:
        """The sum of `function(row)`, a list of tensors, over the rows of a structure of tensors (n >= 1, ...).

        At most `chunk` terms are in memory at once. The sum can be differentiated.
        """

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of structures of tensors, compiled if the framework compiles; for calls outside of a step."""

    def scatter_update(self, array: Tensor, positions: Tensor, values: Tensor) -> Tensor:
        """The array (n,) with values (k,) at positions (k,). It has no gradient, and may reuse the array's memory."""

    def segment_sum(self, values: Tensor, labels: Any, count: int) -> Tensor:
        """The sum (count,) of the values (n,) over each label: integers 0, ..., count - 1 in a NumPy array (n,).

        The sum has the values' dtype; on PyTorch, `ops.segment_sum` computes in float32.
        """

    def erfc(self, x: Tensor) -> Tensor:
        """The complementary error function, which Keras before 3.15 lacks."""

    def devices(self) -> list[str]:
        """Names of the devices that the framework sees."""

    def replicas(self) -> int:
        """Number of copies of the model that the current step trains, each on a part of the batch (`tf.distribute`).

        On PyTorch the answer is 1, because optimizers get gradients that all processes share.
        """

    def seed_unseeded_layers(self, seed: int) -> None:
        """Seed the framework's own generator, if Keras's layers without a seed draw from it.

        `keras.utils.set_random_seed` would also import every other framework that is installed.
        """

    def keep_compiled_programs(self, folder: Path) -> None:
        """Keep compiled programs in the folder for other processes, unless the user keeps them elsewhere."""
