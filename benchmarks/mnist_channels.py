"""MNIST with a convolutional network whose channels go by groups: accuracy, operations left, and time.

    python benchmarks/mnist_channels.py DIRECTORY [--epochs 5] [--tuning 2] [--seeds 3] [--strengths 0.0 0.001 ...]

reads MNIST's four idx files (gzip). Groups are the incoming weights of each channel and unit with its bias and its
batch normalisation (`sparsity.unit_groups`), by `Proximal` with Adam 0.001, epsilon 0.001, a cosine decay and batches
of 128; the strength rises over the first epoch. Then `sparsity.compact`: operations left, the largest difference of an
output, and the time of the dense network over that of the compacted one, each the least of five predictions of the test
images; and the accuracy after `tuning` epochs more of the compacted network, without a penalty.
"""

import argparse
import pathlib
import time

import minimand
import keras
import numpy as np
from long_tail import digits
from scipy import stats

from minimand import optimizers, regularizers, sparsity

BATCH = 128


def network(seed):
    keras.utils.set_random_seed(seed)
    layers = []
    for filters in (16, 32):
        layers += [keras.layers.Conv2D(filters, 3, use_bias=False), keras.layers.BatchNormalization()]
        layers += [keras.layers.ReLU(), keras.layers.MaxPooling2D()]
    layers += [keras.layers.Flatten(), keras.layers.Dense(64, "relu"), keras.layers.Dense(10, "softmax")]
    return keras.Sequential([keras.Input((28, 28, 1)), *layers])


def trained(strength, train, seed, epochs):
    keras.utils.clear_session()
    model = network(seed)
    steps = -(-len(train[0]) // BATCH)
    adam = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, epochs * steps), epsilon=1e-3)
    rising = keras.optimizers.schedules.PolynomialDecay(0.0, steps, strength)
    joint = regularizers.JointGroupLasso(rising, sparsity.unit_groups(model))
    model.compile(optimizers.Proximal(adam, joint, select="all"), "sparse_categorical_crossentropy")
    model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[minimand.callbacks.Sparsity()])
    return model


def timed(model, x):
    """Predictions, and the least time for them."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        predictions = model.predict(x, batch_size=500, verbose=0)
        seconds.append(time.perf_counter() - start)
    return predictions, min(seconds[1:])


def percent_right(predictions, labels):
    return 100 * np.mean(predictions.argmax(axis=-1) == labels)


def judged(strength, train, test, seed, epochs, tuning):
    """Accuracies in percent, share of operations left, ratio of times, and difference of outputs; layers' sizes."""
    model = trained(strength, train, seed, epochs)
    smaller = sparsity.compact(model)
    found = sparsity.report(model)
    dense, dense_time = timed(model, test[0])
    compacted, time_left = timed(smaller, test[0])
    difference, accuracy = np.abs(dense - compacted).max(), percent_right(compacted, test[1])
    rate = keras.optimizers.schedules.CosineDecay(1e-3, tuning * -(-len(train[0]) // BATCH))
    smaller.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    smaller.fit(*train, batch_size=BATCH, epochs=tuning, verbose=0)
    tuned = percent_right(smaller.predict(test[0], verbose=0), test[1])
    sizes = [layer.outputs for layer in sparsity.report(smaller).layers[:-1]]
    return (accuracy, tuned, found.flops_left / found.flops, dense_time / time_left, difference), sizes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--tuning", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 1e-3, 3e-3, 1e-2])
    arguments = parser.parse_args()
    train, test = digits(arguments.directory, "train"), digits(arguments.directory, "t10k")
    print("strength; accuracy %; after tuning; operations left; dense over compacted time; difference; channels left")
    for strength in arguments.strengths:
        seeds = range(arguments.seeds)
        found = [judged(strength, train, test, seed, arguments.epochs, arguments.tuning) for seed in seeds]
        numbers = np.array([each for each, _ in found])
        accuracy, tuned, left, ratio, _ = numbers.mean(axis=0)
        errors = stats.sem(numbers[:, :2])
        print(
            f"  {strength:7.0e}  {accuracy:.2f} +- {errors[0]:.2f}  {tuned:.2f} +- {errors[1]:.2f}  "
            f"{100 * left:5.1f} %  {ratio:.2f}  {numbers[:, -1].max():.1e}  {[sizes for _, sizes in found]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
