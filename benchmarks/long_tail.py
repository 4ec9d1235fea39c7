"""Digits with a long tail: 5000 zeros down to 50 nines, tested on as many of each.

    python benchmarks/long_tail.py DIRECTORY [--seeds 3] [--epochs 15]

reads MNIST's four idx files (gzip) from the directory. A small convolutional network, Adam, batches of 128. Balanced
accuracy (mean of the classes' recalls) and the worst class's recall, mean and standard error over the seeds.
"""

import argparse
import gzip
import pathlib

import minimand
import keras
import numpy as np

SPARSE = "sparse_categorical_crossentropy"


def digits(directory, part):
    with gzip.open(directory / f"{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), "uint8", offset=16).reshape(-1, 28, 28, 1)
    with gzip.open(directory / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), "uint8", offset=8).astype("int32")
    return (images / np.float32(255)).astype("float32"), labels


def network():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 3, 2, activation="relu"),
            keras.layers.Conv2D(32, 3, 2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(10, "softmax"),
        ]
    )


def methods(counts):
    losses = minimand.losses
    inverse = dict(enumerate(counts.sum() / (10 * counts)))
    return {
        "plain": (lambda: SPARSE, None),
        "class_weight": (lambda: SPARSE, inverse),
        "LogitAdjusted": (lambda: losses.LogitAdjusted(counts.tolist()), None),
        "LearnedClassWeights": (lambda: losses.LearnedClassWeights(10, SPARSE), None),
        "  strength = 0.5": (lambda: losses.LearnedClassWeights(10, SPARSE, strength=0.5), None),
        "GroupDRO": (lambda: losses.GroupDRO(10, SPARSE), None),
        "  tau = 1": (lambda: losses.GroupDRO(10, SPARSE, tau=1.0), None),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args()
    x, y = digits(arguments.directory, "train")
    x_test, y_test = digits(arguments.directory, "t10k")
    counts = (5000 * 0.01 ** (np.arange(10) / 9)).astype(int)
    for name, (make, class_weight) in methods(counts).items():
        recalls = []
        for seed in range(arguments.seeds):
            random = np.random.default_rng(seed)
            rows = np.concatenate([random.permutation(np.flatnonzero(y == c))[:n] for c, n in enumerate(counts)])
            keras.utils.set_random_seed(seed)
            model = network()
            trainer = minimand.Trainer(model)
            trainer.compile(keras.optimizers.Adam(1e-3), make())
            trainer.fit(x[rows], y[rows], batch_size=128, epochs=arguments.epochs, class_weight=class_weight, verbose=0)
            predicted = model.predict(x_test, batch_size=1000, verbose=0).argmax(axis=-1)
            recalls.append([np.mean(predicted[y_test == c] == c) for c in range(10)])
        balanced, worst = np.mean(recalls, axis=1), np.min(recalls, axis=1)
        errors = [np.std(v, ddof=1) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in (balanced, worst)]
        print(
            f"{name:36} balanced {100 * balanced.mean():.2f} +- {100 * errors[0]:.2f}   "
            f"worst {100 * worst.mean():.1f} +- {100 * errors[1]:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
