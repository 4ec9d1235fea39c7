"""Robust losses: Barron's family as functions and as a loss, and likelihoods that learn their shape and scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import keras
from keras import ops

from minimand import backend
from minimand._keras import cond
from minimand._ops import at_least_float32, compute_dtype, mean_over_last_axis
from minimand._validation import check_bool, check_choice, check_float, check_int, check_several, is_number
from minimand.backend import Tensor
from minimand.losses._base import TrainableLoss, aligned, loss_config, weighted_quantile, without_masked
from minimand.losses._robust_kernels import (
    FLOAT_INFO,
    bounded_kernel,
    fixed_kernel,
    is_moderate,
    log_partition_kernel,
    robust_kernel,
)
from minimand.parametrizations import Bounded

# Barron's family as pure functions: loss, weights, density, its log partition function and samples.


def shape_of_power(lam: Tensor | float) -> Tensor | float:
    """The shape alpha of Barron's family for the parameter lambda of his power transform.

    Use it to choose a loss by lambda, since the family is symmetric in lambda about squared error.

    a = 2 (1 + lambda) for lambda <= 0, a = 2/(1 - lambda) for 0 <= lambda <= 1

    lambda = 0 is squared error, -1 Cauchy, -1/2 pseudo-Huber, -inf Welsch, 1 the limit a = inf.

    Args:
        lam: lambda in [-inf, 1], a float or a tensor.

    Returns:
        a in [-inf, inf], a float or a tensor as `lam` is.

    Raises:
        ValueError: a float `lam` is above 1 or not a number.

    Source: Barron, "A Power Transform", arXiv 2502.10647 (2025), table 1.

    Examples:
        >>> import minimand
        >>> [minimand.losses.shape_of_power(lam) for lam in (-1.0, -0.5, 0.0, 0.5)]
        [0.0, 1.0, 2.0, 4.0]
    """
    if isinstance(lam, (int, float)):
        if math.isnan(lam) or lam > 1:
            raise ValueError(f"shape_of_power: `lam` must be a number <= 1. Received: lam={lam!r}")
        return 2.0 * (1 + lam) if lam <= 0 else (2.0 / (1 - lam) if lam < 1 else math.inf)
    lam = ops.convert_to_tensor(lam)
    return ops.where(lam <= 0, 2 * (1 + lam), 2 / (1 - ops.where(lam > 0, lam, 0.0)))


def check_shape(owner: str, alpha: Any, *, minimum: float = -math.inf, maximum: float = math.inf) -> float:
    """Return `alpha` as a float with `minimum <= alpha <= maximum`, perhaps infinite, or raise a `ValueError`."""
    if is_number(alpha) and math.isinf(alpha) and minimum <= alpha <= maximum:
        return float(alpha)
    return check_float(owner, "alpha", alpha, minimum=minimum, maximum=maximum)


def _checked(owner: str, alpha: Any, scale: Any, minimum: float = -math.inf) -> tuple[Any, Any]:
    """Alpha and scale: tensors as they are, numbers as floats in their ranges."""
    if isinstance(alpha, (int, float)):
        alpha = check_shape(owner, alpha, minimum=minimum)
    if isinstance(scale, (int, float)):
        scale = check_float(owner, "scale", scale, above=0.0)
    return alpha, scale


def _as_given(value: Tensor, given: Tensor) -> Tensor:
    """The value in the dtype of the given tensor, if that is a floating point dtype."""
    dtype = keras.backend.standardize_dtype(given.dtype)
    return ops.cast(value, dtype) if "float" in dtype else value


def _derivatives(x: Tensor, alpha: Any, scale: Any, with_shape_derivative: bool = False) -> tuple[Any, ...]:
    """`(loss, derivative by x, by alpha if wanted, by scale)` from the cheaper of the exact kernels."""
    info = FLOAT_INFO[compute_dtype(x)]
    if isinstance(alpha, float) and is_moderate(alpha):
        value, influence, by_scale = fixed_kernel(x, alpha, scale, info)
        return value, influence, None, by_scale
    # A float is converted directly to the dtype, because Keras would round it to float32 on the way.
    alpha, scale = (ops.convert_to_tensor(value, info.dtype) for value in (alpha, scale))
    return robust_kernel(x, alpha, scale, info, with_shape_derivative)


def _loss(residual: Any, alpha: Any, scale: Any) -> Tensor:
    """The loss of checked arguments, with its derivatives by those that are tensors."""
    given = [ops.convert_to_tensor(residual), alpha, scale]
    variable = [index for index, value in enumerate(given) if not isinstance(value, float)]

    def of_tensors(*tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        arguments = list(given)
        for index, tensor in zip(variable, tensors, strict=True):
            arguments[index] = tensor
        x, a, c = arguments
        value, *derivatives = _derivatives(x, a, c, with_shape_derivative=1 in variable)
        return value, tuple(derivatives[index] for index in variable)

    dtype = compute_dtype(*given)
    tensors = [ops.convert_to_tensor(given[index], dtype) for index in variable]
    return _as_given(backend.custom_derivative(of_tensors)(*tensors), given[0])


def general_robust(residual: Tensor, alpha: Tensor | float, scale: Tensor | float = 1.0) -> Tensor:
    """Barron's general robust loss of each residual.

    Use it in a loss of your own; `GeneralRobust` and `AdaptiveRobust` are Keras losses.

    rho(x) = b/a ((x^2/(c^2 b) + 1)^(a/2) - 1), b = |a - 2|, continued to a = 0, 2, -inf and inf

    Args:
        residual: x, a tensor of any shape.
        alpha: shape a in [-inf, inf]: 2 squared error, 1 pseudo-Huber, 0 Cauchy, -2 Geman-McClure, -inf Welsch. A
            float or a tensor.
        scale: c > 0, in the residual's units, a float or a tensor.

    Returns:
        Losses >= 0, of the shape to which the arguments broadcast, correct to a few units of the last place (half
        precision is computed in float32). Differentiable in residual, alpha and scale, at least twice, with finite
        first derivatives everywhere. The derivative by a is infinite at a = 2, where a large number stands for it.

    Raises:
        ValueError: a float is outside of its range.

    Source: Barron, "A general and adaptive robust loss function", CVPR 2019, equation 8.

    Examples:
        >>> import numpy as np, minimand
        >>> float(minimand.losses.general_robust(np.float32(3.0), alpha=2.0))
        4.5
    """
    return _loss(residual, *_checked("general_robust", alpha, scale))


def robust_weights(residual: Tensor, alpha: Tensor | float, scale: Tensor | float = 1.0) -> Tensor:
    """The weights of `general_robust` in iteratively reweighted least squares.

    Use them to see which residuals count, or to fit a linear model robustly.

    rho'(x)/x = (x^2/(c^2 b) + 1)^(a/2 - 1)/c^2, b = |a - 2|

    Args:
        residual: x, a tensor of any shape.
        alpha: shape a in [-inf, inf], a float or a tensor.
        scale: c > 0, in the residual's units, a float or a tensor.

    Returns:
        Positive weights, 1/c^2 at x = 0, decreasing in |x| for a < 2, without a gradient.

    Raises:
        ValueError: a float is outside of its range.

    Source: Barron, CVPR 2019, equation 12 (the influence); Holland and Welsch, "Robust regression using iteratively
        reweighted least-squares", 1977.

    Examples:
        >>> import numpy as np, minimand
        >>> float(minimand.losses.robust_weights(np.float32(1.0), alpha=0.0))  # 1/(1 + x^2/2)
        0.6666666...
    """
    given = [ops.convert_to_tensor(residual), *_checked("robust_weights", alpha, scale)]
    dtype = compute_dtype(*given)
    x, a, c = (v if isinstance(v, float) else ops.stop_gradient(ops.convert_to_tensor(v, dtype)) for v in given)
    at_zero = x == 0
    influence = _derivatives(x, a, c)[1]
    return _as_given(ops.where(at_zero, 1 / (c * c), influence / ops.where(at_zero, 1.0, x)), given[0])


def log_partition(alpha: Tensor | float) -> Tensor:
    """The logarithm of the normalising constant of Barron's density.

    Use it with `general_robust` in a likelihood whose shape is learned.

    Z(a) = integral of exp(-rho(x; a, 1)) dx, so that exp(-rho(x; a, c))/(c Z(a)) is a density

    Z(0) = sqrt(2) pi, Z(2) = sqrt(2 pi), log Z(inf) = 0.7052602544

    Args:
        alpha: shape a in [0, inf], a float or a tensor.

    Returns:
        Tensor of the shape of `alpha`, to 1e-7 in float32 and 1e-12 in float64; inf for negative entries of a tensor.
        Differentiable. The derivative is infinite at a = 2, where a large number stands for it.

    Raises:
        ValueError: a float is negative.

    Source: Barron, CVPR 2019, equations 15 and 16; computed here by Chebyshev series in powers of a and |a - 2|.

    Examples:
        >>> import minimand
        >>> round(float(minimand.losses.log_partition(2.0)), 6)  # log(2 pi)/2
        0.918939
    """
    if isinstance(alpha, (int, float)):
        alpha = check_shape("log_partition", alpha, minimum=0.0)
    shape = ops.convert_to_tensor(alpha)
    info = FLOAT_INFO[compute_dtype(shape)]

    def of_tensor(a: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        value, derivative = log_partition_kernel(a, info)
        return value, (derivative,)

    return _as_given(backend.custom_derivative(of_tensor)(ops.cast(shape, info.dtype)), shape)


def robust_log_density(residual: Tensor, alpha: Tensor | float, scale: Tensor | float = 1.0) -> Tensor:
    """The log density of residuals whose negative log likelihood is the robust loss.

    Use it as the likelihood of a model whose noise has heavy tails.

    log p(x) = -rho(x; a, c) - log c - log Z(a)

    Args:
        residual: x, a tensor of any shape.
        alpha: shape a in [0, inf], a float or a tensor: 2 the normal density, 0 the Cauchy density, with heavier tails
            the smaller a is.
        scale: c > 0, in the residual's units, a float or a tensor.

    Returns:
        Log densities, of the shape to which the arguments broadcast; they can be positive. Differentiable in all three.

    Raises:
        ValueError: a float is outside of its range.

    Source: Barron, CVPR 2019, equations 15 and 16.

    Examples:
        >>> import numpy as np, minimand
        >>> round(float(minimand.losses.robust_log_density(np.float32(0.0), alpha=2.0)), 6)
        -0.918939
    """
    alpha, scale = _checked("robust_log_density", alpha, scale, minimum=0.0)
    loss = _loss(residual, alpha, scale)
    if isinstance(alpha, float):
        alpha = ops.convert_to_tensor(alpha, loss.dtype)
    log_scale = math.log(scale) if isinstance(scale, float) else ops.cast(ops.log(scale), loss.dtype)
    return -(loss + ops.cast(log_partition(alpha), loss.dtype) + log_scale)


# At least 45 % of the proposals are accepted (Z(inf)/Z(0)), so that 0.55^40 = 4e-11 of the numbers are not.
_ROUNDS = 40


def sample_robust(
    shape: tuple[int, ...],
    alpha: Tensor | float,
    scale: Tensor | float = 1.0,
    seed: int | keras.random.SeedGenerator | None = None,
) -> Tensor:
    """Independent draws from the density of `robust_log_density`.

    Use them to simulate noise with heavy tails. A Cauchy draw x of scale sqrt(2) c is accepted with probability
    exp(rho(x; 0, c) - rho(x; a, c)) <= 1, and drawn again otherwise.

    Args:
        shape: shape of the result; `alpha` and `scale` broadcast to it.
        alpha: shape a in [0, inf], a float or a tensor.
        scale: c > 0, a float or a tensor.
        seed: an integer, for the same draws at each call, or a `keras.random.SeedGenerator`.

    Returns:
        Tensor of shape `shape`.

    Raises:
        ValueError: a float is outside of its range.

    Source: Barron, CVPR 2019, supplement, "Sampling".

    Examples:
        >>> import minimand
        >>> tuple(minimand.losses.sample_robust((2, 3), alpha=1.0, scale=0.5, seed=1).shape)
        (2, 3)
    """
    alpha, scale = _checked("sample_robust", alpha, scale, minimum=0.0)
    generator = seed if isinstance(seed, keras.random.SeedGenerator) else keras.random.SeedGenerator(seed)
    dtype = compute_dtype(alpha, scale)
    accepted = ops.zeros(shape, "bool")
    draws = ops.zeros(shape, dtype)
    for _ in range(_ROUNDS):
        # The quotient of two normal numbers is a Cauchy number; infinite ones are never accepted.
        pair = keras.random.normal((2, *shape), dtype=dtype, seed=generator)
        proposal = math.sqrt(2) * pair[0] / pair[1]
        log_probability = general_robust(proposal, 0.0) - general_robust(proposal, alpha)
        level = keras.random.uniform(shape, dtype=dtype, seed=generator)
        draws = ops.where(accepted, draws, proposal)
        accepted = accepted | (level < ops.exp(log_probability))
    return draws * (scale if isinstance(scale, float) else ops.cast(scale, dtype))


# The loss with a fixed shape and scale.


@keras.saving.register_keras_serializable(package="minimand")
class GeneralRobust(keras.losses.Loss):
    """Barron's general robust loss, with a fixed shape and scale.

    Use it for regression with outliers whose scale is known, in `minimand.Trainer` or in stock `compile`. The loss has
    no variables; `AdaptiveRobust` learns shape and scale.

    rho(x) = |a-2|/a ((x^2/(c^2 |a-2|) + 1)^(a/2) - 1), x = y_pred - y_true, averaged over the last axis

    a = 2 is half the squared error of x/c, 1 pseudo-Huber, 0 Cauchy, -2 Geman-McClure, -inf Welsch. The smaller a is,
    the less an outlier counts.

    Args:
        alpha: shape a, any float, -inf and inf included.
        scale: c > 0, in units of the targets. Residuals well below c count as in squared error.
        name: name of the loss.
        **kwargs: `reduction` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        As a call: for targets and predictions (batch, ..., d), the reduced loss.

    Raises:
        ValueError: `alpha` is not a number, `scale` is not positive, shapes of targets and predictions differ.

    Source: Barron, "A general and adaptive robust loss function", CVPR 2019, equation 8.

    Examples:
        >>> import numpy as np, minimand
        >>> loss = minimand.losses.GeneralRobust(alpha=0.0, scale=1.0)
        >>> round(float(loss(np.array([[0.0]]), np.array([[2.0**0.5]]))), 6)  # log(1 + x^2/2)
        0.693147
    """

    def __init__(self, alpha: float = 1.0, scale: float = 1.0, *, name: str = "general_robust", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.alpha = check_shape("GeneralRobust", alpha)
        self.scale = check_float("GeneralRobust", "scale", scale, above=0.0)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        return super().__call__(*without_masked(y_true, y_pred), sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true, y_pred = aligned("GeneralRobust", y_true, y_pred)
        return mean_over_last_axis(general_robust(y_pred - y_true, self.alpha, self.scale))

    def get_config(self) -> dict[str, Any]:
        return loss_config(self)


# The base of likelihoods of residuals with a learned shape and scale.


class Positions:
    """The positions along some axes of the predictions, and which of them share a parameter.

    Args:
        owner: the loss, for messages.
        y_pred_shape: shape of the predictions, batch axis first.
        axes: the axes along which each position has a parameter.
        shared: whether all positions share one parameter.
        groups: for each position along the only axis, the number of its parameter.

    Attributes:
        sizes: shape of one value for each position.
        parameter_shape: shape of the parameters.
    """

    def __init__(
        self, owner: str, y_pred_shape: Sequence[int | None], axes: list[int], shared: bool, groups: list[int] | None
    ) -> None:
        # Predictions (batch,) are one output dimension.
        shape = tuple(y_pred_shape) if len(y_pred_shape) > 1 else (*y_pred_shape, 1)
        rank = len(shape)
        received = f"Received: axis={tuple(axes)!r}, y_pred of shape {tuple(y_pred_shape)}"
        if any(not -rank < axis < rank or axis % rank == 0 for axis in axes):
            raise ValueError(f"{owner}: `axis` must name axes after the batch's. {received}")
        axes = sorted({axis % rank for axis in axes})
        sizes = [1] if shared else [shape[axis] for axis in axes]
        if None in sizes:
            raise ValueError(
                f"{owner}: each axis in `axis` (by default the last one) must have a known size. {received}. Use "
                "`shared=True` for axes of unknown size."
            )
        if groups is not None and len(groups) != sizes[0]:
            raise ValueError(
                f"{owner}: `groups` must have a number for each of the {sizes[0]} positions. "
                f"Received: {len(groups)} numbers"
            )
        self.groups = groups
        self.sizes = [int(size) for size in sizes if size is not None]
        self.parameter_shape = self.sizes if groups is None else [len(set(groups))]
        self._broadcast_shape = [shape[axis] if axis in axes and not shared else 1 for axis in range(1, rank)]

    def each(self, parameters: Tensor) -> Tensor:
        """The parameter of each position."""
        return parameters if self.groups is None else ops.take(parameters, ops.convert_to_tensor(self.groups), axis=0)

    def broadcast(self, values: Tensor) -> Tensor:
        """One value for each position, in a shape that broadcasts to the predictions'."""
        return ops.reshape(values, self._broadcast_shape)

    def rows(self, values: Tensor) -> Tensor:
        """Values of the predictions' shape as (all values of a position, position)."""
        kept = [axis for axis, size in enumerate(self._broadcast_shape, start=1) if size != 1]
        others = [axis for axis in range(len(values.shape)) if axis not in kept]
        return ops.reshape(ops.transpose(values, (*others, *kept)), (-1, math.prod(self.sizes)))

    def group_means(self, values: Tensor) -> Tensor:
        """The mean of one value for each position over the positions that share a parameter."""
        if self.groups is None:
            return ops.reshape(values, self.sizes)
        members = ops.one_hot(self.groups, len(set(self.groups)), dtype=values.dtype)
        return ops.sum(members * values[:, None], axis=0) / ops.sum(members, axis=0)


class Density(NamedTuple):
    """A family of densities exp(-loss(x; shape, c)) / (c Z(shape))."""

    shape_name: str
    log_shape: bool  # whether the logarithm of the shape, and not the shape, is linear in the sigmoid
    start: float  # the first scale with `init="robust"`, over the scale of the first residuals
    loss: Callable[[Tensor, Tensor, Tensor, float], Tensor]  # of residual, shape, scale and the greatest shape
    log_partition: Callable[[Tensor], Tensor]


# `benchmarks/contaminated_regression.py` chose the start of `init="robust"`. The first scale is this fraction of the
# scale of the first residuals, so that wrong targets do not count before the good ones are fitted.
_START_FRACTION = 0.2
# `scale_min=None` stands for this fraction of the first scale. Residuals below it need no protection, and a scale that
# followed them further down would take the rows that are not fitted yet for wrong ones.
_LEAST_FRACTION = 0.25
# The smallest quarter of the residuals gives their scale, since they are good even if two fifths of the targets are
# wrong: |x| of a standard normal variable is below 0.3186 with probability 1/4.
_QUANTILE_LEVEL = 0.25
_NORMAL_QUANTILE = NormalDist().inv_cdf((1 + _QUANTILE_LEVEL) / 2)
_LEAST_RESIDUALS = 8
# After so many steps the shape and scale are half as free to move as in the end.
_RELEASE_STEPS = 500


class ResidualLikelihood(TrainableLoss):
    """The negative log likelihood of residuals by a density with a learned shape and scale.

    -log p(x) = loss(x; shape, c) + log c + log Z(shape), averaged over the last axis

    The shape lies between its bounds by a sigmoid of u, and the scale is c = c_min + c_0 softplus(v)/log 2. With
    `init="robust"` c_0 is a fraction of the scale of the residuals in the first batch of training, unless `scale_init`
    gives the first scale, and u and v are multiplied by t/(t + 500) at step t. Without `scale_min`, c_min is a quarter
    of the first scale, and c_0 the other three.
    """

    density: Density

    def __init__(
        self,
        shape: float | None,
        shape_range: Sequence[float],
        shape_init: float | None,
        init: str,
        scale: float | None,
        scale_init: float | None,
        scale_min: float | None,
        axis: int | Sequence[int],
        shared: bool,
        groups: Sequence[int] | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        owner, shape_name = type(self).__name__, self.density.shape_name
        self.fixed_shape = shape
        self.init = check_choice(owner, "init", init, ("robust", "reference"))
        rule = {"above": 0.0} if self.density.log_shape else {"minimum": 0.0}
        bounds = check_several(owner, f"{shape_name}_range", shape_range, 2)
        low, high = self.shape_range = [check_float(owner, f"{shape_name}_range", bound, **rule) for bound in bounds]
        self.shape_init = None if shape_init is None else check_float(owner, f"{shape_name}_init", shape_init)
        # The robust start is so low that outliers do not count.
        first = low + (high - low) * (0.5 if init == "reference" else 0.005) if shape_init is None else shape_init
        if not low < first < high:
            raise ValueError(
                f"{owner}: `{shape_name}_range` must increase and `{shape_name}_init` lie strictly inside it. "
                f"Received: {shape_name}_range=({low!r}, {high!r}), {shape_name}_init={first!r}"
            )
        self._bounded = Bounded(low, high, log=self.density.log_shape)
        self._first_latent = float(self._bounded.unconstrain(first))
        self._greatest_shape = high if shape is None else shape
        self.fixed_scale = None if scale is None else check_float(owner, "scale", scale, above=0.0)
        if scale_min is None and init == "reference":
            scale_min = 1e-5
        self.scale_min = None if scale_min is None else check_float(owner, "scale_min", scale_min, above=0.0)
        if scale_init is None and init == "reference":
            scale_init = 1.0
        if scale_init is not None:
            scale_init = check_float(owner, "scale_init", scale_init, above=self.scale_min or 0.0)
        self.scale_init = scale_init
        axes = [axis] if is_number(axis) else check_several(owner, "axis", axis)
        self.axis = [check_int(owner, "axis", each) for each in axes]
        self.shared = check_bool(owner, "shared", shared)
        if groups is not None:
            groups = [check_int(owner, "groups", group) for group in check_several(owner, "groups", groups)]
            numbers = sorted(set(groups))
            if shared or len(self.axis) != 1 or numbers != list(range(len(numbers))):
                raise ValueError(
                    f"{owner}: `groups` must number the positions of one axis from 0 without a gap, and excludes "
                    f"`shared`. Received: groups={groups!r}, axis={axis!r}, shared={shared!r}"
                )
        self.groups = groups

    def positions_of(self, y_pred_shape: Any) -> Positions:
        """The positions with parameters of predictions of this shape."""
        return Positions(type(self).__name__, y_pred_shape, self.axis, self.shared, self.groups)

    def represented(self, residual: Tensor) -> Tensor:
        """The residuals in the representation whose likelihood this loss is."""
        return residual

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        self.positions = self.positions_of(y_pred_shape)
        count, name = self.positions.parameter_shape, self.density.shape_name
        if self.fixed_shape is None:
            self.latent_shape = self.add_weight(count, name=f"latent_{name}", logged=False)
            self._shape_log = self.add_log(name)
        if self.fixed_scale is None:
            # The first value is 0, the inverse of softplus at log 2.
            self.latent_scale = self.add_weight(count, name="latent_scale", logged=False)
            if self.scale_init is None:
                # 0 stands for a scale that is not measured yet.
                self.residual_scale = self.add_weight(count, name="residual_scale", trainable=False, aggregation="mean")
            self._scale_log = self.add_log("scale")
        if self.init == "robust":
            self.steps = self.add_weight(name="steps", trainable=False, aggregation="only_first_replica")

    def _parameters(self, residual_scale: Any) -> tuple[Tensor, Tensor]:
        """Shape and scale at each position, given the scale of the first residuals."""
        shape: Tensor | float | None = self.fixed_shape
        scale: Tensor | float | None = self.fixed_scale
        if shape is None:
            shape = self._bounded.constrain(self._first_latent + self._released(self.latent_shape))
        if scale is None:
            first = self.density.start * residual_scale if self.scale_init is None else self.scale_init
            least = _LEAST_FRACTION * first if self.scale_min is None else self.scale_min
            # A measured scale can lie below a given bound, and is added to it.
            span = first - least if self.scale_min is None or self.scale_init is not None else first
            growth = ops.softplus(self._released(self.latent_scale)) / math.log(2)
            scale = least + span * growth
        return self._at_positions(shape), self._at_positions(scale)

    def _at_positions(self, value: Tensor | float) -> Tensor:
        if isinstance(value, float):
            return ops.full(self.positions.sizes, value, dtype=self.dtype)
        return self.positions.each(value)

    def _released(self, latent: keras.Variable) -> Tensor:
        value = ops.cast(latent, self.dtype)
        if self.init == "reference":
            return value
        steps = ops.cast(self.steps, self.dtype)
        return value * (steps / (steps + _RELEASE_STEPS))

    @property
    def _measures_scale(self) -> bool:
        return self.fixed_scale is None and self.scale_init is None

    def _measured_scale(self, residual: Tensor) -> Tensor:
        """The scale of the first residuals in training; before that, the scale of the given residuals."""
        residual = ops.stop_gradient(residual)
        known = self.residual_scale.value

        def measured() -> Tensor:
            importance = self.importance(residual[..., 0])[..., None]
            rows = self.positions.rows(ops.abs(residual))
            counts = self.positions.rows(ops.broadcast_to(importance, ops.shape(residual)))
            scale = self.positions.group_means(weighted_quantile(rows, counts, _QUANTILE_LEVEL) / _NORMAL_QUANTILE)
            # A position with too few residuals, or with zeros alone, takes the mean, and 1 if that is 0.
            reliable = ops.logical_and(scale > 0, ops.shape(rows)[0] >= _LEAST_RESIDUALS)
            scale = ops.where(reliable, scale, ops.mean(scale))
            scale = ops.where(scale > 0, scale, 1.0)
            # A batch in which no example counts leaves the scale unknown.
            return ops.cast(ops.where(ops.any(importance > 0), scale, 0.0), known.dtype)

        scale = cond(ops.any(known > 0), lambda: known, measured)
        if self.training:
            self.residual_scale.assign(scale)
        return ops.cast(scale, self.dtype)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true, y_pred = aligned(type(self).__name__, y_true, y_pred)
        # Half precision would overflow at a residual of 256 scales.
        y_pred = at_least_float32(y_pred)
        residual = self.represented(y_pred - ops.cast(y_true, y_pred.dtype))
        residual_scale = self._measured_scale(residual) if self._measures_scale else None
        shape, scale = (ops.cast(value, y_pred.dtype) for value in self._parameters(residual_scale))
        if self.fixed_shape is None:
            self._shape_log.update_state(ops.mean(shape))
        if self.fixed_scale is None:
            self._scale_log.update_state(ops.mean(scale))
        if self.init == "robust" and self.training:
            self.steps.assign_add(1)
        constant = self.positions.broadcast(ops.log(scale) + self.density.log_partition(shape))
        shape, scale = (self.positions.broadcast(value) for value in (shape, scale))
        loss = self.density.loss(residual, shape, scale, self._greatest_shape)
        return mean_over_last_axis(loss) + mean_over_last_axis(constant)

    def _read(self, index: int) -> Any:
        if not self.built or (self._measures_scale and not ops.convert_to_numpy(self.residual_scale).any()):
            raise ValueError(
                f"{type(self).__name__}: `{self.density.shape_name}` and `scale` are not known yet. Call `fit` first, "
                "or give `scale_init` and call `build_once(y_true_shape, y_pred_shape)`."
            )
        residual_scale = ops.cast(self.residual_scale, self.dtype) if self._measures_scale else None
        return ops.convert_to_numpy(ops.stop_gradient(self._parameters(residual_scale)[index]))

    @property
    def scale(self) -> Any:
        """The scale at each position of the axes, a NumPy array."""
        return self._read(1)

    def get_config(self) -> dict[str, Any]:
        # The attributes with the names of these arguments hold the learned values.
        name = self.density.shape_name
        given = {name: self.fixed_shape, f"{name}_range": self.shape_range, f"{name}_init": self.shape_init}
        return loss_config(self, scale=self.fixed_scale, **given)


# Barron's likelihood.


def _barron_loss(residual: Tensor, shape: Tensor, scale: Tensor, greatest_shape: float) -> Tensor:
    if greatest_shape <= 2:
        return backend.custom_derivative(bounded_kernel)(residual, shape, scale)
    info = FLOAT_INFO[compute_dtype(residual)]

    def of_any_shape(x: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        value, *derivatives = robust_kernel(x, a, c, info)
        return value, tuple(derivatives)

    return backend.custom_derivative(of_any_shape)(residual, shape, scale)


BARRON = Density("alpha", False, _START_FRACTION, _barron_loss, log_partition)


@keras.saving.register_keras_serializable(package="minimand")
class AdaptiveRobust(ResidualLikelihood):
    """The negative log likelihood of Barron's density, with a learned shape and scale per output dimension.

    Use it for regression with outliers of unknown number and size. `minimand.Trainer` trains and saves the variables
    of the loss; stock `compile` raises an error.

    -log p(x) = rho(x; a, c) + log c + log Z(a), x = y_pred - y_true, averaged over the last axis

    a = lo + (hi - lo) sigmoid(u) and c = c_min + c_0 softplus(v)/log 2 with trained u and v, so that the loss learns
    how heavy the tails of the residuals are. A likelihood can be negative, so compare it only with itself. The logs of
    `fit` have the mean shape and scale as `adaptive_robust_alpha` and `adaptive_robust_scale`, after the loss's name.

    Args:
        alpha: a float in [0, inf] fixes the shape; by default it is learned.
        scale: a positive float, in units of the targets, fixes the scale; by default it is learned.
        alpha_range: (lo, hi), 0 <= lo < hi, open bounds of a learned shape. Beyond 2 tails are lighter than normal
            ones, and the loss costs three times as much.
        init: `"robust"`: the shape starts low and the scale at a fifth of the scale of the residuals in the first
            batch of training (of all positions, if each has fewer than 8), and u and v are multiplied by t/(t + 500)
            at step t, so that wrong targets do not count before the good ones are fitted. `"reference"`: the shape
            starts at the middle of `alpha_range` and the scale at 1, as in the paper, which suits standardised targets.
        alpha_init: first shape, strictly inside `alpha_range`, with either `init`.
        scale_init: first scale, in units of the targets, greater than `scale_min`, with either `init`.
        scale_min: lower bound of a learned scale, positive. If most residuals can be exactly 0, the likelihood has no
            other bound: give 0.1 for one-hot targets.
        axis: the axis, or axes, of the predictions along which each position has its own shape and scale; axis 0, the
            batch's, is not allowed.
        shared: whether all positions share one shape and scale.
        groups: for each position along `axis` (a single one) the number, from 0, of the shape and scale it shares.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        As a call: for targets and predictions (batch, ..., d), the reduced loss. `.alpha` and `.scale` are NumPy
        arrays of the sizes of the axes.

    Raises:
        TypeError: `shared` is not a boolean.
        ValueError: an argument is outside of its range, an axis in `axis` has no known size, shapes of targets and
            predictions differ.

    Source: Barron, "A general and adaptive robust loss function", CVPR 2019, equations 15 and 16, section 3.1 (the
    parametrisation).

    Examples:
        >>> import keras, numpy as np, minimand
        >>> loss = minimand.losses.AdaptiveRobust()
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", loss)
        >>> history = trainer.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0)
        >>> loss.alpha.shape, loss.scale.shape
        ((1,), (1,))
    """

    density = BARRON

    def __init__(
        self,
        *,
        alpha: float | None = None,
        scale: float | None = None,
        alpha_range: Sequence[float] = (0.001, 1.999),
        init: str = "robust",
        alpha_init: float | None = None,
        scale_init: float | None = None,
        scale_min: float = 1e-5,
        axis: int | Sequence[int] = -1,
        shared: bool = False,
        groups: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        if alpha is not None:
            alpha = check_shape("AdaptiveRobust", alpha, minimum=0.0)
        super().__init__(
            alpha, alpha_range, alpha_init, init, scale, scale_init, scale_min, axis, shared, groups, **kwargs
        )

    @property
    def alpha(self) -> Any:
        """The shape at each position of the axes, a NumPy array."""
        return self._read(0)


# Student's t likelihood.


def _student_t_loss(residual: Tensor, df: Tensor, scale: Tensor, _: float) -> Tensor:
    # Squares are finite up to here.
    scaled = ops.clip(residual / scale, -(2.0**60), 2.0**60)
    return (df + 1) / 2 * ops.log1p(scaled * scaled / df)


def _student_t_log_partition(df: Tensor) -> Tensor:
    return ops.log(math.pi * df) / 2 + _log_gamma_ratio(df / 2)


# The asymptotic series of log Gamma(x) - log Gamma(x + 1/2) + log(x)/2, in 1/x, 1/x^3, ..., 1/x^9.
_STIRLING = (1 / 8, -1 / 192, 1 / 640, -17 / 14336, 31 / 18432)


def _log_gamma_ratio(x: Tensor) -> Tensor:
    """Log Gamma(x) - log Gamma(x + 1/2), x > 0, by its recurrence up to x + 8 and by Stirling's series from there."""
    steps = 8
    shifted = x + steps
    w = 1 / (shifted * shifted)
    series = ops.zeros_like(w)
    for coefficient in reversed(_STIRLING):
        series = series * w + coefficient
    return sum((ops.log1p(0.5 / (x + k)) for k in range(steps)), series / shifted - ops.log(shifted) / 2)


# At n = 1 and sqrt(2) c the density is Barron's at shape 0 and c, so both losses start as the same Cauchy density.
STUDENT_T = Density("df", True, math.sqrt(2) * _START_FRACTION, _student_t_loss, _student_t_log_partition)


@keras.saving.register_keras_serializable(package="minimand")
class AdaptiveStudentT(ResidualLikelihood):
    """The negative log likelihood of Student's t, with learned degrees of freedom and scale per output dimension.

    Use it for regression with wrong targets of unknown number and size. Its degrees of freedom fall below 1 if many
    targets are wrong, so the scale still follows the good ones; `AdaptiveRobust` has no tails heavier than Cauchy's.

    -log p(x) = (n + 1)/2 log(1 + x^2/(c^2 n)) + log c + log(pi n)/2 + log Gamma(n/2) - log Gamma((n + 1)/2)

    x = y_pred - y_true, averaged over the last axis. The log of n lies between the logs of `df_range` by a sigmoid, and
    c = c_min + c_0 softplus(v)/log 2. n = 1 is Cauchy, n -> inf normal. A likelihood can be negative. The logs of `fit`
    have the means as `adaptive_student_t_df` and `adaptive_student_t_scale`.

    Args:
        df: a positive float fixes the degrees of freedom n; by default they are learned.
        scale: a positive float, in units of the targets, fixes the scale c; by default it is learned.
        df_range: (lo, hi), 0 < lo < hi, open bounds of learned degrees of freedom.
        init: `"robust"`: the scale starts at 0.28 times the scale of the residuals in the first batch of training, and
            the trained numbers are multiplied by t/(t + 500) at step t. `"reference"`: the scale starts at 1.
        df_init: first degrees of freedom, strictly inside `df_range`.
        scale_init: first scale, in units of the targets, greater than `scale_min`, with either `init`.
        scale_min: lower bound of a learned scale, positive; by default a quarter of the first scale with
            `init="robust"`, and 1e-5 with `"reference"`.
        axis: the axis, or axes, of the predictions along which each position has its own parameters.
        shared: whether all positions share one n and c.
        groups: for each position along `axis` (a single one) the number, from 0, of the parameters it shares.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        As a call: for targets and predictions (batch, ..., d), the reduced loss. `.df` and `.scale` are NumPy arrays
        of the sizes of the axes.

    Raises:
        TypeError: `shared` is not a boolean.
        ValueError: an argument is outside of its range, an axis in `axis` has no known size, shapes of targets and
            predictions differ.

    Source: Lange, Little and Taylor, "Robust statistical modeling using the t distribution", JASA 1989; Barron, CVPR
        2019, supplement, compares it with his own.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> loss = minimand.losses.AdaptiveStudentT()
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", loss)
        >>> history = trainer.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0)
        >>> loss.df.shape, loss.scale.shape
        ((1,), (1,))
    """

    density = STUDENT_T

    def __init__(
        self,
        *,
        df: float | None = None,
        scale: float | None = None,
        df_range: Sequence[float] = (0.1, 1e4),
        init: str = "robust",
        df_init: float = 1.0,
        scale_init: float | None = None,
        scale_min: float | None = None,
        axis: int | Sequence[int] = -1,
        shared: bool = False,
        groups: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        df = None if df is None else check_float("AdaptiveStudentT", "df", df, above=0.0)
        df_init = check_float("AdaptiveStudentT", "df_init", df_init, above=0.0)
        super().__init__(df, df_range, df_init, init, scale, scale_init, scale_min, axis, shared, groups, **kwargs)

    @property
    def df(self) -> Any:
        """The degrees of freedom at each position of the axes, a NumPy array."""
        return self._read(0)
