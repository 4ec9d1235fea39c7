"""Folds of a study, by their properties: what is in which part, and what is learned of which rows."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from minimand.study import Data, load_data

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
    number[random.uniform(size=rows) < missing] = np.nan
    kind = [f"kind-{k}" for k in random.integers(0, categories, size=rows)]
    target = other * 2 if task == "regression" else np.arange(rows) % 4
    classes = () if task == "regression" else ("0", "1", "2", "3")
    return Data("table", task, pl.DataFrame({"number": number, "other": other, "kind": kind}), target, classes, "table")


def rows_of(data, seed):
    """Of which rows the parts of a fold consist, by a feature that numbers them: standardised, it is still in order."""
    numbers = pl.DataFrame({"row": np.arange(len(data.target), dtype="float64")})
    fold = dataclasses.replace(data, features=numbers).fold(seed)
    every = np.concatenate([fold.x_train, fold.x_validation, fold.x_test])[:, 0]
    sizes = len(fold.x_train), len(fold.x_train) + len(fold.x_validation)
    return np.split(np.argsort(np.argsort(every)), sizes)


def targets(fold):
    """In the target's units, of training rows."""
    return fold.y_train.astype("float64") * fold.target_scale + fold.target_center


@given(TABLES)
@by_property
def test_splits_are_partitions_with_their_share_of_all_classes(table):
    data, seed = table_of(**table), table["seed"]
    parts, fold, count = rows_of(data, seed), data.fold(seed), table["rows"]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        # Rounded once or twice.
        assert abs(len(part) - share * count) <= 2
        if data.classes:
            of_classes = np.bincount(data.target[part], minlength=4)
            assert np.abs(of_classes - share * np.bincount(data.target)).max() <= 2
    for part, y in zip(parts, (fold.y_train, fold.y_validation, fold.y_test), strict=True):
        if data.classes:
            np.testing.assert_array_equal(y.argmax(axis=1), data.target[part])
        else:
            np.testing.assert_allclose(y[:, 0] * fold.target_scale + fold.target_center, data.target[part], atol=1e-4)


@given(TABLES)
@by_property
def test_columns_become_what_is_documented(table):
    """By hand: the training median where a number is missing, standardised; a column for each training category."""
    data, seed = table_of(**table), table["seed"]
    parts, fold = rows_of(data, seed), data.fold(seed)
    train, columns = parts[0], []
    for name in ("number", "other"):
        values = data.features[name].to_numpy().copy()
        known = values[train][~np.isnan(values[train])]
        values[np.isnan(values)] = np.median(known) if len(known) else 0.0
        columns.append((values - values[train].mean()) / (values[train].std() or 1.0))
    kinds = data.features["kind"].to_numpy().astype(str)
    columns += [(kinds == kind).astype(float) for kind in np.unique(kinds[train])]
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
    number, target = data.features["number"].to_numpy().copy(), data.target.copy()
    kind = np.array(data.features["kind"].to_list(), dtype=object)
    number[others], kind[others] = 1e6, "unseen"
    if not data.classes:
        target[others] = 1e6
    features = data.features.with_columns(number=pl.Series(number), kind=pl.Series(list(kind)))
    other = dataclasses.replace(data, features=features, target=target)
    for corrupt in (0.0, 0.3):
        fold, changed = data.fold(seed, corrupt), other.fold(seed, corrupt)
        np.testing.assert_array_equal(fold.x_train, changed.x_train)
        np.testing.assert_array_equal(fold.y_train, changed.y_train)
        assert (fold.target_center, fold.target_scale) == (changed.target_center, changed.target_scale)
        # Categories that no training row has are in none of the columns.
        assert changed.x_test.shape[1] == 2 + len(set(kind[train]))
        np.testing.assert_array_equal(changed.x_test[:, 2:], 0.0)


@given(TABLES, st.floats(0.0, 0.99))
@by_property
def test_as_many_training_targets_are_wrong_as_was_asked_for(table, fraction):
    data, seed = table_of(**table), table["seed"]
    wrong = (np.abs(targets(data.fold(seed)) - targets(data.fold(seed, fraction))) > 1e-3).any(axis=1)
    # Another class always; of noise of ten deviations, one in thousands is smaller than rounding.
    assert wrong.sum() == pytest.approx(round(fraction * len(wrong)), abs=0 if data.classes else 1)


def test_targets_are_in_units_of_their_spread(random):
    """The median absolute deviation, or where half of the targets are one number, the standard deviation."""
    features = pl.DataFrame({"a": random.normal(size=100)})
    normal = Data("normal", "regression", features, random.normal(5.0, 3.0, size=100), (), "")
    fold = normal.fold(0)
    values = normal.target[rows_of(normal, 0)[0]]
    assert fold.target_center == pytest.approx(np.median(values))
    assert fold.target_scale == pytest.approx(stats.median_abs_deviation(values, scale="normal"), rel=1e-4)
    mostly = dataclasses.replace(normal, target=np.where(np.arange(100) % 4 == 0, normal.target, 0.0))
    fold = mostly.fold(0)
    assert (fold.target_center, fold.target_scale) == pytest.approx((0.0, mostly.target[rows_of(mostly, 0)[0]].std()))


def test_rare_categories_are_merged(random):
    """Of some 150 names, the 49 most frequent of the training rows, and one column for all others."""
    names = np.array([f"name-{k}" for k in random.geometric(0.02, size=600) % 200])
    data = Data("t", "regression", pl.DataFrame({"name": names}), random.normal(size=600), (), "")
    fold = data.fold(0)
    assert fold.x_train.shape[1] == 50
    for x in (fold.x_train, fold.x_validation, fold.x_test):
        assert set(x.sum(axis=1)) <= {0.0, 1.0}
    counts = np.sort(np.unique(names[rows_of(data, 0)[0]], return_counts=True)[1])[::-1]
    np.testing.assert_array_equal(np.sort(fold.x_train.sum(axis=0)[:49])[::-1], counts[:49])
    assert fold.x_train.sum(axis=0)[49] == counts[49:].sum()


def test_folds_are_disjoint_reproducible_and_standardised_by_training_rows():
    data = load_data("diabetes")
    fold, again = data.fold(1), data.fold(1)
    assert [len(fold.x_train), len(fold.x_validation), len(fold.x_test)] == [264, 89, 89]
    np.testing.assert_array_equal(fold.x_test, again.x_test)
    assert not np.array_equal(fold.y_test, data.fold(2).y_test)
    rows = np.concatenate([fold.x_train, fold.x_validation, fold.x_test])
    assert len(np.unique(rows, axis=0)) == 442
    np.testing.assert_allclose(fold.x_train.mean(axis=0), 0, atol=1e-5)
    units = fold.y_test * fold.target_scale + fold.target_center
    assert set(np.round(units.ravel())) <= set(data.target)


@pytest.mark.parametrize("name", ["diabetes", "iris"])
def test_corruption_is_of_training_targets_only(name):
    data = load_data(name)
    clean, corrupt = data.fold(0), data.fold(0, corrupt_targets=0.25)
    back = [f.y_train * f.target_scale + f.target_center for f in (clean, corrupt)]
    changed = (np.abs(back[0] - back[1]) > 1e-3).any(axis=1).mean()
    assert changed == pytest.approx(0.25, abs=0.01)
    units = [f.y_test * f.target_scale + f.target_center for f in (clean, corrupt)]
    np.testing.assert_allclose(units[0], units[1], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(clean.x_train, corrupt.x_train)
