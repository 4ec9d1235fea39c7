"""Folds of a study, by their properties: what is in which part, and what is learned of which rows."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from minimand.study import Data, array_data, load_data, target_of

TABLES = st.fixed_dictionaries(
    {
        "rows": st.integers(20, 80),
        "missing": st.floats(0.0, 0.9),
        "categories": st.integers(2, 6),
        "task": st.sampled_from(["regression", "classification"]),
        "seed": st.integers(0, 10**6),
    }
)
by_property = settings(max_examples=30, deadline=None, derandomize=True)


def table_of(rows, missing, categories, task, seed):
    """A table that can be used: numbers, categories and holes, and of four classes as many rows each."""
    random = np.random.default_rng(seed)
    number, other = random.normal(3.0, 2.0, size=(2, rows))
    unknown = random.uniform(size=rows) < missing
    # A column of one number would be left out.
    unknown[random.choice(rows, size=2, replace=False)] = False
    number[unknown] = np.nan
    kind = [f"kind-{k}" for k in random.integers(0, categories, size=rows)]
    # A column of one kind, too.
    kind[:2] = "kind-0", "kind-1"
    target = other * 2 if task == "regression" else np.arange(rows) % 4
    return array_data(pl.DataFrame({"number": number, "other": other, "kind": kind}), target, task=task)


def values_of(data):
    """The targets as they are given, one for each row."""
    values = data.targets[0].values
    return values if data.targets[0].has_classes else values[:, 0]


def rows_of(data, seed):
    """The rows of each part of a fold, by an input that numbers the rows."""
    fold = Data("numbers", np.arange(data.rows, dtype="float32"), data.targets, data.splits).fold(seed)
    parts = [fold.x_train.astype(int), fold.x_validation.astype(int), fold.x_test.astype(int)]
    for part, rows in zip(parts, data.fold(seed).split, strict=True):
        np.testing.assert_array_equal(part, rows)
    return parts


def in_units(fold, y):
    """Targets of regression in the target's units, and classes as they are."""
    ((center, scale),) = fold.scaling
    return y.astype("float64") * scale + center


@given(TABLES)
@by_property
def test_splits_are_partitions_with_their_share_of_all_classes(table):
    data, seed = table_of(**table), table["seed"]
    parts, fold, count = rows_of(data, seed), data.fold(seed), table["rows"]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        # Rounded once or twice.
        assert abs(len(part) - share * count) <= 2
        if data.targets[0].classes:
            of_classes = np.bincount(values_of(data)[part], minlength=4)
            assert np.abs(of_classes - share * np.bincount(values_of(data))).max() <= 2
    for part, y in zip(parts, (fold.y_train, fold.y_validation, fold.y_test), strict=True):
        if data.targets[0].classes:
            np.testing.assert_array_equal(y.argmax(axis=1), values_of(data)[part])
        else:
            np.testing.assert_allclose(in_units(fold, y)[:, 0], values_of(data)[part], atol=1e-4)


@given(TABLES)
@by_property
def test_columns_become_what_is_documented(table):
    """Columns computed by hand equal those of the encoder.

    A missing number is the median of the training rows, and another column marks the missing numbers. Both columns are
    standardised and clipped smoothly at 3. Each training category has a column; two categories share one column.
    """
    data, seed = table_of(**table), table["seed"]
    parts, fold = rows_of(data, seed), data.fold(seed)
    train, numbers = parts[0], []
    for name in ("number", "other"):
        values = data.x[name].to_numpy().copy()
        known = values[train][~np.isnan(values[train])]
        numbers.append(np.where(np.isnan(values), np.median(known) if len(known) else 0.0, values))
        if name == "number":
            missing = np.isnan(values)
    numbers += [missing.astype(float)] * bool(missing[train].any())
    columns = [(values - values[train].mean()) / (values[train].std() or 1.0) for values in numbers]
    columns = [values / np.hypot(1.0, values / 3.0) for values in columns]
    kinds = data.x["kind"].to_numpy().astype(str)
    learned = np.unique(kinds[train])
    columns += [(kinds == kind).astype(float) for kind in (learned[1:] if len(learned) == 2 else learned)]
    expected = np.column_stack(columns)
    for part, x in zip(parts, (fold.x_train, fold.x_validation, fold.x_test), strict=True):
        np.testing.assert_allclose(x, expected[part], rtol=1e-4, atol=1e-4)


@given(TABLES)
@by_property
def test_nothing_of_other_rows_is_in_what_is_trained_on(table):
    """Whatever stands in validation and test rows, training rows and what is learned of them stay the same."""
    data, seed = table_of(**table), table["seed"]
    train, validation, test = rows_of(data, seed)
    others = np.concatenate([validation, test])
    number, target = data.x["number"].to_numpy().copy(), values_of(data).copy()
    kind = np.array(data.x["kind"].to_list(), dtype=object)
    number[others], kind[others] = 1e6, "unseen"
    if not data.targets[0].classes:
        target[others] = 1e6
    features = data.x.with_columns(number=pl.Series(number), kind=pl.Series(list(kind)))
    other = Data("other", features, [target_of(target, table["task"])], data.splits, prepare=data.prepare)
    for corrupt in (0.0, 0.3):
        fold, changed = (each.fold(seed, corrupt_targets=corrupt) for each in (data, other))
        np.testing.assert_array_equal(fold.x_train, changed.x_train)
        np.testing.assert_array_equal(fold.y_train, changed.y_train)
        np.testing.assert_array_equal(fold.scaling, changed.scaling)
        # Categories that no training row has are in none of the columns, of which there is one for two categories.
        kinds = len(set(kind[train]))
        np.testing.assert_array_equal(changed.x_test[:, -(1 if kinds == 2 else kinds) :], 0.0)


@given(TABLES, st.floats(0.0, 0.99))
@by_property
def test_as_many_training_targets_are_wrong_as_was_asked_for(table, fraction):
    data, seed = table_of(**table), table["seed"]
    clean, corrupt = data.fold(seed), data.fold(seed, corrupt_targets=fraction)
    wrong = (np.abs(in_units(clean, clean.y_train) - in_units(corrupt, corrupt.y_train)) > 1e-3).any(axis=1)
    # Another class always; of noise of ten deviations, one in thousands is smaller than rounding.
    assert wrong.sum() == pytest.approx(round(fraction * len(wrong)), abs=0 if data.targets[0].classes else 1)


def test_targets_are_in_units_of_their_spread(random):
    """The median absolute deviation, or where half of the targets are one number, the standard deviation."""
    features, target = random.normal(size=(100, 1)), random.normal(5.0, 3.0, size=100)
    normal = array_data(features, target)
    values = target[rows_of(normal, 0)[0]]
    ((center, scale),) = normal.fold(0).scaling
    assert center == pytest.approx(np.median(values))
    assert scale == pytest.approx(stats.median_abs_deviation(values, scale="normal"), rel=1e-4)
    mostly = np.where(np.arange(100) % 4 == 0, target, 0.0)
    ((center, scale),) = array_data(features, mostly).fold(0).scaling
    assert (center, scale) == pytest.approx((0.0, mostly[rows_of(normal, 0)[0]].std()))
    # Each of several quantities in its own.
    both = array_data(features, np.stack([target, mostly], axis=1)).fold(0).scaling[0]
    np.testing.assert_allclose(both[1], [stats.median_abs_deviation(values, scale="normal"), *scale], rtol=1e-4)


def test_rare_categories_are_merged(random):
    """The 50 most frequent of some 150 names have a column each, and all other names share one."""
    names = np.array([f"name-{k}" for k in random.geometric(0.02, size=600) % 200])
    data = array_data(pl.DataFrame({"name": names}), random.normal(size=600))
    fold = data.fold(0)
    assert fold.x_train.shape[1] == 51
    for x in (fold.x_train, fold.x_validation, fold.x_test):
        assert set(x.sum(axis=1)) <= {0.0, 1.0}
    counts = np.sort(np.unique(names[rows_of(data, 0)[0]], return_counts=True)[1])[::-1]
    np.testing.assert_array_equal(np.sort(fold.x_train.sum(axis=0)[:50])[::-1], counts[:50])
    assert fold.x_train.sum(axis=0)[50] == counts[50:].sum()


def test_folds_are_disjoint_reproducible_and_standardised_by_training_rows():
    data = load_data("diabetes")
    fold, again = data.fold(1), data.fold(1)
    assert [len(fold.x_train), len(fold.x_validation), len(fold.x_test)] == [264, 89, 89]
    np.testing.assert_array_equal(fold.x_test, again.x_test)
    assert not np.array_equal(fold.y_test, data.fold(2).y_test)
    rows = np.concatenate([fold.x_train, fold.x_validation, fold.x_test])
    assert len(np.unique(rows, axis=0)) == 442
    # Before outliers are clipped.
    scores = fold.x_train / np.sqrt(1 - (fold.x_train / 3) ** 2)
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scores.std(axis=0), 1, atol=1e-5)
    assert set(np.round(in_units(fold, fold.y_test).ravel())) <= set(values_of(data))


@pytest.mark.parametrize("name", ["diabetes", "iris"])
def test_corruption_is_of_training_targets_only(name):
    data = load_data(name)
    clean, corrupt = data.fold(0), data.fold(0, corrupt_targets=0.25)
    back = [in_units(f, f.y_train) for f in (clean, corrupt)]
    changed = (np.abs(back[0] - back[1]) > 1e-3).any(axis=1).mean()
    assert changed == pytest.approx(0.25, abs=0.01)
    units = [in_units(f, f.y_test) for f in (clean, corrupt)]
    np.testing.assert_allclose(units[0], units[1], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(clean.x_train, corrupt.x_train)
