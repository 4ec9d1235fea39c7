"""Numbers of a candidate by path, and the ranges that tuning searches for them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from minimand.study._candidates import Candidate, Part
from minimand.study._errors import StudyError

Ranges = dict[str, tuple[float, float]]

# Keras's where an optimizer is given none.
_LEARNING_RATE = 0.001
# Of w <- (1 - rate * decay) w: from hardly any to one that halves weights in 350 steps at a rate of 0.002.
_WEIGHT_DECAY = (1e-4, 1.0)


def search_of(candidate: Candidate) -> Ranges:
    """What is searched: its optimizer's learning rate and weight decay, and what it names itself.

    Ranges are (low, high), searched on a logarithmic scale where low > 0.

    Raises:
        StudyError: a path leads nowhere, or a range is none.
    """
    ranges = {**_usual(candidate), **candidate.search}
    for path, bounds in ranges.items():
        numbers = isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(map(_is_number, bounds))
        if not numbers or not bounds[0] <= bounds[1]:
            raise StudyError(
                f"candidate {candidate.name!r}: the search range of {path!r} must be [low, high], two numbers in this "
                f"order. Received: {bounds!r}"
            )
        number_at(candidate, path)
    return {path: (float(low), float(high)) for path, (low, high) in ranges.items()}


def extremes(candidate: Candidate) -> list[Candidate]:
    """The candidate with each of its ranges' ends, for what it refuses."""
    return [with_numbers(candidate, {path: end}) for path, ends in search_of(candidate).items() for end in ends]


def number_at(candidate: Candidate, path: str) -> float | None:
    """The number that the candidate gives there; None where it leaves it to the default."""
    holder, key = _place(candidate, candidate.to_dict(), path)
    return float(holder[key]) if _is_number(holder.get(key)) else None


def with_numbers(candidate: Candidate, numbers: Mapping[str, float]) -> Candidate:
    """The candidate with other numbers at these paths."""
    content = json.loads(json.dumps(candidate.to_dict()))
    for path, number in numbers.items():
        holder, key = _place(candidate, content, path)
        holder[key] = number
    changed = Candidate.from_dict({"name": candidate.name, "summary": candidate.summary, **content})
    return dataclasses.replace(changed, search=candidate.search, optional=candidate.optional)


def _place(candidate: Candidate, content: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The component's table in a candidate's content, and the key in it."""
    *keys, last = path.split(".")
    holder: Any = content
    for key in keys:
        if isinstance(holder, list):
            holder = holder[int(key)] if key.isdigit() and int(key) < len(holder) else None
        else:
            holder = holder.get(key) if isinstance(holder, dict) else None
    component = isinstance(holder, dict) and "type" in holder and last != "type"
    if not component and path != "loss_learning_rate":
        raise StudyError(
            f"candidate {candidate.name!r}: the search path {path!r} leads to no component of it. A path is "
            "loss_learning_rate, or goes from loss, transforms.NUMBER (from 0) or optimizer to an argument: "
            "transforms.0.stddev."
        )
    return holder, last


def _usual(candidate: Candidate) -> Ranges:
    """A learning rate up to ten times as low or high as it is, and weight decay, where the optimizer has them."""
    path, optimizer = "optimizer", candidate.optimizer
    while isinstance(inner := optimizer.arguments.get("optimizer"), Part):
        path, optimizer = f"{path}.optimizer", inner
    rate = optimizer.arguments.get("learning_rate", _LEARNING_RATE)
    ranges = {f"{path}.learning_rate": (rate / 10, rate * 10)} if _is_number(rate) else {}
    ranges[f"{path}.weight_decay"] = _WEIGHT_DECAY
    return {path: bounds for path, bounds in ranges.items() if _accepts(candidate, path, bounds[0])}


def _accepts(candidate: Candidate, path: str, number: float) -> bool:
    try:
        with_numbers(candidate, {path: number}).optimizer.build()
    except StudyError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
