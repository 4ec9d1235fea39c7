"""The noise of the penalty on the gradient's variance, and the trace of the variance at equal training loss.

    python benchmarks/gradient_variance_penalty.py [PROBLEM ...]

The noise is the standard deviation of the penalty's own gradient, over the norm of its mean, on a batch of 64 rows in
random orders, at the initial weights. Then the network is trained. Loss and trace are those of all training data, at
the start and after each twentieth of the epochs. A run with the penalty is compared with the plain run from the same
initial weights and orders of the data, at the higher of their last losses; between measurements, log trace is
interpolated by log loss. Means over the seeds and their standard errors are printed.
"""

import sys

import minimand
import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

from minimand import gradients
from minimand.transforms import GradientVariancePenalty

SEEDS, ROWS, BATCH, DRAWS = 5, 512, 64, 50
DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS, LABELS = (DIGITS[:ROWS] / 16).astype("float32").reshape(-1, 8, 8, 1), LABELS[:ROWS]


def sines():
    """Three sines with noise of standard deviation 0.1, a regression problem."""
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 6))
    y = np.sin(2 * x[:, :3]).sum(axis=1, keepdims=True) + 0.1 * random.normal(size=(ROWS, 1))
    return x.astype("float32"), y.astype("float32")


def digits():
    return DIGITS, LABELS


def mlp():
    return keras.Sequential([keras.Input((6,)), layers.Dense(16, "tanh"), layers.Dense(1)])


def convnet(*normalised):
    first = [layers.Conv2D(8, 3), *normalised, layers.ReLU(), layers.MaxPooling2D()]
    return keras.Sequential([keras.Input((8, 8, 1)), *first, layers.Flatten(), layers.Dense(10)])


def batch_normalised():
    return convnet(layers.BatchNormalization())


def layer_normalised():
    return convnet(layers.LayerNormalization())


def lstm():
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Reshape((8, 8)), layers.LSTM(16), layers.Dense(10)])


# Model, data, strengths, learning rate, epochs.
PROBLEMS = {
    "mlp": (mlp, sines, (1e-3, 1e-2, 1e-1), 0.01, 60),
    "convnet": (convnet, digits, (1e-3, 1e-2), 0.003, 40),
    "layer_normalised": (layer_normalised, digits, (), 0.003, 0),
    "lstm": (lstm, digits, (1e-2,), 0.01, 40),
    "batch_normalised": (batch_normalised, digits, (1e-3, 1e-2), 0.003, 40),
}
ESTIMATORS = {
    "exact": {"estimator": "exact"},
    "probe": {"estimator": "probe", "seed": 0},
    "4 micro-batches": {"estimator": "micro_batch", "micro_batches": 4},
    "8 micro-batches": {"estimator": "micro_batch", "micro_batches": 8},
    "default": {},
}


def trainer_of(problem, optimizer, penalties):
    make, data, *_ = PROBLEMS[problem]
    x, y = data()
    loss = "mse" if y.ndim > 1 else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    keras.utils.set_random_seed(0)
    trainer = minimand.Trainer(make())
    trainer.compile(optimizer, loss, transforms=penalties)
    return trainer, x, y


def steps(problem, penalties, orders):
    """The steps of gradient descent with rate 1 from the same weights, (orders, weights)."""
    trainer, x, y = trainer_of(problem, keras.optimizers.SGD(1.0), penalties)
    start, found = trainer.model.get_weights(), []
    for order in orders:
        trainer.model.set_weights(start)
        trainer.train_on_batch(x[order], y[order])
        found.append(np.concatenate([(a - b).ravel() for a, b in zip(start, trainer.model.get_weights(), strict=True)]))
    return np.array(found, "float64")


def noise(problem):
    """The relative noise by estimator."""
    random = np.random.default_rng(0)
    orders = [random.permutation(BATCH) for _ in range(DRAWS)]
    plain = steps(problem, [], orders[:1])
    found = {
        name: steps(problem, [GradientVariancePenalty(1.0, **arguments)], orders) - plain
        for name, arguments in ESTIMATORS.items()
    }
    exact = found.pop("exact").mean(axis=0)
    return {
        name: np.sqrt(np.mean(np.sum((each - exact) ** 2, axis=1))) / np.linalg.norm(exact)
        for name, each in found.items()
    }


def paths(problem, penalties):
    """Loss and trace at the start and after each twentieth of the epochs, (seeds, 21, 2)."""
    make, _, _, rate, epochs = PROBLEMS[problem]
    trainer, x, y = trainer_of(problem, keras.optimizers.Adam(rate), penalties)
    # A trainer is compiled once, and starts again for each seed.
    trainer.fit(x[:BATCH], y[:BATCH], verbose=0)
    found = []
    for seed in range(SEEDS):
        keras.utils.set_random_seed(seed)
        trainer.model.set_weights(make().get_weights())
        for variable in trainer.optimizer.variables:
            if variable is not trainer.optimizer._learning_rate:
                variable.assign(np.zeros(variable.shape))
        found.append([])
        for measurement in range(21):
            if measurement > 0:
                trainer.fit(x, y, batch_size=BATCH, epochs=epochs // 20, verbose=0)
            # Batch normalisation does not depend on the batch in evaluation.
            moments = gradients.gradient_moments(trainer, x, y, training=False)
            found[-1].append([trainer.evaluate(x, y, verbose=0), moments.trace])
    return np.array(found)


def at_equal_loss(plain, penalised):
    """The trace of the penalised run over that of the plain run, at the higher of the two last losses."""
    level = np.log(max(plain[-1, 0], penalised[-1, 0]))

    def log_trace(path):
        return np.interp(-level, -np.minimum.accumulate(np.log(path[:, 0])), np.log(path[:, 1]))

    return np.exp(log_trace(penalised) - log_trace(plain))


def summary(values):
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.3f}"


def main():
    for problem in sys.argv[1:] or PROBLEMS:
        print(problem, flush=True)
        if problem != "batch_normalised":
            print("  noise: " + ", ".join(f"{name} {value:.2f}" for name, value in noise(problem).items()), flush=True)
        if not PROBLEMS[problem][2]:
            continue
        plain = paths(problem, [])
        print(f"  plain: loss {summary(plain[:, -1, 0])}, trace {summary(plain[:, -1, 1])}", flush=True)
        for strength in PROBLEMS[problem][2]:
            for name in ("default", "probe") if problem != "batch_normalised" else ("default",):
                found = paths(problem, [GradientVariancePenalty(strength, **ESTIMATORS[name])])
                ratios = [at_equal_loss(a, b) for a, b in zip(plain, found, strict=True)]
                print(
                    f"  {strength:g}, {name}: loss {summary(found[:, -1, 0])}, trace {summary(found[:, -1, 1])}, "
                    f"trace over that of plain at equal loss {summary(ratios)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
