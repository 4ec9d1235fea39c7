"""Weights of the tasks of a model, learned as the uncertainty of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._ops import one_hot_targets
from minimand._validation import check_choice, check_float, check_int, check_several, is_number
from minimand.backend import Tensor
from minimand.losses._base import WrappingLoss
from minimand.parametrizations import Bounded

# Weights of the classes, learned without collapse.

# Weights stay within these bounds, so that a class without any loss has a finite one.
_WEIGHT_RANGE = (1e-3, 1e3)


@keras.saving.register_keras_serializable(package="minimand")
class LearnedClassWeights(WrappingLoss):
    """A loss whose classes have trained weights.

    L_c is the mean loss of the examples of class c.

    - `"barrier"`: min over w of mean_i w_c(i) l_i - k_c(i) log w_c(i). At the minimum w_c = k_c / L_c, and the
      network minimises sum_c pi_c k_c log L_c: classes count by the *ratio* by which their loss falls. A class that
      stays hard counts less: good where it is hard because its labels are noisy, bad where it is rare.
    - `"uncertainty"`: the same with k = 1/2, of which w = exp(-s), s* = log 2 L_c, is Kendall's form.
    - `"adversarial"`: min over the network, max over q in the simplex of sum_c q_c L_c - tau KL(q || p): for the worst
      class, whatever its frequency. q grows by exponentiated ascent, q_c <- q_c exp(eta L_c), and with tau > 0 goes to
      p_c exp(L_c / tau), normalised; p is uniform.

    The minimum over w, within (0.001, 1000), and the maximum over q are finite. There is no mode that minimises over
    weights with a fixed sum: it would put all weight on the easiest class.

    Args:
        num_classes: K, at least 2.
        mode: `"barrier"`, `"uncertainty"` or `"adversarial"`.
        loss: a Keras classification loss, or the name of one; its reduction is not used.
        strength: of `"barrier"`, k > 0: a number, or one for each class; by default 1.
        step: of `"adversarial"`, eta > 0; by default 0.01.
        tau: of `"adversarial"`, the price of leaving p, at least 0; by default 0.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss, for class indices or one-hot targets (mixed ones count for several classes); NaN
        for a target that is none of the classes.
        `class_weights` are w or q, also in the logs. In `"adversarial"` L_c is the sum of the class's losses over the
        number expected from its share of the examples so far, so that small batches that lack a class do not bias it.
        A sample weight of k makes an example count as k do, masked ones do not count.

    Raises:
        ValueError: an argument is outside of its range, or of another mode.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Kendall, Gal, Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018, equation 10
    (uncertainty); Sagawa, Koh, Hashimoto, Liang, "Distributionally robust neural networks for group shifts", ICLR
    2020, algorithm 1 (adversarial). The barrier is the general form of the former.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        >>> trainer = minimand.Trainer(model)
        >>> trainer.compile("adam", minimand.losses.LearnedClassWeights(3, "adversarial"))
        >>> history = trainer.fit(np.random.rand(30, 4), np.arange(30) % 3, verbose=0)
        >>> round(float(trainer.loss.class_weights.sum()), 4)
        1.0
    """

    def __init__(
        self,
        num_classes: int,
        mode: str = "barrier",
        loss: Any = "sparse_categorical_crossentropy",
        *,
        strength: float | Sequence[float] | None = None,
        step: float | None = None,
        tau: float | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "learned_class_weights",
        dtype: Any = None,
    ) -> None:
        super().__init__(loss, reduction=reduction, name=name, dtype=dtype)
        owner = "LearnedClassWeights"
        self.num_classes = check_int(owner, "num_classes", num_classes, minimum=2)
        self.mode = check_choice(owner, "mode", mode, ("barrier", "uncertainty", "adversarial"))
        given = {"strength": strength, "step": step, "tau": tau}
        own = {"barrier": {"strength"}, "uncertainty": set(), "adversarial": {"step", "tau"}}[mode]
        foreign = {key: value for key, value in given.items() if value is not None and key not in own}
        if foreign:
            raise ValueError(f"{owner}: mode={mode!r} takes {sorted(own) or 'no more arguments'}. Received: {foreign}")
        self.strength: Any = None
        if is_number(strength):
            self.strength = check_float(owner, "strength", strength, above=0.0)
        elif strength is not None:
            each = check_several(owner, "strength", strength, num_classes)
            self.strength = [check_float(owner, "strength", k, above=0.0) for k in each]
        self.step: Any = None
        self.tau: Any = None
        if mode == "adversarial":
            self.step = check_float(owner, "step", 0.01 if step is None else step, above=0.0)
            self.tau = check_float(owner, "tau", 0.0 if tau is None else tau, minimum=0.0)
            if self.step * self.tau >= 1:
                raise ValueError(
                    f"{owner}: `step` times `tau` must be below 1, or the ascent would jump over its end. "
                    f"Received: step={self.step}, tau={self.tau}"
                )

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        super().build(y_true_shape, y_pred_shape)
        count = self.num_classes
        if self.mode == "adversarial":
            kept: dict[str, Any] = {"trainable": False, "aggregation": "mean"}
            uniform = keras.initializers.Constant(1 / count)
            self._weights = self.add_weight(count, uniform, name="class_weights", **kept)
            # How many examples of each class have been seen.
            self.counts = self.add_weight(count, name="counts", **kept)
            self._log = self.add_log("class_weights", (count,))
        else:
            within = Bounded(*_WEIGHT_RANGE, log=True)
            self._weights = self.add_weight(count, 1.0, parametrization=within, name="class_weights")

    @property
    def class_weights(self) -> np.ndarray:
        """The weight of each class."""
        if not self.built:
            return np.full(self.num_classes, 1 / self.num_classes if self.mode == "adversarial" else 1.0)
        return np.asarray(self._weights.numpy())

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = self.values_of_loss(y_true, y_pred)
        members = one_hot_targets("LearnedClassWeights", y_true, tuple(values.shape), self.num_classes, values.dtype)
        if self.mode == "adversarial":
            return self._adversarial(values, members)
        weights = ops.cast(self._weights.value, values.dtype)
        strength = 0.5 if self.mode == "uncertainty" else self.strength or 1.0
        barrier = ops.convert_to_tensor(strength, values.dtype) * ops.log(weights)
        return ops.sum(members * weights, axis=-1) * values - ops.sum(members * barrier, axis=-1)

    def _adversarial(self, values: Tensor, members: Tensor) -> Tensor:
        importance = ops.reshape(self.importance(values), (-1, 1))
        rows = ops.stop_gradient(ops.reshape(members, (-1, self.num_classes))) * importance
        of_batch = ops.cast(ops.sum(rows, axis=0), self.counts.dtype)
        seen = self.counts.value
        # Evaluation of an untrained loss has nothing but its batch.
        counts = seen + of_batch if self.training else ops.where(ops.any(seen > 0), seen, of_batch)
        expected = counts * ops.divide_no_nan(ops.sum(of_batch), ops.sum(counts))
        weights = self._weights.value
        if self.training:
            constants = ops.reshape(ops.stop_gradient(values), (-1, 1))
            of_class = ops.divide_no_nan(ops.cast(ops.sum(rows * constants, axis=0), expected.dtype), expected)
            # Ascent of sum q L - tau KL(q || p) in the logarithms of q.
            logits = (1 - self.step * self.tau) * ops.log(ops.maximum(weights, 1e-30)) + self.step * of_class
            weights = ops.softmax(logits)
            self._weights.assign(weights)
            self.counts.assign(counts)
        self._log.update_state(weights)
        # Of n examples n times q_c / n_c, so that their mean is sum_c q_c L_c.
        each = ops.divide_no_nan(weights * ops.sum(counts), counts)
        return ops.sum(members * ops.cast(each, values.dtype), axis=-1) * values

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "mode": self.mode,
            "strength": self.strength,
            "step": self.step,
            "tau": self.tau,
        }


# Weights of the tasks of a model, learned as the uncertainty of each.

_FORMS = ("regression", "classification")


@keras.saving.register_keras_serializable(package="minimand")
class TaskUncertainty(WrappingLoss):
    """One task's loss, weighted by its learned uncertainty.

    min over s of mean_i e^-s l_i / 2 + s / 2 (regression) or mean_i e^-s l_i + s / 2 (classification)

    At the minimum s = log L or log 2 L, L the mean loss, and in both forms the weight of the loss is 1 / (2 L). s has
    bounds, because a loss of 0 or less would have no minimum over s alone; with them it is finite.

    Args:
        loss: a Keras loss, or the name of one; its reduction is not used.
        form: `"regression"`, where s is the logarithm of the variance if the loss is squared error, or
            `"classification"`.
        log_variance_range: bounds of s, which starts at 0.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss; `log_variance` is s, also in the logs.

    Raises:
        ValueError: the bounds do not enclose 0, or there is no such form.
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
        reduction: str | None = "sum_over_batch_size",
        name: str = "task_uncertainty",
        dtype: Any = None,
    ) -> None:
        super().__init__(loss, reduction=reduction, name=name, dtype=dtype)
        owner = "TaskUncertainty"
        self.form = check_choice(owner, "form", form, _FORMS)
        low, high = check_several(owner, "log_variance_range", log_variance_range, 2)
        self.log_variance_range = (
            check_float(owner, "log_variance_range", low, below=0.0),
            check_float(owner, "log_variance_range", high, above=0.0),
        )

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        super().build(y_true_shape, y_pred_shape)
        within = Bounded(*self.log_variance_range)
        self._log_variance = self.add_weight((), 0.0, parametrization=within, name="log_variance")

    @property
    def log_variance(self) -> float:
        """The logarithm s of the task's variance."""
        return float(self._log_variance.numpy()) if self.built else 0.0

    @property
    def weight(self) -> float:
        """What the task's loss is multiplied by."""
        return math.exp(-self.log_variance) / (2 if self.form == "regression" else 1)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = self.values_of_loss(y_true, y_pred)
        log_variance = ops.cast(self._log_variance.value, values.dtype)
        factor = 0.5 if self.form == "regression" else 1.0
        return factor * ops.exp(-log_variance) * values + log_variance / 2

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "form": self.form, "log_variance_range": self.log_variance_range}


class UncertaintyWeighted(Mapping[str, TaskUncertainty]):
    """The losses of a model with several outputs, weighted by the uncertainty that each is found to have.

    min over w and all s_k of sum_k e^-s_k L_k(w) / 2 + s_k / 2, without the first 1/2 for classification

    A mapping of the output names to a `TaskUncertainty` each, for `Trainer.compile(optimizer, loss=...)`. With the
    best s the network minimises the sum of log L_k / 2: tasks count by the ratio by which their loss falls, in
    whatever unit it is. `loss_weights` multiply both terms of a task.

    Args:
        losses: a Keras loss, or the name of one, for each output name.
        classification: names of the outputs in the form for classification; the others have that for regression.
        log_variance_range: bounds of each s.

    Raises:
        ValueError: `losses` is empty or not a mapping, or `classification` names no output.

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
                "UncertaintyWeighted: `losses` must be a mapping of output names to losses; for a single output there "
                f"is TaskUncertainty. Received: losses={losses!r}"
            )
        named = isinstance(classification, Iterable) and not isinstance(classification, str)
        if not named or not set(classification) <= set(losses):
            raise ValueError(
                f"UncertaintyWeighted: `classification` must be a list of names among {sorted(losses)}. "
                f"Received: classification={classification!r}"
            )
        self._tasks = {
            name: TaskUncertainty(
                loss,
                _FORMS[name in classification],
                log_variance_range=log_variance_range,
                name=f"{name}_uncertainty",
            )
            for name, loss in losses.items()
        }

    def __getitem__(self, name: str) -> TaskUncertainty:
        return self._tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def weights(self) -> dict[str, float]:
        """What each output's loss is multiplied by."""
        return {name: task.weight for name, task in self._tasks.items()}
