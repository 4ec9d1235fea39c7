"""Transforms that need the size of the training set."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
from keras import ops

from minimand._batches import Batch
from minimand._objective import Objective, Weights
from minimand._scope import isolated
from minimand._state import StateLayer
from minimand._validation import check_float
from minimand.backend import Tensor

# The one idea: a transform maps an objective to an objective.

__all__ = ["Batch", "Objective", "Transform", "Weights"]


class Transform:
    """Base class of the transforms of an objective: L(w) -> T(L)(w).

    A subclass implements `apply(objective) -> objective`. Transforms in a list compose like functions, the first
    being applied first: `transforms=[A, B]` minimises `B(A(L))`.

    Variables made with `add_weight` and random numbers drawn with `self.seed_generator` belong to the trainer's
    state: they are saved, restored, and advance once a step.

    Args:
        seed: integer seed of `seed_generator`, or None for an unpredictable one.
        name: name of the transform; prefix of its variables' paths.

    Raises:
        TypeError: `seed` is neither an integer nor None.

    Source: the algebra is described in `docs/architecture.md`.

    Examples:
        >>> import keras, minimand
        >>> @keras.saving.register_keras_serializable(package="example")
        ... class Scaled(minimand.transforms.Transform):
        ...     "L -> 2 L"
        ...     def apply(self, objective):
        ...         def scaled(weights, batch):
        ...             loss, aux = objective(weights, batch)
        ...             return 2.0 * loss, aux
        ...         return scaled
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> trainer = minimand.Trainer(model)
        >>> trainer.compile("sgd", "mse", transforms=[Scaled()])
    """

    def __init__(self, *, seed: int | None = None, name: str | None = None) -> None:
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise TypeError(f"{type(self).__name__}: `seed` must be an integer or None. Received: seed={seed!r}")
        self.seed = seed
        self.state = StateLayer(name=name or _snake_case(type(self).__name__))
        self.state.seed_generator = keras.random.SeedGenerator(seed)
        self.built = False

    @property
    def name(self) -> str:
        """Name of the transform."""
        return self.state.name

    @property
    def seed_generator(self) -> keras.random.SeedGenerator:
        """The source of this transform's random numbers, part of the trainer's state."""
        return self.state.seed_generator

    @property
    def variables(self) -> list[keras.Variable]:
        """The transform's variables, its seed and those of its metrics included."""
        return [*self.state.variables, *self.state.metrics_variables]

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        """Make a variable of the transform; the arguments are those of `keras.layers.Layer.add_weight`."""
        return self.state.add_weight(*args, **kwargs)

    def bind(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Called by `compile`, before `build`, with the optimizer that it was given."""

    def build(self, model: keras.Model) -> None:
        """Called after each `compile` with the built model, to check and to prepare; make variables the first time."""

    needs_examples = False
    """Whether `fit` is to count the training examples, which may read batches, and to call `begin_fit`."""

    def begin_fit(self, examples: int | None) -> None:
        """Called by `fit` with the number of training examples, or None where it is not known, if it is needed."""

    def check_ready(self) -> None:
        """Called before the first step, to raise if something is missing that only `fit` can give."""

    counts_steps = False
    """Whether the training loop counts steps for the transform, as for a `PeriodicTransform`."""

    def apply(self, objective: Objective) -> Objective:
        """The transformed objective."""
        raise NotImplementedError(f"{type(self).__name__} must implement `apply(self, objective)`.")

    draws_weights = False
    """Whether `sample` draws weights."""

    def sample(self, weights: Weights, seed: Tensor) -> Weights:
        """Weights drawn for a prediction, from those of `fit`; the same weights where the transform draws none.

        Args:
            weights: values for the model's trainable variables.
            seed: two integers, as `keras.random.SeedGenerator.next` returns.
        """
        return weights

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal transform."""
        return {"seed": self.seed, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Transform:
        """A transform made from `get_config()`, in which schedules, regularizers and functions are serialised."""
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


# The mean of an objective over several passes.

Pass = Callable[[Batch], tuple[Tensor, Any]]


def mean_of(passes: Sequence[Pass], batch: Batch) -> tuple[Tensor, Any]:
    """The mean loss of the passes, and what the first one left behind."""
    loss, aux = passes[0](batch)
    for one in passes[1:]:
        loss = loss + isolated(one)(batch)[0]
    return loss / len(passes) if len(passes) > 1 else loss, aux


# Transforms that add a penalty, with a strength that may follow a schedule.

Strength: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule


class PenaltyTransform(Transform):
    """A transform with a strength >= 0, or a schedule of it by the number of training steps.

    Args:
        strength: the number or schedule.
        **kwargs: the arguments of `Transform`.
    """

    def __init__(self, strength: Strength, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(strength, keras.optimizers.schedules.LearningRateSchedule):
            strength = check_float(type(self).__name__, "strength", strength, minimum=0.0)
        else:
            self.step = self.add_weight((), "zeros", "int32", trainable=False, name="step")
        self.strength = strength

    def strength_now(self) -> float | Tensor:
        """The strength in this step; counts it."""
        if isinstance(self.strength, float):
            return self.strength
        strength = ops.cast(self.strength(self.step.value), "float32")
        # Last, since on PyTorch the value read above is the variable's own memory.
        self.step.assign(self.step.value + 1)
        return strength

    def get_config(self) -> dict[str, Any]:
        strength = self.strength
        if not isinstance(strength, float):
            strength = keras.saving.serialize_keras_object(strength)
        return {"strength": strength, **super().get_config()}


# Transforms that do something in one of every so many steps.


class PeriodicTransform(Transform):
    """A transform that acts in every k-th step, counted by its variable `step`.

    Where the training loop can, it counts too, and a step is compiled or run without what it does not do: the training
    loop calls `start_counting`, then `tick` before each step. Elsewhere `due_now` is a tensor, for `keras.ops.cond`.

    Args:
        every: number k >= 1 of steps.
        **kwargs: the arguments of `Transform`.
    """

    counts_steps = True

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


# Transforms that need the size of the training set.


class SizedTransform(Transform):
    """A transform with the variable `examples`: the number of training examples, found by `fit` if `automatic`.

    Args:
        automatic: whether `fit` is to find the number.
        remedy: the argument that gives it otherwise, for messages.
        **kwargs: the arguments of `Transform`.
    """

    def __init__(self, *, automatic: bool, remedy: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.needs_examples, self._remedy = automatic, remedy
        self.examples = self.add_weight((), "zeros", "float32", trainable=False, name="examples")

    def begin_fit(self, examples: int | None) -> None:
        if examples is None:
            raise ValueError(
                f"{type(self).__name__}: the number of training examples is not known of a generator or data set "
                f"without a length. Give it: {self._remedy}."
            )
        self.examples.assign(examples)

    def check_ready(self) -> None:
        if self.needs_examples and float(ops.convert_to_numpy(self.examples.value)) == 0.0:
            raise ValueError(
                f"{type(self).__name__}: the number of training examples is found by `fit`. "
                f"Outside of it, give {self._remedy}."
            )
