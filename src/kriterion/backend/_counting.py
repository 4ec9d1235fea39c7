"""Steps counted outside of them, for transforms that act in one of every so many."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any


def periodic(trainer: Any) -> list[Any]:
    """The trainer's transforms that count steps."""
    return [transform for transform in trainer.transforms if hasattr(transform, "start_counting")]


@contextlib.contextmanager
def counted(transforms: Sequence[Any]) -> Iterator[tuple[bool, ...]]:
    """Count a step, which runs within; yields which of the transforms act in it."""
    try:
        yield tuple(transform.tick() for transform in transforms)
    finally:
        for transform in transforms:
            transform.stop_counting()
