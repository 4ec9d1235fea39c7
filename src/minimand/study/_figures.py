"""Figures of a study, as SVG that takes its text colour from the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from minimand.study._metrics import selection_metric
from minimand.study._results import Results
from minimand.study._run import Run

# Okabe and Ito's palette, that colour-blind readers can tell apart; the baseline is grey.
_COLOURS = ("#8a8a8a", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a800")
# Stands for the page's own text colour until the SVG is written.
_INK = "#010203"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "minimand",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def differences_figure(results: Results) -> str:
    """Paired differences to the baseline with their intervals, and each split's difference as a dot."""
    metric = results.metric
    baseline_row, *others = results.comparison.rows
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, 1.0 + 0.42 * max(len(others), 1)), layout="constrained")
        axes = figure.subplots()
        baseline = _by_seed(results.runs, baseline_row.candidate.name)
        for index, row in enumerate(others):
            d = row.differences[metric.key]
            colour = _colour(index + 1)
            runs = _by_seed(results.runs, row.candidate.name)
            dots = [runs[s].test[metric.key] - baseline[s].test[metric.key] for s in runs if s in baseline]
            finite = [dot for dot in dots if math.isfinite(dot)]
            axes.plot(finite, [index] * len(finite), "o", color=colour, alpha=0.35, markersize=4)
            if math.isfinite(d.low):
                axes.plot([d.low, d.high], [index, index], color=colour, linewidth=2.5, solid_capstyle="butt")
            axes.plot([d.mean], [index], "D", color=colour, markersize=6)
        axes.axvline(0.0, color=_INK, linewidth=0.8)
        axes.set_yticks(range(len(others)), [row.candidate.name for row in others])
        axes.set_ylim(len(others) - 0.4, -0.6)
        better = "right" if metric.greater_is_better else "left"
        axes.set_xlabel(f"{metric.title} minus the baseline's ({better} is better)")
        return _svg(figure)


def curves_figure(results: Results) -> str:
    """Validation metric by epoch: the median over seeds, and the band between the quartiles."""
    metric = selection_metric(results.task)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, 4.2), layout="constrained")
        axes = figure.subplots()
        for index, candidate in enumerate(results.candidates):
            curves = _curves(results, candidate.name, metric.key)
            epochs = 1 + np.flatnonzero(np.isfinite(curves).any(axis=0))
            curves = curves[:, epochs - 1]
            low, middle, high = np.nanpercentile(curves, [25, 50, 75], axis=0)
            axes.plot(epochs, middle, color=_colour(index), linewidth=1.6, label=candidate.name)
            axes.fill_between(epochs, low, high, color=_colour(index), alpha=0.08, linewidth=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"validation {metric.title}")
        axes.legend(ncols=2, fontsize=9)
        return _svg(figure)


def cost_figure(results: Results) -> str:
    """The difference to the baseline against what an epoch costs."""
    metric = results.metric
    baseline, *others = results.comparison.rows
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0.0, color=_INK, linewidth=0.8)
        axes.plot([baseline.cost], [0.0], "s", color=_colour(0), label=baseline.candidate.name)
        for index, row in enumerate(others, 1):
            d = row.differences[metric.key]
            if math.isfinite(d.low):
                axes.plot([row.cost, row.cost], [d.low, d.high], color=_colour(index), linewidth=1.5, alpha=0.6)
            axes.plot([row.cost], [d.mean], "D", color=_colour(index), markersize=6, label=row.candidate.name)
        axes.set_xlabel("time of an epoch over the baseline's")
        better = "up" if metric.greater_is_better else "down"
        axes.set_ylabel(f"{metric.title} minus the baseline's ({better} is better)")
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)
        return _svg(figure)


def logs_figure(results: Results, candidate: str) -> str | None:
    """Each epoch of a candidate's runs: its losses, and what else it logs, as shapes or noise scales."""
    validation = selection_metric(results.task)
    keys = [key for key in _first_epoch(results, candidate) if key not in ("epoch", "loss", validation.key)]
    panels = {validation.key: f"validation {validation.title}", "loss": "training objective"}
    panels |= {key: key for key in keys}
    index = [each.name for each in results.candidates].index(candidate)
    rows = math.ceil(len(panels) / 2)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, 2.6 * rows), layout="constrained")
        every = figure.subplots(rows, 2, squeeze=False).ravel()
        for axes, (key, title) in zip(every, panels.items(), strict=False):
            for curve in _curves(results, candidate, key):
                axes.plot(np.arange(1, len(curve) + 1), curve, color=_colour(index), alpha=0.6, linewidth=1.2)
            axes.set_xlabel("epoch")
            axes.set_ylabel(title)
        for axes in every[len(panels) :]:
            axes.set_axis_off()
        return _svg(figure)


def sensitivity_figure(results: Results, candidate: str) -> str | None:
    """Trials' validation scores by each number that was searched; None where nothing was tuned."""
    tuned = results.tuning.get(candidate)
    if tuned is None:
        return None
    index = [each.name for each in results.candidates].index(candidate)
    scored = [i for i, t in enumerate(tuned["trials"]) if t["score"] is not None and math.isfinite(t["score"])]
    rows = math.ceil(len(tuned["ranges"]) / 2)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, 2.6 * rows), layout="constrained")
        every = figure.subplots(rows, 2, squeeze=False, sharey=True).ravel()
        for axes, (path, (low, _)) in zip(every, tuned["ranges"].items(), strict=False):
            numbers = [tuned["trials"][i]["numbers"][path] for i in scored]
            scores = [tuned["trials"][i]["score"] for i in scored]
            axes.plot(numbers, scores, "o", color=_colour(index), alpha=0.6, markersize=5)
            if tuned["chosen"] is not None:
                chosen = tuned["trials"][tuned["chosen"]]
                at = [chosen["numbers"][path]], [chosen["score"]]
                axes.plot(*at, "o", color=_INK, fillstyle="none", markersize=11)
            if low > 0:
                axes.set_xscale("log")
            axes.set_xlabel(path)
            axes.set_ylabel(f"validation {selection_metric(results.task).title}")
        for axes in every[len(tuned["ranges"]) :]:
            axes.set_axis_off()
        return _svg(figure)


def _first_epoch(results: Results, candidate: str) -> dict[str, Any]:
    return next((run.epochs[0] for run in _runs(results, candidate)), {})


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _runs(results: Results, candidate: str) -> list[Run]:
    return [run for run in results.runs if run.candidate == candidate]


def _by_seed(runs: list[Run], candidate: str) -> dict[int, Run]:
    return {run.seed: run for run in runs if run.candidate == candidate}


def _curves(results: Results, candidate: str, key: str) -> np.ndarray:
    """(seeds, epochs), NaN after the end of a run that diverged."""
    curves = np.full((results.settings.seeds, results.settings.epochs), np.nan)
    for index, run in enumerate(_runs(results, candidate)):
        values = [row.get(key, math.nan) for row in run.epochs]
        curves[index, : len(values)] = values
    return curves


FIGURES: dict[str, Callable[[Results], str | None]] = {
    "differences": differences_figure,
    "cost": cost_figure,
    "curves": curves_figure,
}
FIGURES_OF_CANDIDATES: dict[str, Callable[[Results, str], str | None]] = {
    "logs": logs_figure,
    "sensitivity": sensitivity_figure,
}


def _svg(figure: Figure) -> str:
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # Inline: no XML prolog, no fixed size; the page's text colour.
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    # The page's fonts; and a hundredth of a point is enough.
    text = re.sub(r"font-family: [^;\"]*; ", "", text)
    text = re.sub(r' (d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    # Names of groups would be there again in the next figure of a page.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace(_INK, "currentColor")
