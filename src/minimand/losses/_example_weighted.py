"""A loss that weights examples by running statistics of the batches' losses."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import keras
from keras import ops

from minimand._ops import at_least
from minimand._validation import check_bool, check_choice, check_float, check_int
from minimand.backend import Tensor
from minimand.losses._base import TrainableLoss, WrappingLoss, moved_mean, weighted_quantile
from minimand.losses._robust import check_shape

# What the losses that weight another loss's examples share.


class ExampleWeighted(WrappingLoss):
    """A loss's value at each example times a weight that depends on it.

    mean_i v_i l_i, with v_i behind stop_gradient unless `differentiate`; with `normalize`, v_i / mean(v)

    A subclass has `example_weights`. It works in stock `compile` unless it, or the loss that it wraps, has variables.
    """

    def __init__(
        self, loss: Any, *, differentiate: bool, normalize: bool, reduction: str | None, name: str, dtype: Any
    ) -> None:
        super().__init__(loss, reduction=reduction, name=name, dtype=dtype)
        owner = type(self).__name__
        self.differentiate = check_bool(owner, "differentiate", differentiate)
        self.normalize = check_bool(owner, "normalize", normalize)

    @property
    def needs_trainer(self) -> bool:
        return isinstance(self.loss, TrainableLoss) and self.loss.needs_trainer

    def example_weights(self, values: Tensor, importance: Tensor) -> Tensor:
        """The weight of each example.

        Args:
            values: the loss's values (batch, ...), in float32 or float64.
            importance: how much each counts: its sample weight, 0 where masked.
        """
        raise NotImplementedError

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = self.values_of_loss(y_true, y_pred)
        importance = self.importance(values)
        weights = self.example_weights(values if self.differentiate else ops.stop_gradient(values), importance)
        if self.normalize:
            weights = ops.divide_no_nan(weights * ops.sum(importance), ops.sum(weights * importance))
        return weights * values

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "differentiate": self.differentiate,
            "normalize": self.normalize,
        }


def robust_example_weights(squares: Tensor, alpha: float) -> Tensor:
    """w(u)/w(0) of a robust loss, from u^2: (u^2/|a-2| + 1)^(a/2-1), for a <= 2."""
    if alpha == 2:
        return ops.ones_like(squares)
    if math.isinf(alpha):
        return ops.exp(-squares / 2)
    return ops.exp((alpha / 2 - 1) * ops.log1p(squares / (2 - alpha)))


# Statistics of a batch's losses, and the weights that follow from them.

# 1 over the 3/4 quantile of the standard normal distribution: from the median of |x| to its standard deviation.
_NORMAL_SPREAD = 1.482602218505602
_SMALLEST = 1e-30


@dataclasses.dataclass(frozen=True)
class Density:
    """The fraction of examples in each of equal bins of 1 - exp(-loss); weights inverse to it."""

    bins: int = 10
    differentiable: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.bins,)

    def statistic(self, values: Tensor, importance: Tensor) -> Tensor:
        members = ops.one_hot(self._bin(values), self.bins, dtype=values.dtype)
        return ops.divide_no_nan(ops.sum(members * importance[:, None], axis=0), ops.sum(importance))

    def weights(self, values: Tensor, fractions: Tensor) -> Tensor:
        # A bin in which there never was an example has no density to divide by.
        seen = fractions > 0
        return ops.take(ops.where(seen, 1 / (self.bins * ops.where(seen, fractions, 1.0)), 1.0), self._bin(values))

    def _bin(self, values: Tensor) -> Tensor:
        # NaN has no bin, and must get to the loss.
        return ops.cast(ops.clip(ops.nan_to_num(-ops.expm1(-ops.relu(values))) * self.bins, 0, self.bins - 1), "int32")


@dataclasses.dataclass(frozen=True)
class SelfPaced:
    """The loss up to which the share of examples lies; weight 1 up to it, else 0."""

    share: float = 0.8
    shape: ClassVar[tuple[int, ...]] = ()
    differentiable: ClassVar[bool] = False

    def statistic(self, values: Tensor, importance: Tensor) -> Tensor:
        return weighted_quantile(values, importance, self.share)

    def weights(self, values: Tensor, bound: Tensor) -> Tensor:
        return ops.cast(values <= bound, values.dtype)


@dataclasses.dataclass(frozen=True)
class Standardised:
    """The spread of the errors sqrt(loss); the weight of a robust loss of the error in its units."""

    alpha: float = 0.0
    scale: float = 2.0
    shape: ClassVar[tuple[int, ...]] = ()
    differentiable: ClassVar[bool] = True

    def statistic(self, values: Tensor, importance: Tensor) -> Tensor:
        return _NORMAL_SPREAD * weighted_quantile(ops.sqrt(ops.relu(values)), importance, 0.5)

    def weights(self, values: Tensor, spread: Tensor) -> Tensor:
        unit = at_least((self.scale * spread) ** 2, _SMALLEST)
        return robust_example_weights(ops.relu(values) / unit, self.alpha)


WEIGHTINGS: dict[str, Any] = {"density": Density, "self_paced": SelfPaced, "standardised": Standardised}


# A loss that weights examples by the model's confidence in the truth.


@keras.saving.register_keras_serializable(package="minimand")
class ConfidenceWeighted(ExampleWeighted):
    """A cross-entropy whose examples are weighted by the probability that the model gives to the truth.

    mean_i v_i l_i, p_i = exp(-l_i), v_i = (1 - p_i)^gamma ("hard") or p_i^gamma ("easy")

    p is that probability where l is any of Keras's cross-entropies, of logits or probabilities, or another negative
    log likelihood of a discrete variable; for another non-negative loss it is a confidence between 0 and 1.

    - `"hard"`, `differentiate=True` is focal loss; without, the weight is a constant to the gradient.
    - `"easy"`, `differentiate=False` has the gradient of generalised cross-entropy, robust to wrong labels.

    Not proper: for a binary target of base rate b, a constant prediction p converges to p/(1-p) = (b/(1-b))^k with
    k = 1/(1+gamma) (hard: towards 1/2) or 1/(1-gamma) (easy, gamma < 1: away from it), when not differentiated.

    Args:
        loss: a Keras loss, or the name of one; its reduction is not used.
        gamma: exponent, positive; with `"easy"` at most 1.
        emphasis: `"hard"`, weight to examples whose truth is improbable, or `"easy"`, weight to probable ones.
        differentiate: whether the gradient goes through the weights, as the focal loss's does.
        normalize: whether the weights are divided by their mean, so that the learning rate keeps its meaning.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss, with `sample_weight` and masks as in any Keras loss.

    Raises:
        TypeError: `differentiate` or `normalize` is not a boolean.
        ValueError: an argument is outside of its range.

    Source: Lin, Goyal, Girshick, He, Dollar, "Focal loss for dense object detection", ICCV 2017, equation 4 (hard);
    Zhang, Sabuncu, "Generalized cross entropy loss", NeurIPS 2018, section 3.2 (easy).

    Examples:
        >>> import numpy as np, minimand
        >>> loss = minimand.losses.ConfidenceWeighted("binary_crossentropy", gamma=2.0)
        >>> value = loss(np.array([[1.0]]), np.array([[0.75]]))  # 0.25^2 log(4/3)
        >>> round(float(value), 4)
        0.018
    """

    def __init__(
        self,
        loss: Any,
        *,
        gamma: float = 2.0,
        emphasis: str = "hard",
        differentiate: bool = False,
        normalize: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "confidence_weighted",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            loss, differentiate=differentiate, normalize=normalize, reduction=reduction, name=name, dtype=dtype
        )
        self.emphasis = check_choice("ConfidenceWeighted", "emphasis", emphasis, ("hard", "easy"))
        if emphasis == "hard":
            self.gamma = check_float("ConfidenceWeighted", "gamma", gamma, above=0.0)
        else:
            # Beyond 1 a constant prediction would run to certainty.
            self.gamma = check_float('ConfidenceWeighted with emphasis="easy"', "gamma", gamma, above=0.0, maximum=1.0)

    def example_weights(self, values: Tensor, importance: Tensor) -> Tensor:
        if self.emphasis == "easy":
            return ops.exp(-self.gamma * values)
        # 0^gamma has no finite derivative for gamma < 1.
        uncertain = values > 0
        doubt = -ops.expm1(-ops.where(uncertain, values, 1.0))
        return ops.where(uncertain, doubt**self.gamma, 0.0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma, "emphasis": self.emphasis}


# A loss that weights examples by their error.


@keras.saving.register_keras_serializable(package="minimand")
class ErrorWeighted(ExampleWeighted):
    """Iteratively reweighted losses: less weight to large errors, or, mining hard examples, to all others.

    mean_i v_i l_i, e_i^2 = max(l_i, 0), v_i = (e_i^2/(c^2 |a-2|) + 1)^(a/2-1), or v_i = 1 if l_i is among the
    `hardest` and 0 if not

    The weight is c^2 rho'(e)/e of the general robust loss: 1 where there is no error. With squared error the gradient
    is that of 2 c^2 rho: iteratively reweighted least squares, one step at a time.

    Not proper: a constant prediction under squared error converges to the M-estimate of rho, sum_i rho'(y_i - m) = 0,
    which is the mean for symmetric distributions only; under `hardest`, to the mean of the hardest examples, which
    goes from the mean (1) to the midrange (0).

    Args:
        loss: a Keras loss, or the name of one; its reduction is not used.
        alpha: shape a <= 2 of the robust loss, -inf included; by default 0, Cauchy's.
        lam: instead of `alpha`, the power-transform coordinate (`minimand.losses.shape_of_power`), at most 0.
        scale: c > 0, in units of the square root of the loss: errors well below it have full weight.
        hardest: instead, the fraction in (0, 1] of the batch, rounded up, that counts: hard-example mining.
        differentiate: whether the gradient goes through the weights; those of `hardest` have none.
        normalize: whether the weights are divided by their mean, so that the learning rate keeps its meaning.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss. A sample weight of k makes an example count as k do, in `hardest` as well.

    Raises:
        TypeError: `differentiate` or `normalize` is not a boolean.
        ValueError: an argument is outside of its range, or excludes another.

    Source: Holland, Welsch, "Robust regression using iteratively reweighted least-squares", Communications in
    Statistics 6, 1977, with the weights of Barron, CVPR 2019, equation 9; Shrivastava, Gupta, Girshick, "Training
    region-based object detectors with online hard example mining", CVPR 2016, section 4.

    Examples:
        >>> import numpy as np, minimand
        >>> loss = minimand.losses.ErrorWeighted("mean_squared_error", alpha=0.0, scale=1.0, reduction="none")
        >>> value = loss(np.zeros((2, 1)), np.array([[0.0], [2.0]]))  # weights 1 and 1/(2^2/2 + 1)
        >>> [round(float(v), 4) for v in value]
        [0.0, 1.3333]
    """

    def __init__(
        self,
        loss: Any,
        *,
        alpha: float | None = None,
        lam: float | None = None,
        scale: float | None = None,
        hardest: float | None = None,
        differentiate: bool = False,
        normalize: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "error_weighted",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            loss, differentiate=differentiate, normalize=normalize, reduction=reduction, name=name, dtype=dtype
        )
        owner = "ErrorWeighted"
        self.alpha: Any = alpha if alpha is None else check_shape(owner, alpha, maximum=2.0)
        self.scale: Any = None if scale is None else check_float(owner, "scale", scale, above=0.0)
        self.hardest = None if hardest is None else check_float(owner, "hardest", hardest, above=0.0, maximum=1.0)
        if hardest is None:
            self.alpha = 0.0 if self.alpha is None else self.alpha
            self.scale = 1.0 if self.scale is None else self.scale
        elif self.alpha is not None or scale is not None or differentiate:
            raise ValueError(
                f"{owner}: `hardest` mines hard examples, the opposite of the robust weight, and its weights 0 and 1 "
                "have no derivative: it excludes `alpha`, `lam`, `scale` and `differentiate`. "
                f"Received: hardest={hardest!r}, alpha={alpha!r}, lam={lam!r}, scale={scale!r}, "
                f"differentiate={differentiate!r}"
            )

    def example_weights(self, values: Tensor, importance: Tensor) -> Tensor:
        if self.hardest is not None:
            flat = ops.reshape(values, (-1,))
            bound = -weighted_quantile(-flat, ops.reshape(importance, (-1,)), self.hardest)
            return ops.cast(values >= bound, values.dtype)
        return robust_example_weights(ops.relu(values) / self.scale**2, self.alpha)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha, "scale": self.scale, "hardest": self.hardest}


# A loss that weights examples by running statistics of the batches' losses.


@keras.saving.register_keras_serializable(package="minimand")
class BatchAdaptive(ExampleWeighted):
    """A loss whose examples are weighted by where their loss lies among those of the last batches.

    mean_i v_i l_i, with a running statistic S <- m S + (1 - m) S(batch), S(first batch) at first

    - `"density"` (gradient harmonising): S are the fractions of examples in each of B equal bins of
      g = 1 - exp(-l), which for cross-entropy is the norm of the gradient by the logit; v = 1/(B S(bin of g)), so that
      easy and hard examples weigh as much together as the rare ones between them.
    - `"self_paced"`: S is the quantile of the losses below which the given `share` of examples lies; v = 1 if l <= S,
      else 0.
    - `"standardised"`: S is 1.4826 median sqrt(l), the spread of the errors; v is the weight of a robust loss,
      (u^2/|a-2| + 1)^(a/2-1) with u = sqrt(l)/(c S).

    The statistics change in training only; until the first batch of training all weights are 1.

    Not proper: with `"density"` a constant prediction for a binary target converges to 1/2, to within a bin, whatever
    the base rate; under squared error, `"self_paced"` converges to a trimmed mean, and `"standardised"` to the
    M-estimate of rho with the median absolute deviation for its scale.

    Args:
        loss: a Keras loss, or the name of one; its reduction is not used.
        weighting: `"density"`, `"self_paced"` or `"standardised"`.
        momentum: m in [0, 1); 0 uses each batch by itself.
        bins: B, at least 2, of `"density"`; by default 10.
        share: of `"self_paced"`, in (0, 1]; by default 0.8.
        alpha: shape a <= 2 of the robust weight of `"standardised"`, -inf included; by default 0, Cauchy's.
        lam: instead of `alpha`, the power-transform coordinate (`minimand.losses.shape_of_power`), at most 0.
        scale: c > 0 of `"standardised"`, in units of the errors' spread; by default 2.
        differentiate: whether the gradient goes through the weights of `"standardised"` (not through S).
        normalize: whether the weights are divided by their mean, so that the learning rate keeps its meaning.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss. A sample weight of k makes an example count as k do, masked ones do not count.

    Raises:
        TypeError: `differentiate` or `normalize` is not a boolean.
        ValueError: an argument is outside of its range, or of another weighting.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`, which would lose the statistics.

    Source: Li, Liu, Wang, "Gradient harmonized single-stage detector", AAAI 2019, equations 6 to 8 and 10 (density);
    Kumar, Packer, Koller, "Self-paced learning for latent variable models", NeurIPS 2010, section 4 (self-paced);
    Holland, Welsch, Communications in Statistics 6, 1977 (standardised residuals).

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, "sigmoid")]))
        >>> trainer.compile("adam", minimand.losses.BatchAdaptive("binary_crossentropy"))
        >>> history = trainer.fit(np.random.rand(8, 3), np.ones((8, 1)), verbose=0)
    """

    def __init__(
        self,
        loss: Any,
        weighting: str = "density",
        *,
        momentum: float = 0.9,
        bins: int | None = None,
        share: float | None = None,
        alpha: float | None = None,
        lam: float | None = None,
        scale: float | None = None,
        differentiate: bool = False,
        normalize: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "batch_adaptive",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            loss, differentiate=differentiate, normalize=normalize, reduction=reduction, name=name, dtype=dtype
        )
        owner = "BatchAdaptive"
        self.weighting = check_choice(owner, "weighting", weighting, tuple(WEIGHTINGS))
        self.momentum = check_float(owner, "momentum", momentum, minimum=0.0, below=1.0)
        chosen = WEIGHTINGS[weighting]
        given = {
            "bins": None if bins is None else check_int(owner, "bins", bins, minimum=2),
            "share": None if share is None else check_float(owner, "share", share, above=0.0, maximum=1.0),
            "alpha": alpha if alpha is None else check_shape(owner, alpha, maximum=2.0),
            "scale": None if scale is None else check_float(owner, "scale", scale, above=0.0),
        }
        own = {field.name for field in dataclasses.fields(chosen)}
        options = {name: value for name, value in given.items() if value is not None}
        if not set(options) <= own or (differentiate and not chosen.differentiable):
            raise ValueError(
                f"{owner}: weighting={weighting!r} takes {sorted(own)}"
                + ("" if chosen.differentiable else ", and its weights have no derivative")
                + f". Received: {options}, differentiate={differentiate!r}"
            )
        self.measure = chosen(**options)

    @property
    def needs_trainer(self) -> bool:
        return True

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        super().build(y_true_shape, y_pred_shape)
        self.statistic = self.add_weight(self.measure.shape, name="statistic", trainable=False, aggregation="mean")
        self.started = self.add_weight(name="started", trainable=False, aggregation="mean")

    def example_weights(self, values: Tensor, importance: Tensor) -> Tensor:
        if self.training:
            self._observe(ops.stop_gradient(values), importance)
        statistic = ops.cast(self.statistic, values.dtype)
        weights = self.measure.weights(values, statistic)
        return ops.where(ops.cast(self.started, "bool"), weights, 1.0)

    def _observe(self, values: Tensor, importance: Tensor) -> None:
        """Move the statistic towards this batch's, unless all of the batch is masked."""
        of_batch = self.measure.statistic(ops.reshape(values, (-1,)), ops.reshape(importance, (-1,)))
        of_batch = ops.cast(of_batch, self.statistic.dtype)
        told = ops.sum(importance) > 0
        running, started = moved_mean(self.statistic.value, of_batch, self.momentum, self.started.value, told)
        self.statistic.assign(running)
        self.started.assign(started)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "weighting": self.weighting,
            "momentum": self.momentum,
            **dataclasses.asdict(self.measure),
        }
