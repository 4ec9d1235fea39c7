"""Sparsity is logged and stops training before a kernel is all zero; GradientReport draws measurements."""

import keras
import numpy as np
import pytest

import minimand
from minimand.callbacks import GradientReport, Sparsity
from minimand.optimizers import Proximal
from minimand.regularizers import GroupLasso
from tests.helpers import data, network, numpy, told


def test_a_regularisation_path_in_the_logs(random, tmp_path):
    """Each epoch has another strength, and the logs have that strength and the share of zeros after it."""
    x, y = data(random, rows=80)
    strengths = keras.optimizers.schedules.PiecewiseConstantDecay([4, 9], [0.0, 1.0, 5.0])
    model = network()
    values = model.get_weights()
    model.set_weights([values[0] * np.geomspace(0.01, 1.0, 8), *values[1:]])
    model.compile(Proximal(keras.optimizers.SGD(0.02), GroupLasso(strengths), select="dense/kernel"), "mse")
    seen = []
    callbacks = [
        Sparsity("dense/kernel"),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(np.mean(numpy(model.layers[0].kernel) == 0))),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]  # fmt: skip
    history = model.fit(x, y, batch_size=16, epochs=3, verbose=0, callbacks=callbacks).history
    assert history["strength"] == pytest.approx([1.0, 5.0, 5.0])
    assert history["sparsity"] == pytest.approx(seen)
    assert history["sparsity"][0] == 0.0
    assert 0.0 < history["sparsity"][-1] < 1.0
    assert "sparsity" in (tmp_path / "log.csv").read_text().splitlines()[0]


def test_training_stops_when_a_kernel_would_be_zero(random):
    x, y = data(random)
    model = network()
    model.compile(Proximal(keras.optimizers.SGD(0.1), GroupLasso(100.0), select="dense/kernel"), "mse")
    for stop, epochs in ((True, 1), (False, 3)):
        with pytest.warns(UserWarning, match="dense/kernel"):
            history = model.fit(x, y, batch_size=16, epochs=3, verbose=0, callbacks=[Sparsity("all", stop=stop)])
        assert len(history.epoch) == epochs


@pytest.mark.slow
def test_variables_of_losses_and_transforms_get_no_proximal_step(random):
    """Learned noise has variables of the kernels' shapes, which get no proximal step."""
    x, y = data(random)
    for arguments in ({}, {"loss_learning_rate": 0.01}):
        trainer = minimand.Trainer(network())
        noise = minimand.transforms.VariationalWeightNoise(init=0.05, seed=0)
        optimizer = Proximal(keras.optimizers.SGD(0.01), keras.regularizers.L1(3.0))
        trainer.compile(optimizer, "mse", transforms=[noise], **arguments)
        history = trainer.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[Sparsity()]).history
        assert history["sparsity"][-1] > 0
        for variable in trainer.objective_state.trainable_variables:
            assert (numpy(variable) != 0).all()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Sparsity(3), TypeError, ["`select`", "3"]),
        (lambda: Sparsity(stop=1), TypeError, ["`stop`", "1"]),
    ],
)
def test_bad_arguments_are_told(make, error, words):
    with told(error, words):
        make()


def measured_trainer(**arguments):
    keras.utils.set_random_seed(4)
    trainer = minimand.Trainer(keras.Sequential([keras.Input((5,)), keras.layers.Dense(4), keras.layers.Dense(2)]))
    trainer.compile("sgd", "mse", transforms=[minimand.transforms.MeasureGradient(estimator="exact", **arguments)])
    return trainer


def test_the_report_holds_what_was_measured(random, tmp_path):
    """The sums over tensors are the logged numbers, and the file is a figure."""
    x, y = data(random, rows=64)
    report = GradientReport(tmp_path / "gradient.png")
    trainer = measured_trainer(every=2, select="kernels")
    history = trainer.fit(x, y, batch_size=16, epochs=3, verbose=0, callbacks=[report]).history
    assert report.weights == [v.path for v in trainer.model.trainable_variables if len(v.shape) == 2]
    norms, traces, noises = report.values.sum(axis=2).T
    np.testing.assert_allclose(np.sqrt(norms), history["gradient_norm"], rtol=1e-5)
    np.testing.assert_allclose(traces, history["gradient_variance"], rtol=1e-5)
    np.testing.assert_allclose(noises, traces / 16, rtol=1e-5)
    assert (tmp_path / "gradient.png").read_bytes().startswith(b"\x89PNG")
    labels = [label.get_text() for axes in report.figure().axes for label in axes.get_yticklabels()]
    assert set(report.weights) <= set(labels)


def test_a_report_without_measurements_is_told(random):
    x, y = data(random)
    model = network()
    model.compile("sgd", "mse")
    with told(ValueError, ["GradientReport", "MeasureGradient"]):
        model.fit(x, y, verbose=0, callbacks=[GradientReport(None)])
