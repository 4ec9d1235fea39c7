"""Regression with uncertainty on the 20 standard splits of UCI sets, one hidden layer of 50 ReLU units.

Run: python benchmarks/uci_regression.py FOLDER [SET ...], on JAX, where FOLDER holds NAME.npz with X, y and test_mask
(splits, rows). Prints test RMSE and negative log likelihood, mean and standard error over the splits.

For each split, the setting and the standard deviation of the targets' noise are those of the best likelihood in a
cross-validation of its training rows, five folds. All splits and folds train at once (`vmap`), by the trainer's own
objective and optimizer. Test rows decide nothing.
"""

import functools
import itertools
import pathlib
import sys
import time

import minimand  # first: it chooses the default backend
import jax
import keras
import numpy as np
from scipy import optimize, stats

SETS = ("boston", "concrete", "energy", "wine", "yacht")
BATCH, STEPS, SAMPLES, FOLDS = 32, 10_000, 200, 5
BESIDE = {"boston": (3.01, 2.57, 2.90, 2.40), "concrete": (5.67, 3.16, 4.82, 2.93), "energy": (1.80, 2.04, 0.54, 1.21),
          "wine": (0.64, 0.97, 0.62, 0.93), "yacht": (1.02, 1.63, 0.67, 1.25)}  # fmt: skip


def network(features):
    return keras.Sequential([keras.Input((features,)), keras.layers.Dense(50, "relu"), keras.layers.Dense(1)])


def cosine(rate):
    return keras.optimizers.schedules.CosineDecay(rate, STEPS)


def learned_noise(temperature):
    noise = minimand.transforms.VariationalWeightNoise(
        prior="empirical_bayes", temperature=temperature, warm_up=2000, per="example", seed=0
    )
    return keras.optimizers.Adam(cosine(0.01)), [noise]


def weight_noise(stddev):
    noise = minimand.transforms.WeightNoise(stddev, mode="filter", select="all", per="example", seed=0)
    penalty = minimand.transforms.WeightPenalty(keras.regularizers.L2(1e-5))
    return keras.optimizers.Adam(cosine(0.01)), [noise, penalty]


def ivon(decay, examples):
    noise = minimand.transforms.IVONNoise(examples=examples, seed=0)
    return minimand.optimizers.IVON(cosine(0.01), hessian_init=1.0, beta_2=0.999, weight_decay=decay), [noise]


METHODS = {
    "VariationalWeightNoise": (learned_noise, (1.0, 0.3, 0.1, 0.03)),
    "IVON": (ivon, (1e-4, 1e-3), (1e3, 1e4)),
    "WeightNoise": (weight_noise, (0.01, 0.03, 0.1, 0.3)),
}


def trained(make, x, y):
    """A function of network and inputs that draws predictions; x is (networks, rows, features), y (networks, rows)."""
    networks, rows, features = x.shape
    optimizer, transforms = make()
    trainer = minimand.Trainer(network(features))
    trainer.compile(optimizer, minimand.losses.TaskUncertainty("mean_squared_error"), transforms=transforms)
    trainer.prepare(x[0, :BATCH], y[0, :BATCH, None])
    for transform in transforms:
        if transform.needs_examples:
            transform.begin_fit(rows)
    optimizer.build(trainer.trainable_variables)
    groups = (trainer.trainable_variables, trainer.non_trainable_variables, optimizer.variables)
    random = np.random.default_rng(0)
    starts = []
    for _ in range(networks):
        keras.utils.set_random_seed(int(random.integers(2**31)))
        trainer.model.set_weights(network(features).get_weights())
        transforms[0].seed_generator.state.assign(random.integers(2**31, size=2))
        starts.append([[v.numpy().copy() for v in group] for group in groups])
    state = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
    metrics = [v.value for v in trainer.metrics_variables]
    chosen = np.stack([epochs(random, rows) for _ in range(networks)])

    def step(data, state, rows):
        (weights, others, slots), (x, y) = state, data
        batch = (x[rows], y[rows, None], None)
        (_, (_, others, _)), gradients = jax.value_and_grad(trainer.evaluate_objective, has_aux=True)(
            weights, others, metrics, batch
        )
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)
        return [list(weights), list(others), list(slots)], None

    @jax.jit
    @jax.vmap
    def run(state, x, y, chosen):
        return jax.lax.scan(functools.partial(step, (x, y)), state, chosen)[0]

    ends = jax.tree.map(np.asarray, run(state, x, y, chosen))

    def predict(index, inputs):
        """Samples, and the standard deviation of the targets' noise that training found."""
        for group, values in zip(groups, ends, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value[index])
        noise = np.exp(trainer.loss.log_variance / 2)
        return trainer.predict_samples(inputs, SAMPLES, seed=index, batch_size=len(inputs))[..., 0], noise

    return predict


def epochs(random, rows):
    """Rows of each step: every row once in an epoch, the last incomplete batch left out."""
    full = rows // BATCH
    count = -(-STEPS // full)
    order = [random.permutation(rows)[: full * BATCH].reshape(full, BATCH) for _ in range(count)]
    return np.concatenate(order)[:STEPS].astype("int32")


def nll(y, samples, log_noise):
    """Of the mixture of N(sample, noise^2) over the samples."""
    return float(np.mean(minimand.metrics.sample_nll(y[:, None], samples[..., None], np.exp(log_noise))))


def standardised(x, y, train, test):
    """By the training rows: inputs and targets of both parts, and the unit of y."""
    mean, spread = x[train].mean(axis=0), x[train].std(axis=0)
    spread[spread == 0] = 1.0
    unit = y[train].std()
    x, y = ((x - mean) / spread).astype("float32"), ((y - y[train].mean()) / unit).astype("float32")
    return x[train], y[train], x[test], y[test], unit


def evaluated(x, y, masks, make, settings):
    """RMSE and negative log likelihood of each split."""
    random = np.random.default_rng(1)
    splits = [standardised(x, y, random.permutation(np.flatnonzero(~mask)), mask) for mask in masks]
    xs, ys = (np.stack(values) for values in list(zip(*splits, strict=True))[:2])
    held = xs.shape[1] // FOLDS
    folds = [np.arange(k * held, (k + 1) * held) for k in range(FOLDS)]

    def without(values):
        """(splits x folds, rows outside the fold, ...)."""
        return np.concatenate([np.stack([np.delete(v, fold, axis=0) for fold in folds]) for v in values])

    best = [(np.inf, None)] * len(splits)
    for setting in settings:
        on_folds = trained(functools.partial(make, *setting), without(xs), without(ys))
        on_whole = trained(functools.partial(make, *setting), xs, ys)
        for k, (x_train, y_train, x_test, y_test, unit) in enumerate(splits):
            found = [on_folds(k * FOLDS + j, x_train[fold]) for j, fold in enumerate(folds)]
            samples = np.concatenate([drawn for drawn, _ in found], axis=-1)
            start = np.log(np.mean([learned for _, learned in found]))
            likelihood = functools.partial(nll, y_train[: FOLDS * held], samples)
            noise = optimize.minimize_scalar(likelihood, bounds=start + np.array([-1.0, 3.0]))
            if noise.fun < best[k][0]:
                samples, _ = on_whole(k, x_test)
                rmse = unit * np.sqrt(np.mean((y_test - samples.mean(axis=0)) ** 2))
                best[k] = (noise.fun, (setting, rmse, nll(y_test, samples, noise.x) + np.log(unit)))
    return [result for _, result in best]


def main(folder, *names):
    for name in names or SETS:
        data = np.load(pathlib.Path(folder) / f"{name}.npz")
        print(f"{name}: PBP {BESIDE[name][:2]}, MC dropout {BESIDE[name][2:]} (RMSE, NLL)" if name in BESIDE else name)
        for method, (make, *choices) in METHODS.items():
            start = time.perf_counter()
            results = evaluated(data["X"], data["y"], data["test_mask"], make, list(itertools.product(*choices)))
            found = np.array([result[1:] for result in results])
            errors = stats.sem(found)
            settings_chosen = sorted({result[0] for result in results}, key=str)
            print(
                f"  {method:<20} RMSE {found[:, 0].mean():.3f} +- {errors[0]:.3f}   NLL {found[:, 1].mean():.3f} +- "
                f"{errors[1]:.3f}   {time.perf_counter() - start:.0f} s   {settings_chosen}",
                flush=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
