"""Processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool

import keras
from loky import ProcessPoolExecutor

from kriterion.study.errors import StudyError
from kriterion.study.problem import Problem
from kriterion.study.run import Run
from kriterion.study.training import OnEpochs, Work, train_one

# Deaths of processes in a row, none of which finished anything in between, after which a study gives up.
_DEATHS = 3


class ProcessesEngine:
    """Trains in processes of this machine. What a process that dies was about to do, another one does.

    Args:
        workers: number of processes; by default one for each core.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or os.cpu_count() or 1

    def train(self, problem: Problem, works: Sequence[Work], on_epochs: OnEpochs) -> Iterator[list[Run]]:
        """As `Engine.train`."""
        left = list(works)
        deaths = 0
        while left:
            executor = ProcessPoolExecutor(
                min(self.workers, len(left)), env=_environment(), initializer=_begin, initargs=(problem,)
            )
            try:
                futures: dict[Future[list[Run]], Work] = {executor.submit(_train, work): work for work in left}
                for future in as_completed(futures):
                    runs = future.result()
                    deaths = 0
                    left.remove(futures[future])
                    for run in runs:
                        on_epochs(run.candidate, len(run.epochs))
                    yield runs
            except BrokenProcessPool as error:
                deaths += 1
                if deaths == _DEATHS:
                    raise StudyError(
                        f"Processes died {_DEATHS} times in a row while training, as they do when memory runs out. "
                        f"Give fewer --workers. What had finished is kept. The last one: {error}"
                    ) from error
            finally:
                executor.shutdown(wait=True, kill_workers=True)


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
