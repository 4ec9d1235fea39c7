"""A learned metric."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kriterion._classes import memberships
from kriterion._validation import check_choice, check_float, check_int
from kriterion.backend import Tensor
from kriterion.losses._deployment import extended
from kriterion.losses._floats import working_float
from kriterion.losses._metric_forms import class_gaussian, gaussian, large_margin, neighbourhood_components
from kriterion.losses._metric_maps import LowRankMap, MetricMap, RectangularMap, TriangularMap
from kriterion.losses.base import TrainableLoss, aligned

# The arguments of each form, with their defaults.
_OPTIONS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "class_gaussian": {"num_classes": None, "strength": 0.1},
    "nca": {"num_classes": None, "strength": 1e-3},
    "lmnn": {"num_classes": None, "neighbors": 3, "push": 0.5},
}


@keras.saving.register_keras_serializable(package="kriterion")
class Mahalanobis(TrainableLoss):
    """A learned metric d(a, b)^2 = (a - b)' P (a - b), in a form whose minimum over P is finite.

    - `"gaussian"`, for regression with several outputs: the negative log likelihood of residuals r = y - f(x),
      r'Pr/2 - log det(P)/2 + d/2 log 2 pi. At the minimum P is the inverse of the residuals' covariance about 0.
      P = A'A with A lower triangular; with `rank`, P^-1 is diagonal plus a matrix of that rank.
    - `"class_gaussian"`, for classification: f(x) are embeddings and m_c trained centres;
      -log softmax_c(-d(f(x), m_c)^2/2)_y + strength d(f(x), m_y)^2/2, linear discriminant analysis as an output layer.
    - `"nca"`: 1 - sum_{j of the class of i} p_ij, p_ij = softmax_{j != i}(-d_ij^2) over the batch, plus
      strength tr(P): the expected error of a stochastic nearest neighbour.
    - `"lmnn"`: (1 - push) d_ij^2 + push sum_l (1 + d_ij^2 - d_il^2)+, averaged over the `neighbors` examples j of i's
      class that are nearest in the batch before the metric acts; l are those of other classes.

    In all but the first P = A'A, A any (d, d) or (rank, d) matrix. No form is minimised by P = 0 or by letting P grow:
    the likelihood has its determinant, the others a margin or `strength`. In the first, fixed targets y keep the
    embedding from shrinking while P grows; that is why there is no such form for embeddings without targets.

    Args:
        dim: d, the size of the last axis of the predictions.
        rank: of the metric, from 1 to d - 1, or None for full rank.
        form: one of the four names above.
        num_classes: of all but `"gaussian"`, which need it: K, at least 2.
        strength: of `"class_gaussian"` and `"nca"`, positive; by default 0.1 and 0.001.
        neighbors: of `"lmnn"`, at least 1; by default 3.
        push: of `"lmnn"`, in (0, 1); by default 0.5.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss. `"gaussian"` takes targets of the predictions' shape (batch, ..., d), the others
        class indices (NaN for another number) or one-hot targets and embeddings, (batch, d) in `"nca"` and `"lmnn"`. A
        sample weight of k makes an example count as k do, as a neighbour too; masked ones do not count. `precision` is
        P, `transform(x)` maps to where Euclid's distance is the learned one, `distance(a, b)` is d. In the logs is
        log det(P) or tr(P).

    Raises:
        ValueError: an argument is outside of its range, or of another form; the predictions do not have the size `dim`.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Pinheiro, Bates, Statistics and Computing 6, 1996 (log-Cholesky); Wan, Zhong, Li, Chen, "Rethinking feature
    distribution for loss functions in image classification", CVPR 2018, equations 6 and 9 (class_gaussian); Goldberger,
    Roweis, Hinton, Salakhutdinov, "Neighbourhood components analysis", NeurIPS 2004, equations 1 to 4; Weinberger,
    Saul, "Distance metric learning for large margin nearest neighbor classification", JMLR 10, 2009, equations 11 to
    13.

    Examples:
        >>> import keras, numpy as np, kriterion
        >>> trainer = kriterion.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
        >>> trainer.compile("adam", kriterion.losses.Mahalanobis(2))
        >>> history = trainer.fit(np.random.rand(32, 3), np.random.rand(32, 2), verbose=0)
        >>> trainer.loss.precision.shape
        (2, 2)
    """

    def __init__(
        self,
        dim: int,
        rank: int | None = None,
        form: str = "gaussian",
        *,
        num_classes: int | None = None,
        strength: float | None = None,
        neighbors: int | None = None,
        push: float | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "mahalanobis",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        owner = "Mahalanobis"
        self.dim = check_int(owner, "dim", dim, minimum=1)
        self.rank = None if rank is None else check_int(owner, "rank", rank, minimum=1)
        if self.rank is not None and self.rank >= dim:
            raise ValueError(f"{owner}: `rank` must be below `dim`, or None. Received: rank={rank}, dim={dim}")
        self.form = check_choice(owner, "form", form, tuple(_OPTIONS))
        given = {"num_classes": num_classes, "strength": strength, "neighbors": neighbors, "push": push}
        given = {key: value for key, value in given.items() if value is not None}
        own = _OPTIONS[form]
        if not set(given) <= set(own) or ("num_classes" in own and num_classes is None):
            raise ValueError(
                f"{owner}: form={form!r} takes {sorted(own) or 'no more arguments'}"
                f"{' and needs num_classes' if own else ''}. Received: {given}"
            )
        options = {**own, **given}
        checks: dict[str, Any] = {
            "num_classes": lambda v: check_int(owner, "num_classes", v, minimum=2),
            "strength": lambda v: check_float(owner, "strength", v, above=0.0),
            "neighbors": lambda v: check_int(owner, "neighbors", v, minimum=1),
            "push": lambda v: check_float(owner, "push", v, above=0.0, below=1.0),
        }
        self.options: dict[str, Any] = {key: checks[key](value) for key, value in options.items()}

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        pairs = self.form in ("nca", "lmnn")
        if y_pred_shape[-1] != self.dim or len(y_pred_shape) < 2 or (pairs and len(y_pred_shape) != 2):
            raise ValueError(
                f"Mahalanobis: with form={self.form!r} predictions must have the shape (batch, "
                f"{'' if pairs else '..., '}{self.dim}). Received: y_pred of shape {tuple(y_pred_shape)}"
            )
        self.map: MetricMap
        if self.form != "gaussian":
            self.map = RectangularMap(self, self.dim, self.rank or self.dim)
        elif self.rank is None:
            self.map = TriangularMap(self, self.dim)
        else:
            self.map = LowRankMap(self, self.dim, self.rank)
        if self.form == "class_gaussian":
            shape = (self.options["num_classes"], self.dim)
            self.centers = self.add_weight(shape, "zeros", logged=False, name="centers")
        # Matrices would fill the logs; these tell whether they have settled.
        self._log = self.add_log("log_determinant" if self.form == "gaussian" else "trace")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        dtype = working_float(y_pred).name
        if self.form == "gaussian":
            y_true, y_pred = aligned("Mahalanobis", y_true, y_pred)
            residual = ops.cast(y_true, dtype) - ops.cast(y_pred, dtype)
            z, log_determinant = self.map.transform_and_log_determinant(residual)
            self._log.update_state(2 * log_determinant)
            return gaussian(z, ops.cast(log_determinant, dtype), self.dim)
        trace = self.map.trace()
        self._log.update_state(trace)
        x = ops.cast(y_pred, dtype)
        members = memberships("Mahalanobis", y_true, tuple(x.shape[:-1]), self.options["num_classes"], dtype)
        if self.form == "class_gaussian":
            offsets = self.map.transform(ops.expand_dims(x, -2) - ops.cast(self.centers.value, dtype))
            return class_gaussian(offsets, members, self.options["strength"])
        z, importance = self.map.transform(x), self.importance(x[:, 0])
        if self.form == "lmnn":
            same = ops.matmul(members, ops.transpose(members))
            return large_margin(z, x, same, importance, self.options["neighbors"], self.options["push"])
        return neighbourhood_components(z, members, importance) + self.options["strength"] * ops.cast(trace, dtype)

    def transform(self, x: Any) -> np.ndarray:
        """Vectors (..., d) mapped to where Euclid's distance is d: (..., d), (..., rank) or (..., d + rank)."""
        self.require_built()
        return ops.convert_to_numpy(ops.stop_gradient(self.map.transform(ops.convert_to_tensor(x, self.dtype))))

    def distance(self, a: Any, b: Any) -> np.ndarray:
        """d(a, b) of vectors (..., d), which broadcast."""
        return np.linalg.norm(self.transform(np.subtract(a, b)), axis=-1)

    @property
    def precision(self) -> np.ndarray:
        """P (d, d)."""
        columns = self.transform(np.eye(self.dim))
        return columns @ columns.T

    def to_inference(self, model: keras.Model) -> keras.Model:
        """A plain Keras model that shares the given one's weights and puts out `transform` of its embeddings.

        Raises:
            ValueError: the model is not functional or sequential with one output.
        """
        matrix = self.transform(np.eye(self.dim))
        metric = keras.layers.Dense(matrix.shape[1], use_bias=False, trainable=False, name="metric")
        result = extended("Mahalanobis", model, metric)
        metric.set_weights([matrix])
        return result

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim, "rank": self.rank, "form": self.form, **self.options}
