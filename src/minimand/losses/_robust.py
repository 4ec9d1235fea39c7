"""Student's t likelihood with learned degrees of freedom and scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from minimand import backend
from minimand._keras import cond
from minimand._ops import Float, mean_over_last_axis, working_float
from minimand._validation import check_bool, check_choice, check_float, check_int, check_several, is_number
from minimand.backend import Tensor
from minimand.losses._base import TrainableLoss, aligned, weighted_quantile, without_masked
from minimand.losses._robust_kernels import (
    bounded_kernel,
    fixed_kernel,
    is_moderate,
    log_partition_kernel,
    robust_kernel,
)

# Barron's robust family as pure functions: loss, weights, density, its normaliser and samples.


def shape_of_power(lam: Tensor | float) -> Tensor | float:
    """The shape a of the power-transform coordinate lambda: the same family, symmetric about squared error.

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


def _shape(owner: str, alpha: Any, lam: Any, minimum: float = -math.inf) -> Any:
    """The shape from whichever of the two coordinates was given, numbers or tensors."""
    if (alpha is None) == (lam is None):
        raise ValueError(f"{owner}: give either `alpha` or `lam`. Received: alpha={alpha!r}, lam={lam!r}")
    if isinstance(lam if alpha is None else alpha, (int, float)):
        return chosen_shape(owner, alpha, lam, minimum=minimum)
    return shape_of_power(lam) if alpha is None else alpha


def chosen_shape(
    owner: str, alpha: float | None, lam: float | None, *, minimum: float = -math.inf, maximum: float = math.inf
) -> float | None:
    """The shape from whichever of the two coordinates was given, as a float in the range; None if neither was."""
    if lam is not None:
        if alpha is not None:
            raise ValueError(f"{owner}: give at most one of `alpha` and `lam`. Received: alpha={alpha!r}, lam={lam!r}")
        if not is_number(lam):
            raise ValueError(f"{owner}: `lam` must be a number <= 1. Received: lam={lam!r}")
        alpha = shape_of_power(float(lam))
    name = "alpha" if lam is None else f"alpha of lam={lam!r}"
    if alpha is None or (isinstance(alpha, float) and math.isinf(alpha) and minimum <= alpha <= maximum):
        return alpha
    return check_float(owner, name, alpha, minimum=minimum, maximum=maximum)


def _checked(owner: str, residual: Any, alpha: Any, scale: Any) -> tuple[list[Any], Float]:
    """`([residual as a tensor, alpha, scale], the precision to compute in)`, numbers as floats."""
    if isinstance(scale, (int, float)):
        check_float(owner, "scale", scale, above=0.0)
    numbers = [float(value) if isinstance(value, (int, float)) else value for value in (alpha, scale)]
    given = [ops.convert_to_tensor(residual), *numbers]
    return given, working_float(*given)


def _in_format(value: Any, kind: Float) -> Tensor:
    # A float straight into its format: converted without one, it would be rounded to float32 on the way.
    if isinstance(value, float):
        return ops.convert_to_tensor(value, kind.name)
    return ops.cast(ops.convert_to_tensor(value), kind.name)


def _as_given(value: Tensor, given: Tensor) -> Tensor:
    """In the floating point format of the given tensor, if it has one."""
    dtype = keras.backend.standardize_dtype(given.dtype)
    return ops.cast(value, dtype) if "float" in dtype else value


def _derivatives(x: Tensor, alpha: Any, scale: Any, kind: Float, with_slope: bool = False) -> tuple[Any, ...]:
    """`(loss, derivative by x, by alpha if wanted, by scale)` from the cheaper of the exact kernels."""
    if isinstance(alpha, float) and is_moderate(alpha):
        value, influence, by_scale = fixed_kernel(x, alpha, scale, kind)
        return value, influence, None, by_scale
    return robust_kernel(x, _in_format(alpha, kind), _in_format(scale, kind), kind, with_slope)


def _loss(owner: str, residual: Any, alpha: Any, scale: Any) -> Tensor:
    """The loss, with its derivatives by those arguments that are tensors."""
    given, kind = _checked(owner, residual, alpha, scale)
    variable = [index for index, value in enumerate(given) if not isinstance(value, float)]

    def of_tensors(*tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        arguments = list(given)
        for index, tensor in zip(variable, tensors, strict=True):
            arguments[index] = tensor
        x, a, c = arguments
        value, *derivatives = _derivatives(x, a, c, kind, with_slope=1 in variable)
        return value, tuple(derivatives[index] for index in variable)

    tensors = [_in_format(given[index], kind) for index in variable]
    return _as_given(backend.custom_derivative(of_tensors)(*tensors), given[0])


def general_robust(
    residual: Tensor, alpha: Tensor | float | None = None, scale: Tensor | float = 1.0, *, lam: Any = None
) -> Tensor:
    """rho(x) = b/a ((x^2/(c^2 b) + 1)^(a/2) - 1), b = |a - 2|, continued to a = 0, 2, -inf and inf.

    Args:
        residual: x, a tensor of any shape.
        alpha: shape a in [-inf, inf]: 2 squared error, 1 pseudo-Huber, 0 Cauchy, -2 Geman-McClure, -inf Welsch. A
            float or a tensor.
        scale: c > 0, in the residual's units, a float or a tensor.
        lam: instead of `alpha`, the power-transform coordinate (`shape_of_power`).

    Returns:
        Losses >= 0, of the shape to which the arguments broadcast, correct to a few units of the last place (half
        precision is computed in float32). Differentiable in residual, alpha and scale, at least twice, with finite
        first derivatives everywhere: at a = 2, where the one by a is infinite, a large number stands for it.

    Raises:
        ValueError: both or neither of `alpha` and `lam` are given, or a float is outside of its range.

    Source: Barron, "A general and adaptive robust loss function", CVPR 2019, equation 8.

    Examples:
        >>> import numpy as np, minimand
        >>> float(minimand.losses.general_robust(np.float32(3.0), alpha=2.0))
        4.5
    """
    alpha = _shape("general_robust", alpha, lam)
    return _loss("general_robust", residual, alpha, scale)


def robust_weights(
    residual: Tensor, alpha: Tensor | float | None = None, scale: Tensor | float = 1.0, *, lam: Any = None
) -> Tensor:
    """The weight rho'(x)/x = (x^2/(c^2 b) + 1)^(a/2 - 1)/c^2 of iteratively reweighted least squares.

    Args:
        residual: x, a tensor of any shape.
        alpha: shape a in [-inf, inf].
        scale: c > 0, in the residual's units.
        lam: instead of `alpha`, the power-transform coordinate (`shape_of_power`).

    Returns:
        Positive weights, 1/c^2 at x = 0, decreasing in |x| for a < 2; without a gradient.

    Raises:
        ValueError: as `general_robust`.

    Source: Barron, CVPR 2019, equation 12 (the influence); Holland and Welsch, "Robust regression using iteratively
        reweighted least-squares", 1977.

    Examples:
        >>> import numpy as np, minimand
        >>> float(minimand.losses.robust_weights(np.float32(1.0), alpha=0.0))  # 1/(1 + x^2/2)
        0.6666666...
    """
    alpha = _shape("robust_weights", alpha, lam)
    given, kind = _checked("robust_weights", residual, alpha, scale)
    x, a, c = (v if isinstance(v, float) else ops.stop_gradient(_in_format(v, kind)) for v in given)
    at_zero = x == 0
    influence = _derivatives(x, a, c, kind)[1]
    return _as_given(ops.where(at_zero, 1 / (c * c), influence / ops.where(at_zero, 1.0, x)), given[0])


def log_partition(alpha: Tensor | float | None = None, *, lam: Any = None) -> Tensor:
    """Log Z(a), Z(a) = integral of exp(-rho(x; a, 1)) dx: what makes exp(-rho)/(c Z) a density.

    Z(0) = sqrt(2) pi, Z(2) = sqrt(2 pi), log Z(inf) = 0.7052602544

    Args:
        alpha: shape a in [0, inf], a float or a tensor.
        lam: instead of `alpha`, the power-transform coordinate (`shape_of_power`), in [-1, 1].

    Returns:
        Tensor of the shape of `alpha`, to 1e-7 in float32 and 1e-12 in float64; inf for negative entries of a tensor.
        Differentiable; at a = 2, where the derivative is infinite, a large number stands for it.

    Raises:
        ValueError: a float is negative, both or neither argument is given.

    Source: Barron, CVPR 2019, equations 15 and 16; here by Chebyshev series in powers of a and |a - 2|.

    Examples:
        >>> import minimand
        >>> round(float(minimand.losses.log_partition(2.0)), 6)  # log(2 pi)/2
        0.918939
    """
    shape = ops.convert_to_tensor(_shape("log_partition", alpha, lam, minimum=0.0))
    kind = working_float(shape)

    def of_tensor(a: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        value, slope = log_partition_kernel(a, kind)
        return value, (slope,)

    return _as_given(backend.custom_derivative(of_tensor)(ops.cast(shape, kind.name)), shape)


def robust_log_density(
    residual: Tensor, alpha: Tensor | float | None = None, scale: Tensor | float = 1.0, *, lam: Any = None
) -> Tensor:
    """Log p(x) = -rho(x; a, c) - log c - log Z(a), the density whose negative log likelihood is the robust loss.

    Args:
        residual: x, a tensor of any shape.
        alpha: shape a in [0, inf]: 2 the normal density, 0 the Cauchy density, in between heavier tails as a falls.
        scale: c > 0, in the residual's units.
        lam: instead of `alpha`, the power-transform coordinate (`shape_of_power`), in [-1, 1].

    Returns:
        Log densities, of the shape to which the arguments broadcast; they can be positive. Differentiable in all three.

    Raises:
        ValueError: as `general_robust`, and for a negative float `alpha`.

    Source: Barron, CVPR 2019, equations 15 and 16.

    Examples:
        >>> import numpy as np, minimand
        >>> round(float(minimand.losses.robust_log_density(np.float32(0.0), alpha=2.0)), 6)
        -0.918939
    """
    alpha = _shape("robust_log_density", alpha, lam, minimum=0.0)
    loss = _loss("robust_log_density", residual, alpha, scale)
    if isinstance(alpha, (int, float)):
        alpha = ops.convert_to_tensor(alpha, loss.dtype)
    log_scale = math.log(scale) if isinstance(scale, (int, float)) else ops.cast(ops.log(scale), loss.dtype)
    return -(loss + ops.cast(log_partition(alpha), loss.dtype) + log_scale)


# At least 45 % of the proposals are accepted (Z(inf)/Z(0)), so that 0.55^40 = 4e-11 of the numbers are not.
_ROUNDS = 40


def sample_robust(
    shape: tuple[int, ...],
    alpha: Tensor | float | None = None,
    scale: Tensor | float = 1.0,
    seed: int | keras.random.SeedGenerator | None = None,
    *,
    lam: Any = None,
) -> Tensor:
    """Independent draws from the density of `robust_log_density`.

    By rejection: a Cauchy draw x of scale sqrt(2) c is kept with probability exp(rho(x; 0, c) - rho(x; a, c)) <= 1.

    Args:
        shape: shape of the result; `alpha` and `scale` broadcast to it.
        alpha: shape a in [0, inf].
        scale: c > 0.
        seed: an integer, for the same draws at each call, or a `keras.random.SeedGenerator`.
        lam: instead of `alpha`, the power-transform coordinate (`shape_of_power`), in [-1, 1].

    Returns:
        Tensor of shape `shape`.

    Raises:
        ValueError: as `robust_log_density`.

    Source: Barron, CVPR 2019, supplement, "Sampling".

    Examples:
        >>> import minimand
        >>> tuple(minimand.losses.sample_robust((2, 3), alpha=1.0, scale=0.5, seed=1).shape)
        (2, 3)
    """
    alpha = _shape("sample_robust", alpha, lam, minimum=0.0)
    if isinstance(scale, (int, float)):
        check_float("sample_robust", "scale", scale, above=0.0)
    generator = seed if isinstance(seed, keras.random.SeedGenerator) else keras.random.SeedGenerator(seed)
    kind = working_float(alpha, scale)
    kept = ops.zeros(shape, "bool")
    draws = ops.zeros(shape, kind.name)
    for _ in range(_ROUNDS):
        # The quotient of two normal numbers is a Cauchy number; infinite ones are not kept.
        pair = keras.random.normal((2, *shape), dtype=kind.name, seed=generator)
        proposal = math.sqrt(2) * pair[0] / pair[1]
        log_accepted = general_robust(proposal, 0.0) - general_robust(proposal, alpha)
        level = keras.random.uniform(shape, dtype=kind.name, seed=generator)
        draws = ops.where(kept, draws, proposal)
        kept = kept | (level < ops.exp(log_accepted))
    return draws * (scale if isinstance(scale, (int, float)) else ops.cast(scale, kind.name))


# The general robust loss with a fixed shape and scale.


@keras.saving.register_keras_serializable(package="minimand")
class GeneralRobust(keras.losses.Loss):
    """Barron's general robust loss.

    rho(x) = |a-2|/a ((x^2/(c^2 |a-2|) + 1)^(a/2) - 1), x = y_pred - y_true, averaged over the last axis

    a = 2 is half the squared error of x/c, 1 pseudo-Huber, 0 Cauchy, -2 Geman-McClure, -inf Welsch: the smaller a,
    the less an outlier counts. Works in stock `compile`; it has no variables (`AdaptiveRobust` learns a and c).

    Args:
        alpha: shape a, any float, -inf and inf included; by default 1.
        scale: c > 0, in units of the targets: residuals well below it are treated as by squared error.
        lam: instead of `alpha`, the power-transform coordinate (`minimand.losses.shape_of_power`), in [-inf, 1].
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

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

    def __init__(
        self,
        alpha: float | None = None,
        scale: float = 1.0,
        *,
        lam: float | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "general_robust",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        shape = chosen_shape("GeneralRobust", alpha, lam)
        self.alpha = 1.0 if shape is None else shape
        self.scale = check_float("GeneralRobust", "scale", scale, above=0.0)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        return super().__call__(*without_masked(y_true, y_pred), sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true, y_pred = aligned("GeneralRobust", y_true, y_pred)
        return mean_over_last_axis(general_robust(y_pred - y_true, self.alpha, self.scale))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha, "scale": self.scale}


# Which positions of the predictions have parameters of their own.


class Positions:
    """One parameter for each position along some axes of the predictions, for all of them, or for each group.

    Args:
        owner: the loss, for messages.
        axis: the axis, or axes.
        shared: whether there is one parameter for all positions.
        groups: for each position along the only axis, the number of its parameter.
    """

    def __init__(self, owner: str, axis: int | Sequence[int], shared: bool, groups: Sequence[int] | None) -> None:
        self.owner, self.shared = owner, check_bool(owner, "shared", shared)
        axes = [axis] if is_number(axis) else check_several(owner, "axis", axis)
        self.axes = tuple(check_int(owner, "axis", each) for each in axes)
        if groups is not None:
            groups = [check_int(owner, "groups", group) for group in check_several(owner, "groups", groups)]
        self.groups = groups
        if self.groups is not None:
            numbers = sorted(set(self.groups))
            if shared or len(self.axes) != 1 or numbers != list(range(len(numbers))):
                raise ValueError(
                    f"{owner}: `groups` numbers the positions of one axis from 0 without a gap, and excludes `shared`. "
                    f"Received: groups={groups!r}, axis={axis!r}, shared={shared!r}"
                )

    def build(self, y_pred_shape: tuple[int | None, ...]) -> list[int]:
        """The shape of the parameters for predictions of this shape."""
        # Predictions (batch,) are one output dimension.
        shape = tuple(y_pred_shape) if len(y_pred_shape) > 1 else (*y_pred_shape, 1)
        rank = len(shape)
        if any(not -rank < axis < rank or axis % rank == 0 for axis in self.axes):
            raise ValueError(
                f"{self.owner}: `axis` must name axes after the batch's. Received: axis={self.axes!r}, "
                f"y_pred of shape {tuple(y_pred_shape)}"
            )
        axes = sorted({axis % rank for axis in self.axes})
        sizes = [1] if self.shared else [shape[axis] for axis in axes]
        if None in sizes:
            raise ValueError(
                f"{self.owner}: an axis with parameters of its own must have a known size (the last axis, if `axis` "
                f"does not say otherwise). Received: axis={self.axes!r}, y_pred of shape {tuple(y_pred_shape)}. "
                "With `shared=True` no size needs to be known."
            )
        if self.groups is not None and len(self.groups) != sizes[0]:
            raise ValueError(
                f"{self.owner}: `groups` must have a number for each of the {sizes[0]} positions. "
                f"Received: {len(self.groups)} numbers"
            )
        self.sizes = [int(size) for size in sizes if size is not None]
        # 1 where an axis has no parameters of its own.
        self._broadcast = [shape[axis] if axis in axes and not self.shared else 1 for axis in range(1, rank)]
        return self.sizes if self.groups is None else [len(set(self.groups))]

    def each(self, parameter: Tensor) -> Tensor:
        """The parameter of each position along the axes."""
        return parameter if self.groups is None else ops.take(parameter, ops.convert_to_tensor(self.groups), axis=0)

    def spread(self, values: Tensor) -> Tensor:
        """What is given at each position, in a shape that broadcasts to the predictions'."""
        return ops.reshape(values, self._broadcast)

    def rows(self, values: Tensor) -> Tensor:
        """Values of the predictions' shape as (all values of a position, position)."""
        kept = [axis for axis, size in enumerate(self._broadcast, start=1) if size != 1]
        others = [axis for axis in range(len(values.shape)) if axis not in kept]
        return ops.reshape(ops.transpose(values, (*others, *kept)), (-1, math.prod(self.sizes)))

    def of_group(self, values: Tensor) -> Tensor:
        """The mean over the positions that share a parameter, of one value for each position."""
        if self.groups is None:
            return ops.reshape(values, self.sizes)
        members = ops.one_hot(self.groups, len(set(self.groups)), dtype=values.dtype)
        return ops.sum(members * values[:, None], axis=0) / ops.sum(members, axis=0)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"axis": list(self.axes), "shared": self.shared, "groups": self.groups}


# What the likelihoods of residuals with a learned shape and scale share.

# The start of `init="robust"`, chosen by `benchmarks/contaminated_regression.py`. The first scale is this fraction of
# the first residuals' spread: small enough that wrong targets do not count before the good ones are fitted.
_START_FRACTION = 0.2
# The spread is told from the smallest quarter of the residuals, good ones even where two fifths of the targets are
# wrong: |x| of a standard normal variable is below 0.3186 with probability 1/4.
_SPREAD_LEVEL, _NORMAL_QUARTILE = 0.25, 0.31863936396437514
_LEAST_RESIDUALS = 8
# Steps after which the shape and scale are half as free to move as in the end.
_RELEASE_STEPS = 500


class ResidualLikelihood(TrainableLoss):
    """The negative log likelihood of residuals by a density of a location-scale family.

    -log p(x) = loss(x; shape, c) + log c + log Z(shape), averaged over the last axis

    A subclass names its shape parameter, bounds it by `shape_of_logit`, and has `residual_loss` and `log_normaliser`.
    The scale is c = c_min + c_0 softplus(v)/log 2. With `init="robust"` c_0 is, unless `scale_init` gives the first
    scale, a fifth of the spread of the residuals in the first batch of training, and v and the trained number of the
    shape are multiplied by t/(t + 500) at step t.
    """

    shape_name: str

    def __init__(
        self,
        *,
        init: str,
        fixed_shape: float | None,
        first_shape_logit: float,
        scale: float | None,
        scale_init: float | None,
        scale_min: float,
        axis: int | Sequence[int],
        shared: bool,
        groups: Sequence[int] | None,
        reduction: str | None,
        name: str,
        dtype: Any,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        owner = type(self).__name__
        self.fixed_shape, self.first_shape_logit = fixed_shape, first_shape_logit
        self.fixed_scale = None if scale is None else check_float(owner, "scale", scale, above=0.0)
        self.scale_min = check_float(owner, "scale_min", scale_min, above=0.0)
        self.init = check_choice(owner, "init", init, ("robust", "reference"))
        if scale_init is None and init == "reference":
            scale_init = 1.0
        if scale_init is not None:
            scale_init = check_float(owner, "scale_init", scale_init, above=self.scale_min)
        self.scale_init = scale_init
        self.positions = Positions(owner, axis, shared, groups)

    def shape_of_logit(self, logit: Tensor) -> Tensor:
        """The shape parameter at a logit of its position between its bounds."""
        raise NotImplementedError

    def residual_loss(self, residual: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
        """The loss of residuals, entry by entry; shape and scale broadcast."""
        raise NotImplementedError

    def log_normaliser(self, shape: Tensor) -> Tensor:
        """Log Z, for scale 1."""
        raise NotImplementedError

    def represented(self, residual: Tensor) -> Tensor:
        """The residuals whose likelihood is meant."""
        return residual

    def build(self, y_true_shape: tuple[int | None, ...], y_pred_shape: tuple[int | None, ...]) -> None:
        count = self.positions.build(y_pred_shape)
        if self.fixed_shape is None:
            self.latent_shape = self.add_weight(count, name=f"latent_{self.shape_name}", logged=False)
            self._shape_log = self.add_log(self.shape_name)
        if self.fixed_scale is None:
            # softplus^-1(log 2) is 0
            self.latent_scale = self.add_weight(count, name="latent_scale", logged=False)
            if self.scale_init is None:
                # 0: not measured yet.
                self.spread = self.add_weight(count, name="spread", trainable=False, aggregation="mean")
            self._scale_log = self.add_log("scale")
        if self.init == "robust":
            self.steps = self.add_weight(name="steps", trainable=False, aggregation="only_first_replica")

    def _parameters(self, spread: Any) -> tuple[Tensor, Tensor]:
        """Shape and scale at each position, given the spread of the first residuals."""
        shape: Tensor | float | None = self.fixed_shape
        scale: Tensor | float | None = self.fixed_scale
        if shape is None:
            shape = self.shape_of_logit(self.first_shape_logit + self._released(self.latent_shape))
        if scale is None:
            first = _START_FRACTION * spread if self.scale_init is None else self.scale_init - self.scale_min
            growth = ops.softplus(self._released(self.latent_scale)) / math.log(2)
            scale = self.scale_min + first * growth
        return self._at_positions(shape), self._at_positions(scale)

    def _released(self, latent: keras.Variable) -> Tensor:
        value = ops.cast(latent, self.dtype)
        if self.init == "reference":
            return value
        steps = ops.cast(self.steps, self.dtype)
        return value * (steps / (steps + _RELEASE_STEPS))

    @property
    def _measures_spread(self) -> bool:
        return self.fixed_scale is None and self.scale_init is None

    def _measured_spread(self, residual: Tensor) -> Tensor:
        """That of the given residuals, from the first batch of training on as it was there."""
        residual = ops.stop_gradient(residual)
        known = self.spread.value

        def measured() -> Tensor:
            importance = self.importance(residual[..., 0])[..., None]
            rows = self.positions.rows(ops.abs(residual))
            counts = self.positions.rows(ops.broadcast_to(importance, ops.shape(residual)))
            spread = self.positions.of_group(weighted_quantile(rows, counts, _SPREAD_LEVEL) / _NORMAL_QUARTILE)
            # Where too few residuals tell it, or all are 0, what the others have; where all of them are, 1.
            told = ops.logical_and(spread > 0, ops.shape(rows)[0] >= _LEAST_RESIDUALS)
            spread = ops.where(told, spread, ops.mean(spread))
            spread = ops.where(spread > 0, spread, 1.0)
            # Still unknown after a batch of which nothing counts.
            return ops.cast(ops.where(ops.any(importance > 0), spread, 0.0), known.dtype)

        spread = cond(ops.any(known > 0), lambda: known, measured)
        if self.training:
            self.spread.assign(spread)
        return ops.cast(spread, self.dtype)

    def _at_positions(self, value: Tensor | float) -> Tensor:
        if isinstance(value, float):
            return ops.full(self.positions.sizes, value, dtype=self.dtype)
        return self.positions.each(value)

    def _read(self, index: int) -> Any:
        if not self.built or (self._measures_spread and not ops.convert_to_numpy(self.spread).any()):
            raise ValueError(
                f"{type(self).__name__}: {self.shape_name} and scale exist after the first batch of `fit`; with "
                "`scale_init`, after `build_once(y_true_shape, y_pred_shape)`."
            )
        spread = ops.cast(self.spread, self.dtype) if self._measures_spread else None
        return ops.convert_to_numpy(ops.stop_gradient(self._parameters(spread)[index]))

    @property
    def scale(self) -> Any:
        """The scale at each position of the axes, a NumPy array."""
        return self._read(1)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true, y_pred = aligned(type(self).__name__, y_true, y_pred)
        # Half precision overflows at a residual of 256 scales.
        dtype = working_float(y_pred).name
        residual = self.represented(ops.cast(y_pred, dtype) - ops.cast(y_true, dtype))
        spread = self._measured_spread(residual) if self._measures_spread else None
        shape, scale = (ops.cast(value, dtype) for value in self._parameters(spread))
        if self.fixed_shape is None:
            self._shape_log.update_state(ops.mean(shape))
        if self.fixed_scale is None:
            self._scale_log.update_state(ops.mean(scale))
        if self.init == "robust" and self.training:
            self.steps.assign_add(1)
        constant = self.positions.spread(ops.log(scale) + self.log_normaliser(shape))
        loss = self.residual_loss(residual, self.positions.spread(shape), self.positions.spread(scale))
        return mean_over_last_axis(loss) + mean_over_last_axis(constant)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "init": self.init,
            self.shape_name: self.fixed_shape,
            "scale": self.fixed_scale,
            "scale_init": self.scale_init,
            "scale_min": self.scale_min,
            **self.positions.get_config(),
        }


def logit_of(owner: str, name: str, value: float, low: float, high: float, coordinate: Any) -> float:
    """The logit of where `value` lies between the bounds, in the given coordinate; the sigmoid's argument for it."""
    if not low < value < high:
        raise ValueError(
            f"{owner}: `{name}_range` must increase and `{name}_init` lie strictly inside it. "
            f"Received: {name}_range=({low!r}, {high!r}), {name}_init={value!r}"
        )
    position = (coordinate(value) - coordinate(low)) / (coordinate(high) - coordinate(low))
    return math.log(position) - math.log1p(-position)


# The robust loss that learns its shape and scale.


@keras.saving.register_keras_serializable(package="minimand")
class AdaptiveRobust(ResidualLikelihood):
    """The negative log likelihood of Barron's density, with a learned shape and scale per output dimension.

    -log p(x) = rho(x; a, c) + log c + log Z(a), x = y_pred - y_true, averaged over the last axis

    a = lo + (hi - lo) sigmoid(u) and c = c_min + c_0 softplus(v)/log 2 with u and v trained, so that the
    loss finds out how heavy the residuals' tails are. A likelihood can be negative: compare it with itself only.
    Use `minimand.Trainer`, which trains and saves the variables; stock `compile` is refused. The logs of `fit` have
    the mean shape and scale as `adaptive_robust_alpha` and `adaptive_robust_scale`, after the loss's name.

    Args:
        alpha: a float in [0, inf] fixes the shape; by default it is learned.
        lam: instead of `alpha`, the power-transform coordinate (`shape_of_power`), in [-1, 1].
        scale: a positive float, in units of the targets, fixes the scale; by default it is learned.
        alpha_range: (lo, hi), 0 <= lo < hi, open bounds of a learned shape. Beyond 2 tails are lighter than normal
            ones, and the loss costs three times as much.
        init: `"robust"`: the shape starts low, and the scale at a fifth of the spread of the residuals in the first
            batch of training (of all positions', if that has fewer than 8 for each), and they are released little by
            little (u and v times t/(t + 500) at step t), so that wrong targets do not count before the good ones are
            fitted; `"reference"`: at the middle of `alpha_range` and at 1, as in the paper, which wants targets of
            about that spread.
        alpha_init: first shape, strictly inside `alpha_range`, whatever `init` says.
        scale_init: first scale, in units of the targets, greater than `scale_min`, whatever `init` says.
        scale_min: lower bound of a learned scale, positive. Where most residuals can be exactly 0, the likelihood has
            no other bound, and training may end there: give 0.1 for one-hot targets.
        coordinate: `"alpha"`, or `"lambda"` to have lambda, rather than the shape, depend on u by the sigmoid. Up to 2
            they are the same, as lambda = a/2 - 1 there; beyond, only lambda can have hi = inf.
        axis: the axis, or axes, of the predictions along which each position has its own shape and scale; 0, the
            batch's, is none.
        shared: whether one shape and scale serves all positions instead.
        groups: for each position along `axis` (a single one) the number, from 0, of the shape and scale it shares.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss, prefix of its variables' paths.
        dtype: dtype of the computation.

    Returns:
        As a call: for targets and predictions (batch, ..., d), the reduced loss; `.alpha` and `.scale` are NumPy
        arrays of the sizes of the axes.

    Raises:
        TypeError: `shared` is not a boolean.
        ValueError: an argument is outside of its range, an axis of the predictions that is wanted has no known size,
            shapes of targets and predictions differ.

    Source: Barron, "A general and adaptive robust loss function", CVPR 2019, equations 15 and 16, section 3.1 (the
    parametrisation); "A Power Transform", arXiv 2502.10647 (2025) (lambda).

    Examples:
        >>> import keras, numpy as np, minimand
        >>> loss = minimand.losses.AdaptiveRobust()
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", loss)
        >>> history = trainer.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0)
        >>> loss.alpha.shape, loss.scale.shape
        ((1,), (1,))
    """

    shape_name = "alpha"

    def __init__(
        self,
        *,
        alpha: float | None = None,
        lam: float | None = None,
        scale: float | None = None,
        alpha_range: tuple[float, float] = (0.001, 1.999),
        init: str = "robust",
        alpha_init: float | None = None,
        scale_init: float | None = None,
        scale_min: float = 1e-5,
        coordinate: str = "alpha",
        axis: int | Sequence[int] = -1,
        shared: bool = False,
        groups: Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "adaptive_robust",
        dtype: Any = None,
    ) -> None:
        owner = "AdaptiveRobust"
        low, high = check_several(owner, "alpha_range", alpha_range, 2)
        check_float(owner, "alpha_range", low, minimum=0.0)
        if not (coordinate == "lambda" and high == math.inf):
            check_float(owner, "alpha_range", high, minimum=0.0)
        self.alpha_range = (low, high)
        self.alpha_init = None if alpha_init is None else check_float(owner, "alpha_init", alpha_init)
        # Low enough to ignore outliers, or in the middle.
        default = low + (high - low) * (0.5 if init == "reference" else 0.005)
        first_shape = default if self.alpha_init is None else self.alpha_init
        self.coordinate = check_choice(owner, "coordinate", coordinate, tuple(_COORDINATES))
        self._coordinate, self._inverse = _COORDINATES[coordinate]
        super().__init__(
            init=init,
            fixed_shape=chosen_shape(owner, alpha, lam, minimum=0.0),
            first_shape_logit=logit_of(owner, "alpha", first_shape, low, high, self._coordinate),
            scale=scale,
            scale_init=scale_init,
            scale_min=scale_min,
            axis=axis,
            shared=shared,
            groups=groups,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )

    def shape_of_logit(self, logit: Tensor) -> Tensor:
        low, high = (self._coordinate(bound) for bound in self.alpha_range)
        return self._inverse(low + (high - low) * ops.sigmoid(logit))

    def residual_loss(self, residual: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
        greatest = self.alpha_range[1] if self.fixed_shape is None else self.fixed_shape
        return backend.custom_derivative(bounded_kernel if greatest <= 2 else _any_shape)(residual, shape, scale)

    def log_normaliser(self, shape: Tensor) -> Tensor:
        return log_partition(shape)

    @property
    def alpha(self) -> Any:
        """The shape at each position of the axes, a NumPy array."""
        return self._read(0)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha_range": list(self.alpha_range),
            "alpha_init": self.alpha_init,
            "coordinate": self.coordinate,
        }


def _any_shape(residual: Tensor, shape: Tensor, scale: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    value, *derivatives = robust_kernel(residual, shape, scale, working_float(residual), with_slope=True)
    return value, tuple(derivatives)


def _same(value: Any) -> Any:
    return value


def _power_of_shape(alpha: float) -> float:
    return alpha / 2 - 1 if alpha <= 2 else 1 - 2 / alpha


# `(coordinate of a shape, its inverse)`.
_COORDINATES = {"alpha": (_same, _same), "lambda": (_power_of_shape, shape_of_power)}


# Student's t likelihood with learned degrees of freedom and scale.


@keras.saving.register_keras_serializable(package="minimand")
class AdaptiveStudentT(ResidualLikelihood):
    """The negative log likelihood of Student's t, with learned degrees of freedom and scale per output dimension.

    -log p(x) = (n + 1)/2 log(1 + x^2/(c^2 n)) + log c + log(pi n)/2 + log Gamma(n/2) - log Gamma((n + 1)/2)

    x = y_pred - y_true, averaged over the last axis; the log of n moves between those of `df_range` by a sigmoid, c is
    c_min + c_0 softplus(v)/log 2. n = 1 is Cauchy, n -> inf normal. A likelihood can be negative. Use
    `minimand.Trainer`; the logs of `fit` have the means `adaptive_student_t_df` and `adaptive_student_t_scale`.

    Args:
        df: a positive float fixes the degrees of freedom n; by default they are learned.
        scale: a positive float, in units of the targets, fixes the scale c; by default it is learned.
        df_range: (lo, hi), 0 < lo < hi, open bounds of learned degrees of freedom.
        init: `"robust"`: the scale starts at a fifth of the spread of the residuals in the first batch of training, and
            the trained numbers are multiplied by t/(t + 500) at step t; `"reference"`: it starts at 1.
        df_init: first degrees of freedom, strictly inside `df_range`.
        scale_init: first scale, in units of the targets, greater than `scale_min`, whatever `init` says.
        scale_min: lower bound of a learned scale, positive.
        axis: the axis, or axes, of the predictions along which each position has its own parameters.
        shared: whether one n and c serve all positions instead.
        groups: for each position along `axis` (a single one) the number, from 0, of the parameters it shares.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss, prefix of its variables' paths.
        dtype: dtype of the computation.

    Returns:
        As a call: for targets and predictions (batch, ..., d), the reduced loss; `.df` and `.scale` are NumPy arrays
        of the sizes of the axes.

    Raises:
        TypeError: `shared` is not a boolean.
        ValueError: an argument is outside of its range, an axis with parameters has no known size, shapes of targets
            and predictions differ.

    Source: Lange, Little and Taylor, "Robust statistical modeling using the t distribution", JASA 1989; as the
        alternative to his own in Barron, CVPR 2019, supplement.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> loss = minimand.losses.AdaptiveStudentT()
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", loss)
        >>> history = trainer.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0)
        >>> loss.df.shape, loss.scale.shape
        ((1,), (1,))
    """

    shape_name = "df"

    def __init__(
        self,
        *,
        df: float | None = None,
        scale: float | None = None,
        df_range: tuple[float, float] = (0.1, 1e4),
        init: str = "robust",
        df_init: float = 1.0,
        scale_init: float | None = None,
        scale_min: float = 1e-5,
        axis: int | Sequence[int] = -1,
        shared: bool = False,
        groups: Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "adaptive_student_t",
        dtype: Any = None,
    ) -> None:
        owner = "AdaptiveStudentT"
        bounds = check_several(owner, "df_range", df_range, 2)
        low, high = (check_float(owner, "df_range", bound, above=0.0) for bound in bounds)
        self.df_range, self.df_init = (low, high), check_float(owner, "df_init", df_init, above=0.0)
        super().__init__(
            init=init,
            fixed_shape=None if df is None else check_float(owner, "df", df, above=0.0),
            first_shape_logit=logit_of(owner, "df", self.df_init, low, high, math.log),
            scale=scale,
            scale_init=scale_init,
            scale_min=scale_min,
            axis=axis,
            shared=shared,
            groups=groups,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )

    def shape_of_logit(self, logit: Tensor) -> Tensor:
        low, high = (math.log(bound) for bound in self.df_range)
        return ops.exp(low + (high - low) * ops.sigmoid(logit))

    def residual_loss(self, residual: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
        # Up to here squares are finite.
        scaled = ops.clip(residual / scale, -(2.0**60), 2.0**60)
        return (shape + 1) / 2 * ops.log1p(scaled * scaled / shape)

    def log_normaliser(self, shape: Tensor) -> Tensor:
        return ops.log(math.pi * shape) / 2 + _log_gamma_ratio(shape / 2)

    @property
    def df(self) -> Any:
        """The degrees of freedom at each position of the axes, a NumPy array."""
        return self._read(0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "df_range": list(self.df_range), "df_init": self.df_init}


def _log_gamma_ratio(x: Tensor) -> Tensor:
    """Log Gamma(x) - log Gamma(x + 1/2), x > 0: by its recurrence up to x + 8, from there by Stirling's series."""
    steps = 8
    shifted = x + steps
    w = 1 / (shifted * shifted)
    series = 1 / 8 - w * (1 / 192 - w * (1 / 640 - w * (17 / 14336 - w * (31 / 18432))))
    return sum((ops.log1p(0.5 / (x + k)) for k in range(steps)), series / shifted - ops.log(shifted) / 2)
