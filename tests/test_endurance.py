"""Long runs, several threads, and files from strangers."""

import gc
import threading

import keras
import pytest

import minimand
from minimand.testing import TransformSuite
from tests.helpers import data, network, tail_loss
from tests.parts import TRANSFORMS, suite_of

# Each test trains for long.
pytestmark = pytest.mark.slow

EAGER = keras.backend.backend() == "torch"
# Of an eager step fewer, which still tell one object a step from none; of those that are compiled, one of each kind.
STEPS = 60 if EAGER else 400
NAMES = list(TRANSFORMS) if EAGER else ["weight_noise", "learned_noise", "sharpness_aware", "measure_gradient"]


def trainer_with(name, make=tail_loss):
    part = TRANSFORMS[name]
    optimizer = suite_of(TransformSuite, part)().optimizer(0.01)
    keras.utils.set_random_seed(11)
    trainer = minimand.Trainer(
        keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)])
    )
    trainer.compile(optimizer, make(), transforms=[part.make()])
    return trainer


def objects():
    gc.collect()
    return len(gc.get_objects())


def growth(step):
    """How many more objects Python holds for each step, after the first ones."""
    for _ in range(20):
        step()
    before = objects()
    for _ in range(STEPS):
        step()
    return (objects() - before) / STEPS


def test_many_fits_do_not_grow(random):
    x, y = data(random, rows=16)
    trainer = trainer_with("weight_noise", minimand.losses.AdaptiveRobust)

    def fit():
        trainer.fit(x, y, batch_size=16, verbose=0)

    assert growth(fit) < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_many_steps_do_not_grow(name, random):
    x, y = data(random, rows=8)
    trainer = trainer_with(name)
    assert growth(lambda: trainer.train_on_batch(x, y)) < 0.2


def test_trainers_in_threads_do_not_disturb_each_other(random):
    # A smaller last batch would be another program.
    x, y = data(random, rows=64)
    names = ["weight_noise", "sharpness_aware", "gradient_norm_penalty", "learned_noise"]

    def fit(trainer):
        return trainer.fit(x, y, batch_size=16, epochs=5, shuffle=False, verbose=0).history["loss"]

    alone = {name: fit(trainer_with(name)) for name in names}
    # Keras gives names in each thread anew; models are made in one.
    trainers, found = {name: trainer_with(name) for name in names}, {}
    threads = [threading.Thread(target=lambda name=name: found.update({name: fit(trainers[name])})) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_a_file_from_a_stranger_runs_no_code(random, tmp_path):
    """A function in a file is refused, be it a layer's or what selects weights, unless the user trusts the file."""
    x, y = data(random)
    trace = tmp_path / "trace"
    # Functions in a file know plain values only.
    name = str(trace)
    leaving_a_trace = keras.layers.Lambda(lambda v: (__import__("pathlib").Path(name).touch(), v)[1])
    for model, select in (
        (keras.Sequential([keras.Input((5,)), keras.layers.Dense(2), leaving_a_trace]), "kernels"),
        (network(), lambda variable: (__import__("pathlib").Path(name).touch(), variable.name == "kernel")[1]),
    ):
        trainer = minimand.Trainer(model)
        trainer.compile("sgd", "mse", transforms=[minimand.transforms.WeightNoise(0.1, select=select)])
        trainer.fit(x, y, verbose=0)
        path = tmp_path / "trainer.keras"
        trainer.save(path)
        trace.unlink()
        with pytest.raises(ValueError, match="safe_mode"):
            keras.saving.load_model(path)
        assert not trace.exists()
