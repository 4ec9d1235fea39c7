"""The command `minimand`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import keras

try:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from typer import Argument, Option, Typer
except ImportError as error:  # pragma: no cover - a test runs this in an environment without the extra
    sys.exit(f"The command needs the package {error.name!r}. Install the extra: pip install 'minimand[study]'")

import minimand
from minimand.study import BUILT_IN, Results, Study, load_data, load_results, write_page
from minimand.study._candidates import choose, default_candidates, read_candidates
from minimand.study._engines import engine_named
from minimand.study._settings import StudyError, Tuning, counted, wilcoxon_pruner
from minimand.study._study import progress
from minimand.study._tables import inspection, read_table, typed

app = Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find out which training objective helps on your data.",
)


def main() -> None:
    """Run the command; a mistake of the user ends it with one line of text and exit code 2."""
    try:
        app()
    except StudyError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted. Run the same command again to resume the study.")
        sys.exit(130)


@app.command()
def study(
    data: Annotated[
        str, Argument(help="Built-in data set (see `minimand list`), table, NPZ file or folder of images.")
    ],
    target: Annotated[str | None, Option(help="Column to predict, or several: a,b. Required for tables.")] = None,
    task: Annotated[
        str | None, Option(help="regression, binary, multiclass or multilabel; by default inferred.")
    ] = None,
    groups: Annotated[str | None, Option(help="Column of groups; none is in two parts of a split.")] = None,
    time: Annotated[str | None, Option(help="Column of times; test rows come last, in windows that expand.")] = None,
    test: Annotated[str | None, Option(help="File or folder with the test set.")] = None,
    weights: Annotated[str | None, Option(help="Column of weights of rows.")] = None,
    labels: Annotated[
        Path | None, Option(help="CSV file of image names and labels, if no folders are classes.")
    ] = None,
    image_size: Annotated[int | None, Option(help="Height and width to which images are resized.")] = None,
    augment: Annotated[bool, Option("--augment", help="Flip and shift training images at random.")] = False,
    seeds: Annotated[int, Option(help="Number of train/validation/test splits.")] = 10,
    repeats: Annotated[int, Option(help="Trainings on each split.")] = 1,
    epochs: Annotated[int, Option(help="Epochs of each training.")] = 60,
    batch_size: Annotated[int, Option(help="Examples per step.")] = 32,
    candidates: Annotated[str | None, Option(help="Names to compare, separated by commas; by default all.")] = None,
    candidates_file: Annotated[Path | None, Option(help="TOML file with your own candidates.")] = None,
    model: Annotated[
        str | None, Option(help="module:function(input_shape, outputs) that returns a Keras model.")
    ] = None,
    corrupt_targets: Annotated[float, Option(help="Fraction of the training targets to corrupt.")] = 0.0,
    metric: Annotated[str | None, Option(help="Metric of the verdict: mae, roc_auc, pinball_0.9, ...")] = None,
    select: Annotated[str | None, Option(help="Metric on validation rows that selects the epoch.")] = None,
    patience: Annotated[int | None, Option(help="Epochs without improvement that end a training.")] = None,
    tune: Annotated[int | None, Option(help="Hyperparameter trials of each candidate, on validation rows.")] = None,
    prune: Annotated[bool, Option("--prune", help="End trials that are likely worse (Wilcoxon's test).")] = False,
    storage: Annotated[str | None, Option(help="Database URL or journal file that shares trials.")] = None,
    engine: Annotated[str, Option(help="auto, local, processes (this machine) or ray (RAY_ADDRESS).")] = "auto",
    workers: Annotated[int | None, Option(help="Number of processes; by default one for each core.")] = None,
    out: Annotated[Path | None, Option(help="Folder of the study; by default studies/NAME.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Compare training objectives on DATA.

    If a study is interrupted, run the same command again to resume it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    minimand.backend.keep_compiled_programs(cache / "minimand")
    # A candidate of the file replaces the default one of its name.
    available = default_candidates()
    if candidates_file is not None:
        available += read_candidates(candidates_file)
    names = [name.strip() for name in candidates.split(",") if name.strip()] if candidates is not None else None
    compared = choose(names, available)
    training, tuning = engine_named(engine, workers), _tuning(tune, prune, storage)
    read = load_data(
        data,
        target=target,
        task=task,
        groups=groups,
        time=time,
        test=test,
        weights=weights,
        labels=labels,
        image_size=image_size,
    )
    folder = out or Path("studies") / (read.name + (f"-corrupt-{corrupt_targets:g}" if corrupt_targets else ""))
    console = Console(stderr=as_json, highlight=False)
    comparing = Study(
        model,
        read,
        candidates=compared,
        metric=metric,
        select=select,
        seeds=seeds,
        repeats=repeats,
        epochs=epochs,
        batch_size=batch_size,
        patience=patience,
        corrupt_targets=corrupt_targets,
        augment=augment,
        folder=folder,
        engine=training,
        tuning=tuning,
    )
    console.print(
        f"[bold]{escape(read.name)}[/]: {read.task}, {counted(read.rows, 'row')}, {comparing.problem.inputs}; "
        f"{counted(len(comparing.candidates), 'candidate')} x {counted(seeds, 'seed')} x {counted(epochs, 'epoch')}"
        + (
            f", after {counted(tuning.trials, 'trial')} each on {counted(tuning.splits, 'other split')}"
            if tuning
            else ""
        )
    )
    for note in (*comparing.notes, *(f"{name} is left out: {why}" for name, why in comparing.left_out.items())):
        console.print(f"note: {escape(note)}")
    with progress(comparing, Console(stderr=True)) as callbacks:
        results = comparing.run(*callbacks, command=shlex.join(["minimand", *sys.argv[1:]]))
    _show(results, folder, console, as_json)


@app.command()
def inspect(data: Annotated[str, Argument(help="Table.")]) -> None:
    """Show what a study makes of each column of a table."""
    table = _table()
    for name in ("column", "kind", "missing", "distinct", "example", "treatment"):
        numbers = name in ("missing", "distinct")
        table.add_column(name, justify="right" if numbers else "left", overflow="fold", no_wrap=numbers)
    for row in inspection(typed(read_table(Path(data)))).iter_rows():
        *cells, treatment, note = (escape(str(cell)) for cell in row)
        note = note.removesuffix(", so the column is left out")
        table.add_row(*cells, f"{treatment}: {note}" if note else treatment)
    Console(highlight=False).print(table)


@app.command()
def report(folder: Annotated[Path, Argument(help="Folder of a finished study.")]) -> None:
    """Write the page of a study again from its stored results."""
    _show(load_results(folder), folder, Console(highlight=False))


def _tuning(trials: int | None, prune: bool, storage: str | None) -> Tuning | None:
    if trials is not None:
        return Tuning(trials, storage=storage, pruner=wilcoxon_pruner() if prune else None)
    if prune or storage is not None:
        raise StudyError(f"{'--prune' if prune else '--storage'} needs the trials of --tune. Give --tune N too.")
    return None


def _show(results: Results, folder: Path, console: Console, as_json: bool = False) -> None:
    """Write the page, and print the results."""
    page = write_page(results, folder)
    if as_json:
        found = {
            "data": results.data["name"],
            "task": results.task,
            "metric": results.metric.key,
            "verdict": results.verdict,
            "winner": results.comparison.winner.name,
            "candidates": [
                {**dataclasses.asdict(row), "candidate": row.candidate.name} for row in results.comparison.rows
            ],
            "left_out": results.left_out,
            "report": str(page),
            "results": str(folder / "results.parquet"),
        }
        # JSON has no NaN.
        print(json.dumps(json.loads(json.dumps(found), parse_constant=lambda constant: None), indent=2))
        return
    table = _table()
    table.add_column("candidate", overflow="fold")
    titles = [metric.title.replace(" ", "\n") for metric in results.metrics]
    for title in (*titles, f"{results.metric.title} -\nbaseline's", "p", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    for index, row in enumerate(results.comparison.rows):
        d = row.differences[results.metric.key]
        cells = [_number(row.means[metric.key]) for metric in results.metrics]
        half = f" ± {d.high - d.mean:.2g}" if math.isfinite(d.high) else ""
        cells += [f"{d.mean:+.2g}{half}", f"{d.p_value:.2g}"] if index else ["", ""]
        style = "bold green" if row in results.comparison.better else ""
        table.add_row(row.candidate.name, *cells, f"x{row.cost:.2f}", style=style)
    for name, means in results.references.items():
        table.add_row(name, *(_number(means[metric.key]) for metric in results.metrics), "", "", "", style="dim")
    console.print(table)
    console.print(f"\n{escape(results.verdict)}\n\nReport: {page}", soft_wrap=True)


def _table() -> Table:
    """A table that fits into 80 columns."""
    return Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _number(mean: float) -> str:
    return f"{mean:.3f}" if abs(mean) < 1 else f"{mean:.4g}"


@app.command(name="list")
def list_components() -> None:
    """Show all components, candidates and built-in data sets, with one line for each."""
    for kind in ("losses", "transforms", "regularizers", "optimizers"):
        module = getattr(minimand, kind)
        parts = ((name, (getattr(module, name).__doc__ or "").split("\n")[0]) for name in module.__all__)
        _print_rows(f"minimand.{kind}", ("name", "description"), parts)
    described = ((candidate.name, candidate.summary) for candidate in default_candidates())
    _print_rows("candidates of a study", ("name", "description"), described)
    _print_rows("built-in data", ("name", "task"), BUILT_IN.items())


@app.command()
def doctor() -> None:
    """Show versions, backend and devices, and the packages that are missing for each feature."""
    rows = [
        ("minimand", minimand.__version__),
        ("python", sys.version.split()[0]),
        ("keras", keras.__version__),
        ("backend", f"{keras.backend.backend()} (environment variable KERAS_BACKEND)"),
        ("devices", ", ".join(minimand.backend.devices())),
    ]
    for feature, packages in _PACKAGES.items():
        for package in packages:
            found = f"missing: pip install 'minimand[{feature}]'"
            # A package may be installed as its build for CPUs.
            for name in (f"{package}-cpu", package):
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                    found = importlib.metadata.version(name)
            rows.append((f"{package} ({feature})", found))
    _print_rows("minimand doctor", ("item", "found"), rows)


_PACKAGES = {
    "jax": ["jax"],
    "tensorflow": ["tensorflow"],
    "torch": ["torch"],
    "ray": ["ray"],
    "tune": ["optuna"],
    "study": ["filelock", "jinja2", "loky", "matplotlib", "polars", "rich", "scikit-learn", "scipy", "typer"],
}


def _print_rows(title: str, heads: tuple[str, str], rows: Iterable[tuple[Any, Any]]) -> None:
    table = Table(*heads, title=title, title_justify="left")
    for name, text in rows:
        table.add_row(escape(name), escape(text))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
