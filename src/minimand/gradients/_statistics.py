"""Statistics that follow from the moments of a gradient: noise scale, batch size, signal to noise, evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minimand._validation import check_float, check_int
from minimand.gradients._moments import GradientMoments

# Formulas for NumPy arrays and, in a training step, for tensors: `xp` is `numpy` or `keras.ops`.


def ratio(numerator: Any, denominator: Any, xp: Any) -> Any:
    """The quotient; infinite if the denominator, an estimate of a square, is not positive."""
    none = denominator <= 0
    return xp.where(none, math.inf, numerator / xp.where(none, 1.0, denominator))


def evidence_sums(mean: Sequence[Any], variance: Sequence[Any], xp: Any) -> tuple[Any, Any]:
    """`(sum of (mean g_j)^2 / V_j, number of weights)` over the weights whose gradients vary."""
    total, count = 0.0, 0.0
    for m, v in zip(mean, variance, strict=True):
        varies = v != 0
        total = total + xp.sum(xp.where(varies, m * m / xp.where(varies, v, 1.0), 0.0))
        count = count + xp.sum(xp.where(varies, 1.0, 0.0))
    return total, count


# Noise scale and batch size.


def noise_scale(moments: GradientMoments | Iterable[GradientMoments]) -> float:
    """The "simple" noise scale: the batch size at which a gradient is as much noise as signal.

    Use `noise_scale` to choose a batch size: well below it, larger batches save steps; well above it, they do not.

    B = tr Cov(g_i) / |G|^2, with the gradient G over all data, |G|^2 = |mean g|^2 - tr / n

    For several batches, numerators and denominators are summed before the division, since a mean of ratios is biased.

    Args:
        moments: the moments of one batch or of several.

    Returns:
        B > 0 in examples; infinite if no signal is left above the noise.

    Raises:
        ValueError: `moments` is empty.

    Source: McCandlish et al., "An empirical model of large-batch training", 2018, equation 2.9 and appendix A.1.

    Examples:
        >>> import numpy as np, minimand
        >>> g = np.random.default_rng(0).normal(0.5, 2.0, size=(1000, 50))  # tr = 4 * 50, |G|^2 = 0.25 * 50
        >>> round(minimand.gradients.noise_scale(minimand.gradients.GradientMoments.of_examples([g])))
        16
    """
    several = [moments] if isinstance(moments, GradientMoments) else list(moments)
    if not several:
        raise ValueError("noise_scale: `moments` must be of at least one batch. Received: moments=[]. Pass some.")
    return float(ratio(sum(m.trace for m in several), sum(m.squared_norm for m in several), np))


def noise_scale_of_sizes(
    small: float | Sequence[float], large: float | Sequence[float], small_size: int, large_size: int
) -> float:
    """The noise scale from the squared norms of gradients of batches of two sizes.

    Use `noise_scale_of_sizes` if only norms of gradients are known, as in large distributed training.

    |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b), tr = (|G_b|^2 - |G_B|^2) / (1 / b - 1 / B), each averaged, then divided

    Args:
        small: squared norm |G_b|^2 of the gradient of batches of b examples, or several of them.
        large: the same for B examples.
        small_size: b >= 1.
        large_size: B > b.

    Returns:
        tr / |G|^2 in examples; infinite if no signal is left above the noise.

    Raises:
        ValueError: a size is out of its range.

    Source: McCandlish et al., "An empirical model of large-batch training", 2018, appendix A.1.

    Examples:
        >>> import minimand
        >>> minimand.gradients.noise_scale_of_sizes(1.5, 1.125, 8, 32)  # |G|^2 = 1, tr = 4
        4.0
    """
    check_int("noise_scale_of_sizes", "small_size", small_size, minimum=1)
    check_int("noise_scale_of_sizes", "large_size", large_size, minimum=small_size + 1)
    of_small, of_large = float(np.mean(small)), float(np.mean(large))
    squared_norm = (large_size * of_large - small_size * of_small) / (large_size - small_size)
    return float(ratio((of_small - of_large) / (1 / small_size - 1 / large_size), squared_norm, np))


def noise_scale_of_replicas(gradients: Sequence[Sequence[Any]], examples: int) -> float:
    """The noise scale from the gradients that K replicas take of their parts of a batch, before the average.

    Use `noise_scale_of_replicas` in a hand-written data-parallel loop, which has these gradients anyway.

    Args:
        gradients: for each of K >= 2 replicas, its gradient: a list of arrays.
        examples: number of examples of each replica.

    Returns:
        The noise scale in examples, as `noise_scale_of_sizes` of `examples` and K `examples`.

    Raises:
        ValueError: there is one replica, or `examples` is less than 1.

    Source: McCandlish et al., "An empirical model of large-batch training", 2018, appendix A.1.

    Examples:
        >>> import numpy as np, minimand
        >>> replicas = [[np.array([1.0, 3.0])], [np.array([1.0, 1.0])]]
        >>> minimand.gradients.noise_scale_of_replicas(replicas, examples=4)
        2.0
    """
    if len(gradients) < 2:
        raise ValueError(
            "noise_scale_of_replicas: `gradients` must be a list with the gradient of each of 2 or more replicas. "
            f"Received: {len(gradients)} of them. Use `gradient_moments` for a single one."
        )
    check_int("noise_scale_of_replicas", "examples", examples, minimum=1)
    arrays = [[np.asarray(g, dtype="float64") for g in replica] for replica in gradients]
    small = [sum(float(np.sum(g**2)) for g in replica) for replica in arrays]
    means = [np.mean(same, axis=0) for same in zip(*arrays, strict=True)]
    large = sum(float(np.sum(g**2)) for g in means)
    return noise_scale_of_sizes(small, large, examples, len(gradients) * examples)


class TrainingCost(NamedTuple):
    """Steps and examples that training takes, in multiples of the least number of each.

    `training_cost` returns it.

    Attributes:
        steps: S / S_min >= 1.
        examples: E / E_min >= 1.

    Source: McCandlish et al., "An empirical model of large-batch training", 2018, section 2.3.

    Examples:
        >>> import minimand
        >>> minimand.gradients.training_cost(batch_size=256, noise_scale=256).steps
        2.0
    """

    steps: float
    examples: float


def training_cost(batch_size: float, noise_scale: float) -> TrainingCost:
    """Steps and examples that training at a batch size takes, over the least that any batch size takes.

    Use `training_cost` to weigh time (steps) against computation (examples).

    S / S_min = 1 + B_noise / B, E / E_min = 1 + B / B_noise: both are 2 at the critical batch size B = B_noise

    Args:
        batch_size: B > 0.
        noise_scale: B_noise > 0.

    Returns:
        `TrainingCost(steps, examples)`.

    Raises:
        ValueError: a number is not positive.

    Source: McCandlish et al., "An empirical model of large-batch training", 2018, equations 2.7 and 2.11.

    Examples:
        >>> import minimand
        >>> minimand.gradients.training_cost(batch_size=64, noise_scale=256)
        TrainingCost(steps=5.0, examples=1.25)
    """
    check_float("training_cost", "batch_size", batch_size, above=0.0)
    check_float("training_cost", "noise_scale", noise_scale, above=0.0)
    return TrainingCost(1 + noise_scale / batch_size, 1 + batch_size / noise_scale)


def critical_batch_size(batch_sizes: Sequence[float], steps: Sequence[float]) -> float:
    """The critical batch size from the steps that runs at several batch sizes took to reach the same loss.

    Use `critical_batch_size` if such runs exist; it needs no gradients.

    The line S = S_min (1 + B_crit / B), by least squares in S / S_min - 1 and 1 / B

    Args:
        batch_sizes: two or more different B > 0.
        steps: the steps S > 0 of each.

    Returns:
        B_crit in examples; 0 if more examples do not save steps, infinite if twice the examples save half the steps.

    Raises:
        ValueError: there are fewer than two sizes, or numbers are not positive.

    Source: McCandlish et al., "An empirical model of large-batch training", 2018, equation 2.11.

    Examples:
        >>> import minimand
        >>> round(minimand.gradients.critical_batch_size([32, 128, 512], [900, 300, 150]))
        256
    """
    sizes, needed = np.asarray(batch_sizes, dtype="float64"), np.asarray(steps, dtype="float64")
    if sizes.shape != needed.shape or len(np.unique(sizes)) < 2 or not (sizes > 0).all() or not (needed > 0).all():
        raise ValueError(
            "critical_batch_size: `batch_sizes` and `steps` must be positive, of the same length, and of at least two "
            f"sizes. Received: batch_sizes={batch_sizes!r}, steps={steps!r}"
        )
    # The errors are relative, since steps vary by orders of magnitude.
    columns = np.stack([np.ones_like(sizes), 1 / sizes], axis=1) / needed[:, None]
    least, slope = np.linalg.lstsq(columns, np.ones_like(needed), rcond=None)[0]
    return max(float(ratio(slope, least, np)), 0.0)


def signal_to_noise(moments: GradientMoments) -> list[np.ndarray]:
    """The signal-to-noise ratio of each weight's gradient.

    Use `signal_to_noise` to find the weights that still learn.

    GSNR = (E g)^2 / Var g, with (E g)^2 = mean g^2 - V / n, at least 0

    Args:
        moments: the moments of a batch, with an exact or averaged variance, since the ratio divides by it.

    Returns:
        Arrays aligned with the weights; infinite for gradients that do not vary, 0 for gradients that are all zero.

    Source: Liu et al., "Understanding why neural networks generalize well through GSNR of parameters", ICLR 2020,
    definition 2.1 (there with mean g^2, which is biased upwards by V / n).

    Examples:
        >>> import numpy as np, minimand
        >>> moments = minimand.gradients.GradientMoments.of_examples([np.array([[1.0, 5.0], [3.0, 5.0]])])
        >>> minimand.gradients.signal_to_noise(moments)
        [array([1.5, inf])]
    """
    ratios = []
    for mean, variance in zip(moments.mean, moments.variance, strict=True):
        signal = np.maximum(np.square(mean, dtype="float64") - variance / moments.examples, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios.append(np.where(signal == 0, 0.0, signal / variance))
    return ratios


class BatchTest(NamedTuple):
    """The result of a test of whether a batch was large enough.

    `norm_test` and `inner_product_test` return it.

    Attributes:
        passed: whether the batch was large enough.
        squared_error: the squared relative error of the batch.
        batch_size: the batch size at which the squared error would be as large as allowed.

    Source: Byrd, Chin, Nocedal and Wu, "Sample size selection in optimization methods for machine learning",
    Mathematical Programming 134 (2012), section 3.

    Examples:
        >>> import numpy as np, minimand
        >>> moments = minimand.gradients.GradientMoments.of_examples([np.array([[1.0], [3.0]])])
        >>> minimand.gradients.norm_test(moments).batch_size
        2.0
    """

    passed: bool
    squared_error: float
    batch_size: float


def norm_test(moments: GradientMoments, theta: float = 0.5) -> BatchTest:
    """Test whether the gradient of a batch is within a relative error of the gradient over all data.

    Use `norm_test` to let the batch grow as training proceeds; it is stricter than `inner_product_test`.

    tr / (n |mean g|^2) <= theta^2

    Args:
        moments: the moments of the batch.
        theta: the relative error > 0 of the gradient that is allowed.

    Returns:
        `BatchTest`: whether the inequality holds; its left side; the batch size at which both sides would be equal.

    Raises:
        ValueError: `theta` is not positive.

    Source: Byrd, Chin, Nocedal and Wu, "Sample size selection in optimization methods for machine learning",
    Mathematical Programming 134 (2012), section 3.

    Examples:
        >>> import numpy as np, minimand
        >>> moments = minimand.gradients.GradientMoments.of_examples([np.array([[1.0], [3.0]])])
        >>> minimand.gradients.norm_test(moments, theta=0.5)
        BatchTest(passed=True, squared_error=0.25, batch_size=2.0)
    """
    norm = sum(float(np.sum(np.square(m, dtype="float64"))) for m in moments.mean)
    return _test("norm_test", ratio(moments.trace, norm, np), moments.examples, theta)


def inner_product_test(moments: GradientMoments, theta: float = 0.9) -> BatchTest:
    """Test whether the step along a batch's gradient descends, by its inner product with the gradient over all data.

    Use `inner_product_test` to let the batch grow as training proceeds: noise orthogonal to the gradient, which is most
    of the noise, does not count.

    Var_i(g_i' mean g) / (n |mean g|^4) <= theta^2

    Args:
        moments: the moments of the batch.
        theta: the relative error > 0 of the inner product that is allowed.

    Returns:
        `BatchTest`: whether the inequality holds; its left side; the batch size at which both sides would be equal.

    Raises:
        ValueError: `theta` is not positive.

    Source: Bollapragada, Byrd and Nocedal, "Adaptive sampling strategies for stochastic optimization", SIAM Journal on
    Optimization 28 (2018), section 2.

    Examples:
        >>> import numpy as np, minimand
        >>> moments = minimand.gradients.GradientMoments.of_examples([np.array([[1.0, 2.0], [3.0, -2.0]])])
        >>> minimand.gradients.inner_product_test(moments)  # the inner products are 2 and 6
        BatchTest(passed=True, squared_error=0.25, batch_size=0.617...)
    """
    norm = sum(float(np.sum(np.square(m, dtype="float64"))) for m in moments.mean)
    return _test("inner_product_test", ratio(moments.variance_along_mean, norm**2, np), moments.examples, theta)


def _test(owner: str, squared_error: Any, examples: int, theta: float) -> BatchTest:
    """The test of one example's squared error, which falls with the number of examples."""
    allowed = check_float(owner, "theta", theta, above=0.0) ** 2
    error = float(squared_error)
    return BatchTest(error / examples <= allowed, error / examples, error / allowed)


def evidence(moments: GradientMoments) -> float:
    """The evidence that a gradient is noise alone.

    Use `evidence` for early stopping without a validation set: stop training when it is positive.

    1 - n / D sum_j (mean g_j)^2 / V_j over the D weights whose gradients vary: 0 in expectation for a gradient of 0

    Args:
        moments: the moments of a batch or of the whole training set, with an exact variance.

    Returns:
        The criterion, <= 1.

    Raises:
        ValueError: no weight's gradient varies.

    Source: Mahsereci, Balles, Lassner and Hennig, "Early stopping without a validation set", 2017, equation 8.

    Examples:
        >>> import numpy as np, minimand
        >>> g = np.random.default_rng(0).normal(size=(100, 50))
        >>> abs(minimand.gradients.evidence(minimand.gradients.GradientMoments.of_examples([g]))) < 0.5
        True
    """
    mean, variance = ([np.asarray(a, dtype="float64") for a in arrays] for arrays in (moments.mean, moments.variance))
    total, count = evidence_sums(mean, variance, np)
    if count == 0:
        raise ValueError(
            "evidence: `moments` must be of a gradient that varies between examples. Received: variances that are all "
            "0. Use a batch of different examples."
        )
    return float(1.0 - moments.examples * total / count)


def cabs_batch_size(moments: GradientMoments, loss: float, learning_rate: float) -> float:
    """The batch size that the rule CABS derives from the learning rate and the noise of the gradient.

    Use `cabs_batch_size` to adapt the batch size during training with SGD.

    n = learning_rate tr / loss, for SGD and a loss whose least value is about 0

    Args:
        moments: the moments of a batch.
        loss: the loss > 0 of the batch.
        learning_rate: learning rate > 0 of plain SGD.

    Returns:
        The batch size, which the caller rounds and keeps within bounds.

    Raises:
        ValueError: a number is not positive.

    Source: Balles, Romero and Hennig, "Coupling adaptive batch sizes with learning rates", UAI 2017, equation 9.

    Examples:
        >>> import numpy as np, minimand
        >>> moments = minimand.gradients.GradientMoments.of_examples([np.array([[1.0], [3.0]])])
        >>> minimand.gradients.cabs_batch_size(moments, loss=0.5, learning_rate=0.1)
        0.4
    """
    check_float("cabs_batch_size", "loss", loss, above=0.0)
    return check_float("cabs_batch_size", "learning_rate", learning_rate, above=0.0) * moments.trace / loss
