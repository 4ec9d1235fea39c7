"""Training on several devices is training on one, or is refused."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.helpers import WITHOUT_TENSORFLOW

# Each test compiles for several devices.
pytestmark = pytest.mark.slow

COMMON = (
    WITHOUT_TENSORFLOW
    + """
import minimand, numpy as np

x = np.random.default_rng(0).normal(size=(128, 8)).astype("float32")

def trainer(*layers, optimizer=keras.optimizers.Adam, loss=minimand.losses.AdaptiveRobust, **arguments):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, "relu", kernel_regularizer="l2"), *layers, keras.layers.Dense(1)]
    result = minimand.Trainer(keras.Sequential([keras.Input((8,)), *layers]))
    result.compile(optimizer(0.01), loss(), **arguments)
    return result

def losses(trainer):
    return trainer.fit(x, x[:, :1], batch_size=32, epochs=4, shuffle=False, verbose=0).history["loss"]
"""
)

# What each distribution's line starts with is the number of devices that a weight is on.
KERAS_DISTRIBUTION = """
def distributed(distribution):
    keras.utils.clear_session()
    keras.distribution.set_distribution(distribution)
    everything = trainer(
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.1, seed=3),
        loss=lambda: minimand.losses.CVaR(minimand.losses.AdaptiveRobust(), 0.5),
        optimizer=lambda rate: minimand.optimizers.Proximal(
            minimand.optimizers.SNRScaling(keras.optimizers.Adam(rate)),
            minimand.regularizers.GroupLasso(0.05, "input"),
            metric="learning_rate",
        ),
        transforms=[
            minimand.transforms.WeightNoise(0.05, seed=1),
            minimand.transforms.WeightPenalty("l2"),
            minimand.transforms.GradientVariancePenalty(1e-3, estimator="micro_batch", micro_batches=3),
        ],
    )
    history = losses(everything)
    return len(everything.model.weights[0].value.sharding.device_set), *history

devices = keras.distribution.list_devices()
mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
layout = keras.distribution.LayoutMap(mesh)
layout["dense/kernel"] = (None, "model")
print(*distributed(None))
print(*distributed(keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)))
print(
    *distributed(
        keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False)
    )
)
"""

GRADIENT_STATISTICS = """
def statistics(distribution):
    keras.utils.clear_session()
    keras.distribution.set_distribution(distribution)
    found = []
    for estimator in ("exact", "probe", "micro_batch"):
        measured = trainer(
            keras.layers.LayerNormalization(),
            loss=lambda: "mse",
            transforms=[minimand.transforms.MeasureGradient(every=2, estimator=estimator, micro_batches=3, seed=1)],
        )
        history = measured.fit(x, x[:, :1], batch_size=32, shuffle=False, verbose=0).history
        found += [history[f"gradient_{key}"][0] for key in ("norm", "variance", "signal_to_noise")]
        moments = minimand.gradients.gradient_moments(
            measured, x, x[:, :1], estimator=estimator, micro_batches=3, seed=2
        )
        found += [moments.trace, moments.squared_norm, moments.variance_along_mean]
    return len(measured.model.weights[0].value.sharding.device_set), *found

devices = keras.distribution.list_devices()
print(*statistics(None))
print(*statistics(keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)))
"""

TF_DISTRIBUTE = """
import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
# Statistics are means over the replicas, each of which has the same half of a batch here.
x = np.concatenate([x.reshape(4, 32, 8)[:, :16]] * 2, axis=1).reshape(128, 8)

def weighted():
    return minimand.losses.StandardizedIRLS("mean_absolute_error")

def tail():
    return minimand.losses.CVaR("mean_squared_error", 0.5)

print(1, *losses(trainer()))
print(1, *losses(trainer(loss=weighted)))
print(1, *losses(trainer(loss=tail)))
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    mirrored = [trainer(), trainer(loss=weighted), trainer(loss=tail)]
    noisy = trainer(transforms=[minimand.transforms.WeightNoise(0.1)])
    scaled = trainer(optimizer=lambda rate: minimand.optimizers.SNRScaling(keras.optimizers.Adam(rate)))
for each in mirrored:
    print(2, *losses(each))
for refused in (noisy, scaled):
    try:
        losses(refused)
    except NotImplementedError as error:
        print(str(error).split()[0], "refused")
"""

# The second process starts from the same seeds, as each process does under `torchrun`.
TORCH_PROCESSES = """
import os, torch

rank = int(os.environ["RANK"])
torch.distributed.init_process_group("gloo", init_method=f"file://{FOLDER}/store", rank=rank, world_size=2)

noisy = trainer(loss=lambda: "mse", transforms=[minimand.transforms.WeightNoise(0.1)])
for refused in (noisy.fit, noisy.train_on_batch, trainer().fit, trainer().evaluate):
    try:
        refused(x, x[:, :1], **({} if refused == noisy.train_on_batch else {"verbose": 0}))
    except NotImplementedError as error:
        print(str(error).split()[0], "refused")
# Loops of the user's own average the gradients themselves.
loss, gradients = noisy.value_and_gradient(x[:16], x[:16, :1])
for gradient in gradients:
    torch.distributed.all_reduce(gradient)
optimizer = minimand.optimizers.SNRScaling(keras.optimizers.Adam(0.01))
optimizer.apply([gradient / 2 for gradient in gradients], noisy.trainable_variables)
print(2, *losses(trainer(loss=lambda: "mse", optimizer=keras.optimizers.SGD)))
torch.distributed.destroy_process_group()
"""


def lines(script, *xla_flags):
    done = subprocess.run(
        [sys.executable, "-c", COMMON + script], capture_output=True, text=True, timeout=400,
        env={**os.environ, "XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *xla_flags])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def assert_same_losses(line, expected, devices):
    assert int(line[0]) == devices
    # Sums over devices are taken in another order: 16 steps of float32 rounding.
    np.testing.assert_allclose(np.float64(line[1:]), np.float64(expected[1:]), rtol=1e-4)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="keras.distribution is for JAX")
def test_data_and_model_parallel_training_is_training_on_one_device():
    one, data_parallel, model_parallel = lines(KERAS_DISTRIBUTION, "--xla_force_host_platform_device_count=2")
    assert_same_losses(one, one, devices=1)
    assert_same_losses(data_parallel, one, devices=2)
    assert_same_losses(model_parallel, one, devices=2)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="keras.distribution is for JAX")
def test_statistics_of_gradients_are_those_of_one_device():
    one, four = lines(GRADIENT_STATISTICS, "--xla_force_host_platform_device_count=4")
    assert_same_losses(one, one, devices=1)
    assert_same_losses(four, one, devices=4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute is for TensorFlow")
def test_mirrored_training_is_training_on_one_device_or_refused():
    results = lines(TF_DISTRIBUTE)
    for one, mirrored in zip(results[:3], results[3:6], strict=True):
        assert_same_losses(mirrored, one, devices=2)
    assert results[6:] == [["Trainer:", "refused"], ["SNRScaling", "refused"]]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch.distributed is for PyTorch")
def test_several_processes_are_refused_where_each_would_have_variables_of_its_own(tmp_path):
    script = COMMON + TORCH_PROCESSES.replace("{FOLDER}", str(tmp_path))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    found = []
    for process in processes:
        out, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
        found.append(out.splitlines())
    assert found[0] == found[1]
    assert found[0][:4] == ["Trainer: refused"] * 4
    assert found[0][4].startswith("2 ")
