"""Colored MNIST: variances of gradients matched between domains (Fishr), beside ERM and IRM.

    python benchmarks/colored_mnist.py DIRECTORY [RESTARTS] [NAME ...]

DIRECTORY has MNIST's four .gz files. The protocol of Rame et al. (ICML 2022, section 6.A), which is that of IRM's
authors: labels say whether a digit is below 5, a quarter of them wrong; a colour that agrees with the label in 80 and
90 % of two training domains and in 10 % of the test domain; an MLP 392-390-390-1, 501 steps of Adam on all 50,000
examples at once, with penalties that count from step 190 on. Prints mean and standard deviation over the restarts
(published, 10 restarts: ERM train 86.4 +- 0.2, test 14.0 +- 0.7, gray 71.0 +- 0.7; IRM 71.0 +- 0.5, 65.6 +- 1.8, 66.1
+- 0.2; Fishr 71.0 +- 0.9, 69.5 +- 1.0, 70.2 +- 1.1).
"""

import gzip
import os
import pathlib
import sys
import time

import minimand  # first: it chooses the default backend
import keras
import numpy as np
from keras import ops

from minimand import backend, transforms

STEPS, ANNEAL, STRENGTH, DECAY, RATE = 501, 190, 91257.18613115903, 0.00110794568, 0.0004898536566546834


def schedule(late):
    return keras.optimizers.schedules.PiecewiseConstantDecay([ANNEAL - 1], [1.0, late])


@keras.saving.register_keras_serializable(package="benchmark")
class Scaled(transforms.Transform):
    """L -> L / c of the step: keeps the loss's size when a penalty's strength jumps."""

    def __init__(self):
        super().__init__()
        self.add_step_counter()

    def apply(self, objective):
        def scaled(weights, batch):
            loss, aux = objective(weights, batch)
            factor = schedule(1 / STRENGTH)(self.next_step())
            return loss * ops.cast(factor, loss.dtype), aux

        return scaled


@keras.saving.register_keras_serializable(package="benchmark")
class InvariantRisk(transforms.Transform):
    """L -> L + c mean_e (d L_e(s z) / d s)^2 at s = 1: to scale the logits z is to scale the last layer's weights."""

    def __init__(self):
        super().__init__()
        self.add_step_counter()

    def apply(self, objective):
        def penalised(weights, batch):
            loss, aux = objective(weights, batch)
            domain = ops.cast(batch.x["domain"], "float32")
            penalty = 0.0
            for members in (1.0 - domain, domain):
                of_domain = batch._replace(gradient_weight=members * len(domain) / ops.sum(members))

                def at(head, of_domain=of_domain):
                    return objective([*weights[:-2], *head], of_domain)[0], None

                gradients = backend.value_and_gradient(at, weights[-2:])[1]
                penalty = penalty + sum(ops.sum(g * w) for g, w in zip(gradients, weights[-2:], strict=True)) ** 2 / 2
            strength = schedule(STRENGTH)(self.next_step())
            return loss + strength * penalty, aux

        return penalised


def fishr():
    # The authors sum over the two domains, where the penalty here is a mean.
    strength = keras.optimizers.schedules.PiecewiseConstantDecay([ANNEAL - 1], [2.0, 2.0 * STRENGTH])
    return transforms.Fishr(strength, "domain", 2, select="head/")


METHODS = {"ERM": lambda: [], "IRM": lambda: [InvariantRisk()], "Fishr": lambda: [fishr()]}


def read(path, skip):
    return np.frombuffer(gzip.open(path).read(), np.uint8, offset=skip)


def mnist(directory):
    images = read(directory / "train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    return images[:, ::2, ::2].astype("float32") / 255, read(directory / "train-labels-idx1-ubyte.gz", 8) < 5


def environment(random, images, small, flip, gray=False):
    """Coloured images, flat, and labels."""
    labels = small ^ (random.random(len(small)) < 0.25)
    colours = labels ^ (random.random(len(small)) < flip)
    pair = np.stack([images, images], axis=1)
    if not gray:
        pair[np.arange(len(images)), (1 - colours.astype(int))] = 0
    return pair.reshape(len(images), -1), labels.astype("float32")[:, None]


def network():
    image = keras.Input((392,), name="image")
    domain = keras.Input((), dtype="int32", name="domain")
    hidden = keras.layers.Dense(390, "relu")(image)
    hidden = keras.layers.Dense(390, "relu")(hidden)
    return keras.Model({"image": image, "domain": domain}, keras.layers.Dense(1, name="head")(hidden))


def run(name, restart, images, small):
    random = np.random.default_rng(restart)
    keras.utils.set_random_seed(restart)
    order = random.permutation(50000)
    parts = [environment(random, images[order[k::2]], small[order[k::2]], flip) for k, flip in ((0, 0.2), (1, 0.1))]
    x, y = (np.concatenate(each) for each in zip(*parts, strict=True))
    train = {"image": x, "domain": np.repeat([0, 1], 25000).astype("int32")}
    trainer = minimand.Trainer(network())
    penalties = METHODS[name]()
    decay = transforms.WeightPenalty(keras.regularizers.L2(DECAY), select="all")
    trainer.compile(
        keras.optimizers.Adam(RATE, epsilon=1e-8),
        keras.losses.BinaryCrossentropy(from_logits=True),
        transforms=[*penalties, decay, *([Scaled()] if penalties else [])],
    )
    trainer.fit(train, y, batch_size=50000, epochs=STEPS, shuffle=False, verbose=0)
    found = []
    tests = (environment(random, images[50000:], small[50000:], 0.9, gray) for gray in (False, True))
    for inputs, labels in ((x, y), *tests):
        zeros = np.zeros(len(inputs), "int32")
        logits = trainer.predict({"image": inputs, "domain": zeros}, batch_size=10000, verbose=0)
        found.append(100 * np.mean((logits > 0) == (labels > 0.5)))
    return found


def main():
    images, small = mnist(pathlib.Path(sys.argv[1]))
    restarts = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    print(f"backend {keras.backend.backend()}, load {os.getloadavg()[0]:.2f} before")
    for name in sys.argv[3:] or METHODS:
        start, found = time.perf_counter(), []
        for restart in range(restarts):
            found.append(run(name, restart, images, small))
            print(name, restart, *np.round(found[-1], 1), f"{time.perf_counter() - start:.0f} s", flush=True)
        pairs = zip(("train", "test", "gray"), np.mean(found, axis=0), np.std(found, axis=0), strict=True)
        print(name, ", ".join(f"{where} {mean:.1f} +- {deviation:.1f}" for where, mean, deviation in pairs), flush=True)


if __name__ == "__main__":
    main()
