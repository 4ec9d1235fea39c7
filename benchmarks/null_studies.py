"""False winners: how often a study names one where nothing helps, by kind of data and of split.

    python benchmarks/null_studies.py [STUDIES]

Each study draws a new data set. The target is the sum of the features of five blocks, with equal coefficients, and of
noise. Each learner is a ridge regression that sees one block and chooses its penalty on the validation rows. The blocks
are exchangeable, so all learners have the same expected error on new rows, new groups and future rows. The features and
the noise are independent rows, rows of groups (half of the variance is the group's), or series (AR(1)). A false winner
is a candidate that the study calls better: less error than the baseline, and p < 0.05 after Holm's correction.

With a given test set, learners differ by what they make of a row, by their seeds, and by both together; again all are
exchangeable. The interval of a study must contain zero in at least 95 % of the studies.
"""

import math
import sys

import numpy as np

from minimand.study._comparison import corrected_resampled_t, crossed_t, holm
from minimand.study._splits import resampled_rows

ROWS, FEATURES, LEARNERS, COEFFICIENT = 240, 5, 5, 0.2
PENALTIES = np.array([1e-3, 10.0, 100.0])


# Data: functions of a generator and a shape (..., rows) that return numbers of variance 1.


def rows(random, shape):
    return random.normal(size=shape)


def groups(count, share=0.5):
    """Groups of equal size, one after the other; the share of the variance is the group's."""

    def draw(random, shape):
        common = np.repeat(random.normal(size=(*shape[:-1], count)), shape[-1] // count, axis=-1)
        return math.sqrt(share) * common + math.sqrt(1 - share) * random.normal(size=shape)

    return draw


def series(correlation):
    """AR(1): neighbours have the correlation."""

    def draw(random, shape):
        values = random.normal(size=shape)
        values[..., 1:] *= math.sqrt(1 - correlation**2)
        for t in range(1, shape[-1]):
            values[..., t] += correlation * values[..., t - 1]
        return values

    return draw


def data_sets(random, draw, studies):
    """Features (studies, learners, rows, features) and targets (studies, 1, rows, 1)."""
    x = draw(random, (studies, LEARNERS, FEATURES, ROWS)).swapaxes(-1, -2).copy()
    return x, (COEFFICIENT * x.sum(axis=(1, 3)) + draw(random, (studies, ROWS)))[:, None, :, None]


# Splits: functions of a generator that return (train, validation, test) for each split. Validation takes a quarter of
# what is not tested.


def _split(rest, test):
    validation = round(len(rest) / 4)
    return rest[validation:], rest[:validation], test


def random_splits(splits, units=ROWS):
    """A fifth of the units in each test set; units of several rows are groups."""

    def draw(random):
        orders = [random.permutation(units) for _ in range(splits)]
        return [_with_rows(_split(order[round(units / 5) :], order[: round(units / 5)]), units) for order in orders]

    return draw


def folds(splits, units=ROWS):
    """Cross-validation over the units."""

    def draw(random):
        every = np.array_split(random.permutation(units), splits)
        rests = [np.concatenate(every[:index] + every[index + 1 :]) for index in range(splits)]
        return [
            _with_rows(_split(random.permutation(rest), test), units) for rest, test in zip(rests, every, strict=True)
        ]

    return draw


def windows(splits):
    """Equal test windows, each after its validation rows, which are after its training rows."""

    def draw(random):
        size = ROWS // (splits + 1)
        starts = range(ROWS - splits * size, ROWS, size)
        return [_split(np.arange(start)[::-1], np.arange(start, start + size)) for start in starts]

    return draw


def _with_rows(split, units):
    size = ROWS // units
    return tuple((each[:, None] * size + np.arange(size)).ravel() for each in split)


# Studies.


def errors(x, y, split):
    """(studies, learners): the mean absolute error on the test rows, with the penalty that is best on validation."""
    (x_train, y_train), (x_validation, y_validation), (x_test, y_test) = [(x[:, :, i], y[:, :, i]) for i in split]
    gram = (x_train.swapaxes(-1, -2) @ x_train)[:, :, None] + PENALTIES[:, None, None] * np.eye(FEATURES)
    moment = (x_train.swapaxes(-1, -2) @ y_train)[:, :, None]
    weights = np.linalg.solve(gram, moment)[..., 0].swapaxes(-1, -2)
    best = np.abs(x_validation @ weights - y_validation).mean(axis=2).argmin(axis=-1)[..., None]
    return np.take_along_axis(np.abs(x_test @ weights - y_test).mean(axis=2), best, axis=-1)[..., 0]


def differences_on_splits(random, draw, splits, studies):
    """For each study the `Difference` of each candidate to the baseline."""
    for done in range(0, studies, 50):
        x, y = data_sets(random, draw, min(50, studies - done))
        drawn = splits(random)
        # As `Fold.test_over_train`, the mean over the splits.
        ratio = np.mean([len(test) / (len(train) + len(validation)) for train, validation, test in drawn])
        scores = np.stack([errors(x, y, split) for split in drawn], axis=-1)
        for study in scores[:, 1:] - scores[:, :1]:
            yield [corrected_resampled_t(candidate, ratio) for candidate in study]


def differences_on_test_set(random, metric, test_rows, seeds, studies):
    """The same on a given test set, whose rows are resampled; of each seed the predictions have another gain."""
    counts = np.stack([np.bincount(each, minlength=test_rows) for each in resampled_rows(np.arange(test_rows))])
    counts = np.concatenate([np.ones((1, test_rows)), counts])
    for _ in range(studies):
        truth = random.normal(size=test_rows)
        predictions = truth[:, None, None] * (1 + 0.3 * random.normal(size=(LEARNERS, seeds)))
        predictions += random.normal(size=(test_rows, LEARNERS, 1)) + random.normal(size=(test_rows, LEARNERS, seeds))
        values = metric(counts, truth, predictions.reshape(test_rows, -1)).reshape(-1, LEARNERS, seeds)
        of_study = values[:, 1:] - values[:, :1]
        yield [crossed_t(of_study[0, index], of_study[1:, index], test_rows) for index in range(LEARNERS - 1)]


# Metrics, of which less is better: of counts (resamples, rows), targets (rows,) and predictions (rows, columns).


def mae(counts, truth, predictions):
    return counts @ np.abs(predictions - truth[:, None]) / counts.sum(axis=1, keepdims=True)


def minus_f1(counts, truth, predictions):
    positive, found = (truth > 0.5).astype(float)[:, None], (predictions > 0.5).astype(float)
    return -2 * (counts @ (positive * found)) / (counts @ positive + counts @ found)


def minus_auc(counts, truth, predictions):
    result = []
    for column in predictions.T:
        order = np.argsort(column)
        positive, negative = counts[:, order] * (truth[order] > 0), counts[:, order] * (truth[order] <= 0)
        pairs = (positive * np.cumsum(negative, axis=1)).sum(axis=1)
        result.append(-pairs / (positive.sum(axis=1) * negative.sum(axis=1)))
    return np.stack(result, axis=1)


def false_winners(studies):
    """The rates of false winners with one candidate and with all, the rate of p < 0.05 with one, and that of intervals
    with zero. A study is a list of the candidates' differences."""
    studies = list(studies)

    def wrong(differences):
        adjusted = holm([each.p_value for each in differences])
        return any(p < 0.05 and each.mean < 0 for p, each in zip(adjusted, differences, strict=True))

    return {
        "1 candidate": np.mean([wrong(study[:1]) for study in studies]),
        "4 candidates": np.mean([wrong(study) for study in studies]),
        "p < 0.05": np.mean([study[0].p_value < 0.05 for study in studies]),
        "coverage": np.mean([study[0].low <= 0 <= study[0].high for study in studies]),
    }


ON_SPLITS = {
    "independent rows, 10 random splits": (rows, random_splits(10)),
    "independent rows, 5 folds": (rows, folds(5)),
    "20 groups, 10 random splits of rows": (groups(20), random_splits(10)),
    "20 groups, 10 random splits of groups": (groups(20), random_splits(10, 20)),
    "20 groups, 5 folds of groups": (groups(20), folds(5, 20)),
    "10 groups, 5 folds of groups": (groups(10), folds(5, 10)),
    "series (0.9), 10 random splits of rows": (series(0.9), random_splits(10)),
    "series (0.9), 5 windows": (series(0.9), windows(5)),
    "series (0.9), 10 windows": (series(0.9), windows(10)),
    "series (0.98), 5 windows": (series(0.98), windows(5)),
}
ON_TEST_SET = {
    f"{name}, {test_rows} rows, {seeds} seeds": (metric, test_rows, seeds)
    for name, metric, test_rows in (
        ("MAE", mae, 50),
        ("MAE", mae, 1000),
        ("F1", minus_f1, 200),
        ("ROC AUC", minus_auc, 100),
    )
    for seeds in (2, 3, 5, 10)
}


def main(studies):
    def row(name, values):
        print(f"| {name:38} | " + " | ".join(f"{100 * value:5.1f}" for value in values) + " |", flush=True)

    for simulate, cases, number in (
        (differences_on_splits, ON_SPLITS, studies),
        (differences_on_test_set, ON_TEST_SET, studies // 4),
    ):
        error = 100 * math.sqrt(0.05 * 0.95 / number)
        print(f"\nPer cent of {number} studies; 5 % has a standard error of {error:.1f} %.")
        print("| | false winners: 1 candidate | 4 candidates | p < 0.05 | interval has 0 |\n|---|---|---|---|---|")
        for name, case in cases.items():
            row(name, false_winners(simulate(np.random.default_rng(0), *case, number)).values())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1500)
