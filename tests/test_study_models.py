"""Networks of a study: how they are found, what is asked of them, and when two functions build the same."""

import functools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from minimand.study import Candidate, LocalEngine, Study, StudyError, load_data, mlp
from minimand.study._models import Copies, model_function, model_identity
from minimand.study._problem import Problem
from minimand.study._settings import Settings
from tests.helpers import told

# Each test compiles a study.
pytestmark = pytest.mark.slow


def network(input_shape, outputs, width=4):
    layers = [keras.layers.Dense(width), keras.layers.Dense(outputs, activation="softmax")]
    return keras.Sequential([keras.Input(input_shape), *layers])


def wrong_output(input_shape, outputs):
    return network(input_shape, 2)


def no_softmax(input_shape, outputs):
    return keras.Sequential([keras.Input(input_shape), keras.layers.Dense(outputs)])


def not_a_model(input_shape, outputs):
    return keras.layers.Dense(outputs)


def of_images(input_shape, outputs):
    return keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(outputs, 3)])


def of_one_argument(input_shape):
    return network(input_shape, 1)


def broken(input_shape, outputs):
    raise RuntimeError("no weights at hand")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (not_a_model, ["keras.Model", "Dense"]),
        (of_images, ["must accept inputs of shape (n, 4)"]),
        (wrong_output, ["outputs of shape (n, 3)", "(4, 2)"]),
        (no_softmax, ["softmax"]),
        (of_one_argument, ["--model", "(input_shape, outputs)", "function of (input_shape)"]),
        (broken, ["--model", "shape (n, 4)", "RuntimeError: no weights at hand"]),
    ],
)
def test_a_model_that_does_not_fit_is_told(model, words, tmp_path):
    with told(StudyError, words):
        Study(model, "iris", seeds=2, epochs=1, folder=tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("specification", ["model", ":build", "model:", "no_such_module:build", "math:no_such"])
def test_a_name_of_no_model_is_told(specification):
    with told(StudyError, ["--model", specification.strip(":").partition(":")[0]]):
        model_function(specification)


@pytest.mark.parametrize(
    ("content", "words"),
    [("def build(:", ["SyntaxError"]), ("1 / 0", ["ZeroDivisionError"]), ("import no_such_module", ["no_such_module"])],
)
def test_a_module_that_cannot_be_imported_is_told(content, words, tmp_path, monkeypatch):
    name = f"mine_{abs(hash(content))}"
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with told(StudyError, ["--model", "cannot be imported", *words]):
        model_function(f"{name}:build")


def test_a_module_beside_the_user_is_found(tmp_path, monkeypatch):
    (tmp_path / "mine_beside.py").write_text("def build(input_shape, outputs):\n    return input_shape + outputs\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    assert model_function("mine_beside:build")(1, 2) == 3


@pytest.mark.parametrize(("outputs", "activation"), [(1, "linear"), (2, "softmax"), (7, "softmax")])
def test_the_usual_network(outputs, activation):
    model = mlp((5,), outputs)
    assert model.count_params() == (5 * 64 + 64) + (64 * 64 + 64) + (64 * outputs + outputs)
    assert model.layers[-1].activation is getattr(keras.activations, activation)
    assert [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)] == [0.1, 0.1]


def test_seeds_begin_with_weights_of_their_own_whatever_was_built_before():
    problem = Problem(load_data("iris"), mlp, Settings())
    first, second = problem.network(0), problem.network(1)
    again = Problem(load_data("iris"), mlp, Settings()).network(0)
    for one, other, same in zip(first.weights, second.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, same)
        assert one.path.endswith("bias") or not np.array_equal(one, other)


def test_a_function_without_arguments_builds_the_same():
    problems = [Problem(load_data("iris"), function, Settings()) for function in (network, lambda: network((4,), 3))]
    for one, same in zip(*(problem.weights(1) for problem in problems), strict=True):
        np.testing.assert_array_equal(one, same)


def test_a_built_model_is_copied_with_new_weights_or_its_own():
    model = network((4,), 3)
    own = model.get_weights()
    new, given = (Problem(load_data("iris"), Copies(model, initial), Settings()) for initial in ("new", "given"))
    for mine, first, second, kept in zip(own, new.weights(0), new.weights(1), given.weights(1), strict=True):
        np.testing.assert_array_equal(mine, kept)
        assert mine.ndim == 1 or len({values.tobytes() for values in (mine, first, second)}) == 3
    # The copies train, and the model stays as it is.
    given.network(0).set_weights([0 * values for values in own])
    for mine, still in zip(own, model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, still)
    other = keras.models.clone_model(model)
    assert model_identity(Copies(model)) == model_identity(Copies(other)) != model_identity(Copies(model, "given"))
    assert model_identity(Copies(model, "given")) != model_identity(Copies(other, "given"))


@pytest.mark.parametrize(("model", "initial"), [(network((4,), 3), "old"), (network, "given"), (3, "new")])
def test_a_model_that_cannot_be_copied_is_told(model, initial, tmp_path):
    with told(StudyError, ["`build_model`", "3"] if model == 3 else ["`initial`", repr(initial)[1:-1]]):
        Study(model, "iris", initial=initial, folder=tmp_path / "s")
    assert not (tmp_path / "s").exists()


class Subclassed(keras.Model):
    def __init__(self, outputs):
        super().__init__()
        self.hidden, self.last = keras.layers.Dense(4), keras.layers.Dense(outputs, activation="softmax")

    def call(self, inputs):
        return self.last(self.hidden(inputs))


def without_input(input_shape, outputs):
    return keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(outputs, activation="softmax")])


def of_a_class(input_shape, outputs):
    return Subclassed(outputs)


def declared(input_shape, outputs):
    return network(input_shape, outputs)


def test_networks_that_are_built_by_their_first_batch_train_like_others(tmp_path):
    """The same layers begin with the same weights, with an input layer or without one."""
    found = []
    for build in (declared, without_input, of_a_class):
        arguments = {"seeds": 2, "epochs": 2, "folder": tmp_path / build.__name__, "engine": LocalEngine()}
        study = Study(build, "iris", candidates=[Candidate("other")], **arguments)
        found.append([run.test["log_loss"] for run in study.run().runs])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def with_width(width):
    def build(input_shape, outputs):
        return network(input_shape, outputs, width)

    return build


def with_default(width):
    def build(input_shape, outputs, width=width):
        return network(input_shape, outputs, width)

    return build


def with_keyword(width):
    def build(input_shape, outputs, *, width=width):
        return network(input_shape, outputs, width)

    return build


class Builder:
    def __init__(self, width):
        self.width = width

    def __call__(self, input_shape, outputs):
        return network(input_shape, outputs, self.width)


def partly(width):
    return functools.partial(network, width=width)


@pytest.mark.parametrize("make", [with_width, with_default, with_keyword, Builder, partly])
def test_functions_that_build_other_networks_are_other_ones(make):
    assert model_identity(make(4)) == model_identity(make(4))
    assert model_identity(make(4)) != model_identity(make(8))


def test_what_is_written_inside_of_a_function_counts():
    def defined(constant):
        space = {"keras": keras}
        exec(
            f"def build(input_shape, outputs):\n    def inner(x):\n        return x * {constant}\n    return inner\n",
            space,
        )
        return space["build"]

    assert model_identity(defined(2)) == model_identity(defined(2))
    assert model_identity(defined(2)) != model_identity(defined(3))


def of_a_set(input_shape, outputs):
    return network(input_shape, outputs, 4 if outputs in {"a", "b", "c", "d", "e", "f", "g", "h"} else 8)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="a process takes long to start, and would say the same")
def test_an_identity_is_the_same_in_every_process():
    """Also where Python puts strings into another order."""
    code = "from tests.test_study_models import *; print(*map(model_identity, (of_a_set, with_width(4), Builder(4))))"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.split("\n")[-2] == " ".join(map(model_identity, (of_a_set, with_width(4), Builder(4))))


def test_a_folder_knows_the_network_that_it_was_begun_with(tmp_path):
    Study(with_width(4), "iris", candidates=[], folder=tmp_path / "s")
    Study(with_width(4), "iris", candidates=[], folder=tmp_path / "s")
    with told(StudyError, ["different study", "model"]):
        Study(with_width(8), "iris", candidates=[], folder=tmp_path / "s")
