"""Processes on this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool

import keras
from loky import ProcessPoolExecutor

from kriterion.study.errors import StudyError, check_count
from kriterion.study.problem import Problem
from kriterion.study.run import Run
from kriterion.study.training import OnEpochs, Train, Work, train_one

# Deaths of processes in a row, none of which finished anything in between, after which a study gives up.
_DEATHS = 3


class ProcessesEngine:
    """Trains in processes of this machine. What a process that dies was about to do, another one does.

    Args:
        workers: number of processes; by default one for each core.

    Raises:
        StudyError: `workers` is no number of at least 1.

    Examples:
        >>> from kriterion.study import ProcessesEngine
        >>> ProcessesEngine(2).workers
        2
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = (os.cpu_count() or 1) if workers is None else check_count("--workers", workers)

    @contextlib.contextmanager
    def at_work(self, problem: Problem) -> Iterator[Train]:
        """As `Engine.at_work`."""
        pool = _Pool(problem, self.workers)
        try:
            yield pool.train
        finally:
            pool.close()


class _Pool:
    """Processes that know a problem."""

    def __init__(self, problem: Problem, workers: int) -> None:
        self._problem, self._workers = problem, workers
        self._executor: ProcessPoolExecutor | None = None

    def train(self, works: Sequence[Work], on_epochs: OnEpochs) -> Iterator[list[Run]]:
        left = list(works)
        deaths = 0
        while left:
            if self._executor is None:
                initial = {"initializer": _begin, "initargs": (self._problem,)}
                self._executor = ProcessPoolExecutor(self._workers, env=_environment(), **initial)
            try:
                futures: dict[Future[list[Run]], Work] = {self._executor.submit(_train, work): work for work in left}
                for future in as_completed(futures):
                    runs = future.result()
                    deaths = 0
                    left.remove(futures[future])
                    for run in runs:
                        on_epochs(run.candidate, len(run.epochs))
                    yield runs
            except BrokenProcessPool as error:
                self.close()
                deaths += 1
                if deaths == _DEATHS:
                    raise StudyError(
                        f"Processes died {_DEATHS} times in a row while training, as they do when memory runs out. "
                        f"Give fewer --workers. What had finished is kept. The last one: {error}"
                    ) from error

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=True)
            self._executor = None


def _environment() -> dict[str, str]:
    """One core for each process, and this process's framework."""
    threads = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    return {**dict.fromkeys(threads, "1"), "KERAS_BACKEND": keras.backend.backend()}


_problem: Problem


def _begin(problem: Problem) -> None:
    global _problem
    _problem = problem


def _train(work: Work) -> list[Run]:
    return train_one(_problem, work)
