"""Every example in docstrings, README, docs and examples runs, and every figure is made by code."""

import doctest
import importlib
import json
import pkgutil
import re
import runpy
from pathlib import Path

import pytest

import minimand

PROJECT = Path(__file__).parent.parent
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
EXAMPLES = sorted((PROJECT / "examples").glob("*.py"))
MODULES = [
    m.name for m in pkgutil.walk_packages(minimand.__path__, "minimand.") if not m.name.startswith("minimand.backend.")
]
on_jax = pytest.mark.skipif(minimand.backend.name != "jax", reason="pages and scripts run on JAX")


# Each operation of a docstring is a program of its own on JAX, and takes ten times as long there.
@pytest.mark.skipif(minimand.backend.name != "torch", reason="docstrings run on PyTorch")
@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def blocks():
    """README's are in `make test`, on every backend."""
    for page in PAGES:
        for index, match in enumerate(
            re.finditer(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        ):
            marks = () if page.name == "README.md" else [pytest.mark.slow, on_jax]
            yield pytest.param(match.group(1), id=f"{page.name}-{index}", marks=marks)


@pytest.mark.parametrize("code", list(blocks()))
def test_code_blocks(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def test_the_first_screen_of_the_readme_shows_two_commands():
    first = PROJECT.joinpath("README.md").read_text().split("```python")[0]
    commands = re.findall(r"^```sh\n(.*?)^```", first, re.MULTILINE | re.DOTALL)
    assert [c.split("#")[0].strip() for block in commands for c in block.strip().splitlines()] == ["make", "make test"]


SITE = sorted({*PAGES, *(PROJECT / "docs").rglob("*.md")})


@pytest.mark.parametrize("page", SITE, ids=lambda page: str(page.relative_to(PROJECT)))
def test_a_line_of_code_fits_on_the_page(page):
    """docs/stylesheets/site.css makes room for 88 characters in a window of 1,300 pixels."""
    code = re.findall(r"^ *```[^\n]*\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    included = re.findall(r"^``` \{ \.python \}\n--8<-- \"(examples/[^\"]+)\"$", page.read_text(), re.MULTILINE)
    code += [(PROJECT / name).read_text() for name in included]
    assert [line for block in code for line in block.splitlines() if len(line) > 88] == []


@on_jax
@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_examples(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script))
    assert capsys.readouterr().out
    assert len(script.read_text().splitlines()) < 60


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_notebooks_are_the_examples(script):
    """`make notebooks` has been run."""
    cells = re.split(r"^# %%(?: \[markdown\])?\n", script.read_text(), flags=re.MULTILINE)[1:]
    plain = [re.sub(r"^# ?", "", c, flags=re.MULTILINE) if c.startswith("# ") else c for c in cells]
    notebook = json.loads((script.parent / "notebooks" / f"{script.stem}.ipynb").read_text())
    assert ["".join(cell["source"]) for cell in notebook["cells"]] == [cell.strip() for cell in plain]


def test_figures_are_drawn_and_shown():
    """By a script beside the pages, and on one page each."""
    docs = PROJECT / "docs"
    drawn = re.findall(r'"([\w-]+\.svg)"', "".join(script.read_text() for script in docs.glob("*_figures.py")))
    shown = re.findall(r"\]\(([\w-]+\.svg)\)", "".join(page.read_text() for page in PAGES))
    assert sorted(drawn) == sorted(shown) == sorted(figure.name for figure in docs.glob("*.svg"))


def test_benchmarks_are_named():
    named = re.findall(r"benchmarks/(\w+)\.py|BENCH=(\w+)", (PROJECT / "docs" / "benchmarks.md").read_text())
    # What `make bench` runs by itself.
    assert {a or b for a, b in named} | {"step_time"} == {path.stem for path in (PROJECT / "benchmarks").glob("*.py")}
