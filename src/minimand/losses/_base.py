"""The base class of losses with variables, and the helpers of all losses: masks, shapes, wrapping and running means."""

from __future__ import annotations

import functools
import itertools
import re
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._config import config_of, from_config
from minimand._keras import LossFunctionWrapper, compile_utils, get_keras_mask, set_keras_mask
from minimand._ops import at_least_float32
from minimand._state import StateLayer
from minimand.backend import Tensor
from minimand.parametrizations import Parametrization

# The variables of a loss, and their values in the logs of `fit`.

# A larger array would bury the other keys of the logs, so its mean is logged instead.
_MOST_ENTRIES = 10


@keras.saving.register_keras_serializable(package="minimand")
class LatestValue(keras.metrics.Metric):
    """A metric that reports the value that it was last updated with.

    An array of at most 10 entries gives the keys NAME_0, NAME_1, ... (NAME_0_0 and so on for more axes). A larger array
    gives the one key NAME_mean.
    """

    def __init__(self, name: str | None = None, dtype: Any = None, *, shape: Sequence[int] = ()) -> None:
        super().__init__(name=name, dtype=dtype)
        self.value = self.add_variable(tuple(shape), "zeros", name="value")

    def update_state(self, value: Tensor) -> None:
        """Remember the value."""
        self.value.assign(ops.cast(ops.stop_gradient(value), self.value.dtype))

    def result(self) -> Any:
        """Return the value, or a dictionary of values by name."""
        value = ops.convert_to_tensor(self.value)
        shape = tuple(self.value.shape)
        if shape == ():
            return value
        places = list(itertools.product(*map(range, shape)))
        if len(places) > _MOST_ENTRIES:
            return {f"{self.name}_mean": ops.mean(value)}
        return {"_".join([self.name, *map(str, place)]): value[place] for place in places}


class Parameter:
    """A parameter of a loss whose value is constrained to a set, such as the positive numbers.

    `TrainableLoss.add_weight` returns a parameter when it is given a parametrization; read its `value` in `call`.

    value = parametrization.constrain(latent)

    Args:
        latent: the variable that is trained, without a constraint.
        name: name of the parameter.
        parametrization: bijection from the latent variable to the value.

    Source: `docs/trainable-losses.md`.

    Examples:
        >>> import keras, minimand
        >>> positive = minimand.parametrizations.Positive()
        >>> scale = minimand.losses.Parameter(keras.Variable(0.0), "scale", positive)
        >>> scale.assign(2.0)
        >>> round(float(scale.numpy()), 4)
        2.0
    """

    def __init__(self, latent: keras.Variable, name: str, parametrization: Parametrization) -> None:
        self.latent, self.name, self.parametrization = latent, name, parametrization

    @property
    def value(self) -> Tensor:
        """The value as a tensor, differentiable by the latent variable."""
        return self.parametrization.constrain(self.latent.value)

    def numpy(self) -> np.ndarray:
        """Return the value as an array."""
        return ops.convert_to_numpy(ops.stop_gradient(self.value))

    def assign(self, value: Any) -> None:
        """Set the value.

        Raises:
            ValueError: the value is outside the set of the parametrization.
        """
        self.latent.assign(self.parametrization.unconstrain(value))


def _latent_initializer(initializer: Any, shape: tuple[int, ...], parametrization: Parametrization, name: str) -> Any:
    """Return an initializer of the latent variable that gives the parameter this first value."""
    try:
        first = np.broadcast_to(np.asarray(initializer, "float64"), shape)
    except (TypeError, ValueError):
        raise ValueError(
            f"add_weight: with a `parametrization`, `initializer` must be the first value of the parameter. Pass a "
            f"number, or an array of shape {shape}. Received: initializer={initializer!r} for {name!r}"
        ) from None
    latent = parametrization.unconstrain(first)
    return lambda _, dtype=None: ops.convert_to_tensor(latent, dtype)


# Shapes, masks and sample weights.


def aligned(owner: str, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Return targets and predictions of equal shape (batch, ..., d); a missing last axis of size 1 is added.

    Without this, targets (n,) and predictions (n, 1) would silently broadcast to (n, n).
    """
    rank_true, rank_pred = len(y_true.shape), len(y_pred.shape)
    if rank_pred == rank_true + 1 and y_pred.shape[-1] == 1:
        y_true = ops.expand_dims(y_true, -1)
    elif rank_true == rank_pred + 1 and y_true.shape[-1] == 1:
        y_true = ops.squeeze(y_true, -1)
    known = [(a, b) for a, b in zip(y_true.shape, y_pred.shape, strict=False) if a is not None and b is not None]
    if len(y_true.shape) != len(y_pred.shape) or any(a != b for a, b in known):
        raise ValueError(
            f"{owner}: targets and predictions must have the same shape. "
            f"Received: y_true of shape {tuple(y_true.shape)}, y_pred of shape {tuple(y_pred.shape)}. "
            "If the targets are class indices, one-hot encode them."
        )
    if len(y_pred.shape) == 1:
        return ops.expand_dims(y_true, -1), ops.expand_dims(y_pred, -1)
    return y_true, y_pred


def _batch_free_shape(value: Any) -> Any:
    """Return the shapes of a structure of arrays, with None for the size of the batch axis."""
    return keras.tree.map_structure(
        lambda leaf: (None, *tuple(ops.convert_to_tensor(leaf).shape)[1:]), value, none_is_leaf=False
    )


def without_masked(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Return targets and predictions with 1 in masked places, because Keras's product with the mask keeps NaN.

    The number is 1 and not 0, because some losses divide probabilities by their sum.
    """
    mask = get_keras_mask(y_pred)
    if mask is None:
        return y_true, y_pred
    y_true = ops.convert_to_tensor(y_true)

    def hidden(value: Tensor) -> Tensor:
        missing = len(value.shape) - len(mask.shape)
        return ops.where(ops.reshape(mask, (*ops.shape(mask), *(1,) * missing)), value, 1)

    shown = hidden(y_pred)
    set_keras_mask(shown, mask)
    return hidden(y_true), shown


def importance_of(values: Tensor, factors: Sequence[Any]) -> Tensor:
    """Return the product of the factors (a mask, sample weights, or None) in the shape (batch, ...) of the values."""
    result = ops.ones_like(values)
    for given in factors:
        if given is not None:
            factor = ops.cast(ops.convert_to_tensor(given), values.dtype)
            if len(factor.shape) == len(values.shape) + 1 and factor.shape[-1] == 1:
                factor = ops.squeeze(factor, -1)
            missing = len(values.shape) - len(factor.shape)
            if missing < 0:
                raise ValueError(
                    f"`sample_weight` must have the shape {tuple(values.shape)} of the examples, or its first axes. "
                    f"Received: shape {tuple(factor.shape)}. Pass one weight for each example."
                )
            result = result * ops.reshape(factor, (*ops.shape(factor), *(1,) * missing))
    return result


# Losses inside losses.


def wrapped_loss(owner: str, loss: Any, *, optional: bool = False) -> Any:
    """Return the loss that a loss is given to wrap, a Keras loss, a function, or the name of one of these."""
    found = keras.losses.get(loss)
    if not callable(found) and not (loss is None and optional):
        raise ValueError(f"{owner}: `loss` must be a Keras loss, or the name of one. Received: loss={loss!r}")
    return found


def _inherited(loss: Any) -> dict[str, Any]:
    """Return the options that a loss takes over from the loss that it wraps, unless it is given its own."""
    if not isinstance(loss, keras.losses.Loss):
        return {}
    # A loss without a reduction is one whose values the wrapping loss reduces.
    reduction = {} if loss.reduction in (None, "none") else {"reduction": loss.reduction}
    return {"dtype": loss.dtype, **reduction}


def values_of(loss: TrainableLoss | WrappingLoss, inner: Any, y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return the values (batch, ...) of a wrapped loss, in float32 or float64.

    Positions that the wrapped loss leaves out, such as those of its `ignore_class`, do not count in the loss either.
    """
    if len(y_pred.shape) == 1:
        y_true, y_pred = ops.reshape(y_true, (-1, 1)), ops.expand_dims(y_pred, -1)
    # A bare function does not align (batch,) with (batch, 1). `compile` wraps functions in the same way.
    values = (inner if isinstance(inner, keras.losses.Loss) else LossFunctionWrapper(inner)).call(y_true, y_pred)
    if not values.shape:
        raise ValueError(
            f"{type(loss).__name__}: `loss` must give one value for each example. Received: loss={inner!r}, which "
            "gives one value for the batch."
        )
    state = loss._call_state
    state.counted = get_keras_mask(values)
    state.factors = (*state.factors, state.counted)
    return at_least_float32(values)


class _CallState(threading.local):
    """The state of a loss in one call. Each replica of `tf.distribute` calls the loss in a thread of its own."""

    factors: tuple[Any, ...] = ()
    """The mask of the predictions, the sample weights, and the mask of the wrapped loss's values, or None for each."""
    counted: Any = None
    """The mask of the wrapped loss's values."""


def _masked(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the method `call` of a loss, whose values carry the mask of the wrapped loss for Keras's reduction."""

    @functools.wraps(call)
    def wrapped(self: Any, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = call(self, y_true, y_pred)
        if self._call_state.counted is not None:
            set_keras_mask(values, self._call_state.counted)
        return values

    return wrapped


class _CarriesMask:
    """A mixin of losses that wrap another loss, whose mask the values of `call` carry."""

    call: Callable[..., Tensor]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "call" in vars(cls):
            cls.call = _masked(cls.call)


def _losses_in(loss: keras.losses.Loss) -> list[keras.losses.Loss]:
    """Return the losses among the attributes of a loss."""
    return [value for value in vars(loss).values() if isinstance(value, keras.losses.Loss)]


def trainable_losses(losses: Any) -> list[TrainableLoss]:
    """Return the losses with variables in a structure of losses, also those that losses without variables wrap.

    A loss that a `TrainableLoss` wraps is not listed, because the wrapping loss takes care of it.
    """
    found: list[TrainableLoss] = []
    for loss in keras.tree.flatten(losses):
        if isinstance(loss, TrainableLoss):
            found.append(loss)
        elif isinstance(loss, keras.losses.Loss):
            found += trainable_losses(_losses_in(loss))
    return found


def _set_factors(loss: TrainableLoss | WrappingLoss, factors: tuple[Any, ...]) -> None:
    """Tell a loss, and the losses inside, the mask and the sample weights of the current call."""
    loss._call_state.factors, loss._call_state.counted = factors, None
    for inner in _losses_in(loss):
        if isinstance(inner, (TrainableLoss, WrappingLoss)):
            _set_factors(inner, factors)


def _call(
    loss: TrainableLoss | WrappingLoss, keras_call: Callable[..., Tensor], y_true: Any, y_pred: Any, sample_weight: Any
) -> Tensor:
    """Call a loss with masked places hidden, while the loss knows how much each entry counts."""
    y_true, y_pred = without_masked(y_true, y_pred)
    _set_factors(loss, (get_keras_mask(y_pred), sample_weight))
    try:
        return keras_call(y_true, y_pred, sample_weight)
    finally:
        # Tensors of a traced step must not outlive the step.
        _set_factors(loss, ())


def _called_by_compile_loss() -> bool:
    """Return whether Keras's `fit` or `evaluate`, and not the user, calls the loss three frames above."""
    return sys._getframe(3).f_globals["__name__"] == compile_utils.__name__


def _copy_of(loss: Any) -> tuple[Any, ...]:
    """Return the recipe of an equal loss with variables of its own, for `pickle` and `copy.deepcopy`."""
    inner = trainable_losses(loss)
    values = [ops.convert_to_numpy(ops.stop_gradient(v.value)) for part in inner for v in part.variables]
    return _restored, (type(loss), loss.get_config(), [part.built_state() for part in inner], values)


def _restored(kind: Any, config: Any, states: list[Any], values: list[Any]) -> Any:
    """Return a loss made from the recipe of `_copy_of`."""
    loss = kind.from_config(config)
    inner = trainable_losses(loss)
    for part, state in zip(inner, states, strict=True):
        part.restore_built_state(state)
    for variable, value in zip([v for part in inner for v in part.variables], values, strict=True):
        variable.assign(value)
    return loss


def _default_name(kind: type) -> str:
    """Return the snake case of the class name, without the number that Keras would add."""
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()


class TrainableLoss(_CarriesMask, keras.losses.Loss):
    """The base class of losses with trainable variables, which are minimised together with the model's weights.

    Derive from this class when a loss has parameters that the data should choose, such as a scale or a threshold.

    min over w, v of mean_i loss(y_i, f(x_i; w); v)

    A subclass makes its variables in `build` with `add_weight` and uses their `value` in `call`. A `minimand.Trainer`
    trains these variables, excludes them from weight decay, saves them, and puts them in the logs of `fit`. Stock
    `compile` cannot train them, so a loss in a stock `compile` raises an error. `loss.trainable = False`, before
    `compile`, keeps the variables fixed. In `call`, `self.training` tells whether running statistics may change (a
    trainer clears the flag in `evaluate`), and `self.importance(values)` tells how much each entry counts.

    A subclass that is made of another loss's values keeps that loss by `self.loss = self.wrap(loss)` in `__init__`, and
    reads its values by `self.values_of(self.loss, y_true, y_pred)` in `call`. Each argument of `__init__` must be an
    attribute of the same name, or `get_config` must be overridden.

    A subclass whose variables could lower the loss without end, at fixed predictions, sets
    `has_finite_minimum = False`. A trainer then refuses the loss unless each variable has a `regularizer`.

    Args:
        name: name of the loss, and prefix of its keys in the logs; by default the class name in snake case.
        **kwargs: `reduction` and `dtype`, as in `keras.losses.Loss`; by default those of the loss given to `wrap`.

    Raises:
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: `docs/trainable-losses.md`; Keras has no such losses.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> @keras.saving.register_keras_serializable(package="example")
        ... class GaussianLikelihood(minimand.losses.TrainableLoss):
        ...     "(r / s)^2 / 2 + log s, with a learned s"
        ...     def build(self, y_true_shape, y_pred_shape):
        ...         positive = minimand.parametrizations.Positive()
        ...         self.scale = self.add_weight((), 1.0, parametrization=positive, name="scale")
        ...     def call(self, y_true, y_pred):
        ...         squares = keras.ops.mean((y_true - y_pred)**2, axis=-1)
        ...         return squares / (2 * self.scale.value**2) + keras.ops.log(self.scale.value)
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("sgd", GaussianLikelihood(name="normal"))
        >>> history = trainer.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0)
        >>> sorted(history.history)
        ['loss', 'normal_scale']
    """

    has_finite_minimum = True

    def __init__(self, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name or _default_name(type(self)), **kwargs)
        self._given = kwargs
        self.state = StateLayer(name=self.name)
        self.built_shapes: list[Any] | None = None
        self.in_trainer = False
        self.training = True
        self._wrapped: list[TrainableLoss] = []
        self._logged: list[tuple[LatestValue, Any]] = []
        self._call_state = _CallState()

    # Variables.

    @property
    def built(self) -> bool:
        """Tell whether the variables exist."""
        return self.built_shapes is not None

    @property
    def variables(self) -> list[keras.Variable]:
        """All variables, those of wrapped losses included."""
        return self.state.variables

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The trainable variables, those of wrapped losses included."""
        return self.state.trainable_variables

    @property
    def trainable(self) -> bool:
        """Tell whether the variables are trained; as in Keras, a change takes effect at the next `compile`."""
        return self.state.trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self.state.trainable = value

    def add_weight(
        self,
        shape: Any = (),
        initializer: Any = "zeros",
        *,
        parametrization: Parametrization | None = None,
        logged: bool = True,
        name: str,
        **kwargs: Any,
    ) -> Any:
        """Make a variable of the loss.

        Args:
            shape: shape of its value.
            initializer: the first value, a number or an array; without a parametrization also a Keras initializer.
            parametrization: bijection to the set that the value belongs to (`minimand.parametrizations`).
            logged: whether the value of a trainable variable is in the logs of `fit`, as LOSS_NAME.
            name: name of the variable.
            **kwargs: as in `keras.layers.Layer.add_weight`: `trainable`, `regularizer`, `constraint`, `aggregation`...
                A regularizer or constraint acts on the latent variable, not on the value.

        Returns:
            A `keras.Variable`, or with a parametrization a `minimand.losses.Parameter`.

        Raises:
            ValueError: `initializer` is outside the set of the parametrization.
        """
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if parametrization is None:
            if isinstance(initializer, (int, float, list, np.ndarray)):
                initializer = keras.initializers.Constant(np.asarray(initializer, "float32"))
            weight = self.state.add_weight(shape, initializer, name=name, **kwargs)
        else:
            first = _latent_initializer(initializer, shape, parametrization, name)
            latent = self.state.add_weight(parametrization.latent_shape(shape), first, name=f"latent_{name}", **kwargs)
            weight = Parameter(latent, name, parametrization)
        if logged and kwargs.get("trainable", True):
            self._logged.append((self.add_log(name, shape), weight))
        return weight

    def add_statistic(self, shape: Any = (), initializer: Any = "zeros", *, name: str) -> keras.Variable:
        """Make a variable that `call` assigns in training, such as a running mean; replicas average its values."""
        return self.add_weight(shape, initializer, name=name, trainable=False, aggregation="mean")

    def add_log(self, name: str, shape: Any = ()) -> LatestValue:
        """Make the key LOSS_NAME of the logs of `fit`; `call` sets the value by `update_state(value)`."""
        log = LatestValue(name=f"{self.name}_{name}", shape=shape)
        setattr(self.state, f"{name}_log", log)
        return log

    # The loss that this loss is made of.

    def wrap(self, loss: Any, *, optional: bool = False) -> Any:
        """Return the loss for an attribute; its variables become variables of this loss.

        Args:
            loss: a Keras loss, a function, or the name of one of these.
            optional: whether `loss` may be None.

        Raises:
            ValueError: `loss` is not a loss.
        """
        found = wrapped_loss(type(self).__name__, loss, optional=optional)
        super().__init__(name=self.name, **(_inherited(found) | self._given))
        inner = trainable_losses(found)
        self._wrapped += inner
        self.state.parts.extend(part.state for part in inner)
        return found

    def values_of(self, loss: Any, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the value of a wrapped loss at each example (batch, ...), in float32 or float64.

        Positions that the wrapped loss leaves out, such as those of its `ignore_class`, do not count in this loss.
        """
        return values_of(self, loss, y_true, y_pred)

    # Building.

    def build(self, y_true_shape: tuple[int | None, ...], y_pred_shape: tuple[int | None, ...]) -> None:
        """Make the variables, for targets and predictions of these shapes (batch axis first, perhaps None)."""

    def build_once(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        """Build this loss and the wrapped losses unless they are built, and remember the shapes for saving."""
        if not self.built:
            for loss in self._wrapped:
                loss.build_once(y_true_shape, y_pred_shape)
            self.build(y_true_shape, y_pred_shape)
            self.built_shapes = [y_true_shape, y_pred_shape]

    def require_built(self) -> None:
        """Raise a `ValueError` if the variables do not exist yet."""
        if not self.built:
            raise ValueError(
                f"{type(self).__name__}: the variables do not exist yet. Call `fit`, or "
                "`build_once(y_true_shape, y_pred_shape)`, first."
            )

    def check_minimum(self) -> None:
        """Raise a `ValueError` if the variables could lower the loss without end."""
        free = [variable.name for variable in self.trainable_variables if variable.regularizer is None]
        if free and not self.has_finite_minimum:
            raise ValueError(
                f"{type(self).__name__}: at fixed predictions the loss has no finite minimum over its own variables, "
                f"so training would drive them to infinity. Give each variable a `regularizer` in `add_weight`, or "
                f"keep the variables fixed by `loss.trainable = False`. Received: no regularizer for {free}"
            )
        for loss in self._wrapped:
            loss.check_minimum()

    # Calls.

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        self._prepare_call(y_true, y_pred)
        return _call(self, super().__call__, y_true, y_pred, sample_weight)

    def _prepare_call(self, y_true: Any, y_pred: Any) -> None:
        """Refuse a stock `compile`, and build the loss before the first call; `__call__` calls this method first."""
        if not self.in_trainer and (not self.built or _called_by_compile_loss()):
            raise RuntimeError(
                f"{type(self).__name__} has variables, which `model.compile()` would neither train nor save. Use "
                "`trainer = minimand.Trainer(model)` and `trainer.compile(optimizer, loss)` instead. In a loop of "
                "your own, call `loss.build_once(y_true_shape, y_pred_shape)` first and train "
                "`loss.trainable_variables`."
            )
        if not self.built:
            # The size of this batch is left out, because a later batch may be smaller.
            self.build_once(*(_batch_free_shape(value) for value in (y_true, y_pred)))
        self._begin_call()

    def _begin_call(self) -> None:
        """Log the values of the variables, and tell the wrapped losses whether this call is in training."""
        for log, weight in self._logged:
            log.update_state(weight.value)
        for loss in self._wrapped:
            loss.training = self.training
            loss._begin_call()

    def importance(self, values: Tensor) -> Tensor:
        """Return how much each entry of `values` (batch, ...) counts in this call: its sample weight; 0 if masked."""
        return importance_of(values, self._call_state.factors)

    def counted(self, y_true: Tensor, rank: int) -> Tensor:
        """Return the targets, with 0 at the positions, by the first `rank` axes, that the wrapped loss leaves out."""
        mask = self._call_state.counted
        if mask is None:
            return y_true
        missing = (1,) * (len(y_true.shape) - rank)
        return ops.where(ops.reshape(mask, (*ops.shape(mask), *missing)), y_true, 0)

    # Configuration and copies.

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal loss."""
        return loss_config(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Return a loss made from `get_config()`."""
        return from_config(cls, config)

    def built_state(self) -> dict[str, Any]:
        """Return what an equal loss needs besides the configuration and the values of the variables."""
        wrapped = [loss.built_state() for loss in self._wrapped]
        return {"shapes": self.built_shapes, "trainable": self.trainable, "wrapped": wrapped}

    def restore_built_state(self, state: dict[str, Any]) -> None:
        """Make the variables that the loss of this `built_state()` had."""
        if state["shapes"] is not None:
            self.build_once(*state["shapes"])
        self.trainable = state["trainable"]
        for loss, own in zip(self._wrapped, state["wrapped"], strict=True):
            loss.restore_built_state(own)

    def __reduce__(self) -> Any:
        return _copy_of(self)


def loss_config(loss: keras.losses.Loss, **given: Any) -> dict[str, Any]:
    """Return the arguments that make an equal loss; `given` holds those that are not attributes of the loss."""
    return config_of(loss, {**keras.losses.Loss.get_config(loss), "dtype": loss.dtype, **given})


class WrappingLoss(_CarriesMask, keras.losses.Loss):
    """A loss without variables of its own that is made of another loss's values, and works in stock `compile`.

    If the wrapped loss has variables, a trainer trains them, and a stock `compile` raises an error.
    """

    def __init__(self, loss: Any, *, name: str | None = None, **kwargs: Any) -> None:
        self.loss = wrapped_loss(type(self).__name__, loss)
        super().__init__(name=name or _default_name(type(self)), **(_inherited(self.loss) | kwargs))
        self._call_state = _CallState()

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        for loss in trainable_losses(self.loss):
            loss._prepare_call(y_true, y_pred)
        return _call(self, super().__call__, y_true, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal loss."""
        return loss_config(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Return a loss made from `get_config()`."""
        return from_config(cls, config)

    def __reduce__(self) -> Any:
        return _copy_of(self)


# Statistics of batches.


def weighted_quantile(values: Tensor, weights: Tensor, level: float) -> Tensor:
    """Return the first value along axis 0, in rising order, up to which the weights reach `level` of their sum.

    A value of weight k counts as k values do, and a value of weight 0 does not count. If no value counts, the result is
    any of the values.
    """
    order = ops.argsort(values, axis=0)
    reached = ops.cumsum(ops.take_along_axis(weights, order, axis=0), axis=0)
    index = ops.sum(ops.cast(reached < level * reached[-1:], "int32"), axis=0, keepdims=True)
    return ops.take_along_axis(ops.take_along_axis(values, order, axis=0), index, axis=0)[0]


def update_running_mean(
    mean: keras.Variable, started: keras.Variable, of_batch: Tensor, momentum: float, counted: Tensor
) -> Tensor:
    """Move a running mean, and the flag (0 or 1) that it has started, after a batch; return the mean.

    The first batch sets the mean. A batch of which no example counts changes nothing.
    """
    of_batch, flag = ops.cast(of_batch, mean.dtype), started.value
    moved = ops.where(counted, of_batch + momentum * flag * (mean.value - of_batch), mean.value)
    mean.assign(moved)
    started.assign(ops.where(counted, ops.ones_like(flag), flag))
    return moved


# Plain models with what a loss has learned.


def extended(owner: str, model: keras.Model, function: Callable[[Any], Any]) -> keras.Model:
    """Return the model with a function of Keras operations after its output; both models share their weights."""
    outputs = keras.tree.flatten(getattr(model, "outputs", None) or [])
    if len(outputs) != 1:
        raise ValueError(
            f"{owner}.to_inference: `model` must be a built functional or sequential model with one output. "
            f"Received: {type(model).__name__} with {len(outputs)} known outputs."
        )
    # The inputs keep the structure that the model takes.
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.Model(inputs, function(outputs[0]), name=f"{model.name}_{owner.lower()}")
