"""The folder of a study: what it is about, one file a finished run, the results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout

from minimand.study._errors import StudyError
from minimand.study._results import Results
from minimand.study._run import Run

_DESCRIPTION = "results.json"


class Storage:
    """A folder that can be killed at any moment: files appear whole or not at all.

    Args:
        folder: made if it does not exist.
        identity: what makes this study this study. A folder that holds another one is refused.

    `name` is one that no other folder has.

    Raises:
        StudyError: the folder holds a different study or other files, or cannot be written.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self._runs = folder / "runs"
        described = folder / "study.json"
        try:
            # What a study killed at its very start leaves is not somebody else's.
            others = [p for p in folder.glob("*") if p not in (self._runs, folder / "lock") and p.suffix != ".tmp"]
            if others and not described.exists():
                raise StudyError(f"--out {folder} holds other files. Give an empty or new folder.")
            self._runs.mkdir(parents=True, exist_ok=True)
            if not described.exists():
                _write(described, {**identity, "folder": uuid.uuid4().hex})
            stored = json.loads(described.read_text())
        except OSError as error:
            raise StudyError(f"--out {folder} cannot be written: {error.strerror or error}.") from error
        except json.JSONDecodeError as error:
            raise StudyError(f"{described} is damaged: {error}. Give another --out.") from error
        different = [key for key in identity if stored.get(key) != json.loads(json.dumps(identity[key]))]
        if different:
            changes = "; ".join(f"{key}: {stored.get(key)!r} there, {identity[key]!r} now" for key in different)
            raise StudyError(f"--out {folder} holds a different study ({changes}). Give another --out.")
        self.name: str = stored["folder"]

    @contextlib.contextmanager
    def alone(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Keep other processes out of the folder; if one is in it, call `on_wait` and wait until it is done or dead."""
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            on_wait()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def load(self, candidate: str, seed: int, specification: dict[str, Any]) -> Run | None:
        """The finished run of this candidate and seed, or None."""
        path = _run_path(self.folder, candidate, seed)
        if not path.exists():
            return None
        stored = _read_run(path)
        if stored.specification != json.loads(json.dumps(specification)):
            raise StudyError(
                f"--out {self.folder} holds runs of a different candidate of the name {candidate!r}. "
                "Rename the candidate or give another --out."
            )
        return stored

    def save(self, run: Run) -> None:
        """Store a finished run."""
        _write(_run_path(self.folder, run.candidate, run.seed), dataclasses.asdict(run))

    def write_results(self, results: Results) -> None:
        """`results.parquet`, a row an epoch of each run, test metrics in the best one's; and what a report needs."""
        rows = []
        for run in results.runs:
            for row in run.epochs:
                test = {f"test_{key}": v for key, v in run.test.items()} if row["epoch"] == run.best_epoch else {}
                rows.append({"candidate": run.candidate, "seed": run.seed, "status": run.status, **row, **test})
        with whole_file(self.folder / "results.parquet") as temporary:
            pl.DataFrame(rows, infer_schema_length=None).write_parquet(temporary)
        _write(self.folder / _DESCRIPTION, results.description)


def load_results(folder: Path) -> Results:
    """What a study that has run to its end left in a folder.

    Args:
        folder: the study's.

    Returns:
        Its results.

    Raises:
        StudyError: there is none, or it is damaged.

    Examples:
        >>> import pathlib, tempfile
        >>> from minimand.study import Candidate, Settings, Study, load_results, mlp
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> arguments = [Candidate("baseline")], Settings(seeds=2, epochs=1)
        >>> found = Study(mlp, "iris", *arguments, folder=folder, engine="local").run()
        >>> load_results(folder).verdict == found.verdict
        True
    """
    described = folder / _DESCRIPTION
    try:
        description = json.loads(described.read_text())
        names = [candidate["name"] for candidate in description["candidates"]]
        paths = [_run_path(folder, name, seed) for name in names for seed in range(description["settings"]["seeds"])]
        runs = [_read_run(path) for path in paths]
        return Results(description, runs)
    except OSError as error:
        raise StudyError(
            f"{error.filename or described} cannot be read: {error.strerror}. A report needs the folder of a study "
            "that has run to its end; `minimand study` with the same arguments goes on with one that has not."
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise StudyError(f"{folder} holds a damaged study ({type(error).__name__}: {error}).") from error


def _run_path(folder: Path, candidate: str, seed: int) -> Path:
    return folder / "runs" / f"{candidate}-{seed}.json"


def _read_run(path: Path) -> Run:
    return Run(**json.loads(path.read_text(), parse_constant=float))


def _write(path: Path, content: Any) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; when that is done, the file appears at `path`, whole and on the disk.

    Raises:
        StudyError: it cannot be written; what was there stays.
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
            f"{path} cannot be written: {error.strerror or error}. What was stored before is kept; when there is room, "
            "the same study goes on from there."
        ) from error


def finite_or_none(value: float) -> float | None:
    """For JSON that every reader accepts, which has no NaN."""
    return value if math.isfinite(value) else None
