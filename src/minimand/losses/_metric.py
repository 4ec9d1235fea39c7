"""A learned metric."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._ops import memberships, working_float
from minimand._validation import check_choice, check_float, check_int
from minimand.backend import Tensor
from minimand.losses._base import TrainableLoss, aligned, extended
from minimand.parametrizations import CholeskyFactor, Positive

# Linear maps whose squared Euclidean norms are learned metrics.


class MetricMap:
    """x -> z(x) with ||z||^2 = x' P x, for a precision P with trained parameters."""

    def transform(self, x: Tensor) -> Tensor:
        """The vector z of each x (..., d)."""
        return self.transform_and_log_determinant(x)[0]

    def transform_and_log_determinant(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors z, and half the logarithm of the determinant of P."""
        raise NotImplementedError

    def trace(self) -> Tensor:
        """The trace of P."""
        raise NotImplementedError


def _product(factor: Tensor, x: Tensor) -> Tensor:
    """A x for each vector x (..., d)."""
    return ops.matmul(x, ops.transpose(ops.cast(factor, x.dtype)))


class TriangularMap(MetricMap):
    """z = A x, P = A'A, A lower triangular with a positive diagonal, the identity at first."""

    def __init__(self, loss: TrainableLoss, dim: int) -> None:
        shape = (dim, dim)
        self._factor = loss.add_weight(
            shape, np.eye(dim), parametrization=CholeskyFactor(), logged=False, name="factor"
        )

    def transform_and_log_determinant(self, x: Tensor) -> tuple[Tensor, Tensor]:
        factor = self._factor.value
        return _product(factor, x), ops.sum(ops.log(ops.diagonal(factor)))


class RectangularMap(MetricMap):
    """z = A x, P = A'A, A any (rank, d) matrix; at first the first rows of the identity."""

    def __init__(self, loss: TrainableLoss, dim: int, rank: int) -> None:
        self._factor = loss.add_weight((rank, dim), keras.initializers.Identity(), logged=False, name="factor")

    def transform(self, x: Tensor) -> Tensor:
        return _product(self._factor.value, x)

    def trace(self) -> Tensor:
        return ops.sum(ops.square(self._factor.value))


class LowRankMap(MetricMap):
    """P = (D + U U')^-1, D diagonal and U (d, rank): by Woodbury's identity only d x rank matrices are factored.

    With V = D^-1/2 U and y = D^-1/2 x, x'Px = min over f of ||y - V f||^2 + ||f||^2, which is the least squares problem
    of the matrix [V; I] = Q R: z is its residual, [y; 0] - Q Q'[y; 0]. R'R = I + V'V is never formed, because where V
    is large it is singular in floating point; [V; I] has full rank whatever V is.
    """

    def __init__(self, loss: TrainableLoss, dim: int, rank: int) -> None:
        self._spread = loss.add_weight(dim, 1.0, parametrization=Positive(), logged=False, name="spread")
        # Not zero, where the gradient by U is.
        first = keras.initializers.Orthogonal(gain=0.1, seed=0)
        self._loadings = loss.add_weight((dim, rank), first, logged=False, name="loadings")

    def transform_and_log_determinant(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spread = self._spread.value
        loadings = self._loadings.value / spread[:, None]
        stacked = ops.concatenate([loadings, ops.eye(loadings.shape[1], dtype=loadings.dtype)], axis=0)
        basis, triangle = ops.qr(stacked, mode="reduced")
        log_determinant = -ops.sum(ops.log(spread)) - ops.sum(ops.log(ops.abs(ops.diagonal(triangle))))
        scaled, basis = x / ops.cast(spread, x.dtype), ops.cast(basis, x.dtype)
        inside = ops.matmul(ops.matmul(scaled, basis[: x.shape[-1]]), ops.transpose(basis))
        padded = ops.concatenate([scaled, ops.zeros_like(inside[..., x.shape[-1] :])], axis=-1)
        return padded - inside, log_determinant


# What a learned metric is judged by.

# A squared distance that no other reaches: such a neighbour counts for nothing.
_FAR = 1e30


def gaussian(residual_map: Tensor, log_determinant: Tensor, dim: int) -> Tensor:
    """The negative log density of residuals, from their map z: ||z||^2/2 - log det + d/2 log 2 pi."""
    return ops.sum(ops.square(residual_map), axis=-1) / 2 - log_determinant + dim / 2 * math.log(2 * math.pi)


def class_gaussian(offsets: Tensor, members: Tensor, strength: float) -> Tensor:
    """-log softmax(-d^2/2)_y + strength d_y^2/2, from the maps (batch, K, r) of the offsets from K centres."""
    halves = ops.sum(ops.square(offsets), axis=-1) / 2
    return ops.sum(members * (strength * halves - ops.log_softmax(-halves, axis=-1)), axis=-1)


def squared_distances(z: Tensor) -> Tensor:
    """Between the rows of z (n, r): (n, n), the diagonal 0 but for rounding."""
    # Far from the origin the squares would cancel.
    z = z - ops.sum(z, axis=0) / ops.cast(ops.shape(z)[0], z.dtype)
    squares = ops.sum(ops.square(z), axis=-1)
    return ops.relu(squares[:, None] + squares[None, :] - 2 * ops.matmul(z, ops.transpose(z)))


def neighbourhood_components(z: Tensor, members: Tensor, importance: Tensor) -> Tensor:
    """1 - the probability that a softmax over negative squared distances gives to the row's own class.

    Args:
        z: maps (n, r).
        members: probability (n, K) that each row is of each class.
        importance: how much each row counts as a neighbour (n,), 0 for none.
    """
    nothing = ops.logical_or(ops.eye(ops.shape(z)[0], dtype="bool"), (importance <= 0)[None, :])
    logits = ops.where(nothing, -_FAR, -squared_distances(z))
    nearest = ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))
    nearness = ops.where(nothing, 0.0, ops.exp(logits - nearest))
    # By class first: a matrix of which rows share one would cost as much as all the rest.
    of_class = ops.matmul(nearness, importance[:, None] * members)
    return 1 - ops.divide_no_nan(ops.sum(of_class * members, axis=-1), ops.sum(of_class, axis=-1))


def large_margin(z: Tensor, x: Tensor, same: Tensor, importance: Tensor, neighbors: int, push: float) -> Tensor:
    """(1 - push) mean_j d_ij + push mean_j sum_l (1 + d_ij - d_il)+ for each row i.

    j are the `neighbors` rows of the same class nearest to i in x, l the rows of other classes.

    Args:
        z: maps (n, r).
        x: the embeddings (n, d) before the map.
        same: 1 where two rows are of the same class (n, n), else 0.
        importance: how much each row counts (n,), 0 for none.
        neighbors: number of target neighbours.
        push: weight of the second term.
    """
    alone = ops.eye(ops.shape(z)[0], dtype=z.dtype)
    counts = ops.broadcast_to(importance[None, :], ops.shape(same))
    eligible = ops.logical_and(same * counts > 0, alone < 0.5)
    nearness = ops.where(eligible, -squared_distances(ops.stop_gradient(x)), -_FAR)
    # A batch may have fewer rows than there are to be neighbours.
    missing = ops.repeat(ops.full_like(nearness[:, :1], -_FAR), neighbors, axis=1)
    nearness = ops.concatenate([nearness, missing], axis=1)
    scores, targets = ops.top_k(nearness, neighbors)
    targets = ops.minimum(targets, ops.shape(z)[0] - 1)
    distances = squared_distances(z)
    pulled = ops.take_along_axis(distances, targets, axis=1)
    # Rows of a rare class have fewer neighbours.
    found = ops.cast(scores > -_FAR / 2, z.dtype) * ops.take_along_axis(counts, targets, axis=1)
    hinges = ops.relu(1 + pulled[:, :, None] - distances[:, None, :])
    pushed = ops.sum(hinges * ((1 - same) * counts)[:, None, :], axis=-1)
    means = ops.divide_no_nan(ops.sum(found * ((1 - push) * pulled + push * pushed), axis=1), ops.sum(found, axis=1))
    # NaN has no neighbours, and must get to the loss.
    return means + 0 * ops.sum(distances, axis=1)


# A learned metric.

# The arguments of each form, with their defaults.
_OPTIONS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "class_gaussian": {"num_classes": None, "strength": 0.1},
    "nca": {"num_classes": None, "strength": 1e-3},
    "lmnn": {"num_classes": None, "neighbors": 3, "push": 0.5},
}


@keras.saving.register_keras_serializable(package="minimand")
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
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
        >>> trainer.compile("adam", minimand.losses.Mahalanobis(2))
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
