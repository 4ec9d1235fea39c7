"""A study: candidates times seeds, trained and stored."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import polars as pl

from kriterion.study.candidates import Candidate
from kriterion.study.comparison import Comparison
from kriterion.study.data import Data, load_data
from kriterion.study.engines import Engine, engine_named
from kriterion.study.errors import StudyError
from kriterion.study.metrics import Metric, metrics_of
from kriterion.study.models import ModelFunction, check_model, model_function, model_identity
from kriterion.study.problem import Problem
from kriterion.study.run import Run
from kriterion.study.storage import Storage
from kriterion.study.training import OnEpochs, divided


@dataclass(frozen=True)
class Settings:
    """How a study is made.

    Args:
        seeds: number of splits, each with its own initial weights and batch order; at least 2.
        epochs: epochs of each training; the epoch that is best on validation rows counts.
        batch_size: examples a step.
        corrupt_targets: fraction in [0, 1) of the training targets to corrupt.
        metric: key of the metric that the verdict is about, or None for the task's first.
        patience: epochs without a better one that end a training; None for no end.
    """

    seeds: int = 10
    epochs: int = 60
    batch_size: int = 32
    corrupt_targets: float = 0.0
    metric: str | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, minimum in (("seeds", 2), ("epochs", 1), ("batch_size", 1), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise StudyError(f"--{name.replace('_', '-')} must be at least {minimum}. Received: {value}")
        if not 0.0 <= self.corrupt_targets < 1.0:
            raise StudyError(f"--corrupt-targets must be in [0, 1). Received: {self.corrupt_targets}")


class Study:
    """Compare candidates on data: same splits, initial weights and batch orders for all.

    Args:
        build_model: `build_model(features, outputs)` gives a Keras model, as `mlp` does; or `"module:function"`.
        data: from `load_data`, or what it takes.
        candidates: the first one is the baseline.
        settings: how many seeds, epochs and so on.
        folder: where runs are stored as they finish, and found again by the same study; by default `studies/NAME`.
        engine: where runs are trained: an `Engine` or its name; by default this process on JAX, which trains all seeds
            of a candidate at once, and a process for each core elsewhere.

    Raises:
        StudyError: the model does not fit, the metric is unknown, or the folder holds a different study.

    Example:
    >>> import tempfile
    >>> from kriterion.study import LocalEngine, Settings, Study, default_candidates, mlp
    >>> settings = Settings(seeds=2, epochs=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     study = Study(mlp, "iris", default_candidates()[:2], settings, folder=folder, engine=LocalEngine())
    ...     comparison = study.run()
    >>> study.table()["candidate"].to_list()
    ['baseline', 'gradient-variance']
    """

    def __init__(
        self,
        build_model: ModelFunction | str,
        data: Data | str,
        candidates: Sequence[Candidate],
        settings: Settings | None = None,
        *,
        folder: Path | str | None = None,
        engine: Engine | str = "auto",
    ) -> None:
        self.data = load_data(data) if isinstance(data, str) else data
        self.candidates, self.settings = tuple(candidates), settings or Settings()
        self.metrics = metrics_of(self.data.task)
        self.metric = self._metric(self.settings.metric)
        self.build_model = model_function(build_model) if isinstance(build_model, str) else build_model
        self.engine = engine_named(engine) if isinstance(engine, str) else engine
        self.problem = Problem(
            self.data,
            self.build_model,
            epochs=self.settings.epochs,
            batch_size=self.settings.batch_size,
            corrupt_targets=self.settings.corrupt_targets,
            patience=self.settings.patience,
        )
        fold = self.problem.fold(0)
        check_model(self.problem.network(0), fold.x_train, self.data.outputs)
        self.storage = Storage(Path(folder or Path("studies") / self.data.name), self._identity())
        self.runs: list[Run] = []
        self.comparison: Comparison | None = None

    def _identity(self) -> dict[str, Any]:
        return {
            "data": self.data.digest(),
            "name": self.data.name,
            "task": self.data.task,
            "backend": keras.backend.backend(),
            "epochs": self.settings.epochs,
            "batch_size": self.settings.batch_size,
            "patience": self.settings.patience,
            "corrupt_targets": self.settings.corrupt_targets,
            "model": model_identity(self.build_model),
        }

    def _metric(self, key: str | None) -> Metric:
        if key is None:
            return self.metrics[0]
        for metric in self.metrics:
            if metric.key == key:
                return metric
        raise StudyError(f"--metric must be one of {', '.join(m.key for m in self.metrics)}. Received: {key!r}")

    def run(
        self,
        on_epochs: OnEpochs = lambda candidate, epochs: None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> Comparison:
        """Train what is not stored yet, and compare.

        Args:
            on_epochs: `on_epochs(candidate, n)` is told of n epochs as they pass.
            on_wait: called if another process works on the same study, before waiting for it.
        """
        seeds = range(self.settings.seeds)
        with self.storage.alone(on_wait):
            runs = {
                (candidate.name, seed): run
                for candidate in self.candidates
                for seed in seeds
                if (run := self.storage.load(candidate.name, seed, candidate.to_dict())) is not None
            }
            works = [
                work
                for work in divided(self.problem, self.candidates, seeds)
                if any((work.candidate.name, seed) not in runs for seed in work.seeds)
            ]
            # What was stored before trains again with the others of its work, to the same numbers.
            again = {(work.candidate.name, seed) for work in works for seed in work.seeds}
            for name, seed in runs:
                if (name, seed) not in again:
                    on_epochs(name, self.settings.epochs)
            for finished in self.engine.train(self.problem, works, on_epochs):
                for run in finished:
                    if (run.candidate, run.seed) not in runs:
                        self.storage.save(run)
                        runs[run.candidate, run.seed] = run
                    # What an end before the last epoch left out.
                    on_epochs(run.candidate, self.settings.epochs - len(run.epochs))
            self.runs = [runs[candidate.name, seed] for candidate in self.candidates for seed in seeds]
            self.storage.write_results(self.runs)
        self.comparison = Comparison(
            self.candidates, self.runs, self.metrics, self.metric, self.problem.fold(0).test_over_train
        )
        return self.comparison

    def table(self) -> pl.DataFrame:
        """A row a candidate: means of the test metrics, and the difference to the baseline that the verdict is about.

        Raises:
            StudyError: the study has not run.
        """
        rows = []
        for row in self._compared().rows:
            d = row.differences[self.metric.key]
            difference = {"difference": d.mean, "low": d.low, "high": d.high, "p_value": d.p_value}
            ends = {"cost": row.cost, "runs": row.runs, "diverged": row.diverged}
            rows.append({"candidate": row.candidate.name, **row.means, **difference, **ends})
        return pl.DataFrame(rows)

    def figure(self, name: str) -> Svg:
        """A figure of the page, which notebooks show.

        Args:
            name: `"differences"`, `"curves"` or `"logs"` (what else was logged by epoch, as a learned shape).

        Raises:
            StudyError: the study has not run, or there is no such figure.
        """
        from kriterion.report.figures import FIGURES

        compared = self._compared()
        if name not in FIGURES:
            raise StudyError(f"There is no figure {name!r}. Figures: {', '.join(FIGURES)}.")
        return Svg(FIGURES[name](self, compared.rows) or "")

    def _repr_html_(self) -> str:
        """For notebooks: the verdict and the table."""
        compared = self._compared()
        return f"<p>{html.escape(compared.verdict)}</p>{self.table()._repr_html_()}"

    def _compared(self) -> Comparison:
        if self.comparison is None:
            raise StudyError("The study has no results yet: call `run()` first.")
        return self.comparison


class Svg(str):
    """The text of a figure."""

    def _repr_html_(self) -> str:
        return str(self)
