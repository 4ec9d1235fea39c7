"""Every example in docstrings, README and docs runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import kriterion

PROJECT = Path(__file__).parent.parent
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
MODULES = [
    m.name
    for m in pkgutil.walk_packages(kriterion.__path__, "kriterion.")
    if not m.name.startswith("kriterion.backend.")
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def blocks():
    for page in PAGES:
        for index, match in enumerate(
            re.finditer(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        ):
            yield pytest.param(match.group(1), id=f"{page.name}-{index}")


@pytest.mark.parametrize("code", list(blocks()))
def test_code_blocks(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def test_the_first_screen_of_the_readme_shows_two_commands():
    first = PROJECT.joinpath("README.md").read_text().split("```python")[0]
    commands = re.findall(r"^```sh\n(.*?)^```", first, re.MULTILINE | re.DOTALL)
    assert [c.split("#")[0].strip() for block in commands for c in block.strip().splitlines()] == ["make", "make test"]
