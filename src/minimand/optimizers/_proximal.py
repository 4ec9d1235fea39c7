"""Proximal steps after another optimizer's: exact zeros, boxes and constant pieces."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from minimand._ops import soft_threshold
from minimand._selection import Select, check_select, selection
from minimand._validation import check_choice
from minimand.backend import Tensor
from minimand.optimizers._wrapper import OptimizerWrapper

# The proximal maps of Keras's own regularizers.


class KerasPenalty:
    """`L1`, `L2` or `L1L2` with what `Proximal` asks of a regularizer.

    prox_s(w) = sign(w) max(|w| - s l1, 0) / (1 + 2 s l2)
    """

    KINDS = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)

    def __init__(self, regularizer: Any) -> None:
        self.l1, self.l2 = (float(getattr(regularizer, name, 0.0)) for name in ("l1", "l2"))

    def check_variables(self, variables: Sequence[keras.Variable]) -> None:
        """Any weights will do."""

    def require_proximal(self) -> None:
        """There is one."""

    def at(self, iteration: Tensor) -> KerasPenalty:
        """The same at every step."""
        return self

    def proximal_step(
        self, variables: Sequence[keras.Variable], values: Sequence[Tensor], steps: Sequence[Any]
    ) -> list[Tensor]:
        """The proximal map of each value, with its step."""
        return [self._map(value, ops.cast(step, value.dtype)) for value, step in zip(values, steps, strict=True)]

    def _map(self, value: Tensor, step: Tensor) -> Tensor:
        if self.l1 > 0:
            value = soft_threshold(value, self.l1 * step)
        return value / (1.0 + 2.0 * self.l2 * step) if self.l2 > 0 else value


# The step that an optimizer takes along a lasting gradient: the inverse of its diagonal metric.


def _sgd(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    # Keras's momentum sums gradients: a lasting one is taken 1 / (1 - momentum) times.
    return rate / (1.0 - optimizer.momentum)


def _adam(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    squares = (optimizer._velocity_hats if getattr(optimizer, "amsgrad", False) else optimizer._velocities)[index].value
    weight = 1.0 - ops.power(ops.cast(optimizer.beta_2, "float32"), ops.cast(optimizer.iterations, "float32"))
    return rate * ops.cast(ops.sqrt(weight), squares.dtype) / (ops.sqrt(squares) + optimizer.epsilon)


def _nadam(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    squares = optimizer._velocities[index].value
    weight = 1.0 - ops.power(ops.cast(optimizer.beta_2, "float32"), ops.cast(optimizer.iterations, "float32"))
    return rate / (ops.sqrt(squares / ops.cast(weight, squares.dtype)) + optimizer.epsilon)


def _adamax(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    return rate / (optimizer._u[index].value + optimizer.epsilon)


def _rmsprop(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    squares = optimizer._velocities[index].value
    if optimizer.centered:
        squares = squares - ops.square(optimizer._average_gradients[index].value)
    return rate / (1.0 - optimizer.momentum) / ops.sqrt(squares + optimizer.epsilon)


def _adagrad(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    return rate / ops.sqrt(optimizer._accumulators[index].value + optimizer.epsilon)


# AdamW is an Adam, with weight decay outside of the update.
_STEPS: dict[type, Callable[[Any, int, Tensor], Tensor]] = {
    keras.optimizers.SGD: _sgd,
    keras.optimizers.Adam: _adam,
    keras.optimizers.Nadam: _nadam,
    keras.optimizers.Adamax: _adamax,
    keras.optimizers.RMSprop: _rmsprop,
    keras.optimizers.Adagrad: _adagrad,
}
KNOWN = tuple(kind.__name__ for kind in _STEPS)


def has_metric(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether `step_size` knows the optimizer."""
    return any(isinstance(optimizer, kind) for kind in _STEPS)


def step_size(optimizer: Any, variable: keras.Variable, rate: Tensor) -> Tensor:
    """S such that the update by a lasting gradient g is -s g: a scalar, or of the variable's shape.

    Args:
        optimizer: an optimizer that has made its update.
        variable: one that it trains.
        rate: its learning rate.
    """
    step = next(step for kind, step in _STEPS.items() if isinstance(optimizer, kind))
    return step(optimizer, optimizer._get_variable_index(variable), rate)


# Proximal steps after another optimizer's: exact zeros, boxes and constant pieces.


@keras.saving.register_keras_serializable(package="minimand")
class Proximal(OptimizerWrapper):
    """Any Keras optimizer for the loss, with a proximal step for a penalty that is not in the loss.

    w <- prox(w + update), prox(v) = argmin_u R(u) + sum (u - v)^2 / (2 s)

    A penalty that is minimised by gradients makes weights small; the proximal step makes them exactly zero, or equal to
    their neighbours, or to the end of a range, as the minimum of loss + R has them.

    The steps s decide which minimum is found. With `metric="optimizer"` they are the inner optimizer's: its update by
    a lasting gradient g is -s g, s = rate / (1 - momentum) for SGD, rate / (sqrt(v) + epsilon) for each weight for
    Adam, and so on. Then the weights at rest are those where loss + R is at rest. With `metric="learning_rate"`, s is
    the learning rate for all weights, which is decoupled from the update as AdamW's weight decay is: cheaper, even for
    all weights, and defined for every optimizer, but with an adaptive one its rest is that of another penalty, of a
    strength that goes with sqrt(v).

    Where v is small, Adam's steps are huge, and so is the proximal step: a layer may lose all its weights, and get no
    gradient any more. A larger `epsilon` of the inner optimizer (1e-3) bounds them, and a schedule as the regularizer's
    strength, from 0 up, lets the loss speak first. A step that would make a whole kernel zero is left out for this
    kernel, and counted in `held_back`; `fit` warns of it at its end, and `callbacks.Sparsity` stops at it.

    Weights that another part of the model uses as zero stay trained: their gradient may bring them back. The
    regularizer must not be given to the model's layers as well.

    Args:
        optimizer: the Keras optimizer that computes the updates. An unbuilt copy of it is used. Its weight decay,
            clipping and gradient accumulation keep their meaning. Not with `use_ema`, whose averages are not zero.
        regularizer: one of `minimand.regularizers` with a `prox`, Keras's `L1`, `L2` or `L1L2`; or a mapping of
            regular expressions of paths to such: each weight must match one at most.
        select: which weights have it: `"kernels"` (rank 2 or more), `"all"`, a regular expression of paths, or a
            function of the variable. Not with a mapping.
        metric: `"optimizer"` or `"learning_rate"`.
        name: name of the optimizer.

    Raises:
        TypeError: `optimizer` is not a Keras optimizer, or one that wraps others (put those outside); `regularizer`
            has no proximal map.
        ValueError: `metric="optimizer"` with an optimizer whose metric is not known, `use_ema`, `select` with a
            mapping; on the first batch, nothing is selected, weights for which the regularizer makes no sense, or
            weights that match several expressions.
        NotImplementedError: the regularizer has a proximal map in other forms only; on the first batch, several
            replicas of `tf.distribute`.

    Source: Yun, Lozano and Yang, "Adaptive proximal gradient methods for structured neural networks", NeurIPS 2021,
    algorithm 1 (ProxGen); for SGD, Nitanda, "Stochastic proximal gradient descent with acceleration techniques", NIPS
    2014.

    Examples:
        >>> import keras, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
        >>> groups = minimand.regularizers.GroupLasso(1e-3, "input")
        >>> model.compile(minimand.optimizers.Proximal(keras.optimizers.Adam(1e-3, epsilon=1e-3), groups), "mse")
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer | str,
        regularizer: Any,
        *,
        select: Select = "kernels",
        metric: str = "optimizer",
        name: str = "proximal",
    ) -> None:
        super().__init__(optimizer, name=name)
        several = isinstance(regularizer, Mapping)
        get = keras.regularizers.get
        self.regularizer = {k: get(v) for k, v in regularizer.items()} if several else get(regularizer)
        self.select = check_select(select, "Proximal")
        self.metric = check_choice("Proximal", "metric", metric, ("optimizer", "learning_rate"))
        if several and select != "kernels":
            raise ValueError(
                f"Proximal: `select` does not go with a mapping of expressions. Received: select={select!r}"
            )
        if metric == "optimizer" and not has_metric(self.wrapped):
            raise ValueError(
                f'Proximal: metric="optimizer" needs one of {", ".join(KNOWN)}. '
                f'Received: optimizer={type(self.wrapped).__name__}. Use metric="learning_rate".'
            )
        if self.use_ema:
            raise ValueError(
                "Proximal: averages of weights are not exactly zero. Received: an optimizer with use_ema=True"
            )
        parts = self.regularizer if several else {self.select: self.regularizer}
        self._leave_out = SimpleNamespace(function=None)
        self._maps = [(pattern, _proximal_map(part)) for pattern, part in parts.items()]

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        left_out = self._leave_out.function or (lambda variable: False)
        own = [index for index, variable in enumerate(variables) if not left_out(variable)]
        chosen = [selection([variables[index] for index in own], pattern, "Proximal") for pattern, _ in self._maps]
        for index, *marks in zip(own, *chosen, strict=True):
            if sum(marks) > 1:
                raise ValueError(
                    "Proximal: each weight must match one expression of `regularizer` at most. "
                    f"Received: {variables[index].path}, which matches several of {list(self.regularizer)}"
                )
        # Indices: Keras would take variables in an attribute for the optimizer's own.
        self._members = [list(compress(own, marks)) for marks in chosen]
        for (_, proximal_map), members in zip(self._maps, self._members, strict=True):
            proximal_map.check_variables([variables[index] for index in members])
        self.held_back = self.add_variable((len(variables),), dtype="int32", name="held_back")
        self._warned_of = 0

    def _backend_update_step(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable], learning_rate: Tensor
    ) -> None:
        """Keras's hook between clipping and weight decay before, and accumulation after."""
        self.refuse_replicas()
        self.wrapped.apply(grads, trainable_variables)
        of_index = {self._get_variable_index(variable): variable for variable in trainable_variables}
        held = [ops.zeros((), "int32")] * self.held_back.shape[0]
        for (_, proximal_map), members in zip(self._maps, self._members, strict=True):
            # Keras leaves out variables without a gradient.
            indices = [index for index in members if index in of_index]
            variables = [of_index[index] for index in indices]
            values = [variable.value for variable in variables]
            steps = [self._step_size(variable, learning_rate) for variable in variables]
            moved = proximal_map.at(self.iterations).proximal_step(variables, values, steps)
            for index, variable, value, new in zip(indices, variables, values, moved, strict=True):
                if len(variable.shape) >= 2:
                    gone = ops.max(ops.abs(new)) == 0
                    held[index] = ops.cast(gone, "int32")
                    new = ops.where(gone, value, new)
                variable.assign(new)
        self.held_back.assign_add(ops.stack(held))

    def leave_out(self, function: Callable[[keras.Variable], bool]) -> None:
        """Called by a `Trainer`: variables for which the function is true, the loss's own, are never penalised."""
        self._leave_out.function = function

    def for_loss(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The optimizer itself: variables of a loss have no penalty."""
        return optimizer

    def _step_size(self, variable: keras.Variable, learning_rate: Tensor) -> Tensor:
        rate = ops.cast(learning_rate, variable.dtype)
        return step_size(self.wrapped, variable, rate) if self.metric == "optimizer" else rate

    def collapsed(self) -> dict[str, int]:
        """For kernels that a step would have made zero, how many such steps were left out."""
        counts = ops.convert_to_numpy(self.held_back)
        return {v.path: int(c) for v, c in zip(self._trainable_variables, counts, strict=True) if c > 0}

    def strength(self) -> float | None:
        """The strength now, if a schedule gives it and there is one regularizer."""
        (_, proximal_map), *others = self._maps
        if others or not getattr(proximal_map, "scheduled", False):
            return None
        return float(ops.convert_to_numpy(proximal_map.at(ops.convert_to_tensor(self.iterations)).strength))

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        """Keras's hook at the end of `fit`: warns if a kernel would have become zero in it."""
        super().finalize_variable_values(var_list)
        collapsed = self.collapsed()
        if sum(collapsed.values()) > self._warned_of:
            self._warned_of = sum(collapsed.values())
            warnings.warn(collapse_message(collapsed), stacklevel=2)

    def get_config(self) -> dict[str, Any]:
        parts: Any = self.regularizer
        if isinstance(parts, dict):
            parts = {pattern: keras.saving.serialize_keras_object(part) for pattern, part in parts.items()}
        else:
            parts = keras.saving.serialize_keras_object(parts)
        return {**super().get_config(), "regularizer": parts, "select": self.select, "metric": self.metric}


def collapse_message(collapsed: Mapping[str, int]) -> str:
    """What to say of kernels that would have become zero, with the number of steps for each."""
    steps = ", ".join(f"{path} in {count} step(s)" for path, count in collapsed.items())
    return (
        f"Proximal: the proximal step would have made all of a kernel zero, and was left out there: {steps}. "
        "The strength is too large for this layer: lower it, let a schedule raise it from 0, give the optimizer a "
        "larger epsilon, or leave the layer out by `select`."
    )


def _proximal_map(regularizer: Any) -> Any:
    """The regularizer as something with a `proximal_step`; raise if it has none."""
    if isinstance(regularizer, KerasPenalty.KINDS):
        return KerasPenalty(regularizer)
    if not hasattr(regularizer, "proximal_step"):
        raise TypeError(
            "Proximal: `regularizer` must be one of minimand.regularizers, or Keras's L1, L2 or L1L2. "
            f"Received: regularizer={regularizer!r}"
        )
    regularizer.require_proximal()
    return regularizer
