"""Proximal steps after another optimizer's update: exact zeros, bounds and constant pieces."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any

import keras
from keras import ops

from minimand._ops import soft_threshold
from minimand._selection import Select, check_select, selection
from minimand._validation import check_choice
from minimand.backend import Tensor
from minimand.optimizers._base import OptimizerWrapper, refuse_replicas
from minimand.regularizers import WeightRegularizer

# Keras's own regularizers.


class _KerasRegularizer(WeightRegularizer):
    """Keras's `L1`, `L2` or `L1L2` with a proximal map: sign(w) max(|w| - s l1, 0) / (1 + 2 s l2)."""

    def __init__(self, regularizer: Any) -> None:
        super().__init__(1.0)
        self.l1, self.l2 = (float(getattr(regularizer, name, 0.0)) for name in ("l1", "l2"))

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        if self.l1 > 0:
            weights = soft_threshold(weights, self.l1 * step)
        return weights / (1.0 + 2.0 * self.l2 * step) if self.l2 > 0 else weights


# The step sizes s of Keras's optimizers: after many steps with the same gradient g, the update is -s g.


def _sgd(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    # Keras's momentum is a sum of gradients: the same gradient is taken 1 / (1 - momentum) times.
    return rate / (1.0 - optimizer.momentum)


def _bias_correction(optimizer: Any) -> Tensor:
    return 1.0 - ops.power(ops.cast(optimizer.beta_2, "float32"), ops.cast(optimizer.iterations, "float32"))


def _adam(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    squares = (optimizer._velocity_hats if optimizer.amsgrad else optimizer._velocities)[index].value
    correction = ops.sqrt(_bias_correction(optimizer))
    return rate * ops.cast(correction, squares.dtype) / (ops.sqrt(squares) + optimizer.epsilon)


def _nadam(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    squares = optimizer._velocities[index].value
    return rate / (ops.sqrt(squares / ops.cast(_bias_correction(optimizer), squares.dtype)) + optimizer.epsilon)


def _adamax(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    return rate / (optimizer._u[index].value + optimizer.epsilon)


def _rmsprop(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    squares = optimizer._velocities[index].value
    if optimizer.centered:
        squares = squares - ops.square(optimizer._average_gradients[index].value)
    return rate / (1.0 - optimizer.momentum) / ops.sqrt(squares + optimizer.epsilon)


def _adagrad(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    return rate / ops.sqrt(optimizer._accumulators[index].value + optimizer.epsilon)


# A function takes the optimizer after its update, the index of a variable and the learning rate. It returns a scalar or
# a tensor of the variable's shape. AdamW is an Adam.
_STEP_SIZES: dict[type, Callable[[Any, int, Tensor], Tensor]] = {
    keras.optimizers.SGD: _sgd,
    keras.optimizers.Adam: _adam,
    keras.optimizers.Nadam: _nadam,
    keras.optimizers.Adamax: _adamax,
    keras.optimizers.RMSprop: _rmsprop,
    keras.optimizers.Adagrad: _adagrad,
}


def _learning_rate(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    return rate


# The optimizer.


@keras.saving.register_keras_serializable(package="minimand")
class Proximal(OptimizerWrapper):
    """Proximal adds a proximal step for a penalty after each update of any Keras optimizer.

    Use Proximal to get weights that are exactly zero, equal to their neighbours or at the end of a range, as the
    minimum of loss + penalty has them; gradient steps on the penalty only bring weights near to that. The penalty R is
    not part of the loss.

    w <- prox(w + update), prox(v) = argmin_u R(u) + sum (u - v)^2 / (2 s)

    The step sizes s decide which minimum is found:

    - `metric="optimizer"` uses the step sizes of the inner optimizer, whose update by a constant gradient g is -s g:
      s = rate / (1 - momentum) for SGD, s = rate / (sqrt(v) + epsilon) for each weight for Adam, and so on. Training
      then converges to a stationary point of loss + R.
    - `metric="learning_rate"` uses the learning rate for all weights. This is decoupled from the update, as AdamW's
      weight decay is. It is cheaper and defined for every optimizer, but an adaptive optimizer then converges to a
      stationary point with another penalty, whose strength goes with sqrt(v).

    Adam's steps, and so the proximal steps, are huge where v is small, and a layer may lose all of its weights and then
    gets no gradient. A larger `epsilon` of the inner optimizer (1e-3) bounds the steps. A schedule as the regularizer's
    strength, from 0 up, gives the loss a head start. A step that would make a whole kernel zero is left out for this
    kernel and counted in `held_back`; `fit` warns of it at its end, and `callbacks.Sparsity` stops training.

    Weights that are zero stay trainable: their gradient may bring them back. Do not give the regularizer to the model's
    layers as well.

    Args:
        optimizer: the Keras optimizer that computes the updates. An unbuilt copy of it is used. Its weight decay,
            clipping and gradient accumulation keep their meaning. `use_ema` is refused, because averages are not zero.
        regularizer: one of `minimand.regularizers` with a `prox`, or Keras's `L1`, `L2` or `L1L2`; or a mapping of
            regular expressions of paths to such. Each weight must match one expression at most.
        select: the penalised weights: `"kernels"` (rank 2 or more), `"all"`, a regular expression of paths, or a
            function of the variable. Not with a mapping.
        metric: `"optimizer"` or `"learning_rate"`.
        name: name of the optimizer.

    Raises:
        TypeError: `optimizer` is not a Keras optimizer, or wraps others (put those outside); `regularizer` has no
            proximal map.
        ValueError: `metric="optimizer"` with an optimizer whose step sizes are not known, `use_ema`, `select` with a
            mapping; on the first batch, nothing is selected, the regularizer refuses the shape of a weight, or a weight
            matches several expressions.
        NotImplementedError: the regularizer has no proximal map with these arguments; on the first batch, several
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
                "Proximal: `select` must be left out with a mapping of expressions, which select the weights. "
                f"Received: select={select!r}"
            )
        known = (function for kind, function in _STEP_SIZES.items() if isinstance(self.wrapped, kind))
        step_size = next(known, None) if metric == "optimizer" else _learning_rate
        if step_size is None:
            raise ValueError(
                f'Proximal: metric="optimizer" needs one of {", ".join(kind.__name__ for kind in _STEP_SIZES)}. '
                f'Received: optimizer={type(self.wrapped).__name__}. Use metric="learning_rate".'
            )
        self._step_size = step_size
        if self.use_ema:
            raise ValueError(
                "Proximal: `optimizer` must not average weights, because averages are not exactly zero. "
                "Received: an optimizer with use_ema=True. Use use_ema=False."
            )
        parts = self.regularizer if several else {self.select: self.regularizer}
        self._parts = [(pattern, _with_proximal_map(part)) for pattern, part in parts.items()]
        self._left_out: Callable[[keras.Variable], bool] = lambda variable: False

    def _make_variables(self, weights: list[keras.Variable]) -> None:
        own = [index for index, weight in enumerate(weights) if not self._left_out(weight)]
        chosen = [selection([weights[index] for index in own], pattern, "Proximal") for pattern, _ in self._parts]
        for index, *marks in zip(own, *chosen, strict=True):
            if sum(marks) > 1:
                raise ValueError(
                    "Proximal: each weight must match one expression of `regularizer` at most. "
                    f"Received: {weights[index].path}, which matches several of {list(self.regularizer)}"
                )
        # Indices, because Keras would take variables in an attribute for the optimizer's own.
        self._members = [list(compress(own, marks)) for marks in chosen]
        for (_, regularizer), members in zip(self._parts, self._members, strict=True):
            regularizer.check_variables([weights[index] for index in members])
        self.held_back = self.add_variable((len(weights),), dtype="int32", name="held_back")
        self._warned_of = 0

    def _backend_update_step(self, grads: Sequence[Tensor], variables: Sequence[keras.Variable], rate: Tensor) -> None:
        """Keras's hook between clipping and weight decay before, and accumulation after."""
        refuse_replicas(self)
        self.wrapped.apply(grads, variables)
        of_index = {self._get_variable_index(variable): variable for variable in variables}
        held = [ops.zeros((), "int32")] * self.held_back.shape[0]
        for (_, regularizer), members in zip(self._parts, self._members, strict=True):
            # Keras leaves out variables without a gradient.
            indices = [index for index in members if index in of_index]
            own = [of_index[index] for index in indices]
            values = [variable.value for variable in own]
            rates = [ops.cast(rate, variable.dtype) for variable in own]
            steps = [self._step_size(self.wrapped, index, r) for index, r in zip(indices, rates, strict=True)]
            moved = regularizer.at(self.iterations).proximal_step(own, values, steps)
            for index, variable, value, new in zip(indices, own, values, moved, strict=True):
                if len(variable.shape) >= 2:
                    gone = ops.max(ops.abs(new)) == 0
                    held[index] = ops.cast(gone, "int32")
                    new = ops.where(gone, value, new)
                variable.assign(new)
        self.held_back.assign_add(ops.stack(held))

    def leave_out(self, function: Callable[[keras.Variable], bool]) -> None:
        """Called by a `Trainer`: variables for which `function` is true, the loss's own, are never penalised."""
        self._left_out = function

    def for_loss(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The optimizer itself, because variables of a loss have no penalty."""
        return optimizer

    def collapsed(self) -> dict[str, int]:
        """The number of steps that were left out, by the path of the kernel that they would have made zero."""
        counts: Counter[str] = Counter()
        for variable, count in zip(self._trainable_variables, ops.convert_to_numpy(self.held_back), strict=True):
            # Two kernels may have one path.
            counts[variable.path] += int(count)
        return dict(+counts)

    def strength(self) -> float | None:
        """The present strength, if there is one regularizer and its strength is a schedule."""
        (_, regularizer), *others = self._parts
        if others or not regularizer.scheduled:
            return None
        return float(ops.convert_to_numpy(regularizer.at(ops.convert_to_tensor(self.iterations)).strength))

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        """Keras's hook at the end of `fit`: warn if a step would have made a kernel zero."""
        super().finalize_variable_values(var_list)
        collapsed = self.collapsed()
        if sum(collapsed.values()) > self._warned_of:
            self._warned_of = sum(collapsed.values())
            steps = ", ".join(f"{path} in {count} step{'s' * (count > 1)}" for path, count in collapsed.items())
            warnings.warn(
                f"Proximal: the proximal step would have made all of a kernel zero, and was left out there: {steps}. "
                "The strength is too large for this layer. Lower it, let a schedule raise it from 0, give the "
                "optimizer a larger epsilon, or leave the layer out by `select`.",
                stacklevel=2,
            )


def _with_proximal_map(regularizer: Any) -> WeightRegularizer:
    """The regularizer as a `WeightRegularizer`; raise an error if it has no proximal map."""
    if isinstance(regularizer, (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)):
        return _KerasRegularizer(regularizer)
    if not isinstance(regularizer, WeightRegularizer):
        raise TypeError(
            "Proximal: `regularizer` must be one of minimand.regularizers, or Keras's L1, L2 or L1L2. "
            f"Received: regularizer={regularizer!r}"
        )
    regularizer.require_proximal()
    return regularizer
