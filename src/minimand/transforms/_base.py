"""The base classes of all transforms, of those with `select`, and of those that need the size of the training set."""

from __future__ import annotations

import re
from itertools import compress
from typing import Any, TypeAlias

import keras
from keras import ops

from minimand._batches import Batch
from minimand._config import config_of, from_config
from minimand._objective import Objective, Weights
from minimand._selection import Select, check_select, selection
from minimand._state import StateLayer
from minimand._validation import check_float
from minimand.backend import Tensor

__all__ = ["Batch", "Objective", "Schedule", "Transform", "Weights"]

Schedule: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule
"""A number, or a function of the number of training steps that gives one."""


class Transform:
    """Base class of the transforms of an objective: L(w) -> T(L)(w).

    Derive from `Transform` to change what a `Trainer` minimises. A subclass implements
    `apply(objective) -> objective`. Transforms in a list compose like functions, the first being applied first:
    `transforms=[A, B]` minimises `B(A(L))`.

    Variables made with `add_weight` and random numbers drawn with `self.seed_generator` belong to the trainer's
    state: they are saved, restored, and advance once a step.

    Args:
        select: the weights that the transform acts on ("kernels", "all" or a function of the variable), or None if it
            does not choose weights.
        seed: integer seed of `seed_generator`, or None for an unpredictable one.
        name: name of the transform; prefix of its variables' paths.

    Attributes:
        mask: for each trainable weight of the model, whether it is selected; only with `select`.
        selected: the selected variables; only with `select`.
        step: variable with the number of training steps, if `add_step_counter` was called; else None.

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

    def __init__(self, *, select: Select | None = None, seed: int | None = None, name: str | None = None) -> None:
        self.select = None if select is None else check_select(select, type(self).__name__)
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise TypeError(f"{type(self).__name__}: `seed` must be an integer or None. Received: seed={seed!r}")
        self.seed = seed
        self.state = StateLayer(name=name or _snake_case(type(self).__name__))
        self.state.seed_generator = keras.random.SeedGenerator(seed)
        self.step: keras.Variable | None = None
        self.built = False
        # Weights of the model and the variables that belong to them, by the weight's id and the kind of the variable.
        self._of_weights: dict[tuple[int, str], tuple[keras.Variable, keras.Variable]] = {}
        self._numbers: dict[int, int] = {}
        self._restored: list[tuple[int, str, bool]] = []

    # For subclasses: variables, steps and schedules.

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

    def add_weight_like(
        self, weight: keras.Variable, kind: str, initializer: Any = "zeros", *, trainable: bool = True
    ) -> keras.Variable:
        """Make a float32 variable that belongs to a weight of the model, or return the one that was made before.

        Call it in `build`, after `super().build(model)`, for each weight that the transform acts on. The variable has
        the shape of the weight. While the weight is frozen, the variable keeps its value.
        """
        if (id(weight), kind) not in self._of_weights:
            name = f"{weight.path.replace('/', '_')}_{kind}"
            made = self.add_weight(weight.shape, initializer, "float32", trainable=trainable, name=name)
            self._of_weights[id(weight), kind] = weight, made
            self._set_key(id(weight), kind)
        variable = self.variable_of(weight, kind)
        variable.trainable = trainable
        return variable

    def _set_key(self, weight: int, kind: str) -> None:
        _, variable = self._of_weights[weight, kind]
        self.state.keys[id(variable)] = f"{self._numbers[weight]}_{kind}"

    def variable_of(self, weight: keras.Variable, kind: str) -> keras.Variable:
        """The variable that `add_weight_like` made."""
        return self._of_weights[id(weight), kind][1]

    def add_step_counter(self) -> None:
        """Make the variable `step`, which `next_step` counts, if it does not exist yet."""
        if self.step is None:
            self.step = self.add_weight((), "zeros", "int32", trainable=False, name="step")

    def next_step(self) -> Tensor:
        """The number of training steps before this one, after `add_step_counter`; counts this step."""
        assert self.step is not None, "call `add_step_counter` first"
        following = self.step.value + 1
        self.step.assign(following)
        # Not the value read above, which on PyTorch may be the variable's own memory.
        return following - 1

    def check_schedule(self, name: str, value: Any) -> Schedule:
        """Return an argument that is a number >= 0 or a schedule of one, or raise; for a schedule, count steps."""
        if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
            self.add_step_counter()
            return value
        return check_float(type(self).__name__, name, value, minimum=0.0)

    def value_now(self, schedule: Schedule) -> float | Tensor:
        """A number as it is, or the value of a schedule in this step, which is counted."""
        return schedule if isinstance(schedule, float) else value_at(schedule, self.next_step())

    # Called by the trainer.

    def bind(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Called by `compile`, before `build`, with the optimizer that it was given."""

    def build(self, model: keras.Model) -> None:
        """Called after each `compile` with the built model, to check and to prepare; make variables the first time.

        With `select`, it makes `mask`, which says for each trainable weight of the model whether it is selected, and
        `selected`, the selected variables.
        """
        if self.select is not None:
            self.mask = selection(model.trainable_variables, self.select, type(self).__name__)
            self.selected: list[keras.Variable] = list(compress(model.trainable_variables, self.mask))
        weights = model.weights
        self._numbers = {id(weight): number for number, weight in enumerate(weights)}
        if not {weight for weight, _ in self._of_weights} <= set(self._numbers):
            raise ValueError(
                f"{type(self).__name__}: a transform with variables for each weight serves one model. Received: "
                f"{model.name}, after another model. Make a new transform for it."
            )
        for number, kind, trainable in self._restored:
            self.add_weight_like(weights[number], kind, trainable=trainable)
        self._restored = []
        for (weight, kind), (_, variable) in self._of_weights.items():
            # Layers may have got more weights since, and the transform may act on others.
            self._set_key(weight, kind)
            variable.trainable = False

    def built_state(self) -> list[tuple[int, str, bool]]:
        """For a file: weight number, kind and trainability of each variable that belongs to a weight."""
        trainable = {id(variable) for variable in self.state._trainable_variables}
        return [
            (self._numbers[weight], kind, id(variable) in trainable)
            for (weight, kind), (_, variable) in self._of_weights.items()
        ]

    def restore_built_state(self, state: list[tuple[int, str, bool]]) -> None:
        """Let `build` first make the variables that the transform of this `built_state()` had, in the same order."""
        self._restored = state

    needs_examples = False
    """Tell whether `fit` must count the training examples, which may read batches, and call `begin_fit`."""

    def begin_fit(self, examples: int | None) -> None:
        """Called by `fit` if `needs_examples`, with the number of training examples, or None if it is not known."""

    def check_ready(self) -> None:
        """Called before the first step, to raise if something is missing that only `fit` can give."""

    splits_batches = False
    """Tell whether the transform has chosen by itself to take parts of a batch, whose loss must be a mean."""

    counts_steps = False
    """Tell whether the transform acts in some steps only; a loop that counts steps then calls three methods."""

    def start_counting(self) -> None:
        """Called by the training loop when it takes over the count of steps."""

    def tick(self) -> bool:
        """Called before each step of such a loop: whether the transform acts in the step."""
        return True

    def stop_counting(self) -> None:
        """Called after each step of such a loop."""

    def apply(self, objective: Objective) -> Objective:
        """The transformed objective."""
        raise NotImplementedError(f"{type(self).__name__} must implement `apply(self, objective)`.")

    draws_weights = False
    """Tell whether `sample` draws weights from a law."""

    def sample(self, weights: Weights, seed: Tensor) -> Weights:
        """Weights drawn for a prediction, from those of `fit`; the same weights if the transform draws none.

        Args:
            weights: values for the model's trainable variables.
            seed: two integers, as `keras.random.SeedGenerator.next` returns.
        """
        return weights

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal transform."""
        return config_of(self, base=Transform)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """A transform made from `get_config()`."""
        return from_config(cls, config)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def value_at(schedule: Schedule, step: Any) -> float | Tensor:
    """A number as it is, or the value of a schedule after so many steps."""
    return schedule if isinstance(schedule, float) else ops.cast(schedule(step), "float32")


class SizedTransform(Transform):
    """A transform with the variable `training_examples`, the number of training examples, if `fit` must find it.

    Args:
        automatic: whether `fit` must find the number.
        remedy: the argument that gives the number otherwise, for messages.
        **kwargs: the arguments of `Transform`.
    """

    def __init__(self, *, automatic: bool, remedy: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.needs_examples, self._remedy = automatic, remedy
        self.training_examples = self.add_weight((), "zeros", "float32", trainable=False, name="examples")

    def begin_fit(self, examples: int | None) -> None:
        if examples is None:
            raise ValueError(
                f"{type(self).__name__}: cannot infer the number of training examples of an epoch from what "
                "`fit` is given. Received: a source without a length, or weights of 0 in an unknown part of it. "
                f"Pass {self._remedy}."
            )
        self.training_examples.assign(examples)

    def check_ready(self) -> None:
        if self.needs_examples and float(ops.convert_to_numpy(self.training_examples.value)) == 0.0:
            raise ValueError(
                f"{type(self).__name__}: the number of training examples is found by `fit`. Received: a step outside "
                f"of `fit`. Pass {self._remedy}."
            )
