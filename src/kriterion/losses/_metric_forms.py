"""What a learned metric is judged by."""

from __future__ import annotations

import math

from keras import ops

from kriterion.backend import Tensor

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
