"""A Ray cluster, or Ray on this machine."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import keras
from loky import ProcessPoolExecutor

from minimand import backend
from minimand.study._errors import StudyError, check_count
from minimand.study._problem import Problem
from minimand.study._run import Run
from minimand.study._training import OnEpochs, Train, Work, train, train_one

# The process itself.


class LocalEngine:
    """Trains in this process.

    Examples:
        >>> from minimand.study import Candidate, LocalEngine, Settings, Study, mlp
        >>> settings = Settings(seeds=2, epochs=1)
        >>> study = Study(mlp, "iris", [Candidate("baseline")], settings, engine=LocalEngine())
    """

    @contextlib.contextmanager
    def at_work(self, problem: Problem) -> Iterator[Train]:
        """As `Engine.at_work`."""
        yield partial(train, problem)


# Processes on this machine.

# Deaths of processes in a row, none of which finished anything in between, after which a study gives up.
_DEATHS = 3


class ProcessesEngine:
    """Trains in processes of this machine. What a process that dies was about to do, another one does.

    Args:
        workers: number of processes; by default one for each core.

    Raises:
        StudyError: `workers` is no number of at least 1.

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


# A Ray cluster, or Ray on this machine.

# How often a piece of work is begun again after its worker was lost.
_RETRIES = 5


class RayEngine:
    """Trains in tasks of Ray: on the cluster that RAY_ADDRESS or `ray start` names, else on this machine.

    Ray itself begins a task again whose worker or machine was lost.

    Args:
        cpus: cores that each task is given.
        gpus: graphics cards that each task is given, or a fraction of one.

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
            raise StudyError("--engine ray needs the package 'ray': pip install 'minimand[ray]'") from error
        self._ray, self._resources = ray, {"num_cpus": cpus, "num_gpus": gpus}

    @contextlib.contextmanager
    def at_work(self, problem: Problem) -> Iterator[Train]:
        """As `Engine.at_work`."""
        ray: Any = self._ray
        begun = False
        everywhere: Any = None

        def train(works: Sequence[Work], on_epochs: OnEpochs) -> Iterator[list[Run]]:
            nonlocal begun, everywhere
            if not ray.is_initialized():
                _begin_on_cluster(ray)
                begun = True
            everywhere = ray.put(problem) if everywhere is None else everywhere
            environment = {"env_vars": {"KERAS_BACKEND": keras.backend.backend()}}
            task = ray.remote(max_retries=_RETRIES, runtime_env=environment, **self._resources)(train_one)
            waiting = [task.remote(everywhere, work) for work in works]
            while waiting:
                (done,), waiting = ray.wait(waiting, num_returns=1)
                runs: list[Run] = ray.get(done)
                for run in runs:
                    on_epochs(run.candidate, len(run.epochs))
                yield runs

        try:
            yield train
        finally:
            if begun:
                ray.shutdown()


def _begin_on_cluster(ray: Any) -> None:
    with warnings.catch_warnings():
        # JAX warns of the forks that Ray's processes start with, which run another program at once.
        warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)


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
