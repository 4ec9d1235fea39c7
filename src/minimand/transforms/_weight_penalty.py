"""A penalty on the weights of any built model."""

from __future__ import annotations

from itertools import compress
from typing import Any

import keras

from minimand._selection import Select, check_select, selection
from minimand.backend import Tensor
from minimand.regularizers import WeightRegularizer
from minimand.transforms._base import Batch, Objective, Transform, Weights


@keras.saving.register_keras_serializable(package="minimand")
class WeightPenalty(Transform):
    """A penalty on the weights, by any Keras regularizer, without rebuilding the model.

    L(w) -> L(w) + sum over selected weights of R(w)

    A regularizer of `minimand.regularizers` may have a schedule as its strength, which goes by the number of training
    steps that are counted here.

    Args:
        regularizer: a `keras.regularizers.Regularizer`, or a name or callable that Keras accepts as one.
        select: which weights are penalised: `"kernels"` (rank 2 or more), `"all"`, a regular expression of paths, or
            a function of the variable.
        name: name of the transform.

    Raises:
        ValueError: `regularizer` is None or unknown, `select` chooses nothing, or weights for which the regularizer
            makes no sense.

    Source: as the sum of loss and penalty in Tikhonov, "On the solution of ill-posed problems and the method of
    regularization", Soviet Math. Doklady 4 (1963).

    Examples:
        >>> import minimand
        >>> penalty = minimand.transforms.WeightPenalty(minimand.regularizers.GroupLasso(1e-3))
    """

    def __init__(self, regularizer: Any, *, select: Select = "kernels", name: str | None = None) -> None:
        super().__init__(name=name)
        self.regularizer = keras.regularizers.get(regularizer)
        if self.regularizer is None:
            raise ValueError("WeightPenalty: `regularizer` must be a Keras regularizer. Received: regularizer=None")
        self.select = check_select(select, "WeightPenalty")

    @property
    def _scheduled(self) -> bool:
        return isinstance(self.regularizer, WeightRegularizer) and self.regularizer.scheduled

    def build(self, model: keras.Model) -> None:
        self.mask = selection(model.trainable_variables, self.select, "WeightPenalty")
        self.penalised = list(compress(model.trainable_variables, self.mask))
        if isinstance(self.regularizer, WeightRegularizer):
            self.regularizer.check_variables(self.penalised)
        if self._scheduled and not hasattr(self, "step"):
            self.step = self.add_weight((), "zeros", "int32", trainable=False, name="step")

    def _penalty(self, weights: Weights) -> Tensor:
        values = list(compress(weights, self.mask))
        if not isinstance(self.regularizer, WeightRegularizer):
            return sum(self.regularizer(value) for value in values)
        regularizer = self.regularizer
        if self._scheduled:
            step = self.step.value
            regularizer = regularizer.at(step)
            self.step.assign(step + 1)
        return regularizer.total(self.penalised, values)

    def apply(self, objective: Objective) -> Objective:
        def penalised(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            loss, aux = objective(weights, batch)
            return loss + keras.ops.cast(self._penalty(weights), loss.dtype), aux

        return penalised

    def get_config(self) -> dict[str, Any]:
        return {
            "regularizer": keras.saving.serialize_keras_object(self.regularizer),
            "select": self.select,
            "name": self.name,
        }
