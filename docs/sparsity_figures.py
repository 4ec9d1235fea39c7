"""Draws the figures of weight-regularization.md: `python docs/sparsity_figures.py` (needs the study extra)."""

import minimand
import keras
import numpy as np
from sklearn.datasets import load_digits
from style import BLUE, GREEN, ORANGE, RED, figure

from minimand import optimizers, regularizers, sparsity, transforms

RANDOM = np.random.default_rng(0)
INPUTS, ROWS = 60, 90
STEPS = 1500


def filtered(optimizer, penalty, x, y):
    """The weights of a linear filter, trained with all rows at each step."""
    trainer = minimand.Trainer(
        keras.Sequential([keras.Input((INPUTS,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    )
    trainer.compile(optimizer, "mse", transforms=[transforms.WeightPenalty(penalty)] if penalty else [])
    trainer.fit(np.tile(x, (STEPS, 1)), np.tile(y, (STEPS, 1)), batch_size=ROWS, shuffle=False, verbose=0)
    return keras.ops.convert_to_numpy(trainer.model.weights[0])[:, 0]


def cosine(rate):
    # Not to 0: proximal steps that are lost in the rounding of the weights hold no neighbours together.
    return keras.optimizers.schedules.CosineDecay(rate, STEPS, alpha=0.01)


@figure("regularization-pieces.svg", 2)
def pieces(left, right):
    truth = np.repeat([0.0, 1.0, -0.5, 0.0], INPUTS // 4)
    x = RANDOM.normal(size=(ROWS, INPUTS)).astype("float32")
    y = (x @ truth + 2.0 * RANDOM.normal(size=ROWS))[:, None].astype("float32")
    variation = regularizers.TotalVariation(0.4, axis=0)
    cases = {
        "no penalty": (keras.optimizers.Adam(cosine(0.02)), None, ORANGE),
        "TotalVariation as a penalty": (keras.optimizers.Adam(cosine(0.02)), variation, RED),
        "TotalVariation by Proximal": (
            optimizers.Proximal(keras.optimizers.Adam(cosine(0.02), epsilon=1e-3), variation), None, BLUE,
        ),
    }  # fmt: skip
    left.plot(truth, color="black", linewidth=1, drawstyle="steps-mid", label="truth")
    floor = 1e-9
    for label, (optimizer, penalty, colour) in cases.items():
        weights = filtered(optimizer, penalty, x, y)
        left.plot(weights, ".-", color=colour, markersize=3, linewidth=0.7, label=label)
        if label != "no penalty":
            right.semilogy(np.maximum(np.abs(np.diff(weights)), floor), ".", color=colour, label=label)
    left.set(title="weights of a linear filter", xlabel="sample of the signal", ylim=(-1.5, 2.4))
    right.set(title="difference from the next one", xlabel="sample of the signal", ylim=(floor / 3, 3e3))
    right.axhline(floor, color="black", linewidth=0.5)
    right.text(0, floor * 1.3, "exactly 0", fontsize=8)
    for axes in (left, right):
        axes.legend(loc="upper right", fontsize=7)


@figure("regularization-path.svg", 2)
def path(left, right):
    """One training: fifteen epochs without a penalty, then of each of ten strengths."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    order = np.random.default_rng(0).permutation(len(x))
    held, kept = order[:540], order[540:]
    strengths, epochs, batch = np.geomspace(1e-4, 2e-2, 10), 15, 64
    per_stage = epochs * -(-len(kept) // batch)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [per_stage * k for k in range(1, len(strengths) + 1)], [0.0, *map(float, strengths)]
    )
    hidden = [keras.layers.Dense(40, "relu"), keras.layers.Dense(20, "relu")]
    model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10, "softmax")])
    groups = regularizers.GroupLasso(schedule, "input")
    adam = keras.optimizers.Adam(2e-3, epsilon=1e-3)
    model.compile(optimizers.Proximal(adam, groups), "sparse_categorical_crossentropy", metrics=["accuracy"])
    rows = []

    def note(epoch, logs):
        if (epoch + 1) % epochs == 0 and epoch >= epochs:
            found = sparsity.report(model).layers
            rows.append([logs["strength"], logs["val_accuracy"], *(layer.zero_inputs for layer in found)])

    model.fit(
        x[kept], y[kept], batch_size=batch, epochs=epochs * (len(strengths) + 1), verbose=0,
        validation_data=(x[held], y[held]),
        callbacks=[minimand.callbacks.Sparsity(), keras.callbacks.LambdaCallback(on_epoch_end=note)],
    )  # fmt: skip
    strength, accuracy, *zeros = np.array(rows).T
    left.semilogx(strength, accuracy, "o-", color=BLUE)
    left.set(title="validation accuracy", xlabel="strength")
    for count, label, colour in zip(
        zeros, ("64 inputs", "40 neurons", "20 neurons"), (BLUE, ORANGE, GREEN), strict=True
    ):
        right.semilogx(strength, count, "o-", color=colour, label=f"of {label}")
    right.set(title="exactly zero", xlabel="strength")
    right.legend(fontsize=8)
