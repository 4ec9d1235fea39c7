"""Splits of a study's rows into training, validation and test rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import (
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    train_test_split,
)

from minimand.study._settings import StudyError

# The fraction of the rows that a run learns from that are validation rows.
_VALIDATION = 0.25
_TEST = 0.2


class Split(NamedTuple):
    """Row numbers of the three parts of a split."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def test_over_train(self) -> float:
        """Number of test rows over the number of training and validation rows, which a run learns from."""
        return len(self.test) / (len(self.train) + len(self.validation))


class Splits:
    """The splits of a study: 60 % training, 20 % validation and 20 % test rows at random, unless told otherwise.

    Args:
        rows: number of rows.
        classes: (rows,) class of each row, of which each part gets its share; None if rows have no class.
        groups: (rows,) group of each row. A group is in one part only.
        times: (rows,) time of each row. Training rows come before validation rows, and these before test rows, in
            windows that expand.
        cv: splitter of scikit-learn, number of folds, or pairs of row numbers (train, test). The validation rows come
            out of the training rows.
        test: (rows,) True for the rows of a test set that is given, which is that of every split.

    Raises:
        StudyError: the arguments exclude each other, or a splitter does not suit the rows.
    """

    def __init__(
        self,
        rows: int,
        *,
        classes: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        times: np.ndarray | None = None,
        cv: Any = None,
        test: np.ndarray | None = None,
    ) -> None:
        given = [name for name, each in (("time", times), ("cv", cv), ("test", test)) if each is not None]
        if len(given) > 1:
            raise StudyError(
                "Give one of `time`, `cv` and `test`, because each determines the test rows. Received: "
                f"{', '.join(given)}"
            )
        if times is not None and groups is not None:
            raise StudyError("Give `time` or `groups`, not both, or a splitter as `cv` that respects both.")
        for name, each in (("groups", groups), ("time", times)):
            if each is not None and len(each) != rows:
                raise StudyError(f"`{name}` must have one value for each of the {rows} rows. Received: {len(each)}")
        self.rows, self.classes = rows, classes
        self.groups: Any = groups
        self.test: Any = test
        self.times = times
        self.kind = given[0] if given else "groups" if groups is not None else "random"
        self._cv = None if cv is None else self._pairs(cv)
        # (rows,) position of each row's time among all times.
        self._ranks = np.unique(np.zeros(rows) if times is None else times, return_inverse=True)[1]
        self._made: dict[tuple[int, int], Split] = {}

    @property
    def count(self) -> int | None:
        """The number of splits that there are; None for as many as one asks for."""
        return None if self._cv is None else len(self._cv)

    def digest(self) -> str:
        """A hash of what determines the splits."""
        digest = hashlib.sha256(self.kind.encode())
        arrays = [self.groups, self.times, self.test, *(each for pair in self._cv or () for each in pair)]
        for each in arrays:
            digest.update(b"none" if each is None else np.asarray(each).astype(str).tobytes())
        return digest.hexdigest()[:16]

    @property
    def described(self) -> str:
        """The splits in words."""
        return {
            "time": "windows that expand in time (training rows before validation rows, and these before test rows)",
            "test": "random training and validation rows (75 % and 25 %), and the given test set",
            "cv": "the given splits, a quarter of whose training rows are validation rows",
            "groups": "random splits of groups (60 % training, 20 % validation, 20 % test)",
            "random": "random splits (60 % training, 20 % validation, 20 % test)",
        }[self.kind] + (", with each group in one part only" if self.groups is not None else "")

    def test_units(self) -> int:
        """The number of rows, or groups if there are some, of the given test set."""
        return int(self.test.sum()) if self.groups is None else len(np.unique(self.groups[self.test]))

    def resampled_test(self) -> list[np.ndarray]:
        """Rows of the given test set, drawn at random with replacement, the same ones at each call.

        If there are groups, groups are drawn.
        """
        rows = np.flatnonzero(self.test)
        return list(resampled_rows(np.arange(len(rows)) if self.groups is None else self.groups[rows]))

    def _pairs(self, cv: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        if isinstance(cv, int) and not isinstance(cv, bool):
            if cv < 2:
                raise StudyError(f"`cv` must be at least 2 folds. Received: {cv}")
            if self.groups is not None and cv > len(np.unique(self.groups)):
                raise StudyError(f"cv={cv} folds need as many groups. Received: {len(np.unique(self.groups))} groups")
            if self.groups is not None:
                cv = GroupKFold(cv) if self.classes is None else StratifiedGroupKFold(cv)
            else:
                splitter = KFold if self.classes is None else StratifiedKFold
                cv = splitter(cv, shuffle=True, random_state=0)
        again = None
        if hasattr(cv, "split"):
            pairs, again = self._split_by(cv), self._split_by(cv)
        else:
            pairs = [(np.asarray(train), np.asarray(test)) for train, test in cv]
        if not pairs:
            raise StudyError(
                "`cv` gives no split. Give a splitter of scikit-learn or pairs of row numbers (train, test)."
            )
        if len(pairs) == 1:
            raise StudyError(
                "`cv` gives one split, and a study needs two. Give its test rows as `test=(x, y)` instead."
            )
        if again is not None and any(not np.array_equal(a[1], b[1]) for a, b in zip(pairs, again, strict=True)):
            raise StudyError("`cv` must give the same splits each time. Give its `random_state` a number.")
        for number, (train, test) in enumerate(pairs):
            both = np.concatenate([train, test])
            if both.dtype.kind not in "iu" or len(both) == 0 or both.min() < 0 or both.max() >= self.rows:
                raise StudyError(f"Split {number} of `cv` must hold row numbers from 0 to {self.rows - 1}.")
            if len(train) < 2 or len(test) == 0:
                raise StudyError(
                    f"Split {number} of `cv` has {len(train)} training and {len(test)} test rows. Each side needs some."
                )
            if shared := len(np.intersect1d(train, test)):
                raise StudyError(f"Split {number} of `cv` has {shared} rows on both sides. Remove them from one.")
        return pairs

    def _split_by(self, cv: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        try:
            return list(cv.split(np.zeros((self.rows, 1)), self.classes, self.groups))
        # A splitter may raise anything, such as a complaint about missing groups or rare classes.
        except Exception as error:
            raise StudyError(f"`cv` cannot split these rows: {error}") from error

    def split(self, number: int, count: int) -> Split:
        """The split of this number, of `count` splits; windows of time depend on their count."""
        key = number, count if self.kind == "time" else 0
        if key not in self._made:
            self._made[key] = self._checked(number, self._parts(number, count))
        return self._made[key]

    def _parts(self, number: int, count: int) -> Split:
        every = np.arange(self.rows)
        if self.kind == "time":
            # The rows are `count + 2` blocks; one block validates and the next one tests. Equal times stay together.
            edges = np.quantile(self._ranks, np.linspace(0, 1, count + 3)[1:-1])
            block = np.searchsorted(edges, self._ranks, side="left")
            return Split(*(every[where] for where in (block <= number, block == number + 1, block == number + 2)))
        if self.kind == "test":
            train, validation = self._divided(every[~self.test], _VALIDATION, number)
            return Split(train, validation, every[self.test])
        if self._cv is None:
            rest, test = self._divided(every, _TEST, number)
        else:
            rest, test = self._cv[number]
        forward = self._cv is not None and self.groups is None and len(test) and rest.max() < test.min()
        if forward and all(train.max() < test.min() for train, test in self._cv or ()):
            # The splits go forward in time, so the validation rows are the last ones before the test rows.
            cut = round((1 - _VALIDATION) * len(rest))
            return Split(np.sort(rest)[:cut], np.sort(rest)[cut:], test)
        train, validation = self._divided(rest, _VALIDATION, number)
        return Split(train, validation, test)

    def _divided(self, rows: np.ndarray, fraction: float, seed: int) -> list[np.ndarray]:
        """Rows in two parts at random, the second with this fraction, by groups if there are some, else by classes."""
        if self.groups is not None:
            if len(np.unique(self.groups[rows])) < 3:
                raise StudyError(
                    f"Groups need at least 3 in each split for training, validation and test rows. Received: "
                    f"{len(np.unique(self.groups))} groups in all"
                )
            splitter = GroupShuffleSplit(1, test_size=fraction, random_state=seed)
            ((first, second),) = splitter.split(rows, groups=self.groups[rows])
            return [rows[first], rows[second]]
        classes = None if self.classes is None else self.classes[rows]
        if classes is not None and np.unique(classes, return_counts=True)[1].min() < 2:
            classes = None
        return train_test_split(rows, test_size=fraction, random_state=seed, stratify=classes)

    def _checked(self, number: int, split: Split) -> Split:
        for name, part in zip(Split._fields, split, strict=True):
            if len(part) == 0:
                raise StudyError(f"Split {number} has no {name} rows. Use fewer splits (--seeds) or more rows.")
        return split


def unseen_classes(split: Split, classes: np.ndarray) -> np.ndarray:
    """The classes of validation and test rows that no training row has."""
    return np.setdiff1d(np.unique(classes[np.concatenate(split[1:])]), np.unique(classes[split.train]))


def resampled_rows(groups: np.ndarray, resamples: int = 200) -> Iterator[np.ndarray]:
    """Indices of the rows of test sets drawn with replacement from a given one, for `crossed_t`.

    Whole groups are drawn, because rows of one group tell less than independent rows. The draws are the same each time.

    Args:
        groups: (n,) the group of each row; `numpy.arange(n)` if rows are independent.
        resamples: number of test sets. Few of them widen the interval of `crossed_t` a little.
    """
    random = np.random.default_rng(0)
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    rows, starts = np.argsort(group, kind="stable"), np.cumsum(sizes) - sizes
    for _ in range(resamples):
        drawn = random.integers(len(sizes), size=len(sizes))
        ends = np.cumsum(sizes[drawn])
        yield rows[np.arange(ends[-1]) + np.repeat(starts[drawn] - ends + sizes[drawn], sizes[drawn])]
