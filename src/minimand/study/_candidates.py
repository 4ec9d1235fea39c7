"""Candidates of a study: descriptions of objectives that can be read, stored, built, searched and printed as code."""

from __future__ import annotations

import contextlib
import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras

import minimand
from minimand.study._settings import StudyError

_NAMESPACES = {
    "minimand.losses": minimand.losses,
    "minimand.transforms": minimand.transforms,
    "minimand.regularizers": minimand.regularizers,
    "minimand.optimizers": minimand.optimizers,
    "keras.losses": keras.losses,
    "keras.regularizers": keras.regularizers,
    "keras.optimizers": keras.optimizers,
}


@dataclass(frozen=True)
class Part:
    """The name of a class and its arguments, which may be parts themselves.

    Use parts to describe the loss, the transforms and the optimizer of a `Candidate`.

    Args:
        type: name of the class; Minimand's classes are looked up first, then Keras's.
        arguments: arguments by name.

    Examples:
        >>> from minimand.study import Part
        >>> Part("SNRScaling", {"optimizer": Part("Adam", {"learning_rate": 0.01})}).code()
        'minimand.optimizers.SNRScaling(optimizer=keras.optimizers.Adam(learning_rate=0.01))'
    """

    type: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def qualified_name(self) -> str:
        """The name with its module, such as `minimand.losses.GeneralRobust` for `GeneralRobust`."""
        for namespace, module in _NAMESPACES.items():
            if isinstance(getattr(module, self.type, None), type):
                return f"{namespace}.{self.type}"
        names = [name for m in _NAMESPACES.values() for name in dir(m) if isinstance(getattr(m, name), type)]
        raise StudyError(f"There is no component {self.type!r}.{_nearest(self.type, names)}")

    def build(self) -> Any:
        """The object that the part describes."""
        namespace, _, name = self.qualified_name().rpartition(".")
        arguments = {key: v.build() if isinstance(v, Part) else v for key, v in self.arguments.items()}
        try:
            return getattr(_NAMESPACES[namespace], name)(**arguments)
        except (TypeError, ValueError) as error:
            raise StudyError(f"{self.type}: {error}") from error

    def code(self) -> str:
        """The expression that makes the object."""
        arguments = (f"{k}={v.code() if isinstance(v, Part) else repr(v)}" for k, v in self.arguments.items())
        return f"{self.qualified_name()}({', '.join(arguments)})"

    def to_dict(self) -> dict[str, Any]:
        """The part as a table of a TOML file."""
        arguments = {key: v.to_dict() if isinstance(v, Part) else v for key, v in self.arguments.items()}
        return {"type": self.type, **arguments}

    @classmethod
    def from_dict(cls, value: Any) -> Part:
        """The part that a table with the key `type` describes; a string is a type without arguments."""
        table = {"type": value} if isinstance(value, str) else value
        if not isinstance(table, Mapping) or not isinstance(table.get("type"), str):
            raise StudyError(f"A component must be a name or a table with the key `type`. Received: {value!r}")
        arguments = {k: cls.from_dict(v) if isinstance(v, Mapping) else v for k, v in table.items() if k != "type"}
        part = cls(table["type"], arguments)
        part.qualified_name()
        return part


_ADAM = Part("Adam", {"learning_rate": 0.002})


@dataclass(frozen=True)
class Candidate:
    """An objective to compare: a loss, transforms and an optimizer.

    Give only what differs from the baseline; the defaults are the baseline's.

    Args:
        name: letters, digits, `-` and `_`.
        summary: a few words about the objective.
        loss: by default squared error or cross-entropy.
        transforms: as in `Trainer.compile`.
        optimizer: by default Adam.
        loss_learning_rate: as in `Trainer.compile`.
        search: ranges (low, high) that tuning searches, besides those of the optimizer's learning rate and weight
            decay. Keys are paths such as `"loss.alpha"` and `"transforms.0.stddev"`. The scale is logarithmic if
            low > 0.
        optional: a study leaves the candidate out, with the reason, if its parts do not suit the network; otherwise
            that is an error.

    Examples:
        >>> from minimand.study import Candidate, Part
        >>> huber = Candidate("huber", loss=Part("Huber", {"delta": 0.5}), search={"loss.delta": (0.1, 2.0)})
        >>> huber.loss_for("regression").code()
        'keras.losses.Huber(delta=0.5)'
    """

    name: str
    summary: str = ""
    loss: Part | None = None
    transforms: tuple[Part, ...] = ()
    optimizer: Part = _ADAM
    loss_learning_rate: float | None = None
    search: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    optional: bool = False

    def loss_for(self, task: str) -> Part:
        """The candidate's loss, or the usual one of the task."""
        return self.loss or Part("MeanSquaredError" if task == "regression" else "CategoricalCrossentropy")

    def code(self, task: str) -> str:
        """The Python code that compiles a trainer for this candidate."""
        lines = [f"    optimizer={self.optimizer.code()},", f"    loss={self.loss_for(task).code()},"]
        if self.transforms:
            lines.append(f"    transforms=[{', '.join(t.code() for t in self.transforms)}],")
        if self.loss_learning_rate is not None:
            lines.append(f"    loss_learning_rate={self.loss_learning_rate!r},")
        return "\n".join(["trainer = minimand.Trainer(model)", "trainer.compile(", *lines, ")"])

    def to_dict(self) -> dict[str, Any]:
        """Everything that determines the results."""
        return {
            "loss": self.loss and self.loss.to_dict(),
            "transforms": [transform.to_dict() for transform in self.transforms],
            "optimizer": self.optimizer.to_dict(),
            "loss_learning_rate": self.loss_learning_rate,
        }

    @classmethod
    def from_dict(cls, name: str, table: Any) -> Candidate:
        """The candidate that a table describes; each key is a field, and all keys may be left out."""
        known = [key for key in cls.__dataclass_fields__ if key != "name"]
        unknown = [key for key in table if key not in known] if isinstance(table, Mapping) else ["(no table)"]
        if unknown:
            raise StudyError(f"Unknown key {unknown[0]!r}.{_nearest(unknown[0], known)} Keys: {', '.join(known)}.")
        check_name(name)
        fields = dict(table)
        for key, kind, rule in _KINDS:
            if key in fields and not isinstance(fields[key], kind):
                raise StudyError(f"`{key}` must be {rule}. Received: {fields[key]!r}")
        for key in ("loss", "optimizer"):
            if fields.get(key) is not None:
                fields[key] = Part.from_dict(fields[key])
        fields["transforms"] = tuple(map(Part.from_dict, fields.get("transforms", ())))
        return cls(name, **fields)


_KINDS: tuple[tuple[str, Any, str], ...] = (
    ("summary", str, "a string"),
    ("transforms", list, "a list"),
    ("search", Mapping, "a table of paths and [low, high]"),
    ("optional", bool, "true or false"),
)


def check_name(name: Any) -> None:
    """Raise a `StudyError` unless the name of a candidate can name files."""
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise StudyError(
            f"A candidate's name must consist of letters, digits, '-' and '_', because it names files. "
            f"Received: {name!r}. Rename the candidate."
        )


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


# Default candidates.

_RANGE = Part("Range", {"strength": 0.1, "low": -0.25, "high": 0.25})
_CANDIDATES = (
    Candidate("baseline", "the usual loss (squared error or cross-entropy), Adam"),
    Candidate(
        "gradient-variance-penalty",
        "penalty on the variance of the gradient over examples",
        transforms=(Part("GradientVariancePenalty", {"strength": 1e-3}),),
        search={"transforms.0.strength": (1e-5, 1e-1)},
    ),
    Candidate(
        "snr-scaling",
        "updates that shrink where the gradient is mostly noise",
        optimizer=Part("SNRScaling", {"optimizer": _ADAM, "beta": 0.9}),
        search={"optimizer.beta": (0.5, 0.99)},
    ),
    Candidate(
        "adaptive-robust",
        "robust loss that learns its shape and scale",
        # Most residuals of one-hot targets can be 0. Without a bound the scale shrinks to 0, and one class is learned.
        loss=Part("AdaptiveRobust", {"scale_min": 0.1}),
        loss_learning_rate=0.02,
        search={"loss_learning_rate": (2e-3, 2e-1)},
    ),
    Candidate(
        "weight-noise",
        "training noise in proportion to the kernels",
        transforms=(Part("WeightNoise", {"stddev": 0.1, "mode": "relative"}),),
        search={"transforms.0.stddev": (0.01, 0.5)},
    ),
    Candidate(
        "group-lasso",
        "group lasso on the units of each layer",
        transforms=(Part("WeightPenalty", {"regularizer": Part("GroupLasso", {"strength": 1e-3})}),),
        search={"transforms.0.regularizer.strength": (1e-5, 1e-1)},
    ),
    Candidate(
        "range",
        "kernels pulled into [-0.25, 0.25]",
        transforms=(Part("WeightPenalty", {"regularizer": _RANGE}),),
        search={"transforms.0.regularizer.strength": (1e-3, 10.0)},
    ),
    Candidate(
        "general-robust",
        "robust loss with fixed shape 1 (pseudo-Huber)",
        loss=Part("GeneralRobust", {"alpha": 1.0, "scale": 1.0}),
        search={"loss.scale": (0.1, 10.0)},
    ),
)


def default_candidates() -> tuple[Candidate, ...]:
    """The default candidates: the baseline, and at least one for each of the five capabilities.

    Use them to find out what helps. All but the baseline are optional, because not every candidate suits every network.

    Returns:
        A tuple of candidates.

    Examples:
        >>> from minimand.study import default_candidates
        >>> default_candidates()[0].name
        'baseline'
    """
    return _CANDIDATES[0], *(replace(candidate, optional=True) for candidate in _CANDIDATES[1:])


def read_candidates(path: Path) -> tuple[Candidate, ...]:
    """The candidates of a TOML file.

    Each candidate is a table `[candidates.NAME]` with any of the fields of `Candidate`.

    Args:
        path: path of the file.

    Returns:
        A tuple of candidates, in the file's order.

    Raises:
        StudyError: the file cannot be read, is not TOML, or describes a component that does not exist.

    Examples:
        >>> import pathlib, tempfile
        >>> from minimand.study import read_candidates
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.toml"
        >>> _ = path.write_text('candidates.huber.loss.type = "Huber"')
        >>> [candidate.name for candidate in read_candidates(path)]
        ['huber']
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is not valid TOML: {error}.") from error
    tables = content.get("candidates")
    if not isinstance(tables, Mapping) or not tables:
        raise StudyError(f"{path} has no candidates. Add a table [candidates.NAME] for each.")
    candidates = []
    for name, table in tables.items():
        try:
            candidate = Candidate.from_dict(name, table)
            candidates.append(candidate)
            # An argument that a part refuses is an error now, not after an hour of training.
            for part in (candidate.loss_for("regression"), *candidate.transforms, candidate.optimizer):
                part.build()
        except StudyError as error:
            raise StudyError(f"{path}, candidate {name!r}: {error}") from error
    return tuple(candidates)


def choose(names: Iterable[str] | None, available: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The baseline and the candidates of these names, which are then not optional; None for all candidates.

    Raises:
        StudyError: a name is unknown, or there is no candidate besides the baseline.
    """
    by_name = {candidate.name: candidate for candidate in available}
    by_name.setdefault("baseline", _CANDIDATES[0])
    chosen = list(dict.fromkeys(["baseline", *(by_name if names is None else names)]))
    for name in chosen:
        if name not in by_name:
            raise StudyError(f"There is no candidate {name!r}.{_nearest(name, by_name)} Known: {', '.join(by_name)}.")
    if len(chosen) == 1:
        raise StudyError(f"Name a candidate to compare, besides the baseline. Known: {', '.join(by_name)}.")
    return tuple(by_name[name] if names is None else replace(by_name[name], optional=False) for name in chosen)


# Search: the numbers of a candidate by their paths, and the ranges that tuning searches.

# In w <- (1 - rate * decay) w: from hardly any decay to one that halves weights in 350 steps at a rate of 0.002.
_WEIGHT_DECAY = (1e-4, 1.0)


def search_ranges(candidate: Candidate) -> dict[str, tuple[float, float]]:
    """The ranges (low, high) that tuning searches, by path; the scale is logarithmic if low > 0.

    They are those of the optimizer's learning rate and weight decay, and those of the candidate's `search`.

    Raises:
        StudyError: a path leads to no component, or a range is not two numbers in ascending order.
    """
    ranges = {**_optimizer_ranges(candidate), **candidate.search}
    for path, bounds in ranges.items():
        numbers = isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(map(_is_number, bounds))
        if not numbers or not bounds[0] <= bounds[1]:
            raise StudyError(
                f"candidate {candidate.name!r}: the search range of {path!r} must be [low, high], two numbers in "
                f"ascending order. Received: {bounds!r}"
            )
        number_at(candidate, path)
    return {path: (float(low), float(high)) for path, (low, high) in ranges.items()}


def _optimizer_ranges(candidate: Candidate) -> dict[str, tuple[float, float]]:
    """A tenth to ten times the learning rate, and weight decay, as far as the innermost optimizer accepts them."""
    path, optimizer = "optimizer", candidate.optimizer
    while isinstance(inner := optimizer.arguments.get("optimizer"), Part):
        path, optimizer = f"{path}.optimizer", inner
    # Keras's default is 0.001.
    rate = optimizer.arguments.get("learning_rate", 0.001)
    ranges = {f"{path}.learning_rate": (rate / 10, rate * 10)} if _is_number(rate) else {}
    accepted = {}
    for each, bounds in {**ranges, f"{path}.weight_decay": _WEIGHT_DECAY}.items():
        with contextlib.suppress(StudyError):
            with_numbers(candidate, {each: bounds[0]}).optimizer.build()
            accepted[each] = bounds
    return accepted


def number_at(candidate: Candidate, path: str) -> float | None:
    """The candidate's number at this path; None where the candidate leaves it to the default."""
    component, key = _place(candidate, candidate.to_dict(), path)
    return float(component[key]) if _is_number(component.get(key)) else None


def with_numbers(candidate: Candidate, numbers: Mapping[str, float]) -> Candidate:
    """The candidate with other numbers at these paths."""
    table = candidate.to_dict()
    for path, number in numbers.items():
        component, key = _place(candidate, table, path)
        component[key] = number
    others = {"summary": candidate.summary, "search": candidate.search, "optional": candidate.optional}
    return Candidate.from_dict(candidate.name, {**table, **others})


def _place(candidate: Candidate, table: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The component's table in a candidate's table, and the key in it that the path leads to."""
    *keys, last = path.split(".")
    component: Any = table
    for key in keys:
        if isinstance(component, list):
            component = component[int(key)] if key.isdigit() and int(key) < len(component) else None
        else:
            component = component.get(key) if isinstance(component, dict) else None
    found = isinstance(component, dict) and "type" in component and last != "type"
    if not found and path != "loss_learning_rate":
        raise StudyError(
            f"candidate {candidate.name!r}: the search path {path!r} leads to no component. Give loss_learning_rate, "
            "or a path from loss, transforms.NUMBER (from 0) or optimizer to an argument: transforms.0.stddev."
        )
    return component, last


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
