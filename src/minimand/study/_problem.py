"""Everything that the candidates of a study share: splits, initial weights, and the order of batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from minimand._state import training_state
from minimand.study._candidates import Candidate
from minimand.study._data import Data, Fold
from minimand.study._models import ModelFunction
from minimand.study._settings import Settings
from minimand.trainer import Trainer


class Problem:
    """Data, a network and the settings of its training.

    Args:
        data: from `load_data`.
        build_model: `build_model(features, outputs)` returns a network.
        settings: length of a training, batch size, corruption and patience.
    """

    def __init__(self, data: Data, build_model: ModelFunction, settings: Settings) -> None:
        self.data, self.build_model, self.settings = data, build_model, settings
        # Programs that `_vectorized` has compiled for this problem.
        self.programs: dict[Any, Any] = {}
        self._folds: dict[int, Fold] = {}
        self._weights: dict[int, list[np.ndarray]] = {}
        # The last trainer for each number of features.
        self._made: dict[int, _Made] = {}

    def __reduce__(self) -> Any:
        """Pickle only what another process cannot make again."""
        return Problem, (self.data, self.build_model, self.settings)

    def fold(self, seed: int) -> Fold:
        """The split of a seed."""
        if seed not in self._folds:
            self._folds[seed] = self.data.fold(seed, self.settings.corrupt_targets)
        return self._folds[seed]

    def alike(self, seeds: Sequence[int]) -> list[tuple[int, ...]]:
        """The seeds, grouped by the number of features of their folds, which rare categories may change."""
        by_features: dict[int, list[int]] = {}
        for seed in seeds:
            by_features.setdefault(self.fold(seed).x_train.shape[1], []).append(seed)
        return [tuple(part) for part in by_features.values()]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """(steps, batch) training rows. Each epoch is reshuffled; an incomplete last batch is dropped."""
        rows = len(self.fold(seed).x_train)
        batch = min(self.settings.batch_size, rows)
        order = np.random.default_rng([seed, 2, epoch]).permutation(rows)
        return order[: rows // batch * batch].reshape(-1, batch).astype("int32")

    def network(self, seed: int) -> keras.Model:
        """A new network with the seed's initial weights."""
        x = self.fold(seed).x_train
        # Keras's initializers draw their seeds from these generators. `keras.utils.set_random_seed` would import
        # TensorFlow wherever it is installed.
        states = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            model = self.build_model(x.shape[1], self.data.outputs)
            # A network without an input layer gets its weights from its first batch.
            if isinstance(model, keras.Model) and not model.built:
                model(x[:1])
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
        return model

    def weights(self, seed: int) -> list[np.ndarray]:
        """The initial values of all variables of a network, its seeds included."""
        if seed not in self._weights:
            self._weights[seed] = [variable.numpy() for variable in self.network(seed).variables]
        return self._weights[seed]

    def trainer(self, candidate: Candidate, seed: int) -> Trainer:
        """A compiled trainer of the candidate, with all its variables built."""
        trainer = build_trainer(candidate, self.network(seed), self.data.task)
        fold, rows = self.fold(seed), self.settings.batch_size
        trainer.prepare(fold.x_train[:rows], fold.y_train[:rows])
        for transform in trainer.transforms:
            if transform.needs_examples:
                # `fit` would count the examples of these batches.
                transform.begin_fit(self.order(seed, 0).size)
        return trainer

    def beginnings(self, candidate: Candidate, seeds: Sequence[int]) -> tuple[Trainer, list[list[np.ndarray]]]:
        """A trainer of the candidate, and the initial values of `training_state(trainer)` for each seed.

        The seeds' folds must have equal numbers of features. The values depend on the candidate and the seed alone.
        """
        features = self.fold(seeds[0]).x_train.shape[1]
        made = self._made.get(features)
        if made is None or made.candidate != candidate:
            trainer = self.trainer(candidate, seeds[0])
            made = self._made[features] = _Made(candidate, trainer, seeds[0], _values(trainer))
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


def build_trainer(candidate: Candidate, model: keras.Model, task: str) -> Trainer:
    """A trainer of the model that is compiled for the candidate's objective.

    Use it to train a candidate outside of a study.

    Args:
        candidate: the objective.
        model: the network.
        task: `"regression"` or `"classification"`.

    Returns:
        The trainer.

    Raises:
        StudyError: the candidate names a component that does not exist, or gives it wrong arguments.

    Examples:
        >>> from minimand.study import build_trainer, default_candidates, mlp
        >>> build_trainer(default_candidates()[0], mlp(4, 1), "regression").loss.name
        'mean_squared_error'
    """
    trainer = Trainer(model)
    trainer.compile(
        optimizer=candidate.optimizer.build(),
        loss=candidate.loss_for(task).build(),
        transforms=[transform.build() for transform in candidate.transforms],
        loss_learning_rate=candidate.loss_learning_rate,
    )
    return trainer
