"""Losses that weight the examples of another loss, by their own values or by running statistics of the batches."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import keras
from keras import ops

from minimand._ops import at_least, safe_divide
from minimand._validation import check_bool, check_float, check_int
from minimand.backend import Tensor
from minimand.losses._base import (
    TrainableLoss,
    WrappingLoss,
    importance_of,
    update_running_mean,
    values_of,
    weighted_quantile,
)
from minimand.losses._robust import check_shape

# From the median of |x| to the standard deviation of a normal x: 1 over the 3/4 quantile of the standard normal.
_MEDIAN_TO_STDDEV = 1 / NormalDist().inv_cdf(0.75)
_LEAST_SCALE = 1e-30


def _weighted(loss: _ExampleWeighted | _RunningWeights, values: Tensor, importance: Tensor) -> Tensor:
    """Return v_i l_i, or v_i l_i / mean(v) if `normalize`; v is a constant to the gradient unless `differentiate`."""
    weights = loss.example_weights(values if loss.differentiate else ops.stop_gradient(values), importance)
    if loss.normalize:
        weights = safe_divide(weights * ops.sum(importance), ops.sum(weights * importance))
    return weights * values


def _robust_weights(squares: Tensor, alpha: float) -> Tensor:
    """Return w(u) / w(0) of the general robust loss from u^2: (u^2/|a-2| + 1)^(a/2-1), for a <= 2."""
    if alpha == 2:
        return ops.ones_like(squares)
    if math.isinf(alpha):
        return ops.exp(-squares / 2)
    return ops.exp((alpha / 2 - 1) * ops.log1p(squares / (2 - alpha)))


# Weights that depend on the values of one batch. These losses have no variables.


class _ExampleWeighted(WrappingLoss):
    """A loss whose examples are weighted by a function of their values; a subclass has `example_weights`."""

    def __init__(self, loss: Any, *, differentiate: bool = False, normalize: bool, **kwargs: Any) -> None:
        super().__init__(loss, **kwargs)
        self.differentiate = check_bool(type(self).__name__, "differentiate", differentiate)
        self.normalize = check_bool(type(self).__name__, "normalize", normalize)

    def example_weights(self, values: Tensor, importance: Tensor) -> Tensor:
        """Return the weights (batch, ...) for values that count as much as `importance` says."""
        raise NotImplementedError

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = values_of(self, self.loss, y_true, y_pred)
        return _weighted(self, values, importance_of(values, self._call_state.factors))


@keras.saving.register_keras_serializable(package="minimand")
class Focal(_ExampleWeighted):
    """The focal loss gives less weight to examples whose true class the model already finds probable.

    Use the focal loss when many easy examples drown out the few hard ones, as in object detection.

    mean_i v_i l_i, v_i = (1 - p_i)^gamma, p_i = exp(-l_i)

    p_i is the probability of the true class where l is one of Keras's cross-entropies, of logits or probabilities, or
    another negative log likelihood of a discrete variable. For another non-negative loss p_i is a confidence between 0
    and 1.

    The focal loss is not proper. With `differentiate=False` and a binary target of base rate b, a constant prediction p
    converges to p/(1-p) = (b/(1-b))^(1/(1+gamma)), which lies between b and 1/2.

    Args:
        loss: a Keras loss, or the name of one; its `reduction` and `dtype` are the defaults.
        gamma: exponent > 0.
        differentiate: whether the gradient passes through the weights, as in the published loss.
        normalize: whether the weights are divided by their mean, so that the learning rate keeps its meaning.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss, with `sample_weight` and masks as in any Keras loss.

    Raises:
        TypeError: `differentiate` or `normalize` is not a boolean.
        ValueError: `gamma` is outside its range.

    Source: Lin, Goyal, Girshick, He, Dollar, "Focal loss for dense object detection", ICCV 2017, equation 4.

    Examples:
        >>> import numpy as np, minimand
        >>> loss = minimand.losses.Focal("binary_crossentropy", gamma=2.0)
        >>> value = loss(np.array([[1.0]]), np.array([[0.75]]))  # 0.25^2 log(4/3)
        >>> round(float(value), 4)
        0.018
    """

    def __init__(
        self, loss: Any, *, gamma: float = 2.0, differentiate: bool = True, normalize: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(loss, differentiate=differentiate, normalize=normalize, **kwargs)
        self.gamma = check_float("Focal", "gamma", gamma, above=0.0)

    def example_weights(self, values: Tensor, importance: Tensor) -> Tensor:
        # 0^gamma has no finite derivative for gamma < 1.
        uncertain = values > 0
        doubt = -ops.expm1(-ops.where(uncertain, values, 1.0))
        return ops.where(uncertain, doubt**self.gamma, 0.0)


@keras.saving.register_keras_serializable(package="minimand")
class GeneralizedCrossEntropy(WrappingLoss):
    """Generalized cross-entropy limits the loss of examples whose label the model finds improbable.

    Use this loss when some labels are wrong: each example has the gradient of cross-entropy times p_i^q.

    mean_i (1 - p_i^q) / q, p_i = exp(-l_i)

    p_i is the probability of the true class where l is a cross-entropy. The loss tends to cross-entropy for q -> 0, and
    is 1 - p_i, the mean absolute error, for q = 1.

    The loss is not proper. For q < 1 and a binary target of base rate b, a constant prediction p converges to
    p/(1-p) = (b/(1-b))^(1/(1-q)), which lies further from 1/2 than b does.

    Args:
        loss: a Keras cross-entropy, or the name of one; its `reduction` and `dtype` are the defaults.
        q: exponent in (0, 1].
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss, with `sample_weight` and masks as in any Keras loss.

    Raises:
        ValueError: `q` is outside its range.

    Source: Zhang, Sabuncu, "Generalized cross entropy loss for training deep neural networks with noisy labels",
    NeurIPS 2018, section 3.2.

    Examples:
        >>> import numpy as np, minimand
        >>> loss = minimand.losses.GeneralizedCrossEntropy("binary_crossentropy", q=0.5)
        >>> value = loss(np.array([[1.0]]), np.array([[0.64]]))  # (1 - 0.8) / 0.5
        >>> round(float(value), 4)
        0.4
    """

    def __init__(self, loss: Any, *, q: float = 0.7, **kwargs: Any) -> None:
        super().__init__(loss, **kwargs)
        # Beyond 1 a constant prediction would converge to certainty.
        self.q = check_float("GeneralizedCrossEntropy", "q", q, above=0.0, maximum=1.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = values_of(self, self.loss, y_true, y_pred)
        return -ops.expm1(-self.q * values) / self.q


@keras.saving.register_keras_serializable(package="minimand")
class IRLS(_ExampleWeighted):
    """Iteratively reweighted least squares gives less weight to examples with large errors.

    Use this loss when some targets are far off and the error of a good prediction is known roughly, as `scale`.

    mean_i v_i l_i, v_i = (e_i^2/(c^2 |a-2|) + 1)^(a/2-1), e_i^2 = max(l_i, 0)

    The weight is c^2 rho'(e)/e of the general robust loss rho, which is 1 for an error of 0. With squared error the
    gradient is the gradient of 2 c^2 rho: each step of training is a step of iteratively reweighted least squares.

    The loss is not proper. Under squared error a constant prediction m converges to the M-estimate of rho,
    sum_i rho'(y_i - m) = 0, which is the mean only for symmetric distributions.

    Args:
        loss: a Keras loss, or the name of one; its `reduction` and `dtype` are the defaults.
        alpha: shape a <= 2 of the robust loss, -inf included; 0 is Cauchy's.
        scale: c > 0, in units of the square root of the loss; errors well below it have full weight.
        differentiate: whether the gradient passes through the weights.
        normalize: whether the weights are divided by their mean, so that the learning rate keeps its meaning.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss, with `sample_weight` and masks as in any Keras loss.

    Raises:
        TypeError: `differentiate` or `normalize` is not a boolean.
        ValueError: `alpha` or `scale` is outside its range.

    Source: Holland, Welsch, "Robust regression using iteratively reweighted least-squares", Communications in
    Statistics 6, 1977, with the weights of Barron, "A general and adaptive robust loss function", CVPR 2019, equation
    9.

    Examples:
        >>> import numpy as np, minimand
        >>> loss = minimand.losses.IRLS("mean_squared_error", alpha=0.0, scale=1.0, reduction="none")
        >>> value = loss(np.zeros((2, 1)), np.array([[0.0], [2.0]]))  # weights 1 and 1/(2^2/2 + 1)
        >>> [round(float(v), 4) for v in value]
        [0.0, 1.3333]
    """

    def __init__(
        self,
        loss: Any,
        *,
        alpha: float = 0.0,
        scale: float = 1.0,
        differentiate: bool = False,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(loss, differentiate=differentiate, normalize=normalize, **kwargs)
        self.alpha = check_shape("IRLS", alpha, maximum=2.0)
        self.scale = check_float("IRLS", "scale", scale, above=0.0)

    def example_weights(self, values: Tensor, importance: Tensor) -> Tensor:
        return _robust_weights(ops.relu(values) / self.scale**2, self.alpha)


@keras.saving.register_keras_serializable(package="minimand")
class HardExampleMining(_ExampleWeighted):
    """Hard example mining trains on the examples of each batch that have the largest losses.

    Use this loss when most examples of a batch are already learned and their labels can be trusted.

    mean_i v_i l_i, v_i = 1 if l_i is among the largest `fraction` of the batch, else 0

    The loss is not proper. Under squared error a constant prediction converges to the mean of the hardest examples,
    which moves from the mean (fraction 1) to the midrange (fraction 0).

    Args:
        loss: a Keras loss, or the name of one; its `reduction` and `dtype` are the defaults.
        fraction: share of the batch that counts, in (0, 1]; the number of examples is rounded up.
        normalize: whether the weights are divided by their mean, so that the learning rate keeps its meaning.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss. An example of sample weight k counts as k examples do, in the fraction as well.

    Raises:
        TypeError: `normalize` is not a boolean.
        ValueError: `fraction` is outside its range.

    Source: Shrivastava, Gupta, Girshick, "Training region-based object detectors with online hard example mining", CVPR
    2016, section 4.

    Examples:
        >>> import numpy as np, minimand
        >>> loss = minimand.losses.HardExampleMining("mean_squared_error", 0.5, reduction="none")
        >>> value = loss(np.zeros((2, 1)), np.array([[1.0], [2.0]]))
        >>> [float(v) for v in value]
        [0.0, 4.0]
    """

    def __init__(self, loss: Any, fraction: float, *, normalize: bool = False, **kwargs: Any) -> None:
        super().__init__(loss, normalize=normalize, **kwargs)
        self.fraction = check_float("HardExampleMining", "fraction", fraction, above=0.0, maximum=1.0)

    def example_weights(self, values: Tensor, importance: Tensor) -> Tensor:
        flat = ops.reshape(values, (-1,))
        bound = -weighted_quantile(-flat, ops.reshape(importance, (-1,)), self.fraction)
        return ops.cast(values >= bound, values.dtype)


# Weights that depend on a running statistic of the batches, which is a variable, so these losses need a trainer.


class _RunningWeights(TrainableLoss):
    """A loss whose examples are weighted by their values and a running statistic of the values.

    mean_i v_i l_i, with S <- m S + (1 - m) S(batch) in training, and S(first batch) at first

    A subclass has `statistic_of` and `weights_from`. All weights are 1 until the first batch of training.
    """

    statistic_shape: tuple[int, ...] = ()

    def __init__(
        self, loss: Any, *, momentum: float, differentiate: bool = False, normalize: bool, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        owner = type(self).__name__
        self.loss = self.wrap(loss)
        self.momentum = check_float(owner, "momentum", momentum, minimum=0.0, below=1.0)
        self.differentiate = check_bool(owner, "differentiate", differentiate)
        self.normalize = check_bool(owner, "normalize", normalize)

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        self.statistic = self.add_statistic(self.statistic_shape, name="statistic")
        self.started = self.add_statistic(name="started")

    def statistic_of(self, values: Tensor, importance: Tensor) -> Tensor:
        """Return the statistic of values (n,) that count as much as `importance` says."""
        raise NotImplementedError

    def weights_from(self, values: Tensor, statistic: Tensor) -> Tensor:
        """Return the weight of each value (batch, ...)."""
        raise NotImplementedError

    def example_weights(self, values: Tensor, importance: Tensor) -> Tensor:
        """Return the weights (batch, ...), after this batch has moved the statistic if it is a batch of training."""
        if self.training:
            flat, counts = ops.reshape(ops.stop_gradient(values), (-1,)), ops.reshape(importance, (-1,))
            of_batch = self.statistic_of(flat, counts)
            update_running_mean(self.statistic, self.started, of_batch, self.momentum, ops.sum(counts) > 0)
        weights = self.weights_from(values, ops.cast(self.statistic, values.dtype))
        return ops.where(ops.cast(self.started, "bool"), weights, 1.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = self.values_of(self.loss, y_true, y_pred)
        return _weighted(self, values, self.importance(values))


@keras.saving.register_keras_serializable(package="minimand")
class GradientHarmonized(_RunningWeights):
    """The gradient harmonizing mechanism weights examples by the inverse density of their gradient norms.

    Use this loss when there are many very easy examples and some hopeless ones, and both should count less.

    mean_i v_i l_i, v_i = 1 / (B S(bin of g_i)), g_i = 1 - exp(-l_i), S(k) the fraction of examples in bin k of B

    For cross-entropy g_i is the norm of the gradient by the logit. S is a running mean over the batches of training,
    S <- m S + (1 - m) S(batch). All weights are 1 until the first batch of training.

    The loss is not proper: for a binary target a constant prediction converges to 1/2, to within a bin, whatever the
    base rate is.

    Args:
        loss: a Keras loss, or the name of one; its `reduction` and `dtype` are the defaults.
        bins: B, number of bins of equal width, at least 2.
        momentum: m in [0, 1); 0 uses each batch by itself.
        normalize: whether the weights are divided by their mean, so that the learning rate keeps its meaning.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss. An example of sample weight k counts as k examples do; masked examples do not
        count.

    Raises:
        TypeError: `normalize` is not a boolean.
        ValueError: `bins` or `momentum` is outside its range.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`, which would lose the statistic.

    Source: Li, Liu, Wang, "Gradient harmonized single-stage detector", AAAI 2019, equations 6 to 8 and 10.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, "sigmoid")]))
        >>> trainer.compile("adam", minimand.losses.GradientHarmonized("binary_crossentropy"))
        >>> history = trainer.fit(np.random.rand(8, 3), np.ones((8, 1)), verbose=0)
    """

    def __init__(
        self, loss: Any, *, bins: int = 10, momentum: float = 0.9, normalize: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(loss, momentum=momentum, normalize=normalize, **kwargs)
        self.bins = check_int("GradientHarmonized", "bins", bins, minimum=2)
        self.statistic_shape = (self.bins,)

    def _bin(self, values: Tensor) -> Tensor:
        # NaN belongs to no bin, and must reach the loss.
        position = ops.nan_to_num(-ops.expm1(-ops.relu(values))) * self.bins
        return ops.cast(ops.clip(position, 0, self.bins - 1), "int32")

    def statistic_of(self, values: Tensor, importance: Tensor) -> Tensor:
        members = ops.one_hot(self._bin(values), self.bins, dtype=values.dtype)
        return safe_divide(ops.sum(members * importance[:, None], axis=0), ops.sum(importance))

    def weights_from(self, values: Tensor, statistic: Tensor) -> Tensor:
        # A bin that never held an example has no density to divide by.
        seen = statistic > 0
        of_bin = ops.where(seen, 1 / (self.bins * ops.where(seen, statistic, 1.0)), 1.0)
        return ops.take(of_bin, self._bin(values))


@keras.saving.register_keras_serializable(package="minimand")
class SelfPaced(_RunningWeights):
    """Self-paced learning leaves out the examples with the largest losses.

    Use this loss when some examples are wrong or too hard at first, and the share of good ones can be guessed.

    mean_i v_i l_i, v_i = 1 if l_i <= S, else 0, S the quantile of the losses at `share`

    S is a running mean over the batches of training, S <- m S + (1 - m) S(batch). All weights are 1 until the first
    batch of training. The loss is not proper: under squared error a constant prediction converges to a trimmed mean.

    Args:
        loss: a Keras loss, or the name of one; its `reduction` and `dtype` are the defaults.
        share: share of the examples that count, in (0, 1].
        momentum: m in [0, 1); 0 uses each batch by itself.
        normalize: whether the weights are divided by their mean, so that the learning rate keeps its meaning.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss. An example of sample weight k counts as k examples do; masked examples do not
        count.

    Raises:
        TypeError: `normalize` is not a boolean.
        ValueError: `share` or `momentum` is outside its range.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`, which would lose the statistic.

    Source: Kumar, Packer, Koller, "Self-paced learning for latent variable models", NeurIPS 2010, section 4.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", minimand.losses.SelfPaced("mean_squared_error", share=0.9))
        >>> history = trainer.fit(np.random.rand(8, 3), np.ones((8, 1)), verbose=0)
    """

    def __init__(
        self, loss: Any, *, share: float = 0.8, momentum: float = 0.9, normalize: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(loss, momentum=momentum, normalize=normalize, **kwargs)
        self.share = check_float("SelfPaced", "share", share, above=0.0, maximum=1.0)

    def statistic_of(self, values: Tensor, importance: Tensor) -> Tensor:
        return weighted_quantile(values, importance, self.share)

    def weights_from(self, values: Tensor, statistic: Tensor) -> Tensor:
        return ops.cast(values <= statistic, values.dtype)


@keras.saving.register_keras_serializable(package="minimand")
class StandardizedIRLS(_RunningWeights):
    """Iteratively reweighted least squares on standardized errors, which finds the scale of the errors by itself.

    Use this loss instead of `IRLS` when the size of a usual error is unknown or falls during training.

    mean_i v_i l_i, v_i = (u_i^2/|a-2| + 1)^(a/2-1), u_i = sqrt(l_i)/(c S), S = 1.4826 median sqrt(l)

    S is a running mean over the batches of training, S <- m S + (1 - m) S(batch). All weights are 1 until the first
    batch of training. The loss is not proper: under squared error a constant prediction converges to the M-estimate of
    the robust loss with the median absolute deviation for its scale.

    Args:
        loss: a Keras loss, or the name of one; its `reduction` and `dtype` are the defaults.
        alpha: shape a <= 2 of the robust loss, -inf included; 0 is Cauchy's.
        scale: c > 0, in units of the residual scale S.
        momentum: m in [0, 1); 0 uses each batch by itself.
        differentiate: whether the gradient passes through the weights (it never passes through S).
        normalize: whether the weights are divided by their mean, so that the learning rate keeps its meaning.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss. An example of sample weight k counts as k examples do; masked examples do not
        count.

    Raises:
        TypeError: `differentiate` or `normalize` is not a boolean.
        ValueError: `alpha`, `scale` or `momentum` is outside its range.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`, which would lose the statistic.

    Source: Holland, Welsch, "Robust regression using iteratively reweighted least-squares", Communications in
    Statistics 6, 1977 (standardized residuals).

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", minimand.losses.StandardizedIRLS("mean_squared_error"))
        >>> history = trainer.fit(np.random.rand(8, 3), np.ones((8, 1)), verbose=0)
    """

    def __init__(
        self,
        loss: Any,
        *,
        alpha: float = 0.0,
        scale: float = 2.0,
        momentum: float = 0.9,
        differentiate: bool = False,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(loss, momentum=momentum, differentiate=differentiate, normalize=normalize, **kwargs)
        self.alpha = check_shape("StandardizedIRLS", alpha, maximum=2.0)
        self.scale = check_float("StandardizedIRLS", "scale", scale, above=0.0)

    def statistic_of(self, values: Tensor, importance: Tensor) -> Tensor:
        return _MEDIAN_TO_STDDEV * weighted_quantile(ops.sqrt(ops.relu(values)), importance, 0.5)

    def weights_from(self, values: Tensor, statistic: Tensor) -> Tensor:
        squared_scale = at_least((self.scale * statistic) ** 2, _LEAST_SCALE)
        return _robust_weights(ops.relu(values) / squared_scale, self.alpha)
