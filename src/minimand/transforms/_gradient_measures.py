"""The variance of the gradient between examples: in the logs of `fit`, and for the optimizers SVAG and MSVAG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._objective import DataObjective
from minimand._ops import at_least, at_least_float32, safe_sqrt
from minimand._selection import Select
from minimand._validation import check_choice, check_int
from minimand.backend import Tensor
from minimand.gradients._exact import check_separable, mixing_layers, tapped_layers
from minimand.gradients._examples import ExampleGradients
from minimand.gradients._moments import ESTIMATORS, estimated_variance, mean_and_variance
from minimand.gradients._statistics import evidence_sums, ratio
from minimand.optimizers import MSVAG, SVAG
from minimand.transforms._base import Batch, Objective, Transform, Weights


def check_objective(estimator: str, objective: Objective, owner: str) -> None:
    """Raise a `ValueError` if the estimator needs the loss of the data alone, and other transforms come before."""
    if estimator == "exact" and not isinstance(objective, DataObjective):
        raise ValueError(
            f'{owner}: estimator="exact" needs the loss of the data without other transforms. Received: earlier '
            'transforms. Put it first in `transforms`, or use estimator="probe".'
        )


def fixed_gradients(
    objective: Objective, weights: Weights, batch: Batch, aux: Any, mask: Sequence[bool]
) -> ExampleGradients:
    """The examples' gradients as constants, after the pass with this aux."""
    fixed = [ops.stop_gradient(weight) for weight in weights]
    kept = None
    if isinstance(objective, DataObjective):
        kept = objective.kept_gradient(list(compress(weights, mask)), batch, aux)
    return ExampleGradients(objective, fixed, batch, mask, differentiable=False, kept=kept)


def chosen_estimators(
    estimator: str, model: keras.Model, mask: Sequence[bool], of_data: bool, owner: str
) -> list[str | None]:
    """For each weight the estimator in use, or None if the weight is not selected.

    Args:
        estimator: `"auto"`, or the estimator of all weights.
        model: the built model.
        mask: which weights are selected.
        of_data: whether the objective is the loss of the data alone.
        owner: name of the transform, for messages.
    """
    if estimator != "auto":
        check_separable(estimator, model, owner)
        return [estimator if selected else None for selected in mask]
    separable = of_data and not mixing_layers(model)
    closed = {k for layer in tapped_layers(model, mask) for k in layer.indices} if separable else set()
    return [("exact" if k in closed else "micro_batch") if selected else None for k, selected in enumerate(mask)]


def by_estimator(estimators: Sequence[str | None]) -> Iterator[tuple[str, list[bool]]]:
    """Each estimator in use, and the mask of its weights."""
    for estimator in ESTIMATORS:
        mask = [chosen == estimator for chosen in estimators]
        if any(mask):
            yield estimator, mask


# Statistics of the gradient, in the logs of `fit`.


@keras.saving.register_keras_serializable(package="minimand")
class MeasureGradient(Transform):
    """A measurement of the gradient and its variance between examples, every so many steps, for the logs.

    Use `MeasureGradient` to see whether the batch is too small or the learning rate too high; it does not change the
    training.

    L(w) -> L(w)

    With the gradient mean g of a measured batch of n examples and the variance V_j of one example's gradient by weight
    j, sums over an epoch's measurements of tr = sum_j V_j and of |G|^2 = |mean g|^2 - tr / n give

    - `gradient_norm`: root of the mean of |mean g|^2, the gradient that training uses;
    - `gradient_variance`: the mean of tr;
    - `gradient_signal_to_noise`: |G|^2 / tr, at least 0;
    - `gradient_noise_scale`: tr / |G|^2, in examples: a batch of this size has as much noise as signal. It is infinite
      if no signal is left above the noise;
    - `gradient_evidence`, with `"exact"`: the mean of 1 - n / D sum_j (mean g_j)^2 / V_j over the D weights that vary.
      A positive mean says that the gradient is noise alone, a signal to stop.

    These are training metrics like any other, for `CSVLogger`, `TensorBoard`, `EarlyStopping`; `evaluate` leaves them
    out. An epoch without a measurement repeats the last one. A batch of a single example has no variance and is not
    measured; until the first measurement, the results are NaN. The gradient is that of the objective that earlier
    transforms make of the loss, without the terms that they add for all examples together.

    With `every=50`, training takes 5 to 15 % longer (`benchmarks/gradient_variance_cost.py`).

    Args:
        every: number >= 1 of steps from one measurement to the next; the first step is measured.
        estimator: `"probe"`, `"micro_batch"` or `"exact"`, as in `gradients.gradient_moments`.
        micro_batches: number K >= 2 of parts.
        select: which weights count: `"all"`, `"kernels"` (rank 2 or more), a regular expression of paths, or a function
            of the variable.
        seed: integer seed of the probe's signs, or None.
        name: name of the transform, and the beginning of the keys.

    Raises:
        ValueError: a number is out of its range; in `compile`, `select` chooses nothing, batch normalisation without
            `"micro_batch"`, or `"exact"` after other transforms.

    Source: McCandlish et al., "An empirical model of large-batch training", 2018, section 2 and appendix A.1;
    evidence: Mahsereci et al., "Early stopping without a validation set", 2017, equation 8.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", "mse", transforms=[minimand.transforms.MeasureGradient(every=10)])
        >>> x = np.random.default_rng(0).normal(size=(64, 3))
        >>> history = trainer.fit(x, x[:, :1], epochs=2, verbose=0)
        >>> sorted(history.history)
        ['gradient_noise_scale', 'gradient_norm', 'gradient_signal_to_noise', 'gradient_variance', 'loss']
    """

    def __init__(
        self,
        *,
        every: int = 50,
        estimator: str = "probe",
        micro_batches: int = 8,
        select: Select = "all",
        seed: int | None = None,
        name: str = "gradient",
    ) -> None:
        super().__init__(select=select, seed=seed, name=name)
        self.every = check_int("MeasureGradient", "every", every, minimum=1)
        self.estimator = check_choice("MeasureGradient", "estimator", estimator, ESTIMATORS)
        self.micro_batches = check_int("MeasureGradient", "micro_batches", micro_batches, minimum=2)
        self.add_step_counter()
        self.stop_counting()
        self._measured: list[int] = []

    def build(self, model: keras.Model) -> None:
        super().build(model)
        check_separable(self.estimator, model, "MeasureGradient")
        measured = [id(weight) for weight in self.selected]
        if measured != self._measured:
            # A metric of the layer that holds the transform's variables is one of the trainer's metrics.
            if self._measured:
                del self.state.statistics
            self._measured = measured
            evidence = self.estimator == "exact"
            self.state.statistics = GradientStatistics(self.name, tensors=len(measured), evidence=evidence)

    @property
    def statistics(self) -> GradientStatistics:
        """The sums of the epoch's measurements, in a trainer."""
        return self.state.statistics

    # A training loop that counts the steps compiles or runs each step without the measurement that it does not need.
    # In other loops `_due` is None and the variable `step` says whether to measure, for `keras.ops.cond`.

    counts_steps = True

    def start_counting(self) -> None:
        self._count = int(ops.convert_to_numpy(self.step))

    def tick(self) -> bool:
        due = self._count % self.every == 0
        self._due: bool | None = due
        self._count += 1
        return due

    def stop_counting(self) -> None:
        self._due = True if self.every == 1 else None

    def apply(self, objective: Objective) -> Objective:
        check_objective(self.estimator, objective, "MeasureGradient")

        def measured(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            loss, aux = objective(weights, batch)
            if batch.gradient_weight is None:
                self._measure(lambda: fixed_gradients(objective, weights, batch, aux, self.mask))
            return loss, aux

        return measured

    def _measure(self, make: Callable[[], ExampleGradients]) -> None:
        step = self.next_step()
        due = ops.equal(step % self.every, 0) if self._due is None else self._due
        if due is False:
            return
        gradients = make()
        state = self.seed_generator.state
        before = state.value
        seed = self.seed_generator.next()
        if due is True:
            self.statistics.update_state(*self._found(gradients, seed), gradients.count > 1)
            return
        # As in a loop that counts, each measurement has the next draw.
        state.assign(ops.where(due, state.value, before))
        dtype = gradients.dtype
        nothing = ops.zeros((3, sum(self.mask)), dtype), ops.zeros((2,), dtype)
        sums, others = ops.cond(due, lambda: self._found(gradients, seed), lambda: nothing)
        self.statistics.update_state(sums, others, ops.logical_and(due, gradients.count > 1))

    def _found(self, gradients: ExampleGradients, seed: Tensor) -> tuple[Tensor, Tensor]:
        """|mean g|^2, tr and tr / n by tensor, (3, tensors); and the evidence and 1."""
        n = ops.cast(gradients.count, gradients.dtype)
        mean, variance = mean_and_variance(gradients, self.estimator, self.micro_batches, seed)
        norms = ops.stack([ops.sum(ops.square(at_least_float32(m))) for m in mean])
        traces = ops.stack([ops.sum(v) for v in variance])
        evidence = ops.zeros_like(n)
        if self.estimator == "exact":
            total, count = evidence_sums(mean, variance, ops)
            evidence = 1.0 - n * total / at_least(count, 1.0)
        return ops.stack([norms, traces, traces / n]), ops.stack([evidence, ops.ones_like(evidence)])


class GradientStatistics(keras.metrics.Metric):
    """Sums over the measurements of an epoch; they stay until the first measurement of the next epoch.

    Args:
        name: the beginning of the keys.
        tensors: number of weight tensors.
        evidence: whether the evidence is one of the results.
    """

    def __init__(self, name: str, *, tensors: int, evidence: bool) -> None:
        super().__init__(name=f"{name}_statistics", dtype="float32")
        keys = ["norm", "variance", "signal_to_noise", "noise_scale", *(["evidence"] if evidence else [])]
        self.keys = [f"{name}_{key}" for key in keys]
        self.sums = self.add_variable((3, tensors), "zeros", "float32", name="sums")
        self.others = self.add_variable((2,), "zeros", "float32", name="others")
        self.stale = self.add_variable((), "zeros", "float32", name="stale")
        # The results are kept, since Keras asks for them at every step; NaN before the first measurement.
        self.found = self.add_variable((len(keys),), keras.initializers.Constant(np.nan), "float32", name="found")

    def update_state(self, sums: Tensor, others: Tensor, measured: Any) -> None:
        """Add a measurement, if there was one."""
        new, sums, others = (ops.cast(value, "float32") for value in (measured, sums, others))
        kept = 1.0 - new * self.stale.value
        self.sums.assign(kept * self.sums.value + new * sums)
        self.others.assign(kept * self.others.value + new * others)
        self.stale.assign((1.0 - new) * self.stale.value)
        self.found.assign(self._results()[: len(self.keys)])

    def reset_state(self) -> None:
        """Replace the sums at the next measurement."""
        self.stale.assign(1.0)

    def result(self) -> dict[str, Tensor]:
        """The keys of the logs."""
        return dict(zip(self.keys, ops.unstack(self.found.value), strict=True))

    def _results(self) -> Tensor:
        evidence, count = ops.unstack(self.others.value)
        norms, trace, noise = ops.unstack(ops.sum(self.sums.value, axis=1) / count)
        signal = norms - noise
        to_noise = ops.where((signal <= 0) | (trace <= 0), 0.0, signal / at_least(trace, 1e-30))
        return ops.stack([safe_sqrt(norms), trace, to_noise, ratio(trace, signal, ops), evidence / count])

    def by_tensor(self) -> np.ndarray:
        """The means of |mean g|^2, tr and tr / n of each weight tensor, (3, tensors)."""
        return ops.convert_to_numpy(self.sums) / max(float(ops.convert_to_numpy(self.others)[1]), 1.0)


# Optimizers that take the variance of each batch's gradient.


@keras.saving.register_keras_serializable(package="minimand")
class MiniBatchVariance(Transform):
    """The variance of each step's gradient, for the optimizers `SVAG` and `MSVAG` with `variance="mini_batch"`.

    Use `MiniBatchVariance` together with one of these optimizers, which need it.

    L(w) -> L(w); s_j = V_j / n for each weight, with the variance V_j of one example's gradient in a batch of n

    The estimators are those of `GradientVariancePenalty`. With `"auto"`, s is exact for Dense layers and convolutions,
    and an estimate from K smaller gradients for other weights. The noise of one probe makes the steps of the optimizers
    too large, because their factor is not linear in s. A single example has no variance: s = 0.

    Args:
        estimator: `"auto"`, `"exact"`, `"micro_batch"` or `"probe"`.
        micro_batches: number K >= 2 of parts.
        seed: integer seed of the probe's signs, or None.
        name: name of the transform.

    Attributes:
        estimators: the estimator of each trainable weight of the model; after `compile`.

    Raises:
        ValueError: an argument is out of its range; in `compile`, another optimizer, batch normalisation with
            `"exact"` or `"probe"`, or `"exact"` after other transforms.

    Source: Balles and Hennig, "Dissecting Adam: the sign, magnitude and variance of stochastic gradients", ICML 2018,
    equation 4.

    Examples:
        >>> import keras, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> optimizer = minimand.optimizers.MSVAG(0.1, variance="mini_batch")
        >>> trainer.compile(optimizer, "mse", transforms=[minimand.transforms.MiniBatchVariance()])
    """

    def __init__(
        self, *, estimator: str = "auto", micro_batches: int = 8, seed: int | None = None, name: str | None = None
    ) -> None:
        super().__init__(seed=seed, name=name)
        self.estimator = check_choice("MiniBatchVariance", "estimator", estimator, ("auto", *ESTIMATORS))
        self.micro_batches = check_int("MiniBatchVariance", "micro_batches", micro_batches, minimum=2)
        self._of_data = False

    def bind(self, optimizer: keras.optimizers.Optimizer) -> None:
        if not isinstance(optimizer, (SVAG, MSVAG)) or optimizer.variance != "mini_batch":
            raise ValueError(
                'MiniBatchVariance: `optimizer` must be minimand.optimizers.SVAG or MSVAG with variance="mini_batch". '
                f"Received: optimizer={type(optimizer).__name__}. Compile with such an optimizer."
            )
        self.optimizer = optimizer

    def build(self, model: keras.Model) -> None:
        super().build(model)
        self.weights = list(model.trainable_variables)
        every = [True] * len(self.weights)
        self.estimators = chosen_estimators(self.estimator, model, every, self._of_data, "MiniBatchVariance")
        self.splits_batches = self.estimator == "auto" and "micro_batch" in self.estimators
        for weight in self.weights:
            self.optimizer.track(weight, self.add_weight_like(weight, "noise"))

    def apply(self, objective: Objective) -> Objective:
        check_objective(self.estimator, objective, "MiniBatchVariance")
        self._of_data = isinstance(objective, DataObjective)

        def measured(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            loss, aux = objective(weights, batch)
            if batch.gradient_weight is not None:
                return loss, aux
            seed = self.seed_generator.next()
            for estimator, mask in by_estimator(self.estimators):
                gradients = fixed_gradients(objective, weights, batch, aux, mask)
                found = estimated_variance(gradients, estimator, self.micro_batches, seed)
                for weight, variance in zip(compress(self.weights, mask), found, strict=True):
                    noise = self.variable_of(weight, "noise").value
                    count = ops.cast(gradients.count, variance.dtype)
                    of_mean = ops.cast(ops.stop_gradient(variance) / count, noise.dtype)
                    # The value 0, with the derivative s by the optimizer's variable.
                    loss = loss + ops.cast(ops.sum(of_mean * (noise - ops.stop_gradient(noise))), loss.dtype)
            return loss, aux

        return measured
