"""Means over the batches of training."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._keras import LossFunctionWrapper, compile_utils, get_keras_mask, set_keras_mask
from minimand._ops import at_least_float32
from minimand._state import StateLayer
from minimand.backend import Tensor
from minimand.parametrizations import Parametrization

# How a loss reports the values of its parameters.

# More entries than this would bury the other keys of the logs.
_MOST_ENTRIES = 10


@keras.saving.register_keras_serializable(package="minimand")
class LatestValue(keras.metrics.Metric):
    """The value that it was last updated with: a parameter of a loss, in the logs of `fit`.

    Those of an array are the keys NAME_0, NAME_1, ... (NAME_0_0 and so on for more axes), if they are 10 at most, and
    the key NAME_mean if they are more.
    """

    def __init__(self, name: str | None = None, dtype: Any = None, *, shape: Sequence[int] = ()) -> None:
        super().__init__(name=name, dtype=dtype)
        self.value = self.add_variable(tuple(shape), "zeros", name="value")

    def update_state(self, value: Tensor) -> None:
        """Remember the value."""
        self.value.assign(ops.cast(ops.stop_gradient(value), self.value.dtype))

    def result(self) -> Any:
        """The value, or several by name."""
        value = ops.convert_to_tensor(self.value)
        shape = tuple(self.value.shape)
        if shape == ():
            return value
        places = list(itertools.product(*map(range, shape)))
        if len(places) > _MOST_ENTRIES:
            return {f"{self.name}_mean": ops.mean(value)}
        return {"_".join([self.name, *map(str, place)]): value[place] for place in places}


# A variable seen through a bijection.


class Parameter:
    """A constrained parameter of a loss: `value` is what it is, `latent` the variable that is trained."""

    def __init__(self, latent: keras.Variable, name: str, parametrization: Parametrization) -> None:
        self.latent, self.name, self.parametrization = latent, name, parametrization

    @property
    def value(self) -> Tensor:
        """The value, a tensor with a gradient by the latent variable."""
        return self.parametrization.constrain(self.latent.value)

    def numpy(self) -> np.ndarray:
        """The value as an array."""
        return keras.ops.convert_to_numpy(keras.ops.stop_gradient(self.value))

    def assign(self, value: Any) -> None:
        """Set the value.

        Raises:
            ValueError: it is not one that the parametrization can give.
        """
        self.latent.assign(self.parametrization.unconstrain(value))


def latent_initializer(initializer: Any, shape: tuple[int, ...], parametrization: Parametrization, name: str) -> Any:
    """The initializer of the latent variable whose value is first the given number or array."""
    try:
        first = np.broadcast_to(np.asarray(initializer, "float64"), shape)
    except (TypeError, ValueError):
        raise ValueError(
            f"add_weight: with a `parametrization`, `initializer` must be the first value: a number, or an array of "
            f"shape {shape}. Received: initializer={initializer!r} for {name!r}"
        ) from None
    latent = parametrization.unconstrain(first)
    return lambda _, dtype=None: keras.ops.convert_to_tensor(latent, dtype)


# Losses with variables of their own.


class TrainableLoss(keras.losses.Loss):
    """Base class of losses with trainable variables, minimised together with the model's weights.

    min over w, v of mean_i loss(y_i, f(x_i; w); v)

    A subclass makes its variables in `build` with `add_weight` and uses their `value` in `call`. A
    `minimand.Trainer` trains them, keeps weight decay off them, saves them, and puts them in the logs of `fit`; stock
    `compile` cannot, so there the loss raises. `loss.trainable = False`, before `compile`, keeps them as they are.
    In `call`, `self.training` tells whether running statistics may change (a trainer clears it in `evaluate`), and
    `self.importance(values)` how much each entry counts.

    A subclass whose variables could lower the loss for ever, at fixed predictions, says so by
    `has_finite_minimum = False`; a trainer then refuses it unless each variable has a `regularizer`.

    Args:
        reduction: as in `keras.losses.Loss`.
        name: name of the loss, prefix of its variables' paths.
        dtype: dtype of the loss's computations, by default `keras.config.floatx()`.

    Raises:
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Keras documents no such losses; `docs/trainable-losses.md` says how these are trained.

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

    def __init__(
        self, *, reduction: str | None = "sum_over_batch_size", name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.state = StateLayer(name=self.name)
        self.built_shapes: list[Any] | None = None
        self.in_trainer = False
        self.training = True
        self._logged: list[tuple[LatestValue, Any]] = []
        self._importances: tuple[Any, ...] = ()

    @property
    def needs_trainer(self) -> bool:
        """Whether stock `compile`, which does not know of the variables, is refused."""
        return True

    @property
    def built(self) -> bool:
        """Whether the variables exist."""
        return self.built_shapes is not None

    @property
    def variables(self) -> list[keras.Variable]:
        """The loss's variables."""
        return self.state.variables

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The loss's trainable variables."""
        return self.state.trainable_variables

    @property
    def trainable(self) -> bool:
        """Whether the loss's variables are trained; as in Keras, a change counts from the next `compile` on."""
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
            initializer: the first value, a number or an array; or, without a parametrization, a Keras initializer.
            parametrization: bijection to the set that the value belongs to (`minimand.parametrizations`).
            logged: whether the value of a trainable variable is in the logs of `fit`, as LOSS_NAME.
            name: name of the variable.
            **kwargs: as in `keras.layers.Layer.add_weight`: `trainable`, `regularizer`, `constraint`, `aggregation`...
                A regularizer or constraint acts on the variable, not on the parametrization's value.

        Returns:
            A `keras.Variable`, or with a parametrization an object with `value`, `numpy()`, `assign(value)` and the
            variable, `latent`.

        Raises:
            ValueError: no variable has this first value.
        """
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if parametrization is None:
            if isinstance(initializer, (int, float, list, np.ndarray)):
                initializer = keras.initializers.Constant(np.asarray(initializer, "float32"))
            weight = self.state.add_weight(shape, initializer, name=name, **kwargs)
        else:
            first = latent_initializer(initializer, shape, parametrization, name)
            latent = self.state.add_weight(parametrization.latent_shape(shape), first, name=f"latent_{name}", **kwargs)
            weight = Parameter(latent, name, parametrization)
        if logged and kwargs.get("trainable", True):
            self._logged.append((self.add_log(name, shape), weight))
        return weight

    def add_log(self, name: str, shape: Any = ()) -> LatestValue:
        """A key LOSS_NAME of the logs of `fit`; `call` sets it by `update_state(value)`."""
        log = LatestValue(name=f"{self.name}_{name}", shape=shape)
        setattr(self.state, f"{name}_log", log)
        return log

    def build(self, y_true_shape: tuple[int | None, ...], y_pred_shape: tuple[int | None, ...]) -> None:
        """Make the variables, for targets and predictions of these shapes (batch axis first, perhaps None)."""

    def require_built(self) -> None:
        """Raise a `ValueError` if the variables do not exist yet."""
        if not self.built:
            raise ValueError(
                f"{type(self).__name__}: its variables exist after the first batch of `fit`, or after "
                "`build_once(y_true_shape, y_pred_shape)`."
            )

    def build_once(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        """Build, if that has not been done yet, and remember the shapes for saving."""
        if not self.built:
            self.build(y_true_shape, y_pred_shape)
            self.built_shapes = [y_true_shape, y_pred_shape]

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        if self.needs_trainer and not self.in_trainer and (not self.built or _called_by_compile_loss()):
            raise RuntimeError(
                f"{type(self).__name__} has variables, which `model.compile()` would neither train nor save. Use "
                "`trainer = minimand.Trainer(model)` and `trainer.compile(optimizer, loss)` instead; in a loop of "
                "your own, call `loss.build_once(y_true_shape, y_pred_shape)` first and train "
                "`loss.trainable_variables`."
            )
        if not self.built:
            # Shapes without the batch axis's size, so that a later, smaller batch finds what it expects.
            self.build_once(*(_batch_free_shape(value) for value in (y_true, y_pred)))
        y_true, y_pred = without_masked(y_true, y_pred)
        self._importances = (get_keras_mask(y_pred), sample_weight)
        self.update_logs()
        try:
            return super().__call__(y_true, y_pred, sample_weight)
        finally:
            # Tensors of a traced step must not outlive it.
            self._importances = ()

    def update_logs(self) -> None:
        """Note the present values of the variables for the logs."""
        for log, weight in self._logged:
            log.update_state(weight.value)

    def check_minimum(self) -> None:
        """Raise a `ValueError` if the variables could lower the loss for ever."""
        free = [variable.name for variable in self.trainable_variables if variable.regularizer is None]
        if free and not self.has_finite_minimum:
            raise ValueError(
                f"{type(self).__name__} has no finite minimum over its own variables, at fixed predictions: training "
                f"would drive them away for ever, and the loss with them. Give each a `regularizer` in `add_weight`, "
                f"or keep them fixed by `loss.trainable = False`. Received: no regularizer for {free}"
            )

    def importance(self, values: Tensor) -> Tensor:
        """How much each entry of `values` (batch, ...) counts in this call: its sample weight, 0 where masked, or 1."""
        result = keras.ops.ones_like(values)
        for given in self._importances:
            if given is not None:
                factor = keras.ops.cast(keras.ops.convert_to_tensor(given), values.dtype)
                if len(factor.shape) == len(values.shape) + 1 and factor.shape[-1] == 1:
                    factor = keras.ops.squeeze(factor, -1)
                missing = len(values.shape) - len(factor.shape)
                result = result * keras.ops.reshape(factor, (*keras.ops.shape(factor), *(1,) * missing))
        return result

    def __reduce__(self) -> Any:
        # Pickles and deep copies: made anew, with variables of their own.
        values = [keras.ops.convert_to_numpy(keras.ops.stop_gradient(v.value)) for v in self.variables]
        return _restored, (type(self), self.get_config(), self.built_state(), values)

    def built_state(self) -> dict[str, Any]:
        """What, besides the configuration and the variables' values, makes an equal loss."""
        return {"shapes": self.built_shapes, "trainable": self.trainable}

    def restore_built_state(self, state: dict[str, Any]) -> None:
        """Make the variables as they were when `built_state()` was asked."""
        if state["shapes"] is not None:
            self.build_once(*state["shapes"])
        self.trainable = state["trainable"]


def _called_by_compile_loss() -> bool:
    """Whether it is Keras's `fit` or `evaluate` that calls the loss, and not the user."""
    return sys._getframe(2).f_globals["__name__"] == compile_utils.__name__


def _restored(kind: type[TrainableLoss], config: Any, state: Any, values: list[Any]) -> TrainableLoss:
    loss = kind.from_config(config)
    loss.restore_built_state(state)
    for variable, value in zip(loss.variables, values, strict=True):
        variable.assign(value)
    return loss


def without_masked(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Targets and predictions with 1 where the predictions' mask is False: Keras's product with the mask keeps NaN.

    1, because probabilities that are all 0 would be divided by their sum.
    """
    mask = get_keras_mask(y_pred)
    if mask is None:
        return y_true, y_pred
    y_true = keras.ops.convert_to_tensor(y_true)

    def hidden(value: Tensor) -> Tensor:
        missing = len(value.shape) - len(mask.shape)
        return keras.ops.where(keras.ops.reshape(mask, (*keras.ops.shape(mask), *(1,) * missing)), value, 1)

    shown = hidden(y_pred)
    set_keras_mask(shown, mask)
    return hidden(y_true), shown


def _batch_free_shape(value: Any) -> Any:
    return keras.tree.map_structure(
        lambda leaf: (None, *tuple(keras.ops.convert_to_tensor(leaf).shape)[1:]), value, none_is_leaf=False
    )


def aligned(owner: str, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Targets and predictions of equal shape (batch, ..., d): an axis d = 1 that one of them lacks is added.

    Without this, targets (n,) and predictions (n, 1) broadcast to (n, n), silently.
    """
    rank_true, rank_pred = len(y_true.shape), len(y_pred.shape)
    if rank_pred == rank_true + 1 and y_pred.shape[-1] == 1:
        y_true = keras.ops.expand_dims(y_true, -1)
    elif rank_true == rank_pred + 1 and y_true.shape[-1] == 1:
        y_true = keras.ops.squeeze(y_true, -1)
    known = [(a, b) for a, b in zip(y_true.shape, y_pred.shape, strict=False) if a is not None and b is not None]
    if len(y_true.shape) != len(y_pred.shape) or any(a != b for a, b in known):
        raise ValueError(
            f"{owner}: targets and predictions must have the same shape. "
            f"Received: y_true of shape {tuple(y_true.shape)}, y_pred of shape {tuple(y_pred.shape)}. "
            "For class indices, one-hot encode the targets."
        )
    if len(y_pred.shape) == 1:
        return keras.ops.expand_dims(y_true, -1), keras.ops.expand_dims(y_pred, -1)
    return y_true, y_pred


# What the losses that are made of another loss's values share.


class WrappingLoss(TrainableLoss):
    """A loss of the values that another has at each example; the variables of that one are parts of its own."""

    loss_is_optional = False

    def __init__(self, loss: Any, *, reduction: str | None, name: str, dtype: Any) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.loss = keras.losses.get(loss)
        if not callable(self.loss) and not (loss is None and self.loss_is_optional):
            raise ValueError(
                f"{type(self).__name__}: `loss` must be a Keras loss, or the name of one. Received: loss={loss!r}"
            )
        if isinstance(self.loss, TrainableLoss):
            self.state.parts.append(self.loss.state)

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        if isinstance(self.loss, TrainableLoss):
            self.loss.build_once(y_true_shape, y_pred_shape)

    def check_minimum(self) -> None:
        super().check_minimum()
        if isinstance(self.loss, TrainableLoss):
            self.loss.check_minimum()

    def values_of_loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The wrapped loss of each example (batch, ...), in float32 or float64."""
        if len(y_pred.shape) == 1:
            y_true, y_pred = ops.reshape(y_true, (-1, 1)), ops.expand_dims(y_pred, -1)
        if isinstance(self.loss, TrainableLoss):
            self.loss.training, self.loss._importances = self.training, self._importances
            self.loss.update_logs()
        # As in `compile`: a function by itself does not align (batch,) with (batch, 1).
        loss = self.loss if isinstance(self.loss, keras.losses.Loss) else LossFunctionWrapper(self.loss)
        values = loss.call(y_true, y_pred)
        if not values.shape:
            raise ValueError(
                f"{type(self).__name__}: `loss` must give a value for each example. Received: loss={self.loss!r}, "
                "which gives one for the batch."
            )
        return at_least_float32(values)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "loss": keras.saving.serialize_keras_object(self.loss)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WrappingLoss:
        return cls(**{**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})


# What a loss has learned, as a part of a model without Minimand.


def extended(owner: str, model: keras.Model, function: Callable[[Any], Any]) -> keras.Model:
    """The model with a function of Keras's operations after its output; the weights are shared."""
    outputs = keras.tree.flatten(getattr(model, "outputs", None) or [])
    if len(outputs) != 1:
        raise ValueError(
            f"{owner}.to_inference: the model must be functional or sequential, built, with one output. "
            f"Received: {type(model).__name__} with {len(outputs)} known outputs."
        )
    # In the structure that the model takes.
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.Model(inputs, function(outputs[0]), name=f"{model.name}_{owner.lower()}")


# Quantiles of examples that count differently.


def weighted_quantile(values: Tensor, weights: Tensor, level: float) -> Tensor:
    """The first of the values along axis 0, in rising order, up to which the weights reach `level` of their sum.

    A value of weight k counts as k values do, one of weight 0 not at all; where no value counts, any may come out.
    """
    order = ops.argsort(values, axis=0)
    reached = ops.cumsum(ops.take_along_axis(weights, order, axis=0), axis=0)
    index = ops.sum(ops.cast(reached < level * reached[-1:], "int32"), axis=0, keepdims=True)
    return ops.take_along_axis(ops.take_along_axis(values, order, axis=0), index, axis=0)[0]


# Means over the batches of training.


def moved_mean(mean: Tensor, of_batch: Tensor, momentum: float, started: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """A running mean and whether it has started (0 or 1), after a batch.

    The first batch's as it is; both unchanged where a batch tells nothing.
    """
    moved = of_batch + momentum * started * (mean - of_batch)
    return ops.where(told, moved, mean), ops.where(told, ops.ones_like(started), started)
