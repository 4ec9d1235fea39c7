"""A study: candidates times seeds, trained, stored and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import polars as pl

from minimand.study._candidates import Candidate, check_name, search_ranges, with_numbers
from minimand.study._data import Data, load_data
from minimand.study._engines import Engine, divided, engine_named
from minimand.study._figures import Svg, results_figure
from minimand.study._metrics import metric_of
from minimand.study._models import ModelFunction, check_model, mlp, model_function, model_identity
from minimand.study._problem import Problem, build_trainer
from minimand.study._results import Results, Storage, results_table, versions
from minimand.study._settings import Settings, StudyError, Tuning
from minimand.study._training import OnEpochs


class Study:
    """Compares candidates on data, with the same splits, initial weights and batch orders for all.

    Use it to find out which objective helps on your data and your network.

    Args:
        build_model: `build_model(features, outputs)` returns a Keras model, as `mlp` does; or `"module:function"`.
        data: from `load_data`, or the name of a built-in data set.
        candidates: candidates to compare; the first one is the baseline. An `optional` candidate that does not suit the
            network is left out, and `left_out` gives the reason.
        settings: numbers of seeds and epochs and so on.
        folder: runs are stored here when they finish, and an equal study finds them; by default `studies/NAME`.
        engine: an `Engine` or its name. The default is this process on JAX, which trains all seeds of a candidate at
            once, and one process for each core on other backends.
        tuning: how hyperparameters are chosen before the comparison; by default the candidates are used as given.

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
        >>> study.table()["candidate"].to_list()
        ['baseline', 'gradient-variance-penalty']
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
        metric_of(self.data.task, self.settings.metric)
        self.build_model = model_function(build_model) if isinstance(build_model, str) else build_model
        self.engine = engine_named(engine) if isinstance(engine, str) else engine
        self.problem = Problem(self.data, self.build_model, self.settings)
        check_model(partial(self.problem.network, 0), self.problem.fold(0).x_train, self.data.outputs)
        self.candidates, self.left_out = self._checked(candidates)
        settings_of_runs = dataclasses.asdict(self.settings)
        # More seeds and another metric go on with the runs that are stored.
        del settings_of_runs["seeds"], settings_of_runs["metric"]
        identity = {
            "data": self.data.digest(),
            "name": self.data.name,
            "task": self.data.task,
            "backend": keras.backend.backend(),
            **settings_of_runs,
            "model": model_identity(self.build_model),
            "tuning": tuning and [tuning.trials, tuning.splits],
        }
        self.storage = Storage(Path(folder or Path("studies") / self.data.name), identity)
        self._results: Results | None = None

    def _checked(self, candidates: Sequence[Candidate]) -> tuple[tuple[Candidate, ...], dict[str, str]]:
        """The candidates to train, and the reasons why others are left out, before an hour of training."""
        if not candidates:
            raise StudyError("A study needs candidates, and the first one is the baseline. Received none.")
        names: set[str] = set()
        for candidate in candidates:
            check_name(candidate.name)
            # Some file systems do not distinguish cases.
            if candidate.name.casefold() in names:
                raise StudyError(f"candidate {candidate.name!r}: there is another of this name. Rename one.")
            names.add(candidate.name.casefold())
        model = self.problem.network(0)
        fit, left_out = [], {}
        for index, candidate in enumerate(candidates):
            ranges = search_ranges(candidate) if self.tuning else {}
            extremes = [with_numbers(candidate, {path: end}) for path, ends in ranges.items() for end in ends]
            try:
                for each in (candidate, *extremes):
                    build_trainer(each, model, self.data.task)
            except (StudyError, TypeError, ValueError) as error:
                # Without the first candidate, another one would be the baseline.
                if index == 0 or not candidate.optional:
                    raise StudyError(f"candidate {candidate.name!r}: {error}") from error
                left_out[candidate.name] = str(error)
            else:
                fit.append(candidate)
        if left_out and len(fit) < 2:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
            raise StudyError(f"No candidate suits the network but the baseline. {reasons}")
        return tuple(fit), left_out

    def run(
        self,
        on_epochs: OnEpochs = lambda candidate, epochs: None,
        on_wait: Callable[[], None] = lambda: None,
        command: str = "",
    ) -> Results:
        """Train the runs that are not stored yet, and compare all runs.

        Args:
            on_epochs: `on_epochs(candidate, n)` is called when n more epochs have passed.
            on_wait: called before waiting for another process that works on the same study.
            command: the command that the page shows.
        """
        seeds, epochs = range(self.settings.seeds), self.settings.epochs
        with self.storage.alone(on_wait), self.engine.at_work(self.problem) as train:
            candidates: Sequence[Candidate] = self.candidates
            records: dict[str, Any] | None = None
            if self.tuning:
                from minimand.study._tuning import tune

                tuned = tune(self.problem, candidates, self.tuning, self.storage, train, on_epochs, on_wait)
                candidates, records = [c for c, _ in tuned], {c.name: record for c, record in tuned}
            every = [(candidate, seed) for candidate in candidates for seed in seeds]
            runs = {(c.name, seed): run for c, seed in every if (run := self.storage.load(c, seed)) is not None}
            works = [
                work
                for work in divided(self.problem, candidates, seeds)
                if any((work.candidate.name, seed) not in runs for seed in work.seeds)
            ]
            # A stored run trains again with the other seeds of its work, to the same numbers.
            again = {(work.candidate.name, seed) for work in works for seed in work.seeds}
            for name, _ in runs.keys() - again:
                on_epochs(name, epochs)
            for finished in train(works, on_epochs):
                for run in finished:
                    if (run.candidate, run.seed) not in runs:
                        self.storage.save(run)
                        runs[run.candidate, run.seed] = run
                    # The epochs that a run did not need.
                    on_epochs(run.candidate, epochs - len(run.epochs))
            description = self._description(candidates, records, command)
            self._results = Results(description, [runs[c.name, seed] for c, seed in every])
            self.storage.write_results(self._results)
        return self._results

    def _description(
        self, candidates: Sequence[Candidate], tuning: dict[str, Any] | None, command: str
    ) -> dict[str, Any]:
        """Everything but the runs that the page shows."""
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
                "digest": self.storage.identity["data"],
                "notes": list(data.notes),
            },
            "settings": dataclasses.asdict(self.settings),
            "model": {
                "identity": self.storage.identity["model"],
                "module": "minimand.study" if function is mlp else function.__module__,
                "name": getattr(function, "__qualname__", ""),
            },
            "candidates": {c.name: {"summary": c.summary, **c.to_dict()} for c in candidates},
            "left_out": self.left_out,
            "tuning": tuning,
            "test_over_train": self.problem.fold(0).test_over_train,
            "command": command,
            "versions": versions(),
        }

    @property
    def results(self) -> Results:
        """The results of the last call of `run`.

        Raises:
            StudyError: the study has not run.
        """
        if self._results is None:
            raise StudyError("The study has no results yet. Call `run()` first.")
        return self._results

    def table(self) -> pl.DataFrame:
        """As `results_table`."""
        return results_table(self.results)

    def figure(self, name: str, candidate: str | None = None) -> Svg:
        """As `results_figure`."""
        return results_figure(self.results, name, candidate)

    def _repr_html_(self) -> str:
        """The results, for notebooks."""
        return self.results._repr_html_()
