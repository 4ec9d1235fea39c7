"""Learned Mahalanobis metrics, in four losses whose minimum over the metric is finite."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._ops import at_least_float32, one_hot_targets, safe_divide
from minimand._validation import check_float, check_int
from minimand.backend import Tensor
from minimand.losses._base import TrainableLoss, aligned, extended
from minimand.parametrizations import CholeskyFactor, Positive


class LearnedMetric(TrainableLoss):
    """Base of the losses with a metric d(a, b)^2 = (a - b)' P (a - b), P = A'A, A any (rank, d) matrix."""

    # True if the loss compares the rows of a batch with each other.
    pairs = False
    # The logs of `fit` have this number, because a matrix would fill them.
    log_name = "trace"

    num_classes: int

    def __init__(self, dim: int, rank: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        owner = type(self).__name__
        self.dim = check_int(owner, "dim", dim, minimum=1)
        self.rank = None if rank is None else check_int(owner, "rank", rank, minimum=1)
        if self.rank is not None and self.rank >= dim:
            raise ValueError(f"{owner}: `rank` must be below `dim`, or None. Received: rank={rank}, dim={dim}")

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        if y_pred_shape[-1] != self.dim or len(y_pred_shape) < 2 or (self.pairs and len(y_pred_shape) != 2):
            raise ValueError(
                f"{type(self).__name__}: predictions must have the shape (batch, {'' if self.pairs else '..., '}"
                f"{self.dim}). Received: y_pred of shape {tuple(y_pred_shape)}"
            )
        self._add_matrices()
        self._log = self.add_log(self.log_name)

    def _add_matrices(self) -> None:
        shape = (self.rank or self.dim, self.dim)
        self.factor = self.add_weight(shape, keras.initializers.Identity(), logged=False, name="factor")

    def _map(self, x: Tensor) -> Tensor:
        """The vector z of each x (..., d), with |z|^2 = x'Px."""
        return _product(self.factor.value, x)

    def _log_trace(self) -> Tensor:
        """The trace of P, also written to the logs."""
        trace = ops.sum(ops.square(self.factor.value))
        self._log.update_state(trace)
        return trace

    def _one_hot(self, y_true: Tensor, x: Tensor) -> Tensor:
        return one_hot_targets(type(self).__name__, y_true, tuple(x.shape[:-1]), self.num_classes, x.dtype)

    def transform(self, x: Any) -> np.ndarray:
        """Vectors (..., d) mapped to vectors (..., d), (..., rank) or (..., d + rank) whose Euclidean distance is d."""
        self.require_built()
        return ops.convert_to_numpy(ops.stop_gradient(self._map(ops.convert_to_tensor(x, self.dtype))))

    def distance(self, a: Any, b: Any) -> np.ndarray:
        """d(a, b) of vectors (..., d), which broadcast."""
        return np.linalg.norm(self.transform(np.subtract(a, b)), axis=-1)

    @property
    def precision(self) -> np.ndarray:
        """The matrix P (d, d)."""
        columns = self.transform(np.eye(self.dim))
        return columns @ columns.T

    def to_inference(self, model: keras.Model) -> keras.Model:
        """A plain Keras model that shares the given one's weights and puts out `transform` of its embeddings.

        Raises:
            ValueError: the model is not functional or sequential with one output.
        """
        matrix = self.transform(np.eye(self.dim))
        metric = keras.layers.Dense(matrix.shape[1], use_bias=False, trainable=False, name="metric")
        result = extended(type(self).__name__, model, metric)
        metric.set_weights([matrix])
        return result


def _product(factor: Tensor, x: Tensor) -> Tensor:
    """A x for each vector x (..., d)."""
    return ops.matmul(x, ops.transpose(ops.cast(factor, x.dtype)))


# Regression: a Gaussian likelihood with a learned covariance.


@keras.saving.register_keras_serializable(package="minimand")
class Mahalanobis(LearnedMetric):
    """The negative log likelihood of Gaussian residuals with a learned precision matrix P.

    Use it for regression with several outputs whose errors are correlated, or differ in scale.

    r'Pr/2 - log det(P)/2 + d/2 log 2 pi, r = y_true - y_pred

    At the minimum P is the inverse of the residuals' second moments. P = A'A with A lower triangular; with `rank`, P^-1
    is a diagonal matrix plus a matrix of that rank. The determinant keeps P from shrinking to 0, and fixed targets keep
    predictions from shrinking while P grows.

    Args:
        dim: d, the size of the last axis of the predictions.
        rank: rank of the part of P^-1 that is not diagonal, from 1 to d - 1, or None for any P.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        As a call: for targets and predictions (batch, ..., d), the reduced loss. `precision` is P, `transform(x)` maps
        to vectors whose Euclidean distance is the learned one, `distance(a, b)` is d(a, b). The logs have log det(P).

    Raises:
        ValueError: an argument is outside of its range, the predictions do not have the size `dim`.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Pinheiro, Bates, Statistics and Computing 6, 1996 (log-Cholesky).

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
        >>> trainer.compile("adam", minimand.losses.Mahalanobis(2))
        >>> history = trainer.fit(np.random.rand(32, 3), np.random.rand(32, 2), verbose=0)
        >>> trainer.loss.precision.shape
        (2, 2)
    """

    log_name = "log_determinant"

    def __init__(self, dim: int, rank: int | None = None, **kwargs: Any) -> None:
        super().__init__(dim, rank, **kwargs)

    def _add_matrices(self) -> None:
        if self.rank is None:
            self.factor = self.add_weight(
                (self.dim, self.dim), np.eye(self.dim), parametrization=CholeskyFactor(), logged=False, name="factor"
            )
            return
        self.stddev = self.add_weight(self.dim, 1.0, parametrization=Positive(), logged=False, name="stddev")
        # At loadings of 0 their gradient is 0.
        first = keras.initializers.Orthogonal(gain=0.1, seed=0)
        self.loadings = self.add_weight((self.dim, self.rank), first, logged=False, name="loadings")

    def _map_and_log_determinant(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors z, and half the logarithm of the determinant of P."""
        if self.rank is None:
            factor = self.factor.value
            return _product(factor, x), ops.sum(ops.log(ops.diagonal(factor)))
        return low_rank_map(x, self.stddev.value, self.loadings.value)

    def _map(self, x: Tensor) -> Tensor:
        return self._map_and_log_determinant(x)[0]

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true, y_pred = aligned("Mahalanobis", y_true, at_least_float32(y_pred))
        z, log_determinant = self._map_and_log_determinant(ops.cast(y_true, y_pred.dtype) - y_pred)
        self._log.update_state(2 * log_determinant)
        constant = self.dim / 2 * math.log(2 * math.pi)
        return ops.sum(ops.square(z), axis=-1) / 2 - ops.cast(log_determinant, z.dtype) + constant


def low_rank_map(x: Tensor, stddev: Tensor, loadings: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors z with |z|^2 = x'Px for P = (D + U U')^-1, D = diag(stddev^2), and half the log determinant of P.

    With V = D^-1/2 U and y = D^-1/2 x, x'Px = min over f of |y - V f|^2 + |f|^2 by Woodbury's identity, which is the
    least squares problem of the matrix [V; I] = Q R, and z is its residual, [y; 0] - Q Q'[y; 0]. R'R = I + V'V is never
    formed, because it is singular in floating point where V is large; [V; I] has full rank for any V.
    """
    loadings = loadings / stddev[:, None]
    stacked = ops.concatenate([loadings, ops.eye(loadings.shape[1], dtype=loadings.dtype)], axis=0)
    basis, triangle = ops.qr(stacked, mode="reduced")
    log_determinant = -ops.sum(ops.log(stddev)) - ops.sum(ops.log(ops.abs(ops.diagonal(triangle))))
    scaled, basis = x / ops.cast(stddev, x.dtype), ops.cast(basis, x.dtype)
    inside = ops.matmul(ops.matmul(scaled, basis[: x.shape[-1]]), ops.transpose(basis))
    padded = ops.concatenate([scaled, ops.zeros_like(inside[..., x.shape[-1] :])], axis=-1)
    return padded - inside, log_determinant


# Classification: trained centres, and neighbours in the batch.


@keras.saving.register_keras_serializable(package="minimand")
class ClassMahalanobis(LearnedMetric):
    """Classification of embeddings by their Mahalanobis distances to trained class centres.

    Use it in place of a softmax layer and cross-entropy, when embeddings of a class should form one cluster.

    -log softmax_c(-d(f(x), m_c)^2/2)_y + strength d(f(x), m_y)^2/2, with centres m_c

    This is linear discriminant analysis as an output layer. The second term keeps distances from growing.

    Args:
        dim: d, the size of the last axis of the embeddings.
        num_classes: K, at least 2.
        rank: rank of the metric, from 1 to d - 1, or None for full rank.
        strength: weight > 0 of the second term.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        As a call: for class indices (batch, ...) or one-hot targets (batch, ..., K) and embeddings (batch, ..., d), the
        reduced loss; NaN for an index that is not a class. `centers` are the m_c (K, d); `precision`, `transform` and
        `distance` are as in `Mahalanobis`. The logs have tr(P).

    Raises:
        ValueError: an argument is outside of its range, the embeddings do not have the size `dim`.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Wan, Zhong, Li, Chen, "Rethinking feature distribution for loss functions in image classification", CVPR
    2018, equations 6 and 9.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
        >>> trainer.compile("adam", minimand.losses.ClassMahalanobis(2, num_classes=4))
        >>> history = trainer.fit(np.random.rand(32, 3), np.arange(32) % 4, verbose=0)
        >>> tuple(trainer.loss.centers.shape)
        (4, 2)
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        rank: int | None = None,
        strength: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, rank, **kwargs)
        self.num_classes = check_int("ClassMahalanobis", "num_classes", num_classes, minimum=2)
        self.strength = check_float("ClassMahalanobis", "strength", strength, above=0.0)

    def _add_matrices(self) -> None:
        super()._add_matrices()
        self.centers = self.add_weight((self.num_classes, self.dim), "zeros", logged=False, name="centers")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        self._log_trace()
        x = at_least_float32(y_pred)
        offsets = self._map(ops.expand_dims(x, -2) - ops.cast(self.centers.value, x.dtype))
        halves = ops.sum(ops.square(offsets), axis=-1) / 2
        each = self.strength * halves - ops.log_softmax(-halves, axis=-1)
        return ops.sum(self._one_hot(y_true, x) * each, axis=-1)


@keras.saving.register_keras_serializable(package="minimand")
class NCA(LearnedMetric):
    """Neighbourhood components analysis: the expected error of a stochastic nearest neighbour in the batch.

    Use it to learn embeddings for nearest neighbours or retrieval, where a class may form several clusters.

    1 - sum_{j of the class of i} p_ij + strength tr(P), p_ij = softmax_{j != i}(-d_ij^2) over the batch

    Args:
        dim: d, the size of the embeddings.
        num_classes: K, at least 2.
        rank: rank of the metric, from 1 to d - 1, or None for full rank.
        strength: weight > 0 of the trace, which keeps P finite.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        As a call: for class indices (batch,) or one-hot targets (batch, K) and embeddings (batch, d), the reduced loss;
        NaN for an index that is not a class. A sample weight of k makes an example count as k examples, as a neighbour
        too; masked examples do not count. `precision`, `transform` and `distance` are as in `Mahalanobis`. The logs
        have tr(P).

    Raises:
        ValueError: an argument is outside of its range, the embeddings do not have the shape (batch, dim).
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Goldberger, Roweis, Hinton, Salakhutdinov, "Neighbourhood components analysis", NeurIPS 2004, equations 1 to
    4.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
        >>> trainer.compile("adam", minimand.losses.NCA(2, num_classes=4))
        >>> history = trainer.fit(np.random.rand(32, 3), np.arange(32) % 4, verbose=0)
        >>> trainer.loss.transform(np.zeros((5, 2))).shape
        (5, 2)
    """

    pairs = True

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        rank: int | None = None,
        strength: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, rank, **kwargs)
        self.num_classes = check_int("NCA", "num_classes", num_classes, minimum=2)
        self.strength = check_float("NCA", "strength", strength, above=0.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        x = at_least_float32(y_pred)
        errors = neighbor_errors(self._map(x), self._one_hot(y_true, x), self.importance(x[:, 0]))
        return errors + self.strength * ops.cast(self._log_trace(), x.dtype)


@keras.saving.register_keras_serializable(package="minimand")
class LMNN(LearnedMetric):
    """Large margin nearest neighbours: pull neighbours of the same class close, push other classes beyond a margin.

    Use it to learn embeddings for k nearest neighbours, with margins as in a support vector machine.

    (1 - push) d_ij^2 + push sum_l (1 + d_ij^2 - d_il^2)+, averaged over j

    j are the `neighbors` examples of the class of i that are nearest to i in the batch before the metric acts, and l
    the examples of other classes.

    Args:
        dim: d, the size of the embeddings.
        num_classes: K, at least 2.
        rank: rank of the metric, from 1 to d - 1, or None for full rank.
        neighbors: number of target neighbours j, at least 1.
        push: weight of the margin, in (0, 1).
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        As a call: for class indices (batch,) or one-hot targets (batch, K) and embeddings (batch, d), the reduced loss;
        NaN for an index that is not a class. A sample weight of k makes an example count as k examples, as a neighbour
        too; masked examples do not count. `precision`, `transform` and `distance` are as in `Mahalanobis`. The logs
        have tr(P).

    Raises:
        ValueError: an argument is outside of its range, the embeddings do not have the shape (batch, dim).
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Weinberger, Saul, "Distance metric learning for large margin nearest neighbor classification", JMLR 10,
    2009, equations 11 to 13.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
        >>> trainer.compile("adam", minimand.losses.LMNN(2, num_classes=4, rank=1))
        >>> history = trainer.fit(np.random.rand(32, 3), np.arange(32) % 4, verbose=0)
        >>> trainer.loss.transform(np.zeros((5, 2))).shape
        (5, 1)
    """

    pairs = True

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        rank: int | None = None,
        neighbors: int = 3,
        push: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, rank, **kwargs)
        self.num_classes = check_int("LMNN", "num_classes", num_classes, minimum=2)
        self.neighbors = check_int("LMNN", "neighbors", neighbors, minimum=1)
        self.push = check_float("LMNN", "push", push, above=0.0, below=1.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        self._log_trace()
        x = at_least_float32(y_pred)
        members = self._one_hot(y_true, x)
        same = ops.matmul(members, ops.transpose(members))
        return large_margin(self._map(x), x, same, self.importance(x[:, 0]), self.neighbors, self.push)


# The terms of `NCA` and `LMNN`.

# A squared distance beyond all others; a neighbour at this distance counts for nothing.
_FAR = 1e30


def squared_distances(z: Tensor) -> Tensor:
    """Squared distances (n, n) between the rows of z (n, r), with a diagonal of 0 up to rounding."""
    # Without the mean, large squares would cancel.
    z = z - ops.sum(z, axis=0) / ops.cast(ops.shape(z)[0], z.dtype)
    squares = ops.sum(ops.square(z), axis=-1)
    return ops.relu(squares[:, None] + squares[None, :] - 2 * ops.matmul(z, ops.transpose(z)))


def neighbor_errors(z: Tensor, members: Tensor, importance: Tensor) -> Tensor:
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
    # The sum by class comes first: a matrix of the rows that share a class would cost as much as all else.
    of_class = ops.matmul(nearness, importance[:, None] * members)
    return 1 - safe_divide(ops.sum(of_class * members, axis=-1), ops.sum(of_class, axis=-1))


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
    # A batch may have fewer rows than target neighbours.
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
    means = safe_divide(ops.sum(found * ((1 - push) * pulled + push * pushed), axis=1), ops.sum(found, axis=1))
    # A row of NaN has no neighbours, and its NaN must reach the loss.
    return means + 0 * ops.sum(distances, axis=1)
