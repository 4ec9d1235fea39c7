"""The mean of an objective over several passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kriterion._scope import isolated
from kriterion.backend import Tensor
from kriterion.transforms.base import Batch

Pass = Callable[[Batch], tuple[Tensor, Any]]


def mean_of(passes: Sequence[Pass], batch: Batch) -> tuple[Tensor, Any]:
    """The mean loss of the passes, and what the first one left behind."""
    loss, outcome = passes[0](batch)
    for one in passes[1:]:
        loss = loss + isolated(one)(batch)[0]
    return loss / len(passes) if len(passes) > 1 else loss, outcome
