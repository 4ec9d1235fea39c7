"""What Minimand needs of a framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

Tensor = Any


class Backend(Protocol):
    """The whole interface to a framework; each module beside this one implements it.

    A backend is a module with these functions and the class `TrainStep`, a mixin placed before
    `keras.Model` that makes Keras's own train step minimise `self.evaluate_objective`.
    """

    TrainStep: type

    step_programs: Any
    """The module `_step_programs`, which maps a training step over many states; None where the framework cannot."""

    def value_and_gradient(
        self,
        function: Callable[[Sequence[Tensor]], tuple[Tensor, Any]],
        values: Sequence[Tensor],
        *,
        differentiable: bool = True,
    ) -> tuple[tuple[Tensor, Any], list[Tensor]]:
        """`((value, aux), gradients)` of a function of a list of tensors that returns `(scalar, aux)`.

        The gradients are dense, have the values' shapes, are zero where the scalar does not depend on a value,
        and, unless `differentiable` is False, can be differentiated again.
        """
        ...

    def pure_value_and_gradient(
        self, function: Callable[[Sequence[Tensor]], tuple[Tensor, Any]], values: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, Any], list[Tensor]]:
        """The same for a function without side effects, whose aux is a structure of tensors.

        Where that helps, the gradients can be differentiated again at a lower price.
        """
        ...

    def pullback(
        self, outputs: Sequence[Tensor], values: Sequence[Tensor]
    ) -> Callable[[Sequence[Tensor]], list[Tensor]] | None:
        """The vector-Jacobian product of a pass from values to outputs that has taken place, as often as wanted.

        From the gradients by the outputs to those by the values, which cannot be differentiated. None where the
        framework does not keep a pass, but finds out itself that a second one is the same.
        """
        ...

    def custom_derivative(self, function: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]) -> Callable[..., Tensor]:
        """The function, entry by entry, of which `function(*tensors)` gives the value and the partial derivatives.

        The tensors broadcast; value and derivatives have the broadcast shape, and None is a derivative that is zero.
        One pass gives both; only for a second derivative are the given derivatives themselves differentiated.
        """
        ...

    def tap(
        self,
        output: Tensor,
        shadows: Sequence[Tensor],
        inputs: Sequence[Tensor],
        side: Callable[[Sequence[Tensor], Tensor], Sequence[Tensor]],
    ) -> Tensor:
        """The output itself; where it is differentiated, the shadows get a gradient from the side.

        That is `side(inputs, gradient by the output)`, of their shapes, in place of their true one, 0. It can be
        differentiated again.
        """
        ...

    def noise(self, law: str, shapes: Sequence[tuple[int, ...]], seed: Tensor, scale: Any = 1.0) -> list[Tensor]:
        """Tensors of these shapes, of independent float32 numbers of mean 0 and standard deviation `scale`, a scalar.

        `law` is `"normal"` (drawn from 65,536 equally probable quantiles), `"uniform"` or `"rademacher"` (the two
        signs); `seed` is what `keras.random.SeedGenerator.next` returns. The generator is the fastest sound one. Of a
        single shape, dimensions may be tensors.
        """
        ...

    def vmap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled where the framework does, for each entry of its first argument, a tensor.

        `vmap(function)(first, *rest)` is the stack of `function(entry, *rest)`, leaf by leaf; it has no gradient.
        """
        ...

    def summed(self, function: Callable[[Any], Sequence[Tensor]], rows: Any, chunk: int) -> list[Tensor]:
        """The sum of `function(row)`, a list of tensors, over the rows of a structure of tensors (n >= 1, ...).

        At most `chunk` of the terms are held at once. It can be differentiated.
        """
        ...

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of structures of tensors, compiled where the framework does; for calls outside of a step."""
        ...

    def put(self, array: Tensor, positions: Tensor, values: Tensor) -> Tensor:
        """The array (n,) with values (k,) at positions (k,), for loops: its memory may be used again. No gradient."""
        ...

    def seed_unseeded_layers(self, seed: int) -> None:
        """Set the generator that Keras's layers without a seed draw from, where that is the framework's own.

        `keras.utils.set_random_seed` does, but imports every framework that is installed.
        """
        ...

    def keep_compiled_programs(self, folder: Path) -> None:
        """Keep them there for other processes, where the framework takes long to compile and the user keeps none."""
        ...

    def devices(self) -> list[str]:
        """Names of the devices that the framework sees."""
        ...

    def replicas(self) -> int:
        """Number of copies of a model that the current step trains, each on its part of the batch (`tf.distribute`)."""
        ...
