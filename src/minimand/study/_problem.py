"""What all candidates of a study have in common: splits, initial weights, the order of batches, the rules."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from minimand import backend
from minimand._state import training_state
from minimand.study._candidates import Candidate
from minimand.study._data import Data, Fold
from minimand.study._metrics import Metric, selection_metric, selection_score
from minimand.study._models import ModelFunction
from minimand.trainer import Trainer


class Problem:
    """Data, a network, and how it is trained.

    Args:
        data: from `load_data`.
        build_model: `build_model(features, outputs)` gives a network.
        epochs: epochs of a training; the one that is best on validation counts.
        batch_size: rows of a step.
        corrupt_targets: fraction of the training targets to corrupt.
        patience: epochs without a better one that end a training; None for no end.
    """

    def __init__(
        self,
        data: Data,
        build_model: ModelFunction,
        *,
        epochs: int,
        batch_size: int,
        corrupt_targets: float = 0.0,
        patience: int | None = None,
    ) -> None:
        self.data, self.build_model = data, build_model
        self.epochs, self.batch_size, self.patience = epochs, batch_size, patience
        self.corrupt_targets = corrupt_targets
        self._forget()

    def _forget(self) -> None:
        self._folds: dict[int, Fold] = {}
        self._weights: dict[int, list[np.ndarray]] = {}
        self._judges: dict[tuple[int, ...], Any] = {}
        # Of the last candidate, by number of features.
        self._candidate: Candidate | None = None
        self._made: dict[int, _Made] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without what can be made again."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @property
    def metric(self) -> Metric:
        """What picks the best epoch."""
        return selection_metric(self.data.task)

    def fold(self, seed: int) -> Fold:
        """The split of a seed."""
        if seed not in self._folds:
            self._folds[seed] = self.data.fold(seed, self.corrupt_targets)
        return self._folds[seed]

    def alike(self, seeds: Sequence[int]) -> list[tuple[int, ...]]:
        """The seeds by the number of features of their folds, which categories may make different."""
        by_features: dict[int, list[int]] = {}
        for seed in seeds:
            by_features.setdefault(self.fold(seed).x_train.shape[1], []).append(seed)
        return [tuple(part) for part in by_features.values()]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """(steps, batch) training rows of an epoch, anew each time; the few that don't fill a batch are left out."""
        rows = len(self.fold(seed).x_train)
        batch = min(self.batch_size, rows)
        order = np.random.default_rng([seed, 2, epoch]).permutation(rows)
        return order[: rows // batch * batch].reshape(-1, batch).astype("int32")

    def network(self, seed: int) -> keras.Model:
        """A new network with the seed's initial weights."""
        x = self.fold(seed).x_train
        with _seeded(seed):
            model = self.build_model(x.shape[1], self.data.outputs)
            # Without an input layer its weights begin at the first batch.
            if isinstance(model, keras.Model) and not model.built:
                model(x[:1])
        return model

    def weights(self, seed: int) -> list[np.ndarray]:
        """The values of a network's variables, its seeds among them, before training."""
        if seed not in self._weights:
            self._weights[seed] = [variable.numpy() for variable in self.network(seed).variables]
        return self._weights[seed]

    def trainer(self, candidate: Candidate, seed: int) -> Trainer:
        """A compiled trainer of the candidate that has all its variables."""
        trainer = build_trainer(candidate, self.network(seed), self.data.task)
        fold = self.fold(seed)
        trainer.prepare(fold.x_train[: self.batch_size], fold.y_train[: self.batch_size])
        for transform in trainer.transforms:
            if transform.needs_examples:
                # As `fit` finds it for these batches.
                transform.begin_fit(self.order(seed, 0).size)
        return trainer

    def beginnings(self, candidate: Candidate, seeds: Sequence[int]) -> tuple[Trainer, list[list[np.ndarray]]]:
        """A trainer of the candidate, and for each seed the values of `training_state(trainer)` before training.

        Of folds with equal numbers of features. Results depend on the candidate and the seed alone.
        """
        if candidate != self._candidate:
            self._candidate, self._made = candidate, {}
        features = self.fold(seeds[0]).x_train.shape[1]
        if features not in self._made:
            self._made[features] = _Made(self.trainer(candidate, seeds[0]), seeds[0])
        made = self._made[features]
        return made.trainer, [self._beginning(candidate, made, seed) for seed in seeds]

    def _beginning(self, candidate: Candidate, made: _Made, seed: int) -> list[np.ndarray]:
        # Building takes longer than training on small data. It is needed where other values than the network's (noise
        # in proportion to initial weights, say) depend on the seed, which two seeds show.
        if made.shared or seed == made.seed:
            values = made.values
        else:
            values = [variable.numpy() for variable in training_state(self.trainer(candidate, seed))]
            if made.shared is None:
                made.shared = made.same_beside_seeded(values)
        own = dict(zip(map(id, made.trainer.model.variables), self.weights(seed), strict=True))
        for index, transform in enumerate(made.trainer.transforms):
            number = np.random.SeedSequence([seed, 3, index]).generate_state(1)[0] % 2**31
            generator = transform.seed_generator.state
            own[id(generator)] = np.array([number, 0], generator.dtype)
        return [own.get(id(v), value) for v, value in zip(training_state(made.trainer), values, strict=True)]

    def judge(self, seeds: Sequence[int]) -> Any:
        """A `Judge` of networks trained on these seeds' folds, whose numbers of features are equal."""
        if tuple(seeds) not in self._judges:
            folds = [self.fold(seed) for seed in seeds]
            names = ("x_train", "y_train", "x_validation", "y_validation", "x_test")
            data = backend.many_fits.FitData(*(np.stack([getattr(fold, name) for fold in folds]) for name in names))
            score = selection_score(self.data.task)
            self._judges[tuple(seeds)] = backend.many_fits.Judge(self.network(seeds[0]), data, score, self.patience)
        return self._judges[tuple(seeds)]


class _Made:
    """A trainer as it was made for a seed, and whether others' differ in the network and the noise alone."""

    def __init__(self, trainer: Trainer, seed: int) -> None:
        self.trainer, self.seed = trainer, seed
        self.values = [variable.numpy() for variable in training_state(trainer)]
        self.shared: bool | None = None

    def same_beside_seeded(self, values: list[np.ndarray]) -> bool:
        trainer = self.trainer
        seeded = {id(v) for v in trainer.model.variables} | {id(t.seed_generator.state) for t in trainer.transforms}
        pairs = zip(training_state(trainer), self.values, values, strict=True)
        return all(id(v) in seeded or np.array_equal(a, b, equal_nan=True) for v, a, b in pairs)


def build_trainer(candidate: Candidate, model: keras.Model, task: str) -> Trainer:
    """A compiled trainer of the model on the candidate's objective.

    Args:
        candidate: the objective.
        model: the network.
        task: `"regression"` or `"classification"`.

    Returns:
        The trainer.

    Raises:
        StudyError: the candidate names something that does not exist, or gives it wrong arguments.

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


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and NumPy's generators at a seed: what Keras's initializers take theirs from.

    `keras.utils.set_random_seed` would import TensorFlow wherever it is installed.
    """
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
