"""Data, statistics, engine, storage and page of a study."""

import dataclasses
import json
import math

import keras
import numpy as np
import polars as pl
import pytest
from scipy import stats

from kriterion.study import (
    LocalEngine,
    Settings,
    Study,
    StudyError,
    default_candidates,
    load_data,
    load_results,
    mlp,
    read_candidates,
)
from kriterion.study.candidates import Candidate, Part, choose
from kriterion.study.loop import train_in_a_loop
from kriterion.study.problem import Problem
from kriterion.study.run import FINISHED
from kriterion.study.statistics import Difference, corrected_resampled_t, holm
from kriterion.study.training import Work, train
from tests.helpers import told

# Data


def frame(rows=60, **columns):
    random = np.random.default_rng(0)
    columns = {"a": random.normal(size=rows), "b": random.choice(["x", "y", "z"], size=rows), **columns}
    return pl.DataFrame({"target": random.normal(size=rows), **columns})


@pytest.mark.parametrize(
    ("suffix", "write"), [("csv", "write_csv"), ("parquet", "write_parquet"), ("arrow", "write_ipc")]
)
def test_formats_give_equal_data(suffix, write, tmp_path):
    table = frame()
    path = tmp_path / f"table.{suffix}"
    getattr(table, write)(path)
    data = load_data(str(path), target="target")
    assert data.task == "regression"
    assert data.features.columns == ["a", "b"]
    np.testing.assert_allclose(data.target, table["target"].to_numpy())
    assert data.fold(0).x_train.shape == (36, 4)


def test_npz(tmp_path):
    np.savez(tmp_path / "t.npz", X=np.random.default_rng(0).normal(size=(40, 3)), y=np.arange(40.0))
    assert load_data(str(tmp_path / "t.npz"), target="y").features.columns == ["X_0", "X_1", "X_2"]


def test_missing_values_categories_and_constant_columns(tmp_path):
    table = frame(c=[None, 1.0, 3.0] * 20, d=[None, "u", "v"] * 20, constant=[7] * 60)
    table.write_csv(tmp_path / "t.csv")
    data = load_data(str(tmp_path / "t.csv"), target="target")
    assert data.notes == ("constant columns left out: constant",)
    fold = data.fold(3)
    # a and c as they are; b and d one-hot with three categories each, missing being one of d's
    assert fold.x_train.shape[1] == 1 + 1 + 3 + 3
    assert np.isfinite(np.concatenate([fold.x_train, fold.x_validation, fold.x_test])).all()
    np.testing.assert_allclose(fold.x_train[:, :2].mean(axis=0), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "task"),
    [([0.5, 1.5] * 30, "regression"), ([0, 1] * 30, "classification"), (list(range(60)), "regression"), (["no", "yes"] * 30, "classification")],
)  # fmt: skip
def test_inferred_task(values, task, tmp_path):
    frame().with_columns(target=pl.Series(values)).write_parquet(tmp_path / "t.parquet")
    assert load_data(str(tmp_path / "t.parquet"), target="target").task == task


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


def unreadable(path):
    path.write_bytes(b"\x00\x01 not a table")


@pytest.mark.parametrize(
    ("name", "write", "arguments", "words"),
    [
        ("none.csv", lambda path: None, {}, ["No such file", "diabetes"]),
        ("t.xlsx", lambda path: path.write_text("a"), {}, [".csv", ".parquet"]),
        ("t.parquet", unreadable, {}, ["cannot be read as PARQUET"]),
        ("t.npz", unreadable, {}, ["cannot be read as NPZ"]),
        (
            "t.npz",
            lambda path: np.savez(path, X=np.ones((40, 3)), y=np.ones(40), m=np.ones((2, 40))),
            {},
            ["same number", "X (40, 3), y (40,), m (2, 40)"],
        ),
        ("t.npz", lambda path: np.savez(path, X=np.ones((40, 3, 3)), y=np.ones(40)), {}, ["(n, d)", "X (40, 3, 3)"]),
        ("t.csv", lambda path: path.write_text(""), {}, ["cannot be read as CSV"]),
        ("t.csv", lambda path: path.write_text("a,target\n"), {}, ["no rows"]),
        ("t.csv", lambda path: frame().write_csv(path), {"target": None}, ["--target", "a, b"]),
        ("t.csv", lambda path: frame().write_csv(path), {"target": "y"}, ["'y'", "target, a, b"]),
        ("t.csv", lambda path: frame(target=[1.5] * 60).write_csv(path), {}, ["constant", "1.5"]),
        ("t.csv", lambda path: frame(target=[None, 1.0, 2.0] * 20).write_csv(path), {}, ["missing in 20 of 60"]),
        (
            "t.parquet",
            lambda path: frame(target=[float("nan"), 1.0, 2.0] * 20).write_parquet(path),
            {},
            ["missing in 20"],
        ),
        (
            "t.parquet",
            lambda path: frame(target=[float("inf"), 1.0, 2.0] * 20).write_parquet(path),
            {},
            ["infinite", "20"],
        ),
        ("t.parquet", lambda path: frame(a=[float("inf"), 1.0, 2.0] * 20).write_parquet(path), {}, ["'a'", "infinite"]),
        ("t.csv", lambda path: frame(rows=10).write_csv(path), {}, ["20 rows", "10"]),
        ("t.csv", lambda path: frame(target=["u"] * 57 + ["v"] * 3).write_csv(path), {}, ["'v' (3)", "5 rows"]),
        (
            "t.csv",
            lambda path: frame(target=["u", "v"] * 30).write_csv(path),
            {"task": "regression"},
            ["numeric target"],
        ),
        ("t.csv", lambda path: frame().write_csv(path), {"task": "ranking"}, ["--task", "'ranking'"]),
        ("t.csv", lambda path: frame(a=[1] * 60, b=["x"] * 60).write_csv(path), {}, ["no feature that varies"]),
    ],
)
def test_bad_data_is_told(name, write, arguments, words, tmp_path):
    path = tmp_path / name
    write(path)
    with told(StudyError, words):
        load_data(str(path), **{"target": "target", **arguments})


# Statistics


def test_corrected_t_is_the_formula_and_the_plain_test_without_overlap(random):
    d = random.normal(0.3, 1.0, size=10)
    plain = stats.ttest_1samp(d, 0.0)
    uncorrected = corrected_resampled_t(d, 0.0)
    assert uncorrected.p_value == pytest.approx(plain.pvalue)
    assert (uncorrected.low, uncorrected.high) == pytest.approx(tuple(plain.confidence_interval()))
    corrected = corrected_resampled_t(d, 0.25)
    widening = math.sqrt((1 / 10 + 0.25) / (1 / 10))
    assert corrected.high - corrected.low == pytest.approx(widening * (uncorrected.high - uncorrected.low))
    assert corrected_resampled_t(np.zeros(5), 0.25).p_value == 1.0
    assert corrected_resampled_t(np.full(5, -0.5), 0.25) == Difference(-0.5, -0.5, -0.5, 0.0, 5)
    alone = corrected_resampled_t(np.array([1.0]), 0.25)
    assert (alone.mean, alone.pairs, math.isnan(alone.low), math.isnan(alone.p_value)) == (1.0, 1, True, True)
    nothing = corrected_resampled_t(np.array([]), 0.25)
    assert (math.isnan(nothing.mean), nothing.pairs) == (True, 0)
    two = corrected_resampled_t(np.array([1.0, 3.0]), 0.0)
    assert two.p_value == pytest.approx(stats.ttest_1samp([1.0, 3.0], 0.0).pvalue)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    adjusted = holm([0.02, math.nan, 0.2])
    assert adjusted[0] == pytest.approx(0.04)
    assert math.isnan(adjusted[1])


# Candidates


def test_default_candidates_build_and_print_as_code_that_builds_the_same():
    for candidate in default_candidates():
        for part in (candidate.loss_for("regression"), *candidate.transforms, candidate.optimizer):
            built = part.build()
            evaluated = eval(part.code(), {"keras": keras, "kriterion": __import__("kriterion")})
            assert type(evaluated) is type(built)


def test_candidates_from_toml(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        '[candidates.strong]\nsummary = "s"\ntransforms = [{type = "WeightNoise", stddev = 0.5}, '
        '{type = "WeightPenalty", regularizer = {type = "L2", l2 = 0.1}}]\nloss = "Huber"\n'
        'loss_learning_rate = 0.1\nsearch = {"transforms.0.stddev" = [0.1, 1]}\noptional = true\n'
    )
    (candidate,) = read_candidates(path)
    assert candidate.search == {"transforms.0.stddev": [0.1, 1]}
    assert candidate.optional
    assert "loss_learning_rate=0.1," in candidate.code("regression")
    assert candidate.code("regression").count("keras.losses.Huber()") == 1
    assert "kriterion.transforms.WeightPenalty(regularizer=keras.regularizers.L2(l2=0.1))" in candidate.code(
        "regression"
    )
    assert [c.name for c in choose(["strong"], [candidate])] == ["baseline", "strong"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[candidates", ["not valid TOML"]),
        ("a = 1", ["no candidates"]),
        ("[candidates.x]\nlos = 'Huber'", ["'los'", "Did you mean 'loss'"]),
        ("[candidates.x]\nloss = 'Hubr'", ["'Hubr'", "Did you mean 'Huber'"]),
        ("[candidates.x]\nloss = {delta = 1}", ["`type`"]),
        ("[candidates.x]\ntransforms = [{type = 'WeightNoise', stddev = -1}]", ["WeightNoise", "stddev"]),
        ("[candidates.x]\ntransforms = 'WeightNoise'", ["list"]),
        ("[candidates.x]\nsearch = [0.1, 1]", ["`search`", "table"]),
        ("[candidates.x]\noptional = 1", ["`optional`", "true or false", "Received: 1"]),
        ("[candidates.'a/b']\nloss = 'Huber'", ["letters"]),
    ],
)
def test_bad_candidates_are_told(text, words, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with told(StudyError, words):
        read_candidates(path)


def test_unknown_candidate_tells_the_nearest():
    with pytest.raises(StudyError, match="Did you mean 'weight-noise'"):
        choose(["weight-nose"], default_candidates())


def test_the_baseline_alone_is_refused():
    with pytest.raises(StudyError, match="besides the baseline"):
        choose(["baseline"], default_candidates())


# Engine and study


def trained(candidate, data, seeds, **settings):
    """The runs of one candidate by seed, as a study without an engine trains them."""
    problem = Problem(data, mlp, **{"epochs": 2, "batch_size": 32, **settings})
    runs = train(problem, [Work(candidate, tuple(seeds))], lambda name, epochs: None)
    return {run.seed: run for part in runs for run in part}


def results(run):
    return {k: v for k, v in dataclasses.asdict(run).items() if "seconds" not in k}


EVERYTHING = Candidate(
    "everything",
    loss=Part("AdaptiveRobust"),
    transforms=(Part("WeightNoise", {"stddev": 0.1}),),
    optimizer=Part("VarianceScaling", {"optimizer": Part("Adam", {"learning_rate": 0.002})}),
)


def close(run, other):
    """To the last digits but one: programs for other numbers of seeds may add in another order."""
    assert run.test == pytest.approx(other.test, rel=1e-4)
    assert len(run.epochs) == len(other.epochs)
    for row, same in zip(run.epochs, other.epochs, strict=True):
        assert row == pytest.approx(same, rel=1e-4)


# Its noise begins in proportion to each seed's own initial weights.
MOPED = Candidate("moped", transforms=(Part("LearnedWeightNoise", {"init": "moped"}),))


@pytest.mark.parametrize("candidate", [EVERYTHING, MOPED], ids=lambda candidate: candidate.name)
def test_a_run_depends_on_candidate_and_seed_alone(candidate):
    """Not on the seeds with it, nor on those that trained before."""
    data = load_data("diabetes")
    alone = trained(candidate, data, [2])[2]
    close(trained(candidate, data, [0, 1, 2])[2], alone)
    problem = Problem(data, mlp, epochs=2, batch_size=32)
    for seed in (0, 1, 2):
        (run,) = train_in_a_loop(problem, candidate, [seed], lambda name, epochs: None)
    close(run, alone)


def test_candidates_start_from_the_same_weights_and_batches():
    """With noise of zero, a candidate is the baseline."""
    data = load_data("iris")
    baseline = trained(default_candidates()[0], data, [1])[1]
    close(trained(Candidate("same", transforms=(Part("WeightNoise", {"stddev": 0.0}),)), data, [1])[1], baseline)


def test_orders_are_permutations_of_whole_batches_anew_each_epoch():
    problem = Problem(load_data("diabetes"), mlp, epochs=2, batch_size=32)
    first, second = problem.order(0, 0), problem.order(0, 1)
    assert first.shape == (264 // 32, 32)
    assert len(np.unique(first)) == first.size
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, problem.order(0, 0))
    assert Problem(load_data("diabetes"), mlp, epochs=2, batch_size=1000).order(0, 0).shape == (1, 264)


def test_patience_ends_a_run():
    """A network that learns nothing has its best epoch first."""
    still = Candidate("still", optimizer=Part("SGD", {"learning_rate": 0.0}))
    run = trained(still, load_data("iris"), [0], epochs=20, patience=3)[0]
    assert (run.best_epoch, len(run.epochs), run.status) == (0, 4, FINISHED)


def small(folder, **settings):
    candidates = (default_candidates()[0], EVERYTHING)
    model = settings.pop("model", mlp)
    settings = Settings(**{"seeds": 2, "epochs": 2, **settings})
    return Study(model, "iris", candidates, settings, folder=folder, engine=LocalEngine())


def test_an_interrupted_study_resumes_with_the_same_numbers(tmp_path):
    whole = small(tmp_path / "whole")
    whole.run()

    class Killed(Exception):
        pass

    count = 0

    def killed(name, epochs):
        nonlocal count
        count += 1
        if count == 8:
            raise Killed

    with pytest.raises(Killed):
        small(tmp_path / "parts").run(killed)
    (tmp_path / "parts" / "runs" / "everything-0.999.tmp").write_text("{half a fi")
    trained = []
    resumed = small(tmp_path / "parts")
    resumed.run(lambda name, epochs: trained.append(epochs))
    assert [results(run) for run in resumed.results.runs] == [results(run) for run in whole.results.runs]
    # Every epoch is reported once: the stored run's at once, the others one by one.
    assert sum(trained) == 2 * 2 * 2
    assert trained.count(2) >= 1
    table = pl.read_parquet(tmp_path / "parts" / "results.parquet")
    assert table.height == 2 * 2 * 2
    assert table["test_accuracy"].drop_nulls().len() == 4


def test_a_diverged_run_is_recorded_and_told(tmp_path):
    diverging = Candidate("diverging", optimizer=Part("SGD", {"learning_rate": 1e30}))
    candidates = (default_candidates()[0], diverging)
    study = Study(mlp, "diabetes", candidates, Settings(seeds=2, epochs=3), folder=tmp_path / "s", engine=LocalEngine())
    comparison = study.run().comparison
    assert comparison.rows[1].diverged == 2
    assert all(run.status == FINISHED for run in study.results.runs if run.candidate == "baseline")
    assert "Diverged" in comparison.verdict
    assert comparison.winner.name == "baseline"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": 1}, ["--seeds", "2", "1"]),
        ({"epochs": 0}, ["--epochs"]),
        ({"batch_size": 0}, ["--batch-size"]),
        ({"patience": 0}, ["--patience", "1"]),
        ({"corrupt_targets": 1.0}, ["--corrupt-targets", "1.0"]),
        ({"metric": "rmse"}, ["--metric", "accuracy", "'rmse'"]),
        ({"model": "nonsense"}, ["module:function"]),
        ({"model": "no_such_module:f"}, ["cannot be imported"]),
        ({"model": "keras:nothing"}, ["nothing"]),
        ({"model": "tests.test_study:wrong_output"}, ["does not fit", "(n, 3)", "(4, 2)"]),
        ({"model": "tests.test_study:no_softmax"}, ["softmax"]),
    ],
)
def test_bad_settings_are_told(settings, words, tmp_path):
    with told(StudyError, words):
        small(tmp_path / "s", **settings)


def wrong_output(features, outputs):
    return keras.Sequential([keras.Input((features,)), keras.layers.Dense(2, activation="softmax")])


def no_softmax(features, outputs):
    return keras.Sequential([keras.Input((features,)), keras.layers.Dense(outputs)])


@pytest.mark.parametrize("rate", [0.0, "fast", 0.1])
def test_a_candidate_that_cannot_be_compiled_is_told_before_anything_is_trained(rate, tmp_path):
    """0.1 as well: squared error has nothing that learns."""
    candidates = (Candidate("baseline"), Candidate("learner", loss_learning_rate=rate))
    with told(StudyError, ["'learner'", "learning_rate"]):
        Study(mlp, "iris", candidates, folder=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def normalised(features, outputs):
    layers = [keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dense(outputs, "softmax")]
    return keras.Sequential([keras.Input((features,)), *layers])


def test_optional_candidates_that_refuse_the_network_are_left_out(tmp_path):
    from kriterion.report import write_page

    penalty, noise = (c for c in default_candidates() if c.name in ("gradient-variance", "weight-noise"))
    settings, baseline = Settings(seeds=2, epochs=1), default_candidates()[0]
    study = Study(normalised, "iris", (baseline, penalty, noise), settings, folder=tmp_path / "s")
    assert [c.name for c in study.candidates] == ["baseline", "weight-noise"]
    words = ["GradientVariancePenalty", "batch_normalization", "micro_batch"]
    assert all(word in study.left_out["gradient-variance"] for word in words)
    page = write_page(study.run(), tmp_path / "s").read_text()
    assert "gradient-variance: GradientVariancePenalty" in page[page.index("What was left out") :]
    assert "<p>gradient-variance was left out: GradientVariancePenalty" in study._repr_html_()
    # What a user names is not left out.
    named = choose(["gradient-variance"], default_candidates())
    with told(StudyError, ["candidate 'gradient-variance'", *words]):
        Study(normalised, "iris", named, settings, folder=tmp_path / "t")
    with told(StudyError, ["candidate 'gradient-variance'", *words]):
        Study(normalised, "iris", (penalty, baseline, noise), settings, folder=tmp_path / "t")
    with told(StudyError, ["No candidate suits the network", *words]):
        Study(normalised, "iris", (baseline, penalty), settings, folder=tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    small(tmp_path / "s")
    with pytest.raises(StudyError, match=r"different study \(epochs: 2 there, 3 now\)"):
        small(tmp_path / "s", epochs=3)
    # What a study leaves that was killed before it had described itself is taken over.
    (tmp_path / "killed" / "runs").mkdir(parents=True)
    (tmp_path / "killed" / "study.999.tmp").write_text("{half a fi")
    small(tmp_path / "killed")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(StudyError, match="other files"):
        small(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be written"):
        small(tmp_path / "file" / "s")


def test_the_page_is_self_contained_and_its_code_runs(tmp_path, monkeypatch):
    from kriterion.report import write_page
    from kriterion.report.page import code_for

    results = small(tmp_path / "s").run(command="kriterion study <iris>")
    html = write_page(results, tmp_path / "s").read_text()
    for absent in ("http://", "https://", "src=", "@import"):
        assert absent not in html.replace("http://www.w3.org/", "")
    assert html.index(results.verdict.split(":")[0]) < html.index("<table")
    assert "kriterion study &lt;iris&gt;" in html
    assert html.count("<svg") == 3 + len(results.candidates)
    for candidate in results.candidates:
        assert candidate.name in html
    monkeypatch.chdir(tmp_path)
    code = code_for(EVERYTHING, results)
    assert "AdaptiveRobust" in code
    exec(compile(code, "winner", "exec"), {})


def test_the_page_is_the_same_from_what_is_stored(tmp_path):
    """Candidates, numbers and words come back from the folder, without the data."""
    from kriterion.report import write_page

    results = small(tmp_path / "s").run(command="made")
    first = write_page(results, tmp_path / "s").read_text()
    stored = load_results(tmp_path / "s")
    assert stored.candidates == results.candidates
    assert write_page(stored, tmp_path).read_text() == first


def test_a_study_in_a_notebook(tmp_path):
    study = small(tmp_path / "s")
    with told(StudyError, ["run()"]):
        study.table()
    results = study.run()
    table = study.table()
    assert table["candidate"].to_list() == ["baseline", "everything"]
    runs = [run.test["accuracy"] for run in results.runs if run.candidate == "everything"]
    assert table["accuracy"][1] == pytest.approx(np.mean(runs))
    assert table["difference"][1] == pytest.approx(table["accuracy"][1] - table["accuracy"][0])
    for name in ("differences", "cost", "curves"):
        assert study.figure(name)._repr_html_().startswith("<svg")
    assert study.figure("logs", "everything").startswith("<svg")
    assert study.figure("sensitivity", "everything") == ""
    with told(StudyError, ["'scatter'", "curves"]):
        study.figure("scatter")
    with told(StudyError, ["'logs' of 'nobody'", "of a candidate: logs"]):
        study.figure("logs", "nobody")
    assert "baseline" in study._repr_html_()
    assert study._repr_html_().startswith("<p>")


def test_a_folder_without_results_is_told(tmp_path):
    with told(StudyError, ["results.json", "run to its end"]):
        load_results(tmp_path)
    small(tmp_path / "s").run()
    described = tmp_path / "s" / "results.json"
    whole = described.read_text()
    described.write_text(whole[:100])
    with told(StudyError, ["damaged"]):
        load_results(tmp_path / "s")
    described.write_text(whole)
    (tmp_path / "s" / "runs" / "baseline-1.json").unlink()
    with told(StudyError, ["baseline-1.json", "cannot be read"]):
        load_results(tmp_path / "s")


def test_stored_numbers_are_json(tmp_path):
    study = small(tmp_path / "s")
    study.run()
    stored = json.loads((tmp_path / "s" / "runs" / "baseline-0.json").read_text())
    assert stored["test"] == study.results.runs[0].test
