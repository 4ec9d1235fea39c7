"""Digits with an MLP 64-40-20-10: what L2, L1, group lasso and sparse group lasso remove, as penalty and by `Proximal`.

    python benchmarks/digits_sparsity.py [--seeds 10] [--epochs 60] [--epsilon 0.001] [--rise 0.25] [--methods "L1" ...]

The setting of Scardapane et al., "Group sparse regularization for deep neural networks" (2017): a group is the outgoing
weights of an input or a neuron. scikit-learn's digits, 30 % of them for testing, drawn anew for each seed. Adam 0.002
with a cosine decay, batches of 64; strengths, but for L2, rise over the share `rise` of the steps.
For each method and strength, means over the seeds: accuracy on test rows with its standard error, share of weights that
are exactly zero, inputs and neurons of the two hidden layers all of whose outgoing weights are exactly zero, and, in
brackets, have a norm below 0.001. Then what `compact` makes of the networks, and how often `Proximal` left out a step
that would have emptied a kernel.
"""

import argparse
import os
import time
import warnings

import minimand
import keras
import numpy as np
from scipy import stats
from sklearn import datasets, model_selection

from minimand import optimizers, regularizers, sparsity, transforms

BATCH = 64
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


METHODS = {
    "L2": lambda rising, strength: keras.regularizers.L2(strength),
    "L1": lambda rising, strength: regularizers.SparseGroupLasso(rising, 1.0, "input"),
    "group lasso": lambda rising, strength: regularizers.GroupLasso(rising, "input"),
    "sparse group lasso": lambda rising, strength: regularizers.SparseGroupLasso(rising, 0.5, "input"),
}


def network(seed):
    keras.utils.set_random_seed(seed)
    hidden = [keras.layers.Dense(40, "relu"), keras.layers.Dense(20, "relu")]
    return keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10, "softmax")])


def split(seed):
    x, y = datasets.load_digits(return_X_y=True)
    return model_selection.train_test_split((x / 16).astype("float32"), y, test_size=0.3, random_state=seed, stratify=y)


def trained(method, strength, proximal, seed, arguments):
    """The network, its accuracy on test rows, and the number of proximal steps left out."""
    keras.utils.clear_session()
    x, x_test, y, y_test = split(seed)
    steps = arguments.epochs * -(-len(x) // BATCH)
    adam = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps), epsilon=arguments.epsilon)
    model = network(seed)
    regularizer = None
    if method is not None:
        rising = strength
        if arguments.rise > 0:
            rising = keras.optimizers.schedules.PolynomialDecay(0.0, int(arguments.rise * steps), strength)
        regularizer = METHODS[method](rising, strength)
    trainer = minimand.Trainer(model)
    if proximal:
        compiled = {"optimizer": optimizers.Proximal(adam, regularizer)}
        warnings.filterwarnings("ignore", message="Proximal: the proximal step would have")  # Counted instead.
    else:
        compiled = {"optimizer": adam, "transforms": [transforms.WeightPenalty(regularizer)] if regularizer else []}
    trainer.compile(loss="sparse_categorical_crossentropy", **compiled)
    trainer.fit(x, y, batch_size=BATCH, epochs=arguments.epochs, verbose=0)
    accuracy = np.mean(trainer.predict(x_test, verbose=0).argmax(axis=-1) == y_test)
    return model, accuracy, sum(compiled["optimizer"].collapsed().values()) if proximal else 0


def counts(model):
    """Share of zeros, and groups that are zero and nearly zero, by layer."""
    kernels = [keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers]
    zeros = sum(np.sum(k == 0) for k in kernels) / sum(k.size for k in kernels)
    exactly = [(k == 0).all(axis=1).sum() for k in kernels]
    nearly = [(np.linalg.norm(k, axis=1) < 1e-3).sum() for k in kernels]
    return [zeros, *exactly, *nearly]


def seconds(model, x):
    model.predict(x, batch_size=len(x), verbose=0)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        model.predict(x, batch_size=len(x), verbose=0)
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--epsilon", type=float, default=1e-3)
    parser.add_argument("--rise", type=float, default=0.25)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    print(f"backend {keras.backend.backend()}, load {os.getloadavg()[0]:.2f} before, {arguments.seeds} seeds")
    print("accuracy %; zero weights %; inputs, neurons, neurons removed of 64, 40, 20 (with a norm below 0.001)")
    many = np.tile(split(0)[1], (200, 1))
    cases = [(None, 0.0, False), *((m, s, p) for m in arguments.methods for p in (False, True) for s in STRENGTHS)]
    for method, strength, proximal in cases:
        found = [trained(method, strength, proximal, seed, arguments) for seed in range(arguments.seeds)]
        models = [model for model, _, _ in found]
        accuracy = 100 * np.array([each for _, each, _ in found])
        zeros, *groups = np.mean([counts(model) for model in models], axis=0)
        removed = "  ".join(f"{a:4.1f} ({b:4.1f})" for a, b in zip(groups[:3], groups[3:], strict=True))
        label = f"{method or 'none'}{' by Proximal' if proximal else ''}"
        line = f"  {label:<32} {strength:7.0e}  {accuracy.mean():5.2f} +- {stats.sem(accuracy):.2f}"
        line += f"  {100 * zeros:5.1f}  {removed}"
        if proximal:
            smaller = [sparsity.compact(model) for model in models]
            left = np.mean([b.count_params() / a.count_params() for a, b in zip(models, smaller, strict=True)])
            speed = seconds(models[0], many) / seconds(smaller[0], many)
            line += f"   compact: {100 * left:.0f} % of the weights, {speed:.2f} times as fast"
            line += f"   left out: {np.mean([steps for _, _, steps in found]):.0f} steps"
        print(line, flush=True)


if __name__ == "__main__":
    main()
