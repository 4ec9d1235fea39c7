"""The process itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

from kriterion.study.problem import Problem
from kriterion.study.training import Train, train


class LocalEngine:
    """Trains in this process.

    Examples:
        >>> from kriterion.study import Candidate, LocalEngine, Settings, Study, mlp
        >>> settings = Settings(seeds=2, epochs=1)
        >>> study = Study(mlp, "iris", [Candidate("baseline")], settings, engine=LocalEngine())
    """

    @contextlib.contextmanager
    def at_work(self, problem: Problem) -> Iterator[Train]:
        """As `Engine.at_work`."""
        yield partial(train, problem)
