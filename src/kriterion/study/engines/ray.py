"""A Ray cluster, or Ray on this machine."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from kriterion.study.errors import StudyError
from kriterion.study.problem import Problem
from kriterion.study.run import Run
from kriterion.study.training import OnEpochs, Train, Work, train_one

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
        >>> from kriterion.study import RayEngine
        >>> engine = RayEngine(cpus=2)
    """

    def __init__(self, cpus: float = 1.0, gpus: float = 0.0) -> None:
        try:
            import ray
        except ImportError as error:
            raise StudyError("--engine ray needs the package 'ray': pip install 'kriterion[ray]'") from error
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
                _begin(ray)
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


def _begin(ray: Any) -> None:
    with warnings.catch_warnings():
        # JAX warns of the forks that Ray's processes start with, which run another program at once.
        warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
