"""Candidates of a study: descriptions of objectives that can be read, stored, built, searched and printed as code."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

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
    "keras.optimizers.schedules": keras.optimizers.schedules,
}


@dataclass(frozen=True)
class Part:
    """The name of a class and its arguments, which may be parts themselves.

    Use parts to describe the loss, the transforms and the optimizer of a `Candidate` without making them. A candidate
    also takes the objects themselves and describes them by their `get_config`.

    Args:
        type: name of a class. Minimand's classes are looked up first, then Keras's, then registered ones
            (`package>Name`), then `module.Name`.
        arguments: arguments by name.
        origin: the class or function itself, where no name leads to it.

    Examples:
        >>> from minimand.study import Part
        >>> Part("SNRScaling", {"optimizer": Part("Adam", {"learning_rate": 0.01})}).code()
        'minimand.optimizers.SNRScaling(optimizer=keras.optimizers.Adam(learning_rate=0.01))'
    """

    type: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    origin: Any = field(default=None, compare=False, repr=False)

    def found(self) -> tuple[str, Any]:
        """The name with its module, such as `minimand.losses.GeneralRobust` for `GeneralRobust`, and the class."""
        for namespace, module in _NAMESPACES.items():
            if isinstance(found := getattr(module, self.type, None), type):
                return f"{namespace}.{self.type}", found
        found = self.origin or keras.saving.get_registered_object(self.type)
        if found is None and "." in self.type:
            module_name, _, name = self.type.rpartition(".")
            with contextlib.suppress(ImportError):
                found = getattr(importlib.import_module(module_name), name, None)
        if found is None:
            names = [name for m in _NAMESPACES.values() for name in dir(m) if isinstance(getattr(m, name), type)]
            raise StudyError(f"The component {self.type!r} does not exist.{_nearest(self.type, names)}")
        return f"{found.__module__}.{found.__qualname__}", found

    def build(self) -> Any:
        """The object that the part describes."""
        _, found = self.found()
        if not isinstance(found, type):
            return found
        try:
            return found(**{key: built(value) for key, value in self.arguments.items()})
        except (TypeError, ValueError) as error:
            raise StudyError(f"{self.type}: {error}") from error

    def code(self) -> str:
        """The expression that makes the object."""
        try:
            name, found = self.found()
        # The class of a stored study need not be at hand.
        except StudyError:
            name, found = self.type.replace(">", "."), type
        if not isinstance(found, type):
            return name
        return f"{name}({', '.join(f'{key}={_code(value)}' for key, value in self.arguments.items())})"

    def to_dict(self) -> dict[str, Any]:
        """The part as a table of a TOML file."""
        return {"type": self.type, **{key: table_of(value) for key, value in self.arguments.items()}}

    @classmethod
    def from_dict(cls, value: Any, *, check: bool = True) -> Part:
        """The part that a table with the key `type` describes; a string is a type without arguments.

        With `check`, the class must exist.
        """
        table = {"type": value} if isinstance(value, str) else value
        if not isinstance(table, Mapping) or not isinstance(table.get("type"), str):
            raise StudyError(f"A component must be a name or a table with the key `type`. Received: {value!r}")
        arguments = {key: _from_table(each, check) for key, each in table.items() if key != "type"}
        part = cls(table["type"], arguments)
        if check:
            part.found()
        return part

    @classmethod
    def of(cls, made: Any) -> Part:
        """The part that describes an object with `get_config`, or a function.

        Arguments that the object would have anyway are left out.
        """
        if isinstance(made, Part):
            return made
        if not hasattr(made, "get_config"):
            if callable(made) and hasattr(made, "__qualname__"):
                return cls(f"{made.__module__}.{made.__qualname__}", origin=made)
            raise StudyError(f"A component must be an object with `get_config`, or a function. Received: {made!r}")
        # On PyTorch, Keras makes optimizers of subclasses that have no public name.
        hidden = type(made).__module__.startswith("keras.src.backend.")
        kind = next(filter(_is_named, type(made).__mro__), type(made)) if hidden else type(made)
        named = _is_named(kind)
        registered = keras.saving.get_registered_name(kind)
        name = kind.__name__ if named else registered if ">" in registered else f"{kind.__module__}.{kind.__qualname__}"
        try:
            config = _config(made)
            part = cls(name, config, origin=kind)
            part.build()
        except (NotImplementedError, StudyError) as error:
            raise StudyError(
                f"{kind.__name__} cannot be made again from its `get_config`, which must return the arguments of its "
                f"constructor. {error}"
            ) from error
        for key in config:
            shorter = replace(part, arguments={k: v for k, v in part.arguments.items() if k != key})
            with contextlib.suppress(StudyError):
                if _config(shorter.build()) == config:
                    part = shorter
        return part


Loss = Part | Mapping[str, Part] | Sequence[Part]
"""A loss, or one for each output."""


def _mapped(function: Callable[[Part], Any], description: Any) -> Any:
    """The structure with the function's value in place of each part."""
    if isinstance(description, Part):
        return function(description)
    if isinstance(description, Mapping):
        return {key: _mapped(function, value) for key, value in description.items()}
    if isinstance(description, (list, tuple)):
        return type(description)(_mapped(function, value) for value in description)
    return description


def built(description: Any) -> Any:
    """The structure with each part built."""
    return _mapped(Part.build, description)


def _code(description: Any) -> str:
    if isinstance(description, Part):
        return description.code()
    if isinstance(description, Mapping):
        return f"{{{', '.join(f'{key!r}: {_code(value)}' for key, value in description.items())}}}"
    if isinstance(description, (list, tuple)):
        return f"[{', '.join(map(_code, description))}]"
    return repr(description)


def table_of(description: Any) -> Any:
    """The structure with each part as a table."""
    return _mapped(Part.to_dict, description)


def _from_table(value: Any, check: bool) -> Any:
    if isinstance(value, Mapping):
        if isinstance(value.get("type"), str):
            return Part.from_dict(value, check=check)
        return {key: _from_table(each, check) for key, each in value.items()}
    return type(value)(_from_table(each, check) for each in value) if isinstance(value, (list, tuple)) else value


def _is_named(kind: type) -> bool:
    return any(getattr(module, kind.__name__, None) is kind for module in _NAMESPACES.values())


def _config(made: Any) -> dict[str, Any]:
    """The arguments of an object's constructor, with objects as parts."""
    # The `get_config` of Keras's `Huber` and `CosineSimilarity` leaves out arguments of their functions.
    accepted, own = inspect.signature(type(made)).parameters, getattr(made, "_fn_kwargs", {})
    config = {**made.get_config(), **{key: value for key, value in own.items() if key in accepted}}
    if isinstance(made, keras.optimizers.Optimizer):
        # Keras numbers the names of optimizers.
        config.pop("name", None)
    return {key: _described(value) for key, value in config.items()}


def _described(value: Any) -> Any:
    """A value of a configuration, with serialised objects as parts."""
    if isinstance(value, Mapping):
        if "class_name" in value and "config" in value:
            return Part.of(keras.saving.deserialize_keras_object(value))
        return {key: _described(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_described, value))
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, float) and math.isfinite(value) and float(np.float32(value)) == value:
        # Keras keeps numbers in single precision, of which 0.002 is the shortest form.
        return float(str(np.float32(value)))
    return (
        Part.of(value) if hasattr(value, "get_config") or (callable(value) and not isinstance(value, type)) else value
    )


_ADAM = Part("Adam", {"learning_rate": 0.002})


@dataclass(frozen=True)
class Candidate:
    """An objective to compare: a loss, transforms and an optimizer.

    Give only what differs from the baseline; the defaults are the baseline's. A study makes the objects anew for each
    training from their `get_config`.

    Args:
        name: letters, digits, `-` and `_`.
        summary: a few words about the objective.
        loss: loss, name of a loss, or `Part`; a dictionary by output, or a list, for several outputs. By default the
            usual loss of the task. Targets of classes are one-hot, and targets of regression are scaled.
        transforms: as in `Trainer.compile`.
        optimizer: optimizer, name of an optimizer, or `Part`; by default Adam.
        loss_learning_rate: as in `Trainer.compile`.
        search: ranges (low, high) that tuning searches, besides those of the optimizer's learning rate and weight
            decay. Keys are paths such as `"loss.alpha"` and `"transforms.0.stddev"`. The scale is logarithmic if
            low > 0.
        optional: a study leaves the candidate out, with the reason, if its parts do not suit the network; otherwise
            that is an error.

    Raises:
        StudyError: an object has no `get_config` from which it can be made again.

    Examples:
        >>> import keras
        >>> from minimand.study import Candidate
        >>> huber = Candidate("huber", loss=keras.losses.Huber(0.5), search={"loss.delta": (0.1, 2.0)})
        >>> huber.loss.code()
        'keras.losses.Huber(delta=0.5)'
    """

    name: str
    summary: str = ""
    loss: Any = None
    transforms: Sequence[Any] = ()
    optimizer: Any = _ADAM
    loss_learning_rate: float | None = None
    search: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    optional: bool = False

    def __post_init__(self) -> None:
        try:
            parts = {
                "loss": _parts(self.loss, keras.losses.get),
                "transforms": tuple(map(Part.of, self.transforms)),
                "optimizer": _parts(self.optimizer, keras.optimizers.get),
            }
        except (StudyError, ValueError, TypeError) as error:
            raise StudyError(f"candidate {self.name!r}: {error}") from error
        for key, value in parts.items():
            object.__setattr__(self, key, value)

    def loss_for(self, usual: Loss) -> Loss:
        """The candidate's loss, or the usual one of the task."""
        return usual if self.loss is None else self.loss

    def code(self, usual_loss: Loss) -> str:
        """The Python code that compiles a trainer for this candidate."""
        lines = [f"    optimizer={self.optimizer.code()},", f"    loss={_code(self.loss_for(usual_loss))},"]
        if self.transforms:
            lines.append(f"    transforms=[{', '.join(t.code() for t in self.transforms)}],")
        if self.loss_learning_rate is not None:
            lines.append(f"    loss_learning_rate={self.loss_learning_rate!r},")
        return "\n".join(["trainer = minimand.Trainer(model)", "trainer.compile(", *lines, ")"])

    def to_dict(self) -> dict[str, Any]:
        """Everything that determines the results."""
        return {
            "loss": table_of(self.loss),
            "transforms": [transform.to_dict() for transform in self.transforms],
            "optimizer": self.optimizer.to_dict(),
            "loss_learning_rate": self.loss_learning_rate,
        }

    @classmethod
    def from_dict(cls, name: str, table: Any, *, check: bool = True) -> Candidate:
        """The candidate that a table describes; each key is a field, and all keys may be left out.

        With `check`, the classes must exist.
        """
        known = [key for key in cls.__dataclass_fields__ if key != "name"]
        unknown = [key for key in table if key not in known] if isinstance(table, Mapping) else ["(no table)"]
        if unknown:
            raise StudyError(f"Unknown key {unknown[0]!r}.{_nearest(unknown[0], known)} Keys: {', '.join(known)}.")
        check_name(name)
        fields = dict(table)
        for key, kind, rule in _KINDS:
            if key in fields and not isinstance(fields[key], kind):
                raise StudyError(f"`{key}` must be {rule}. Received: {fields[key]!r}")
        if fields.get("loss") is not None:
            fields["loss"] = loss_from_table(fields["loss"], check=check)
        if fields.get("optimizer") is not None:
            fields["optimizer"] = Part.from_dict(fields["optimizer"], check=check)
        fields["transforms"] = tuple(Part.from_dict(each, check=check) for each in fields.get("transforms", ()))
        return cls(name, **fields)


def loss_from_table(table: Any, *, check: bool = True) -> Loss:
    """The loss that a table describes, or the losses of several outputs in a table by output or in a list."""
    if isinstance(table, list):
        return [Part.from_dict(each, check=check) for each in table]
    if isinstance(table, Mapping) and not isinstance(table.get("type"), str):
        return {key: Part.from_dict(each, check=check) for key, each in table.items()}
    return Part.from_dict(table, check=check)


def _parts(given: Any, named: Callable[[str], Any]) -> Any:
    """Objects and names as parts, in the structure in which they are given."""
    if isinstance(given, Mapping):
        return {key: _parts(each, named) for key, each in given.items()}
    if isinstance(given, (list, tuple)):
        return [_parts(each, named) for each in given]
    return None if given is None else Part.of(named(given) if isinstance(given, str) else given)


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
            built([candidate.loss, *candidate.transforms, candidate.optimizer])
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
    found = _named(chosen, by_name)
    if len(chosen) == 1:
        raise StudyError(f"Name a candidate to compare, besides the baseline. Known: {', '.join(by_name)}.")
    return found if names is None else tuple(replace(candidate, optional=False) for candidate in found)


def _named(names: Sequence[str], available: Mapping[str, Candidate]) -> tuple[Candidate, ...]:
    """The candidates of these names; raises a `StudyError` if a name is unknown."""
    for name in names:
        if name not in available:
            raise StudyError(
                f"The candidate {name!r} does not exist.{_nearest(name, available)} Known: {', '.join(available)}."
            )
    return tuple(available[name] for name in names)


def resolved(given: Iterable[Candidate | str] | None) -> tuple[Candidate, ...]:
    """Candidates, of which names are default ones; None for all default ones. The baseline is added and comes first.

    Raises:
        StudyError: a name is unknown, or two candidates have the same name.
    """
    if isinstance(given, (str, Candidate)):
        raise StudyError(f"`candidates` must be a list. Received: {given!r}. Put it into brackets.")
    if given is None:
        return default_candidates()
    own, seen = list(given), set()
    for each in own:
        if not isinstance(each, (str, Candidate)):
            raise StudyError(f"`candidates` must hold names and Candidates. Received: {each!r}")
        name = each if isinstance(each, str) else each.name
        check_name(name)
        # Some file systems do not distinguish cases.
        if name.casefold() in seen:
            raise StudyError(f"candidate {name!r}: there is another of this name. Rename one.")
        seen.add(name.casefold())
    by_name = {each.name: each for each in own if isinstance(each, Candidate)}
    names = [each if isinstance(each, str) else each.name for each in own]
    available = {each.name: each for each in _CANDIDATES} | by_name
    return _named(["baseline", *(name for name in names if name != "baseline")], available)


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
    if path == "loss_learning_rate":
        number = candidate.loss_learning_rate
    else:
        *keys, last = path.split(".")
        component: Any = candidate
        for key in keys:
            component = _inner(component, key)
        if not isinstance(component, Part):
            raise StudyError(
                f"candidate {candidate.name!r}: the search path {path!r} leads to no component. Give "
                "loss_learning_rate, or a path from loss, transforms.NUMBER (from 0) or optimizer to an argument: "
                "transforms.0.stddev."
            )
        number = component.arguments.get(last)
    return float(number) if number is not None and _is_number(number) else None


def _inner(component: Any, key: str) -> Any:
    """The component at a key of a candidate, a part, a dictionary or a list; None if there is none."""
    if isinstance(component, Candidate):
        return getattr(component, key) if key in ("loss", "transforms", "optimizer") else None
    if isinstance(component, Part):
        return component.arguments.get(key)
    if isinstance(component, Mapping):
        return component.get(key)
    inside = isinstance(component, (list, tuple)) and key.isdigit() and int(key) < len(component)
    return component[int(key)] if inside else None


def with_numbers(candidate: Candidate, numbers: Mapping[str, float]) -> Candidate:
    """The candidate with other numbers at these paths."""
    for path, number in numbers.items():
        # Raises an error if the path leads nowhere.
        number_at(candidate, path)
        candidate = _with_number(candidate, path.split("."), number)
    return candidate


def _with_number(component: Any, keys: Sequence[str], number: float) -> Any:
    key, *others = keys
    inner = _with_number(_inner(component, key), others, number) if others else number
    if isinstance(component, Candidate):
        fields: dict[str, Any] = {key: inner}
        return replace(component, **fields)
    if isinstance(component, Part):
        return replace(component, arguments={**component.arguments, key: inner})
    if isinstance(component, Mapping):
        return {**component, key: inner}
    return [*component[: int(key)], inner, *component[int(key) + 1 :]]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
