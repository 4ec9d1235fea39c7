"""Targets of a study: the task that values suggest, what a loss and a metric get, and what is refused."""

import numpy as np
import pytest

from minimand.study import StudyError, target_of
from tests.helpers import told


@pytest.mark.parametrize(
    ("y", "task", "classes"),
    [
        (["no", "yes", "no"], "binary", ("no", "yes")),
        ([True, False], "binary", ("False", "True")),
        ([0.0, 1.0, 1.0], "binary", ("0", "1")),
        ([3, 1, 2, 1], "multiclass", ("1", "2", "3")),
        ([0.5, 1.0, 2.0], "regression", ()),
        (np.arange(21), "regression", ()),
        ([[0, 1], [1, 1], [1, 0]], "multilabel", ("0", "1")),
        ([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]], "multiclass", ("0", "1", "2")),
        ([[0.5, 1], [2, 3]], "regression", ()),
        (np.arange(8).reshape(2, 2, 2) % 3, "multiclass", ("0", "1", "2")),
        (np.eye(3)[np.arange(8).reshape(2, 2, 2) % 3], "multiclass", ("0", "1", "2")),
        (np.linspace(0, 1, 8).reshape(2, 2, 2), "regression", ()),
        (np.array([["DET", "NOUN"], ["VERB", "DET"]]), "multiclass", ("DET", "NOUN", "VERB")),
    ],
)
def test_the_task_that_values_suggest(y, task, classes):
    target = target_of(y)
    assert (target.task, target.classes) == (task, classes)
    assert target.shape == (*target.positions, target.units)
    one_hot = target.has_classes and np.ndim(y) > len(target.positions) + 1
    assert target.positions == np.shape(y)[1 : -1 if one_hot or (np.ndim(y) > 1 and not target.has_classes) else None]


@pytest.mark.parametrize(
    ("y", "arguments", "words"),
    [
        ([1.0, np.nan, 2.0], {}, ["1 of 3", "missing"]),
        ([1.0, np.inf], {}, ["infinite"]),
        ([2, 2, 2], {}, ["constant"]),
        ([], {}, ["no rows"]),
        (["a", "b"], {"task": "regression"}, ["numeric"]),
        ([0, 1, 2], {"task": "binary"}, ["two classes", "0, 1, 2"]),
        ([[0, 2], [1, 1]], {"task": "multilabel"}, ["zeros and ones"]),
        ([0, 1], {"task": "ranking"}, ["--task", "'ranking'"]),
        ([7, 7], {"ignore_class": 7}, ["ignore_class=7"]),
        (np.array([1j, 2j]), {}, ["complex"]),
        ([[1.0, 5.0], [2.0, 5.0]], {"task": "regression"}, ["constant"]),
    ],
)
def test_targets_that_do_not_suit_are_told(y, arguments, words):
    with told(StudyError, words):
        target_of(y, **arguments)


def test_scaled_targets_come_back_in_their_units(random):
    y = random.normal(5.0, [1.0, 100.0], size=(40, 2))
    target, rows = target_of(y), np.arange(30, 40)
    center, scale = target.center_and_scale(np.arange(30))
    np.testing.assert_allclose(center, np.median(y[:30], axis=0))
    np.testing.assert_allclose(scale, 1.4826 * np.median(np.abs(y[:30] - center), axis=0))
    truth, predicted, index = target.judged(rows, target.encoded(2, center, scale)[rows], center, scale)
    np.testing.assert_array_equal(truth, y[rows])
    # The encoding is in single precision.
    np.testing.assert_allclose(predicted, y[rows], rtol=1e-5)
    np.testing.assert_array_equal(index, np.arange(10))


def test_half_equal_targets_have_a_scale():
    target = target_of([0.5] * 9 + [1.5])
    assert target.center_and_scale(np.arange(10))[1] == pytest.approx(0.3)


def test_ignored_positions_count_nowhere(random):
    y = random.integers(0, 3, size=(6, 4))
    y[0, :2] = 255
    target = target_of(y, ignore_class=255)
    assert target.classes == ("0", "1", "2")
    np.testing.assert_array_equal(target.known(), y != 255)
    encoded = target.encoded(3, np.zeros(1), np.ones(1))
    np.testing.assert_array_equal(encoded.sum(axis=-1), y != 255)
    truth, predicted, index = target.judged(np.array([0, 3]), encoded[[0, 3]], np.zeros(1), np.ones(1))
    np.testing.assert_array_equal(truth, [*y[0, 2:], *y[3]])
    np.testing.assert_array_equal(predicted.argmax(axis=1), truth)
    np.testing.assert_array_equal(index, [0, 0, 1, 1, 1, 1])


def test_one_unit_is_the_probability_of_the_second_class():
    target = target_of(["no", "yes", "yes"])
    np.testing.assert_array_equal(target.encoded(1, np.zeros(1), np.ones(1)), [[0], [1], [1]])
    np.testing.assert_array_equal(target.encoded(2, np.zeros(1), np.ones(1)), [[1, 0], [0, 1], [0, 1]])
    _, predicted, _ = target.judged(np.arange(3), np.array([[0.25], [0.5], [1.0]]), np.zeros(1), np.ones(1))
    np.testing.assert_array_equal(predicted, [[0.75, 0.25], [0.5, 0.5], [0, 1]])


def test_a_network_may_have_a_unit_for_each_whole_number():
    target = target_of([0, 4, 2, 4, 9], ignore_class=9).widened(6)
    assert (target.task, target.units) == ("multiclass", 6)
    np.testing.assert_array_equal(target.values, [0, 4, 2, 4, -1])
    assert target_of(["a", "b"]).largest is None
    assert target_of([-1, 1]).largest is None
    assert target_of([-1, 1]).widened(2).classes == ("-1", "1")


@pytest.mark.parametrize(
    "y",
    [["b", "a", "c", "a"], [3, 1, 1, 2], [0.5, 1.5, 2.5, 9.0], [[0, 1], [1, 1], [0, 0], [1, 0]], np.eye(3)[[0, 2, 1, 1]], np.arange(16).reshape(4, 2, 2) % 5],
)  # fmt: skip
def test_targets_of_a_batch_are_those_of_all_rows(y):
    y = np.asarray(y)
    target = target_of(y)
    np.testing.assert_array_equal(target.like(y[1:3]).values, target.values[1:3])


@pytest.mark.parametrize("y", [np.arange(200) % 4, np.linspace(0, 1, 200), np.arange(400).reshape(200, 2) % 3 % 2])
def test_a_fraction_of_the_training_rows_is_corrupted(y, random):
    target, train = target_of(y), np.arange(20, 120)
    values = target.corrupted(train, 0.3, random).values
    changed = np.flatnonzero((values != target.values).reshape(200, -1).any(axis=1))
    assert len(changed) == 30
    assert np.isin(changed, train).all()
    if target.task == "regression":
        deviation = (values - target.values)[changed].std() / target.values[train].std()
        # The noise of 30 targets has a standard deviation of 10. The bound is four standard errors.
        assert deviation == pytest.approx(10, abs=4 * 10 / np.sqrt(60))
