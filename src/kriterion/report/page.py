"""One self-contained HTML file: verdict first, then what it rests on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import jinja2
import keras

import kriterion
from kriterion.report.figures import curves_figure, differences_figure, logs_figure
from kriterion.study.candidates import Candidate
from kriterion.study.comparison import Comparison
from kriterion.study.models import mlp, model_identity
from kriterion.study.storage import whole_file
from kriterion.study.study import Study


def write_page(study: Study, comparison: Comparison, *, command: str) -> Path:
    """Write `index.html` into the study's folder, and return its path.

    Args:
        study: a study that has run.
        comparison: what its `run` returned.
        command: the command line that made it, shown on the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kriterion.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    html = environment.get_template("page.html").render(
        study=study,
        comparison=comparison,
        code=code_for(comparison.winner, study),
        command=command,
        figures=[
            ("Differences to the baseline", differences_figure(study, comparison.rows), _DIFFERENCES),
            ("Learning curves", curves_figure(study), _CURVES),
            ("What else was logged", logs_figure(study), _LOGS),
        ],
        model="mlp (64-64, dropout 0.1)" if study.build_model is mlp else model_identity(study.build_model),
        notes=_notes(study),
        versions=_versions(),
    )
    page = study.storage.folder / "index.html"
    with whole_file(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page


def _notes(study: Study) -> dict[str, list[str]]:
    """What was not as usual in training, and with which candidates."""
    notes: dict[str, list[str]] = {}
    for run in study.runs:
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


def code_for(candidate: Candidate, study: Study) -> str:
    """A script that trains the candidate on the first split, as the study did."""
    data, settings = study.data, study.settings
    source = repr(data.source)
    arguments = f", target={data.target_name!r}, task={data.task!r}" if data.target_name else ""
    module, model = study.build_model.__module__, study.build_model.__name__
    import_model = "from kriterion.study import mlp" if study.build_model is mlp else f"from {module} import {model}"
    return "\n".join(
        [
            "import os",
            f'os.environ["KERAS_BACKEND"] = "{keras.backend.backend()}"',
            "import keras",
            "import kriterion",
            "from kriterion.study import load_data",
            import_model,
            "",
            f"data = load_data({source}{arguments})",
            f"fold = data.fold(seed=0, corrupt_targets={settings.corrupt_targets!r})",
            f"model = {model}(fold.x_train.shape[1], data.outputs)",
            candidate.code(data.task),
            f"trainer.fit(fold.x_train, fold.y_train, epochs={settings.epochs}, batch_size={settings.batch_size},",
            "            validation_data=(fold.x_validation, fold.y_validation))",
        ]
    )


def _versions() -> dict[str, str]:
    backend = keras.backend.backend()
    package = next((n for n in (backend, f"{backend}-cpu") if _installed(n)), backend)
    return {
        "kriterion": kriterion.__version__,
        "keras": keras.__version__,
        "backend": f"{backend} {_installed(package)}",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
