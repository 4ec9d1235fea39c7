"""Step time of a trainer over plain Keras `fit`, measured side by side: the variants take turns, epoch by epoch.

Run: make bench, or KERAS_BACKEND=... python benchmarks/step_time.py. Prints, for each variant, its time
over plain Keras's in the same round: the median over the rounds, and the quartiles.
"""

import os
import time

import minimand  # first: it chooses the default backend
import keras
import numpy as np

BATCH, STEPS, ROUNDS = 128, 30, 15


def mlp():
    layers = [keras.layers.Dense(512, "relu"), keras.layers.Dense(512, "relu"), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((784,)), *layers])


def convnet():
    layers = [
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
    return keras.Sequential([keras.Input((28, 28, 1)), *layers])


def plain(model):
    return model, {}


def trainer(*transforms):
    return lambda model: (
        minimand.Trainer(model),
        {"transforms": [make() for make in transforms]} if transforms else {},
    )


def group_penalty():
    return minimand.transforms.WeightPenalty(minimand.regularizers.GroupLasso(1e-4))


VARIANTS = {
    "plain": (plain, keras.optimizers.Adam),
    "trainer": (trainer(), keras.optimizers.Adam),
    "weight_penalty": (trainer(group_penalty), keras.optimizers.Adam),
    "snr_scaling": (plain, lambda: minimand.optimizers.SNRScaling(keras.optimizers.Adam())),
    "weight_noise": (trainer(lambda: minimand.transforms.WeightNoise(0.05)), keras.optimizers.Adam),
    "noise_per_example": (
        trainer(lambda: minimand.transforms.WeightNoise(0.05, per="example")),
        keras.optimizers.Adam,
    ),
    "learned_noise": (trainer(minimand.transforms.VariationalWeightNoise), keras.optimizers.Adam),
    "learned_per_example": (
        trainer(lambda: minimand.transforms.VariationalWeightNoise(per="example")),
        keras.optimizers.Adam,
    ),
    "ivon": (trainer(minimand.transforms.IVONNoise), minimand.optimizers.IVON),
    "sharpness_aware": (trainer(lambda: minimand.transforms.SharpnessAware(0.05)), keras.optimizers.Adam),
}


def batches_of(shape):
    random = np.random.default_rng(0)
    x = random.normal(size=(BATCH * STEPS, *shape)).astype("float32")
    return x, random.integers(0, 10, size=BATCH * STEPS)


def epoch_of(variant, model, x, y):
    """A function that trains for an epoch, by a wrapper and an optimizer; the first step is done."""
    wrap, optimizer = variant
    model, arguments = wrap(model)
    model.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), **arguments)
    model.fit(x[: 2 * BATCH], y[: 2 * BATCH], batch_size=BATCH, verbose=0)
    return lambda: model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)


def take_turns(epochs):
    """Seconds a step of each, (rounds,)."""
    seconds = {name: [] for name in epochs}
    for _ in range(ROUNDS):
        for name, epoch in epochs.items():
            start = time.perf_counter()
            epoch()
            seconds[name].append((time.perf_counter() - start) / STEPS)
    return {name: np.array(values) for name, values in seconds.items()}


def heading():
    backend, load = keras.backend.backend(), os.getloadavg()[0]
    print(f"backend {backend}, keras {keras.__version__}, load {load:.2f} before, {os.cpu_count()} cores")


def compare(variants, *models):
    """Print the time of each variant over that of the first, for each model."""
    heading()
    for make_model in models:
        x, y = batches_of(make_model().input_shape[1:])
        seconds = take_turns({name: epoch_of(variant, make_model(), x, y) for name, variant in variants.items()})
        first, *others = seconds
        print(f"{make_model.__name__}: {first} step {1e3 * np.median(seconds[first]):.2f} ms")
        for name in others:
            low, middle, high = np.percentile(seconds[name] / seconds[first], [25, 50, 75])
            print(f"  {name:<24} {middle:.3f}  ({low:.3f} to {high:.3f})", flush=True)


def main():
    compare(VARIANTS, mlp, convnet)


if __name__ == "__main__":
    main()
