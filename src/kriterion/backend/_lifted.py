"""JAX: functions that differ in numbers only, as one function of these numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from kriterion.backend._protocol import Tensor

# Calls that mean no more than what they call, once all derivatives have been taken, and where that is in them.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr",
          "custom_vjp_call": "call_jaxpr"}  # fmt: skip


class Lifted:
    """Traced functions of equal structure as one: the constants that differ between them are an argument.

    Args:
        traced: results of `jax.make_jaxpr`, not to be differentiated.

    Raises:
        ValueError: the functions differ in more than constants.
    """

    def __init__(self, traced: Sequence[core.ClosedJaxpr]) -> None:
        self._first = traced[0]
        # By place: what stands there in the first.
        self._own = {place: values[0] for place, values in _different(traced).items()}
        self._places = {place: index for index, place in enumerate(self._own)}

    def numbers(self, traced: Sequence[core.ClosedJaxpr]) -> list[np.ndarray]:
        """The constants that functions have where they may differ, each with the functions along its first axis.

        Raises:
            ValueError: they differ from those that it was made of in more than constants, or in other ones.
        """
        different = _different([self._first, *traced])
        _require(different.keys() <= self._own.keys())
        every = [different.get(place, [own] * (1 + len(traced))) for place, own in self._own.items()]
        return [np.stack([np.asarray(value) for value in values[1:]]) for values in every]

    def __call__(self, numbers: Sequence[Tensor], *arguments: Tensor) -> list[Tensor]:
        """The function that has these numbers, of flat arguments; gives a flat list."""
        return self._evaluate(self._first, numbers, list(arguments), ())

    def _evaluate(
        self, closed: core.ClosedJaxpr, numbers: Sequence[Tensor], arguments: list[Tensor], where: tuple[Any, ...]
    ) -> list[Tensor]:
        values: dict[Any, Tensor] = {}

        def read(atom: Any, *place: Any) -> Tensor:
            index = self._places.get((*where, *place))
            if index is not None:
                return numbers[index]
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        jaxpr = closed.jaxpr
        for index, (variable, constant) in enumerate(zip(jaxpr.constvars, closed.consts, strict=True)):
            different = self._places.get((*where, "constant", index))
            values[variable] = constant if different is None else numbers[different]
        values.update(zip(jaxpr.invars, arguments, strict=True))
        for number, equation in enumerate(jaxpr.eqns):
            inputs = [read(atom, number, i) for i, atom in enumerate(equation.invars)]
            called = _called(equation)
            if called is not None:
                outputs = self._evaluate(called, numbers, inputs, (*where, number))
            else:
                # Before JAX 0.10, a pair.
                bound = equation.primitive.get_bind_params(equation.params)
                functions, parameters = bound if isinstance(bound, tuple) else ((), bound)
                outputs = equation.primitive.bind(*functions, *inputs, **parameters)
                outputs = outputs if equation.primitive.multiple_results else [outputs]
            values.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom, "output", i) for i, atom in enumerate(jaxpr.outvars)]


def _called(equation: Any) -> core.ClosedJaxpr | None:
    name = _CALLS.get(equation.primitive.name)
    called = equation.params.get(name) if name else None
    return called if isinstance(called, core.ClosedJaxpr) else None


def _different(traced: Sequence[core.ClosedJaxpr]) -> dict[tuple[Any, ...], list[Any]]:
    """By place: the constants there, where they differ between functions that are equal otherwise."""
    for other in traced[1:]:
        if [v.aval for v in other.jaxpr.invars] != [v.aval for v in traced[0].jaxpr.invars]:
            raise ValueError("The arguments have other shapes.")
    different: dict[tuple[Any, ...], list[Any]] = {}
    _compare(traced, (), different)
    return different


def _compare(traced: Sequence[core.ClosedJaxpr], where: tuple[Any, ...], different: dict[Any, list[Any]]) -> None:
    """Collect the constants that differ; raise if anything else does."""
    names: list[dict[Any, int]] = [{} for _ in traced]

    def define(variables: Iterator[Sequence[Any]]) -> None:
        for same in variables:
            for variable, of in zip(same, names, strict=True):
                of[variable] = len(of)

    def use(atoms: Sequence[Any], place: tuple[Any, ...]) -> None:
        _require(len({_kind(atom) for atom in atoms}) == 1)
        if isinstance(atoms[0], core.Literal):
            _constants([atom.val for atom in atoms], place, different)
        else:
            _require(len({of[atom] for atom, of in zip(atoms, names, strict=True)}) == 1)

    define(_aligned([closed.jaxpr.constvars for closed in traced]))
    for index, constants in enumerate(_aligned([closed.consts for closed in traced])):
        _constants(constants, (*where, "constant", index), different)
    define(_aligned([closed.jaxpr.invars for closed in traced]))
    for number, equations in enumerate(_aligned([closed.jaxpr.eqns for closed in traced])):
        _require(len({equation.primitive for equation in equations}) == 1)
        for index, atoms in enumerate(_aligned([equation.invars for equation in equations])):
            use(atoms, (*where, number, index))
        calls = [called for equation in equations if (called := _called(equation)) is not None]
        if calls:
            _require(len(calls) == len(equations))
            _compare(calls, (*where, number), different)
        else:
            first = equations[0].params
            _require(all(_same(first, equation.params) for equation in equations[1:]))
        define(_aligned([equation.outvars for equation in equations]))
    for index, atoms in enumerate(_aligned([closed.jaxpr.outvars for closed in traced])):
        use(atoms, (*where, "output", index))


def _kind(atom: Any) -> tuple[bool, tuple[int, ...], Any]:
    return isinstance(atom, core.Literal), atom.aval.shape, atom.aval.dtype


def _constants(values: Sequence[Any], place: tuple[Any, ...], different: dict[Any, list[Any]]) -> None:
    arrays = [np.asarray(value) for value in values]
    _require(len({(array.shape, array.dtype) for array in arrays}) == 1)
    if not all(_equal(arrays[0], array) for array in arrays[1:]):
        different[place] = list(values)


def _same(first: Any, other: Any) -> bool:
    """Whether parameters of operations are equal, as far as can be told."""
    if isinstance(first, dict) and isinstance(other, dict):
        return first.keys() == other.keys() and all(_same(first[key], other[key]) for key in first)
    if isinstance(first, (core.Jaxpr, core.ClosedJaxpr)):
        constants = [getattr(jaxpr, "consts", ()) for jaxpr in (first, other)]
        return str(first) == str(other) and all(np.array_equal(a, b) for a, b in zip(*constants, strict=True))
    if isinstance(first, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(first) == len(other) and all(_same(a, b) for a, b in zip(first, other, strict=True))
    if isinstance(first, (float, np.number, np.ndarray)):
        return isinstance(other, type(first)) and _equal(np.asarray(first), np.asarray(other))
    return bool(first == other)


def _equal(first: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(first, other, equal_nan=first.dtype.kind == "f"))


def _aligned(sequences: Sequence[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    _require(len({len(sequence) for sequence in sequences}) == 1)
    return zip(*sequences, strict=True)


def _require(equal: bool) -> None:
    if not equal:
        raise ValueError("The functions differ in more than constants.")
