"""What a study found, and all that its page says of how: enough to show it without the data."""

from __future__ import annotations

import html
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import polars as pl

import minimand
from minimand.study._candidates import Candidate
from minimand.study._comparison import Comparison
from minimand.study._errors import StudyError
from minimand.study._metrics import metrics_of
from minimand.study._run import Run
from minimand.study._settings import Settings


class Results:
    """The runs of a study, compared.

    Args:
        description: of data, settings, model, candidates, command and versions, as it is stored.
        runs: all, in the order of candidates and seeds.

    Examples:
        >>> import tempfile
        >>> from minimand.study import Candidate, Settings, Study, mlp
        >>> arguments = [Candidate("baseline")], Settings(seeds=2, epochs=1)
        >>> study = Study(mlp, "iris", *arguments, folder=tempfile.mkdtemp(), engine="local")
        >>> len(study.run().runs)
        2
    """

    def __init__(self, description: Mapping[str, Any], runs: Sequence[Run]) -> None:
        self.description, self.runs = description, list(runs)
        self.data, self.model = description["data"], description["model"]
        self.task: str = self.data["task"]
        self.settings = Settings(**description["settings"])
        # By candidate, as `Tuned.to_dict`; empty where nothing was tuned.
        self.tuning: Mapping[str, Any] = description.get("tuning") or {}
        # Candidates that were not trained, by name, and why.
        self.left_out: Mapping[str, str] = description.get("left_out") or {}
        self.candidates = tuple(Candidate.from_dict(each) for each in description["candidates"])
        self.metrics = metrics_of(self.task)
        self.metric = next(metric for metric in self.metrics if metric.key == description["metric"])
        self.comparison = Comparison(
            self.candidates, self.runs, self.metrics, self.metric, description["test_over_train"]
        )

    @property
    def verdict(self) -> str:
        """One or two sentences."""
        return self.comparison.verdict

    def table(self) -> pl.DataFrame:
        """A row a candidate: means of the test metrics, and the difference that the verdict is about."""
        rows = []
        for row in self.comparison.rows:
            d = row.differences[self.metric.key]
            difference = {"difference": d.mean, "low": d.low, "high": d.high, "p_value": d.p_value}
            ends = {"cost": row.cost, "runs": row.runs, "diverged": row.diverged}
            rows.append({"candidate": row.candidate.name, **row.means, **difference, **ends})
        return pl.DataFrame(rows)

    def figure(self, name: str, candidate: str | None = None) -> Svg:
        """A figure of the page, which notebooks show; empty where there is nothing to draw.

        Args:
            name: `"differences"`, `"cost"` or `"curves"`; of a candidate `"logs"` (what it logs by epoch, as a learned
                shape) or `"sensitivity"` (trials' scores by each number that was searched).
            candidate: name of the candidate that the figure is about, if it is about one.

        Raises:
            StudyError: there is no such figure.
        """
        from minimand.study._figures import FIGURES, FIGURES_OF_CANDIDATES

        if candidate is None and name in FIGURES:
            return Svg(FIGURES[name](self) or "")
        if candidate in [each.name for each in self.candidates] and name in FIGURES_OF_CANDIDATES:
            return Svg(FIGURES_OF_CANDIDATES[name](self, str(candidate)) or "")
        raise StudyError(
            f"There is no figure {name!r}{f' of {candidate!r}' if candidate else ''}. Figures: {', '.join(FIGURES)}; "
            f"of a candidate: {', '.join(FIGURES_OF_CANDIDATES)}."
        )

    def _repr_html_(self) -> str:
        """For notebooks: the verdict, the table, and what was left out."""
        left_out = [f"<p>{html.escape(f'{name} was left out: {why}')}</p>" for name, why in self.left_out.items()]
        return f"<p>{html.escape(self.verdict)}</p>{self.table()._repr_html_()}{''.join(left_out)}"


class Svg(str):
    """The text of a figure."""

    def _repr_html_(self) -> str:
        return str(self)


def versions() -> dict[str, str]:
    """Of what trains, in this process."""
    backend = keras.backend.backend()
    package = next((n for n in (backend, f"{backend}-cpu") if _installed(n)), backend)
    return {
        "minimand": minimand.__version__,
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
