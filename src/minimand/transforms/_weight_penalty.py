"""A penalty on the weights of any built model."""

from __future__ import annotations

from itertools import compress
from typing import Any

import keras

from minimand._selection import Select
from minimand.backend import Tensor
from minimand.regularizers import WeightRegularizer
from minimand.transforms._base import Batch, Objective, Transform, Weights


@keras.saving.register_keras_serializable(package="minimand")
class WeightPenalty(Transform):
    """A penalty on the weights, by any Keras regularizer, without rebuilding the model.

    Use `WeightPenalty` to regularize a model that is already built, such as a pretrained one.

    L(w) -> L(w) + sum over selected weights of R(w)

    A regularizer of `minimand.regularizers` may have a schedule as its strength; `WeightPenalty` counts the training
    steps for it.

    Args:
        regularizer: a `keras.regularizers.Regularizer`, or a name or callable that Keras accepts as one.
        select: which weights are penalised: `"kernels"` (rank 2 or more), `"all"`, a regular expression of paths, or
            a function of the variable.
        name: name of the transform.

    Raises:
        ValueError: `regularizer` is None or unknown, `select` chooses nothing, or weights whose shape the regularizer
            does not accept.

    Source: a sum of loss and penalty, as in Tikhonov, "On the solution of ill-posed problems and the method of
    regularization", Soviet Math. Doklady 4 (1963).

    Examples:
        >>> import minimand
        >>> penalty = minimand.transforms.WeightPenalty(minimand.regularizers.GroupLasso(1e-3))
    """

    def __init__(self, regularizer: Any, *, select: Select = "kernels", name: str | None = None) -> None:
        super().__init__(select=select, name=name)
        self.regularizer = keras.regularizers.get(regularizer)
        if self.regularizer is None:
            raise ValueError(
                "WeightPenalty: `regularizer` must be a Keras regularizer. Received: regularizer=None. "
                'Pass one, such as "l2" or minimand.regularizers.GroupLasso(1e-3).'
            )
        if isinstance(self.regularizer, WeightRegularizer) and self.regularizer.scheduled:
            self.add_step_counter()

    def build(self, model: keras.Model) -> None:
        super().build(model)
        if isinstance(self.regularizer, WeightRegularizer):
            self.regularizer.check_variables(self.selected)

    def _penalty(self, weights: Weights) -> Tensor:
        values = list(compress(weights, self.mask))
        if not isinstance(self.regularizer, WeightRegularizer):
            return sum(self.regularizer(value) for value in values)
        regularizer = self.regularizer if self.step is None else self.regularizer.at(self.next_step())
        return regularizer.total(self.selected, values)

    def apply(self, objective: Objective) -> Objective:
        def penalised(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            loss, aux = objective(weights, batch)
            return loss + keras.ops.cast(self._penalty(weights), loss.dtype), aux

        return penalised
