"""Draws the figures of gradient-variance.md: `python docs/gradient_figures.py` (needs the study extra)."""

import minimand
import keras
import matplotlib as mpl
import numpy as np
from keras import ops
from sklearn.datasets import load_digits
from style import BLUE, ORANGE, RED, STYLE, figure, save

from minimand import gradients, transforms

X, Y = load_digits(return_X_y=True)
X = (X / 16).astype("float32").reshape(-1, 8, 8, 1)


def convnet():
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers])


@figure("gradient-estimators.svg", 2)
def estimators(early, late):
    """The relative error of the trace by the number of extra gradients, at two stages of training."""
    passes, draws, n = np.array([1, 2, 4, 8, 16]), 200, 64
    model = convnet()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    random = np.random.default_rng(0)
    for axes, title, epochs in ((early, "at the start", 0), (late, "after 30 epochs", 30)):
        model.fit(X, Y, epochs=epochs, verbose=0)
        x, y = X[:n], Y[:n]
        exact = gradients.gradient_moments(model, x, y, estimator="exact").trace
        found = {"probe": [], "micro-batches": []}
        for count in passes:
            probed = [
                gradients.gradient_moments(model, x, y, estimator="probe", samples=int(count), seed=seed)
                for seed in range(draws)
            ]
            found["probe"].append([m.trace for m in probed])
            orders = [random.permutation(n) for _ in range(draws if count > 1 else 0)]
            parts = [
                gradients.gradient_moments(model, x[o], y[o], estimator="micro_batch", micro_batches=int(count))
                for o in orders
            ]
            found["micro-batches"].append([m.trace for m in parts])
        for (label, traces), colour in zip(found.items(), (BLUE, ORANGE), strict=True):
            kept = [(count, t) for count, t in zip(passes, traces, strict=True) if t]
            errors = [np.sqrt(np.mean((np.array(t) / exact - 1) ** 2)) for _, t in kept]
            axes.loglog([count for count, _ in kept], errors, "o-", color=colour, label=label)
        bound = np.sqrt(2 / passes)
        axes.loglog(passes, bound, color="black", linestyle="--", label=r"$\sqrt{2/S}$, of a single weight")
        axes.set(title=title, xlabel="probes, or micro-batches", xticks=passes, xticklabels=passes, ylim=(0.04, 2))
        axes.minorticks_off()
    early.set_ylabel("relative error of tr")
    early.legend(loc="lower left", fontsize=8)


@figure("gradient-running.svg", 1)
def running(axes):
    """Means over many sequences of gradients of mean 1 and variance 1."""
    steps, beta = 40, 0.9
    drawn = 1.0 + np.random.default_rng(0).normal(size=(steps, 200_000)).astype("float32")
    moments = gradients.RunningMoments.start([drawn[0]], beta=beta)
    squares, unbiased, without = 0.0, [], []
    adam = []
    for step, gradient in enumerate(drawn, start=1):
        moments = moments.updated([gradient])
        squares = beta * squares + (1 - beta) * np.mean(gradient**2)
        adam.append(squares / (1 - beta**step))
        unbiased.append(float(ops.mean(moments.variance[0])) if step > 1 else np.nan)
        without.append((1 - float(moments.rho)) * unbiased[-1] if step > 1 else 0.0)
    grid = np.arange(1, steps + 1)
    axes.axhline(1.0, color="black", linewidth=0.8, label="truth")
    axes.plot(grid, unbiased, color=BLUE, label="RunningMoments")
    axes.plot(grid, without, color=ORANGE, label=r"without $1 - \rho$")
    axes.plot(grid, adam, color=RED, label="Adam's mean of squares")
    axes.set(xlabel="step", ylabel="estimate of the variance", ylim=(0, 2.3))
    axes.legend(loc="lower right", fontsize=8)


@figure("gradient-penalty.svg", 2)
def penalty(left, right):
    """The parity of digits from 300 images: what the penalty does to the variance, and to the loss on the others."""
    parity, shown = Y % 2, 300
    for strength, colour in ((0.0, "black"), (0.01, BLUE), (0.03, ORANGE)):
        keras.utils.set_random_seed(1)
        hidden = [keras.layers.Flatten(), keras.layers.Dense(64, "relu"), keras.layers.Dense(1)]
        trainer = minimand.Trainer(keras.Sequential([keras.Input((8, 8, 1)), *hidden]))
        penalised = transforms.GradientVariancePenalty(strength, seed=0)
        trainer.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True), transforms=[penalised])
        traces, losses = [], []
        for _ in range(60):
            trainer.fit(X[:shown], parity[:shown], verbose=0)
            traces.append(gradients.gradient_moments(trainer, X[:shown], parity[:shown], estimator="exact").trace)
            losses.append(trainer.evaluate(X[shown:], parity[shown:], verbose=0))
        label = f"strength {strength}" if strength else "plain"
        left.plot(range(1, 61), traces, color=colour, label=label)
        right.plot(range(1, 61), losses, color=colour, label=label)
    left.set(title="variance between examples, trace", xlabel="epoch", ylim=(0, None))
    right.set(title="loss on the other 1497 images", xlabel="epoch", ylim=(0, 0.8))
    left.legend(fontsize=8)


def report():
    trainer = minimand.Trainer(convnet())
    trainer.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        transforms=[transforms.MeasureGradient(every=1, estimator="exact")],
    )
    drawn = minimand.callbacks.GradientReport(path=None)
    trainer.fit(X, Y, epochs=30, verbose=0, callbacks=[drawn])
    with mpl.rc_context(STYLE):
        save(drawn.figure(), "gradient-report.svg")


report()
