"""Draws the figures of robust-losses.md: `python docs/robust_figures.py` (needs the study extra)."""

import math

import matplotlib as mpl
import numpy as np
from keras import ops
from matplotlib.figure import Figure
from style import STYLE, save

from minimand.losses import general_robust, robust_log_density, robust_weights

# Okabe and Ito's palette.
SHAPES = {
    math.inf: ("#56b4e9", "inf"),
    2.0: ("#000000", "2, squared error"),
    1.0: ("#0072b2", "1, pseudo-Huber"),
    0.0: ("#009e73", "0, Cauchy"),
    -2.0: ("#e69f00", "-2, Geman-McClure"),
    -math.inf: ("#d55e00", "-inf, Welsch"),
}


def draw(name, panels):
    """One panel for each `(title, function of residual and shape, shapes, limit of the axis)`."""
    x = np.linspace(-6, 6, 241)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(panels) + 1.8, 3.2), layout="constrained")
        for axes, (title, function, shapes, top) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for shape in shapes:
                colour, label = SHAPES[shape]
                axes.plot(x, ops.convert_to_numpy(function(x, shape)), color=colour, label=f"a = {label}")
            axes.set(title=title, xlabel="residual in scales, x/c", ylim=(0, top))
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
        save(figure, name)


def main():
    every = list(SHAPES)
    draw(
        "robust-loss.svg",
        [
            ("loss", lambda x, a: general_robust(x, a, 1.0), every, 6),
            ("weight of a residual", lambda x, a: robust_weights(x, a, 1.0), every, 1.5),
        ],
    )
    densities = [shape for shape in every if shape >= 0]
    draw(
        "robust-density.svg",
        [
            ("density", lambda x, a: ops.exp(robust_log_density(x, a, 1.0)), densities, 0.55),
            ("-log density", lambda x, a: -robust_log_density(x, a, 1.0), densities, 8),
        ],
    )


if __name__ == "__main__":
    main()
