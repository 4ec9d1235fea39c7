"""The process itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kriterion.study.problem import Problem
from kriterion.study.run import Run
from kriterion.study.training import OnEpochs, Work, train


class LocalEngine:
    """Trains in this process."""

    def train(self, problem: Problem, works: Sequence[Work], on_epochs: OnEpochs) -> Iterator[list[Run]]:
        """As `Engine.train`."""
        return train(problem, works, on_epochs)
