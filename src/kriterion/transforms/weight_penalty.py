"""A penalty on the weights of any built model."""

from __future__ import annotations

from typing import Any

import keras

from kriterion._selection import Select, check_select, selection
from kriterion.backend import Tensor
from kriterion.transforms.base import Batch, Objective, Transform, Weights


@keras.saving.register_keras_serializable(package="kriterion")
class WeightPenalty(Transform):
    """A penalty on the weights, by any Keras regularizer, without rebuilding the model.

    L(w) -> L(w) + sum over selected weights of R(w)

    Args:
        regularizer: a `keras.regularizers.Regularizer`, or a name or callable that Keras accepts as one.
        select: which weights are penalised: `"kernels"` (rank 2 or more), `"all"`, a regular expression of paths, or
            a function of the variable.
        name: name of the transform.

    Raises:
        ValueError: `regularizer` is None or unknown, `select` chooses nothing.

    Source: as the sum of loss and penalty in Tikhonov, "On the solution of ill-posed problems and the method of
    regularization", Soviet Math. Doklady 4 (1963).

    Example:
    >>> import kriterion
    >>> penalty = kriterion.transforms.WeightPenalty(kriterion.regularizers.GroupSparsity(1e-3))
    """

    def __init__(self, regularizer: Any, *, select: Select = "kernels", name: str | None = None) -> None:
        super().__init__(name=name)
        self.regularizer = keras.regularizers.get(regularizer)
        if self.regularizer is None:
            raise ValueError("WeightPenalty: `regularizer` must be a Keras regularizer. Received: regularizer=None")
        self.select = check_select(select, "WeightPenalty")

    def build(self, model: keras.Model) -> None:
        self.chosen = selection(model.trainable_variables, self.select, "WeightPenalty")

    def apply(self, objective: Objective) -> Objective:
        def penalised(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            loss, outcome = objective(weights, batch)
            for weight, chosen in zip(weights, self.chosen, strict=True):
                if chosen:
                    loss = loss + keras.ops.cast(self.regularizer(weight), loss.dtype)
            return loss, outcome

        return penalised

    def get_config(self) -> dict[str, Any]:
        return {
            "regularizer": keras.saving.serialize_keras_object(self.regularizer),
            "select": self.select,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeightPenalty:
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("regularizer")), **config)
