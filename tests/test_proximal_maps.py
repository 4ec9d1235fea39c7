"""Proximal maps: optimality conditions, brute force, and the properties of every proximal map."""

import functools
import itertools
import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from scipy import optimize

from minimand.regularizers import (
    L2SP,
    ElasticWeightConsolidation,
    GroupLasso,
    JointGroupLasso,
    Range,
    SparseGroupLasso,
    TotalVariation,
)
from tests.helpers import compiled, mostly_slow, numpy, told

SHAPE = (6, 4)
LABELS = np.arange(24).reshape(SHAPE) % 5 - 1
MAPS = {
    "group output": GroupLasso(0.3),
    "group input": GroupLasso(0.3, "input"),
    "group block": GroupLasso(0.3, ("block", (2, 2))),
    "group gates": GroupLasso(0.3, ("gates", 2)),
    "group labels": GroupLasso(0.3, LABELS),
    "group unweighted": GroupLasso(0.5, weight_by_size=False),
    "group mean": GroupLasso(5.0, reduction="mean"),
    "sparse group": SparseGroupLasso(0.4, 0.3),
    "range": Range(0.3, -0.2, 0.4),
    "range exact": Range(0.3, -0.2, 0.4, power=1),
    "tv inputs": TotalVariation(0.3, 0),
    "tv units": TotalVariation(0.3, 1),
    "tv shape": TotalVariation(0.3, 1, shape=(2, 3)),
    "tv gates": TotalVariation(0.3, -1, gates=2),
    "distance": L2SP(0.3, np.ones(SHAPE)),
    "elastic": ElasticWeightConsolidation(0.3, np.arange(24.0).reshape(SHAPE), np.ones(SHAPE)),
}


@functools.cache
def prox(name):
    return compiled(MAPS[name].prox)


def steps_of(random):
    """One step for all weights, and a step for each over four orders of magnitude, as Adam's."""
    return 0.7, np.exp(random.normal(scale=2.0, size=SHAPE))


def objective(regularizer, u, w, step):
    return float(numpy(regularizer(u))) + np.sum((u - w) ** 2 / (2 * step))


def on_simplex(values, total):
    """The nearest point with non-negative entries of this sum."""
    ordered = np.sort(values)[::-1]
    excess = (np.cumsum(ordered) - total) / np.arange(1, len(values) + 1)
    return np.maximum(values - excess[np.nonzero(ordered > excess)[0][-1]], 0.0)


@pytest.mark.parametrize("name", mostly_slow(MAPS, "group gates", "sparse group", "range", "tv units", "elastic"))
def test_no_other_weights_are_better(name, random, float64):
    """The objective does not fall along a line to any other point.

    It is convex, so that a slope of the difference quotient below zero, at any distance, would show a better point.
    """
    regularizer = compiled(MAPS[name])
    for step in steps_of(random):
        w = random.normal(size=SHAPE)
        u = numpy(prox(name)(w, step))
        least = objective(regularizer, u, w, step)
        for scale in (1.0, 1e-2, 1e-4):
            for mask in (1.0, random.random(SHAPE) < 0.2):
                away = u + scale * mask * random.normal(size=SHAPE)
                assert objective(regularizer, away, w, step) >= least - 1e-12
        assert objective(regularizer, w, w, step) >= least


def gap_of_groups(groups, u, w, step, strength):
    """The distance of (w - u) / s from the subdifferential of strength * sqrt(p) * norm at each group of u."""
    dual, worst = (w - u) / step, 0.0
    for group in np.unique(groups[groups >= 0]):
        inside = groups == group
        bound = strength * np.sqrt(inside.sum())
        norm = np.sqrt(np.sum(u[inside] ** 2))
        if norm == 0.0:
            worst = max(worst, np.sqrt(np.sum(dual[inside] ** 2)) - bound)
        else:
            worst = max(worst, np.abs(dual[inside] - bound * u[inside] / norm).max())
    return max(worst, np.abs(dual[groups < 0]).max(initial=0.0))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    strength=st.sampled_from([0.0, 1e-3, 0.3, 2.0]),
    spread=st.sampled_from([0.0, 1.0, 4.0]),
)
def test_groups_meet_their_optimality_condition(seed, size, strength, spread):
    random = np.random.default_rng(seed)
    w = size * random.normal(size=SHAPE).astype("float32")
    step = np.exp(random.normal(scale=spread, size=SHAPE)).astype("float32")
    u = numpy(GroupLasso(strength, LABELS).prox(w, step)).astype("float64")
    # The dual is w - u over s: of float32's rounding of w, and the root's, 1e-6 of the group's norm.
    scale = np.abs(w).max() / step.min() + strength
    assert gap_of_groups(LABELS, u, w, step, strength) <= 1e-5 * scale


def test_gap_of_groups_in_double_precision(random, float64):
    for spread, strength in itertools.product((0.0, 1.0, 3.0), (0.0, 0.01, 0.3, 1.0)):
        w, step = random.normal(size=SHAPE), np.exp(random.normal(scale=spread, size=SHAPE))
        u = numpy(GroupLasso(strength, LABELS).prox(w, step))
        assert gap_of_groups(LABELS, u, w, step, strength) < 1e-8


def test_a_group_is_zero_exactly_up_to_its_threshold(float64):
    """A group is zero if and only if ||w / s|| <= strength sqrt(p), for steps s."""
    direction, step = np.array([[0.6], [0.8]]), np.array([[2.0], [0.5]])
    threshold = np.sqrt(2) / np.sqrt(np.sum((direction / step) ** 2))
    below, above = (numpy(GroupLasso(1.0).prox(f * threshold * direction, step)) for f in (1 - 1e-9, 1 + 1e-6))
    assert (below == 0).all()
    assert (above > 0).all()


def dual_gap_of_variation(u, w, step, strength):
    """The distance of the running sums of (w - u) / s from the subdifferential of strength * sum |difference|."""
    dual = np.cumsum((w - u) / step, axis=-1)
    jumps = np.diff(u, axis=-1)
    # The condition: |dual| <= strength within, -strength * sign(jump) at a jump, 0 at the end.
    at_jumps = np.abs(dual[..., :-1] + strength * np.sign(jumps))[jumps != 0]
    return max(np.abs(dual).max() - strength, np.abs(dual[..., -1]).max(), at_jumps.max(initial=0.0))


@pytest.mark.parametrize("n", mostly_slow([2, 3, 30], 30))
def test_total_variation_meets_its_optimality_condition(n, random, float64):
    for strength, spread in ((0.01, 0.0), (0.3, 1.0), (3.0, 2.0)):
        w = np.cumsum(random.normal(size=(4, n)), axis=1) * random.choice([0.1, 1.0])
        step = np.exp(random.normal(scale=spread, size=(4, n)))
        u = numpy(TotalVariation(strength, 1).prox(w, step))
        assert dual_gap_of_variation(u, w, step, strength) < 1e-8
    u = numpy(TotalVariation(strength, 1).prox(w, 0.5))
    assert dual_gap_of_variation(u, w, 0.5, strength) < 1e-8


def test_total_variation_is_the_dual_quadratic_programs_solution(random, float64):
    """SciPy's bounded least squares solves the dual problem, u = w - s D'z with |z| <= strength."""
    w, step = random.normal(size=12), np.exp(random.normal(size=12))
    difference = np.diff(np.eye(12), axis=0)
    root = np.sqrt(step)[:, None] * difference.T
    z = optimize.lsq_linear(root, w / np.sqrt(step), bounds=(-0.4, 0.4), tol=1e-14).x
    u = numpy(TotalVariation(0.4, 0).prox(w, step))
    np.testing.assert_allclose(u, w - step * (difference.T @ z), atol=1e-6)
    fused = np.diff(u) == 0
    assert 0 < fused.sum() < 11


def test_total_variation_of_large_strength_is_the_weighted_mean(random, float64):
    w, step = random.normal(size=(3, 9)), np.exp(random.normal(size=(3, 9)))
    expected = np.sum(w / step, axis=1) / np.sum(1 / step, axis=1)
    u = numpy(TotalVariation(1e3, 1).prox(w, step))
    np.testing.assert_allclose(u, np.repeat(expected[:, None], 9, axis=1), rtol=1e-10)
    assert (np.diff(u, axis=1) == 0).all()


def test_total_variation_loses_no_small_steps_next_to_large_weights(random):
    """prox(w + 1) = prox(w) + 1. w and w + 1 are exact in float32, so each end is rounded once."""
    w = np.round(random.normal(size=(2, 40)) * 2.0**8) * 2.0**-20
    variation = TotalVariation(2.0**-11, 1)
    shifted, plain = (numpy(variation.prox(v.astype("float32"), 1.0)).astype("float64") for v in (w + 1.0, w))
    np.testing.assert_allclose(shifted - 1.0, plain, rtol=0, atol=2.0**-23)


@pytest.mark.parametrize("name", mostly_slow(MAPS, "group gates", "sparse group", "range", "tv units", "elastic"))
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**16), near=st.sampled_from([1e-2, 1.0]))
def test_firmly_nonexpansive(name, seed, near):
    """||prox a - prox b||^2 <= <prox a - prox b, a - b> in the metric 1 / s."""
    random = np.random.default_rng(seed)
    step = steps_of(random)[seed % 2]
    a = random.normal(size=SHAPE)
    b = a + near * random.normal(size=SHAPE)
    images = [numpy(prox(name)(v.astype("float32"), np.float32(step))).astype("float64") for v in (a, b)]
    change = images[0] - images[1]
    inner = np.sum(change * (a - b) / step)
    # Float32 rounds each image by 1e-6 of the largest weight, 4; the differences are of the size of near.
    assert np.sum(change**2 / step) <= inner + 1e-5 * np.sum(np.abs(a - b) / step)


@pytest.mark.parametrize("name", mostly_slow(MAPS, "group gates", "sparse group", "range", "tv units", "elastic"))
def test_a_step_of_zero_and_a_strength_of_zero_change_nothing(name, random):
    w = random.normal(size=SHAPE).astype("float32")
    w[0, 0] = 0.0
    for step in (0.0, np.zeros(SHAPE, "float32")):
        np.testing.assert_allclose(numpy(prox(name)(w, step)), w, rtol=1e-6, atol=1e-7)
    config = {**MAPS[name].get_config(), "strength": 0.0}
    none = type(MAPS[name]).from_config(config)
    for step in (0.5, np.full(SHAPE, 0.5, "float32")):
        same = numpy(compiled(none.prox)(w, step))
        np.testing.assert_allclose(same, w, rtol=1e-6)
        assert same[0, 0] == 0.0


@pytest.mark.slow
def test_equal_steps_are_one_step(random):
    w = random.normal(size=SHAPE).astype("float32")
    for name in MAPS:
        one, each = (numpy(prox(name)(w, s)) for s in (0.7, np.full(SHAPE, 0.7, "float32")))
        np.testing.assert_allclose(one, each, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_of_half_precision(dtype, random):
    w = random.normal(size=SHAPE).astype("float32")
    expected = numpy(GroupLasso(0.3).prox(w, 0.5))
    half = GroupLasso(0.3).prox(ops.cast(w, dtype), 0.5)
    assert keras.backend.standardize_dtype(half.dtype) == dtype
    np.testing.assert_allclose(numpy(ops.cast(half, "float32")), expected, rtol=2e-2, atol=1e-2)


def test_projections(random):
    w = random.normal(size=SHAPE).astype("float32")
    np.testing.assert_array_equal(
        numpy(Range(1.0, -0.2, 0.4).project(w)), np.clip(w, np.float32(-0.2), np.float32(0.4))
    )
    np.testing.assert_array_equal(numpy(MAPS["distance"].project(w)), np.ones(SHAPE))
    # The limit of a large step is the projection.
    np.testing.assert_allclose(numpy(Range(1.0, -0.2, 0.4).prox(w, 1e8)), np.clip(w, -0.2, 0.4), atol=1e-6)
    with told(NotImplementedError, ["GroupLasso", "projection"]):
        GroupLasso(1.0).project(w)


# Groups across variables


class Named:
    """The attributes of a variable that regularizers use."""

    def __init__(self, path, shape):
        self.path, self.shape = path, shape


A, B = Named("a", (3, 4)), Named("b", (4,))


def test_joint_groups_are_the_groups_of_the_concatenation(random, float64):
    """The columns of a matrix, each with an entry of a vector, are the columns of the stacked arrays."""
    a, b = random.normal(size=A.shape), random.normal(size=B.shape)
    joint = JointGroupLasso(0.3, {"a": np.arange(4), "b": np.arange(4)})
    stacked, plain = np.vstack([a, b]), GroupLasso(0.3)
    assert float(numpy(joint.total([A, B], [a, b]))) == pytest.approx(float(numpy(plain(stacked))), rel=1e-12)
    step_a, step_b = np.exp(random.normal(size=A.shape)), np.exp(random.normal(size=B.shape))
    parts = joint.proximal_step([A, B], [ops.convert_to_tensor(v) for v in (a, b)], [step_a, step_b])
    expected = numpy(plain.prox(stacked, np.vstack([step_a, step_b])))
    np.testing.assert_allclose(np.vstack([numpy(part) for part in parts]), expected, rtol=1e-9)


def test_overlapping_joint_groups_meet_their_optimality_condition(random, float64):
    """The groups are rows and columns of a matrix, and the dual is a sum of elements of the subdifferentials.

    u is best if it is optimal for the smooth problem in its support, and zero groups have a dual that fits: checked by
    the objective along random lines, which is convex.
    """
    shape = (5, 4)
    matrix = Named("a", shape)
    joint = JointGroupLasso(0.25, [{"a": np.arange(4)}, {"a": np.arange(5)[:, None]}])
    for step in (1.0, np.exp(random.normal(size=shape))):
        w = random.normal(size=shape)
        w[2] *= 0.05
        (u,) = map(numpy, joint.proximal_step([matrix], [ops.convert_to_tensor(w)], [step]))

        def value(v, w=w, step=step):
            return float(numpy(joint.total([matrix], [v]))) + np.sum((v - w) ** 2 / (2 * step))

        assert (u[2] == 0).all()
        assert (u != 0).any()
        for scale in (1.0, 1e-2, 1e-4):
            for _ in range(5):
                assert value(u + scale * random.normal(size=shape)) >= value(u) - 1e-9


@pytest.mark.parametrize("by_size", [True, False])
def test_several_families_of_joint_groups_are_a_sum(by_size, random, float64):
    """The groups are the rows of a matrix, and its columns, each with an entry of a vector."""
    a, b = random.normal(size=A.shape), random.normal(size=B.shape)
    families = [{"a": np.arange(3)[:, None]}, {"a": np.arange(4), "b": np.arange(4)}]
    rows, columns = np.linalg.norm(a, axis=1), np.linalg.norm(np.vstack([a, b]), axis=0)
    expected = 0.3 * (rows.sum() * (2.0 if by_size else 1.0) + columns.sum() * (2.0 if by_size else 1.0))
    for reduction, count in (("sum", 1), ("mean", 12 + 16)):
        joint = JointGroupLasso(0.3, families, weight_by_size=by_size, reduction=reduction)
        assert float(numpy(joint.total([A, B], [a, b]))) == pytest.approx(expected / count, rel=1e-12)


def test_joint_groups_from_their_configuration(random):
    families = [{"a": np.arange(3)[:, None]}, {"a": np.arange(4), "b": np.array([0, 1, -1, 3])}]
    joint = JointGroupLasso(0.3, families, weight_by_size=False, reduction="mean")
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(joint))))
    values = [random.normal(size=each.shape).astype("float32") for each in (A, B)]
    assert float(again.total([A, B], values)) == float(joint.total([A, B], values)) > 0
    assert again.get_config() == joint.get_config()


def test_joint_groups_that_do_not_fit_are_told():
    joint = JointGroupLasso(1.0, {"c": [0]})
    with told(ValueError, ["'c'", "['a', 'b']", 'select="all"']):
        joint.check_variables([A, B])
    with told(ValueError, ["broadcast", "(3,)", "(3, 4)"]):
        JointGroupLasso(1.0, {"a": [0, 1, 2]}).check_variables([A, B])
