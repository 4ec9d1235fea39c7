"""Draws the figures of weight-noise.md: `python docs/noise_figures.py` (needs the study extra)."""

import minimand
import keras
import numpy as np
from keras import ops
from style import BLUE, GREEN, ORANGE, RED, figure

from minimand import transforms

RANDOM = np.random.default_rng(0)


def landscape(w):
    """A narrow minimum and a wide one that is not as deep."""
    return 1.0 - 0.95 * ops.exp(-0.5 * ((w - 1.0) / 0.12) ** 2) - 0.8 * ops.exp(-0.5 * ((w + 1.0) / 0.7) ** 2)


@figure("noise-landscape.svg", 2)
def minima(left, right):
    grid = np.linspace(-3.0, 2.2, 210).astype("float32")
    for axes in (left, right):
        axes.plot(grid, landscape(grid), color="black", label="L(w)")
        axes.set(xlabel="w", ylim=(0, 1.1))
    # As many weights as points, each with its own noise.
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(len(grid), use_bias=False)])
    for stddev, colour in ((0.2, BLUE), (0.5, ORANGE)):
        noise = transforms.WeightNoise(stddev, seed=0)
        noise.build(model)
        draws = [landscape(noise.sample([grid[None]], noise.seed_generator.next())[0]) for _ in range(2000)]
        left.plot(grid, np.mean(draws, axis=0)[0], color=colour, label=f"WeightNoise({stddev})")
    left.set(title="the expected loss under noise")
    one = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    for rho, colour in ((0.1, BLUE), (0.2, ORANGE)):
        sharp = transforms.SharpnessAware(rho)
        sharp.build(one)
        worst = sharp.apply(lambda weights, batch: (ops.sum(landscape(weights[0])), None))
        values = [worst([ops.reshape(w, (1, 1))], transforms.Batch(None))[0] for w in grid]
        right.plot(grid, values, color=colour, label=f"SharpnessAware({rho})")
    right.set(title="the loss at the worst weights nearby")
    for axes in (left, right):
        axes.legend(loc="lower left", fontsize=8)


X = np.concatenate([RANDOM.uniform(-1.0, -0.3, 40), RANDOM.uniform(0.3, 0.9, 40)]).astype("float32")[:, None]
Y = (np.sin(4.0 * X) + 0.15 * RANDOM.normal(size=X.shape)).astype("float32")
EPOCHS = 4000


def fitted(optimizer, noise):
    layers = [keras.layers.Dense(50, "tanh"), keras.layers.Dense(1)]
    trainer = minimand.Trainer(keras.Sequential([keras.Input((1,)), *layers]))
    trainer.compile(optimizer, minimand.losses.TaskUncertainty("mean_squared_error"), transforms=[noise])
    # All rows at each step.
    trainer.fit(np.tile(X, (EPOCHS, 1)), np.tile(Y, (EPOCHS, 1)), batch_size=len(X), shuffle=False, verbose=0)
    return trainer


def cosine(rate):
    return keras.optimizers.schedules.CosineDecay(rate, EPOCHS)


@figure("noise-uncertainty.svg", 3)
def uncertainty(*panels):
    # The rows of one epoch are not the rows of the data: their number is given.
    learned = transforms.VariationalWeightNoise(
        kl_weight=1 / len(X), temperature=0.3, warm_up=1000, per="example", seed=0
    )
    ivon = minimand.optimizers.IVON(cosine(0.02), hessian_init=1.0, beta_2=0.999, weight_decay=1e-3)
    cases = {
        "WeightNoise": (keras.optimizers.Adam(cosine(0.01)), transforms.WeightNoise(0.1, mode="filter", seed=0)),
        "VariationalWeightNoise": (keras.optimizers.Adam(cosine(0.01)), learned),
        "IVON": (ivon, transforms.IVONNoise(examples=10 * len(X), seed=0)),
    }
    grid = np.linspace(-1.5, 1.5, 121).astype("float32")[:, None]
    for axes, (title, (optimizer, noise)) in zip(panels, cases.items(), strict=True):
        trainer = fitted(optimizer, noise)
        samples = trainer.predict_samples(grid, 200, seed=1)
        found = minimand.uncertainty.summary(
            samples, "regression", quantiles=(0.025, 0.975), noise_stddev=np.exp(trainer.loss.log_variance / 2)
        )
        low, high = found["quantiles"][..., 0]
        axes.fill_between(grid[:, 0], low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 %, with the noise of y")
        axes.plot(grid[:, 0], samples[:8, :, 0].T, color=BLUE, linewidth=0.5)
        axes.plot(grid[:, 0], found["mean"][:, 0], color="black", label="mean")
        axes.plot(grid[:, 0], np.sin(4.0 * grid[:, 0]), color=GREEN, linestyle="--", label="truth")
        axes.plot(X[:, 0], Y[:, 0], ".", color=RED, markersize=3)
        axes.set(title=title, ylim=(-2.5, 2.5), xlabel="x")
    panels[0].legend(loc="lower left", fontsize=8)


@figure("noise-variance.svg", 1)
def gradient_variance(axes):
    sizes, draws = [1, 4, 16, 64, 256], 60
    x = RANDOM.normal(size=(256, 20)).astype("float32")
    y = np.sin(x[:, :1]).astype("float32")
    cases = {
        "one draw for the batch": (transforms.WeightNoise(0.1, seed=0), RED),
        "antithetic, one pair for the batch": (transforms.WeightNoise(0.1, antithetic=True, seed=0), ORANGE),
        "per example": (transforms.WeightNoise(0.1, per="example", seed=0), BLUE),
    }
    for label, (noise, colour) in cases.items():
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(1)]
        trainer = minimand.Trainer(keras.Sequential([keras.Input((20,)), *layers]))
        trainer.compile("sgd", "mse", transforms=[noise])
        spread = []
        for size in sizes:
            found = [trainer.value_and_gradient(x[:size], y[:size])[1] for _ in range(draws)]
            flat = np.stack([np.concatenate([ops.convert_to_numpy(g).ravel() for g in step]) for step in found])
            spread.append(flat.var(axis=0, ddof=1).sum())
        axes.loglog(sizes, spread, "o-", color=colour, label=label)
    axes.set(title="variance of the gradient by the noise", xlabel="batch size", xticks=sizes, xticklabels=sizes)
    axes.minorticks_off()
    axes.legend(loc="lower left", fontsize=8)
