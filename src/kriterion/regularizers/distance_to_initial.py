"""Weights kept near those that they started from."""

from __future__ import annotations

import copy
from typing import Any

import keras
from keras import ops

from kriterion.backend import Tensor
from kriterion.regularizers._arrays import array_for, arrays_of, from_text, to_text
from kriterion.regularizers.base import WeightRegularizer


@keras.saving.register_keras_serializable(package="kriterion")
class DistanceToInitial(WeightRegularizer):
    """The squared distance to given weights, as those of a pretrained model: L2-SP.

    R(w) = strength * sum (w - w0)^2

    The anchor w0 is copied when the regularizer is made, and is a part of its configuration: a loaded model has the
    same one (as text, of 5.3 bytes a weight), not the weights that it is loaded with.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        anchor: w0: a built model, whose trainable weights as they are now are taken; a mapping of paths of variables to
            arrays; or, for `kernel_regularizer=`, an array of the weights' shape.
        reduce: `"sum"`, or `"mean"`: divided by the number of weights.

    Returns:
        As a call: for weights that have an anchor, a scalar. `project` gives the anchor.

    Raises:
        ValueError: the model is not built, a number is not finite; on call, there is no anchor for the weights, or one
            of another shape.

    Source: Li, Grandvalet and Davoine, "Explicit inductive bias for transfer learning with convolutional networks",
    ICML 2018, equation 2.

    Examples:
        >>> import keras, kriterion
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])  # with pretrained weights
        >>> penalty = kriterion.transforms.WeightPenalty(kriterion.regularizers.DistanceToInitial(0.01, model))
    """

    def __init__(self, strength: Any, anchor: Any, *, reduce: str = "sum") -> None:
        super().__init__(strength, reduce=reduce)
        self.anchors = arrays_of("DistanceToInitial", "anchor", anchor)

    def of(self, variable: Any) -> DistanceToInitial:
        other = copy.copy(self)
        other.anchors = {None: array_for("DistanceToInitial", "anchor", self.anchors, variable)}
        return other

    def penalty(self, weights: Tensor) -> Tensor:
        return ops.sum(ops.square(weights - ops.cast(self.anchors[None], weights.dtype)))

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        anchor = ops.cast(self.anchors[None], weights.dtype)
        return anchor + (weights - anchor) / (1.0 + 2.0 * step)

    def projection(self, weights: Tensor) -> Tensor:
        return ops.cast(self.anchors[None], weights.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "anchor": to_text(self.anchors)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DistanceToInitial:
        """A regularizer made from `get_config()`."""
        return super().from_config({**config, "anchor": from_text(config["anchor"])})
