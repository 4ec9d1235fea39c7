"""The page of a study: one self-contained HTML file with the verdict first, then its evidence."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import jinja2

from minimand.study._candidates import Candidate
from minimand.study._figures import results_figure
from minimand.study._metrics import selection_metric
from minimand.study._results import Results, whole_file
from minimand.study._training import DIVERGED


def write_page(results: Results, folder: Path) -> Path:
    """Write `index.html`, a page that opens offline, into a folder.

    Use it to show a study to others.

    Args:
        results: from `Study.run` or `load_results`.
        folder: an existing folder.

    Returns:
        The path of the page.

    Raises:
        StudyError: the file cannot be written.

    Examples:
        >>> import pathlib, tempfile
        >>> from minimand.study import Candidate, Settings, Study, mlp, write_page
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> arguments = [Candidate("baseline")], Settings(seeds=2, epochs=1)
        >>> study = Study(mlp, "iris", *arguments, folder=folder, engine="local")
        >>> write_page(study.run(), folder).name
        'index.html'
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("minimand.study", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    html = environment.get_template("page.html").render(
        results=results,
        comparison=results.comparison,
        code=code_for(results.comparison.winner, results),
        figure=partial(results_figure, results),
        left_out=_left_out(results),
        validation=selection_metric(results.task).title,
    )
    page = folder / "index.html"
    with whole_file(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page


def _left_out(results: Results) -> list[str]:
    """Everything that the numbers do not count, with the reason."""
    left_out = [f"{name}: {reason}" for name, reason in results.left_out.items()]
    for row in results.comparison.rows:
        name = row.candidate.name
        seeds = [str(run.seed) for run in results.runs if run.candidate == name and run.status == DIVERGED]
        if seeds:
            left_out.append(
                f"{name}: {len(seeds)} of {row.runs} runs diverged (seeds {', '.join(seeds)}). They are in no mean and "
                "in no difference. A candidate with more of them than the baseline is not called better."
            )
        trials = results.tuning.get(name, {}).get("trials", [])
        diverged = sum(trial["score"] is not None and not math.isfinite(trial["score"]) for trial in trials)
        pruned = sum(trial["score"] is None for trial in trials)
        if diverged:
            left_out.append(f"{name}: {diverged} of {len(trials)} trials diverged on a split and could not be chosen.")
        if pruned:
            left_out.append(f"{name}: {pruned} of {len(trials)} trials ended early because they were likely worse.")
        if trials and results.tuning[name]["chosen"] is None:
            left_out.append(f"{name}: no trial could be chosen, so the candidate was judged as it was given.")
    return [*results.data["notes"], *left_out]


def code_for(candidate: Candidate, results: Results) -> str:
    """A script that trains the candidate on the first split, as the study does."""
    data, settings, model = results.data, results.settings, results.model
    arguments = f", target={data['target']!r}, task={data['task']!r}" if data["target"] else ""
    backend = results.description["versions"]["backend"].split()[0]
    build, origin = model["name"], f"from {model['module']} import {model['name']}"
    # A nested function, a lambda, an object or a function of a notebook cannot be imported.
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
