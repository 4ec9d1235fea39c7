"""MNIST with a convolutional network whose channels go by groups: accuracy, operations left, and time.

    python benchmarks/mnist_channels.py DIRECTORY [--epochs 8] [--seeds 3] [--strengths 0.0 0.001 ...]

reads MNIST's four idx files (gzip). Groups are the incoming weights of each channel and unit with its bias and its
batch normalisation (`sparsity.unit_groups`), by `Proximal` with Adam 0.001, epsilon 0.001, a cosine decay and batches
of 128; the strength rises over the first epoch. Then `sparsity.compact`: operations left, the largest difference of an
output, and the time of the dense network over that of the compacted one, each the least of five predictions of the test
images.
"""

import argparse
import pathlib
import time

import kriterion
import keras
import numpy as np
from long_tail import digits
from scipy import stats

from kriterion import optimizers, regularizers, sparsity

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
    joint = regularizers.JointGroupSparsity(rising, sparsity.unit_groups(model))
    model.compile(optimizers.Proximal(adam, joint, select="all"), "sparse_categorical_crossentropy")
    model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[kriterion.callbacks.Sparsity()])
    return model


def timed(model, x):
    """Predictions, and the least time for them."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        predictions = model.predict(x, batch_size=500, verbose=0)
        seconds.append(time.perf_counter() - start)
    return predictions, min(seconds[1:])


def judged(strength, train, test, seed, epochs):
    """Accuracy in percent, share of operations left, ratio of times, and difference of outputs; layers' sizes."""
    model = trained(strength, train, seed, epochs)
    smaller = sparsity.compact(model)
    found = sparsity.report(model)
    dense, dense_time = timed(model, test[0])
    compacted, time_left = timed(smaller, test[0])
    accuracy = 100 * np.mean(compacted.argmax(axis=-1) == test[1])
    sizes = [layer.outputs for layer in sparsity.report(smaller).layers[:-1]]
    return (accuracy, found.flops_left / found.flops, dense_time / time_left, np.abs(dense - compacted).max()), sizes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 3e-5, 1e-4, 3e-4, 1e-3])
    arguments = parser.parse_args()
    train, test = digits(arguments.directory, "train"), digits(arguments.directory, "t10k")
    print("strength; accuracy %; operations left; dense over compacted time; largest difference; channels left")
    for strength in arguments.strengths:
        found = [judged(strength, train, test, seed, arguments.epochs) for seed in range(arguments.seeds)]
        numbers = np.array([each for each, _ in found])
        accuracy, left, ratio, _ = numbers.mean(axis=0)
        error = stats.sem(numbers[:, 0])
        print(
            f"  {strength:7.0e}  {accuracy:.2f} +- {error:.2f}  {100 * left:5.1f} %  {ratio:.2f}  "
            f"{numbers[:, 3].max():.1e}  {[sizes for _, sizes in found]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
