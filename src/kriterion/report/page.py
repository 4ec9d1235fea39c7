"""One self-contained HTML file: verdict first, then what it rests on."""

from __future__ import annotations

from pathlib import Path

import jinja2

from kriterion.study.candidates import Candidate
from kriterion.study.results import Results
from kriterion.study.storage import whole_file


def write_page(results: Results, folder: Path) -> Path:
    """Write `index.html` into a folder, and return its path."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kriterion.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    mlp = results.model["identity"] == "mlp"
    html = environment.get_template("page.html").render(
        results=results,
        comparison=results.comparison,
        code=code_for(results.comparison.winner, results),
        figures=[(title, results.figure(name), caption) for name, title, caption in _FIGURES],
        model="mlp (64-64, dropout 0.1)" if mlp else results.model["identity"],
        notes=_notes(results),
    )
    page = folder / "index.html"
    with whole_file(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page


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
_CURVES = "Median over the seeds and the band between the quartiles. Test results are taken at each run's best epoch."
_LOGS = (
    "A line for each seed. Of an adaptive robust loss, shape 2 is squared error, 1 pseudo-Huber, 0 Cauchy; the scale "
    "is in units of the standardised target."
)


_FIGURES = (
    ("differences", "Differences to the baseline", _DIFFERENCES),
    ("curves", "Learning curves", _CURVES),
    ("logs", "What else was logged", _LOGS),
)


def code_for(candidate: Candidate, results: Results) -> str:
    """A script that trains the candidate on the first split, as the study did."""
    data, settings, model = results.data, results.settings, results.model
    arguments = f", target={data['target']!r}, task={data['task']!r}" if data["target"] else ""
    backend = results.description["versions"]["backend"].split()[0]
    return "\n".join(
        [
            "import os",
            f'os.environ["KERAS_BACKEND"] = "{backend}"',
            "import keras",
            "import kriterion",
            "from kriterion.study import load_data",
            f"from {model['module']} import {model['name']}",
            "",
            f"data = load_data({data['source']!r}{arguments})",
            f"fold = data.fold(seed=0, corrupt_targets={settings.corrupt_targets!r})",
            f"model = {model['name']}(fold.x_train.shape[1], data.outputs)",
            candidate.code(data["task"]),
            f"trainer.fit(fold.x_train, fold.y_train, epochs={settings.epochs}, batch_size={settings.batch_size},",
            "            validation_data=(fold.x_validation, fold.y_validation))",
        ]
    )
