"""JAX: many trainings as one compiled program."""

from __future__ import annotations

import contextlib
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

# JAX: functions that differ in numbers only, as one function of these numbers.

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


# JAX: many trainings as one compiled program.

# Rows that a network is given at a time where it is not trained.
_ROWS = 4096
# Floating-point operations from which on a program is worth being compiled thoroughly: seconds of a core.
_LONG = 1e11


class FitData(NamedTuple):
    """Arrays (folds, rows, ...) of all folds: inputs and targets for training and validation, inputs for testing."""

    x: Any
    y: Any
    x_validation: Any
    y_validation: Any
    x_test: Any


class Best(NamedTuple):
    """Of each training: the network at its best epoch, that epoch's score and number, and whether it goes on."""

    network: Any
    score: Tensor
    epoch: Tensor
    active: Tensor


class Judge:
    """What is done after an epoch, whatever the objective: the network's score, and whether it is the best so far.

    A training ends, which is masked, after an epoch whose loss is not finite, or `patience` epochs after its best.

    Args:
        model: the network.
        data: of all folds.
        score: `score(y, y_pred)`, a scalar that is least at a training's best epoch.
        patience: epochs without a better score that end a training; None for no end.
    """

    def __init__(
        self, model: Any, data: FitData, score: Callable[[Tensor, Tensor], Tensor], patience: int | None
    ) -> None:
        self.model, self.data, self._score, self._patience = model, jax.device_put(data), score, patience
        # Of the data as arguments: XLA would take constants in.
        mapped = jax.vmap(self._judge, in_axes=(0, 0, 0, 0, None, None))
        self._judged = jax.jit(mapped, donate_argnums=0)
        self._tested = jax.jit(jax.vmap(lambda network, fold, x: self._predict(network, x[fold]), (0, 0, None)))
        self._compiled: dict[int, tuple[Any, Any]] = {}
        self._compiling = threading.Lock()
        self._programs: list[Program] = []

    def program(
        self, steps: Sequence[TracedStep], trainings: int, order: tuple[int, int]
    ) -> tuple[Program, list[np.ndarray]]:
        """What trains so many networks by these steps, in epochs of this shape, and the steps' numbers for it.

        One that was made before, where only numbers that it takes are others.
        """
        traced = [step.jaxpr for step in steps]
        for program in self._programs:
            if (program.trainings, program.order) == (trainings, order):
                with contextlib.suppress(ValueError):
                    return program, program.lifted.numbers(traced)
        self._programs.append(Program(steps, trainings, self.data, order))
        return self._programs[-1], self._programs[-1].lifted.numbers(traced)

    def compile(self, best: Best, fold: Tensor) -> None:
        """Compile for so many trainings; may be called from any thread."""
        with self._compiling:
            if len(fold) not in self._compiled:
                judged = self._judged.lower(best, best.network, fold, best.score, 0, self.data)
                tested = self._tested.lower(best.network, fold, self.data.x_test)
                self._compiled[len(fold)] = judged.compile(), tested.compile()

    def judge(self, best: Best, network: Any, fold: Tensor, loss: Tensor, epoch: int) -> tuple[Best, dict[str, Tensor]]:
        """The best of each training after an epoch of this loss; its score, and whether it had not ended before."""
        return self._compiled[len(fold)][0](best, network, fold, loss, epoch, self.data)

    def test(self, best: Best, fold: Tensor) -> np.ndarray:
        """(trainings, rows, ...) predictions for the testing inputs, at each training's best epoch."""
        return np.asarray(self._compiled[len(fold)][1](best.network, fold, self.data.x_test))

    def _judge(
        self, best: Best, network: Any, fold: Tensor, loss: Tensor, epoch: Tensor, data: FitData
    ) -> tuple[Best, dict[str, Tensor]]:
        score = self._score(data.y_validation[fold], self._predict(network, data.x_validation[fold]))
        better = best.active & (score < best.score)
        number = jnp.where(better, epoch, best.epoch)
        active = best.active & jnp.isfinite(loss)
        if self._patience is not None:
            active &= epoch - number < self._patience
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), network, best.network)
        return Best(kept, jnp.where(better, score, best.score), number, active), {"score": score, "counts": best.active}

    def _predict(self, network: Any, x: Tensor) -> Tensor:
        def outputs(rows: Tensor) -> Tensor:
            return self.model.stateless_call(*network, rows, training=False)[0]

        if len(x) <= _ROWS:
            return outputs(x)
        whole = (len(x) - 1) // _ROWS * _ROWS
        parts = lax.map(outputs, x[:whole].reshape(-1, _ROWS, *x.shape[1:]))
        return jnp.concatenate([parts.reshape(-1, *parts.shape[2:]), outputs(x[whole:])])


class TracedStep:
    """The training step of a compiled trainer whose variables exist, as JAX sees it.

    Args:
        trainer: a `Trainer`.
        batch: inputs and targets of a step.
    """

    def __init__(self, trainer: Any, batch: tuple[Tensor, Tensor]) -> None:
        self.trainer = trainer
        self.parts = (
            trainer.trainable_variables,
            trainer.non_trainable_variables,
            trainer.optimizer.variables,
            trainer.metrics_variables,
        )
        state = tuple([variable.value for variable in part] for part in self.parts)

        def step(state: Any, batch: Any) -> Any:
            logs, state = trainer.train_step(state, batch)
            return {name: jnp.asarray(value, "float32") for name, value in logs.items()}, state

        self.jaxpr, outputs = jax.make_jaxpr(step, return_shape=True)(state, batch)
        self.structure, self.logs = jax.tree.structure(outputs), list(outputs[0])
        # Where the network's variables are in the state.
        model = trainer.model
        positions = [{id(v): i for i, v in enumerate(part)} for part in self.parts]
        self._network = (
            [positions[0][id(variable)] for variable in model.trainable_variables],
            [positions[1][id(variable)] for variable in model.non_trainable_variables],
        )

    def alike(self, other: TracedStep) -> bool:
        """Whether the steps differ in numbers at most."""
        try:
            Lifted([self.jaxpr, other.jaxpr])
        except ValueError:
            return False
        return True

    def state(self, values: Sequence[np.ndarray]) -> tuple[list[np.ndarray], ...]:
        """The values of `training_state(trainer)` as the step takes them."""
        of = {id(variable): value for variable, value in zip(training_state(self.trainer), values, strict=True)}
        return tuple([of[id(variable)] for variable in part] for part in self.parts)

    def begin_epoch(self, state: Any) -> Any:
        """The state with metrics reset."""
        *others, metrics = state
        with keras.StatelessScope(list(zip(self.parts[3], metrics, strict=True))) as scope:
            self.trainer.reset_metrics()
            return *others, [scope.get_current_value(metric) for metric in self.parts[3]]

    def network(self, state: Any) -> tuple[list[Tensor], list[Tensor]]:
        """The values of the network's trainable and other variables in a state."""
        trainable, other = self._network
        return [state[0][i] for i in trainable], [state[1][i] for i in other]


class Program:
    """An epoch of trainings at once: a step, mapped over their states, in a loop over the epoch's batches.

    Args:
        steps: of trainers of one network whose steps differ in numbers at most.
        trainings: how many.
        data: of all folds.
        order: shape of an epoch's batches: (steps, rows of a step).

    Raises:
        ValueError: the steps differ in more than numbers.
    """

    def __init__(self, steps: Sequence[TracedStep], trainings: int, data: FitData, order: tuple[int, int]) -> None:
        self.step, self.lifted = steps[0], Lifted([step.jaxpr for step in steps])
        self.trainings, self.order, self._data = trainings, order, data
        self._lowered: Any = None
        self._compiled: Any = None
        self._compiling = threading.Lock()

    def lower(self, state: Any, fold: Tensor, numbers: Any) -> None:
        """Translate for XLA, if that was not done before."""
        if self._lowered is None:
            orders = np.zeros((len(self._data.x), *self.order), "int32")
            epoch = jax.vmap(self._epoch, in_axes=(0, 0, 0, None, None, None))
            jitted = jax.jit(epoch, donate_argnums=0)
            self._lowered = jitted.lower(state, fold, numbers, *self._data[:2], orders)
            self._operations = 6.0 * sum(leaf.size for leaf in state[0]) * np.prod(self.order)

    def compile(self, epochs: int) -> None:
        """Compile for so many epochs, if that was not done before; may be called from any thread.

        Compiling less thoroughly takes two thirds of the time, and running then a tenth longer.
        """
        with self._compiling:
            if self._compiled is None:
                short = self._operations * epochs < _LONG
                self._compiled = self._lowered.compile({"xla_backend_optimization_level": 1} if short else {})

    def run(self, state: Any, fold: Tensor, numbers: Any, order: np.ndarray) -> tuple[Any, dict[str, Tensor]]:
        """The states after an epoch, and its logs."""
        return self._compiled(state, fold, numbers, *self._data[:2], order)

    def _epoch(
        self, state: Any, fold: Tensor, numbers: Any, x: Tensor, y: Tensor, order: Tensor
    ) -> tuple[Any, dict[str, Tensor]]:
        """An epoch of one training."""

        def step(carried: Any, rows: Tensor) -> Any:
            arguments = jax.tree.leaves((carried[1], (x[fold, rows], y[fold, rows])))
            return jax.tree.unflatten(self.step.structure, self.lifted(numbers, *arguments)), None

        no_logs = {name: jnp.zeros((), "float32") for name in self.step.logs}
        (logs, after), _ = lax.scan(step, (no_logs, self.step.begin_epoch(state)), order[fold])
        return after, logs


class ManyFits:
    """Trainings by one program.

    Args:
        steps: of trainers of one network whose steps differ in numbers at most.
        trainings: for each training, the index of its step, the values of its trainer's `training_state` at the
            beginning, and the index of its fold.
        judge: what judges the networks of these trainers.
        order: shape of an epoch's batches: (steps, rows of a step).

    Raises:
        ValueError: the steps differ in more than numbers.
    """

    def __init__(
        self,
        steps: Sequence[TracedStep],
        trainings: Sequence[tuple[int, Sequence[np.ndarray], int]],
        judge: Judge,
        order: tuple[int, int],
    ) -> None:
        self._judge = judge
        self._program, numbers = judge.program(steps, len(trainings), order)
        owners, values, folds = zip(*trainings, strict=True)
        self._folds = jnp.asarray(folds, "int32")
        self._numbers = [jnp.asarray(of[list(owners)]) for of in numbers]
        states = [steps[owner].state(value) for owner, value in zip(owners, values, strict=True)]
        self._state = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        count = len(trainings)
        self._best = Best(
            self._program.step.network(self._state),
            np.full(count, np.inf, "float32"),
            np.full(count, -1, "int32"),
            np.full(count, True),
        )
        self._program.lower(self._state, self._folds, self._numbers)

    def compile(self, epochs: int) -> None:
        """Compile what is not compiled yet, for so many epochs; may be called from any thread."""
        self._program.compile(epochs)
        self._judge.compile(self._best, self._folds)

    def run(self, orders: Sequence[np.ndarray], first: int) -> dict[str, np.ndarray]:
        """Train for some epochs.

        Args:
            orders: for each epoch, (folds, steps, rows of a step) rows of the training data.
            first: number of the first of these epochs.

        Returns:
            Arrays (epochs, trainings): the logs, `"score"`, and in `"counts"` whether a training had not ended before.
        """
        records = []
        for epoch, order in enumerate(orders, first):
            self._state, logs = self._program.run(self._state, self._folds, self._numbers, order)
            network = self._program.step.network(self._state)
            self._best, judged = self._judge.judge(self._best, network, self._folds, logs["loss"], epoch)
            records.append({**logs, **judged})
        return {name: np.stack([record[name] for record in records]) for name in records[0]}

    @property
    def active(self) -> bool:
        """Whether any training has not ended."""
        return bool(np.any(self._best.active))

    def results(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(trainings,) the epoch of the least score, or -1; there, `Judge.test` and the fraction of zeros.

        Zeros are counted among the network's trainable weights.
        """
        weights = [np.asarray(values).reshape(len(self._folds), -1) for values in self._best.network[0]]
        zeros = (np.concatenate(weights, axis=1) == 0).mean(axis=1)
        return np.asarray(self._best.epoch), self._judge.test(self._best, self._folds), zeros
