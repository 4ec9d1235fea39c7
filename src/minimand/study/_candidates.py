"""What is compared: declarative descriptions of objectives, that can be read, stored, built and printed as code."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras

import minimand
from minimand.study._errors import StudyError

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
    """A class by name and its arguments, which may hold parts again.

    Args:
        type: the class's name: Minimand's are looked up first, then Keras's.
        arguments: by name.

    Examples:
        >>> from minimand.study import Part
        >>> Part("SNRScaling", {"optimizer": Part("Adam", {"learning_rate": 0.01})}).code()
        'minimand.optimizers.SNRScaling(optimizer=keras.optimizers.Adam(learning_rate=0.01))'
    """

    type: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def qualified_name(self) -> str:
        """`minimand.losses.GeneralRobust` for `GeneralRobust`: Minimand's classes first, then Keras's."""
        for namespace, module in _NAMESPACES.items():
            if isinstance(getattr(module, self.type, None), type):
                return f"{namespace}.{self.type}"
        names = [name for m in _NAMESPACES.values() for name in dir(m) if isinstance(getattr(m, name), type)]
        raise StudyError(f"There is no component {self.type!r}.{_nearest(self.type, names)}")

    def build(self) -> Any:
        """The object."""
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
        """As in a TOML file."""
        arguments = {key: v.to_dict() if isinstance(v, Part) else v for key, v in self.arguments.items()}
        return {"type": self.type, **arguments}

    @classmethod
    def from_dict(cls, value: Any, where: str) -> Part:
        """From a TOML table with the key `type`; a bare string is a type without arguments."""
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
            raise StudyError(f"{where}: a component is a name or a table with the key `type`. Received: {value!r}")
        arguments = {
            key: cls.from_dict(v, where) if isinstance(v, Mapping) else v for key, v in value.items() if key != "type"
        }
        part = cls(value["type"], arguments)
        part.qualified_name()
        return part


_ADAM = Part("Adam", {"learning_rate": 0.002})


@dataclass(frozen=True)
class Candidate:
    """An objective to compare: a loss, transforms and an optimizer; what is not given is the baseline's.

    Args:
        name: of letters, digits, `-` and `_`.
        summary: a few words on what it does.
        loss: by default squared error or cross-entropy.
        transforms: as in `Trainer.compile`.
        optimizer: by default Adam.
        loss_learning_rate: as in `Trainer.compile`.
        search: what tuning searches besides the optimizer's learning rate and weight decay: (low, high) by paths such
            as `"loss.alpha"`, `"transforms.0.stddev"`; on a logarithmic scale where low > 0.
        optional: where its parts refuse the network, a study leaves it out and says why, instead of refusing as well.

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
        usual = "MeanSquaredError" if task == "regression" else "CategoricalCrossentropy"
        return self.loss or Part(usual)

    def code(self, task: str) -> str:
        """The Python code that compiles a trainer for this candidate."""
        lines = [
            f"    optimizer={self.optimizer.code()},",
            f"    loss={self.loss_for(task).code()},",
        ]
        if self.transforms:
            lines.append(f"    transforms=[{', '.join(t.code() for t in self.transforms)}],")
        if self.loss_learning_rate is not None:
            lines.append(f"    loss_learning_rate={self.loss_learning_rate!r},")
        return "\n".join(["trainer = minimand.Trainer(model)", "trainer.compile(", *lines, ")"])

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Candidate:
        """From the name, the summary, and what `to_dict` gives."""
        where = f"candidate {value['name']!r}"
        return cls(
            value["name"],
            value["summary"],
            Part.from_dict(value["loss"], where) if value["loss"] else None,
            tuple(Part.from_dict(transform, where) for transform in value["transforms"]),
            Part.from_dict(value["optimizer"], where),
            value.get("loss_learning_rate"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything that determines the results, for storage."""
        return {
            "loss": self.loss and self.loss.to_dict(),
            "transforms": [transform.to_dict() for transform in self.transforms],
            "optimizer": self.optimizer.to_dict(),
            "loss_learning_rate": self.loss_learning_rate,
        }


_GROUPS = Part("GroupLasso", {"strength": 1e-3})
_RANGE = Part("Range", {"strength": 0.1, "low": -0.25, "high": 0.25})
_CANDIDATES = (
    Candidate("baseline", "the usual loss (squared error or cross-entropy), Adam"),
    Candidate(
        "gradient-variance",
        "penalty on the variance of the gradient between examples",
        transforms=(Part("GradientVariancePenalty", {"strength": 1e-3}),),
        search={"transforms.0.strength": (1e-5, 1e-1)},
    ),
    Candidate(
        "variance-scaling",
        "updates scaled down where the gradient is mostly noise",
        optimizer=Part("SNRScaling", {"optimizer": _ADAM, "beta": 0.9}),
        search={"optimizer.beta": (0.5, 0.99)},
    ),
    Candidate(
        "adaptive-robust",
        "robust loss that learns its shape and scale",
        # Of one-hot targets most residuals can be 0: without a bound the scale follows, and all classes but one do.
        loss=Part("AdaptiveRobust", {"scale_min": 0.1}),
        loss_learning_rate=0.02,
        search={"loss_learning_rate": (2e-3, 2e-1)},
    ),
    Candidate(
        "weight-noise",
        "noise in proportion to the kernels, in training",
        transforms=(Part("WeightNoise", {"stddev": 0.1, "mode": "relative"}),),
        search={"transforms.0.stddev": (0.01, 0.5)},
    ),
    Candidate(
        "group-sparsity",
        "group lasso on the units of each layer",
        transforms=(Part("WeightPenalty", {"regularizer": _GROUPS}),),
        search={"transforms.0.regularizer.strength": (1e-5, 1e-1)},
    ),
    Candidate(
        "weight-range",
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
    """The default set, baseline first: at least one candidate for each of the five capabilities.

    All but the baseline are optional: some networks suit not all of them.

    Returns:
        A tuple of candidates.

    Examples:
        >>> from minimand.study import default_candidates
        >>> default_candidates()[0].name
        'baseline'
    """
    return _CANDIDATES[0], *(replace(candidate, optional=True) for candidate in _CANDIDATES[1:])


def read_candidates(path: Path) -> tuple[Candidate, ...]:
    """Candidates of a TOML file: a table `[candidates.NAME]` each, with any of the fields of `Candidate`.

    Args:
        path: of the file.

    Returns:
        A tuple of candidates, in the file's order.

    Raises:
        StudyError: the file is missing, is not TOML, or describes something that does not exist.

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
        raise StudyError(f"{path} has no candidates: give each a table [candidates.NAME].")
    return tuple(_from_table(name, table, f"{path}, candidate {name!r}") for name, table in tables.items())


def _from_table(name: str, table: Any, where: str) -> Candidate:
    known = ("summary", "loss", "transforms", "optimizer", "loss_learning_rate", "search", "optional")
    unknown = [key for key in table if key not in known] if isinstance(table, Mapping) else ["(no table)"]
    if unknown:
        raise StudyError(f"{where}: unknown key {unknown[0]!r}.{_nearest(unknown[0], known)} Keys: {', '.join(known)}.")
    check_name(name, where)
    transforms = table.get("transforms", [])
    if not isinstance(transforms, list):
        raise StudyError(f"{where}: `transforms` is a list. Received: {transforms!r}")
    search = table.get("search", {})
    if not isinstance(search, Mapping):
        raise StudyError(f"{where}: `search` is a table of paths and [low, high]. Received: {search!r}")
    optional = table.get("optional", False)
    if not isinstance(optional, bool):
        raise StudyError(f"{where}: `optional` is true or false. Received: {optional!r}")
    candidate = Candidate(
        name,
        str(table.get("summary", "")),
        Part.from_dict(table["loss"], where) if "loss" in table else None,
        tuple(Part.from_dict(transform, where) for transform in transforms),
        Part.from_dict(table["optimizer"], where) if "optimizer" in table else _ADAM,
        table.get("loss_learning_rate"),
        search,
        optional,
    )
    # Whatever the parts refuse, they refuse now and not after an hour of training.
    for part in (candidate.loss, *candidate.transforms, candidate.optimizer):
        if part is not None:
            part.build()
    return candidate


def check_name(name: Any, where: str) -> None:
    """Raise a `StudyError` unless the name of a candidate can name files."""
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise StudyError(f"{where}: names consist of letters, digits, '-' and '_', because they name files.")


def choose(names: Iterable[str] | None, available: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The candidates of these names, which are not optional then, or all of them; the baseline always first.

    Raises:
        StudyError: there is no candidate of a name (the message tells the nearest one), or none but the baseline.
    """
    by_name = {candidate.name: candidate for candidate in available}
    by_name.setdefault("baseline", _CANDIDATES[0])
    chosen = ["baseline"]
    for name in by_name if names is None else names:
        if name not in by_name:
            raise StudyError(f"There is no candidate {name!r}.{_nearest(name, by_name)} Known: {', '.join(by_name)}.")
        if name not in chosen:
            chosen.append(name)
    if len(chosen) == 1:
        raise StudyError(f"Name a candidate to compare, besides the baseline. Known: {', '.join(by_name)}.")
    return tuple(by_name[name] if names is None else replace(by_name[name], optional=False) for name in chosen)


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""
