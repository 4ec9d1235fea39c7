"""A penalty on the variance of the per-example gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import compress
from typing import Any

import keras
from keras import ops

from minimand import backend
from minimand._ops import at_least, at_least_float32, safe_sqrt
from minimand._scope import record, recorded
from minimand._selection import Select, check_select, merged, selection
from minimand._validation import check_bool, check_choice, check_int
from minimand.backend import Tensor
from minimand.gradients._exact import exact_sums
from minimand.gradients._examples import ExampleGradients
from minimand.gradients._moments import ESTIMATORS
from minimand.transforms._base import Batch, Objective, PenaltyTransform, Strength, Weights
from minimand.transforms._gradient_measures import check_model, check_objective

# A penalty on the norm of the gradient.


@keras.saving.register_keras_serializable(package="minimand")
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
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", "mse", transforms=[minimand.transforms.GradientNormPenalty(0.01)])
        >>> history = trainer.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0)
    """

    def __init__(
        self, strength: Strength, *, squared: bool = True, select: Select = "all", name: str | None = None
    ) -> None:
        super().__init__(strength, name=name)
        self.squared = check_bool("GradientNormPenalty", "squared", squared)
        self.select = check_select(select, "GradientNormPenalty")

    def build(self, model: keras.Model) -> None:
        self.mask = selection(model.trainable_variables, self.select, "GradientNormPenalty")

    def apply(self, objective: Objective) -> Objective:
        def penalised(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            def at(values: Weights) -> tuple[Tensor, Any]:
                (loss, aux), assigned = recorded(objective)(merged(weights, self.mask, values), batch.plain())
                return loss, (aux, assigned)

            selected = list(compress(weights, self.mask))
            (loss, (aux, assigned)), gradients = backend.pure_value_and_gradient(at, selected)
            record(assigned)
            squares = sum(ops.sum(ops.square(at_least_float32(g))) for g in gradients)
            penalty = self.strength_now() * (squares if self.squared else safe_sqrt(squares))
            if batch.gradient_weight is not None:
                loss, aux = objective(weights, batch)
            return loss + ops.cast(penalty, loss.dtype), aux

        return penalised

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "squared": self.squared, "select": self.select}
        # It draws nothing.
        del config["seed"]
        return config


# A penalty on the variance of the per-example gradients.


@keras.saving.register_keras_serializable(package="minimand")
class GradientVariancePenalty(PenaltyTransform):
    """A penalty on the variance of the gradient between examples, or on its differences between groups of examples.

    L(w) -> L(w) + c sum_j V_j, V_j = Var_i[ dL_i/dw_j ]; with `groups` e = 1, ..., E (Fishr)
    L(w) -> L(w) + c / E sum_e |V_e - mean V|^2

    The variance is that between the examples of a batch, without bias, and the penalty's own gradient is exact (a
    gradient of a gradient). The estimators of V are those of `gradients.gradient_moments`:

    - `"probe"`: the squares of one more gradient, in which examples have random signs. Two to three plain steps.
    - `"micro_batch"`: the spread of the gradients of K consecutive parts of the batch; the one for models with batch
      normalisation. A batch of n < K examples gives n parts of one; n mod K examples are left out.
    - `"exact"`: of all examples; fast for Dense layers and convolutions that a functional or Sequential model calls
      once, a pass for each example for other weights.

    Noise layers draw the same noise for both gradients. A single example has no variance and adds nothing.

    Args:
        strength: coefficient c >= 0, or a `keras.optimizers.schedules.LearningRateSchedule` of it by training step.
        estimator: one of the three above. Groups need `"exact"`: a square of a noisy variance would penalise the noise.
        micro_batches: number K >= 2 of parts.
        groups: which group each example is in, an integer from 0 to E - 1: the key of an entry (batch,) of the model's
            inputs, if these are a dictionary (the model may have an input that it does not use), or a function of the
            `Batch` that returns it. An example with another number is in no group; a group of fewer than two examples
            is left out of a step.
        num_groups: number E >= 2 of groups.
        select: which weights count: `"all"`, `"kernels"` (rank 2 or more), a regular expression of paths, or a function
            of the variable. The last layer alone is much cheaper, and the choice of Fishr's authors.
        seed: integer seed of the signs, or None.
        name: name of the transform.

    Raises:
        TypeError: `groups` is neither a string nor a function.
        ValueError: a number is out of its range, `groups` without `num_groups` or `"exact"`; in `compile`, batch
            normalisation without `"micro_batch"`, or `"exact"` after other transforms; in `fit`, no input has the name
            that `groups` gives.

    Source: Rame, Dancette and Cord, "Fishr: invariant gradient variances for out-of-distribution generalization", ICML
    2022, section 3 (there with biased variances); without groups its trace. The estimate by signs is derived in
    `docs/gradient-variance.md`.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", "mse", transforms=[minimand.transforms.GradientVariancePenalty(1e-3)])
        >>> history = trainer.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0)
    """

    def __init__(
        self,
        strength: Strength,
        *,
        estimator: str = "probe",
        micro_batches: int = 4,
        groups: str | Callable[[Batch], Tensor] | None = None,
        num_groups: int | None = None,
        select: Select = "all",
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(strength, seed=seed, name=name)
        owner = "GradientVariancePenalty"
        self.estimator = check_choice(owner, "estimator", estimator, ESTIMATORS)
        self.micro_batches = check_int(owner, "micro_batches", micro_batches, minimum=2)
        if groups is not None and not isinstance(groups, str) and not callable(groups):
            raise TypeError(f"{owner}: `groups` must be a key of the inputs or a function. Received: groups={groups!r}")
        if (groups is None) != (num_groups is None):
            raise ValueError(
                f"{owner}: `groups` and `num_groups` go together. "
                f"Received: groups={groups!r}, num_groups={num_groups!r}"
            )
        if groups is not None and estimator != "exact":
            raise ValueError(
                f'{owner}: `groups` needs estimator="exact", because the square of a noisy variance has the noise in '
                f"it. Received: estimator={estimator!r}"
            )
        self.groups = groups
        self.num_groups = None if num_groups is None else check_int(owner, "num_groups", num_groups, minimum=2)
        self.select = check_select(select, owner)

    def build(self, model: keras.Model) -> None:
        self.mask = selection(model.trainable_variables, self.select, "GradientVariancePenalty")
        check_model(self.estimator, model, "GradientVariancePenalty")

    def apply(self, objective: Objective) -> Objective:
        check_objective(self.estimator, objective, "GradientVariancePenalty")

        def penalised(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            loss, aux = objective(weights, batch)
            gradients = ExampleGradients(objective, weights, batch.plain(), self.mask)
            penalty = self._variance(gradients) if self.groups is None else self._differences(gradients)
            return loss + ops.cast(self.strength_now() * penalty, loss.dtype), aux

        return penalised

    def _variance(self, gradients: ExampleGradients) -> Tensor:
        """The sum of V over the weights."""
        if self.estimator == "probe":
            return sum(ops.sum(ops.square(at_least_float32(v))) for v in gradients.probe(self.seed_generator.next()))
        if self.estimator == "micro_batch":
            return sum(ops.sum(v) for v in gradients.micro_batches(self.micro_batches).variance())
        count = ops.cast(gradients.count, gradients.dtype)
        first, second, _ = exact_sums(gradients)
        spread = sum(ops.sum(s - ops.square(f) / count) for f, s in zip(first, second, strict=True))
        return spread / at_least(count - 1.0, 1.0)

    def _differences(self, gradients: ExampleGradients) -> Tensor:
        """The mean squared distance of the groups' V from the mean V."""
        batch = gradients.batch
        if callable(self.groups):
            index = self.groups(batch)
        elif isinstance(batch.x, Mapping) and self.groups in batch.x:
            index = batch.x[self.groups]
        else:
            known = f"the names {list(batch.x)}" if isinstance(batch.x, Mapping) else "no names"
            raise ValueError(
                "GradientVariancePenalty: `groups` must be the name of an input, or a function of the batch. "
                f"Received: groups={self.groups!r}, and inputs with {known}"
            )
        index = ops.cast(ops.reshape(index, (-1,)), "int32")
        members = ops.cast(index[:, None] == ops.arange(self.num_groups, dtype="int32"), gradients.dtype)
        counts = ops.sum(members, axis=0)
        present = ops.cast(counts > 1, counts.dtype)
        number = at_least(ops.sum(present), 1.0)
        first, second, _ = exact_sums(gradients, members)
        distance = 0.0
        for f, s in zip(first, second, strict=True):
            by_group = (-1, *[1] * (len(f.shape) - 1))
            size, here = ops.reshape(at_least(counts, 2.0), by_group), ops.reshape(present, by_group)
            variance = (s - ops.square(f) / size) / (size - 1.0)
            mean = ops.sum(here * variance, axis=0) / number
            distance = distance + ops.sum(here * ops.square(variance - mean))
        return distance / number

    def get_config(self) -> dict[str, Any]:
        groups = self.groups
        return {
            **super().get_config(),
            "estimator": self.estimator,
            "micro_batches": self.micro_batches,
            "groups": groups if groups is None else keras.saving.serialize_keras_object(groups),
            "num_groups": self.num_groups,
            "select": self.select,
        }
