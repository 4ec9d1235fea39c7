"""Splits of a study: no group on two sides, no future in training, any splitter of scikit-learn, and what is refused."""

import itertools

import numpy as np
import pytest
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    PredefinedSplit,
    RepeatedKFold,
    ShuffleSplit,
    StratifiedKFold,
    TimeSeriesSplit,
)

from minimand.study import Study, StudyError, array_data, mlp
from minimand.study._splits import Splits
from tests.helpers import told

ROWS = 120
GROUPS = np.arange(ROWS) // 7
CLASSES = np.arange(ROWS) % 3


def checked(splits, numbers, count=10):
    """The splits of these numbers: three parts that share no row."""
    for number in numbers:
        split = splits.split(number, count)
        both = np.concatenate(split)
        assert len(np.unique(both)) == len(both)
        assert all(len(part) for part in split)
        yield split


def test_random_splits_hold_all_rows_and_equal_shares_of_classes():
    for split in checked(Splits(ROWS, classes=CLASSES), range(5)):
        assert [len(part) for part in split] == [72, 24, 24]
        assert [np.bincount(CLASSES[part]).tolist() for part in split] == [[24] * 3, [8] * 3, [8] * 3]
        assert split.test_over_train == 0.25
    first, again = (Splits(ROWS).split(3, 10) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.test, Splits(ROWS).split(4, 10).test)


@pytest.mark.parametrize("cv", [None, 4, GroupKFold(3), LeaveOneGroupOut()])
def test_no_group_is_in_two_parts(cv):
    splits = Splits(ROWS, groups=GROUPS, cv=cv)
    for split in checked(splits, range(splits.count or 5)):
        groups = [set(GROUPS[part]) for part in split]
        assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    if splits.count:
        tested = np.concatenate([splits.split(number, 10).test for number in range(splits.count)])
        np.testing.assert_array_equal(np.sort(tested), np.arange(ROWS))


@pytest.mark.parametrize("count", [2, 5, 10])
def test_windows_expand_and_never_train_on_the_future(count, random):
    # Rows in any order, several of the same time.
    times = random.permutation(np.arange(ROWS) // 3)
    ends = []
    for split in checked(Splits(ROWS, times=times), range(count), count):
        train, validation, test = (times[part] for part in split)
        assert train.max() < validation.min()
        assert validation.max() < test.min()
        assert train.min() == 0
        ends.append((train.max(), validation.max(), test.max()))
    assert ends[-1][2] == times.max()
    # Each window's validation rows are training rows of the next, and its test rows are validation rows.
    assert all(before[1:] == after[:2] for before, after in itertools.pairwise(ends))


@pytest.mark.parametrize(
    "cv",
    [KFold(4), StratifiedKFold(3, shuffle=True, random_state=1), RepeatedKFold(n_splits=3, n_repeats=2, random_state=0), TimeSeriesSplit(4), ShuffleSplit(3, random_state=0), PredefinedSplit(np.arange(ROWS) % 5), [(np.arange(60), np.arange(60, 90)), (np.arange(40), np.arange(40, 99))]],
)  # fmt: skip
def test_a_splitter_gives_the_test_rows(cv):
    splits = Splits(ROWS, classes=CLASSES, cv=cv)
    expected = cv if isinstance(cv, list) else list(cv.split(np.zeros((ROWS, 1)), CLASSES))
    assert splits.count == len(expected)
    for split, (train, test) in zip(checked(splits, range(splits.count)), expected, strict=True):
        np.testing.assert_array_equal(split.test, test)
        np.testing.assert_array_equal(np.sort(np.concatenate(split[:2])), np.sort(train))
        assert len(split.validation) == pytest.approx(len(train) / 4, abs=1)
        if isinstance(cv, TimeSeriesSplit):
            assert split.train.max() < split.validation.min() < split.validation.max() < split.test.min()


def test_a_given_test_set_is_that_of_every_split():
    test = np.arange(ROWS) >= 90
    splits = list(checked(Splits(ROWS, test=test), range(3)))
    assert all(np.array_equal(split.test, np.arange(90, ROWS)) for split in splits)
    assert not np.array_equal(splits[0].validation, splits[1].validation)


def test_draws_of_a_given_test_set_take_whole_groups():
    test = np.arange(ROWS) >= 91
    splits = Splits(ROWS, groups=GROUPS, test=test)
    assert splits.test_units() == 5
    for drawn in splits.resampled_test():
        _, counts = np.unique(GROUPS[91:][drawn], return_counts=True)
        sizes = [np.sum(GROUPS[91:] == group) for group in np.unique(GROUPS[91:][drawn])]
        assert not np.any(counts % sizes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cv": 3, "times": np.arange(ROWS)}, ["one of", "time, cv"]),
        ({"groups": GROUPS, "times": np.arange(ROWS)}, ["`time` or `groups`"]),
        ({"groups": GROUPS[:-1]}, ["one value for each of the 120 rows", "119"]),
        ({"cv": 1}, ["at least 2 folds"]),
        ({"cv": 20, "groups": GROUPS}, ["20 folds need as many groups", "18 groups"]),
        ({"cv": ShuffleSplit(3)}, ["random_state"]),
        ({"cv": GroupKFold(3)}, ["cannot split", "groups"]),
        ({"cv": []}, ["no split"]),
        ({"cv": [(np.arange(50), np.arange(50, 60))]}, ["one split", "`test=(x, y)`"]),
        ({"cv": [(np.arange(50), np.arange(0))] * 2}, ["Split 0", "0 test rows"]),
        ({"cv": [(np.arange(50), np.arange(49, 60))] * 2}, ["1 rows on both sides"]),
        ({"cv": [(np.arange(50), np.arange(100, 130))] * 2}, ["row numbers from 0 to 119"]),
    ],
)
def test_splits_that_cannot_be_are_told(arguments, words):
    with told(StudyError, words):
        Splits(ROWS, **arguments)


def test_splits_with_an_empty_part_are_told():
    with told(StudyError, ["no validation rows"]):
        Splits(ROWS, times=np.arange(ROWS) // 60).split(0, 10)
    with told(StudyError, ["at least 3", "2 groups"]):
        Splits(ROWS, groups=np.arange(ROWS) % 2).split(0, 10)


def test_a_digest_is_of_everything_that_determines_the_splits():
    every = [
        Splits(ROWS),
        Splits(ROWS, groups=GROUPS),
        Splits(ROWS, groups=GROUPS[::-1]),
        Splits(ROWS, times=GROUPS),
        Splits(ROWS, cv=3),
        Splits(ROWS, cv=4),
        Splits(ROWS, test=np.arange(ROWS) > 90),
    ]
    assert len({splits.digest() for splits in every}) == len(every)
    assert Splits(ROWS, groups=GROUPS.copy()).digest() == every[1].digest()


# In a study.


def data(random, **arguments):
    x = random.normal(size=(ROWS, 3))
    return array_data(x, arguments.pop("y", x[:, 0]), **arguments)


def test_a_class_that_no_training_row_has_is_told(random):
    y = np.where(GROUPS == 0, "rare", np.where(GROUPS % 2, "a", "b"))
    with told(StudyError, ["no training row of the class 'rare'", "Split"]):
        Study(mlp, data(random, y=y, groups=GROUPS), folder="never")


def test_rows_on_two_sides_are_counted(random):
    x = np.repeat(random.normal(size=(60, 3)), 2, axis=0)
    twice = array_data(x, x[:, 0])
    split = twice.splits.split(0, 10)
    learned = {tuple(row) for row in x[np.concatenate(split[:2])]}
    shared = sum(tuple(row) in learned for row in x[split.test])
    (note,) = twice.warnings(10)
    assert note.startswith(f"{shared} of 24 test rows")
    assert data(random).warnings(10) == []
    assert array_data(x, x[:, 0], groups=np.arange(ROWS) // 2).warnings(10) == []


def test_more_splits_than_there_are_is_told(random):
    with told(StudyError, ["at most 3", "`repeats`"]):
        Study(mlp, data(random, cv=3), seeds=4, folder="never")
