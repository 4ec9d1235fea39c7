"""The figures of a study, as SVG that takes its text colour from the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from minimand.study._comparison import mean_of_splits
from minimand.study._settings import StudyError

if TYPE_CHECKING:
    from minimand.study._results import Results

# The palette of Okabe and Ito, which colour-blind readers can tell apart; the baseline is grey. Matplotlib calls the
# colours C0, C1 and so on, and begins again after the last one.
_COLOURS = ("#8a8a8a", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a800")
# A placeholder for the page's own text colour.
_INK = "#010203"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "minimand",
    "font.family": "sans-serif",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "axes.prop_cycle": cycler(color=_COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


class Svg(str):
    """The text of a figure, which notebooks show as the figure.

    `Results.figure` returns it. Write it to a file, or put it into a page of your own.

    Args:
        text: an SVG document.

    Examples:
        >>> from minimand.study import Svg
        >>> Svg("<svg></svg>") + "<p>A figure.</p>"
        '<svg></svg><p>A figure.</p>'
    """

    def __init__(self, text: str) -> None:
        super().__init__()

    def _repr_html_(self) -> str:
        return str(self)


def results_figure(results: Results, name: str, candidate: str | None = None) -> Svg:
    """As `Results.figure`."""
    names = [each.name for each in results.candidates]
    drawings: dict[str, Callable[..., None]] = _FIGURES if candidate is None else _FIGURES_OF_CANDIDATES
    if name not in drawings or candidate not in (None, *names):
        raise StudyError(
            f"The figure {name!r}{f' of {candidate!r}' if candidate else ''} does not exist. "
            f"Figures: {', '.join(_FIGURES)}; of a candidate: {', '.join(_FIGURES_OF_CANDIDATES)}. "
            f"Candidates: {', '.join(names)}."
        )
    if name == "sensitivity" and candidate not in results.tuning:
        return Svg("")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, 4.2), layout="constrained")
        drawings[name](figure, results, *([] if candidate is None else [names.index(candidate)]))
        return Svg(_svg(figure))


def _differences(figure: Figure, results: Results) -> None:
    """Paired differences to the baseline with their intervals, and a dot for each split."""
    metric = results.metric
    baseline, *others = results.comparison.rows
    figure.set_figheight(1.0 + 0.42 * max(len(others), 1))
    axes = figure.subplots()
    splits = np.array([run.split for run in results.runs if run.candidate == baseline.candidate.name])
    names = [row.candidate.name for row in results.comparison.rows]
    scores = np.array([[run.test[metric.key] for run in results.runs if run.candidate == name] for name in names])
    for index, (row, differences) in enumerate(zip(others, scores[1:] - scores[0], strict=True)):
        d, colour = row.differences[metric.key], f"C{index + 1}"
        known = np.isfinite(differences)
        dots = mean_of_splits(differences[known], splits[known])
        # Matplotlib draws nothing for NaN.
        axes.plot(dots, [index] * len(dots), "o", color=colour, alpha=0.35, markersize=4)
        axes.plot([d.low, d.high], [index, index], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([d.mean], [index], "D", color=colour, markersize=6)
    axes.axvline(0.0, color=_INK, linewidth=0.8)
    axes.set_yticks(range(len(others)), [row.candidate.name for row in others])
    axes.set_ylim(len(others) - 0.4, -0.6)
    axes.set_xlabel(_difference_label(results, "right", "left"))


def _cost(figure: Figure, results: Results) -> None:
    """The difference to the baseline by the cost of an epoch."""
    baseline, *others = results.comparison.rows
    axes = figure.subplots()
    axes.axhline(0.0, color=_INK, linewidth=0.8)
    axes.plot([baseline.cost], [0.0], "s", color="C0", label=baseline.candidate.name)
    for index, row in enumerate(others, 1):
        d = row.differences[results.metric.key]
        axes.plot([row.cost, row.cost], [d.low, d.high], color=f"C{index}", linewidth=1.5, alpha=0.6)
        axes.plot([row.cost], [d.mean], "D", color=f"C{index}", markersize=6, label=row.candidate.name)
    axes.set_xlabel("time of an epoch relative to the baseline's")
    axes.set_ylabel(_difference_label(results, "up", "down"))
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)


def _difference_label(results: Results, greater: str, less: str) -> str:
    metric = results.metric
    return f"{metric.title} minus the baseline's ({greater if metric.greater_is_better else less} is better)"


def _learning_curves(figure: Figure, results: Results) -> None:
    """The validation metric by epoch: the median over seeds, and the band between the quartiles."""
    metric = results.selection
    axes = figure.subplots()
    for index, candidate in enumerate(results.candidates):
        curves = _curves(results, candidate.name, metric.key)
        epochs = 1 + np.flatnonzero(np.isfinite(curves).any(axis=0))
        low, middle, high = np.nanpercentile(curves[:, epochs - 1], [25, 50, 75], axis=0)
        axes.plot(epochs, middle, color=f"C{index}", linewidth=1.6, label=candidate.name)
        axes.fill_between(epochs, low, high, color=f"C{index}", alpha=0.08, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {metric.title}")
    axes.legend(ncols=2, fontsize=9)


def _logs(figure: Figure, results: Results, index: int) -> None:
    """A candidate's losses by epoch and everything else that it logs, such as shapes or noise scales."""
    name, validation = results.candidates[index].name, results.selection
    first = next(run.epochs[0] for run in results.runs if run.candidate == name)
    titles = {validation.key: f"validation {validation.title}", "loss": "training objective"}
    titles |= {key: key for key in first if key not in ("epoch", *titles)}
    for axes, (key, title) in _panels(figure, titles.items()):
        for curve in _curves(results, name, key):
            axes.plot(np.arange(1, len(curve) + 1), curve, color=f"C{index}", alpha=0.6, linewidth=1.2)
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)


def _sensitivity(figure: Figure, results: Results, index: int) -> None:
    """The validation scores of a candidate's trials by each number that was searched."""
    tuned = results.tuning[results.candidates[index].name]
    scored = [each for each in tuned["trials"] if each["score"] is not None and math.isfinite(each["score"])]
    for axes, (path, (low, _)) in _panels(figure, tuned["ranges"].items(), sharey=True):
        points = [each["numbers"][path] for each in scored], [each["score"] for each in scored]
        axes.plot(*points, "o", color=f"C{index}", alpha=0.6, markersize=5)
        if tuned["chosen"] is not None:
            chosen = tuned["trials"][tuned["chosen"]]
            axes.plot(chosen["numbers"][path], chosen["score"], "o", color=_INK, fillstyle="none", markersize=11)
        if low > 0:
            axes.set_xscale("log")
        axes.set_xlabel(path)
        axes.set_ylabel(f"validation {results.selection.title}")


_FIGURES = {"differences": _differences, "cost": _cost, "curves": _learning_curves}
_FIGURES_OF_CANDIDATES = {"logs": _logs, "sensitivity": _sensitivity}


def _panels(figure: Figure, items: Iterable[Any], sharey: bool = False) -> list[tuple[Any, Any]]:
    """Axes in two columns, each with its item."""
    items = list(items)
    rows = math.ceil(len(items) / 2)
    figure.set_figheight(2.6 * rows)
    every = figure.subplots(rows, 2, squeeze=False, sharey=sharey).ravel()
    for axes in every[len(items) :]:
        axes.set_axis_off()
    return list(zip(every, items, strict=False))


def _curves(results: Results, candidate: str, key: str) -> np.ndarray:
    """(seeds, epochs) values of a log, NaN after the end of a run."""
    own = [run for run in results.runs if run.candidate == candidate]
    curves = np.full((len(own), results.settings.epochs), np.nan)
    for index, run in enumerate(own):
        curves[index, : len(run.epochs)] = [row.get(key, math.nan) for row in run.epochs]
    return curves


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # An inline SVG has no XML prolog and no fixed size.
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[^"]*"', "", text, count=2)
    # The page chooses the font. A hundredth of a point is enough.
    text = re.sub(r"font-family: [^;\"]*; ", "", text)
    text = re.sub(r' (d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    # Another figure of the page would repeat the names of groups.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace(_INK, "currentColor")
