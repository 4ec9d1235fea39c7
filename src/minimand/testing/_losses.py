"""The contract of a loss."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._keras import set_keras_mask
from minimand.losses._base import trainable_losses
from minimand.testing._suite import (
    TrainedSuite,
    compiled,
    finite_difference,
    fit,
    gradient,
    network,
    numpy,
    raises,
    require,
    restored,
    same_numbers,
    skip,
    trainer_of,
    values_of,
)

_KINDS = ("numbers", "classes", "binary", "embeddings")


def built(loss: Any, y_true: np.ndarray, y_pred: np.ndarray) -> Any:
    """The loss, with the variables, if it has some, for examples like these."""
    for part in trainable_losses(loss):
        part.build_once((None, *y_true.shape[1:]), (None, *y_pred.shape[1:]))
    return loss


def _variables(loss: Any) -> list[Any]:
    """The trainable variables of a loss and of the losses in it."""
    return [variable for part in trainable_losses(loss) for variable in part.trainable_variables]


class LossSuite(TrainedSuite):
    """The contract of a `keras.losses.Loss`, or a `minimand.losses.TrainableLoss`, as tests that pytest collects.

    loss(y, f) is sum_i u_i l_i / n ("sum_over_batch_size"), sum_i u_i l_i ("sum") or each u_i l_i (None), with the
    examples' values l_i those of a reference in float64, u_i their sample weights, and 0 for masked ones

    A subclass whose name begins with `Test` gives `make` and `reference`. Checked are values and gradients against the
    reference on the backend in use, and so, where the suite runs on each, equality across backends; reductions, sample
    weights, masks, shapes, dtypes, NaN, zero and extreme predictions; configuration, saving, copies and resuming;
    training by `Trainer` and by stock `compile`, compiled and eager, in mixed precision, on two devices; and that
    the same seeds give the same numbers. A loss with variables is compared as it evaluates, after a step of training.

    Attributes:
        targets: what the loss is for. `"numbers"`: targets and predictions (batch, ..., d) of any size; `"classes"`:
            indices (batch, ...) and probabilities (batch, ..., K); `"binary"`: targets of 0 and 1 and probabilities;
            `"embeddings"`: class indices and vectors (batch, ..., d).
        shape: one example's prediction, (d,) or with more axes.
        any_rank: whether predictions may have axes between the batch's and those of `shape`, as sequences have.
        coupled: whether an example's value depends on the others in its batch, even after training. (Then a sample
            weight of k need not do what k copies do.)
        uses_targets: whether the targets matter.
        hides_nan: whether NaN in masked positions does not matter, as in Minimand's losses. Keras's product with the
            mask keeps it; masked numbers must not matter in any loss.
        rescaled: whether a variable's gradient is meant to be another than that of the value.
        largest: the largest deviation of a prediction from its target at which value and gradient are finite.
        rtol: relative tolerance of values, and that of gradients by 10.

    Source: `keras.losses.Loss` for the contract; the idea of a suite as part of a library is that of
    `pandas.tests.extension` and `optuna.testing`.

    Examples:
        >>> import keras, numpy as np
        >>> from minimand import testing
        >>> class TestHuber(testing.LossSuite):
        ...     def make(self, **arguments):
        ...         return keras.losses.Huber(delta=0.5, **arguments)
        ...     def reference(self, loss, y_true, y_pred):
        ...         error = np.abs(y_true - y_pred)
        ...         return np.where(error < 0.5, error**2 / 2, 0.5 * error - 0.125).mean(axis=-1)
        >>> suite = TestHuber()
        >>> suite.setup_method()
        >>> suite.test_the_values_are_the_references()
    """

    targets: str = "numbers"
    shape: tuple[int, ...] = (3,)
    any_rank: bool = True
    coupled: bool = False
    uses_targets: bool = True
    hides_nan: bool = True
    rescaled: bool = False
    largest: float = 1e9
    rtol: float = 1e-5

    def make(self, **arguments: Any) -> keras.losses.Loss:
        """A new loss; `arguments` are those of `keras.losses.Loss`: `reduction`, `name`, `dtype`."""
        raise NotImplementedError

    def reference(self, loss: Any, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        """Each example's value, (batch, ...), in float64 NumPy; `loss` is there for its variables' values."""
        raise NotImplementedError

    def reference_gradient(self, loss: Any, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        """The gradient of the sum of the values by the predictions: by default central differences of `reference`.

        To be given where weights or scores are meant to be constants to the gradient.
        """
        return finite_difference(lambda p: self.reference(loss, y_true, p).sum(), y_pred)

    def examples(self, random: np.random.Generator, *batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Targets and predictions in float32 for batch axes of these sizes."""
        predictions = random.normal(size=(*batch, *self.shape))
        if self.targets == "numbers":
            return random.normal(size=predictions.shape).astype("float32"), predictions.astype("float32")
        if self.targets == "binary":
            y = random.integers(2, size=predictions.shape)
            return y.astype("float32"), (1 / (1 + np.exp(-predictions))).astype("float32")
        if self.targets == "classes":
            predictions = np.exp(predictions) / np.exp(predictions).sum(axis=-1, keepdims=True)
        y = random.integers(self.shape[-1], size=predictions.shape[:-1])
        return y.astype("float32"), predictions.astype("float32")

    # How a loss is brought to where it is compared.

    def _settled(self, **arguments: Any) -> Any:
        """A loss after a step of training, from now on as it evaluates."""
        y, p = self.examples(np.random.default_rng(5), 20)
        loss = built(self.make(**arguments), y, p)
        parts = trainable_losses(loss)
        if parts:
            loss(y, p)
        for part in parts:
            part.training = False
        return loss

    def _last_layers(self) -> list[keras.layers.Layer]:
        activation = {"classes": "softmax", "binary": "sigmoid"}.get(self.targets)
        flat = keras.layers.Dense(math.prod(self.shape), activation, dtype="float32")
        return [flat, keras.layers.Reshape(self.shape, dtype="float32")]

    def _targets(self, random: np.random.Generator, rows: int) -> np.ndarray:
        return self.examples(random, rows)[0]

    def _compiled(self, *, dropout: bool = False, **arguments: Any) -> Any:
        # Not by a rule that divides by the gradient's size: where it is 0 that would make rounding a step.
        model = network(self._last_layers, dropout=dropout)
        return trainer_of(model, keras.optimizers.SGD(0.02), self.make(), **arguments)

    # Values and gradients.

    def test_the_suite_is_told_what_the_loss_is_for(self) -> None:
        require(self.targets in _KINDS, f"`targets` must be one of {_KINDS}. Received: {self.targets!r}")

    def test_the_values_are_the_references(self) -> None:
        for batch in ((6,), (1,), (2, 4)) if self.any_rank else ((8,), (1,)):
            y, p = self.examples(self.random, *batch)
            loss = self._settled(reduction=None)
            actual = numpy(compiled(loss)(y, p))
            require(actual.shape == batch, f"Predictions {p.shape} give a loss {actual.shape}, which must be {batch}.")
            expected = self.reference(loss, y.astype("float64"), p.astype("float64"))
            same_numbers(actual, expected, "The loss is not the reference.", rtol=self.rtol, atol=self.rtol)

    def test_the_gradient_is_the_references(self) -> None:
        y, p = self.examples(self.random, 5)
        loss = self._settled(reduction="sum")
        actual = gradient(lambda v: loss(y, v), p)[0]
        expected = self.reference_gradient(loss, y.astype("float64"), p.astype("float64"))
        same_numbers(actual, expected, "Not the gradient by the predictions.", rtol=10 * self.rtol, atol=10 * self.rtol)
        require(np.any(actual != 0), "The gradient by the predictions is zero everywhere.")

    def test_the_variables_gradient_is_the_references(self) -> None:
        loss = self._settled(reduction="sum")
        variables = _variables(loss)
        if not variables or self.rescaled:
            skip("no variables, or with a gradient of their own")
        y, p = self.examples(self.random, 5)
        wide_y, wide_p = y.astype("float64"), p.astype("float64")
        for variable in variables:
            start = variable.numpy()

            def total(value: np.ndarray, variable: Any = variable) -> float:
                variable.assign(value)
                return float(self.reference(loss, wide_y, wide_p).sum())

            # Variables are in float32: rounding 1e-7 / step, truncation step^2.
            expected = finite_difference(total, start, step=5e-3)
            variable.assign(start)

            def value(v: Any, variable: Any = variable) -> Any:
                with keras.StatelessScope([(variable, v)]):
                    return loss(y, p)

            actual = gradient(value, start)[0]
            same_numbers(actual, expected, f"Not the gradient by {variable.name}.", rtol=2e-3, atol=2e-3)

    # What Keras promises of any loss.

    def test_reductions_and_sample_weights(self) -> None:
        y, p = self.examples(self.random, 5)
        weights = self.random.uniform(size=5).astype("float32")
        each, weighted = (numpy(self._settled(reduction=None)(y, p, sample_weight=w)) for w in (None, weights))
        for reduction, reduced in (("sum_over_batch_size", np.mean), ("sum", np.sum)):
            loss = self._settled(reduction=reduction)
            for values, w in ((each, None), (weighted, weights)):
                actual = numpy(loss(y, p, sample_weight=w))
                same_numbers(actual, reduced(values), f"Not the {reduction}.", rtol=1e-5, atol=1e-6)
        if not self.coupled:
            same_numbers(weighted, weights * each, "A sample weight is not a factor.", rtol=1e-5, atol=1e-6)

    def test_a_weight_counts_as_repetitions_do(self) -> None:
        """In the first batch of training too, where a loss may measure something."""
        if self.coupled:
            skip("examples depend on each other")
        y, p = self.examples(self.random, 9)
        counts = np.arange(9) % 3
        rows = np.repeat(np.arange(9), counts)
        repeated = numpy(built(self.make(reduction="sum"), y, p)(y[rows], p[rows]))
        weighted = numpy(built(self.make(reduction="sum"), y, p)(y, p, sample_weight=counts.astype("float32")))
        same_numbers(weighted, repeated, "A sample weight of k is not k examples.", rtol=1e-5, atol=1e-6)

    def test_a_batch_of_which_nothing_counts(self) -> None:
        y, p = self.examples(self.random, 4)
        loss = self._settled()
        weights = np.zeros(4, "float32")
        same_numbers(numpy(loss(y, p, sample_weight=weights)), 0.0, "All sample weights are 0, the loss is not.")
        slope = gradient(lambda v: loss(y, v, sample_weight=weights), p)[0]
        same_numbers(slope, 0 * slope, "All sample weights are 0, the gradient is not.")

    def test_masked_positions_do_not_count(self) -> None:
        """Padding may hold anything; value and gradient are those of the positions that count."""
        batch = (2, 4) if self.any_rank else (8,)
        mask = np.reshape([True, True, False, False, True, False, True, False], batch)
        y, p = self.examples(self.random, *batch)
        loss = self._settled(reduction="sum")

        def hidden(values: np.ndarray) -> np.ndarray:
            shown = np.reshape(mask, batch + (1,) * (values.ndim - len(batch)))
            return np.where(shown, values, np.nan if self.hides_nan else 1.0).astype("float32")

        def masked(predictions: Any) -> Any:
            predictions = predictions + 0.0
            set_keras_mask(predictions, ops.convert_to_tensor(mask))
            return loss(hidden(y), predictions)

        expected = numpy(loss(y[mask], p[mask]))
        value = numpy(masked(ops.convert_to_tensor(hidden(p))))
        same_numbers(value, expected, "Masked positions change the loss.", rtol=1e-5, atol=1e-6)
        slope = gradient(masked, hidden(p))[0]
        require(np.isfinite(slope).all(), f"NaN in masked positions gets into the gradient: {slope}")
        require((slope[~mask] == 0).all(), f"Masked positions have a gradient: {slope[~mask]}")

    def test_shapes_that_do_not_match_are_refused(self) -> None:
        """(n,) and (n, 1) would broadcast to (n, n), silently."""
        if not self.uses_targets:
            skip("targets are not used")
        p = self.examples(self.random, 4)[1]
        longer = self.examples(self.random, 6)[0]
        loss = self._settled(reduction=None)
        # Which error it is depends on the framework.
        with raises(Exception, f"Targets {longer.shape} with predictions {p.shape} must be refused."):
            loss(longer, p)

    def test_nan_is_not_hidden(self) -> None:
        y, p = self.examples(self.random, 4)
        p[1] = np.nan
        value = numpy(self._settled()(y, p))
        require(np.isnan(value), f"A prediction is NaN, but the loss is {value}: training would go on with nonsense.")

    def test_zero_and_extreme_predictions(self) -> None:
        loss = self._settled(reduction="sum")
        for y, p in self._extremes():
            value, (slope,) = numpy(loss(y, p)), gradient(lambda v, y=y: loss(y, v), p)
            require(np.isfinite(value), f"The loss is {value} for targets {y} and predictions {p}.")
            require(np.isfinite(slope).all(), f"The gradient is {slope} for targets {y} and predictions {p}.")

    def _extremes(self) -> list[tuple[np.ndarray, np.ndarray]]:
        y, p = self.examples(self.random, 4)
        if self.targets == "classes":
            right = np.eye(self.shape[-1], dtype="float32")[y.astype(int)]
            return [(y, right), (y, np.roll(right, 1, axis=-1)), (y, np.full_like(p, 1 / self.shape[-1]))]
        if self.targets == "binary":
            return [(y, y), (y, 1 - y), (y, np.full_like(p, 0.5))]
        sizes = (0.0, 1e-38, 1e-20, 1e-8, 1e4, self.largest)
        predictions = [(size * np.sign(p)).astype("float32") for size in sizes]
        if self.targets == "numbers":
            return [(y, 0 * p), (p, p), *((0 * y, each) for each in predictions)]
        return [(y, each) for each in predictions]

    def test_dtypes(self) -> None:
        """Half and double precision are computed in the loss's own dtype, and whole targets are numbers."""
        y, p = self.examples(self.random, 5)
        loss = self._settled(reduction=None)
        for dtype in ("float16", "bfloat16", "float64"):
            rounded = p.astype("float64") if dtype == "float64" else ops.cast(p, dtype)
            value = loss(y, rounded)
            found = keras.backend.standardize_dtype(value.dtype)
            require(found == loss.dtype, f"The loss of {dtype} predictions must be in {loss.dtype}. Received: {found}")
            exact = numpy(ops.cast(rounded, "float32")).astype("float64")
            expected = self.reference(loss, y.astype("float64"), exact)
            same_numbers(numpy(value), expected, f"The loss of {dtype} predictions.", rtol=self.rtol, atol=self.rtol)
        whole = np.rint(y)
        same_numbers(numpy(loss(whole.astype("int32"), p)), numpy(loss(whole, p)), "Whole targets.", rtol=1e-6)

    # What is kept.

    def test_the_configuration_makes_an_equal_loss(self) -> None:
        loss = self.make(reduction="sum", name="mine")
        again = restored(loss)
        require((again.name, again.reduction) == ("mine", "sum"), "`name` or `reduction` is not in the configuration.")
        y, p = self.examples(self.random, 4)

        def value(made: Any) -> np.ndarray:
            keras.utils.set_random_seed(7)
            return numpy(built(made, y, p)(y, p))

        same_numbers(value(again), value(loss), "Another value: an argument is not in the configuration.", rtol=1e-6)

    def test_copies_are_independent(self) -> None:
        loss = self._settled()
        y, p = self.examples(self.random, 4)
        before = float(numpy(loss(y, p)))
        for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            for part in trainable_losses(twin):
                part.training = False
            require(float(numpy(twin(y, p))) == before, "A copy has another value.")
            for variable in _variables(twin):
                variable.assign(variable.numpy() + 0.25)
            require(float(numpy(loss(y, p))) == before, "A change of a copy's variables changes the original.")

    # How it is trained.

    def test_training_changes_weights_and_variables(self) -> None:
        x, y = self._data()
        trainer = self._compiled()
        trainer.prepare(x, y)
        variables = _variables(trainer.loss)
        trained = {id(variable) for variable in trainer.trainable_variables}
        require({id(v) for v in variables} <= trained, "The trainer does not know the loss's variables.")
        weights = trainer.model.trainable_variables
        before, at_first = values_of(weights), values_of(variables)
        fit(trainer, x, y)
        changed = [np.any(a != b) for a, b in zip(values_of(weights), before, strict=True)]
        require(any(changed), "Training left all weights as they were.")
        for variable, old in zip(variables, at_first, strict=True):
            require(np.any(variable.numpy() != old), f"Training left the loss's {variable.name} as it was.")

    def test_stock_compile_works_or_is_refused(self) -> None:
        """A loss with variables, which stock `compile` would not train, must say so."""
        x, y = self._data()
        trainer = self._compiled()
        model = network(self._last_layers)
        model.compile(keras.optimizers.SGD(0.02), self.make())
        if not trainable_losses(trainer.loss):
            same_numbers(fit(model, x, y)["loss"], fit(trainer, x, y)["loss"], "`fit` differs.", rtol=1e-5, atol=1e-6)
            return
        with raises(RuntimeError, "Stock `compile` took a loss with variables, which it does not train.") as refusal:
            fit(model, x, y)
        error = str(refusal.exception)
        require("minimand.Trainer" in error, f"The error must name minimand.Trainer. Received: {error}")
