"""A study: its runs, its folder, its page, and what is refused."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import polars as pl
import pytest

from minimand.study import (
    Candidate,
    LocalEngine,
    Part,
    Study,
    StudyError,
    default_candidates,
    load_data,
    load_results,
    mlp,
)
from minimand.study._engines import train
from minimand.study._problem import Problem
from minimand.study._results import Storage
from minimand.study._settings import Settings
from minimand.study._training import FINISHED, Work, train_in_a_loop
from tests.helpers import told
from tests.small_networks import one_layer


def trained(candidate, data, seeds, **settings):
    """The runs of one candidate by seed, as a study without an engine trains them."""
    problem = Problem(data, mlp, Settings(**{"epochs": 2, **settings}))
    runs = train(problem, [Work(candidate, tuple(seeds))], lambda name, epochs: None)
    return {run.seed: run for part in runs for run in part}


def results(run):
    return {k: v for k, v in dataclasses.asdict(run).items() if "seconds" not in k}


EVERYTHING = Candidate(
    "everything",
    loss=Part("AdaptiveRobust"),
    transforms=(Part("WeightNoise", {"stddev": 0.1}),),
    optimizer=Part("SNRScaling", {"optimizer": Part("Adam", {"learning_rate": 0.002})}),
)


def close(run, other):
    """To the last digits but one: programs for other numbers of seeds may add in another order."""
    assert run.test == pytest.approx(other.test, rel=1e-4)
    assert len(run.epochs) == len(other.epochs)
    for row, same in zip(run.epochs, other.epochs, strict=True):
        assert row == pytest.approx(same, rel=1e-4)


# Its noise begins in proportion to each seed's own initial weights.
MOPED = Candidate("moped", transforms=(Part("VariationalWeightNoise", {"init": "moped"}),))


@pytest.mark.slow
@pytest.mark.parametrize("candidate", [EVERYTHING, MOPED], ids=lambda candidate: candidate.name)
def test_a_run_depends_on_candidate_and_seed_alone(candidate):
    """Not on the seeds with it, nor on those that trained before."""
    data = load_data("diabetes")
    alone = trained(candidate, data, [2])[2]
    close(trained(candidate, data, [0, 2])[2], alone)
    problem = Problem(data, mlp, Settings(epochs=2))
    for seed in (0, 2):
        (run,) = train_in_a_loop(problem, Work(candidate, (seed,)), lambda name, epochs: None)
    close(run, alone)


@pytest.mark.slow
def test_candidates_start_from_the_same_weights_and_batches():
    """With noise of zero, a candidate is the baseline."""
    data = load_data("iris")
    baseline = trained(default_candidates()[0], data, [1])[1]
    close(trained(Candidate("same", transforms=(Part("WeightNoise", {"stddev": 0.0}),)), data, [1])[1], baseline)


def test_orders_are_permutations_of_whole_batches_anew_each_epoch():
    problem = Problem(load_data("diabetes"), mlp, Settings())
    first, second = problem.order(0, 0), problem.order(0, 1)
    assert first.shape == (264 // 32, 32)
    assert len(np.unique(first)) == first.size
    assert not np.array_equal(first, second)
    assert set(first.ravel()) | set(second.ravel()) <= set(problem.fold(0).split.train)
    np.testing.assert_array_equal(first, problem.order(0, 0))
    assert Problem(load_data("diabetes"), mlp, Settings(batch_size=1000)).order(0, 0).shape == (1, 264)


@pytest.mark.slow
def test_patience_ends_a_run():
    """A network that learns nothing has its best epoch first."""
    still = Candidate("still", optimizer=Part("SGD", {"learning_rate": 0.0}))
    run = trained(still, load_data("iris"), [0], epochs=20, patience=3)[0]
    assert (run.best_epoch, len(run.epochs), run.status) == (0, 4, FINISHED)


def small(folder, **settings):
    settings = {"seeds": 2, "epochs": 2, **settings}
    return Study(mlp, "iris", candidates=[EVERYTHING], folder=folder, engine=LocalEngine(), **settings)


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "s"
    small(folder).run(command="minimand study <iris>")
    return folder


@pytest.fixture
def finished(finished_folder, tmp_path):
    """A folder of a finished study, of the test's own."""
    return shutil.copytree(finished_folder, tmp_path / "s")


@pytest.mark.slow
def test_an_interrupted_study_resumes_with_the_same_numbers(finished, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    save = Storage.save

    def killed(storage, run):
        if len(list((storage.folder / "runs").iterdir())) == 2:
            raise Killed
        save(storage, run)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "save", killed)
        with pytest.raises(Killed):
            small(tmp_path / "parts").run()
    (tmp_path / "parts" / "runs" / "everything-0.999.tmp").write_text("{half a fi")
    trained = []
    resumed = small(tmp_path / "parts")
    resumed.run(lambda name, epochs: trained.append(epochs))
    assert [results(run) for run in resumed.results.runs] == [results(run) for run in load_results(finished).runs]
    # Every epoch is reported once: the stored run's at once, the others one by one.
    assert sum(trained) == 2 * 2 * 2
    assert trained.count(2) >= 1
    table = pl.read_parquet(tmp_path / "parts" / "results.parquet")
    assert table.height == 2 * 2 * 2
    assert table["test_accuracy"].drop_nulls().len() == 4


@pytest.mark.slow
def test_repeats_metrics_and_more_seeds_go_on_with_what_is_stored(tmp_path):
    """Repeats share a split. A metric that no run has is measured anew, on the same predictions."""

    def found(**settings):
        arguments = {"seeds": 2, "repeats": 2, "epochs": 1, "folder": tmp_path / "s", "engine": LocalEngine()}
        study = Study(one_layer, "diabetes", candidates=["weight-noise"], **{**arguments, **settings})
        count = 0

        def trained(name, epochs):
            nonlocal count
            count += epochs

        results = study.run(trained)
        # Progress counts every run once.
        assert count == len(results.runs)
        return results

    first = found()
    assert [run.split for run in first.runs] == [0, 0, 1, 1] * 2
    weights = [run.test["mae"] for run in first.runs]
    assert len(set(weights)) == len(weights)
    paired = np.subtract(weights[4:], weights[:4]).reshape(2, 2).mean(axis=1)
    difference = first.comparison.rows[1].differences["mae"]
    assert (difference.mean, difference.pairs) == (pytest.approx(paired.mean()), 2)
    assert first.figure("differences").startswith("<svg")
    other = found(metric="pinball_0.9")
    assert other.metric.key == "pinball_0.9"
    assert [run.test["mae"] for run in other.runs] == pytest.approx(weights, rel=1e-5)
    more = found(seeds=3)
    assert len(more.runs) == 2 * 3 * 2
    assert more.table()["mae"][0] == pytest.approx(np.mean([run.test["mae"] for run in more.runs[:6]]))
    assert load_results(tmp_path / "s").verdict == more.verdict


@pytest.mark.slow
def test_a_diverged_run_is_recorded_and_told(tmp_path):
    diverging = Candidate("diverging", optimizer=Part("SGD", {"learning_rate": 1e30}))
    study = Study(
        mlp, "diabetes", candidates=[diverging], seeds=2, epochs=3, folder=tmp_path / "s", engine=LocalEngine()
    )
    comparison = study.run().comparison
    assert comparison.rows[1].diverged == 2
    assert all(run.status == FINISHED for run in study.results.runs if run.candidate == "baseline")
    assert "Diverged runs are left out" in comparison.verdict
    assert comparison.winner.name == "baseline"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": 1}, ["--seeds", "2", "1"]),
        ({"epochs": 0}, ["--epochs"]),
        ({"batch_size": 0}, ["--batch-size"]),
        ({"patience": 0}, ["--patience", "1"]),
        ({"repeats": 0}, ["--repeats", "1"]),
        ({"corrupt_targets": 1.0}, ["--corrupt-targets", "1.0"]),
        ({"metric": "rmse"}, ["--metric", "accuracy", "'rmse'"]),
        ({"select": "rmse"}, ["--select", "log_loss", "'rmse'"]),
        ({"epochs": True}, ["--epochs", "True"]),
        ({"seeds": 2.0}, ["--seeds", "whole number", "2.0"]),
        ({"corrupt_targets": False}, ["--corrupt-targets", "False"]),
    ],
)
def test_bad_settings_are_told(settings, words, tmp_path):
    with told(StudyError, words):
        small(tmp_path / "s", **settings)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["baseline", "a/b"], ["'a/b'", "letters"]),
        (["baseline", ""], ["''", "letters"]),
        (["baseline", None], ["None", "letters"]),
        (["baseline", "noise", "noise"], ["'noise'", "another"]),
        (["baseline", "Baseline"], ["'Baseline'", "another"]),
    ],
)
def test_candidates_have_names_of_their_own_that_files_can_have(names, words, tmp_path):
    with told(StudyError, words):
        Study(mlp, "iris", candidates=[Candidate(name) for name in names], folder=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_baseline_comes_first_and_names_are_default_candidates(tmp_path):
    def compared(candidates):
        return Study(
            mlp, "iris", candidates=candidates, folder=tmp_path / str(len(list(tmp_path.iterdir())))
        ).candidates

    usual, by_name = default_candidates()[0], {c.name: c for c in default_candidates()}
    own, other = Candidate("baseline", loss="Huber"), Candidate("other", loss="Huber")
    assert compared([]) == (usual,)
    assert compared([other, "weight-noise"]) == (
        usual,
        other,
        dataclasses.replace(by_name["weight-noise"], optional=False),
    )
    assert compared([other, own]) == (own, other)
    assert [c.name for c in compared(None)] == list(by_name)
    for wrong, words in (
        (["weight-nose"], ["'weight-nose'", "Did you mean 'weight-noise'"]),
        ("weight-noise", ["`candidates` must be a list", "'weight-noise'"]),
        ([3], ["Received: 3"]),
    ):
        with told(StudyError, words):
            compared(wrong)


@pytest.mark.parametrize("rate", [0.0, "fast", 0.1])
def test_a_candidate_that_cannot_be_compiled_is_told_before_anything_is_trained(rate, tmp_path):
    """0.1 as well: squared error has nothing that learns."""
    with told(StudyError, ["'learner'", "learning_rate"]):
        Study(mlp, "iris", candidates=[Candidate("learner", loss_learning_rate=rate)], folder=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def normalised(input_shape, outputs):
    layers = [keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dense(outputs, "softmax")]
    return keras.Sequential([keras.Input(input_shape), *layers])


@pytest.mark.slow
def test_optional_candidates_that_refuse_the_network_are_left_out(tmp_path):
    from minimand.study import write_page

    penalty, noise = (c for c in default_candidates() if c.name in ("gradient-variance-penalty", "weight-noise"))
    exact = Part("GradientVariancePenalty", {"strength": 1e-3, "estimator": "exact"})
    penalty = dataclasses.replace(penalty, transforms=(exact,))
    settings = {"seeds": 2, "epochs": 1, "engine": LocalEngine()}
    study = Study(normalised, "iris", candidates=[penalty, noise], folder=tmp_path / "s", **settings)
    assert [c.name for c in study.candidates] == ["baseline", "weight-noise"]
    words = ["GradientVariancePenalty", "batch_normalization", "micro_batch"]
    assert all(word in study.left_out["gradient-variance-penalty"] for word in words)
    page = write_page(study.run(), tmp_path / "s").read_text()
    assert "gradient-variance-penalty: GradientVariancePenalty" in page[page.index("<h2>Left out") :]
    assert "<p>gradient-variance-penalty was left out: GradientVariancePenalty" in study.results._repr_html_()
    # A candidate that the user names is not left out. The baseline is not left out, either.
    for named, words_of_name in (
        ([dataclasses.replace(penalty, optional=False), noise], ["candidate 'gradient-variance-penalty'", *words]),
        ([dataclasses.replace(penalty, name="baseline"), noise], ["candidate 'baseline'", *words]),
        ([penalty], ["No candidate suits the network", *words]),
    ):
        with told(StudyError, words_of_name):
            Study(normalised, "iris", candidates=named, folder=tmp_path / "t", **settings)
    assert not (tmp_path / "t").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    small(tmp_path / "s")
    with pytest.raises(StudyError, match=r"different study \(epochs: 2 there, 3 now\)"):
        small(tmp_path / "s", epochs=3)
    # What a study leaves that was killed before it had described itself is taken over.
    (tmp_path / "killed" / "runs").mkdir(parents=True)
    (tmp_path / "killed" / "study.999.tmp").write_text("{half a fi")
    small(tmp_path / "killed")
    (tmp_path / "killed" / "study.json").write_text("{half a fi")
    with told(StudyError, ["study.json is damaged", "--out"]):
        small(tmp_path / "killed")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(StudyError, match="other files"):
        small(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be written"):
        small(tmp_path / "file" / "s")


@pytest.mark.slow
def test_the_page_is_self_contained_and_its_code_runs(finished, tmp_path, monkeypatch):
    from minimand.study import write_page
    from minimand.study._page import code_for

    results = load_results(finished)
    html = write_page(results, finished).read_text()
    for absent in ("http://", "https://", "src=", "@import"):
        assert absent not in html.replace("http://www.w3.org/", "")
    assert html.index(results.verdict.split(".")[0]) < html.index("<table")
    assert "minimand study &lt;iris&gt;" in html
    assert html.count("<svg") == 3 + len(results.candidates)
    for candidate in results.candidates:
        assert candidate.name in html
    monkeypatch.chdir(tmp_path)
    code = code_for(EVERYTHING, results)
    assert "AdaptiveRobust" in code
    exec(compile(code, "winner", "exec"), {})
    # The function of a network that cannot be imported is to be given.
    results.description["model"] |= {"module": "mine", "name": "test.<locals>.build", "identity": "mine:test (0)"}
    code = code_for(EVERYTHING, results)
    assert "mine:test (0)" in code
    exec(compile(code, "winner", "exec"), {"build_model": mlp})


def test_the_page_is_the_same_from_what_is_stored(finished, tmp_path):
    """Candidates, numbers and words come back from the folder, without the data."""
    from minimand.study import write_page

    # Everything is stored already, so nothing is trained again.
    results = small(finished).run(command="minimand study <iris>")
    first = write_page(results, finished).read_text()
    stored = load_results(finished)
    assert stored.candidates == results.candidates
    assert write_page(stored, tmp_path).read_text() == first


def test_a_study_in_a_notebook(finished):
    study = small(finished)
    with told(StudyError, ["run()"]):
        study.results  # noqa: B018
    results = study.run()
    assert study.results is results
    table = results.table()
    assert table["candidate"].to_list() == ["baseline", "everything"]
    runs = [run.test["accuracy"] for run in results.runs if run.candidate == "everything"]
    assert table["accuracy"][1] == pytest.approx(np.mean(runs))
    assert table["difference"][1] == pytest.approx(table["accuracy"][1] - table["accuracy"][0])
    for name in ("differences", "cost", "curves"):
        assert results.figure(name)._repr_html_().startswith("<svg")
    assert results.figure("logs", "everything").startswith("<svg")
    assert results.figure("sensitivity", "everything") == ""
    with told(StudyError, ["'scatter'", "curves"]):
        results.figure("scatter")
    with told(StudyError, ["'logs' of 'nobody'", "of a candidate: logs"]):
        results.figure("logs", "nobody")
    assert "baseline" in results._repr_html_()
    stored = load_results(finished)
    assert results._repr_html_() == stored._repr_html_()
    assert stored.table().equals(table)
    assert stored.figure("curves") == results.figure("curves")
    assert results._repr_html_().startswith("<p>")
    assert repr(results).startswith(results.verdict)


def test_a_folder_without_results_is_told(finished, tmp_path):
    with told(StudyError, ["results.json", "finished study", "run the same"]):
        load_results(tmp_path)
    described = finished / "results.json"
    whole = described.read_text()
    described.write_text(whole[:100])
    with told(StudyError, ["damaged"]):
        load_results(finished)
    described.write_text(whole)
    (finished / "runs" / "baseline-1.json").unlink()
    with told(StudyError, ["baseline-1.json", "cannot be read"]):
        load_results(finished)


def test_stored_numbers_are_json(finished):
    stored = json.loads((finished / "runs" / "baseline-0.json").read_text())
    assert stored["test"] == load_results(finished).runs[0].test
