"""Linear models by `Proximal` beside skglm and group-lasso: the same optimum of group lasso and sparse group lasso.

Run: python benchmarks/group_lasso_peers.py, with both packages (`pip install skglm group-lasso`). 200 rows, 40 inputs
in groups of 4; 1 / (2 n) ||y - X w||^2 + strength (a ||w||_1 + (1 - a) sum over groups sqrt(4) ||w_g||). Prints the
largest difference of a weight from the peer's, the zero groups of both, and both objectives.
"""

import keras
import numpy as np
from group_lasso import GroupLasso as PeerSparseGroupLasso
from keras import ops
from skglm import GroupLasso as PeerGroupLasso

from minimand import optimizers, regularizers

ROWS, INPUTS, SIZE = 200, 40, 4
GROUPS = np.arange(INPUTS) // SIZE


def problem():
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, INPUTS))
    truth = random.normal(size=INPUTS) * (GROUPS < 4)
    return x, x @ truth + random.normal(size=ROWS)


def objective(w, x, y, strength, ratio):
    norms = sum(np.sqrt(SIZE) * np.linalg.norm(w[group == GROUPS]) for group in range(INPUTS // SIZE))
    return np.mean((y - x @ w) ** 2) / 2 + strength * (ratio * np.abs(w).sum() + (1 - ratio) * norms)


def ours(x, y, strength, ratio, optimizer, steps=4000):
    model = keras.Sequential([keras.Input((INPUTS,)), keras.layers.Dense(1, use_bias=False)])
    penalty = regularizers.SparseGroupLasso(strength, ratio, GROUPS[:, None])
    model.compile(optimizers.Proximal(optimizer, penalty), lambda t, p: 0.5 * ops.mean(ops.square(t - p), axis=-1))
    rows = (np.tile(part.astype("float32"), (steps, 1)) for part in (x, y[:, None]))
    model.fit(*rows, batch_size=ROWS, shuffle=False, verbose=0)
    return ops.convert_to_numpy(model.weights[0])[:, 0].astype("float64")


def peers(x, y, strength, ratio):
    if ratio == 0:
        peer = PeerGroupLasso(
            SIZE, alpha=strength, weights=np.full(INPUTS // SIZE, np.sqrt(SIZE)), fit_intercept=False, tol=1e-10
        )
        return "skglm", peer.fit(x, y).coef_
    # Its steps go along half of its loss's gradient, so that it finds the optimum of twice the strengths it is given.
    peer = PeerSparseGroupLasso(
        GROUPS, group_reg=strength / 2 * (1 - ratio), l1_reg=strength / 2 * ratio, scale_reg="group_size",
        fit_intercept=False, supress_warning=True, tol=1e-12, n_iter=100_000,
    )  # fmt: skip
    return "group-lasso", peer.fit(x, y[:, None]).coef_[:, 0]


def main():
    x, y = problem()
    for strength, ratio in ((0.1, 0.0), (0.3, 0.0), (0.2, 0.3), (0.3, 0.7)):
        name, theirs = peers(x, y, strength, ratio)
        print(f"strength {strength}, ratio {ratio}: {name} {objective(theirs, x, y, strength, ratio):.9f}")
        decay = keras.optimizers.schedules.CosineDecay(0.02, 4000)
        for optimizer in (keras.optimizers.SGD(0.2), keras.optimizers.Adam(decay, epsilon=1e-3)):
            found = ours(x, y, strength, ratio, optimizer)
            zero = [sum((w[group == GROUPS] == 0).all() for group in range(INPUTS // SIZE)) for w in (found, theirs)]
            print(
                f"  {type(optimizer).__name__:<5} {objective(found, x, y, strength, ratio):.9f}, "
                f"largest difference {np.abs(found - theirs).max():.1e}, zero groups {zero[0]} and {zero[1]}"
            )


if __name__ == "__main__":
    main()
