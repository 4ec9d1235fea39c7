"""Training one candidate on one split."""

from __future__ import annotations

import contextlib
import math
import random
import time
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kriterion.losses import AdaptiveRobust
from kriterion.study.candidates import Candidate
from kriterion.study.data import Data, Fold
from kriterion.study.metrics import metrics_of, selection_metric
from kriterion.study.models import ModelFunction
from kriterion.trainer import Trainer

FINISHED = "finished"
DIVERGED = "diverged"


@dataclass
class Run:
    """What came of one training: every epoch, and test metrics at the epoch that was best on validation."""

    candidate: str
    seed: int
    status: str
    best_epoch: int
    test: dict[str, float]
    epochs: list[dict[str, Any]]
    seconds_per_epoch: float
    specification: dict[str, Any] = field(default_factory=dict)


class _Batches(keras.utils.PyDataset):
    """Training batches in an order that depends on the seed and the epoch alone."""

    def __init__(self, fold: Fold, batch_size: int, seed: int) -> None:
        super().__init__()
        self.fold, self.batch_size = fold, batch_size
        self.random = np.random.default_rng([seed, 2])
        self.on_epoch_end()

    def __len__(self) -> int:
        return math.ceil(len(self.fold.x_train) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return self.fold.x_train[rows], self.fold.y_train[rows]

    def on_epoch_end(self) -> None:
        self.order = self.random.permutation(len(self.fold.x_train))


class _Recorder(keras.callbacks.Callback):
    """Records each epoch, and keeps the weights of the one that is best on validation."""

    def __init__(self, data: Data, fold: Fold, batch_size: int) -> None:
        super().__init__()
        self.data, self.fold, self.batch_size = data, fold, batch_size
        self.metric = selection_metric(data.task)
        self.epochs: list[dict[str, Any]] = []
        self.best = math.inf
        self.best_epoch = -1
        self.best_weights: list[np.ndarray] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = time.perf_counter() - self.started
        model = self.model.model
        value = _judge(self.data, self.fold, model, self.batch_size, validation=True)[self.metric.key]
        row = {"epoch": epoch, "loss": float(logs["loss"]), "seconds": seconds, self.metric.key: value}
        if isinstance(self.model.loss, AdaptiveRobust):
            row["alpha"] = float(np.mean(self.model.loss.alpha))
            row["scale"] = float(np.mean(self.model.loss.scale))
        self.epochs.append(row)
        score = -value if self.metric.greater_is_better else value
        if score < self.best:
            self.best, self.best_epoch, self.best_weights = score, epoch, model.get_weights()
        if not math.isfinite(row["loss"]):
            self.model.stop_training = True


def build_trainer(candidate: Candidate, model: keras.Model, task: str) -> Trainer:
    """A compiled trainer of the model on the candidate's objective."""
    trainer = Trainer(model)
    trainer.compile(
        optimizer=candidate.optimizer.build(),
        loss=candidate.loss_for(task).build(),
        transforms=[transform.build() for transform in candidate.transforms],
    )
    return trainer


class Engine:
    """Trains one candidate with seed after seed.

    A trainer is compiled once for a number of features and set back to its beginnings for each seed: compiling takes
    longer than training on small data. Results depend on the candidate and the seed alone, not on the seeds before.
    """

    def __init__(
        self, candidate: Candidate, data: Data, build_model: ModelFunction, *, epochs: int, batch_size: int,
        corrupt_targets: float,
    ) -> None:  # fmt: skip
        self.candidate, self.data, self.build_model = candidate, data, build_model
        self.epochs, self.batch_size, self.corrupt_targets = epochs, batch_size, corrupt_targets
        self._trainers: dict[int, tuple[Trainer, list[np.ndarray]]] = {}

    def run(self, seed: int, on_epoch: Any = None) -> Run:
        """Train with this seed; `on_epoch()` is called after each epoch."""
        fold = self.data.fold(seed, self.corrupt_targets)
        trainer = self._fresh_trainer(fold, seed)
        recorder = _Recorder(self.data, fold, self.batch_size)
        callbacks: list[Any] = [recorder]
        if on_epoch is not None:
            callbacks.append(keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: on_epoch()))
        if keras.backend.backend() == "torch":
            # Where a user's model has unseeded dropout.
            keras.utils.set_random_seed(seed)
        trainer.fit(
            _Batches(fold, self.batch_size, seed), epochs=self.epochs, verbose=0, shuffle=False, callbacks=callbacks
        )
        finished = recorder.best_epoch >= 0 and math.isfinite(recorder.epochs[-1]["loss"])
        if finished:
            trainer.model.set_weights(recorder.best_weights)
            test = _judge(self.data, fold, trainer.model, self.batch_size, validation=False)
        else:
            test = {metric.key: math.nan for metric in metrics_of(self.data.task)}
        # The first epoch compiles.
        seconds = [row["seconds"] for row in recorder.epochs][1:] or [recorder.epochs[0]["seconds"]]
        return Run(
            self.candidate.name,
            seed,
            FINISHED if finished else DIVERGED,
            recorder.best_epoch,
            test,
            recorder.epochs,
            float(np.median(seconds)),
            self.candidate.to_dict(),
        )

    def _fresh_trainer(self, fold: Fold, seed: int) -> Trainer:
        """A trainer as if newly made: the seed's initial weights and seeds, everything else as after compiling."""
        features = fold.x_train.shape[1]
        with _seeded(seed):
            model = self.build_model(features, self.data.outputs)
        if features not in self._trainers:
            trainer = build_trainer(self.candidate, model, self.data.task)
            trainer.prepare(fold.x_train[: self.batch_size], fold.y_train[: self.batch_size])
            self._trainers[features] = trainer, [variable.numpy() for variable in _state(trainer)]
        trainer, initial = self._trainers[features]
        for variable, value in zip(_state(trainer), initial, strict=True):
            variable.assign(value)
        for variable, value in zip(trainer.model.variables, model.variables, strict=True):
            variable.assign(value)
        for index, transform in enumerate(trainer.transforms):
            transform_seed = np.random.SeedSequence([seed, 3, index]).generate_state(1)[0] % 2**31
            transform.seed_generator.state.assign(np.array([transform_seed, 0]))
        return trainer


def _state(trainer: Trainer) -> list[keras.Variable]:
    return [*trainer.variables, *trainer.optimizer.variables]


@contextlib.contextmanager
def _seeded(seed: int) -> Any:
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


def _judge(data: Data, fold: Fold, model: keras.Model, batch_size: int, *, validation: bool) -> dict[str, float]:
    """Metrics on validation (only the one that selects the epoch) or test rows, in the target's units."""
    x, y = (fold.x_validation, fold.y_validation) if validation else (fold.x_test, fold.y_test)
    if len(x) <= 4096:
        predicted = keras.ops.convert_to_numpy(model.predict_on_batch(x))
    else:
        predicted = model.predict(x, batch_size=batch_size, verbose=0)
    predicted = np.asarray(predicted, dtype="float64")
    metrics = (selection_metric(data.task),) if validation else metrics_of(data.task)
    if not np.isfinite(predicted).all():
        return {metric.key: math.nan for metric in metrics}
    if data.task == "regression":
        truth = y[:, 0].astype("float64") * fold.target_scale + fold.target_center
        predicted = predicted[:, 0] * fold.target_scale + fold.target_center
    else:
        truth = y.argmax(axis=1)
    return {metric.key: metric.function(truth, predicted) for metric in metrics}
