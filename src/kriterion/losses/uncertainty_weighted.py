"""Weights of the tasks of a model, learned as the uncertainty of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
from keras import ops

from kriterion._validation import check_choice, check_float, check_several
from kriterion.backend import Tensor
from kriterion.losses._wrapping import WrappingLoss
from kriterion.parametrizations import Bounded

_FORMS = ("regression", "classification")


@keras.saving.register_keras_serializable(package="kriterion")
class TaskUncertainty(WrappingLoss):
    """One task's loss, weighted by its learned uncertainty.

    min over s of mean_i e^-s l_i / 2 + s / 2 (regression) or mean_i e^-s l_i + s / 2 (classification)

    At the minimum s = log L or log 2 L, L the mean loss, and in both forms the weight of the loss is 1 / (2 L). s has
    bounds, because a loss of 0 or less would have no minimum over s alone; with them it is finite.

    Args:
        loss: a Keras loss, or the name of one; its reduction is not used.
        form: `"regression"`, where s is the logarithm of the variance if the loss is squared error, or
            `"classification"`.
        log_variance_range: bounds of s, which starts at 0.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss; `log_variance` is s, also in the logs.

    Raises:
        ValueError: the bounds do not enclose 0, or there is no such form.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Kendall, Gal, Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018, equations 7, 10.

    Examples:
        >>> import keras, numpy as np, kriterion
        >>> trainer = kriterion.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", kriterion.losses.TaskUncertainty("mean_squared_error"))
        >>> history = trainer.fit(np.random.rand(8, 3), np.ones((8, 1)), verbose=0)
    """

    def __init__(
        self,
        loss: Any,
        form: str = "regression",
        *,
        log_variance_range: tuple[float, float] = (-10.0, 10.0),
        reduction: str | None = "sum_over_batch_size",
        name: str = "task_uncertainty",
        dtype: Any = None,
    ) -> None:
        super().__init__(loss, reduction=reduction, name=name, dtype=dtype)
        owner = "TaskUncertainty"
        self.form = check_choice(owner, "form", form, _FORMS)
        low, high = check_several(owner, "log_variance_range", log_variance_range, 2)
        self.log_variance_range = (
            check_float(owner, "log_variance_range", low, below=0.0),
            check_float(owner, "log_variance_range", high, above=0.0),
        )

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        super().build(y_true_shape, y_pred_shape)
        within = Bounded(*self.log_variance_range)
        self._log_variance = self.add_weight((), 0.0, parametrization=within, name="log_variance")

    @property
    def log_variance(self) -> float:
        """The logarithm s of the task's variance."""
        return float(self._log_variance.numpy()) if self.built else 0.0

    @property
    def weight(self) -> float:
        """What the task's loss is multiplied by."""
        return math.exp(-self.log_variance) / (2 if self.form == "regression" else 1)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = self.values_of_loss(y_true, y_pred)
        log_variance = ops.cast(self._log_variance.value, values.dtype)
        factor = 0.5 if self.form == "regression" else 1.0
        return factor * ops.exp(-log_variance) * values + log_variance / 2

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "form": self.form, "log_variance_range": self.log_variance_range}


class UncertaintyWeighted(Mapping[str, TaskUncertainty]):
    """The losses of a model with several outputs, weighted by the uncertainty that each is found to have.

    min over w and all s_k of sum_k e^-s_k L_k(w) / 2 + s_k / 2, without the first 1/2 for classification

    A mapping of the output names to a `TaskUncertainty` each, for `Trainer.compile(optimizer, loss=...)`. With the
    best s the network minimises the sum of log L_k / 2: tasks count by the ratio by which their loss falls, in
    whatever unit it is. `loss_weights` multiply both terms of a task.

    Args:
        losses: a Keras loss, or the name of one, for each output name.
        classification: names of the outputs in the form for classification; the others have that for regression.
        log_variance_range: bounds of each s.

    Raises:
        ValueError: `losses` is empty or not a mapping, or `classification` names no output.

    Source: Kendall, Gal, Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018, equations 7, 10.

    Examples:
        >>> import keras, numpy as np, kriterion
        >>> inputs = keras.Input((3,))
        >>> outputs = {"size": keras.layers.Dense(1)(inputs), "kind": keras.layers.Dense(2, "softmax")(inputs)}
        >>> trainer = kriterion.Trainer(keras.Model(inputs, outputs))
        >>> losses = {"size": "mean_squared_error", "kind": "sparse_categorical_crossentropy"}
        >>> loss = kriterion.losses.UncertaintyWeighted(losses, classification=["kind"])
        >>> trainer.compile("adam", loss)
        >>> targets = {"size": np.ones((8, 1)), "kind": np.arange(8) % 2}
        >>> history = trainer.fit(np.random.rand(8, 3), targets, verbose=0)
        >>> sorted(loss.weights)
        ['kind', 'size']
    """

    def __init__(
        self,
        losses: Mapping[str, Any],
        *,
        classification: Any = (),
        log_variance_range: tuple[float, float] = (-10.0, 10.0),
    ) -> None:
        if not isinstance(losses, Mapping) or not losses:
            raise ValueError(
                "UncertaintyWeighted: `losses` must be a mapping of output names to losses; for a single output there "
                f"is TaskUncertainty. Received: losses={losses!r}"
            )
        named = isinstance(classification, Iterable) and not isinstance(classification, str)
        if not named or not set(classification) <= set(losses):
            raise ValueError(
                f"UncertaintyWeighted: `classification` must be a list of names among {sorted(losses)}. "
                f"Received: classification={classification!r}"
            )
        self._tasks = {
            name: TaskUncertainty(
                loss,
                _FORMS[name in classification],
                log_variance_range=log_variance_range,
                name=f"{name}_uncertainty",
            )
            for name, loss in losses.items()
        }

    def __getitem__(self, name: str) -> TaskUncertainty:
        return self._tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def weights(self) -> dict[str, float]:
        """What each output's loss is multiplied by."""
        return {name: task.weight for name, task in self._tasks.items()}
