"""Regression with wrong training targets: the adaptive losses, untuned, against the best of 30 fixed ones.

    python benchmarks/contaminated_regression.py DIRECTORY concrete energy [--learning-rate 0.003]

reads NAME.npz from the directory: X (n, d), y (n,), test_mask (seeds, n). On 0 to 40 % of the training targets there is
noise N(0, (10 sd)^2), or U(5, 15) sd. A network d-32-1 learns by Adam, 1000 steps of 64 examples, from targets scaled
by the median and the median absolute deviation of what it is given. The regret is how much greater its mean absolute
error on clean test targets is, as a mean over the seeds, than that of the fixed loss that turned out to be the best for
this data set and contamination. All trainings of a loss run as one, by jax.vmap; what is differentiated is the losses
themselves.
"""

import argparse
import os
import pathlib
import time

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np

from minimand.losses import AdaptiveRobust, AdaptiveStudentT, GeneralRobust

SEEDS, STEPS, BATCH, HIDDEN = 10, 1000, 64, 32
CONDITIONS = [("normal", share) for share in (0.0, 0.1, 0.2, 0.3, 0.4)]
CONDITIONS += [("one-sided", share) for share in (0.1, 0.2, 0.3, 0.4)]
FIXED = {
    "squared": keras.losses.MeanSquaredError(),
    "absolute": keras.losses.MeanAbsoluteError(),
    **{f"Huber({d})": keras.losses.Huber(d) for d in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.345, 2.0)},
    **{f"general({a}, {c})": GeneralRobust(a, c) for a in (-2.0, 0.0, 1.0, 1.5) for c in (0.05, 0.1, 0.2, 0.5, 1.0)},
}
ADAPTIVE = {
    "AdaptiveRobust": AdaptiveRobust(),
    'AdaptiveRobust(init="reference")': AdaptiveRobust(init="reference"),
    "AdaptiveStudentT": AdaptiveStudentT(),
}


def contaminated(path):
    """Arrays (condition x seed, ...): inputs, scaled targets, test inputs, clean test targets, location, spread."""
    data = np.load(path)
    runs = []
    for kind, share in CONDITIONS:
        for seed in range(SEEDS):
            test = data["test_mask"][seed]
            x, y = data["X"][~test], data["y"][~test]
            random = np.random.default_rng([seed, int(100 * share), kind == "normal"])
            wrong, deviation = random.random(len(y)) < share, y.std()
            noise = random.normal(0, 10, len(y)) if kind == "normal" else random.uniform(5, 15, len(y))
            given = y + wrong * noise * deviation
            location = np.median(given)
            spread = 1.4826 * np.median(np.abs(given - location))
            mean, std = x.mean(axis=0), x.std(axis=0) + 1e-12
            scaled = ((given - location) / spread)[:, None]
            runs.append(((x - mean) / std, scaled, (data["X"][test] - mean) / std, data["y"][test], location, spread))
    return [jnp.asarray(np.stack(column), "float32") for column in zip(*runs, strict=True)]


def network(weights, x):
    return jax.nn.relu(x @ weights[0] + weights[1]) @ weights[2] + weights[3]


def errors(loss, data, learning_rate):
    """The error on the test targets of each run."""
    if hasattr(loss, "build_once"):
        loss.build_once((None, 1), (None, 1))
    variables = getattr(loss, "variables", [])
    learned = [variable for variable in variables if variable.trainable]
    state = [variable for variable in variables if not variable.trainable]

    def objective(values, kept, x, y):
        weights, parameters = values
        with keras.StatelessScope([*zip(learned, parameters, strict=True), *zip(state, kept, strict=True)]) as scope:
            value = loss(y, network(weights, x))
            return value, [scope.get_current_value(variable) for variable in state]

    def run(x, y, x_test, y_test, location, spread, seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        limits = (6 / (x.shape[1] + HIDDEN)) ** 0.5, (6 / (HIDDEN + 1)) ** 0.5
        hidden = jax.random.uniform(keys[0], (x.shape[1], HIDDEN), minval=-limits[0], maxval=limits[0])
        last = jax.random.uniform(keys[1], (HIDDEN, 1), minval=-limits[1], maxval=limits[1])
        values = [hidden, jnp.zeros(HIDDEN), last, jnp.zeros(1)], [variable.value for variable in learned]
        moments = jax.tree.map(jnp.zeros_like, values), jax.tree.map(jnp.zeros_like, values)

        def step(carry, t):
            values, (first, second), kept, key = carry
            key, draw = jax.random.split(key)
            batch = jax.random.randint(draw, (BATCH,), 0, len(x))
            gradient, kept = jax.grad(objective, has_aux=True)(values, kept, x[batch], y[batch])
            first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
            second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
            size = learning_rate / (1 - 0.9**t)
            values = jax.tree.map(
                lambda w, m, v: w - size * m / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-7), values, first, second
            )
            return (values, (first, second), kept, key), None

        carry = values, moments, [variable.value for variable in state], keys[2]
        ((weights, _), *_), _ = jax.lax.scan(step, carry, jnp.arange(1.0, STEPS + 1))
        return jnp.mean(jnp.abs(network(weights, x_test)[:, 0] * spread + location - y_test))

    seeds = jnp.tile(jnp.arange(SEEDS), len(CONDITIONS))
    return np.asarray(jax.jit(jax.vmap(run))(*data, seeds)).reshape(len(CONDITIONS), SEEDS).mean(axis=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--learning-rate", type=float, default=0.003)
    arguments = parser.parse_args()
    for name in arguments.names:
        start = time.perf_counter()
        data = contaminated(arguments.directory / f"{name}.npz")
        found = {key: errors(loss, data, arguments.learning_rate) for key, loss in {**FIXED, **ADAPTIVE}.items()}
        best = np.min([found[key] for key in FIXED], axis=0)
        print(f"{name}, learning rate {arguments.learning_rate}: regret in %, {time.perf_counter() - start:.0f} s")
        print(f"{'':36}{'   '.join(f'{kind} {100 * share:.0f} %' for kind, share in CONDITIONS)}")
        regrets = {key: 100 * (value / best - 1) for key, value in found.items()}
        fixed = sorted(FIXED, key=lambda key: regrets[key].mean())
        for key in [*ADAPTIVE, *fixed[:3], "absolute", "Huber(1.345)", "squared"]:
            row = " ".join(f"{value:7.0f}" for value in regrets[key])
            print(f"{key:36}{row}   mean {regrets[key].mean():6.1f}, most {regrets[key].max():6.0f}")


if __name__ == "__main__":
    main()
