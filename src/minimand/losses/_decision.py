"""Losses that train the threshold of a binary decision for the measure that judges the decisions."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from minimand._ops import as_logits, compute_dtype, safe_divide
from minimand._validation import check_bool, check_float
from minimand.backend import Tensor
from minimand.losses._base import TrainableLoss, aligned, extended, update_running_mean
from minimand.parametrizations import UnitInterval


class _DecisionThreshold(TrainableLoss):
    """A decision threshold t in (0, 1) that minimises a function of the soft rates of true and false positives.

    min over t of mean_i l_i + J(TP, FP, P), d_i = sigmoid((logit s_i - logit t)/T), TP = mean_i y_i d_i,
    FP = mean_i (1 - y_i) d_i, P = mean_i y_i

    A subclass gives J by `objective`. TP, FP and P are running means over the batches of training with the gradient of
    the last batch, because a ratio of the means of one batch is biased, and is undefined for a batch without positives.
    """

    def __init__(
        self,
        loss: Any = None,
        *,
        temperature: float | None = None,
        momentum: float = 0.9,
        from_logits: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        owner = type(self).__name__
        self.loss = self.wrap(loss, optional=True)
        if temperature is None:
            temperature = 1.0 if loss is None else 0.1
        self.temperature = check_float(owner, "temperature", temperature, above=0.0)
        self.momentum = check_float(owner, "momentum", momentum, minimum=0.0, below=1.0)
        self.from_logits = check_bool(owner, "from_logits", from_logits)

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        self._threshold = self.add_weight((), 0.5, parametrization=UnitInterval(), name="threshold")
        # TP, FP and P.
        self.rates = self.add_statistic(3, name="rates")
        self.started = self.add_statistic(name="started")

    @property
    def threshold(self) -> float:
        """The threshold t."""
        return float(self._threshold.numpy()) if self.built else 0.5

    def objective(self, tp: Tensor, fp: Tensor, positives: Tensor) -> Tensor:
        """Return J."""
        raise NotImplementedError

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = None if self.loss is None else self.values_of(self.loss, y_true, y_pred)
        y_true, y_pred = aligned(type(self).__name__, y_true, y_pred)
        dtype = compute_dtype(y_pred)
        truth = ops.cast(y_true, dtype)
        logits = as_logits(ops.cast(y_pred, dtype), self.from_logits, binary=True)
        if values is not None:
            logits = ops.stop_gradient(logits)
        decisions = ops.sigmoid((logits - ops.cast(self._threshold.latent.value, dtype)) / self.temperature)
        weights = self.importance(logits[..., 0])[..., None] * ops.ones_like(logits)
        total = ops.sum(weights)
        of_batch = [truth * decisions, (1 - truth) * decisions, truth]
        rates = ops.stack([safe_divide(ops.sum(weights * term), total) for term in of_batch])
        if self.training:
            constants = ops.stop_gradient(rates)
            running = update_running_mean(self.rates, self.started, constants, self.momentum, total > 0)
            rates = rates + ops.stop_gradient(ops.cast(running, dtype) - rates)
        objective = self.objective(rates[0], rates[1], rates[2])
        return objective + (ops.zeros_like(logits[..., 0]) if values is None else values)

    def to_inference(self, model: keras.Model) -> keras.Model:
        """Return a plain Keras model that gives 1 where the score of `model` is t or more, else 0.

        The two models share their weights.

        Raises:
            ValueError: `model` is not functional or sequential with one output.
        """
        threshold = self.threshold

        def decide(output: Any) -> Any:
            scores = ops.sigmoid(output) if self.from_logits else output
            return ops.cast(scores >= threshold, "int32")

        return extended(type(self).__name__, model, decide)


@keras.saving.register_keras_serializable(package="minimand")
class F1Threshold(_DecisionThreshold):
    """F1Threshold trains the threshold of a binary decision for the F1 score.

    Use this loss when positives are rare and false alarms and misses matter equally, as in retrieval.

    min over t of mean_i l_i + 1 - 2 TP/(TP + FP + P), d_i = sigmoid((logit s_i - logit t)/T), TP = mean_i y_i d_i,
    FP = mean_i (1 - y_i) d_i, P = mean_i y_i

    With a wrapped loss l, such as a cross-entropy, l alone trains the network and the second term trains t, so the
    scores s stay probabilities. Without a wrapped loss the second term trains both. TP, FP and P are running means over
    the batches of training. The minimum over t is finite, because the second term is bounded and continuous in t.

    Args:
        loss: a Keras loss that trains the network, or the name of one, or None; its `reduction` and `dtype` are the
            defaults.
        temperature: T > 0, in units of logits; decisions are hard as T -> 0. The default is 0.1 with `loss` and 1
            without, because scores far from t in these units give the network no gradient.
        momentum: of the running means, in [0, 1); 0 uses each batch by itself, as `evaluate` always does.
        from_logits: whether predictions are logits instead of probabilities.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss, for targets 0 and 1 and predictions of the same shape (batch, ...). `threshold`
        is t, which is also in the logs. `to_inference(model)` is a plain Keras model of decisions. An example of sample
        weight k counts as k examples do; masked examples do not count.

    Raises:
        TypeError: `from_logits` is not a boolean.
        ValueError: an argument is outside its range.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Eban et al., "Scalable learning of non-decomposable objectives", AISTATS 2017, section 3, with counts made
    soft by the logistic function instead of bounded by the hinge.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "sigmoid")])
        >>> trainer = minimand.Trainer(model)
        >>> trainer.compile("adam", minimand.losses.F1Threshold("binary_crossentropy"))
        >>> history = trainer.fit(np.random.rand(64, 4), np.arange(64) % 2, verbose=0)
        >>> decide = trainer.loss.to_inference(model)
    """

    def objective(self, tp: Tensor, fp: Tensor, positives: Tensor) -> Tensor:
        return 1 - safe_divide(2 * tp, tp + fp + positives)


@keras.saving.register_keras_serializable(package="minimand")
class CostThreshold(_DecisionThreshold):
    """CostThreshold trains the threshold of a binary decision for the least cost of its errors.

    Use this loss when the costs of a false alarm and of a miss are known.

    min over t of mean_i l_i + c_1 FP + c_2 (P - TP), with TP, FP and P as in `F1Threshold`

    Args:
        loss: a Keras loss that trains the network, or the name of one, or None, as in `F1Threshold`.
        false_positive_cost: c_1 > 0, the cost of a false alarm.
        false_negative_cost: c_2 > 0, the cost of a miss.
        temperature: T > 0, as in `F1Threshold`.
        momentum: of the running means, in [0, 1).
        from_logits: whether predictions are logits instead of probabilities.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss; `threshold` and `to_inference(model)` are as in `F1Threshold`.

    Raises:
        TypeError: `from_logits` is not a boolean.
        ValueError: an argument is outside its range.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Elkan, "The foundations of cost-sensitive learning", IJCAI 2001, section 1, with soft counts as in
    `F1Threshold`.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "sigmoid")]))
        >>> trainer.compile("adam", minimand.losses.CostThreshold("binary_crossentropy", false_negative_cost=5.0))
        >>> history = trainer.fit(np.random.rand(64, 4), np.arange(64) % 2, verbose=0)
        >>> 0 < trainer.loss.threshold < 1
        True
    """

    def __init__(
        self,
        loss: Any = None,
        *,
        false_positive_cost: float = 1.0,
        false_negative_cost: float = 1.0,
        temperature: float | None = None,
        momentum: float = 0.9,
        from_logits: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(loss, temperature=temperature, momentum=momentum, from_logits=from_logits, **kwargs)
        owner = "CostThreshold"
        self.false_positive_cost = check_float(owner, "false_positive_cost", false_positive_cost, above=0.0)
        self.false_negative_cost = check_float(owner, "false_negative_cost", false_negative_cost, above=0.0)

    def objective(self, tp: Tensor, fp: Tensor, positives: Tensor) -> Tensor:
        return self.false_positive_cost * fp + self.false_negative_cost * (positives - tp)


# Thresholds under a constraint.

# The weight of a squared violation, and the step of the multiplier in units of this weight: within some hundred steps
# the violation itself vanishes.
_PENALTY, _ASCENT = 10.0, 0.01
# Without these bounds the multiplier would grow while the threshold is on its way, and take as long to fall again.
_VIOLATIONS = (-0.1, 0.1)


def _lagrangian(loss: _DecisionThreshold, multiplier: keras.Variable, minimised: Tensor, violation: Tensor) -> Tensor:
    """Return the augmented Lagrangian J + ((m + 10 v)+^2 - m^2)/20; in training m moves to (m + 0.1 v)+ first."""
    value = multiplier.value
    if loss.training:
        constant = ops.clip(ops.cast(ops.stop_gradient(violation), multiplier.dtype), *_VIOLATIONS)
        value = ops.relu(value + _ASCENT * _PENALTY * constant)
        multiplier.assign(value)
    value = ops.cast(value, violation.dtype)
    priced = ops.relu(value + _PENALTY * violation)
    return minimised + (ops.square(priced) - ops.square(value)) / (2 * _PENALTY)


@keras.saving.register_keras_serializable(package="minimand")
class PrecisionAtRecallThreshold(_DecisionThreshold):
    """PrecisionAtRecallThreshold trains the threshold of a binary decision for the best precision at a given recall.

    Use this loss when a given share of the positives must be found, as in screening.

    min over t of mean_i l_i + FP/(1 - P) subject to TP/P >= `recall`, with TP, FP and P as in `F1Threshold`

    The precision at a given recall is best where the false positives are fewest. The loss minimises the augmented
    Lagrangian J + ((m + 10 v)+^2 - m^2)/20 of J = FP/(1 - P) and the violation v = `recall` - TP/P. Each step of
    training sets the multiplier m to (m + 0.1 v)+, with v clipped to [-0.1, 0.1].

    Args:
        recall: the recall to keep, in (0, 1).
        loss: a Keras loss that trains the network, or the name of one, or None, as in `F1Threshold`.
        temperature: T > 0, as in `F1Threshold`.
        momentum: of the running means, in [0, 1).
        from_logits: whether predictions are logits instead of probabilities.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss; `threshold` and `to_inference(model)` are as in `F1Threshold`.

    Raises:
        TypeError: `from_logits` is not a boolean.
        ValueError: an argument is outside its range.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Eban et al., "Scalable learning of non-decomposable objectives", AISTATS 2017, section 3, with soft counts
    as in `F1Threshold`.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "sigmoid")]))
        >>> trainer.compile("adam", minimand.losses.PrecisionAtRecallThreshold(0.9, "binary_crossentropy"))
        >>> history = trainer.fit(np.random.rand(64, 4), np.arange(64) % 2, verbose=0)
        >>> 0 < trainer.loss.threshold < 1
        True
    """

    def __init__(
        self,
        recall: float,
        loss: Any = None,
        *,
        temperature: float | None = None,
        momentum: float = 0.9,
        from_logits: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(loss, temperature=temperature, momentum=momentum, from_logits=from_logits, **kwargs)
        self.recall = check_float("PrecisionAtRecallThreshold", "recall", recall, above=0.0, below=1.0)

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        super().build(y_true_shape, y_pred_shape)
        self.multiplier = self.add_statistic(name="multiplier")

    def objective(self, tp: Tensor, fp: Tensor, positives: Tensor) -> Tensor:
        violation = self.recall - safe_divide(tp, positives)
        return _lagrangian(self, self.multiplier, safe_divide(fp, 1 - positives), violation)


@keras.saving.register_keras_serializable(package="minimand")
class RecallAtPrecisionThreshold(_DecisionThreshold):
    """RecallAtPrecisionThreshold trains the threshold of a binary decision for the best recall at a given precision.

    Use this loss when a given share of the alarms must be right, as where each alarm costs a person's time.

    min over t of mean_i l_i + 1 - TP/P subject to TP/(TP + FP) >= `precision`, with TP, FP and P as in `F1Threshold`

    The loss minimises an augmented Lagrangian, as `PrecisionAtRecallThreshold` does, with the violation
    (`precision` FP - (1 - `precision`) TP)/P.

    Args:
        precision: the precision to keep, in (0, 1).
        loss: a Keras loss that trains the network, or the name of one, or None, as in `F1Threshold`.
        temperature: T > 0, as in `F1Threshold`.
        momentum: of the running means, in [0, 1).
        from_logits: whether predictions are logits instead of probabilities.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss; `threshold` and `to_inference(model)` are as in `F1Threshold`.

    Raises:
        TypeError: `from_logits` is not a boolean.
        ValueError: an argument is outside its range.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Eban et al., "Scalable learning of non-decomposable objectives", AISTATS 2017, section 3, with soft counts
    as in `F1Threshold`.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "sigmoid")]))
        >>> trainer.compile("adam", minimand.losses.RecallAtPrecisionThreshold(0.9, "binary_crossentropy"))
        >>> history = trainer.fit(np.random.rand(64, 4), np.arange(64) % 2, verbose=0)
        >>> 0 < trainer.loss.threshold < 1
        True
    """

    def __init__(
        self,
        precision: float,
        loss: Any = None,
        *,
        temperature: float | None = None,
        momentum: float = 0.9,
        from_logits: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(loss, temperature=temperature, momentum=momentum, from_logits=from_logits, **kwargs)
        self.precision = check_float("RecallAtPrecisionThreshold", "precision", precision, above=0.0, below=1.0)

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        super().build(y_true_shape, y_pred_shape)
        self.multiplier = self.add_statistic(name="multiplier")

    def objective(self, tp: Tensor, fp: Tensor, positives: Tensor) -> Tensor:
        violation = safe_divide(self.precision * fp - (1 - self.precision) * tp, positives)
        return _lagrangian(self, self.multiplier, 1 - safe_divide(tp, positives), violation)
