"""A study: candidates times seeds, trained and stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import polars as pl

from minimand.study._candidates import Candidate, check_name
from minimand.study._data import Data, load_data
from minimand.study._engines import Engine, engine_named
from minimand.study._errors import StudyError
from minimand.study._metrics import Metric, metrics_of
from minimand.study._models import ModelFunction, check_model, mlp, model_function, model_identity
from minimand.study._problem import Problem, build_trainer
from minimand.study._results import Results, Svg, versions
from minimand.study._search import extremes
from minimand.study._settings import Settings
from minimand.study._storage import Storage
from minimand.study._training import OnEpochs, Train, divided
from minimand.study._tuning import Tuned, Tuning, tune


class Study:
    """Compare candidates on data: same splits, initial weights and batch orders for all.

    Args:
        build_model: `build_model(features, outputs)` gives a Keras model, as `mlp` does; or `"module:function"`.
        data: from `load_data`, or what it takes.
        candidates: the first one is the baseline. Those that are `optional`, as the default ones are, are left out
            where they refuse the network; `left_out` then says why.
        settings: how many seeds, epochs and so on.
        folder: where runs are stored as they finish, and found again by the same study; by default `studies/NAME`.
        engine: where runs are trained: an `Engine` or its name; by default this process on JAX, which trains all seeds
            of a candidate at once, and a process for each core elsewhere.
        tuning: how hyperparameters are chosen before; by default candidates are as they are given.

    Raises:
        StudyError: the model does not fit, the metric is unknown, a candidate is refused, all are left out, or the
            folder holds a different study.

    Examples:
        >>> import tempfile
        >>> from minimand.study import LocalEngine, Settings, Study, default_candidates, mlp
        >>> settings = Settings(seeds=2, epochs=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     study = Study(mlp, "iris", default_candidates()[:2], settings, folder=folder, engine=LocalEngine())
        ...     results = study.run()
        >>> results.table()["candidate"].to_list()
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
        tuning: Tuning | None = None,
    ) -> None:
        self.data = load_data(data) if isinstance(data, str) else data
        self.settings, self.tuning = settings or Settings(), tuning
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
        check_model(partial(self.problem.network, 0), fold.x_train, self.data.outputs)
        self.candidates, self.left_out = self._checked(candidates)
        self._identity = self._identified()
        self.storage = Storage(Path(folder or Path("studies") / self.data.name), self._identity)
        self._results: Results | None = None

    def _identified(self) -> dict[str, Any]:
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
            "tuning": self.tuning and [self.tuning.trials, self.tuning.splits],
        }

    def _checked(self, candidates: Sequence[Candidate]) -> tuple[tuple[Candidate, ...], dict[str, str]]:
        """Those to train, and why others are left out: what parts refuse, they refuse now, not after an hour."""
        if not candidates:
            raise StudyError("A study needs candidates, the first of which is the baseline. Received none.")
        # Of files, too, which some systems find in either case.
        names: set[str] = set()
        for candidate in candidates:
            check_name(candidate.name, f"candidate {candidate.name!r}")
            if candidate.name.casefold() in names:
                raise StudyError(f"candidate {candidate.name!r}: there is another of this name. Rename one.")
            names.add(candidate.name.casefold())
        model = self.problem.network(0)
        fit, left_out = [], {}
        for index, candidate in enumerate(candidates):
            every = [candidate, *(extremes(candidate) if self.tuning else ())]
            try:
                for each in every:
                    build_trainer(each, model, self.data.task)
            except (StudyError, TypeError, ValueError) as error:
                # Without the first one, another would be the baseline.
                if index == 0 or not candidate.optional:
                    raise StudyError(f"candidate {candidate.name!r}: {error}") from error
                left_out[candidate.name] = str(error)
            else:
                fit.append(candidate)
        if left_out and len(fit) < 2:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
            raise StudyError(f"No candidate suits the network but the baseline. {reasons}")
        return tuple(fit), left_out

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
        command: str = "",
    ) -> Results:
        """Train what is not stored yet, and compare.

        Args:
            on_epochs: `on_epochs(candidate, n)` is told of n epochs as they pass.
            on_wait: called if another process works on the same study, before waiting for it.
            command: what the page says that the study was made by.
        """
        seeds = range(self.settings.seeds)
        with self.storage.alone(on_wait), self.engine.at_work(self.problem) as train:
            tuned = self._tuned(train, on_epochs, on_wait) if self.tuning else None
            candidates = [of.candidate for of in tuned] if tuned else self.candidates
            runs = {
                (candidate.name, seed): run
                for candidate in candidates
                for seed in seeds
                if (run := self.storage.load(candidate.name, seed, candidate.to_dict())) is not None
            }
            works = [
                work
                for work in divided(self.problem, candidates, seeds)
                if any((work.candidate.name, seed) not in runs for seed in work.seeds)
            ]
            # What was stored before trains again with the others of its work, to the same numbers.
            again = {(work.candidate.name, seed) for work in works for seed in work.seeds}
            for name, seed in runs:
                if (name, seed) not in again:
                    on_epochs(name, self.settings.epochs)
            for finished in train(works, on_epochs):
                for run in finished:
                    if (run.candidate, run.seed) not in runs:
                        self.storage.save(run)
                        runs[run.candidate, run.seed] = run
                    # What an end before the last epoch left out.
                    on_epochs(run.candidate, self.settings.epochs - len(run.epochs))
            every = [runs[candidate.name, seed] for candidate in candidates for seed in seeds]
            self._results = Results(self._description(candidates, tuned, command), every)
            self.storage.write_results(self._results)
        return self._results

    def _tuned(self, train: Train, on_epochs: OnEpochs, on_wait: Callable[[], None]) -> list[Tuned]:
        assert self.tuning is not None
        return tune(
            self.problem,
            self.candidates,
            self.tuning,
            folder=self.storage.folder,
            place=self.storage.name,
            identity=self._identity,
            train=train,
            on_epochs=on_epochs,
            on_wait=on_wait,
        )

    def _description(
        self, candidates: Sequence[Candidate], tuned: Sequence[Tuned] | None, command: str
    ) -> dict[str, Any]:
        data, function = self.data, self.build_model
        return {
            "data": {
                "name": data.name,
                "task": data.task,
                "source": data.source,
                "target": data.target_name,
                "rows": len(data.target),
                "features": data.features.width,
                "classes": len(data.classes),
                "digest": self._identity["data"],
                "notes": list(data.notes),
            },
            "settings": dataclasses.asdict(self.settings),
            "metric": self.metric.key,
            "model": {
                "identity": self._identity["model"],
                "module": "minimand.study" if function is mlp else function.__module__,
                "name": getattr(function, "__qualname__", ""),
            },
            "candidates": [{"name": c.name, "summary": c.summary, **c.to_dict()} for c in candidates],
            "left_out": self.left_out,
            "tuning": {of.candidate.name: of.to_dict() for of in tuned} if tuned else None,
            "test_over_train": self.problem.fold(0).test_over_train,
            "command": command,
            "versions": versions(),
        }

    @property
    def results(self) -> Results:
        """What the study found.

        Raises:
            StudyError: it has not run.
        """
        if self._results is None:
            raise StudyError("The study has no results yet: call `run()` first.")
        return self._results

    def table(self) -> pl.DataFrame:
        """As `Results.table`."""
        return self.results.table()

    def figure(self, name: str, candidate: str | None = None) -> Svg:
        """As `Results.figure`."""
        return self.results.figure(name, candidate)

    def _repr_html_(self) -> str:
        """For notebooks: as `Results` has it."""
        return self.results._repr_html_()
