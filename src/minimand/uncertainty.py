"""Summaries of sampled predictions: mean, quantiles, and aleatoric and epistemic uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import keras
import numpy as np

from minimand._validation import check_choice, check_float

__all__ = ["Sharpness", "summary"]


class Sharpness(NamedTuple):
    """An estimate of the trace of the loss's Hessian, and the standard error of the estimate.

    `Trainer.sharpness` returns it; compare two traces in units of their standard errors.

    Attributes:
        trace: the estimate of tr H, in units of the loss over squared weights.
        standard_error: standard error of `trace`, >= 0.

    Source: Hutchinson, "A stochastic estimator of the trace of the influence matrix", Communications in Statistics
    18 (1989).

    Examples:
        >>> from minimand.uncertainty import Sharpness
        >>> flat, sharp = Sharpness(1.0, 0.1), Sharpness(8.0, 0.5)
        >>> sharp.trace - flat.trace > 3 * (flat.standard_error + sharp.standard_error)
        True
    """

    trace: float
    standard_error: float


def summary(
    samples: Any,
    task: str,
    *,
    quantiles: Sequence[float] = (0.025, 0.5, 0.975),
    noise_stddev: Any = 0.0,
) -> dict[str, np.ndarray]:
    """Predictive mean, standard deviation, quantiles or entropies, and the aleatoric and epistemic parts.

    Use the summary to report predictions from `Trainer.predict_samples`, and to tell noise of the targets (aleatoric)
    from what more data would settle (epistemic).

    Regression: Var = s^2 (aleatoric, the noise of the targets) + Var_k[f_k] (epistemic).
    Classification: H(mean_k p_k) = mean_k H(p_k) (aleatoric) + mutual information (epistemic), in nats.

    Args:
        samples: predicted functions (samples, rows, ...), as `Trainer.predict_samples` returns them; class
            probabilities in classification, with the classes last.
        task: `"regression"` or `"classification"`.
        quantiles: probabilities in [0, 1] of the quantiles in regression. The distribution is that of the samples if
            `noise_stddev` is 0, else the equal mixture of normal laws around the samples, solved by bisection.
        noise_stddev: standard deviation s >= 0 of the targets around a function in regression; broadcasts with a
            sample.

    Returns:
        A dictionary of float64 arrays. In regression: `mean`, `stddev`, `quantiles` (quantiles, rows, ...), and the
        standard deviations `aleatoric` and `epistemic`. In classification: `mean` (rows, ..., classes) and, for each
        row, `stddev` of the most probable class's probability, `entropy`, `aleatoric` and `mutual_information`,
        which is the epistemic part.

    Raises:
        ValueError: `task` is unknown, there are no samples, `samples` are not probabilities in classification, or a
            quantile or `noise_stddev` is out of its range.

    Source: Depeweg et al., "Decomposition of uncertainty in Bayesian deep learning", ICML 2018, section 2.

    Examples:
        >>> import numpy as np, minimand
        >>> minimand.uncertainty.summary(np.array([[1.0], [3.0]]), "regression")["mean"]
        array([2.])
    """
    check_choice("summary", "task", task, ("regression", "classification"))
    samples = np.asarray(samples, dtype="float64")
    if samples.ndim < 2 or len(samples) == 0:
        raise ValueError(f"summary: `samples` must have the shape (samples, rows, ...). Received: {samples.shape}")
    if task == "classification":
        return _classification(samples)
    for probability in quantiles:
        check_float("summary", "quantiles", probability, minimum=0.0, maximum=1.0)
    noise = np.broadcast_to(np.asarray(noise_stddev, dtype="float64"), samples.shape[1:])
    if not (np.isfinite(noise).all() and (noise >= 0).all()):
        raise ValueError(f"summary: `noise_stddev` must be finite and >= 0. Received: noise_stddev={noise_stddev!r}")
    variance = samples.var(axis=0)
    return {
        "mean": samples.mean(axis=0),
        "stddev": np.sqrt(variance + noise**2),
        "quantiles": np.stack([_quantile(samples, noise, probability) for probability in quantiles]),
        "aleatoric": noise.copy(),
        "epistemic": np.sqrt(variance),
    }


def _quantile(samples: np.ndarray, noise: np.ndarray, probability: float) -> np.ndarray:
    """The point at which the mean of the normal distribution functions around the samples is `probability`."""
    of_samples = np.quantile(samples, probability, axis=0)
    if not noise.any():
        return of_samples
    if probability in (0.0, 1.0):
        return np.where(noise > 0, np.inf * (2 * probability - 1), of_samples)
    shift = NormalDist().inv_cdf(probability) * noise
    low, high = samples.min(axis=0) + shift, samples.max(axis=0) + shift
    scale = np.where(noise > 0, noise, 1.0) * math.sqrt(2)
    for _ in range(50):
        middle = (low + high) / 2
        below = np.mean(1 + _erf((middle - samples) / scale), axis=0) / 2 < probability
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(noise > 0, (low + high) / 2, of_samples)


def _erf(value: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.erf(value.astype("float32"))).astype("float64")


def _classification(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    sums = probabilities.sum(axis=-1)
    if probabilities.min() < 0 or not np.allclose(sums, 1.0, atol=1e-3):
        raise ValueError(
            "summary: `samples` must be probabilities in classification, >= 0 and with sum 1 along the last axis. "
            f"Received: values from {probabilities.min():g}, sums from {sums.min():g} to {sums.max():g}. "
            "Apply a softmax to logits."
        )
    mean = probabilities.mean(axis=0)
    top = mean.argmax(axis=-1)[None, ..., None]
    entropy, aleatoric = _entropy(mean), _entropy(probabilities).mean(axis=0)
    return {
        "mean": mean,
        "stddev": np.take_along_axis(probabilities, top, axis=-1)[..., 0].std(axis=0),
        "entropy": entropy,
        "aleatoric": aleatoric,
        # The difference is >= 0 by concavity, up to rounding.
        "mutual_information": np.maximum(entropy - aleatoric, 0.0),
    }


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    return -np.sum(probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0)), axis=-1)
