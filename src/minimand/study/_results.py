"""What a study found, and the folder that keeps it: one file for each finished run, and the results."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import json
import os
import platform
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import polars as pl
from filelock import FileLock, Timeout

import minimand
from minimand.study._candidates import Candidate, loss_from_table
from minimand.study._comparison import Comparison
from minimand.study._figures import Svg, results_figure
from minimand.study._metrics import Measure
from minimand.study._settings import Settings, StudyError
from minimand.study._training import Run


class Results:
    """The runs of a study and their comparison.

    `compare`, `Study.run` and `load_results` return them. Notebooks show the verdict, the table and two figures;
    consoles show the verdict and the main columns of the table.

    Args:
        description: data, settings, model, candidates, command and versions, as stored in `results.json`.
        runs: all runs, in the order of candidates and seeds.

    Attributes:
        comparison: rows of candidates, the winner and the verdict.
        verdict: the verdict in one or two sentences.
        settings: the study's `Settings`.
        candidates: the compared candidates, with the numbers that tuning chose.
        tuning: ranges, trials and the chosen trial of each candidate by name; empty if nothing was tuned.
        references: mean test metrics of models without a network on the same splits, by name; tables have some.
        left_out: reasons why optional candidates were not trained, by name.

    Examples:
        >>> import tempfile
        >>> from minimand.study import Study, mlp
        >>> study = Study(mlp, "iris", candidates=[], seeds=2, epochs=1, folder=tempfile.mkdtemp(), engine="local")
        >>> results = study.run()
        >>> len(results.runs), results.table()["candidate"].to_list(), results.figure("curves")[:4]
        (2, ['baseline'], '<svg')
    """

    def __init__(self, description: Mapping[str, Any], runs: Sequence[Run]) -> None:
        self.description, self.runs = description, list(runs)
        self.data, self.model = description["data"], description["model"]
        self.task: str = self.data["task"]
        self.settings = Settings(**description["settings"])
        self.tuning: Mapping[str, Any] = description["tuning"] or {}
        self.left_out: Mapping[str, str] = description["left_out"]
        self.references: Mapping[str, Mapping[str, float]] = description["references"]
        self.candidates = tuple(
            Candidate.from_dict(name, table, check=False) for name, table in description["candidates"].items()
        )
        self.usual_loss = loss_from_table(description["usual_loss"])
        measures = {key: Measure(key, **words) for key, words in description["metrics"].items()}
        self.metrics = [measures[key] for key in description["shown"]]
        self.metric, self.selection = measures[self.settings.metric], measures[self.settings.select]
        overlap, units = description["test_over_train"], description["test_units"]
        self.comparison = Comparison(self.candidates, self.runs, self.metric, overlap, units)
        self.verdict = self.comparison.verdict

    def table(self) -> pl.DataFrame:
        """A table with a row for each candidate.

        Returns:
            Means of the test metrics, the difference to the baseline in the metric of the verdict with its 95 %
            interval and p-value, the cost, and the numbers of runs and of diverged runs.
        """
        rows = []
        for row in self.comparison.rows:
            difference = dataclasses.asdict(row.differences[self.metric.key])
            counts = {"cost": row.cost, "runs": row.runs, "diverged": row.diverged}
            rows.append({"candidate": row.candidate.name, **row.means, **difference, **counts})
        return pl.DataFrame(rows).rename({"mean": "difference"}).drop("pairs")

    def figure(self, name: str, candidate: str | None = None) -> Svg:
        """A figure of the page, which notebooks show.

        Args:
            name: `"differences"`, `"cost"` or `"curves"`. With a candidate, `"logs"` (its logs by epoch, such as a
                learned shape) or `"sensitivity"` (the trials' scores by each number that was searched).
            candidate: name of the candidate that the figure is about.

        Returns:
            The text of an SVG; empty if there is nothing to draw.

        Raises:
            StudyError: the figure or the candidate does not exist.
        """
        return results_figure(self, name, candidate)

    def __repr__(self) -> str:
        """The verdict, and the columns of the table that lead to it, for consoles."""
        columns = ["candidate", self.metric.key, "difference", "low", "high", "p_value", "cost"]
        with pl.Config(tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, tbl_rows=-1, tbl_cols=-1):
            return f"{self.verdict}\n{self.table().select(columns)}"

    def _repr_html_(self) -> str:
        """The verdict, the table, two figures and the reasons of what was left out, for notebooks."""
        left_out = [f"<p>{html.escape(f'{name} was left out: {why}')}</p>" for name, why in self.left_out.items()]
        notes = [f"<p>{html.escape(note)}</p>" for note in self.data["notes"]]
        figures = [self.figure(name) for name in ("differences", "curves")] if len(self.candidates) > 1 else []
        parts = [f"<p>{html.escape(self.verdict)}</p>", self.table()._repr_html_(), *figures, *left_out, *notes]
        return "".join(parts)


def versions() -> dict[str, str]:
    """The versions of everything that trains in this process."""
    name = keras.backend.backend()
    return {
        "minimand": minimand.__version__,
        "keras": keras.__version__,
        "backend": f"{name} {sys.modules[name].__version__}",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


# The folder.

_DESCRIPTION = "results.json"


class Storage:
    """A folder whose study can be killed at any moment, because a file appears whole or not at all.

    Args:
        folder: made if it does not exist.
        identity: everything that distinguishes this study from others.

    Attributes:
        folder, identity: as given.
        name: a name that no other folder has.

    Raises:
        StudyError: the folder holds a different study or other files, or cannot be written.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity
        runs, described = folder / "runs", folder / "study.json"
        try:
            # A study that was killed at its very start leaves these and nothing else.
            others = [p for p in folder.glob("*") if p not in (runs, folder / "lock") and p.suffix != ".tmp"]
            if others and not described.exists():
                raise StudyError(f"--out {folder} holds other files. Give an empty or new folder.")
            runs.mkdir(parents=True, exist_ok=True)
            if not described.exists():
                _write(described, {**identity, "folder": uuid.uuid4().hex})
            stored = json.loads(described.read_text())
        except OSError as error:
            raise StudyError(
                f"--out {folder} cannot be written: {error.strerror or error}. Give another folder."
            ) from error
        except json.JSONDecodeError as error:
            raise StudyError(f"{described} is damaged: {error}. Give another --out.") from error
        different = [key for key in identity if stored.get(key) != json.loads(json.dumps(identity[key]))]
        if different:
            changes = "; ".join(f"{key}: {stored.get(key)!r} there, {identity[key]!r} now" for key in different)
            raise StudyError(f"--out {folder} holds a different study ({changes}). Give another --out.")
        self.name: str = stored["folder"]

    @contextlib.contextmanager
    def alone(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Keep other processes out; if one is in the folder, call `on_wait` and wait until it is done or dead."""
        lock = FileLock(self.folder / "lock")
        try:
            held = lock.acquire(blocking=False)
        except Timeout:
            on_wait()
            held = lock.acquire()
        with held:
            yield

    def load(self, candidate: Candidate, seed: int) -> Run | None:
        """The finished run of this candidate and seed, or None."""
        path = _run_path(self.folder, candidate.name, seed)
        if not path.exists():
            return None
        stored = _read_run(path)
        if stored.specification != json.loads(json.dumps(candidate.to_dict())):
            raise StudyError(
                f"--out {self.folder} holds runs of a different candidate with the name {candidate.name!r}. "
                "Rename the candidate or give another --out."
            )
        return stored

    def save(self, run: Run) -> None:
        """Store a finished run."""
        _write(_run_path(self.folder, run.candidate, run.seed), dataclasses.asdict(run))

    def write_results(self, results: Results) -> None:
        """Write the description, and `results.parquet` with each run's epochs and the test metrics at the best one."""
        rows = []
        for run in results.runs:
            for row in run.epochs:
                test = {f"test_{key}": v for key, v in run.test.items()} if row["epoch"] == run.best_epoch else {}
                rows.append({"candidate": run.candidate, "seed": run.seed, "status": run.status, **row, **test})
        with whole_file(self.folder / "results.parquet") as temporary:
            pl.DataFrame(rows, infer_schema_length=None).write_parquet(temporary)
        _write(self.folder / _DESCRIPTION, results.description)


def load_results(folder: Path) -> Results:
    """The results that a finished study has left in a folder.

    Use it to show a study again without its data.

    Args:
        folder: the study's folder.

    Returns:
        The results.

    Raises:
        StudyError: the folder holds no results, or they are damaged.

    Examples:
        >>> import pathlib, tempfile
        >>> from minimand.study import Study, load_results, mlp
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> found = Study(mlp, "iris", candidates=[], seeds=2, epochs=1, folder=folder, engine="local").run()
        >>> load_results(folder).verdict == found.verdict
        True
    """
    described = folder / _DESCRIPTION
    try:
        description = json.loads(described.read_text())
        seeds = range(description["settings"]["seeds"] * description["settings"]["repeats"])
        runs = [_read_run(_run_path(folder, name, seed)) for name in description["candidates"] for seed in seeds]
        return Results(description, runs)
    except OSError as error:
        raise StudyError(
            f"{error.filename or described} cannot be read: {error.strerror}. A report needs the folder of a finished "
            "study. If the study was interrupted, run the same `minimand study` command again to resume it."
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{folder} holds a damaged study ({type(error).__name__}: {error}). Run the study in a new folder."
        ) from error


def _run_path(folder: Path, candidate: str, seed: int) -> Path:
    return folder / "runs" / f"{candidate}-{seed}.json"


def _read_run(path: Path) -> Run:
    return Run(**json.loads(path.read_text(), parse_constant=float))


def _write(path: Path, content: Any) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; at the end the file appears at `path`, whole and on the disk.

    Raises:
        StudyError: the file cannot be written; the earlier content of `path` stays.
    """
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StudyError(
            f"{path} cannot be written: {error.strerror or error}. Everything stored before is kept. Make room, and "
            "run the same study again to resume it."
        ) from error
