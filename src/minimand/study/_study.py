"""A study: candidates times seeds, trained, stored and compared."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from minimand.study._candidates import Candidate, resolved, search_ranges, table_of, with_numbers
from minimand.study._data import Data, array_data
from minimand.study._engines import Engine, divided, engine_named
from minimand.study._files import load_data
from minimand.study._metrics import Metric
from minimand.study._models import (
    Copies,
    ModelFunction,
    function_identity,
    model_function,
    model_identity,
    takes_shapes,
)
from minimand.study._networks import augmented_network, convnet, convnet_1d, mlp
from minimand.study._page import write_page
from minimand.study._problem import Problem, build_trainer
from minimand.study._references import references
from minimand.study._results import Results, Storage, versions
from minimand.study._settings import Settings, StudyError, Tuning
from minimand.study._streams import stream_data
from minimand.study._training import OnEpochs

_SEEDS = 10


class Study:
    """Compares candidates on data, with the same splits, initial weights and batch orders for all.

    Use it, or the function `compare`, to find out which objective helps on your data and your network.

    Args:
        build_model: a function without arguments, or of `(input_shape, outputs)`, that returns a Keras model; a built
            model, of which each training gets a copy; or `"module:function"`. None for the usual network of the inputs:
            `mlp`, `convnet` or `convnet_1d`.
        x: inputs as for `array_data`, the result of `load_data` or `array_data`, or the name of a built-in data set or
            path of a folder of images or an NPZ file.
        y: targets, as for `target_of`.
        candidates: candidates and names of default candidates; all default ones if None. The one that is named
            `"baseline"` is the baseline, and the usual loss with Adam if there is none. An `optional` candidate that
            does not suit the network is left out, and `left_out` gives the reason.
        metric: key of the metric of the verdict, or a `Metric`: `"mae"`, `"roc_auc"`, `"pinball_0.9"`, a scorer of
            scikit-learn, a metric of Keras and so on; by default the first one of the task. With several outputs,
            `"name.mae"`.
        select: metric on the validation rows that selects the epoch; by default MAE or log loss.
        seeds: number of splits, at least 2; by default 10, or those of `cv`.
        repeats: trainings on each split; their results are averaged.
        epochs: epochs of each training; a run is judged at the epoch that is best on the validation rows.
        batch_size: examples per step.
        patience: a training ends after this many epochs without a better one; None to train all epochs.
        corrupt_targets: fraction in [0, 1) of the training targets to corrupt.
        initial: `"new"` for new initial weights of the copies of a built model in each training, or `"given"` for the
            model's own weights, to compare objectives of fine-tuning.
        augment: flip and shift training images at random; for functions of `(input_shape, outputs)`.
        folder: runs are stored here when they finish, and an equal study finds them; by default `studies/NAME`.
        engine: an `Engine` or its name. The default is this process on JAX, which trains all seeds of a candidate at
            once, and one process for each core on other backends.
        tuning: how hyperparameters are chosen before the comparison; by default the candidates are used as given.
        **data: `task`, `ignore_class`, `prepare`, `sample_weight`, `groups`, `time`, `cv`, `test` and `name`, as for
            `array_data`; or `train`, `validation` and `test` instead of x and y, as for `stream_data`.

    Raises:
        StudyError: the model does not fit, the metric is unknown, a candidate is refused, all are left out, or the
            folder holds a different study.

    Examples:
        >>> import tempfile
        >>> from minimand.study import Study, mlp
        >>> arguments = {"seeds": 2, "epochs": 2, "folder": tempfile.mkdtemp(), "engine": "local"}
        >>> results = Study(mlp, "iris", candidates=["weight-noise"], **arguments).run()
        >>> results.table()["candidate"].to_list()
        ['baseline', 'weight-noise']
    """

    def __init__(
        self,
        build_model: ModelFunction | keras.Model | str | None,
        x: Any = None,
        y: Any = None,
        *,
        candidates: Sequence[Candidate | str] | None = None,
        metric: str | Metric | None = None,
        select: str | Metric | None = None,
        seeds: int | None = None,
        repeats: int = 1,
        epochs: int = 60,
        batch_size: int = 32,
        patience: int | None = None,
        corrupt_targets: float = 0.0,
        initial: str = "new",
        augment: bool = False,
        folder: Path | str | None = None,
        engine: Engine | str = "auto",
        tuning: Tuning | None = None,
        **data: Any,
    ) -> None:
        if isinstance(x, (Data, Path, str)):
            if y is not None or data:
                raise StudyError(
                    f"Leave out {'y' if y is not None else next(iter(data))!r}: x holds everything about the data. "
                    "Give the argument to load_data or array_data."
                )
            self.data = x if isinstance(x, Data) else load_data(x)
        elif x is None and y is None and "train" in data:
            self.data = stream_data(**data)
        elif x is None or y is None:
            raise StudyError(
                f"{'x' if x is None else 'y'} must not be None. Give arrays as x and y, the result of load_data as x, "
                "or batches as train, validation and test."
            )
        else:
            self.data = array_data(x, y, **data)
        count = self.data.splits.count
        if count is not None and seeds is not None and seeds > count:
            raise StudyError(
                f"`seeds` must be at most {count}, the splits of `cv`. Received: {seeds}. Give `repeats` instead."
            )
        self.settings = Settings(
            (count or _SEEDS) if seeds is None else seeds,
            epochs,
            batch_size,
            corrupt_targets,
            metric,
            select,
            patience,
            repeats,
        )
        self.tuning = tuning
        self.build_model = _model(build_model, initial, self.data)
        if augment:
            if isinstance(self.build_model, Copies) or np.ndim(self.data.x) != 4:
                raise StudyError(
                    "`augment` needs images and a function that builds the network. Put layers such as "
                    "keras.layers.RandomFlip into the model instead."
                )
            self.build_model = partial(augmented_network, self.build_model)
        self.engine = engine_named(engine) if isinstance(engine, str) else engine
        self.problem = Problem(self.data, self.build_model, self.settings)
        self.notes = [*self.data.notes, *self.data.warnings(self.settings.seeds), *self._equal_weights()]
        self.candidates, self.left_out = self._checked(resolved(candidates))
        metrics = self.problem.metrics
        # The names of metrics of the user's own, which cannot be stored.
        settings_of_runs = dataclasses.asdict(
            dataclasses.replace(self.settings, metric=metrics.main, select=metrics.selection.key)
        )
        del settings_of_runs["metric"]
        # More seeds and another metric go on with the runs that are stored, unless these depend on them.
        if self.data.splits.kind != "time":
            del settings_of_runs["seeds"]
        if self.data.splits.kind == "test":
            settings_of_runs["metric"] = metrics.main
        identity = {
            "data": self.data.digest(),
            "name": self.data.name,
            "task": self.data.task,
            "backend": keras.backend.backend(),
            **settings_of_runs,
            "model": model_identity(self.build_model),
            "own_metrics": [function_identity(m.function) for m in (metric, select) if isinstance(m, Metric)],
            "tuning": tuning and [tuning.trials, tuning.splits],
        }
        if folder is None:
            name = self.data.name
            if self.data.source == "arrays":
                content = json.dumps([identity, [c.to_dict() for c in self.candidates]], sort_keys=True)
                name = f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
            folder = Path("studies") / name
        self.storage = Storage(Path(folder), identity)
        self._results: Results | None = None

    def _equal_weights(self) -> list[str]:
        first, second = self.problem.weights(0), self.problem.weights(self.settings.repeats)
        given = isinstance(self.build_model, Copies) and self.build_model.initial == "given"
        if given or any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True) if a.dtype.kind == "f"):
            return []
        return ["all seeds begin with the same weights, because the network's initializers have fixed seeds"]

    def _checked(self, candidates: Sequence[Candidate]) -> tuple[tuple[Candidate, ...], dict[str, str]]:
        """The candidates to train, and the reasons why others are left out, before an hour of training."""
        model = self.problem.network(0)
        fit, left_out = [], {}
        for index, candidate in enumerate(candidates):
            ranges = search_ranges(candidate) if self.tuning else {}
            extremes = [with_numbers(candidate, {path: end}) for path, ends in ranges.items() for end in ends]
            try:
                for each in (candidate, *extremes):
                    build_trainer(each, model, self.problem.usual_loss)
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
        seeds, epochs = range(self.settings.seeds * self.settings.repeats), self.settings.epochs
        with self.storage.alone(on_wait), self.engine.at_work(self.problem) as train:
            candidates: Sequence[Candidate] = self.candidates
            records: dict[str, Any] | None = None
            if self.tuning:
                from minimand.study._tuning import tune

                tuned = tune(self.problem, candidates, self.tuning, self.storage, train, on_epochs, on_wait)
                candidates, records = [c for c, _ in tuned], {c.name: record for c, record in tuned}
            every = [(candidate, seed) for candidate in candidates for seed in seeds]
            runs = {(c.name, seed): run for c, seed in every if (run := self.storage.load(c, seed)) is not None}
            # Another metric of the verdict may need predictions, which are not stored.
            measured = self.problem.metrics.every.keys()
            runs = {key: run for key, run in runs.items() if measured <= run.test.keys()}
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
        data, function, problem = self.data, self.build_model, self.problem
        metrics, splits = problem.metrics, data.splits
        settings = dataclasses.replace(self.settings, metric=metrics.main, select=metrics.selection.key)
        folds = [problem.fold(number * settings.repeats).split for number in range(settings.seeds)]
        titles = {
            key: {"title": of.metric.title, "greater_is_better": of.metric.greater_is_better}
            for key, of in metrics.every.items()
        }
        selection = metrics.selection
        titles[selection.key] = {"title": selection.title, "greater_is_better": selection.sign < 0}
        return {
            "data": {
                "name": data.name,
                "task": data.task,
                "source": data.source,
                "arguments": data.arguments,
                "rows": data.rows + (data.stream.examples if data.stream else 0),
                "inputs": problem.inputs,
                "digest": self.storage.identity["data"],
                "notes": self.notes,
                "columns": data.columns,
                "weighted": problem.fold(0).weights[0] is not None,
                "splits": splits.described,
            },
            "settings": dataclasses.asdict(settings),
            "metrics": titles,
            "shown": metrics.shown,
            "model": {
                "identity": self.storage.identity["model"],
                "module": "minimand.study"
                if function in (mlp, convnet, convnet_1d)
                else getattr(function, "__module__", ""),
                "name": getattr(function, "__qualname__", ""),
                "takes_shapes": takes_shapes(function),
                "units": list(problem.outputs.units),
            },
            "usual_loss": table_of(problem.usual_loss),
            "candidates": {c.name: {"summary": c.summary, **c.to_dict()} for c in candidates},
            "references": references(problem),
            "left_out": self.left_out,
            "tuning": tuning,
            "peak_memory": _peak_memory(),
            "test_over_train": float(np.mean([split.test_over_train for split in folds])),
            "test_units": splits.test_units() if splits.kind == "test" else None,
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


def _peak_memory() -> int:
    """The largest number of bytes that this process has had in memory; 0 on Windows, where Python does not know it."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _model(given: Any, initial: str, data: Data) -> ModelFunction:
    """The function that builds the network."""
    if isinstance(given, keras.Model):
        return Copies(given, initial)
    if initial != "new":
        raise StudyError(f"`initial` needs a model, not a function that builds one. Received: initial={initial!r}")
    if given is None:
        return _usual_network(data)
    if isinstance(given, str):
        return model_function(given)
    if not callable(given):
        raise StudyError(f"`build_model` must be a function or a keras.Model. Received: {given!r}")
    return given


def _usual_network(data: Data) -> ModelFunction:
    """The usual network of the inputs."""
    (target, *others) = data.targets
    axes = 2 if isinstance(data.x, pl.DataFrame) else np.ndim(data.x) if isinstance(data.x, np.ndarray) else 0
    networks = {2: mlp, 3: convnet_1d, 4: convnet}
    if others or target.positions or axes not in networks:
        raise StudyError(
            "A network must be given for several inputs or outputs, for a target at each position, and for inputs that "
            f"are not tables, series or images. Received: {data.task}. Give a model or --model."
        )
    network: ModelFunction = networks[axes]
    # A network with several outputs ends in a softmax unless told otherwise.
    activation = {"regression": "linear", "multilabel": "sigmoid"}.get(target.task)
    return partial(network, activation=activation) if activation and target.units > 1 else network


def compare(
    build_model: ModelFunction | keras.Model | str | None, x: Any = None, y: Any = None, **arguments: Any
) -> Results:
    """Train a network with each of several objectives, and tell which one helps.

    Use it in a notebook or script; `minimand study` is the same on the command line. It is `Study(...).run()` with a
    progress bar and a page (`index.html` in the study's folder), so that all arguments are those of `Study`.

    Args:
        build_model: as for `Study`.
        x: as for `Study`.
        y: as for `Study`.
        **arguments: as for `Study`.

    Returns:
        The results, which notebooks show with their table and figures.

    Raises:
        StudyError: as for `Study`.

    Examples:
        >>> import keras, numpy as np, tempfile, minimand
        >>> x = np.random.default_rng(0).normal(size=(60, 3))
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
        >>> arguments = {"seeds": 2, "epochs": 2, "folder": tempfile.mkdtemp(), "engine": "local"}
        >>> results = minimand.compare(model, x, x[:, 0] * x[:, 1], candidates=["weight-noise"], **arguments)
        >>> len(results.runs)
        4
    """
    study, console = Study(build_model, x, y, **arguments), Console(stderr=True)
    for note in study.notes:
        console.print(f"note: {note}", markup=False)
    with progress(study, console) as callbacks:
        results = study.run(*callbacks)
    console.print(f"Report: {write_page(results, study.storage.folder)}", markup=False, soft_wrap=True)
    return results


@contextlib.contextmanager
def progress(study: Study, console: Console) -> Iterator[tuple[OnEpochs, Callable[[], None]]]:
    """A progress bar of a study's epochs, as the first two arguments of `Study.run`."""
    times = TimeElapsedColumn(), "elapsed,", TimeRemainingColumn(), "left"
    columns = "{task.description:<25}", BarColumn(), MofNCompleteColumn(), "epochs", *times
    settings, tuning = study.settings, study.tuning
    runs = settings.seeds * settings.repeats + (tuning.trials * tuning.splits if tuning else 0)
    total = len(study.candidates) * runs * settings.epochs
    with Progress(*columns, console=console, speed_estimate_period=600) as bars:
        bar = bars.add_task(study.candidates[0].name, total=total)
        yield (
            lambda name, epochs: bars.update(bar, advance=epochs, description=name),
            lambda: console.print("Another process works on this study. Waiting for it ..."),
        )
