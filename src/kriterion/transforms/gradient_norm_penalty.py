"""A penalty on the norm of the gradient."""

from __future__ import annotations

from itertools import compress
from typing import Any

import keras
from keras import ops

from kriterion import backend
from kriterion._elementary import root_of_squares, single
from kriterion._scope import record, recorded
from kriterion._selection import Select, check_select, merged, selection
from kriterion._validation import check_bool
from kriterion.backend import Tensor
from kriterion.transforms._penalty import PenaltyTransform, Strength
from kriterion.transforms.base import Batch, Objective, Weights


@keras.saving.register_keras_serializable(package="kriterion")
class GradientNormPenalty(PenaltyTransform):
    """A penalty on the norm of the objective's gradient by the weights.

    L(w) -> L(w) + c |grad L(w)|^2, or L(w) + c |grad L(w)| with `squared=False`

    Its own gradient is exact, 2 c H grad L with the Hessian H, in about two plain steps. This is the gradient of the
    batch: that it is small says nothing of its variance between examples, which is `GradientVariancePenalty`'s.

    Args:
        strength: coefficient c >= 0, or a `keras.optimizers.schedules.LearningRateSchedule` of it by training step.
            Gradient descent with rate a acts, to first order, as if c were a / 4 without any penalty.
        squared: whether the norm is squared.
        select: which weights count: `"all"`, `"kernels"` (rank 2 or more), a regular expression of paths, or a function
            of the variable.
        name: name of the transform.

    Raises:
        TypeError: `squared` is not a boolean.
        ValueError: `strength` is negative or not finite; in `compile`, `select` chooses nothing.

    Source: Barrett and Dherin, "Implicit gradient regularization", ICLR 2021, section 2 (squared); Zhao, Zhang and Hu,
    "Penalizing gradient norm for efficiently improving generalization in deep learning", ICML 2022, section 3.

    Examples:
        >>> import keras, numpy as np, kriterion
        >>> trainer = kriterion.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", "mse", transforms=[kriterion.transforms.GradientNormPenalty(0.01)])
        >>> history = trainer.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0)
    """

    def __init__(
        self, strength: Strength, *, squared: bool = True, select: Select = "all", name: str | None = None
    ) -> None:
        super().__init__(strength, name=name)
        self.squared = check_bool("GradientNormPenalty", "squared", squared)
        self.select = check_select(select, "GradientNormPenalty")

    def build(self, model: keras.Model) -> None:
        self.chosen = selection(model.trainable_variables, self.select, "GradientNormPenalty")

    def apply(self, objective: Objective) -> Objective:
        def penalised(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            def at(values: Weights) -> tuple[Tensor, Any]:
                (loss, outcome), assigned = recorded(objective)(merged(weights, self.chosen, values), batch.plain())
                return loss, (outcome, assigned)

            chosen = list(compress(weights, self.chosen))
            (loss, (outcome, assigned)), gradients = backend.pure_value_and_gradient(at, chosen)
            record(assigned)
            squares = sum(ops.sum(ops.square(single(g))) for g in gradients)
            penalty = self.strength_now() * (squares if self.squared else root_of_squares(squares))
            if batch.gradient_weight is not None:
                loss, outcome = objective(weights, batch)
            return loss + ops.cast(penalty, loss.dtype), outcome

        return penalised

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "squared": self.squared, "select": self.select}
        # It draws nothing.
        del config["seed"]
        return config
