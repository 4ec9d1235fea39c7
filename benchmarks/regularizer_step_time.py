"""Step time of each regularizer over plain Keras `fit`: as a penalty, and as a proximal step.

Run: KERAS_BACKEND=... python benchmarks/regularizer_step_time.py. An MLP 784-1024-1024-10, batches of 128; every kernel
has the regularizer. Then total variation by `Proximal` of the first kernel of an MLP 128-64-10: its recursion goes
along the inputs one by one. The variants take turns, epoch by epoch; the median over the rounds, and the quartiles.
"""

import minimand  # first: it chooses the default backend
import keras
from step_time import compare, plain

from minimand import optimizers, regularizers, transforms

REGULARIZERS = {
    "l2 of keras": keras.regularizers.L2(1e-4),
    "total variation": regularizers.TotalVariation(1e-4, 0),
    "range": regularizers.Range(1e-4, -0.1, 0.1),
    "groups of inputs": regularizers.GroupLasso(1e-4, "input"),
    "groups of outputs": regularizers.GroupLasso(1e-4, "output"),
    "sparse groups": regularizers.SparseGroupLasso(1e-4, 0.5, "input"),
}
PROXIMAL = ("l2 of keras", "range", "groups of inputs", "groups of outputs", "sparse groups")


def wide_mlp():
    layers = [keras.layers.Dense(1024, "relu"), keras.layers.Dense(1024, "relu"), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((784,)), *layers])


def filters():
    layers = [keras.layers.Dense(64, "relu", name="filters"), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((128,)), *layers])


def penalty(regularizer):
    def wrap(model):
        return minimand.Trainer(model), {"transforms": [transforms.WeightPenalty(regularizer)]}

    return wrap, keras.optimizers.Adam


def proximal(regularizer, optimizer, **arguments):
    return plain, lambda: optimizers.Proximal(optimizer(), regularizer, **arguments)


def main():
    compare(
        {
            "plain Adam": (plain, keras.optimizers.Adam),
            **{name: penalty(regularizer) for name, regularizer in REGULARIZERS.items()},
            **{f"prox {name}": proximal(REGULARIZERS[name], keras.optimizers.Adam) for name in PROXIMAL},
            "prox groups, decoupled": proximal(
                REGULARIZERS["groups of inputs"], keras.optimizers.Adam, metric="learning_rate"
            ),
        },
        wide_mlp,
    )
    compare(
        {
            "plain SGD": (plain, keras.optimizers.SGD),
            "prox groups of inputs": proximal(REGULARIZERS["groups of inputs"], keras.optimizers.SGD),
        },
        wide_mlp,
    )
    variation = proximal(REGULARIZERS["total variation"], keras.optimizers.Adam, select="filters/kernel")
    compare({"plain Adam": (plain, keras.optimizers.Adam), "prox total variation": variation}, filters)


if __name__ == "__main__":
    main()
