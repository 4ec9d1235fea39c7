"""Everything that the candidates of a study share: splits, initial weights, and the order of batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np

from minimand._state import training_state
from minimand.study._candidates import Candidate, Loss, Part, built
from minimand.study._data import Data, Fold, finished, take, weighted
from minimand.study._metrics import Metrics
from minimand.study._models import ModelFunction, Outputs, build, check_model
from minimand.study._settings import Settings, counted
from minimand.study._targets import Target
from minimand.trainer import Trainer

# Splits from this number on score the trials of tuning; a study of random splits judges on none of them.
TUNING_SPLIT = 10**9


class Problem:
    """Data, a network and the settings of its training.

    Args:
        data: from `load_data` or `array_data`.
        build_model: function that returns a network, as for `Study`.
        settings: length of a training, batch size, corruption and patience.

    Raises:
        StudyError: the network does not suit the data, or a metric is unknown.
    """

    def __init__(self, data: Data, build_model: ModelFunction, settings: Settings) -> None:
        self.data, self.build_model, self.settings = data, build_model, settings
        # Programs that `_vectorized` has compiled for this problem.
        self.programs: dict[Any, Any] = {}
        self._folds: dict[int, Fold] = {}
        self._weights: dict[int, list[np.ndarray]] = {}
        # The last trainer for each form of inputs.
        self._made: dict[Any, _Made] = {}

    def __reduce__(self) -> Any:
        """Pickle only what another process cannot make again."""
        return Problem, (self.data, self.build_model, self.settings)

    @cached_property
    def outputs(self) -> Outputs:
        """The outputs of the network, checked against the data."""
        x = take(self._raw_fold(0, None).x, slice(0, 4))
        return check_model(lambda: self._network(0, x), x, self.data.targets)

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The targets in the order of the network's outputs."""
        pairs = zip(self.outputs.targets, self.outputs.units, strict=True)
        return tuple(self.data.targets[index].widened(units) for index, units in pairs)

    @property
    def inputs(self) -> str:
        """The shapes of a row's inputs in words."""
        words = []
        for path, values in keras.tree.flatten_with_path(self.fold(0).x):
            shape = values.shape[1:] or (1,)
            size = counted(shape[0], "feature") if len(shape) == 1 else " x ".join(map(str, shape))
            words.append(" ".join([*map(str, path), size]))
        return ", ".join(words)

    @cached_property
    def usual_loss(self) -> Loss:
        """The usual loss of each output."""
        usual = [_usual_loss(target, units) for target, units in zip(self.targets, self.outputs.units, strict=True)]
        return self.outputs.pack(usual)

    @cached_property
    def metrics(self) -> Metrics:
        """The metrics of these targets."""
        return Metrics(self.targets, self.settings.metric, self.settings.select)

    def split(self, seed: int) -> int:
        """The number of a seed's split; `repeats` seeds in a row share one."""
        number = seed // self.settings.repeats
        # Tuning has splits of its own only where there are more than the study judges on.
        finite = self.data.splits.count or (self.settings.seeds if self.data.splits.kind == "time" else None)
        return number if finite is None else number % finite

    def _raw_fold(self, seed: int, units: Sequence[int] | None) -> Fold:
        count, corrupt = self.settings.seeds, self.settings.corrupt_targets
        return self.data.fold(self.split(seed), count=count, corrupt_targets=corrupt, units=units)

    def fold(self, seed: int) -> Fold:
        """The split of a seed, with targets in the order and form of the network's outputs."""
        split = self.split(seed)
        if split not in self._folds:
            order, units = self.outputs.targets, self.outputs.units
            fold = self._raw_fold(seed, [units[order.index(index)] for index in range(len(order))])
            self._folds[split] = Fold(
                fold.x,
                tuple(fold.y[index] for index in order),
                tuple(fold.weights[index] for index in order),
                fold.split,
                tuple(fold.scaling[index] for index in order),
                tuple(fold.names[index] for index in order),
            )
        return self._folds[split]

    def batch(self, seed: int, rows: np.ndarray) -> tuple[Any, ...]:
        """Inputs, targets and, if there are any, weights of these rows, as `fit` takes them."""
        fold = self.fold(seed)
        return take(fold.x, rows), *self.packed([values[rows] for values in fold.y], fold.weights_of(rows))

    def packed(self, y: Sequence[Any], weights: Sequence[Any]) -> tuple[Any, ...]:
        """Targets and, if there are any, weights of the outputs in the network's structure."""
        if weights[0] is None:
            return (self.outputs.pack(y),)
        return self.outputs.pack(y), self.outputs.pack(weights)

    def alike(self, seeds: Sequence[int]) -> list[tuple[int, ...]]:
        """The seeds, grouped by the form of their folds, which rare categories and group sizes may change."""
        by_form: dict[Any, list[int]] = {}
        for seed in seeds:
            form = self.fold(seed).input_shape, len(self.sample(seed))
            by_form.setdefault(str(form), []).append(seed)
        return [tuple(part) for part in by_form.values()]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """(steps, batch) training rows. Each epoch is reshuffled; an incomplete last batch is dropped."""
        train = self.fold(seed).split.train
        batch = min(self.settings.batch_size, len(train))
        order = np.random.default_rng([seed, 2, epoch]).permutation(train)
        return order[: len(train) // batch * batch].reshape(-1, batch).astype("int32")

    def sample(self, seed: int) -> np.ndarray:
        """Rows that are like a training batch."""
        if self.data.stream is not None:
            return self.fold(seed).split.validation[: self.settings.batch_size]
        return self.order(seed, 0)[0]

    def examples(self, seed: int) -> int:
        """The number of training examples in an epoch."""
        return self.order(seed, 0).size if self.data.stream is None else self.data.stream.examples

    def stream(self, seed: int) -> Iterator[tuple[Any, ...]]:
        """Training batches of a stream, without end, as `fit` takes them."""
        stream, fold = self.data.stream, self.fold(seed)
        assert stream is not None
        while True:
            for x, y, weights in stream:
                own = [y[t.name] for t in self.targets] if isinstance(y, dict) else keras.tree.flatten(y)
                batch = [target.like(values) for target, values in zip(self.targets, own, strict=True)]
                every = zip(batch, self.outputs.units, fold.scaling, strict=True)
                encoded = [target.encoded(units, *scaling) for target, units, scaling in every]
                yield keras.tree.map_structure(finished, x), *self.packed(encoded, weighted(batch, weights))

    def network(self, seed: int) -> keras.Model:
        """A new network with the seed's initial weights."""
        return self._network(seed, take(self.fold(seed).x, slice(0, 4)))

    def _network(self, seed: int, x: Any) -> keras.Model:
        input_shape = keras.tree.map_structure(lambda values: tuple(values.shape[1:]), x)
        # Keras's initializers draw their seeds from these generators. `keras.utils.set_random_seed` would import
        # TensorFlow wherever it is installed.
        states = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.seed(seed)
        # The seeds of tuning times `repeats` may be greater.
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            return build(self.build_model, input_shape, self.data.outputs, x)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002

    def weights(self, seed: int) -> list[np.ndarray]:
        """The initial values of all variables of a network, its seeds included."""
        if seed not in self._weights:
            self._weights[seed] = [variable.numpy() for variable in self.network(seed).variables]
        return self._weights[seed]

    def trainer(self, candidate: Candidate, seed: int) -> Trainer:
        """A compiled trainer of the candidate, with all its variables built."""
        trainer = build_trainer(candidate, self.network(seed), self.usual_loss)
        trainer.prepare(*self.batch(seed, self.sample(seed)))
        for transform in trainer.transforms:
            if transform.needs_examples:
                # `fit` would count the examples of these batches.
                transform.begin_fit(self.examples(seed))
        return trainer

    def beginnings(self, candidate: Candidate, seeds: Sequence[int]) -> tuple[Trainer, list[list[np.ndarray]]]:
        """A trainer of the candidate, and the initial values of `training_state(trainer)` for each seed.

        The seeds' folds must be `alike`. The values depend on the candidate and the seed alone.
        """
        form = str(self.fold(seeds[0]).input_shape)
        made = self._made.get(form)
        if made is None or made.candidate != candidate:
            trainer = self.trainer(candidate, seeds[0])
            made = self._made[form] = _Made(candidate, trainer, seeds[0], _values(trainer))
        return made.trainer, [self._beginning(made, seed) for seed in seeds]

    def _beginning(self, made: _Made, seed: int) -> list[np.ndarray]:
        own = {id(v): value for v, value in zip(made.trainer.model.variables, self.weights(seed), strict=True)}
        for index, transform in enumerate(made.trainer.transforms):
            number = np.random.SeedSequence([seed, 3, index]).generate_state(1)[0] % 2**31
            generator = transform.seed_generator.state
            own[id(generator)] = np.array([number, 0], generator.dtype)
        variables, values = training_state(made.trainer), made.values
        # On small data a trainer takes longer to build than to train. A trainer of another seed is needed only where
        # values besides the network's depend on the seed, such as noise in proportion to initial weights; the second
        # seed shows whether they do.
        if made.shared is not True and seed != made.seed:
            values = _values(self.trainer(made.candidate, seed))
            if made.shared is None:
                pairs = zip(variables, made.values, values, strict=True)
                made.shared = all(id(v) in own or np.array_equal(a, b, equal_nan=True) for v, a, b in pairs)
        return [own.get(id(v), value) for v, value in zip(variables, values, strict=True)]


def _usual_loss(target: Target, units: int) -> Part:
    if target.task == "regression":
        return Part("MeanSquaredError")
    return Part("CategoricalCrossentropy" if target.has_classes and units > 1 else "BinaryCrossentropy")


@dataclass
class _Made:
    """A candidate's trainer, its seed, its values, and whether other seeds share the values that no generator draws."""

    candidate: Candidate
    trainer: Trainer
    seed: int
    values: list[np.ndarray]
    shared: bool | None = None


def _values(trainer: Trainer) -> list[np.ndarray]:
    return [variable.numpy() for variable in training_state(trainer)]


def build_trainer(candidate: Candidate, model: keras.Model, usual_loss: Loss) -> Trainer:
    """A trainer of the model that is compiled for the candidate's objective.

    Use it to train a candidate outside of a study.

    Args:
        candidate: the objective.
        model: the network.
        usual_loss: the loss of candidates that name none, such as `Part("MeanSquaredError")`.

    Returns:
        The trainer.

    Raises:
        StudyError: the candidate names a component that does not exist, or gives it wrong arguments.

    Examples:
        >>> from minimand.study import Part, build_trainer, default_candidates, mlp
        >>> candidate = default_candidates()[0]
        >>> build_trainer(candidate, mlp((4,), 1), Part("MeanSquaredError")).loss.name
        'mean_squared_error'
    """
    trainer = Trainer(model)
    trainer.compile(
        optimizer=candidate.optimizer.build(),
        loss=built(candidate.loss_for(usual_loss)),
        transforms=[transform.build() for transform in candidate.transforms],
        loss_learning_rate=candidate.loss_learning_rate,
    )
    return trainer
