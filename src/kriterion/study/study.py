"""A study: candidates times seeds, trained and stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from kriterion.study.candidates import Candidate
from kriterion.study.comparison import Comparison
from kriterion.study.data import Data
from kriterion.study.engine import Engine, Run
from kriterion.study.errors import StudyError
from kriterion.study.metrics import Metric, metrics_of
from kriterion.study.models import check_model, model_function
from kriterion.study.storage import Storage


@dataclass(frozen=True)
class Settings:
    """How a study is made.

    Args:
        seeds: number of splits, each with its own initial weights and batch order; at least 2.
        epochs: epochs of each training; the epoch that is best on validation rows counts.
        batch_size: examples a step.
        corrupt_targets: fraction in [0, 1) of the training targets to corrupt.
        model: `module:function` that builds the network, or None for a small MLP.
        metric: key of the metric that the verdict is about, or None for the task's first.
    """

    seeds: int = 10
    epochs: int = 60
    batch_size: int = 32
    corrupt_targets: float = 0.0
    model: str | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        for name, minimum in (("seeds", 2), ("epochs", 1), ("batch_size", 1)):
            if getattr(self, name) < minimum:
                option = name.replace("_", "-")
                raise StudyError(f"--{option} must be at least {minimum}. Received: {getattr(self, name)}")
        if not 0.0 <= self.corrupt_targets < 1.0:
            raise StudyError(f"--corrupt-targets must be in [0, 1). Received: {self.corrupt_targets}")


class Study:
    """Compare candidates on data: same splits, initial weights and batch orders for all.

    Args:
        data: from `load_data`.
        candidates: the first one is the baseline.
        settings: how many seeds, epochs and so on.
        folder: where runs are stored as they finish, and found again by the same study.

    Raises:
        StudyError: the model does not fit, the metric is unknown, or the folder holds a different study.
    """

    def __init__(self, data: Data, candidates: tuple[Candidate, ...], settings: Settings, folder: Path) -> None:
        self.data, self.candidates, self.settings = data, candidates, settings
        self.metrics = metrics_of(data.task)
        self.metric = self._metric(settings.metric)
        self._build_model = model_function(settings.model)
        fold = data.fold(0)
        self._test_over_train = fold.test_over_train
        check_model(self._build_model(fold.x_train.shape[1], data.outputs), fold.x_train, data.outputs)
        self.storage = Storage(folder, self._identity())
        self.runs: list[Run] = []

    def _identity(self) -> dict[str, Any]:
        return {
            "data": self.data.digest(),
            "name": self.data.name,
            "task": self.data.task,
            "backend": keras.backend.backend(),
            "epochs": self.settings.epochs,
            "batch_size": self.settings.batch_size,
            "corrupt_targets": self.settings.corrupt_targets,
            "model": self.settings.model or "mlp",
        }

    def _metric(self, key: str | None) -> Metric:
        if key is None:
            return self.metrics[0]
        for metric in self.metrics:
            if metric.key == key:
                return metric
        raise StudyError(f"--metric must be one of {', '.join(m.key for m in self.metrics)}. Received: {key!r}")

    def run(self, on_epoch: Callable[[str, int], None] = lambda candidate, epochs: None) -> Comparison:
        """Train what is not stored yet, and compare. `on_epoch(candidate, n)` is told of n epochs as they pass."""
        self.runs = []
        for candidate in self.candidates:
            engine = Engine(
                candidate,
                self.data,
                self._build_model,
                epochs=self.settings.epochs,
                batch_size=self.settings.batch_size,
                corrupt_targets=self.settings.corrupt_targets,
            )
            for seed in range(self.settings.seeds):
                run = self.storage.load(candidate.name, seed, candidate.to_dict())
                passed = 0
                if run is None:

                    def tell(name: str = candidate.name) -> None:
                        nonlocal passed
                        passed += 1
                        on_epoch(name, 1)

                    run = engine.run(seed, tell)
                    self.storage.save(run)
                # A stored run's epochs, or those that a diverged one left out.
                on_epoch(candidate.name, self.settings.epochs - passed)
                self.runs.append(run)
        self.storage.write_results(self.runs)
        return Comparison(self.candidates, self.runs, self.metrics, self.metric, self._test_over_train)
