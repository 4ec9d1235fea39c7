"""Where the runs of a study are trained; the numbers that come out are the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from kriterion import backend
from kriterion.study.engines.local import LocalEngine
from kriterion.study.engines.processes import ProcessesEngine
from kriterion.study.engines.ray import RayEngine
from kriterion.study.errors import StudyError
from kriterion.study.problem import Problem
from kriterion.study.training import Train

__all__ = ["ENGINES", "Engine", "LocalEngine", "ProcessesEngine", "RayEngine", "engine_named"]


class Engine(Protocol):
    """Trains pieces of work, in any order and wherever it likes; each once, whatever happens to who does it."""

    def at_work(self, problem: Problem) -> AbstractContextManager[Train]:
        """What trains works of this problem, as often as it is called, until the context is left."""
        ...


ENGINES: dict[str, Callable[[], Engine]] = {"local": LocalEngine, "processes": ProcessesEngine, "ray": RayEngine}


def engine_named(name: str, workers: int | None = None) -> Engine:
    """The engine of this name; `"auto"` is this process where it trains many runs at once, else one process a core.

    Raises:
        StudyError: there is none, or `workers` is below 1 or given without processes.
    """
    if name == "auto":
        name = "processes" if backend.many_fits is None else "local"
    if name not in ENGINES:
        raise StudyError(f"--engine must be auto or one of {', '.join(ENGINES)}. Received: {name!r}")
    if workers is None:
        return ENGINES[name]()
    if name != "processes":
        raise StudyError(f"--workers is for --engine processes. Received: {workers} with --engine {name}")
    return ProcessesEngine(workers)
