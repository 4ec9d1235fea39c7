"""One-class digits by DeepSVDD: the AUC of each digit against all others, beside the published Deep SVDD.

    python benchmarks/one_class.py DIRECTORY [--digits 0 1 ...] [--seeds 1] [--epochs 40]

reads MNIST's four idx files (gzip) from the directory. As in the paper: a network of two convolutions of 5 x 5 without
biases, pretrained as an autoencoder, global contrast normalisation, nu = 0.1, weights trained on the digit's training
images alone, AUC on all 10000 test images. Unlike there: as many epochs of each phase as given, instead of 350 and 150.
"""

import argparse
import pathlib
import time

import minimand
import keras
import numpy as np
from long_tail import digits as read
from sklearn.metrics import roc_auc_score

# Ruff et al., ICML 2018, table 1: soft-boundary Deep SVDD, mean over 10 seeds.
PUBLISHED = [97.8, 99.6, 89.5, 90.3, 93.8, 85.8, 98.0, 92.7, 92.9, 94.9]
SIZE = 32


def normalised(images, low=None, high=None):
    """Each image less its mean, over its mean absolute value, and all of them moved to [0, 1] as the training ones."""
    images = images - images.mean(axis=(1, 2, 3), keepdims=True)
    images = images / np.abs(images).mean(axis=(1, 2, 3), keepdims=True)
    low, high = (images.min(), images.max()) if low is None else (low, high)
    return (images - low) / (high - low), low, high


def encoder():
    def block(filters):
        return [
            keras.layers.Conv2D(filters, 5, padding="same", use_bias=False),
            keras.layers.BatchNormalization(center=False, scale=False),
            keras.layers.LeakyReLU(0.01),
            keras.layers.MaxPooling2D(),
        ]

    layers = [*block(8), *block(4), keras.layers.Flatten(), keras.layers.Dense(SIZE, use_bias=False)]
    return keras.Sequential([keras.Input((28, 28, 1)), *layers])


def decoder():
    def block(filters, activation):
        return [
            keras.layers.UpSampling2D(),
            keras.layers.Conv2D(filters, 5, padding="same", use_bias=False, activation=activation),
        ]

    start = [keras.layers.Dense(4 * 7 * 7, "leaky_relu", use_bias=False), keras.layers.Reshape((7, 7, 4))]
    return keras.Sequential([keras.Input((SIZE,)), *start, *block(8, "leaky_relu"), *block(1, "sigmoid")])


def area_under_curve(train, test, anomalous, epochs, seed):
    keras.utils.set_random_seed(seed)
    model, steps = encoder(), epochs * -(-len(train) // 200)
    autoencoder = keras.Sequential([model, decoder()])
    autoencoder.compile(keras.optimizers.Adam(1e-3), "mse")
    autoencoder.fit(train, train, batch_size=200, epochs=epochs, verbose=0)
    # From the mean embedding of all training images, as in the paper.
    center = model.predict(train, batch_size=1000, verbose=0).mean(axis=0)
    center = np.where(np.abs(center) < 0.1, np.where(center < 0, -0.1, 0.1), center)
    trainer = minimand.Trainer(model)
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([steps // 3], [1e-3, 1e-4])
    trainer.compile(
        keras.optimizers.Adam(rate, weight_decay=1e-6),
        minimand.losses.DeepSVDD(0.1, center=center),
        loss_learning_rate=0.02,
    )
    trainer.fit(train, np.zeros(len(train)), batch_size=200, epochs=epochs, verbose=0)
    inside = trainer.loss.score(model.predict(train, batch_size=1000, verbose=0))
    scores = trainer.loss.score(model.predict(test, batch_size=1000, verbose=0))
    return 100 * roc_auc_score(anomalous, scores), np.mean(inside > 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--digits", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    x, y = read(arguments.directory, "train")
    x_test, y_test = read(arguments.directory, "t10k")
    for digit in arguments.digits:
        start = time.perf_counter()
        train, low, high = normalised(x[y == digit])
        test = normalised(x_test, low, high)[0]
        found = [
            area_under_curve(train, test, y_test != digit, arguments.epochs, seed) for seed in range(arguments.seeds)
        ]
        areas, outside = np.transpose(found)
        print(
            f"{digit}: AUC {areas.mean():.1f} (published {PUBLISHED[digit]}), {100 * outside.mean():.0f} % of the "
            f"training images outside, {time.perf_counter() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
