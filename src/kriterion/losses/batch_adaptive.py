"""A loss that weights examples by running statistics of the batches' losses."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import ops

from kriterion._validation import check_choice, check_float, check_int
from kriterion.backend import Tensor
from kriterion.losses._batch_statistics import WEIGHTINGS
from kriterion.losses._example_weighted import ExampleWeighted
from kriterion.losses._running_mean import moved_mean
from kriterion.losses.robust import chosen_shape


@keras.saving.register_keras_serializable(package="kriterion")
class BatchAdaptive(ExampleWeighted):
    """A loss whose examples are weighted by where their loss lies among those of the last batches.

    mean_i v_i l_i, with a running statistic S <- m S + (1 - m) S(batch), S(first batch) at first

    - `"density"` (gradient harmonising): S are the fractions of examples in each of B equal bins of
      g = 1 - exp(-l), which for cross-entropy is the norm of the gradient by the logit; v = 1/(B S(bin of g)), so that
      easy and hard examples weigh as much together as the rare ones between them.
    - `"self_paced"`: S is the quantile of the losses below which the given `share` of examples lies; v = 1 if l <= S,
      else 0.
    - `"standardised"`: S is 1.4826 median sqrt(l), the spread of the errors; v is the weight of a robust loss,
      (u^2/|a-2| + 1)^(a/2-1) with u = sqrt(l)/(c S).

    The statistics change in training only; until the first batch of training all weights are 1.

    Not proper: with `"density"` a constant prediction for a binary target converges to 1/2, to within a bin, whatever
    the base rate; under squared error, `"self_paced"` converges to a trimmed mean, and `"standardised"` to the
    M-estimate of rho with the median absolute deviation for its scale.

    Args:
        loss: a Keras loss, or the name of one; its reduction is not used.
        weighting: `"density"`, `"self_paced"` or `"standardised"`.
        momentum: m in [0, 1); 0 uses each batch by itself.
        bins: B, at least 2, of `"density"`; by default 10.
        share: of `"self_paced"`, in (0, 1]; by default 0.8.
        alpha: shape a <= 2 of the robust weight of `"standardised"`, -inf included; by default 0, Cauchy's.
        lam: instead of `alpha`, the power-transform coordinate (`kriterion.losses.shape_of_power`), at most 0.
        scale: c > 0 of `"standardised"`, in units of the errors' spread; by default 2.
        differentiate: whether the gradient goes through the weights of `"standardised"` (not through S).
        normalize: whether the weights are divided by their mean, so that the learning rate keeps its meaning.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss. A sample weight of k makes an example count as k do, masked ones do not count.

    Raises:
        TypeError: `differentiate` or `normalize` is not a boolean.
        ValueError: an argument is outside of its range, or of another weighting.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`, which would lose the statistics.

    Source: Li, Liu, Wang, "Gradient harmonized single-stage detector", AAAI 2019, equations 6 to 8 and 10 (density);
    Kumar, Packer, Koller, "Self-paced learning for latent variable models", NeurIPS 2010, section 4 (self-paced);
    Holland, Welsch, Communications in Statistics 6, 1977 (standardised residuals).

    Examples:
        >>> import keras, numpy as np, kriterion
        >>> trainer = kriterion.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, "sigmoid")]))
        >>> trainer.compile("adam", kriterion.losses.BatchAdaptive("binary_crossentropy"))
        >>> history = trainer.fit(np.random.rand(8, 3), np.ones((8, 1)), verbose=0)
    """

    def __init__(
        self,
        loss: Any,
        weighting: str = "density",
        *,
        momentum: float = 0.9,
        bins: int | None = None,
        share: float | None = None,
        alpha: float | None = None,
        lam: float | None = None,
        scale: float | None = None,
        differentiate: bool = False,
        normalize: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "batch_adaptive",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            loss, differentiate=differentiate, normalize=normalize, reduction=reduction, name=name, dtype=dtype
        )
        owner = "BatchAdaptive"
        self.weighting = check_choice(owner, "weighting", weighting, tuple(WEIGHTINGS))
        self.momentum = check_float(owner, "momentum", momentum, minimum=0.0, below=1.0)
        chosen = WEIGHTINGS[weighting]
        given = {
            "bins": None if bins is None else check_int(owner, "bins", bins, minimum=2),
            "share": None if share is None else check_float(owner, "share", share, above=0.0, maximum=1.0),
            "alpha": chosen_shape(owner, alpha, lam, maximum=2.0),
            "scale": None if scale is None else check_float(owner, "scale", scale, above=0.0),
        }
        own = {field.name for field in dataclasses.fields(chosen)}
        options = {name: value for name, value in given.items() if value is not None}
        if not set(options) <= own or (differentiate and not chosen.differentiable):
            raise ValueError(
                f"{owner}: weighting={weighting!r} takes {sorted(own)}"
                + ("" if chosen.differentiable else ", and its weights have no derivative")
                + f". Received: {options}, differentiate={differentiate!r}"
            )
        self.measure = chosen(**options)

    @property
    def needs_trainer(self) -> bool:
        return True

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        super().build(y_true_shape, y_pred_shape)
        self.statistic = self.add_weight(self.measure.shape, name="statistic", trainable=False, aggregation="mean")
        self.started = self.add_weight(name="started", trainable=False, aggregation="mean")

    def example_weights(self, values: Tensor, importance: Tensor) -> Tensor:
        if self.training:
            self._observe(ops.stop_gradient(values), importance)
        statistic = ops.cast(self.statistic, values.dtype)
        weights = self.measure.weights(values, statistic)
        return ops.where(ops.cast(self.started, "bool"), weights, 1.0)

    def _observe(self, values: Tensor, importance: Tensor) -> None:
        """Move the statistic towards this batch's, unless all of the batch is masked."""
        of_batch = self.measure.statistic(ops.reshape(values, (-1,)), ops.reshape(importance, (-1,)))
        of_batch = ops.cast(of_batch, self.statistic.dtype)
        told = ops.sum(importance) > 0
        running, started = moved_mean(self.statistic.value, of_batch, self.momentum, self.started.value, told)
        self.statistic.assign(running)
        self.started.assign(started)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "weighting": self.weighting,
            "momentum": self.momentum,
            **dataclasses.asdict(self.measure),
        }
