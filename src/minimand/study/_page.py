"""The page of a study: one self-contained HTML file with the verdict first, then its evidence."""

from __future__ import annotations

import math
from pathlib import Path

import jinja2

from minimand.study._candidates import Candidate
from minimand.study._results import Results, whole_file
from minimand.study._settings import counted
from minimand.study._training import DIVERGED

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("minimand.study", "."),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters["counted"] = counted


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
        >>> from minimand.study import Study, mlp, write_page
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> study = Study(mlp, "iris", candidates=[], seeds=2, epochs=1, folder=folder, engine="local")
        >>> write_page(study.run(), folder).name
        'index.html'
    """
    html = _TEMPLATES.get_template("page.html").render(
        results=results,
        comparison=results.comparison,
        code=code_for(results.comparison.winner, results),
        figure=results.figure,
        left_out=_left_out(results),
        validation=results.selection.title,
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
                f"{name}: {len(seeds)} of {counted(row.runs, 'run')} diverged (seeds {', '.join(seeds)}). They are in "
                "no mean and in no difference. A candidate with more of them than the baseline is not called better."
            )
        trials = results.tuning.get(name, {}).get("trials", [])
        diverged = sum(trial["score"] is not None and not math.isfinite(trial["score"]) for trial in trials)
        pruned = sum(trial["score"] is None for trial in trials)
        of_all = f"of {counted(len(trials), 'trial')}"
        if diverged:
            left_out.append(f"{name}: {diverged} {of_all} diverged on a split and could not be chosen.")
        if pruned:
            left_out.append(f"{name}: {pruned} {of_all} ended early because they were likely worse.")
        if trials and results.tuning[name]["chosen"] is None:
            left_out.append(f"{name}: no trial could be chosen, so the candidate was judged as it was given.")
    return [*results.data["notes"], *left_out]


def code_for(candidate: Candidate, results: Results) -> str:
    """A script that trains the candidate on the first split, as the study does."""
    # A nested function, a lambda, an object or a function of a notebook cannot be imported.
    importable = results.model["name"].isidentifier() and results.model["module"] != "__main__"
    return _TEMPLATES.get_template("script.txt").render(candidate=candidate, results=results, importable=importable)
