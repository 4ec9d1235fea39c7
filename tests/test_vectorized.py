"""Training at once is training one by one, on JAX."""

import keras
import numpy as np
import polars as pl
import pytest

from minimand.study import Candidate, Part, StudyError, _vectorized, default_candidates, load_data, mlp
from minimand.study._engines import divided, train
from minimand.study._problem import Problem
from minimand.study._settings import Settings
from minimand.study._training import Work, train_in_a_loop
from minimand.study._vectorized import judge_of, trace
from tests.helpers import told

# Each test compiles whole studies.
pytestmark = pytest.mark.slow


def silent(name, epochs):
    pass


def at_once(problem, candidates, seeds):
    runs = train(problem, [Work(candidate, tuple(seeds)) for candidate in candidates], silent)
    return {(run.candidate, run.seed): run for part in runs for run in part}


def assert_equal_runs(run, other):
    """To the accuracy of float32 after a few steps."""
    assert (run.seed, run.status, run.best_epoch) == (other.seed, other.status, other.best_epoch)
    assert run.specification == other.specification
    assert len(run.epochs) == len(other.epochs)
    for row, same in zip(run.epochs, other.epochs, strict=True):
        assert row == pytest.approx(same, rel=1e-4, abs=1e-6, nan_ok=True)
    assert run.test == pytest.approx(other.test, rel=1e-4, abs=1e-6, nan_ok=True)


def compare(problem, candidates, seeds=(0, 1)):
    """Train at once and one by one; returns the runs."""
    runs = at_once(problem, candidates, seeds)
    for candidate in candidates:
        for expected in train_in_a_loop(problem, Work(candidate, tuple(seeds)), silent):
            run = runs[candidate.name, expected.seed]
            assert run.note == ""
            assert_equal_runs(run, expected)
    return runs


MORE = (
    Candidate("learned-noise", transforms=(Part("VariationalWeightNoise"),)),
    Candidate("sharpness", transforms=(Part("SharpnessAware", {"rho": 0.05}),)),
    Candidate("measured", transforms=(Part("MeasureGradient", {"every": 5}),)),
    Candidate("ivon", transforms=(Part("IVONNoise"),), optimizer=Part("IVON", {"learning_rate": 0.01})),
    # No loss with a kink where a batch's quantile is: on which side that example is, rounding decides.
    Candidate("statistics", loss=Part("StandardizedIRLS", {"loss": Part("MeanSquaredError")})),
    Candidate("proximal", optimizer=Part("Proximal", {"optimizer": Part("SGD"), "regularizer": Part("GroupLasso", {"strength": 0.01})})),
)  # fmt: skip


# Each third default candidate is enough, because the steps of the others are traced in the same way.
@pytest.mark.parametrize("candidate", [*default_candidates()[::3], *MORE], ids=lambda candidate: candidate.name)
def test_at_once_is_one_by_one(candidate):
    compare(Problem(load_data("diabetes"), mlp, Settings(epochs=2)), [candidate])


def test_at_once_is_one_by_one_in_classification():
    compare(Problem(load_data("iris"), mlp, Settings(epochs=2, batch_size=25)), default_candidates()[:1])


def layered(input_shape, outputs):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Dense(12, use_bias=False),
            layers.BatchNormalization(),
            layers.Reshape((4, 3)),
            layers.Conv1D(4, 2, activation="relu"),
            layers.LSTM(5),
            layers.Dropout(0.5, seed=1),
            layers.Dense(outputs, activation="softmax", kernel_regularizer="l2"),
        ]
    )


def test_robust_candidates_learn_ten_classes():
    """Guessing one class for all rows, where each residual but one is 0, is a trap for losses that learn a scale."""
    robust = [candidate for candidate in default_candidates() if "robust" in candidate.name]
    runs = at_once(Problem(load_data("digits"), mlp, Settings(epochs=20)), robust, [0])
    for run in runs.values():
        assert run.test["accuracy"] > 0.9, run.candidate


def test_networks_of_other_layers():
    candidates = [default_candidates()[0], Candidate("noise", transforms=(Part("WeightNoise", {"stddev": 0.1}),))]
    compare(Problem(load_data("iris"), layered, Settings(epochs=2, batch_size=16)), candidates)


def ranged(name, strength, low, rate):
    regularizer = Part("Range", {"strength": strength, "low": low, "high": 0.2})
    penalty = Part("WeightPenalty", {"regularizer": regularizer})
    return Candidate(name, transforms=(penalty,), optimizer=Part("Adam", {"learning_rate": rate}))


def programs(problem, candidates, seeds=(0, 1)):
    """Which candidates share a program."""
    groups = _vectorized._groups(problem, [Work(candidate, seeds) for candidate in candidates], [])
    return [[traced.work.candidate.name for traced in group] for group in groups]


def test_candidates_that_differ_in_numbers_are_one_program():
    problem = Problem(load_data("iris"), rectified, Settings(epochs=2))
    one, two, three = ranged("one", 0.1, -0.1, 0.01), ranged("two", 3.0, -0.1, 0.001), ranged("three", 0.1, -0.2, 0.002)
    shape = [Candidate(f"shape-{alpha}", loss=Part("GeneralRobust", {"alpha": alpha})) for alpha in (1.0, 1.5)]
    names = programs(problem, [one, shape[0], two, shape[1], three])
    assert names == [["one", "two", "three"], ["shape-1.0"], ["shape-1.5"]]
    compare(problem, [one, two, three], seeds=(0, 1))
    # Other numbers later, as in tuning, are no other program.
    compare(problem, [ranged(f"later-{i}", 0.1 * i, -0.1 * i, 0.01 * i) for i in (1, 2, 3)], seeds=(0, 1))
    assert len(judge_of(problem, (0, 1)).epoch_programs) == 1


def test_folds_with_other_categories_are_programs_of_their_own(tmp_path):
    random = np.random.default_rng(0)
    # One row of a rare category: in the training rows of some seeds only.
    table = pl.DataFrame(
        {"a": random.normal(size=40), "b": ["x", "y"] * 19 + ["x", "rare"], "target": random.normal(size=40)}
    )
    table.write_csv(tmp_path / "t.csv")
    problem = Problem(load_data(str(tmp_path / "t.csv"), target="target"), rectified, Settings(epochs=2, batch_size=8))
    seeds = range(6)
    assert len(problem.alike(seeds)) == 2
    compare(problem, default_candidates()[:1], seeds)


def rectified(input_shape, outputs):
    """Without the cosines of `mlp`, which turn rounding into anything once weights are huge."""
    hidden = [keras.layers.Dense(64, "relu") for _ in range(2)]
    last = keras.layers.Dense(outputs, "linear" if outputs == 1 else "softmax")
    return keras.Sequential([keras.Input(input_shape), *hidden, last])


def test_runs_that_end_early():
    """One that diverges at once, one that runs out of patience, and one that goes on."""
    problem = Problem(load_data("diabetes"), rectified, Settings(epochs=12, batch_size=64, patience=3))
    candidates = [
        Candidate(f"rate-{index}", optimizer=Part("SGD", {"learning_rate": rate}))
        for index, rate in enumerate((1e30, 1.0, 0.05))
    ]
    runs = compare(problem, candidates, seeds=(0, 1))
    assert programs(problem, candidates) == [[candidate.name for candidate in candidates]]
    assert {runs["rate-0", seed].status for seed in (0, 1)} == {"diverged"}
    assert len({len(run.epochs) for run in runs.values()}) > 2


def test_many_rows_are_predicted_in_parts(monkeypatch):
    monkeypatch.setattr(_vectorized, "ROWS", 7)
    compare(Problem(load_data("iris"), rectified, Settings(epochs=2)), default_candidates()[:1])


def test_seeds_are_divided_where_memory_is_short(monkeypatch):
    problem = Problem(load_data("iris"), rectified, Settings(epochs=2))
    candidates = default_candidates()[:2]
    whole = at_once(problem, candidates, range(3))
    memory = _vectorized._memory(problem)
    weights = sum(values.nbytes for values in problem.weights(0))
    # Inputs depend on the fold, by its mean and deviation, and targets do not.
    assert memory.shared == 150 * 3 * 4
    assert memory.run >= 8 * weights + 150 * 4 * 4
    monkeypatch.setattr(_vectorized, "_MEMORY", memory.shared + 3 * memory.run - 1)
    works = divided(problem, candidates, range(3))
    assert [work.seeds for work in works] == [(0, 1), (2,)] * 2
    for part in train(problem, works, silent):
        for run in part:
            assert_equal_runs(run, whole[run.candidate, run.seed])


def test_a_network_that_memory_does_not_hold_is_refused(monkeypatch):
    problem = Problem(load_data("iris"), rectified, Settings(epochs=2))
    weights = sum(values.nbytes for values in problem.weights(0))
    monkeypatch.setattr(_vectorized, "_physical_memory", lambda: 150 * 3 * 4 + 3 * weights)
    with told(StudyError, ["at least", "GiB", "batch_size=32"]):
        divided(problem, default_candidates()[:1], range(2))


def test_what_cannot_be_traced_is_trained_one_by_one_and_says_so(monkeypatch):
    problem = Problem(load_data("diabetes"), rectified, Settings(epochs=2))
    baseline, other = default_candidates()[:2]

    def failing(problem, work):
        if work.candidate is baseline:
            raise TypeError("no abstract value\nfor details see")
        return trace(problem, work)

    expected = at_once(problem, [baseline, other], (0, 1))
    monkeypatch.setattr(_vectorized, "trace", failing)
    runs = at_once(problem, [baseline, other], (0, 1))
    for key, run in runs.items():
        assert_equal_runs(run, expected[key])
    assert runs["gradient-variance-penalty", 0].note == ""
    assert runs["baseline", 1].note == "JAX cannot train its seeds at once: no abstract value"


def test_a_lifted_function_is_each_of_the_functions():
    """Constants that differ, in calls, where they are folded, and where a function gives one back."""
    import jax

    from minimand.backend._step_programs import Lifted

    def of(number, power, fixed=3.0):
        def function(x):
            inner = jax.jit(lambda y: jax.nn.relu(y * number) ** power)
            return inner(x) + fixed + np.asarray([number, 1.0], "float32"), number, x

        return function

    x = np.asarray([0.5, -2.0], "float32")
    parameters = [(2.0, 2), (3.0, 2), (-0.5, 2)]
    lifted = Lifted([jax.make_jaxpr(of(*each))(x) for each in parameters])
    # Others than those that it was made of, too.
    parameters += [(7.0, 2)]
    every = lifted.numbers([jax.make_jaxpr(of(*each))(x) for each in parameters])
    for index, each in enumerate(parameters):
        numbers = [array[index] for array in every]
        for value, expected in zip(lifted(numbers, x), of(*each)(x), strict=True):
            np.testing.assert_array_equal(value, expected)
    for different in (of(2.0, 3), lambda x: (x, 2.0, x), lambda x: (x + x, 2.0, x)):
        with pytest.raises(ValueError, match="more than constants"):
            Lifted([jax.make_jaxpr(of(2.0, 2))(x), jax.make_jaxpr(different)(x)])
        with pytest.raises(ValueError, match="more than constants"):
            lifted.numbers([jax.make_jaxpr(different)(x)])
    # What did not differ before is no argument.
    with pytest.raises(ValueError, match="more than constants"):
        lifted.numbers([jax.make_jaxpr(of(2.0, 2, fixed=4.0))(x)])
    with pytest.raises(ValueError, match="shapes"):
        Lifted([jax.make_jaxpr(of(2.0, 2))(x), jax.make_jaxpr(lambda x: (x, 2.0, x))(x[:1])])
