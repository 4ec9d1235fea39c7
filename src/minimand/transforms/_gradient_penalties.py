"""Penalties on the norm of the gradient, and on its variance between examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import compress
from typing import Any

import keras
from keras import ops

from minimand import backend
from minimand._objective import DataObjective, copied
from minimand._ops import at_least, at_least_float32, safe_sqrt
from minimand._scope import record, recorded
from minimand._selection import Select, merged
from minimand._validation import check_bool, check_choice, check_int
from minimand.backend import Tensor
from minimand.gradients._exact import check_separable, exact_moments
from minimand.gradients._examples import ExampleGradients
from minimand.gradients._moments import ESTIMATORS, estimated_variance
from minimand.transforms._base import Batch, Objective, Schedule, Transform, Weights
from minimand.transforms._gradient_measures import by_estimator, check_objective, chosen_estimators


@keras.saving.register_keras_serializable(package="minimand")
class GradientNormPenalty(Transform):
    """A penalty on the norm of the objective's gradient by the weights.

    Use `GradientNormPenalty` to find flat minima, as with large steps of gradient descent.

    L(w) -> L(w) + c |grad L(w)|^2, or L(w) + c |grad L(w)| with `squared=False`

    The penalty's own gradient is exact, 2 c H grad L with the Hessian H, and a step costs about two plain steps. The
    gradient is that of the batch; a small one says nothing of its variance between examples, which is the subject of
    `GradientVariancePenalty`.

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
        self, strength: Schedule, *, squared: bool = True, select: Select = "all", name: str | None = None
    ) -> None:
        super().__init__(select=select, name=name)
        self.strength = self.check_schedule("strength", strength)
        self.squared = check_bool("GradientNormPenalty", "squared", squared)

    def apply(self, objective: Objective) -> Objective:
        def penalised(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            def at(values: Weights) -> tuple[Tensor, Any]:
                return recorded(objective)(merged(weights, self.mask, values), batch.plain())

            selected = list(compress(weights, self.mask))
            (loss, (aux, assigned)), gradients = backend.pure_value_and_gradient(at, selected)
            record(assigned)
            squares = sum(ops.sum(ops.square(at_least_float32(g))) for g in gradients)
            penalty = self.value_now(self.strength) * (squares if self.squared else safe_sqrt(squares))
            if batch.gradient_weight is not None:
                loss, aux = objective(weights, batch)
            return loss + ops.cast(penalty, loss.dtype), aux

        return penalised


@keras.saving.register_keras_serializable(package="minimand")
class GradientVariancePenalty(Transform):
    """A penalty on the variance of the gradient between examples.

    Use `GradientVariancePenalty` to favour weights whose gradient the examples agree on.

    L(w) -> L(w) + c sum_j V_j, V_j = Var_i[ dL_i/dw_j ]

    V is the unbiased variance between the examples of a batch, and the penalty's own gradient is exact (a gradient of a
    gradient). The estimators of V are those of `gradients.gradient_moments`:

    - `"auto"`: `"exact"` for the weights of Dense layers and convolutions that a functional or Sequential model calls
      once, and `"micro_batch"` for other weights. A model with batch normalisation, and a penalty after other
      transforms, take `"micro_batch"` alone.
    - `"exact"`: V itself. Weights of other layers take a pass for each example.
    - `"micro_batch"`: the variance of the gradients of K consecutive parts of the batch, whose examples should be in
      random order. The loss should be a mean over the batch, not a sum. A batch of n < K examples gives n parts of one;
      n mod K examples are left out.
    - `"probe"`: the squares of one more gradient, in which examples have random signs. A step costs two to three plain
      steps. The noise of the penalty's gradient is that of two micro-batches; it is often larger than the mean, which
      slows training down.

    Noise layers draw the same noise for both gradients. A single example has no variance and adds nothing.

    Args:
        strength: coefficient c >= 0, or a `keras.optimizers.schedules.LearningRateSchedule` of it by training step.
        estimator: `"auto"`, `"exact"`, `"micro_batch"` or `"probe"`.
        micro_batches: number K >= 2 of parts.
        select: which weights count: `"all"`, `"kernels"` (rank 2 or more), a regular expression of paths, or a function
            of the variable. The last layer alone is much cheaper.
        seed: integer seed of the signs, or None.
        name: name of the transform.

    Attributes:
        estimators: for each trainable weight of the model, the estimator in use, or None if the weight is not selected;
            after `compile`.

    Raises:
        ValueError: a number is out of its range, `estimator` is unknown; in `compile`, `select` chooses nothing, batch
            normalisation with `"exact"` or `"probe"`, or `"exact"` after other transforms.

    Source: the trace of the variance that Rame, Dancette and Cord compare between domains, "Fishr: invariant gradient
    variances for out-of-distribution generalization", ICML 2022, section 3. The estimate by signs is derived in
    `docs/gradient-variance.md`.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", "mse", transforms=[minimand.transforms.GradientVariancePenalty(1e-3)])
        >>> history = trainer.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0)
    """

    def __init__(
        self,
        strength: Schedule,
        *,
        estimator: str = "auto",
        micro_batches: int = 8,
        select: Select = "all",
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(select=select, seed=seed, name=name)
        self.strength = self.check_schedule("strength", strength)
        self.estimator = check_choice("GradientVariancePenalty", "estimator", estimator, ("auto", *ESTIMATORS))
        self.micro_batches = check_int("GradientVariancePenalty", "micro_batches", micro_batches, minimum=2)
        self._of_data = False

    def build(self, model: keras.Model) -> None:
        super().build(model)
        owner = "GradientVariancePenalty"
        self.estimators = chosen_estimators(self.estimator, model, self.mask, self._of_data, owner)
        self.splits_batches = self.estimator == "auto" and "micro_batch" in self.estimators

    def apply(self, objective: Objective) -> Objective:
        check_objective(self.estimator, objective, "GradientVariancePenalty")
        self._of_data = isinstance(objective, DataObjective)

        def penalised(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            loss, aux = objective(weights, batch)
            gradients = ExampleGradients(objective, weights, batch.plain(), self.mask)
            penalty = self.value_now(self.strength) * self._trace(gradients, self.seed_generator.next())
            return loss + ops.cast(penalty, loss.dtype), aux

        return penalised

    def _trace(self, gradients: ExampleGradients, seed: Tensor) -> Tensor:
        trace = 0.0
        for estimator, mask in by_estimator(self.estimators):
            found = estimated_variance(replace(gradients, mask=mask), estimator, self.micro_batches, seed)
            trace = trace + sum(ops.sum(v) for v in found)
        return trace


@keras.saving.register_keras_serializable(package="minimand")
class Fishr(Transform):
    """A penalty on the differences between domains of the variance of the gradient: Fishr.

    Use `Fishr` if the training data come from several domains (hospitals, cameras, users), to favour weights that work
    in another domain. Choose the model honestly: the published gain depends on a choice by the test domain. On the
    Colored MNIST of DomainBed, Fishr has 52.0 % accuracy against 51.5 % of plain training (ERM) if the model is chosen
    by the training domains.

    L(w) -> L(w) + c / E sum_e |V_e - mean V|^2, e = 1, ..., E

    V_e is the unbiased variance of the gradient between the examples of a batch that belong to domain e, for each
    weight. V_e is exact, since the square of a noisy variance would penalise the noise; the cost is that of the
    estimator `"exact"` of `GradientVariancePenalty`.

    Args:
        strength: coefficient c >= 0, or a `keras.optimizers.schedules.LearningRateSchedule` of it by training step.
        domains: the domain of each example, an integer from 0 to E - 1: the key of an entry (batch,) of the model's
            inputs, if these are a dictionary (the model need not use the input), or a function of the `Batch` that
            returns the integers (batch,). An example with another number is in no domain; a domain with fewer than two
            examples in a batch is left out of the step.
        num_domains: number E >= 2 of domains.
        select: which weights count: `"all"`, `"kernels"` (rank 2 or more), a regular expression of paths, or a function
            of the variable. The last layer alone is much cheaper, and is the choice of Fishr's authors.
        name: name of the transform.

    Raises:
        TypeError: `domains` is neither a string nor a function.
        ValueError: a number is out of its range; in `compile`, `select` chooses nothing, batch normalisation, or
            earlier transforms; in `fit`, no input has the name `domains`.

    Source: Rame, Dancette and Cord, "Fishr: invariant gradient variances for out-of-distribution generalization", ICML
    2022, section 3 (there with biased variances).

    Examples:
        >>> import keras, numpy as np, minimand
        >>> inputs = {"x": keras.Input((3,), name="x"), "site": keras.Input((), dtype="int32", name="site")}
        >>> trainer = minimand.Trainer(keras.Model(inputs, keras.layers.Dense(1)(inputs["x"])))
        >>> trainer.compile("adam", "mse", transforms=[minimand.transforms.Fishr(1.0, "site", 2)])
        >>> x = {"x": np.ones((8, 3)), "site": np.arange(8) % 2}
        >>> history = trainer.fit(x, np.zeros((8, 1)), verbose=0)
    """

    def __init__(
        self,
        strength: Schedule,
        domains: str | Callable[[Batch], Tensor],
        num_domains: int,
        *,
        select: Select = "all",
        name: str | None = None,
    ) -> None:
        super().__init__(select=select, name=name)
        self.strength = self.check_schedule("strength", strength)
        if not isinstance(domains, str) and not callable(domains):
            raise TypeError(
                "Fishr: `domains` must be the key of an input or a function of the Batch. "
                f"Received: domains={domains!r}"
            )
        self.domains = domains
        self.num_domains = check_int("Fishr", "num_domains", num_domains, minimum=2)

    def build(self, model: keras.Model) -> None:
        super().build(model)
        check_separable("exact", model, "Fishr")

    def apply(self, objective: Objective) -> Objective:
        check_objective("exact", objective, "Fishr")

        def penalised(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            loss, aux = objective(weights, batch)
            gradients = ExampleGradients(objective, weights, batch.plain(), self.mask)
            return loss + ops.cast(self.value_now(self.strength) * self._distance(gradients), loss.dtype), aux

        return penalised

    def _distance(self, gradients: ExampleGradients) -> Tensor:
        """The mean squared distance of the domains' V from the mean V."""
        index = ops.cast(ops.reshape(self._domains_of(gradients.batch), (-1,)), "int32")
        members = ops.cast(index[:, None] == ops.arange(self.num_domains, dtype="int32"), gradients.dtype)
        present = ops.cast(ops.sum(members, axis=0) > 1, gradients.dtype)
        number = at_least(ops.sum(present), 1.0)
        distance = 0.0
        for variance in exact_moments(gradients, members)[1]:
            here = ops.reshape(present, (-1, *[1] * (len(variance.shape) - 1)))
            mean = ops.sum(here * variance, axis=0) / number
            distance = distance + ops.sum(here * ops.square(variance - mean))
        return distance / number

    def _domains_of(self, batch: Batch) -> Tensor:
        if callable(self.domains):
            return self.domains(copied(batch))
        if isinstance(batch.x, Mapping) and self.domains in batch.x:
            return batch.x[self.domains]
        known = f"the names {list(batch.x)}" if isinstance(batch.x, Mapping) else "no names"
        raise ValueError(
            "Fishr: `domains` must be the name of an input, or a function of the batch. "
            f"Received: domains={self.domains!r}, and inputs with {known}. Pass the inputs as a dictionary."
        )
