"""Variance-aware optimizers against Adam and SGD: MNIST and two sets of UCI, 5 seeds, learning rates searched alike.

    python benchmarks/variance_optimizers.py MNIST_DIRECTORY UCI_DIRECTORY

Each optimizer gets the same budget: one run of each of seven learning rates, a factor of about 3 apart, on other rows
(seed 0); the best on the validation rows, at the epoch's end that was best, is trained with seeds 1 to 5. MNIST: 20,000
training examples, an MLP 784-128-64-10, batches of 64, 10 epochs. UCI: MLPs of two layers of 50, batches of 32, 100
epochs. Prints the test error (percent, or root mean squared error in units of the target's deviation) at that epoch and
the training loss at the end: means and standard errors over the seeds that did not diverge.
"""

import gzip
import os
import pathlib
import sys

import minimand  # first: it chooses the default backend
import keras
import numpy as np

from minimand.optimizers import MSVAG, AdaBelief, SNRScaling
from minimand.transforms import MiniBatchVariance

SLOW, FAST = np.geomspace(1e-4, 1e-1, 7), np.geomspace(1e-3, 1.0, 7)
OPTIMIZERS = {
    "SGD": (lambda rate: keras.optimizers.SGD(rate), FAST),
    "SGD, momentum 0.9": (lambda rate: keras.optimizers.SGD(rate, momentum=0.9), SLOW),
    "SNRScaling of it": (lambda rate: SNRScaling(keras.optimizers.SGD(rate, momentum=0.9)), SLOW),
    "M-SVAG": (lambda rate: MSVAG(rate), FAST),
    "M-SVAG, mini-batch": (lambda rate: MSVAG(rate, variance="mini_batch"), FAST),
    "Adam": (lambda rate: keras.optimizers.Adam(rate), SLOW),
    "SNRScaling of Adam": (lambda rate: SNRScaling(keras.optimizers.Adam(rate)), SLOW),
    "SNRScaling by tensor": (
        lambda rate: SNRScaling(keras.optimizers.Adam(rate), granularity="tensor"),
        SLOW,
    ),
    "AdaBelief": (lambda rate: AdaBelief(rate), SLOW),
}


def read(path, skip):
    return np.frombuffer(gzip.open(path).read(), np.uint8, offset=skip)


def mnist(directory, seed):
    def part(name):
        images = read(directory / f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 784).astype("float32") / 255
        return images, read(directory / f"{name}-labels-idx1-ubyte.gz", 8).astype("int32")

    x, y = part("train")
    order = np.random.default_rng(seed).permutation(len(x))
    return (x[order[:20000]], y[order[:20000]]), (x[order[20000:25000]], y[order[20000:25000]]), part("t10k")


def uci(path, seed):
    data = np.load(path)
    x, y = data["X"].astype("float32"), data["y"].astype("float32").reshape(-1, 1)
    order = np.random.default_rng(seed).permutation(len(x))
    train, valid, test = np.split(order, [int(0.7 * len(x)), int(0.85 * len(x))])
    x = (x - x[train].mean(axis=0)) / (x[train].std(axis=0) + 1e-6)
    y = (y - y[train].mean()) / y[train].std()
    return tuple((x[rows], y[rows]) for rows in (train, valid, test))


def classifier():
    layers = [keras.layers.Dense(128, "relu"), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((784,)), *layers])


def regressor(features):
    layers = [keras.layers.Dense(50, "relu"), keras.layers.Dense(50, "relu"), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((features,)), *layers])


def run(name, rate, parts, seed):
    """`(least validation error, test error at that epoch, last training loss)`."""
    keras.utils.set_random_seed(seed)
    (x, y), valid, test = parts
    classes = y.ndim == 1
    model = classifier() if classes else regressor(x.shape[1])
    optimizer = OPTIMIZERS[name][0](float(rate))
    if name.endswith("mini-batch"):
        model = minimand.Trainer(model)
        more = {"transforms": [MiniBatchVariance(estimator="exact")]}
    else:
        more = {}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if classes else "mse"
    model.compile(optimizer, loss, metrics=["sparse_categorical_accuracy"] if classes else [], **more)

    def error(part):
        found = model.evaluate(*part, batch_size=1000, verbose=0, return_dict=True)
        return 100 * (1 - found["sparse_categorical_accuracy"]) if classes else np.sqrt(found["loss"])

    best = (np.inf, np.inf)
    for _ in range(10 if classes else 100):
        history = model.fit(x, y, batch_size=64 if classes else 32, verbose=0).history
        if not np.isfinite(history["loss"][0]):
            return np.inf, np.inf, np.inf
        now = error(valid)
        if now < best[0]:
            best = now, error(test)
    return *best, history["loss"][0]


def main():
    images, tables = map(pathlib.Path, sys.argv[1:3])
    print(f"backend {keras.backend.backend()}, load {os.getloadavg()[0]:.2f} before")
    sets = {
        "concrete": lambda seed: uci(tables / "concrete.npz", seed),
        "energy": lambda seed: uci(tables / "energy.npz", seed),
        "mnist": lambda seed: mnist(images, seed),
    }
    for where, load in sets.items():
        for name, (_, rates) in OPTIMIZERS.items():
            tried = [run(name, rate, load(0), 0)[0] for rate in rates]
            rate = rates[int(np.argmin(tried))]
            found = np.array([run(name, rate, load(seed), seed)[1:] for seed in range(1, 6)])
            kept = found[np.isfinite(found).all(axis=1)]
            mean, error = kept.mean(axis=0), kept.std(axis=0, ddof=1) / np.sqrt(len(kept))
            remark = " (an end of the grid)" if rate in (rates[0], rates[-1]) else ""
            remark += f" ({5 - len(kept)} of 5 diverged)" if len(kept) < 5 else ""
            print(
                f"{where:<9} {name:<26} rate {rate:.2g}{remark}: test {mean[0]:.3f} +- {error[0]:.3f}, "
                f"training loss {mean[1]:.4f} +- {error[1]:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
