"""A study of the user's own arrays, network and splits: what a network sees, and how its predictions are judged."""

import dataclasses
import functools

import keras
import numpy as np
import polars as pl
import pytest
from keras import layers
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import MinMaxScaler

import minimand
from minimand import Trainer
from minimand.study import (
    Candidate,
    LocalEngine,
    Metric,
    Study,
    StudyError,
    array_data,
    load_data,
    load_results,
    mlp,
    stream_data,
    write_page,
)
from minimand.study._engines import train
from minimand.study._page import code_for
from minimand.study._training import Work, measured, train_in_a_loop
from tests.helpers import told
from tests.small_networks import one_layer

ROWS = 90
on_torch = pytest.mark.skipif(keras.backend.backend() != "torch", reason="says the same on every backend")


def columns(random):
    return random.normal(2.0, 3.0, size=(ROWS, 4))


# The inputs that a network sees.


@on_torch
def test_the_usual_preparation(random):
    x = {
        "floats": columns(random),
        "pixels": random.integers(0, 256, size=(ROWS, 3, 3, 1)).astype("uint8"),
        "tokens": random.integers(0, 9, size=(ROWS, 5)),
        "series": random.normal(size=(ROWS, 6, 2)),
    }
    fold = array_data(x, x["floats"][:, 0]).fold(1)
    np.testing.assert_allclose(fold.x_train["floats"].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(fold.x_train["floats"].std(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(fold.x["pixels"], x["pixels"] / 255, rtol=1e-6)
    np.testing.assert_array_equal(fold.x["tokens"], x["tokens"])
    np.testing.assert_allclose(fold.x["series"], x["series"], rtol=1e-6)
    assert {str(values.dtype) for values in fold.x.values()} == {"float32", "int32"}
    assert fold.input_shape == {"floats": (4,), "pixels": (3, 3, 1), "tokens": (5,), "series": (6, 2)}


@on_torch
@pytest.mark.parametrize("prepare", [MinMaxScaler(), PCA(2), {"a": MinMaxScaler(), "b": None}])
def test_a_transformer_learns_from_training_rows_only(prepare, random):
    x = {"a": columns(random), "b": columns(random)} if isinstance(prepare, dict) else columns(random)
    data = array_data(x, random.normal(size=ROWS), prepare=prepare)
    split = data.splits.split(0, 10)
    first, transformer = (x["a"], prepare["a"]) if isinstance(prepare, dict) else (x, prepare)
    expected = transformer.fit(first[split.train]).transform(first)
    found = data.fold(0).x
    np.testing.assert_allclose(found["a"] if isinstance(prepare, dict) else found, expected, atol=1e-5)
    if isinstance(prepare, dict):
        np.testing.assert_allclose(found["b"], x["b"], rtol=1e-6)


class LeaveOneOut(TransformerMixin, BaseEstimator):
    """The mean target of all training rows; of a training row, that of the others, which does not tell its own."""

    def fit(self, x, y):
        self.sum_, self.count_ = y.sum(), len(y)
        return self

    def transform(self, x):
        return np.full((len(x), 1), self.sum_ / self.count_)

    def fit_transform(self, x, y):
        return (self.fit(x, y).sum_ - y[:, None]) / (self.count_ - 1)


@on_torch
def test_a_transformer_may_treat_its_training_rows_apart(random):
    y = random.normal(size=ROWS)
    fold = array_data(columns(random), y, prepare=LeaveOneOut()).fold(0)
    train = y[fold.split.train]
    np.testing.assert_allclose(fold.x_train[:, 0], (train.sum() - train) / (len(train) - 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fold.x_test, train.mean(), rtol=1e-5)
    # It sees the training targets as the network does: corrupted, if that is asked for.
    wrong = array_data(columns(random), y, prepare=LeaveOneOut()).fold(0, corrupt_targets=0.5)
    ((centre, scale),) = wrong.scaling
    np.testing.assert_allclose(wrong.x_test, (wrong.y_train * scale + centre).mean(), rtol=1e-4)
    assert abs(wrong.x_test[0, 0] - train.mean()) > 0.1


@on_torch
def test_a_function_prepares_all_rows_once(random):
    calls = []
    data = array_data(columns(random), random.normal(size=ROWS), prepare=lambda x: calls.append(0) or {"half": x / 2})
    assert data.fold(0).x["half"] is data.fold(1).x["half"]
    assert len(calls) == 1


@on_torch
def test_data_frames_are_tables(random):
    frame = pl.DataFrame({"a": random.normal(size=ROWS), "b": random.choice(["u", "v", "w"], size=ROWS)})
    fold = array_data(frame, frame["a"]).fold(0)
    assert fold.x.shape == (ROWS, 4)
    np.testing.assert_array_equal(fold.x[:, 1:].sum(axis=1), 1)


@on_torch
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: array_data(x, x[:-1, 0]), ["same number of rows", "90 and 89"]),
        (lambda x: array_data({"a": x, "b": x[:-1]}, x[:, 0]), ["same number of rows"]),
        (lambda x: array_data(x[:10], x[:10, 0]), ["at least 20 rows", "10"]),
        (lambda x: array_data(np.full((ROWS, 2), "a"), x[:, 0]).fold(0), ["must be numbers", "`prepare`"]),
        (lambda x: array_data(np.where(x > 5, np.nan, x)[:, None], x[:, 0]).fold(0), ["missing or infinite"]),
        (lambda x: array_data(x, x[:, 0], prepare=lambda x: x[:5]).fold(0), ["90 rows after `prepare`"]),
        (lambda x: array_data(x, x[:, 0], prepare=PCA(9)).fold(0), ["`prepare` cannot prepare x", "n_components"]),
        (lambda x: array_data(x, x[:, 0], sample_weight=-x[:, 0]), ["weights >= 0"]),
        (lambda x: array_data(x, x[:, 0], sample_weight=np.ones(3)), ["`sample_weight` must be (90,)"]),
        (lambda x: array_data(x, x[:, 0], test=x), ["pair of inputs and targets"]),
        (lambda x: array_data(x, x[:, 0], test=(x[:, :2], x[:, 0])), ["same form"]),
        (lambda x: array_data(x, {"a": x[:, 0]}, task={"b": "regression"}), ["the output 'b'", "Outputs: a"]),
        (lambda x: array_data(3, x[:, 0]), ["arrays with rows"]),
        (lambda x: Study(one_layer, x), ["must not be None"]),
        (lambda x: Study(one_layer, array_data(x, x[:, 0]), x), ["Leave out 'y'"]),
        (lambda x: Study(one_layer, "iris", groups=x), ["Leave out 'groups'"]),
        (lambda x: Study(None, {"a": x, "b": x}, x[:, 0]), ["A network must be given"]),
        (lambda x: Study(one_layer, x, x[:, 0], augment=True), ["`augment` needs images"]),
        (lambda x: stream_data((row for row in x), [], []), ["read again", "generator"]),
        (lambda x: stream_data([(x, x[:, 0])], [x], [x]), ["must yield (x, y)"]),
    ],
)
def test_data_that_do_not_fit_are_told(make, words, random):
    with told(StudyError, words):
        make(columns(random))


@on_torch
def test_given_rows_are_neither_learned_nor_selected_by(random):
    x, extra = columns(random), columns(random)
    data = array_data(x, x[:, 0], test=(extra, extra[:, 0]), groups=np.arange(ROWS) // 3)
    for seed in range(3):
        split = data.fold(seed).split
        assert len(split.test) == ROWS
        assert split.test.min() == ROWS
        groups = np.arange(ROWS) // 3
        assert not np.intersect1d(groups[split.train], groups[split.validation]).size


# Training.


def two_outputs():
    """A class at each of three positions, and a quantity, from two inputs."""
    numbers, tokens = keras.Input((4,), name="numbers"), keras.Input((3,), name="tokens")
    embedded = layers.Embedding(6, 4)(tokens)
    hidden = layers.Concatenate()([embedded, layers.RepeatVector(3)(numbers)])
    outputs = {
        "tag": layers.Dense(3, "softmax")(hidden),
        "size": layers.Dense(1)(layers.Concatenate()([numbers, layers.Flatten()(embedded)])),
    }
    return keras.Model({"numbers": numbers, "tokens": tokens}, outputs)


LOSSES = {"tag": "categorical_crossentropy", "size": keras.losses.Huber(0.5)}
CANDIDATES = [Candidate("other", loss=LOSSES, transforms=[minimand.transforms.WeightNoise(0.1)])]


def own_study(random, folder, **arguments):
    """Groups of unequal sizes, weights, a label that is ignored, two trainings on each split."""
    x = {"numbers": columns(random), "tokens": random.integers(0, 6, size=(ROWS, 3))}
    y = {"size": x["numbers"][:, 0] + x["numbers"][:, 1], "tag": x["tokens"] % 3}
    y["tag"][random.random((ROWS, 3)) < 0.2] = -100
    return Study(
        two_outputs,
        x,
        y,
        candidates=CANDIDATES,
        groups=np.repeat(np.arange(9), [3, 5, 7, 9, 10, 11, 13, 14, 18]),
        cv=GroupKFold(3),
        sample_weight=random.uniform(0.5, 2.0, size=ROWS),
        ignore_class={"tag": -100},
        repeats=2,
        epochs=3,
        batch_size=8,
        folder=folder,
        engine=LocalEngine(),
        **arguments,
    )


@pytest.mark.slow
@pytest.mark.parametrize("select", [None, "size.r2"])
def test_own_data_train_at_once_as_one_by_one(select, random, tmp_path):
    """Also where the folds have other numbers of rows, and where the score is computed outside of the program."""
    study = own_study(random, tmp_path, select=select)
    sizes = {len(study.problem.fold(seed).split.train) for seed in (0, 2, 4)}
    assert len(sizes) > 1
    runs = {(run.candidate, run.seed): run for run in study.run().runs}
    assert len(runs) == 2 * 3 * 2
    for expected in train_in_a_loop(study.problem, Work(study.candidates[1], tuple(range(6))), lambda *_: None):
        run = runs["other", expected.seed]
        assert (run.split, run.best_epoch, run.status) == (expected.seed // 2, expected.best_epoch, "finished")
        assert run.test == pytest.approx(expected.test, rel=1e-4, abs=1e-5)
        for row, same in zip(run.epochs, expected.epochs, strict=True):
            assert row == pytest.approx(same, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_seeds_that_train_apart_may_have_other_numbers_of_steps(random, tmp_path):
    """The two folds have as many validation rows, but two and three steps in an epoch."""
    x, test = columns(random), np.arange(60, 90)
    cv = [(np.arange(37), test), (np.arange(40), test)]
    arguments = {"candidates": [], "epochs": 2, "batch_size": 10, "folder": tmp_path, "engine": LocalEngine()}
    study = Study(one_layer, x, x[:, 0], cv=cv, **arguments)
    assert [study.problem.order(seed, 0).shape for seed in (0, 1)] == [(2, 10), (3, 10)]
    works = [Work(study.candidates[0], (seed,)) for seed in (0, 1)]
    runs = [run for part in train(study.problem, works, lambda *_: None) for run in part]
    for run, work in zip(sorted(runs, key=lambda run: run.seed), works, strict=True):
        (expected,) = train_in_a_loop(study.problem, work, lambda *_: None)
        assert (run.seed, run.note) == (expected.seed, "")
        assert run.test == pytest.approx(expected.test, rel=1e-4, abs=1e-5)


@on_torch
def test_trainings_on_one_split_count_once(random, tmp_path):
    study = own_study(random, tmp_path / "s", metric="size.mae")
    results = study.run()
    of = {(run.candidate, run.seed): run.test["size.mae"] for run in results.runs}
    means = [np.mean([of["other", s] - of["baseline", s] for s in (2 * k, 2 * k + 1)]) for k in range(3)]
    difference = results.comparison.rows[1].differences["size.mae"]
    assert (difference.pairs, difference.mean) == (3, pytest.approx(np.mean(means)))
    # n_test / n_train of three folds is a half on average, as far as the groups allow.
    assert results.description["test_over_train"] == pytest.approx(0.5, abs=0.05)
    again = load_results(tmp_path / "s")
    assert again.verdict == results.verdict
    assert again.table().equals(results.table())
    assert results._repr_html_().count("<svg") == 2


@on_torch
def test_predictions_are_judged_with_weights_at_positions_that_count(random, tmp_path):
    study = own_study(random, tmp_path)
    problem = study.problem
    fold, model = problem.fold(0), problem.network(0)
    run = next(
        train_in_a_loop(
            problem, Work(Candidate("still", optimizer="sgd", loss_learning_rate=None), (0,)), lambda *_: None
        )
    )
    assert run.status == "finished"
    rows = fold.split.test
    predicted = model.predict({key: values[rows] for key, values in fold.x.items()}, verbose=0)
    found = measured(problem, 0, rows, [predicted["size"], predicted["tag"]])
    y, weights = study.data.targets[1].values[rows], study.data.sample_weight[rows]
    known = y >= 0
    right = predicted["tag"].argmax(axis=-1) == y
    expected = np.average(right[known], weights=np.broadcast_to(weights[:, None], y.shape)[known])
    assert found["tag.accuracy"] == pytest.approx(expected, rel=1e-6)
    (center,), (scale,) = fold.scaling[0]
    error = np.abs(predicted["size"][:, 0] * scale + center - study.data.targets[0].values[rows, 0])
    assert found["size.mae"] == pytest.approx(np.average(error, weights=weights), rel=1e-5)


@on_torch
def test_a_metric_of_ones_own_gives_the_verdict(random, tmp_path):
    worst = Metric("worst", "largest error", False, lambda y, p, w: float(np.abs(y - p).max()))
    x = columns(random)
    arguments = {"candidates": ["weight-noise"], "seeds": 2, "epochs": 1, "folder": tmp_path, "engine": "local"}
    results = Study(one_layer, x, x[:, 0], metric=worst, select=worst, **arguments).run()
    assert "largest error" in results.verdict
    assert all(run.epochs[0]["worst"] > 0 for run in results.runs)
    assert load_results(tmp_path).metric.title == "largest error"
    # Its numbers are not those of another function with the same key.
    changed = dataclasses.replace(worst, function=lambda y, p, w: float(np.abs(y - p).min()))
    with told(StudyError, ["different study", "own_metrics"]):
        Study(one_layer, x, x[:, 0], metric=changed, select=worst, **arguments)


@on_torch
def test_the_page_has_the_columns_and_its_code_the_weights(random, tmp_path, monkeypatch):
    x = columns(random)
    weights = np.arange(len(x)) % 3.0
    np.savetxt(tmp_path / "table.csv", np.c_[x, weights], delimiter=",", header="a,b,c,y,w", comments="")
    data = load_data(tmp_path / "table.csv", target="y", weights="w")
    results = Study(mlp, data, candidates=[], seeds=2, epochs=1, folder=tmp_path / "s", engine="local").run()
    # The page tells what becomes of the features.
    assert write_page(results, tmp_path / "s").read_text().count("<td>standardised, clipped</td>") == 3
    passed = {}
    monkeypatch.setattr(Trainer, "fit", lambda self, *inputs, **options: passed.update(options))
    exec(compile(code_for(results.candidates[0], results), "winner", "exec"), {})
    split = data.fold(0, count=2).split
    np.testing.assert_array_equal(passed["sample_weight"], weights[split.train])
    np.testing.assert_array_equal(passed["validation_data"][2], weights[split.validation])


@on_torch
def test_a_given_test_set_is_judged_over_rows_and_seeds(random, tmp_path):
    x = columns(random)
    arguments = {"candidates": ["weight-noise"], "seeds": 3, "epochs": 1, "folder": tmp_path, "engine": "local"}
    results = Study(one_layer, x[:60], x[:60, 0], test=(x[60:], x[60:, 0]), **arguments).run()
    assert results.description["test_units"] == 30
    assert all(len(run.resampled) == 200 for run in results.runs)
    base, other = ([run for run in results.runs if run.candidate == name] for name in ("baseline", "weight-noise"))
    difference = results.comparison.rows[1].differences["mae"]
    assert difference.mean == pytest.approx(
        np.mean([b.test["mae"] - a.test["mae"] for a, b in zip(base, other, strict=True)])
    )
    assert difference.low < difference.mean < difference.high


def batches(x, y, size=15):
    return [(x[first : first + size], y[first : first + size]) for first in range(0, len(x), size)]


class Numbered(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


@pytest.mark.parametrize(
    ("kind", "labels"),
    [(list, True), pytest.param(list, False, marks=on_torch), pytest.param(Numbered, True, marks=on_torch)],
)
def test_batches_train_as_arrays_do(kind, labels, random, tmp_path):
    """A single batch in each epoch has no order that could differ."""
    x = columns(random).astype("float32")
    y = np.where(x[:, 0] > 2, "high", "low") if labels else x[:, 0]
    parts = [slice(0, 40), slice(40, 60), slice(60, 90)]
    streams = [kind(batches(x[part], y[part], 40)) for part in parts]
    names = dict(zip(("train", "validation", "test"), streams, strict=True))
    arguments = {"candidates": [], "seeds": 2, "epochs": 2, "engine": "local", "batch_size": 40}
    build = functools.partial(one_layer)
    results = Study(build, **names, folder=tmp_path / "stream", **arguments).run()
    data = array_data(x, y, prepare=None, cv=[(np.arange(60), np.arange(60, 90))] * 2)
    # The split of the stream.
    data.splits._made = {
        (k, 0): type(data.splits.split(0, 2))(*map(np.arange, (0, 40, 60), (40, 60, 90))) for k in (0, 1)
    }
    expected = Study(build, data, folder=tmp_path / "arrays", **arguments).run()
    for run, same in zip(results.runs, expected.runs, strict=True):
        assert run.test == pytest.approx(same.test, rel=1e-4, nan_ok=True)


@on_torch
def test_fine_tuning_begins_with_the_given_weights(random, tmp_path):
    x = columns(random)
    model = keras.Sequential([keras.Input((4,)), layers.Normalization(), layers.Dense(1)])
    model.layers[0].adapt(x)
    arguments = {"candidates": [], "seeds": 2, "epochs": 1, "prepare": None, "engine": "local"}
    given = Study(model, x, x[:, 0], initial="given", folder=tmp_path / "a", **arguments)
    for one, other in zip(given.problem.weights(0), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    fresh = Study(model, x, x[:, 0], folder=tmp_path / "b", **arguments)
    mean, *_, kernel, _bias = fresh.problem.weights(1)
    np.testing.assert_allclose(np.ravel(mean), x.mean(axis=0), rtol=1e-4)
    assert not np.array_equal(kernel, model.get_weights()[-2])
    assert fresh.notes == []


@on_torch
def test_compare_is_a_study_with_a_folder_of_its_own(random, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = columns(random)
    arguments = {"candidates": ["weight-noise"], "seeds": 2, "engine": "local"}
    first = minimand.compare(one_layer, x, x[:, 0], epochs=1, **arguments)
    minimand.compare(one_layer, x, x[:, 0], epochs=2, **arguments)
    again = minimand.compare(one_layer, x, x[:, 0], epochs=1, **arguments)
    assert len(list((tmp_path / "studies").iterdir())) == 2
    assert again.table().equals(first.table())


@on_torch
def test_equal_initial_weights_are_told(random, tmp_path):
    def build():
        return keras.Sequential(
            [keras.Input((4,)), layers.Dense(1, kernel_initializer=keras.initializers.GlorotUniform(3))]
        )

    x = columns(random)
    (note,) = Study(build, x, x[:, 0], folder=tmp_path).notes
    assert "fixed seeds" in note


@on_torch
def test_columns_that_random_splits_do_not_suit_are_told(random):
    days = np.datetime64("2026-01-01") + np.arange(ROWS)
    frame = pl.DataFrame({"day": days, "patient_id": np.arange(ROWS) // 4, "a": random.normal(size=ROWS)})
    notes = " ".join(array_data(frame, frame["a"]).notes)
    assert "--time day" in notes
    assert "--groups patient_id" in notes
    assert "--" not in " ".join(array_data(frame, frame["a"], groups=frame["patient_id"].to_numpy()).notes)
