"""Long runs, several threads, and files from strangers."""

import gc
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

import kriterion
from tests.helpers import data, network
from tests.parts import TRANSFORMS


def trainer_with(name):
    part = TRANSFORMS[name]
    optimizer = part.attributes.get("optimizer", lambda self, rate: keras.optimizers.SGD(rate))(None, 0.01)
    keras.utils.set_random_seed(11)
    trainer = kriterion.Trainer(
        keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)])
    )
    trainer.compile(optimizer, kriterion.losses.AdaptiveRobust(), transforms=[part.make()])
    return trainer


def objects():
    gc.collect()
    return len(gc.get_objects())


def grows(step, count, warm_up):
    """How many more objects Python holds after so many steps, beyond those of the first."""
    for _ in range(warm_up):
        step()
    before = objects()
    for _ in range(count):
        step()
    return objects() - before


def test_a_thousand_fits_do_not_grow(random):
    x, y = data(random, rows=16)
    trainer = trainer_with("weight_noise")

    def fit():
        trainer.fit(x, y, batch_size=16, verbose=0)

    # A leak of one object a call would be a thousand.
    assert grows(fit, 1000, warm_up=20) < 200


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_thousand_steps_do_not_grow(name, random):
    x, y = data(random, rows=8)
    trainer = trainer_with(name)
    assert grows(lambda: trainer.train_on_batch(x, y), 1000, warm_up=20) < 200


def test_trainers_in_threads_do_not_disturb_each_other(random):
    x, y = data(random)
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


def test_a_file_from_a_stranger_runs_no_code(random, tmp_path):
    """A function in a file is refused, be it a layer's or what selects weights, unless the user trusts the file."""
    x, y = data(random)
    trace = tmp_path / "trace"
    sequential = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(2), keras.layers.Lambda(lambda v: (Path(str(trace)).touch(), v)[1])]
    )
    for name, model, select in (
        ("layer", sequential, "kernels"),
        ("select", network(), lambda variable: (Path(str(trace)).touch(), variable.name == "kernel")[1]),
    ):
        trainer = kriterion.Trainer(model)
        trainer.compile("sgd", "mse", transforms=[kriterion.transforms.WeightNoise(0.1, select=select)])
        trainer.fit(x, y, verbose=0)
        path = tmp_path / f"{name}.keras"
        trainer.save(path)
        trace.unlink(missing_ok=True)
        with pytest.raises(ValueError, match="safe_mode"):
            keras.saving.load_model(path)
        assert not trace.exists()


def test_nan_in_the_data_is_seen(random):
    """Not hidden by a transform: the loss is NaN, and Keras's callback ends the training."""
    x, y = data(random)
    x[20, 3] = np.nan
    for name in TRANSFORMS:
        history = trainer_with(name).fit(
            x, y, batch_size=16, epochs=3, shuffle=False, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()]
        )
        assert np.isnan(history.history["loss"][-1]), name
        assert len(history.epoch) == 1, name
