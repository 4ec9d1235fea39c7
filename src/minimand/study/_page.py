"""One self-contained HTML file: verdict first, then what it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from minimand.study._candidates import Candidate
from minimand.study._comparison import Row
from minimand.study._metrics import selection_metric
from minimand.study._results import Results
from minimand.study._run import DIVERGED, FINISHED
from minimand.study._storage import whole_file


def write_page(results: Results, folder: Path) -> Path:
    """Write `index.html` into a folder, and return its path."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("minimand.study", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    mlp = results.model["identity"] == "mlp"
    html = environment.get_template("page.html").render(
        results=results,
        comparison=results.comparison,
        code=code_for(results.comparison.winner, results),
        figures=[(title, results.figure(name), caption) for name, title, caption in _FIGURES],
        details=[_detail(results, row) for row in results.comparison.rows],
        left_out=_left_out(results),
        validation=selection_metric(results.task).title,
        model="mlp (64-64, dropout 0.1)" if mlp else results.model["identity"],
        notes=_notes(results),
    )
    page = folder / "index.html"
    with whole_file(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page


def _detail(results: Results, row: Row) -> dict[str, Any]:
    """What the page says of one candidate."""
    candidate = row.candidate
    tuned = results.tuning.get(candidate.name)
    zeros = [run.zeros for run in results.runs if run.candidate == candidate.name and run.status == FINISHED]
    return {
        "row": row,
        "code": candidate.code(results.task),
        "numbers": _numbers(tuned) if tuned else [],
        "zeros": float(np.mean(zeros)) if zeros else 0.0,
        "logs": results.figure("logs", candidate.name),
        "sensitivity": results.figure("sensitivity", candidate.name),
    }


def _numbers(tuned: Mapping[str, Any]) -> list[tuple[str, list[float], float, float | None]]:
    """What was searched: its path and range, the first trial's number and the chosen one's."""
    trials, chosen = tuned["trials"], tuned["chosen"]
    first, best = trials[0]["numbers"], {} if chosen is None else trials[chosen]["numbers"]
    return [(path, ends, first[path], best.get(path)) for path, ends in tuned["ranges"].items()]


def _left_out(results: Results) -> list[str]:
    """What the numbers do not count, and why."""
    left_out = [f"{name}: {reason}" for name, reason in results.left_out.items()]
    for row in results.comparison.rows:
        name = row.candidate.name
        seeds = [str(run.seed) for run in results.runs if run.candidate == name and run.status == DIVERGED]
        if seeds:
            left_out.append(
                f"{name}: {len(seeds)} of {row.runs} runs diverged (seeds {', '.join(seeds)}). They count in no mean "
                "and no difference; who has more of them than the baseline is not called better."
            )
        trials = results.tuning.get(name, {}).get("trials", [])
        diverged = sum(trial["score"] is not None and not math.isfinite(trial["score"]) for trial in trials)
        pruned = sum(trial["score"] is None for trial in trials)
        if diverged:
            left_out.append(f"{name}: {diverged} of {len(trials)} trials diverged on a split, and could not be chosen.")
        if pruned:
            left_out.append(f"{name}: {pruned} of {len(trials)} trials were ended early as likely worse.")
        if trials and results.tuning[name]["chosen"] is None:
            left_out.append(f"{name}: no trial was left to choose; it was judged as it was given.")
    return [*results.data["notes"], *left_out]


def _notes(results: Results) -> dict[str, list[str]]:
    """What was not as usual in training, and with which candidates."""
    notes: dict[str, list[str]] = {}
    for run in results.runs:
        if run.note and run.candidate not in notes.setdefault(run.note, []):
            notes[run.note].append(run.candidate)
    return notes


_DIFFERENCES = (
    "Each dot is one split: the candidate's test result minus the baseline's on the same split, from the same initial "
    "weights and order of batches. The diamond is the mean, the bar its 95 % interval by the corrected resampled "
    "t-test (Nadeau and Bengio 2003), which allows for the overlap of the training sets."
)
_COST = (
    "The same means and intervals against the time of an epoch of training. Calling a step in Keras's fit adds the "
    "same to all, which brings the times closer together."
)
_CURVES = "Median over the seeds and the band between the quartiles. Test results are taken at each run's best epoch."
_FIGURES = (
    ("differences", "Differences to the baseline", _DIFFERENCES),
    ("cost", "Accuracy against cost", _COST),
    ("curves", "Learning curves", _CURVES),
)


def code_for(candidate: Candidate, results: Results) -> str:
    """A script that trains the candidate on the first split, as the study did."""
    data, settings, model = results.data, results.settings, results.model
    arguments = f", target={data['target']!r}, task={data['task']!r}" if data["target"] else ""
    backend = results.description["versions"]["backend"].split()[0]
    build, origin = model["name"], f"from {model['module']} import {model['name']}"
    # A function within another, a lambda, an object or a notebook's function cannot be imported.
    if not build.isidentifier() or model["module"] == "__main__":
        build, origin = "build_model", f"# Define `build_model` here: {model['identity']}"
    return "\n".join(
        [
            "import os",
            f'os.environ["KERAS_BACKEND"] = "{backend}"',
            "import keras",
            "import minimand",
            "from minimand.study import load_data",
            origin,
            "",
            f"data = load_data({data['source']!r}{arguments})",
            f"fold = data.fold(seed=0, corrupt_targets={settings.corrupt_targets!r})",
            f"model = {build}(fold.x_train.shape[1], data.outputs)",
            candidate.code(data["task"]),
            f"trainer.fit(fold.x_train, fold.y_train, epochs={settings.epochs}, batch_size={settings.batch_size},",
            "            validation_data=(fold.x_validation, fold.y_validation))",
        ]
    )
