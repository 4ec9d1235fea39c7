"""A callback that draws the gradient and its noise by weight tensor and epoch."""

from __future__ import annotations

from itertools import compress
from pathlib import Path
from typing import Any

import keras
import numpy as np

from minimand.trainer import Trainer
from minimand.transforms import MeasureGradient

_BLUE, _RED = "#0072b2", "#d55e00"


class GradientReport(keras.callbacks.Callback):
    """GradientReport draws the gradient and its noise, as measured by `transforms.MeasureGradient`.

    Use GradientReport to choose a batch size, and to find layers whose gradient is mostly noise.

    The figure shows by epoch the norm of the gradient, the standard deviation sqrt(tr / n) of a batch's gradient, the
    noise scale, and for each weight tensor the signal-to-noise ratio |G|^2 / tr of one example's gradient.

    Args:
        path: file of the figure, written at the end of training: `.svg`, `.png`, `.pdf` or another format of
            Matplotlib; None for no file.

    Attributes:
        weights: paths of the measured weight tensors.
        values: (epochs, 3, tensors), the means of |mean g|^2, tr and tr / n over the measurements of an epoch.

    Raises:
        ImportError: at the start of `fit`, Matplotlib is missing (the extra `study`).
        ValueError: at the start of `fit`, the model is not a `Trainer` with a `MeasureGradient` in its transforms.

    Source: Schneider, Dangel and Hennig, "Cockpit: a practical debugging tool for the training of deep neural
    networks", NeurIPS 2021.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("sgd", "mse", transforms=[minimand.transforms.MeasureGradient(every=2)])
        >>> report = minimand.callbacks.GradientReport(path=None)
        >>> x = np.random.default_rng(0).normal(size=(64, 3))
        >>> history = trainer.fit(x, x[:, :1], epochs=4, verbose=0, callbacks=[report])
        >>> report.values.shape
        (4, 3, 2)
    """

    def __init__(self, path: str | Path | None = "gradient.svg") -> None:
        super().__init__()
        self.path = None if path is None else Path(path)
        self.weights: list[str] = []
        self.values = np.zeros((0, 3, 0))

    def on_train_begin(self, logs: Any = None) -> None:
        transforms = self.model.transforms if isinstance(self.model, Trainer) else ()
        found = [transform for transform in transforms if isinstance(transform, MeasureGradient)]
        if not found:
            raise ValueError(
                "GradientReport: the model must be a minimand.Trainer with a MeasureGradient. "
                f"Received: {type(self.model).__name__} without a MeasureGradient. "
                "Give `Trainer.compile` transforms=[minimand.transforms.MeasureGradient()]."
            )
        if self.path is not None:
            _matplotlib()
        self._measure = found[0]
        self._epochs: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keras's hook."""
        self._epochs.append(self._measure.statistics.by_tensor())

    def on_train_end(self, logs: Any = None) -> None:
        """Keras's hook."""
        variables = self.model.model.trainable_variables
        self.weights = [variable.path for variable in compress(variables, self._measure.mask)]
        self.values = np.array(self._epochs).reshape(-1, 3, len(self.weights))
        if self.path is not None and len(self.values):
            self.figure().savefig(self.path)

    def figure(self) -> Any:
        """A `matplotlib.figure.Figure` of the last training."""
        figure_class = _matplotlib()
        count = len(self.weights)
        epochs = np.arange(1, len(self.values) + 1)
        norms, traces, noises = self.values.sum(axis=2).T
        # A training of one epoch has no line, so there are markers.
        style: dict[str, Any] = {"marker": "o", "markersize": 3}
        page = figure_class(figsize=(9.0, 3.4 + 0.25 * count), layout="constrained")
        grid = page.add_gridspec(2, 2, height_ratios=[3.0, 0.5 + 0.25 * count])
        size, scale, table = (page.add_subplot(grid[place]) for place in ((0, 0), (0, 1), (1, slice(None))))
        size.plot(epochs, np.sqrt(norms), color=_BLUE, label="norm of a batch's gradient", **style)
        size.plot(epochs, np.sqrt(noises), color=_RED, label="its standard deviation", **style)
        size.set(xlabel="epoch", yscale="log")
        size.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0))
        scale.plot(epochs, _ratio(traces, norms - noises), color=_BLUE, **style)
        scale.set(xlabel="epoch", ylabel="noise scale (examples)", yscale="log")
        for axes in (size, scale):
            axes.spines[["top", "right"]].set_visible(False)
        ratio = np.log10(_ratio(self.values[:, 0] - self.values[:, 2], self.values[:, 1]))
        shown = table.imshow(ratio.T, aspect="auto", extent=(0.5, len(epochs) + 0.5, count - 0.5, -0.5))
        table.set_yticks(range(count), self.weights)
        table.set_xlabel("epoch (white: no signal above the noise)")
        page.colorbar(shown, ax=table, label="log10 |G|² / tr")
        return page


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The ratio, or NaN, which is not drawn, if a number is not positive."""
    valid = (numerator > 0) & (denominator > 0)
    return np.where(valid, numerator / np.where(valid, denominator, 1.0), np.nan)


def _matplotlib() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("GradientReport's figure needs Matplotlib: pip install 'minimand[study]'") from error
    return Figure
