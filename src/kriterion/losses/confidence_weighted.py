"""A loss that weights examples by the model's confidence in the truth."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kriterion._validation import check_choice, check_float
from kriterion.backend import Tensor
from kriterion.losses._example_weighted import ExampleWeighted


@keras.saving.register_keras_serializable(package="kriterion")
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
        >>> import numpy as np, kriterion
        >>> loss = kriterion.losses.ConfidenceWeighted("binary_crossentropy", gamma=2.0)
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
