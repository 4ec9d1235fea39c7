"""Proper scores of probabilistic predictions, by example; a smaller score is better."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from minimand._ops import compute_dtype, one_hot_targets
from minimand.backend import Tensor

# Rounding, also of half precision, may put a probability this far outside of [0, 1].
_ROUNDING = 1e-3


def gaussian_nll(y_true: Any, mean: Any, stddev: Any) -> Tensor:
    """Return the negative log likelihood of a normal prediction, in nats.

    Use gaussian_nll to compare models that predict a mean and a standard deviation; it punishes overconfidence hard.

    log(2 pi s^2) / 2 + (y - m)^2 / (2 s^2)

    Args:
        y_true: targets, of any shape.
        mean: m; broadcasts with the targets.
        stddev: s > 0, in the targets' unit; broadcasts with the targets.

    Returns:
        A tensor of the broadcast shape.

    Source: Good, "Rational decisions", JRSS B 14 (1952): the logarithmic score.

    Examples:
        >>> import minimand
        >>> round(float(minimand.metrics.gaussian_nll(0.0, 0.0, 1.0)), 4)
        0.9189
    """
    y_true, mean, stddev = as_floats(y_true, mean, stddev)
    return 0.5 * math.log(2 * math.pi) + ops.log(stddev) + 0.5 * ops.square((y_true - mean) / stddev)


def sample_nll(y_true: Any, samples: Any, stddev: Any) -> Tensor:
    """Return the negative log likelihood of an equal mixture of normal predictions, in nats.

    Use sample_nll for samples of predicted functions, as from an ensemble or from `Trainer.predict_samples`.

    -log( 1/S sum_k prod_j N(y_j; f_kj, s_j^2) )

    Args:
        y_true: targets (rows, outputs).
        samples: predicted functions (samples, rows, outputs), as `Trainer.predict_samples` returns them.
        stddev: standard deviation s > 0 of the targets around a function; broadcasts with the samples.

    Returns:
        A tensor (rows,).

    Source: Gal and Ghahramani, "Dropout as a Bayesian approximation", ICML 2016, equation 8.

    Examples:
        >>> import minimand
        >>> minimand.metrics.sample_nll([[0.0]], [[[1.0]], [[-1.0]]], 1.0).shape == (1,)
        True
    """
    y_true, samples, stddev = as_floats(y_true, samples, stddev)
    joint = ops.sum(gaussian_nll(y_true, samples, stddev), axis=-1)
    return math.log(joint.shape[0]) - ops.logsumexp(-joint, axis=0)


def gaussian_crps(y_true: Any, mean: Any, stddev: Any) -> Tensor:
    """Return the continuous ranked probability score of a normal prediction, in the targets' unit.

    Use gaussian_crps in place of `gaussian_nll` when outliers should count by their distance and not by its square.

    s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), z = (y - m) / s

    Args:
        y_true: targets, of any shape.
        mean: m; broadcasts with the targets.
        stddev: s > 0, in the targets' unit; broadcasts with the targets.

    Returns:
        A tensor of the broadcast shape; NaN where s is not positive.

    Source: Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA 102 (2007),
    section 4.2.

    Examples:
        >>> import minimand
        >>> round(float(minimand.metrics.gaussian_crps(0.0, 0.0, 1.0)), 4)  # (sqrt(2) - 1) / sqrt(pi)
        0.2337
    """
    y_true, mean, stddev = as_floats(y_true, mean, stddev)
    stddev = where_positive(stddev)
    z = (y_true - mean) / stddev
    density = ops.exp(-0.5 * ops.square(z)) / math.sqrt(2 * math.pi)
    return stddev * (z * ops.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def sample_crps(y_true: Any, samples: Any, *, fair: bool = True) -> Tensor:
    """Return the continuous ranked probability score of samples, in the targets' unit.

    Use sample_crps for predictions that are samples of the targets, of any distribution.

    1/S sum_k |x_k - y| - c sum_(k < l) |x_k - x_l|, c = 1 / (S (S - 1)) if fair, else 1 / S^2

    Args:
        y_true: targets, of any shape.
        samples: draws of the targets (samples, ...).
        fair: whether the score is an unbiased estimate for the distribution that the samples are drawn from; if False
            the score is that of the samples' empirical distribution.

    Returns:
        A tensor of the targets' shape.

    Raises:
        ValueError: fewer than two samples with `fair=True`.

    Source: Gneiting and Raftery, JASA 102 (2007), equation 21; fair: Ferro, "Fair scores for ensemble forecasts",
    Quarterly Journal of the Royal Meteorological Society 140 (2014).

    Examples:
        >>> import minimand
        >>> float(minimand.metrics.sample_crps(0.0, [1.0, -1.0], fair=False))
        0.5
    """
    y_true, samples = as_floats(y_true, samples)
    count = samples.shape[0]
    if fair and count < 2:
        raise ValueError(
            f"sample_crps: `samples` must hold at least 2. Received: {count}. Draw more, or use fair=False."
        )
    error = ops.sum(ops.abs(samples - y_true), axis=0) / count
    # The sum of distances over pairs of sorted numbers is sum_k (2 k - S + 1) x_(k), k from 0.
    coefficients = 2.0 * ops.arange(count, dtype=samples.dtype) - (count - 1)
    distances = ops.tensordot(coefficients, ops.sort(samples, axis=0), axes=1)
    return error - distances / (count * (count - 1) if fair else count * count)


def brier(y_true: Any, probabilities: Any) -> Tensor:
    """Return the Brier score of class probabilities, from 0 to 2.

    Use brier to compare predicted probabilities by a score that is finite even where a true class got probability 0.

    sum_c (p_c - 1[c = y])^2

    Args:
        y_true: classes (...) as integers, or one-hot (..., classes).
        probabilities: (..., classes).

    Returns:
        A tensor (...); NaN for a target that is not one of the classes, and for numbers that are not probabilities.

    Source: Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78 (1950).

    Examples:
        >>> import minimand
        >>> round(float(minimand.metrics.brier([1], [[0.25, 0.75]])[0]), 4)
        0.125
    """
    members, probabilities = class_probabilities("brier", y_true, probabilities)
    return ops.sum(ops.square(probabilities - members), axis=-1)


def class_probabilities(owner: str, y_true: Any, probabilities: Any) -> tuple[Tensor, Tensor]:
    """Both as (..., classes); NaN for a target that is not a class, and for a number that is not a probability."""
    (probabilities,) = as_floats(probabilities)
    *shape, count = probabilities.shape
    members = one_hot_targets(owner, ops.convert_to_tensor(y_true), tuple(shape), count, probabilities.dtype)
    possible = (probabilities >= -_ROUNDING) & (probabilities <= 1.0 + _ROUNDING)
    return members, ops.where(possible, probabilities, np.nan)


def where_positive(stddev: Tensor) -> Tensor:
    """The standard deviation, or NaN if it is not positive: a negative one would get too good a score."""
    return ops.where(stddev > 0, stddev, np.nan)


def as_floats(*values: Any) -> list[Tensor]:
    """The values as tensors of float32, or of float64 if one of them is."""
    tensors = [ops.convert_to_tensor(value) for value in values]
    dtype = compute_dtype(*tensors)
    return [ops.cast(t, dtype) for t in tensors]
