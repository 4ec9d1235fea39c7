"""The command `minimand`."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Table
except ImportError as error:  # pragma: no cover - a test runs this in an environment without the extra
    sys.exit(f"The command needs the package {error.name!r}. Install the extra: pip install 'minimand[study]'")

if TYPE_CHECKING:
    from minimand.study import Results, Study, Tuning

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find out which training objective helps on your data.",
)


def main() -> None:
    """Entry point: what a user can mend is told in a line, with exit code 2."""
    from minimand.study._settings import StudyError

    try:
        app()
    except StudyError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted. The same command goes on from here.")
        sys.exit(130)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


_DATA = typer.Argument(help="Built-in (see `minimand list`), or a CSV, Parquet, Arrow or NPZ file.")
_TARGET = typer.Option(help="Column to predict; needed for files.")
_TASK = typer.Option(help="regression or classification; inferred by default.")
_SEEDS = typer.Option(help="Number of train/validation/test splits.")
_EPOCHS = typer.Option(help="Epochs of each training.")
_BATCH_SIZE = typer.Option(help="Examples a step.")
_CANDIDATES = typer.Option(help="Names to compare, with commas between; all by default.")
_FILE = typer.Option(help="TOML file with candidates of your own.")
_PATIENCE = typer.Option(help="Epochs without a better one that end a training; by default none do.")
_ENGINE = typer.Option(help="auto, local, processes (on this machine) or ray (a cluster: RAY_ADDRESS).")
_WORKERS = typer.Option(help="Processes of --engine processes; by default one for each core.")
_TUNE = typer.Option(help="Trials of hyperparameters for each candidate, chosen on validation rows; by default none.")
_PRUNE = typer.Option("--prune", help="End trials between splits that are likely worse (Wilcoxon's test).")
_STORAGE = typer.Option(help="Database URL or journal file in which processes share trials; by default in the folder.")
_MODEL = typer.Option(help="module:function(features, outputs) that returns a Keras model.")
_CORRUPT = typer.Option(help="Fraction of the training targets to corrupt.")
_METRIC = typer.Option(help="Metric that the verdict is about: mae, rmse, accuracy, ...")
_OUT = typer.Option(help="Folder of the study; by default studies/NAME.")
_JSON = typer.Option("--json", help="Print the results as JSON.")


@app.command()
def study(
    data: Annotated[str, _DATA],
    target: Annotated[str | None, _TARGET] = None,
    task: Annotated[str | None, _TASK] = None,
    seeds: Annotated[int, _SEEDS] = 10,
    epochs: Annotated[int, _EPOCHS] = 60,
    batch_size: Annotated[int, _BATCH_SIZE] = 32,
    candidates: Annotated[str | None, _CANDIDATES] = None,
    candidates_file: Annotated[Path | None, _FILE] = None,
    model: Annotated[str | None, _MODEL] = None,
    corrupt_targets: Annotated[float, _CORRUPT] = 0.0,
    metric: Annotated[str | None, _METRIC] = None,
    patience: Annotated[int | None, _PATIENCE] = None,
    tune: Annotated[int | None, _TUNE] = None,
    prune: Annotated[bool, _PRUNE] = False,
    storage: Annotated[str | None, _STORAGE] = None,
    engine: Annotated[str, _ENGINE] = "auto",
    workers: Annotated[int | None, _WORKERS] = None,
    out: Annotated[Path | None, _OUT] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Compare training objectives on DATA against the plain one; resumes where it was interrupted."""
    from minimand import backend
    from minimand.study import Settings, Study, StudyError, default_candidates, load_data, mlp, write_page
    from minimand.study._candidates import choose, read_candidates
    from minimand.study._engines import engine_named

    backend.keep_compiled_programs(_cache())
    settings = Settings(seeds, epochs, batch_size, corrupt_targets, metric, patience)
    training, tuning = engine_named(engine, workers), _tuning(tune, prune, storage)
    available = default_candidates()
    if candidates_file is not None:
        own = read_candidates(candidates_file)
        available = (*(c for c in available if c.name not in {o.name for o in own}), *own)
    names = [n.strip() for n in candidates.split(",") if n.strip()] if candidates is not None else None
    if names == []:
        raise StudyError("--candidates is empty. Give names with commas between, or leave the option out.")
    chosen = choose(names, available)
    table = load_data(data, target=target, task=task)
    suffix = f"-corrupt-{corrupt_targets:g}" if corrupt_targets else ""
    folder = out or Path("studies") / f"{table.name}{suffix}"
    console = Console(stderr=as_json, highlight=False)
    comparing = Study(model or mlp, table, chosen, settings, folder=folder, engine=training, tuning=tuning)
    console.print(
        f"[bold]{_escaped(table.name)}[/]: {table.task}, {len(table.target)} rows, {table.features.width} features"
        + (f", {len(table.classes)} classes" if table.classes else "")
        + f"; {len(comparing.candidates)} candidates x {seeds} seeds x {epochs} epochs"
        + (f", after {tune} trials each on {tuning.splits} other splits" if tuning else "")
    )
    for note in (*table.notes, *(f"{name} is left out: {why}" for name, why in comparing.left_out.items())):
        console.print(f"note: {_escaped(note)}")
    results = _train(comparing, console)
    page = write_page(results, folder)
    if as_json:
        print(json.dumps(_as_json(results, page), indent=2))
    else:
        _print_table(results, console)
        console.print(f"\n{_escaped(results.verdict)}\n\nReport: {page}", soft_wrap=True)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a study that has run.")]) -> None:
    """Write the page of a study again, from its results."""
    from minimand.study import load_results, write_page

    console = Console(highlight=False)
    results = load_results(folder)
    _print_table(results, console)
    console.print(f"\n{_escaped(results.verdict)}\n\nReport: {write_page(results, folder)}", soft_wrap=True)


def _tuning(trials: int | None, prune: bool, storage: str | None) -> Tuning | None:
    from minimand.study import StudyError, Tuning, wilcoxon_pruner

    if trials is not None:
        return Tuning(trials, storage=storage, pruner=wilcoxon_pruner() if prune else None)
    if prune or storage is not None:
        raise StudyError(f"{'--prune' if prune else '--storage'} is about the trials of --tune N. Give that too.")
    return None


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimand"


def _train(comparing: Study, console: Console) -> Results:
    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"),
               TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left"))  # fmt: skip
    tuning = comparing.tuning
    runs = comparing.settings.seeds + (tuning.trials * tuning.splits if tuning else 0)
    total = len(comparing.candidates) * runs * comparing.settings.epochs
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=600) as progress:
        bar = progress.add_task(comparing.candidates[0].name, total=total)
        return comparing.run(
            lambda name, epochs: progress.update(bar, advance=epochs, description=name),
            lambda: console.print("Another process works on this study. Waiting for it ..."),
            command=_command(),
        )


def _print_table(results: Results, console: Console) -> None:
    comparison = results.comparison
    key, title = comparison.metric.key, comparison.metric.title
    # Fits into 80 columns.
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("candidate", no_wrap=True)
    for metric in results.metrics:
        table.add_column(metric.title.replace(" ", "\n"), justify="right", no_wrap=True)
    table.add_column(f"{title} -\nbaseline's (95 %)", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for index, row in enumerate(comparison.rows):
        d = row.differences[key]
        means = [row.means[m.key] for m in results.metrics]
        cells = [f"{mean:.3f}" if abs(mean) < 1 else f"{mean:.4g}" for mean in means]
        width = f" ± {d.high - d.mean:.2g}" if math.isfinite(d.high) else ""
        interval = f"{d.mean:+.2g}{width}" if index else ""
        p_value = f"{d.p_value:.2g}" if index else ""
        style = "bold green" if row in comparison.better else ""
        table.add_row(row.candidate.name, *cells, interval, p_value, f"x{row.cost:.2f}", style=style)
    console.print(table)


def _as_json(results: Results, page: Path) -> dict[str, Any]:
    from minimand.study._storage import finite_or_none

    rows = []
    comparison = results.comparison
    for row in comparison.rows:
        differences = {
            key: {k: finite_or_none(getattr(d, k)) for k in ("mean", "low", "high", "p_value")}
            for key, d in row.differences.items()
        }
        rows.append(
            {
                "candidate": row.candidate.name,
                "means": {key: finite_or_none(value) for key, value in row.means.items()},
                "differences": differences,
                "cost": finite_or_none(row.cost),
                "runs": row.runs,
                "diverged": row.diverged,
            }
        )
    return {
        "data": results.data["name"],
        "task": results.task,
        "metric": comparison.metric.key,
        "verdict": comparison.verdict,
        "winner": comparison.winner.name,
        "candidates": rows,
        "left_out": dict(results.left_out),
        "report": str(page),
        "results": str(page.parent / "results.parquet"),
    }


def _command() -> str:
    import shlex

    return shlex.join(["minimand", *sys.argv[1:]])


@app.command(name="list")
def list_components() -> None:
    """Show every component, candidate and built-in data set with one line each."""
    import minimand
    from minimand.study import BUILT_IN, default_candidates

    console = Console(highlight=False)
    for kind in ("losses", "transforms", "regularizers", "optimizers"):
        module = getattr(minimand, kind)
        table = Table("name", "what it does", title=f"minimand.{kind}", title_justify="left")
        for name in module.__all__:
            table.add_row(name, _escaped((getattr(module, name).__doc__ or "").split("\n")[0]))
        console.print(table)
    table = Table("name", "what it does", title="candidates of a study", title_justify="left")
    for candidate in default_candidates():
        table.add_row(candidate.name, _escaped(candidate.summary))
    console.print(table)
    table = Table("name", "task", title="built-in data", title_justify="left")
    for name, kind in BUILT_IN.items():
        table.add_row(name, kind)
    console.print(table)


@app.command()
def doctor() -> None:
    """Show versions, backend and devices, and what is missing for which feature."""
    import keras

    import minimand

    console = Console(highlight=False)
    table = Table("what", "found", title="minimand doctor", title_justify="left")
    table.add_row("minimand", minimand.__version__)
    table.add_row("python", sys.version.split()[0])
    table.add_row("keras", keras.__version__)
    table.add_row("backend", f"{keras.backend.backend()} (environment variable KERAS_BACKEND)")
    table.add_row("devices", ", ".join(minimand.backend.devices()))
    for feature, packages in _PACKAGES.items():
        for package, module in packages.items():
            found = importlib.util.find_spec(module) is not None
            version = _version(package) if found else f"missing: pip install 'minimand[{feature}]'"
            table.add_row(f"{package} ({feature})", _escaped(version))
    console.print(table)


_PACKAGES = {
    "jax": {"jax": "jax"},
    "tensorflow": {"tensorflow": "tensorflow"},
    "torch": {"torch": "torch"},
    "ray": {"ray": "ray"},
    "tune": {"optuna": "optuna"},
    "study": {
        "filelock": "filelock",
        "jinja2": "jinja2",
        "loky": "loky",
        "matplotlib": "matplotlib",
        "polars": "polars",
        "rich": "rich",
        "scikit-learn": "sklearn",
        "scipy": "scipy",
        "typer": "typer",
    },
}


def _version(package: str) -> str:
    for name in (package, f"{package}-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "found"


if __name__ == "__main__":
    main()
