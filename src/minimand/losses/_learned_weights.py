"""Losses that learn weights of classes or tasks; each has a finite optimum, so no weight runs to 0 or infinity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._keras import loss_options
from minimand._ops import one_hot_targets, safe_divide
from minimand._validation import check_choice, check_float, check_int, check_several, is_number
from minimand.backend import Tensor
from minimand.losses._base import TrainableLoss
from minimand.parametrizations import Bounded

# Weights of classes.

# The bounds keep the weight of a class whose loss is 0 finite.
_WEIGHT_RANGE = (1e-3, 1e3)


def _members(loss: Any, y_true: Tensor, values: Tensor) -> Tensor:
    """Return the classes of the targets as probabilities (batch, ..., K)."""
    if len(y_true.shape) > len(values.shape):
        # Keras's losses of one-hot targets may have the classes along another axis.
        y_true = ops.moveaxis(y_true, loss_options(loss.loss).get("axis", -1), -1)
    y_true = loss.counted(y_true, len(values.shape))
    return one_hot_targets(type(loss).__name__, y_true, tuple(values.shape), loss.num_classes, values.dtype)


@keras.saving.register_keras_serializable(package="minimand")
class LearnedClassWeights(TrainableLoss):
    """LearnedClassWeights trains a weight for each class, under a barrier that keeps the weights from 0.

    Use this loss when classes differ in difficulty and the noisy ones should not dominate; where the rare classes are
    the hard ones, use `GroupDRO`.

    min over w of mean_i w_c(i) l_i - k_c(i) log w_c(i)

    At the minimum w_c = k_c / L_c, with L_c the mean loss of class c, and the network minimises
    sum_c pi_c k_c log L_c: a class counts by the ratio by which its loss falls. A class that stays hard thus counts
    less. The minimum over w, within (0.001, 1000), is finite. With k = 1/2 and w = exp(-s) the loss is Kendall's, of
    which s* = log 2 L_c.

    Args:
        num_classes: K, at least 2.
        loss: a Keras classification loss, or the name of one; its `reduction` and `dtype` are the defaults.
        strength: k > 0, a number or one number for each class.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss, for class indices or one-hot targets (a mixed target counts for several
        classes). A target that is not one of the classes gives NaN. `class_weights` are w, which are also in the logs.

    Raises:
        ValueError: an argument is outside its range.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: the general form of Kendall, Gal, Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR
    2018, equation 10, with classes for tasks.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        >>> trainer = minimand.Trainer(model)
        >>> trainer.compile("adam", minimand.losses.LearnedClassWeights(3))
        >>> history = trainer.fit(np.random.rand(30, 4), np.arange(30) % 3, verbose=0)
        >>> trainer.loss.class_weights.shape
        (3,)
    """

    def __init__(
        self,
        num_classes: int,
        loss: Any = "sparse_categorical_crossentropy",
        *,
        strength: float | Sequence[float] = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        owner = "LearnedClassWeights"
        self.num_classes = check_int(owner, "num_classes", num_classes, minimum=2)
        self.loss = self.wrap(loss)
        self.strength: Any
        if is_number(strength):
            self.strength = check_float(owner, "strength", strength, above=0.0)
        else:
            each = check_several(owner, "strength", strength, num_classes)
            self.strength = [check_float(owner, "strength", k, above=0.0) for k in each]

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        within = Bounded(*_WEIGHT_RANGE, log=True)
        self._weights = self.add_weight(self.num_classes, 1.0, parametrization=within, name="class_weights")

    @property
    def class_weights(self) -> np.ndarray:
        """The weight of each class."""
        return np.asarray(self._weights.numpy()) if self.built else np.ones(self.num_classes)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = self.values_of(self.loss, y_true, y_pred)
        members = _members(self, y_true, values)
        weights = ops.cast(self._weights.value, values.dtype)
        barrier = ops.convert_to_tensor(self.strength, values.dtype) * ops.log(weights)
        return ops.sum(members * weights, axis=-1) * values - ops.sum(members * barrier, axis=-1)


@keras.saving.register_keras_serializable(package="minimand")
class GroupDRO(TrainableLoss):
    """Group distributionally robust optimization trains for the worst class, whatever its frequency.

    Use this loss when the error of the worst class matters and the rare classes are the hard ones. The groups are the
    classes.

    min over the network, max over q in the simplex of sum_c q_c L_c - tau KL(q || p), p uniform

    L_c is the mean loss of class c. q grows by exponentiated ascent, q_c <- q_c exp(eta L_c), normalised. With tau > 0
    q converges to p_c exp(L_c / tau), normalised, so the maximum over q is finite. L_c is estimated by the sum of the
    losses of the class in the batch over the number expected from the share of the class in the examples so far, so
    that small batches without the class do not bias L_c.

    Args:
        num_classes: K, at least 2.
        loss: a Keras classification loss, or the name of one; its `reduction` and `dtype` are the defaults.
        step: eta > 0.
        tau: price >= 0 of leaving p; `step` times `tau` must be below 1.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss, for class indices or one-hot targets (a mixed target counts for several
        classes). A target that is not one of the classes gives NaN. `class_weights` are q, also in the logs. An
        example of sample weight k counts as k examples do; masked examples do not count.

    Raises:
        ValueError: an argument is outside its range.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Sagawa, Koh, Hashimoto, Liang, "Distributionally robust neural networks for group shifts", ICLR 2020,
    algorithm 1.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        >>> trainer = minimand.Trainer(model)
        >>> trainer.compile("adam", minimand.losses.GroupDRO(3))
        >>> history = trainer.fit(np.random.rand(30, 4), np.arange(30) % 3, verbose=0)
        >>> round(float(trainer.loss.class_weights.sum()), 4)
        1.0
    """

    def __init__(
        self,
        num_classes: int,
        loss: Any = "sparse_categorical_crossentropy",
        *,
        step: float = 0.01,
        tau: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        owner = "GroupDRO"
        self.num_classes = check_int(owner, "num_classes", num_classes, minimum=2)
        self.loss = self.wrap(loss)
        self.step = check_float(owner, "step", step, above=0.0)
        self.tau = check_float(owner, "tau", tau, minimum=0.0)
        if self.step * self.tau >= 1:
            raise ValueError(
                f"{owner}: `step` times `tau` must be below 1, or the ascent would overshoot its end. "
                f"Received: step={self.step}, tau={self.tau}"
            )

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        count = self.num_classes
        uniform = keras.initializers.Constant(1 / count)
        self._weights = self.add_statistic(count, uniform, name="class_weights")
        # The number of examples of each class so far.
        self.counts = self.add_statistic(count, name="counts")
        self._log = self.add_log("class_weights", (count,))

    @property
    def class_weights(self) -> np.ndarray:
        """The weight of each class."""
        return np.asarray(self._weights.numpy()) if self.built else np.full(self.num_classes, 1 / self.num_classes)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = self.values_of(self.loss, y_true, y_pred)
        members = _members(self, y_true, values)
        importance = ops.reshape(self.importance(values), (-1, 1))
        rows = ops.stop_gradient(ops.reshape(members, (-1, self.num_classes))) * importance
        of_batch = ops.cast(ops.sum(rows, axis=0), self.counts.dtype)
        seen = self.counts.value
        # The evaluation of an untrained loss has no counts but those of its batch.
        counts = seen + of_batch if self.training else ops.where(ops.any(seen > 0), seen, of_batch)
        weights = self._weights.value
        if self.training:
            expected = counts * safe_divide(ops.sum(of_batch), ops.sum(counts))
            constants = ops.reshape(ops.stop_gradient(values), (-1, 1))
            of_class = safe_divide(ops.cast(ops.sum(rows * constants, axis=0), expected.dtype), expected)
            # A step of ascent of sum q L - tau KL(q || p) in the logarithms of q.
            logits = (1 - self.step * self.tau) * ops.log(ops.maximum(weights, 1e-30)) + self.step * of_class
            weights = ops.softmax(logits)
            self._weights.assign(weights)
            self.counts.assign(counts)
        self._log.update_state(weights)
        # Each of n examples is weighted by n q_c / n_c, so that the mean is sum_c q_c L_c.
        each = safe_divide(weights * ops.sum(counts), counts)
        return ops.sum(members * ops.cast(each, values.dtype), axis=-1) * values


# Weights of the tasks of a model with several outputs.

_FORMS = ("regression", "classification")


@keras.saving.register_keras_serializable(package="minimand")
class TaskUncertainty(TrainableLoss):
    """TaskUncertainty weights the loss of one task by its learned uncertainty.

    Use this loss for each output of a model with several tasks in different units; `UncertaintyWeighted` makes all of
    these losses at once.

    min over s of mean_i e^-s l_i / 2 + s / 2 (regression) or mean_i e^-s l_i + s / 2 (classification)

    At the minimum s = log L or s = log 2 L, with L the mean loss, and in both forms the weight of the loss is 1/(2 L).
    s is bounded, because a loss of 0 or less would have no minimum over s; within the bounds the minimum is finite.

    Args:
        loss: a Keras loss, or the name of one; its `reduction` and `dtype` are the defaults.
        form: `"regression"`, where s is the logarithm of the variance if the loss is squared error, or
            `"classification"`.
        log_variance_range: bounds of s, which starts at 0.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss; `log_variance` is s, which is also in the logs.

    Raises:
        ValueError: the bounds do not enclose 0, or `form` is unknown.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Kendall, Gal, Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018, equations 7, 10.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", minimand.losses.TaskUncertainty("mean_squared_error"))
        >>> history = trainer.fit(np.random.rand(8, 3), np.ones((8, 1)), verbose=0)
    """

    def __init__(
        self,
        loss: Any,
        form: str = "regression",
        *,
        log_variance_range: tuple[float, float] = (-10.0, 10.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        owner = "TaskUncertainty"
        self.loss = self.wrap(loss)
        self.form = check_choice(owner, "form", form, _FORMS)
        low, high = check_several(owner, "log_variance_range", log_variance_range, 2)
        self.log_variance_range = (
            check_float(owner, "log_variance_range", low, below=0.0),
            check_float(owner, "log_variance_range", high, above=0.0),
        )
        self._factor = 0.5 if form == "regression" else 1.0

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        within = Bounded(*self.log_variance_range)
        self._log_variance = self.add_weight((), 0.0, parametrization=within, name="log_variance")

    @property
    def log_variance(self) -> float:
        """The logarithm s of the variance of the task."""
        return float(self._log_variance.numpy()) if self.built else 0.0

    @property
    def weight(self) -> float:
        """The factor of the wrapped loss."""
        return self._factor * math.exp(-self.log_variance)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = self.values_of(self.loss, y_true, y_pred)
        log_variance = ops.cast(self._log_variance.value, values.dtype)
        return self._factor * ops.exp(-log_variance) * values + log_variance / 2


class UncertaintyWeighted(dict[str, TaskUncertainty]):
    """UncertaintyWeighted weights the losses of several outputs by the learned uncertainty of each.

    Use this dictionary when the tasks of one model have losses in different units and no weights are known.

    min over w and all s_k of sum_k e^-s_k L_k(w) / 2 + s_k / 2, without the first 1/2 for classification

    The dictionary has a `TaskUncertainty` for each output name; pass it as `Trainer.compile(optimizer, loss=...)`.
    At the best s the network minimises the sum of log L_k / 2: a task counts by the ratio by which its loss falls,
    whatever its unit. `loss_weights` multiply both terms of a task.

    Args:
        losses: a Keras loss, or the name of one, for each output name.
        classification: names of the outputs in the form for classification; the others have the form for regression.
        log_variance_range: bounds of each s.

    Raises:
        ValueError: `losses` is empty or not a mapping, or `classification` has a name that is not an output.

    Source: Kendall, Gal, Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018, equations 7, 10.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> inputs = keras.Input((3,))
        >>> outputs = {"size": keras.layers.Dense(1)(inputs), "kind": keras.layers.Dense(2, "softmax")(inputs)}
        >>> trainer = minimand.Trainer(keras.Model(inputs, outputs))
        >>> losses = {"size": "mean_squared_error", "kind": "sparse_categorical_crossentropy"}
        >>> loss = minimand.losses.UncertaintyWeighted(losses, classification=["kind"])
        >>> trainer.compile("adam", loss)
        >>> targets = {"size": np.ones((8, 1)), "kind": np.arange(8) % 2}
        >>> history = trainer.fit(np.random.rand(8, 3), targets, verbose=0)
        >>> sorted(loss.weights)
        ['kind', 'size']
    """

    def __init__(
        self,
        losses: Mapping[str, Any],
        *,
        classification: Any = (),
        log_variance_range: tuple[float, float] = (-10.0, 10.0),
    ) -> None:
        if not isinstance(losses, Mapping) or not losses:
            raise ValueError(
                "UncertaintyWeighted: `losses` must be a mapping of output names to losses. For a single output use "
                f"TaskUncertainty. Received: losses={losses!r}"
            )
        named = isinstance(classification, Iterable) and not isinstance(classification, str)
        if not named or not set(classification) <= set(losses):
            raise ValueError(
                f"UncertaintyWeighted: `classification` must be a list of names among {sorted(losses)}. "
                f"Received: classification={classification!r}"
            )
        for name, loss in losses.items():
            form, own = _FORMS[name in classification], f"{name}_uncertainty"
            self[name] = TaskUncertainty(loss, form, log_variance_range=log_variance_range, name=own)

    @property
    def weights(self) -> dict[str, float]:
        """The factor of each output's loss."""
        return {name: task.weight for name, task in self.items()}
