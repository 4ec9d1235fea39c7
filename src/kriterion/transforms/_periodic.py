"""Transforms that do something in one of every so many steps."""

from __future__ import annotations

from typing import Any

from keras import ops

from kriterion.backend import Tensor
from kriterion.transforms.base import Transform


class PeriodicTransform(Transform):
    """A transform that acts in every k-th step, counted by its variable `step`.

    Where the training loop can, it counts too, and a step is compiled or run without what it does not do: the training
    loop calls `start_counting`, then `tick` before each step. Elsewhere `due_now` is a tensor, for `keras.ops.cond`.

    Args:
        every: number k >= 1 of steps.
        **kwargs: the arguments of `Transform`.
    """

    def __init__(self, *, every: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.every = every
        self.step = self.add_weight((), "zeros", "int32", trainable=False, name="step")
        self._due: bool | None = True if every == 1 else None
        self._count = 0

    def start_counting(self) -> None:
        """Take over the count of `step`."""
        self._count = int(ops.convert_to_numpy(self.step.value))

    def tick(self) -> bool:
        """Whether the next step is one of them; until `stop_counting`, `due_now` says the same."""
        self._due = self._count % self.every == 0
        self._count += 1
        return self._due

    def stop_counting(self) -> None:
        """Leave it to `step` again."""
        self._due = True if self.every == 1 else None

    def due_now(self) -> bool | Tensor:
        """Whether this step is one of them; counts it."""
        due = ops.equal(self.step.value % self.every, 0) if self._due is None else self._due
        self.step.assign(self.step.value + 1)
        return due
