"""The one idea: a transform maps an objective to an objective."""

from __future__ import annotations

import re
from typing import Any

import keras

from kriterion._objective import Batch, Objective, Weights
from kriterion._state import StateLayer
from kriterion.backend import Tensor

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
        >>> import keras, kriterion
        >>> @keras.saving.register_keras_serializable(package="example")
        ... class Scaled(kriterion.transforms.Transform):
        ...     "L -> 2 L"
        ...     def apply(self, objective):
        ...         def scaled(weights, batch):
        ...             loss, outcome = objective(weights, batch)
        ...             return 2.0 * loss, outcome
        ...         return scaled
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> trainer = kriterion.Trainer(model)
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

    def apply(self, objective: Objective) -> Objective:
        """The transformed objective."""
        raise NotImplementedError(f"{type(self).__name__} must implement `apply(self, objective)`.")

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
