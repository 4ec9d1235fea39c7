"""JAX: training steps that differ in numbers only share one program, which is compiled ahead of time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import keras
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.extend import core

from minimand._state import training_state
from minimand.backend._protocol import Tensor


class Program:
    """A function of tensors that is compiled once, ahead of time, for the shapes of these arguments.

    Args:
        function: function of structures of tensors.
        *arguments: structures of arrays of the shapes that the function is compiled for.
        donate: indices of the arguments whose memory the results may take over.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> None:
        self._lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
        self._compiled: Any = None
        self._compiling = threading.Lock()

    def compile(self, *, quick: bool = False) -> None:
        """Compile, unless it was done before; any thread may call this.

        A quick compilation takes two thirds of the time, and the program then runs a tenth longer.
        """
        with self._compiling:
            if self._compiled is None:
                self._compiled = self._lowered.compile({"xla_backend_optimization_level": 1} if quick else {})

    def __call__(self, *arguments: Any) -> Any:
        """The value of the compiled function."""
        return self._compiled(*arguments)


class TracedStep:
    """The training step of a compiled trainer whose variables exist, as JAX traces it.

    Args:
        trainer: a `Trainer`.
        batch: inputs and targets of a step.
    """

    def __init__(self, trainer: Any, batch: tuple[Tensor, Tensor]) -> None:
        self.trainer = trainer
        self._parts = (
            trainer.trainable_variables,
            trainer.non_trainable_variables,
            trainer.optimizer.variables,
            trainer.metrics_variables,
        )
        state = tuple([variable.value for variable in part] for part in self._parts)

        def step(state: Any, batch: Any) -> Any:
            logs, state = trainer.train_step(state, batch)
            return {name: jnp.asarray(value, "float32") for name, value in logs.items()}, state

        self.jaxpr, outputs = jax.make_jaxpr(step, return_shape=True)(state, batch)
        self.structure, self.log_names = jax.tree.structure(outputs), list(outputs[0])
        positions = [{id(variable): index for index, variable in enumerate(part)} for part in self._parts[:2]]
        variables = trainer.model.trainable_variables, trainer.model.non_trainable_variables
        self._network = [[at[id(v)] for v in part] for at, part in zip(positions, variables, strict=True)]

    def matches(self, other: TracedStep) -> bool:
        """Tell whether the two steps differ in numbers at most."""
        try:
            Lifted([self.jaxpr, other.jaxpr])
        except ValueError:
            return False
        return True

    def state(self, values: Sequence[np.ndarray]) -> tuple[list[np.ndarray], ...]:
        """The values of `training_state(trainer)` in the form that the step takes."""
        by_variable = {id(v): value for v, value in zip(training_state(self.trainer), values, strict=True)}
        return tuple([by_variable[id(variable)] for variable in part] for part in self._parts)

    def begin_epoch(self, state: Any) -> Any:
        """The state with its metrics reset."""
        *others, metrics = state
        with keras.StatelessScope(list(zip(self._parts[3], metrics, strict=True))) as scope:
            self.trainer.reset_metrics()
            return *others, [scope.get_current_value(metric) for metric in self._parts[3]]

    def network(self, state: Any) -> tuple[list[Tensor], ...]:
        """The values of the network's trainable and non-trainable variables in a state."""
        return tuple([part[index] for index in indices] for part, indices in zip(state, self._network, strict=False))


class LiftedStep:
    """The step that several traced steps have in common; the numbers in which they differ are its argument.

    Args:
        steps: traced steps of trainers of one network.

    Raises:
        ValueError: the steps differ in more than numbers.
    """

    def __init__(self, steps: Sequence[TracedStep]) -> None:
        self.step, self._lifted = steps[0], Lifted([step.jaxpr for step in steps])

    def numbers(self, steps: Sequence[TracedStep]) -> list[np.ndarray]:
        """The numbers of these steps, each with the steps along its first axis.

        Raises:
            ValueError: a step differs from this one in more than its numbers.
        """
        return self._lifted.numbers([step.jaxpr for step in steps])

    def epoch(
        self,
        state: Any,
        numbers: Sequence[Tensor],
        batches: Tensor,
        fetch: Callable[[Tensor], Any],
        *,
        ragged: bool = False,
    ) -> tuple[Any, dict[str, Tensor]]:
        """The state and the logs after a step on `fetch(batch)` for each entry of `batches`; for use in a program.

        If `ragged`, an entry that begins with -1 changes nothing.
        """

        def step(carried: Any, batch: Tensor) -> Any:
            arguments = jax.tree.leaves((carried[1], fetch(batch)))
            after = jax.tree.unflatten(self.step.structure, self._lifted(numbers, *arguments))
            if ragged:
                after = jax.tree.map(lambda new, old: jnp.where(batch[0] >= 0, new, old), after, carried)
            return after, None

        no_logs = {name: jnp.zeros((), "float32") for name in self.step.log_names}
        (logs, after), _ = lax.scan(step, (no_logs, self.step.begin_epoch(state)), batches)
        return after, logs


# Memory.


class LiveBytes(NamedTuple):
    """Bytes of the results of all operations of a function, and of those that are needed at the same time."""

    total: int
    peak: int


def live_bytes(model: keras.Model, x: Any) -> LiveBytes:
    """The bytes that a model computes for a batch, before XLA fuses operations, which makes them fewer."""
    state = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]
    return _live_bytes(jax.make_jaxpr(lambda *network: outputs_of(model, network, x, training=True))(*state).jaxpr)


def outputs_of(model: keras.Model, network: Sequence[Sequence[Tensor]], x: Any, *, training: bool) -> Any:
    """The outputs of a model with these values of its trainable variables and of all others."""
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    # `stateless_call` would pass `training` on to a `call` that does not take it.
    with keras.StatelessScope(list(zip(variables, [*network[0], *network[1]], strict=True))):
        return model(x, training=training)


def _live_bytes(jaxpr: core.Jaxpr) -> LiveBytes:
    made = {variable for equation in jaxpr.eqns for variable in equation.outvars}
    # The last equation that uses each result; those of the function itself stay.
    last = {
        atom: number
        for number, equation in enumerate(jaxpr.eqns)
        for atom in equation.invars
        if not isinstance(atom, core.Literal) and atom in made
    }
    last |= {atom: len(jaxpr.eqns) for atom in jaxpr.outvars if not isinstance(atom, core.Literal)}
    ends: dict[int, int] = {}
    total = peak = live = 0
    for number, equation in enumerate(jaxpr.eqns):
        inner = [_live_bytes(getattr(called, "jaxpr", called)) for called in core.jaxprs_in_params(equation.params)]
        results = sum(map(_bytes, equation.outvars))
        total += max([results, *(each.total for each in inner)])
        peak = max([peak, live + results, *(live + each.peak for each in inner)])
        for variable in equation.outvars:
            end = last.get(variable, number)
            ends[end] = ends.get(end, 0) + _bytes(variable)
        live += results - ends.pop(number, 0)
    return LiveBytes(total, peak)


def _bytes(variable: Any) -> int:
    shape, dtype = variable.aval.shape, variable.aval.dtype
    return int(np.prod(shape, dtype="int64")) * getattr(dtype, "itemsize", 8)


# Comparison of traced functions.

# Calls that add nothing to the function they call once all derivatives are taken, and the parameter that holds it.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr",
          "custom_vjp_call": "call_jaxpr"}  # fmt: skip


class Lifted:
    """One function for traced functions of equal structure; the constants that differ between them are an argument.

    Args:
        traced: results of `jax.make_jaxpr`. The function cannot be differentiated.

    Raises:
        ValueError: the functions differ in more than constants.
    """

    def __init__(self, traced: Sequence[core.ClosedJaxpr]) -> None:
        self._first = traced[0]
        # The first function's constants by place.
        self._own = {place: values[0] for place, values in _different(traced).items()}
        self._places = {place: index for index, place in enumerate(self._own)}

    def numbers(self, traced: Sequence[core.ClosedJaxpr]) -> list[np.ndarray]:
        """The constants of functions at the places where they may differ, with the functions along the first axis.

        Raises:
            ValueError: a function has another structure, or another constant at a place where none may differ.
        """
        different = _different([self._first, *traced])
        _require(different.keys() <= self._own.keys())
        every = [different.get(place, [own] * (1 + len(traced))) for place, own in self._own.items()]
        return [np.stack([np.asarray(value) for value in values[1:]]) for values in every]

    def __call__(self, numbers: Sequence[Tensor], *arguments: Tensor) -> list[Tensor]:
        """The flat outputs of the function that has these numbers, for flat arguments."""
        return self._evaluate(self._first, numbers, list(arguments), ())

    def _evaluate(
        self, closed: core.ClosedJaxpr, numbers: Sequence[Tensor], arguments: list[Tensor], where: tuple[Any, ...]
    ) -> list[Tensor]:
        values: dict[Any, Tensor] = {}

        def constant(own: Any, *place: Any) -> Tensor:
            index = self._places.get((*where, *place))
            return own if index is None else numbers[index]

        def read(atom: Any, *place: Any) -> Tensor:
            return constant(atom.val, *place) if isinstance(atom, core.Literal) else values[atom]

        jaxpr = closed.jaxpr
        for index, (variable, own) in enumerate(zip(jaxpr.constvars, closed.consts, strict=True)):
            values[variable] = constant(own, "constant", index)
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
    called = equation.params.get(_CALLS.get(equation.primitive.name))
    return called if isinstance(called, core.ClosedJaxpr) else None


def _different(traced: Sequence[core.ClosedJaxpr]) -> dict[tuple[Any, ...], list[Any]]:
    """The constants that differ between functions that are equal otherwise, by place."""
    if any(other.in_avals != traced[0].in_avals for other in traced[1:]):
        raise ValueError("The functions take arguments of different shapes.")
    different: dict[tuple[Any, ...], list[Any]] = {}
    _compare(traced, (), different)
    return different


def _compare(traced: Sequence[core.ClosedJaxpr], where: tuple[Any, ...], different: dict[Any, list[Any]]) -> None:
    """Collect the constants that differ; raise a ValueError if the functions differ in anything else."""
    names: list[dict[Any, int]] = [{} for _ in traced]

    def define(variables: Iterator[Sequence[Any]]) -> None:
        for same in variables:
            for variable, of in zip(same, names, strict=True):
                of[variable] = len(of)

    def use(atoms: Sequence[Any], place: tuple[Any, ...]) -> None:
        _require(len({(isinstance(atom, core.Literal), atom.aval.shape, atom.aval.dtype) for atom in atoms}) == 1)
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


def _constants(values: Sequence[Any], place: tuple[Any, ...], different: dict[Any, list[Any]]) -> None:
    arrays = [np.asarray(value) for value in values]
    _require(len({(array.shape, array.dtype) for array in arrays}) == 1)
    if not all(_equal(arrays[0], array) for array in arrays[1:]):
        different[place] = list(values)


def _same(first: Any, other: Any) -> bool:
    """Tell whether parameters of operations are equal; False where that is unknown."""
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
