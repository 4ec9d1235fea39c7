"""Regularizers: `reference(w)` gives R for strength 1."""

import itertools
from typing import Any

import numpy as np

from minimand.regularizers import (
    L2SP,
    ElasticWeightConsolidation,
    GroupLasso,
    Range,
    SparseGroupLasso,
    TotalVariation,
)
from tests.parts._part import Part


def total_variation(w, axes=(0,)):
    total = 0.0
    for axis, index in itertools.product(axes, np.ndindex(w.shape)):
        after = tuple(i + (k == axis) for k, i in enumerate(index))
        if after[axis] < w.shape[axis]:
            total += abs(w[after] - w[index])
    return total


def out_of_range(w, power=2):
    return sum(max(v - 0.4, -0.2 - v, 0.0) ** power for v in w.ravel())


def norms(key, weight_by_size=True):
    """The group lasso, where `key` gives the group of an index or None."""

    def value(w):
        found = {}
        for index in np.ndindex(w.shape):
            found.setdefault(key(index, w.shape), []).append(w[index])
        found.pop(None, None)
        return sum((len(g) if weight_by_size else 1) ** 0.5 * sum(v * v for v in g) ** 0.5 for g in found.values())

    return value


def sparse_group(w):
    return 0.4 * np.abs(w).sum() + 0.6 * norms(lambda i, s: i[-1])(w)


FISHER = np.arange(12.0).reshape(3, 4)
ANCHORED: dict[str, Any] = {"shapes": ((3, 4),), "zero_at_zero": False}
REGULARIZERS = {
    "total_variation": Part(lambda strength=0.3: TotalVariation(strength, axis=0), total_variation),
    "range": Part(lambda strength=0.3: Range(strength, -0.2, 0.4), out_of_range),
    "hard_range": Part(lambda strength=0.3: Range(strength, -0.2, 0.4, power=1), lambda w: out_of_range(w, 1)),
    "group_sparsity_output": Part(lambda strength=0.3: GroupLasso(strength), norms(lambda i, s: i[-1])),
    "group_sparsity_input": Part(lambda strength=0.3: GroupLasso(strength, groups="input"), norms(lambda i, s: i[-2])),
    "sparse_group_lasso": Part(lambda strength=0.3: SparseGroupLasso(strength, 0.4), sparse_group),
    "l2sp": Part(lambda strength=0.3: L2SP(strength, np.ones((3, 4))), lambda w: ((w - 1) ** 2).sum(), ANCHORED),
    "elastic_weight_consolidation": Part(
        lambda strength=0.3: ElasticWeightConsolidation(strength, FISHER, np.ones((3, 4))),
        lambda w: (FISHER * (w - 1) ** 2).sum() / 2,
        ANCHORED,
    ),
}
