"""What the figures of the pages share: colours that colour-blind readers can tell apart, and panels side by side."""

import pathlib

import keras
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, RED, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "minimand",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "legend.frameon": False,
}


def save(page, name):
    page.savefig(pathlib.Path(__file__).parent / name, metadata={"Date": None})


def figure(name, panels):
    """Saves what the decorated function draws on so many panels."""

    def drawn(draw):
        keras.utils.set_random_seed(1)
        with mpl.rc_context(STYLE):
            page = Figure(figsize=(4.2 * panels, 3.2), layout="constrained")
            draw(*np.atleast_1d(page.subplots(1, panels)))
            save(page, name)

    return drawn
