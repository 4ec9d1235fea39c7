"""Weights kept near given ones, the more the more the data said about each."""

from __future__ import annotations

import copy
from typing import Any

import keras
import numpy as np
from keras import ops

from kriterion.backend import Tensor
from kriterion.regularizers._arrays import array_for, arrays_of, from_text, to_text
from kriterion.regularizers.base import WeightRegularizer


@keras.saving.register_keras_serializable(package="kriterion")
class ElasticWeights(WeightRegularizer):
    """Elastic weight consolidation: the squared distance to weights trained on an earlier task, by their importance.

    R(w) = strength / 2 * sum F (w - w0)^2

    With F the diagonal of the Fisher information on the earlier task's data (`fisher_information`) and the strength
    the number of its examples, over that of the new task's if the loss is a mean, this is the earlier task's
    Laplace approximation. Both arrays are copied when the regularizer is made and are a part of its configuration, as
    text of 5.3 bytes a number.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        fisher: F >= 0: a mapping of paths of variables to arrays, or an array of the weights' shape.
        anchor: w0: a built model, whose trainable weights as they are now are taken, or as `fisher`.
        reduce: `"sum"`, or `"mean"`: divided by the number of weights.

    Returns:
        As a call: for weights that have an anchor, a scalar.

    Raises:
        ValueError: a number is not finite or an entry of `fisher` negative; on call, there is no array for the
            weights, or one of another shape.

    Source: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 114 (2017), equation 3.

    Examples:
        >>> import keras, numpy as np, kriterion
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "softmax")])  # trained on x, y
        >>> x, y = np.ones((8, 3)), np.zeros(8)
        >>> fisher = kriterion.regularizers.fisher_information(model, x, y, "sparse_categorical_crossentropy")
        >>> elastic = kriterion.regularizers.ElasticWeights(8.0, fisher, model)
        >>> penalty = kriterion.transforms.WeightPenalty(elastic, select="all")
    """

    def __init__(self, strength: Any, fisher: Any, anchor: Any, *, reduce: str = "sum") -> None:
        super().__init__(strength, reduce=reduce)
        self.fishers = arrays_of("ElasticWeights", "fisher", fisher)
        self.anchors = arrays_of("ElasticWeights", "anchor", anchor)
        negative = [path for path, array in self.fishers.items() if np.any(array < 0)]
        if negative:
            raise ValueError(
                f"ElasticWeights: `fisher` must be >= 0. Received: negative entries for {negative[0] or 'the weights'}"
            )

    def of(self, variable: Any) -> ElasticWeights:
        other = copy.copy(self)
        other.fishers = {None: array_for("ElasticWeights", "fisher", self.fishers, variable)}
        other.anchors = {None: array_for("ElasticWeights", "anchor", self.anchors, variable)}
        return other

    def penalty(self, weights: Tensor) -> Tensor:
        distance = weights - ops.cast(self.anchors[None], weights.dtype)
        return 0.5 * ops.sum(ops.cast(self.fishers[None], weights.dtype) * ops.square(distance))

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        anchor = ops.cast(self.anchors[None], weights.dtype)
        return anchor + (weights - anchor) / (1.0 + step * ops.cast(self.fishers[None], weights.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "fisher": to_text(self.fishers), "anchor": to_text(self.anchors)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ElasticWeights:
        """A regularizer made from `get_config()`."""
        return super().from_config(
            {**config, "fisher": from_text(config["fisher"]), "anchor": from_text(config["anchor"])}
        )
