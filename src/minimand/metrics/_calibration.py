"""Calibration of probabilistic predictions: calibration errors, intervals, probability integral transforms."""

from __future__ import annotations

import itertools
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand import backend
from minimand._validation import check_int
from minimand.backend import Tensor
from minimand.losses._base import importance_of
from minimand.metrics._scores import as_floats, class_probabilities, where_positive


def expected_calibration_error(y_true: Any, probabilities: Any, *, bins: int = 15) -> Tensor:
    """Return the mean distance of accuracy from confidence, over bins of equal width of the top class's probability.

    Use expected_calibration_error to check whether predicted probabilities can be taken at face value.

    sum_b n_b/n |accuracy_b - confidence_b|

    Args:
        y_true: classes (rows, ...) as integers, or one-hot (rows, ..., classes).
        probabilities: (rows, ..., classes); each position counts as a row does.
        bins: number of bins >= 1.

    Returns:
        A scalar in [0, 1]; NaN if a target is not one of the classes, or a number is not a probability.

    Raises:
        ValueError: `bins` is less than 1, or there are no rows.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3.

    Examples:
        >>> import minimand
        >>> float(minimand.metrics.expected_calibration_error([0, 1], [[0.75, 0.25], [0.75, 0.25]]))
        0.25
    """
    check_int("expected_calibration_error", "bins", bins, minimum=1)
    count, gaps = bin_gaps(y_true, probabilities, bins)
    return ops.sum(ops.abs(gaps)) / count


def bin_gaps(y_true: Any, probabilities: Any, bins: int, *weights: Any) -> tuple[Tensor, Tensor]:
    """The weighted number of positions, and for each bin the weighted sum of [correct] - confidence.

    The weight of a position is the product of `weights`, each None or of the shape of the positions' first axes.
    """
    confidence, correct = _confidence(y_true, probabilities)
    total = importance_of(confidence, weights)
    index = ops.minimum(ops.cast(confidence * bins, "int32"), bins - 1)
    member = ops.one_hot(index, bins, dtype=confidence.dtype)
    gaps = ops.expand_dims(total * (correct - confidence), -1)
    return ops.sum(total), ops.sum(member * gaps, axis=tuple(range(len(confidence.shape))))


def adaptive_calibration_error(y_true: Any, probabilities: Any, *, bins: int = 15) -> Tensor:
    """Return the mean distance of accuracy from confidence, over bins of equally many examples.

    Use adaptive_calibration_error in place of `expected_calibration_error` when most confidences are nearly equal, so
    that most bins of equal width are empty.

    Args:
        y_true: classes (rows, ...) as integers, or one-hot (rows, ..., classes).
        probabilities: (rows, ..., classes); each position counts as a row does.
        bins: number of bins >= 1; at most one for each position is used.

    Returns:
        A scalar in [0, 1]; NaN if a target is not one of the classes, or a number is not a probability.

    Raises:
        ValueError: `bins` is less than 1, or there are no rows.

    Source: Nguyen and O'Connor, "Posterior calibration and exploratory analysis for natural language processing
    models", EMNLP 2015, section 3.

    Examples:
        >>> import minimand
        >>> float(minimand.metrics.adaptive_calibration_error([0, 1], [[0.75, 0.25], [0.75, 0.25]], bins=1))
        0.25
    """
    check_int("adaptive_calibration_error", "bins", bins, minimum=1)
    confidence, correct = (ops.reshape(value, (-1,)) for value in _confidence(y_true, probabilities))
    rows = confidence.shape[0]
    bins = min(bins, rows)
    gaps = ops.take(correct - confidence, ops.argsort(confidence))
    bounds = itertools.pairwise(k * rows // bins for k in range(bins + 1))
    parts = [ops.abs(ops.sum(gaps[start:end])) for start, end in bounds]
    return ops.sum(ops.stack(parts)) / rows


def interval_coverage(y_true: Any, low: Any, high: Any) -> Tensor:
    """Return 1 for each target that lies in its interval, and 0 for others.

    Use interval_coverage to compare the mean with the nominal probability of the intervals.

    1[low <= y <= high]

    Args:
        y_true: targets, of any shape.
        low: lower ends; broadcasts with the targets.
        high: upper ends; broadcasts with the targets.

    Returns:
        A tensor of zeros and ones, of the broadcast shape; NaN where a number is NaN.

    Source: Khosravi et al., "Comprehensive review of neural network-based prediction intervals", IEEE Transactions on
    Neural Networks 22 (2011), equation 1.

    Examples:
        >>> import minimand
        >>> minimand.metrics.interval_coverage([1.0, 5.0], [0.0, 0.0], [2.0, 2.0]).shape == (2,)
        True
    """
    y_true, low, high = as_floats(y_true, low, high)
    # Comparisons with NaN are false, so NaN would count as outside.
    ordered = ops.logical_not(ops.isnan(y_true) | ops.isnan(low) | ops.isnan(high))
    return ops.where(ordered, ops.cast((y_true >= low) & (y_true <= high), y_true.dtype), np.nan)


def interval_width(low: Any, high: Any) -> Tensor:
    """Return the width of each interval, in the targets' unit.

    Use interval_width to compare intervals of equal coverage, of which the narrower are better.

    high - low

    Args:
        low: lower ends, of any shape.
        high: upper ends.

    Returns:
        A tensor of the broadcast shape.

    Source: Khosravi et al., IEEE Transactions on Neural Networks 22 (2011), equation 3, without its normalisation.

    Examples:
        >>> import minimand
        >>> float(minimand.metrics.interval_width(0.5, 2.0))
        1.5
    """
    low, high = as_floats(low, high)
    return high - low


def gaussian_pit(y_true: Any, mean: Any, stddev: Any) -> Tensor:
    """Return the probability integral transform of normal predictions.

    Use gaussian_pit for a histogram, which is uniform on [0, 1] if the predictions are calibrated.

    Phi((y - m) / s)

    Args:
        y_true: targets, of any shape.
        mean: m; broadcasts with the targets.
        stddev: s > 0; broadcasts with the targets.

    Returns:
        A tensor of the broadcast shape, in [0, 1]; NaN where s is not positive.

    Source: Dawid, "Statistical theory: the prequential approach", JRSS A 147 (1984).

    Examples:
        >>> import minimand
        >>> float(minimand.metrics.gaussian_pit(3.0, 3.0, 2.0))
        0.5
    """
    y_true, mean, stddev = as_floats(y_true, mean, stddev)
    return 0.5 * backend.erfc(-(y_true - mean) / (where_positive(stddev) * math.sqrt(2)))


def sample_pit(y_true: Any, samples: Any, *, seed: int | None = None) -> Tensor:
    """Return the probability integral transform of predictions that are samples.

    Use sample_pit for a histogram, which is uniform on [0, 1] if targets and samples have the same distribution.

    (r + u) / (S + 1), with r the target's rank among the S samples, u uniform; equal values in random order

    Args:
        y_true: targets, of any shape.
        samples: draws of the targets (samples, ...).
        seed: integer of the random numbers, or None.

    Returns:
        A tensor of the targets' shape, in [0, 1).

    Source: Gneiting, Balabdaoui and Raftery, "Probabilistic forecasts, calibration and sharpness", JRSS B 69 (2007),
    section 3.1, and Hamill, "Interpretation of rank histograms", Monthly Weather Review 129 (2001).

    Examples:
        >>> import minimand
        >>> bool(minimand.metrics.sample_pit(5.0, [1.0, 2.0, 3.0]) >= 0.75)
        True
    """
    y_true, samples = as_floats(y_true, samples)
    below = ops.sum(ops.cast(samples < y_true, samples.dtype), axis=0)
    equal = ops.sum(ops.cast(samples == y_true, samples.dtype), axis=0)
    uniform = keras.random.uniform(ops.shape(below), dtype=samples.dtype, seed=seed)
    ordered = ops.logical_not(ops.isnan(y_true) | ops.any(ops.isnan(samples), axis=0))
    return ops.where(ordered, (below + (equal + 1.0) * uniform) / (samples.shape[0] + 1.0), np.nan)


def _confidence(y_true: Any, probabilities: Any) -> tuple[Tensor, Tensor]:
    """The top class's probability, and 1 where the top class is the true one."""
    members, probabilities = class_probabilities("A calibration error", y_true, probabilities)
    if probabilities.shape[0] == 0:
        raise ValueError("A calibration error: `probabilities` must have at least one row. Received: none")
    top = ops.argmax(probabilities, axis=-1)
    correct = ops.cast(top == ops.argmax(members, axis=-1), probabilities.dtype)
    return ops.max(probabilities, axis=-1), ops.where(ops.isnan(members[..., 0]), np.nan, correct)
