"""The mean of an objective over several points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kriterion._scope import isolated
from kriterion.backend import Tensor
from kriterion.transforms.base import Batch, Objective, Weights


def mean_over(objective: Objective, points: Sequence[Weights], batch: Batch) -> tuple[Tensor, Any]:
    """The mean loss at these weights, and what the first pass left behind."""
    loss, outcome = objective(points[0], batch)
    for weights in points[1:]:
        loss = loss + isolated(objective)(weights, batch)[0]
    return loss / len(points) if len(points) > 1 else loss, outcome
