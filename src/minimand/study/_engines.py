"""Engines: how and where runs are trained."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import keras
from loky import ProcessPoolExecutor

from minimand import backend
from minimand.study._candidates import Candidate
from minimand.study._problem import Problem
from minimand.study._settings import StudyError, check_count
from minimand.study._training import OnEpochs, Run, Work, train_in_a_loop
from minimand.study._vectorized import runs_at_once, train_at_once

Train = Callable[[Sequence[Work], OnEpochs], Iterator[list[Run]]]
"""A function of pieces of work that yields their runs, some at a time, and reports the epochs that pass."""


class Engine(Protocol):
    """The interface of an engine, which trains pieces of work anywhere and in any order.

    Implement it to train on machines of your own. Each piece of work must count once, whatever happens to a worker.

    Examples:
        >>> import contextlib
        >>> from minimand.study import LocalEngine
        >>> class Announced:
        ...     @contextlib.contextmanager
        ...     def at_work(self, problem):
        ...         print("Training", problem.data.name)
        ...         with LocalEngine().at_work(problem) as train:
        ...             yield train
    """

    def at_work(self, problem: Problem) -> AbstractContextManager[Train]:
        """A context whose value, `train(works, on_epochs)`, yields lists of runs; it may be called several times."""


def divided(problem: Problem, candidates: Iterable[Candidate], seeds: Sequence[int]) -> list[Work]:
    """The runs of these candidates and seeds as pieces of work, each with as many seeds as can train at once."""
    size = 1 if backend.step_programs is None or problem.data.stream is not None else runs_at_once(problem)
    parts = [tuple(seeds[first : first + size]) for first in range(0, len(seeds), size)]
    return [Work(candidate, part) for candidate in candidates for part in parts]


# This process.


def train(problem: Problem, works: Sequence[Work], on_epochs: OnEpochs) -> Iterator[list[Run]]:
    """The runs of these works, some at a time: trained at once on JAX, else one after the other."""
    if backend.step_programs is None or problem.data.stream is not None:
        rest = [(work, "") for work in works]
    else:
        rest = yield from train_at_once(problem, works, on_epochs)
    for work, note in rest:
        yield list(train_in_a_loop(problem, work, on_epochs, note))


def train_silently(problem: Problem, work: Work) -> list[Run]:
    """The runs of a piece of work, for another process, which reports epochs when they are done."""
    return [run for runs in train(problem, [work], lambda candidate, epochs: None) for run in runs]


class LocalEngine:
    """Trains in this process.

    Use it on JAX, where all seeds of a candidate train at once.

    Examples:
        >>> from minimand.study import LocalEngine, Study, mlp
        >>> study = Study(mlp, "iris", candidates=["weight-noise"], seeds=2, epochs=1, engine=LocalEngine())
    """

    @contextlib.contextmanager
    def at_work(self, problem: Problem) -> Iterator[Train]:
        """As `Engine.at_work`."""
        yield partial(train, problem)


# Processes of this machine.

# A study gives up after this many deaths of processes in a row, without a finished run in between.
_DEATHS = 3


class ProcessesEngine:
    """Trains in processes of this machine; another process takes over the work of one that dies.

    Use it on TensorFlow and PyTorch, which train one run at a time.

    Args:
        workers: number of processes; by default one for each core.

    Raises:
        StudyError: `workers` is not a whole number of at least 1.

    Examples:
        >>> from minimand.study import ProcessesEngine
        >>> ProcessesEngine(2).workers
        2
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = (os.cpu_count() or 1) if workers is None else check_count("--workers", workers)

    @contextlib.contextmanager
    def at_work(self, problem: Problem) -> Iterator[Train]:
        """As `Engine.at_work`."""
        executor = self._executor(problem)

        def train(works: Sequence[Work], on_epochs: OnEpochs) -> Iterator[list[Run]]:
            nonlocal executor
            left, deaths = list(works), 0
            while left:
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
                    executor.shutdown(wait=True, kill_workers=True)
                    executor = self._executor(problem)
                    deaths += 1
                    if deaths == _DEATHS:
                        raise StudyError(
                            f"Processes died {_DEATHS} times in a row while training, probably because memory ran out. "
                            f"Use fewer --workers. Finished runs are kept. The last error: {error}"
                        ) from error

        try:
            yield train
        finally:
            executor.shutdown(wait=True, kill_workers=True)

    def _executor(self, problem: Problem) -> ProcessPoolExecutor:
        """An executor whose processes hold the problem; each has one core and the framework of this process."""
        threads = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        environment = {**dict.fromkeys(threads, "1"), "KERAS_BACKEND": keras.backend.backend()}
        return ProcessPoolExecutor(self.workers, env=environment, initializer=_begin, initargs=(problem,))


_problem: Problem


def _begin(problem: Problem) -> None:
    global _problem
    _problem = problem


def _train(work: Work) -> list[Run]:
    return train_silently(_problem, work)


# A Ray cluster.

# A piece of work is begun again this many times after its worker was lost.
_RETRIES = 5


class RayEngine:
    """Trains in tasks of Ray, on the cluster of RAY_ADDRESS or `ray start`, otherwise on this machine.

    Use it for a study that one machine cannot finish in time. Ray restarts the tasks of a worker that is lost.

    Args:
        cpus: cores for each task.
        gpus: graphics cards for each task, or a fraction of one.

    Raises:
        StudyError: Ray is not installed.

    Examples:
        >>> from minimand.study import RayEngine
        >>> engine = RayEngine(cpus=2)
    """

    def __init__(self, cpus: float = 1.0, gpus: float = 0.0) -> None:
        try:
            import ray
        except ImportError as error:
            raise StudyError("--engine ray needs the package 'ray'. Install it: pip install 'minimand[ray]'") from error
        self._ray, self._resources = ray, {"num_cpus": cpus, "num_gpus": gpus}

    @contextlib.contextmanager
    def at_work(self, problem: Problem) -> Iterator[Train]:
        """As `Engine.at_work`."""
        ray: Any = self._ray
        begins = not ray.is_initialized()
        if begins:
            with warnings.catch_warnings():
                # JAX warns of the forks by which Ray starts its processes; those run another program at once.
                warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
                ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
        try:
            shared = ray.put(problem)
            environment = {"env_vars": {"KERAS_BACKEND": keras.backend.backend()}}
            task = ray.remote(max_retries=_RETRIES, runtime_env=environment, **self._resources)(train_silently)

            def train(works: Sequence[Work], on_epochs: OnEpochs) -> Iterator[list[Run]]:
                waiting = [task.remote(shared, work) for work in works]
                while waiting:
                    (done,), waiting = ray.wait(waiting, num_returns=1)
                    runs: list[Run] = ray.get(done)
                    for run in runs:
                        on_epochs(run.candidate, len(run.epochs))
                    yield runs

            yield train
        finally:
            if begins:
                ray.shutdown()


ENGINES: dict[str, Callable[[], Engine]] = {"local": LocalEngine, "processes": ProcessesEngine, "ray": RayEngine}


def engine_named(name: str, workers: int | None = None) -> Engine:
    """The engine of this name; `"auto"` is this process on JAX, else one process for each core.

    Raises:
        StudyError: there is no such engine, or `workers` is below 1 or given without processes.
    """
    if name == "auto":
        name = "processes" if backend.step_programs is None else "local"
    if name not in ENGINES:
        raise StudyError(f"--engine must be auto or one of {', '.join(ENGINES)}. Received: {name!r}")
    if workers is None:
        return ENGINES[name]()
    if name != "processes":
        raise StudyError(f"--workers needs --engine processes. Received: {workers} with --engine {name}")
    return ProcessesEngine(workers)
