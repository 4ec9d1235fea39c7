"""Training on several devices by `keras.distribution` is training on one."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

SCRIPT = """
import keras, kriterion, numpy as np

def losses(distribution):
    keras.utils.clear_session()
    keras.distribution.set_distribution(distribution)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, "relu"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.1, seed=3)]
    trainer = kriterion.Trainer(keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(1)]))
    transforms = kriterion.transforms
    trainer.compile(
        kriterion.optimizers.VarianceScaling(keras.optimizers.Adam(0.01)),
        kriterion.losses.AdaptiveRobust(),
        transforms=[
            transforms.WeightNoise(0.05, seed=1),
            transforms.WeightPenalty("l2"),
            transforms.GradientVariancePenalty(1e-3),
        ],
    )
    x = np.random.default_rng(0).normal(size=(128, 8)).astype("float32")
    history = trainer.fit(x, x[:, :1], batch_size=32, epochs=4, shuffle=False, verbose=0).history["loss"]
    return len(trainer.model.weights[0].value.sharding.device_set), *history

devices = keras.distribution.list_devices()
mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
layout = keras.distribution.LayoutMap(mesh)
layout["dense/kernel"] = (None, "model")
print(*losses(None))
print(*losses(keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)))
print(*losses(keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False)))
"""


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras distributes on JAX")
def test_data_and_model_parallel_training_is_training_on_one_device():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=400,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, data_parallel, model_parallel = ([float(word) for word in line.split()] for line in done.stdout.splitlines())
    assert (one[0], data_parallel[0], model_parallel[0]) == (1, 2, 2)
    # Sums over devices are taken in another order: 16 steps of float32 rounding.
    np.testing.assert_allclose(data_parallel[1:], one[1:], rtol=1e-4)
    np.testing.assert_allclose(model_parallel[1:], one[1:], rtol=1e-4)
