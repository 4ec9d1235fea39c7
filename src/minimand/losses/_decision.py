"""A trained decision threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from minimand._ops import as_logits, compute_dtype
from minimand._validation import check_bool, check_choice, check_float, check_several
from minimand.backend import Tensor
from minimand.losses._base import WrappingLoss, aligned, extended, moved_mean
from minimand.parametrizations import UnitInterval

# The price of a squared violation, and how much of that a step adds to the multiplier: with it the violation itself
# vanishes, within some hundred steps. No larger violation is added: the multiplier would grow for as long as the
# threshold is on its way, and take as long to fall again.
_PENALTY, _ASCENT, _VIOLATIONS = 10.0, 0.01, (-0.1, 0.1)


def _soft_f1(tp: Tensor, fp: Tensor, positives: Tensor, parameter: Any) -> tuple[Tensor, None]:
    return 1 - ops.divide_no_nan(2 * tp, tp + fp + positives), None


def _cost(tp: Tensor, fp: Tensor, positives: Tensor, costs: Any) -> tuple[Tensor, None]:
    return costs[0] * fp + costs[1] * (positives - tp), None


def _precision_at_recall(tp: Tensor, fp: Tensor, positives: Tensor, recall: Any) -> tuple[Tensor, Tensor]:
    return ops.divide_no_nan(fp, 1 - positives), recall - ops.divide_no_nan(tp, positives)


def _recall_at_precision(tp: Tensor, fp: Tensor, positives: Tensor, precision: Any) -> tuple[Tensor, Tensor]:
    violation = ops.divide_no_nan(precision * fp - (1 - precision) * tp, positives)
    return 1 - ops.divide_no_nan(tp, positives), violation


# What is minimised and, for the constrained ones, what must not be positive.
_OBJECTIVES: dict[str, Callable[..., tuple[Tensor, Any]]] = {
    "soft_f1": _soft_f1,
    "cost": _cost,
    "precision_at_recall": _precision_at_recall,
    "recall_at_precision": _recall_at_precision,
}


@keras.saving.register_keras_serializable(package="minimand")
class LearnedThreshold(WrappingLoss):
    """A decision threshold t in (0, 1), trained for what decisions are judged by.

    min over t of mean_i l_i + J(TP, FP, P), d_i = sigmoid((logit s_i - logit t)/T), TP = mean_i y_i d_i,
    FP = mean_i (1 - y_i) d_i, P = mean_i y_i

    - `"soft_f1"`: J = 1 - 2 TP/(TP + FP + P).
    - `"cost"`: J = c_1 FP + c_2 (P - TP), for the `costs` of a false alarm and of a miss.
    - `"precision_at_recall"`: J = FP/(1 - P) subject to TP/P >= `target`.
    - `"recall_at_precision"`: J = 1 - TP/P subject to TP/(TP + FP) >= `target`.

    With `loss`, such as a cross-entropy, the network is trained by it alone, and t by J with the scores s behind a
    stop_gradient: the scores stay probabilities. Without, J trains both.

    TP, FP and P are running means over the batches of training with the last one's gradient, because a ratio of one
    batch's means is biased, and says nothing where the batch has no positive. The constrained ones
    minimise the augmented Lagrangian J + ((m + 10 v)+^2 - m^2)/20 of the violation v, and set m to (m + 0.1 v)+ at each
    step, with v cut off at -0.1 and 0.1.
    J is bounded and continuous in t, so its minimum over t alone is finite, if perhaps at an end of (0, 1).

    Args:
        objective: one of the four names above.
        loss: a Keras loss that trains the network, or the name of one, or None; its reduction is not used.
        temperature: T > 0, in units of logits; decisions are hard as T -> 0. By default 0.1 with `loss` and 1 without,
            because a network gets no gradient from scores that are far from t in these units.
        costs: of `"cost"`, those of a false positive and a false negative, both positive.
        target: of the constrained ones, the recall or precision to keep, in (0, 1).
        momentum: of the running means, in [0, 1); 0 uses each batch by itself, as `evaluate` always does.
        from_logits: whether predictions are logits; else they are probabilities.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss, for targets 0 and 1 and predictions of the same shape (batch, ...); J counts all
        entries alike. `threshold` is t, also in the logs; `to_inference(model)` is a plain Keras model of decisions.
        A sample weight of k makes an example count as k do, masked ones do not count.

    Raises:
        TypeError: `from_logits` is not a boolean.
        ValueError: an argument is outside of its range, or of another objective.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Eban et al., "Scalable learning of non-decomposable objectives", AISTATS 2017, section 3 (constraints), with
    counts made soft by the logistic function instead of bounded by the hinge.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "sigmoid")])
        >>> trainer = minimand.Trainer(model)
        >>> trainer.compile("adam", minimand.losses.LearnedThreshold("soft_f1", "binary_crossentropy"))
        >>> history = trainer.fit(np.random.rand(64, 4), np.arange(64) % 2, verbose=0)
        >>> decide = trainer.loss.to_inference(model)
    """

    loss_is_optional = True

    def __init__(
        self,
        objective: str = "soft_f1",
        loss: Any = None,
        *,
        temperature: float | None = None,
        costs: tuple[float, float] | None = None,
        target: float | None = None,
        momentum: float = 0.9,
        from_logits: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "learned_threshold",
        dtype: Any = None,
    ) -> None:
        super().__init__(loss, reduction=reduction, name=name, dtype=dtype)
        owner = "LearnedThreshold"
        self.objective = check_choice(owner, "objective", objective, tuple(_OBJECTIVES))
        if temperature is None:
            temperature = 1.0 if loss is None else 0.1
        self.temperature = check_float(owner, "temperature", temperature, above=0.0)
        self.momentum = check_float(owner, "momentum", momentum, minimum=0.0, below=1.0)
        self.from_logits = check_bool(owner, "from_logits", from_logits)
        self.constrained = objective in ("precision_at_recall", "recall_at_precision")
        if (target is not None) != self.constrained or (costs is not None and objective != "cost"):
            raise ValueError(
                f"{owner}: `target` belongs to precision_at_recall and recall_at_precision, which need it, and `costs` "
                f"to cost. Received: objective={objective!r}, target={target!r}, costs={costs!r}"
            )
        self.target = None if target is None else check_float(owner, "target", target, above=0.0, below=1.0)
        self.costs = None
        if objective == "cost":
            both = check_several(owner, "costs", (1.0, 1.0) if costs is None else costs, 2)
            self.costs = tuple(check_float(owner, "costs", cost, above=0.0) for cost in both)

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        super().build(y_true_shape, y_pred_shape)
        self._threshold = self.add_weight((), 0.5, parametrization=UnitInterval(), name="threshold")
        kept: dict[str, Any] = {"trainable": False, "aggregation": "mean"}
        # TP, FP and P.
        self.rates = self.add_weight(3, name="rates", **kept)
        self.started = self.add_weight(name="started", **kept)
        if self.constrained:
            self.multiplier = self.add_weight((), "zeros", name="multiplier", **kept)

    @property
    def threshold(self) -> float:
        """The threshold t."""
        return float(self._threshold.numpy()) if self.built else 0.5

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = None if self.loss is None else self.values_of_loss(y_true, y_pred)
        y_true, y_pred = aligned("LearnedThreshold", y_true, y_pred)
        dtype = compute_dtype(y_pred)
        truth = ops.cast(y_true, dtype)
        logits = as_logits(ops.cast(y_pred, dtype), self.from_logits, binary=True)
        if values is not None:
            logits = ops.stop_gradient(logits)
        decisions = ops.sigmoid((logits - ops.cast(self._threshold.latent.value, dtype)) / self.temperature)
        weights = self.importance(logits[..., 0])[..., None] * ops.ones_like(logits)
        total = ops.sum(weights)
        of_batch = [truth * decisions, (1 - truth) * decisions, truth]
        rates = ops.stack([ops.divide_no_nan(ops.sum(weights * term), total) for term in of_batch])
        if self.training:
            rates = self._running(rates, total > 0)
        objective = self._objective(rates)
        return objective + (ops.zeros_like(logits[..., 0]) if values is None else values)

    def _running(self, rates: Tensor, told: Tensor) -> Tensor:
        """The running means, with the gradient of the batch's; a batch of which nothing counts tells nothing."""
        constants = ops.cast(ops.stop_gradient(rates), self.rates.dtype)
        running, started = moved_mean(self.rates.value, constants, self.momentum, self.started.value, told)
        self.rates.assign(running)
        self.started.assign(started)
        return rates + ops.stop_gradient(ops.cast(running, rates.dtype) - rates)

    def _objective(self, rates: Tensor) -> Tensor:
        minimised, violation = _OBJECTIVES[self.objective](rates[0], rates[1], rates[2], self.costs or self.target)
        if not self.constrained:
            return minimised
        multiplier = self.multiplier.value
        if self.training:
            constant = ops.clip(ops.cast(ops.stop_gradient(violation), multiplier.dtype), *_VIOLATIONS)
            multiplier = ops.relu(multiplier + _ASCENT * _PENALTY * constant)
            self.multiplier.assign(multiplier)
        multiplier = ops.cast(multiplier, rates.dtype)
        priced = ops.relu(multiplier + _PENALTY * violation)
        return minimised + (ops.square(priced) - ops.square(multiplier)) / (2 * _PENALTY)

    def to_inference(self, model: keras.Model) -> keras.Model:
        """A plain Keras model that shares the given one's weights and puts out 1 where its score is t or more, else 0.

        Raises:
            ValueError: the model is not functional or sequential with one output.
        """
        threshold = self.threshold

        def decide(output: Any) -> Any:
            scores = ops.sigmoid(output) if self.from_logits else output
            return ops.cast(scores >= threshold, "int32")

        return extended("LearnedThreshold", model, decide)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "objective": self.objective,
            "temperature": self.temperature,
            "costs": self.costs,
            "target": self.target,
            "momentum": self.momentum,
            "from_logits": self.from_logits,
        }
