"""A module imports only from lower layers, siblings do not import each other, and frameworks stay in backend/."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import minimand
from minimand._default_backend import choose_default_backend
from tests.helpers import told

ROOT = Path(minimand.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
FRAMEWORKS = {"jax", "tensorflow", "torch"}
# The first entry that a module's path starts with gives its layer.
LAYERS = {
    "_classes": 0, "_default_backend": 0, "_ops": 0, "_state": 0, "_scope": 0, "_selection": 0, "_validation": 0,
    "_structure": 0, "_objective": 0, "_micro_batches": 0, "_layer_calls": 0, "gradients": 1, "backend": 0, "_running_moments": 0, "parametrizations": 0, "predict": 1,
    "losses": 1, "regularizers": 1, "optimizers": 1, "metrics": 1, "sparsity": 1, "transforms": 2, "_optimizer": 2,
    "_sampling": 2, "_training_size": 2, "trainer": 3,
    "testing": 4, "callbacks": 4, "study": 4, "report": 4, "cli": 5, "__init__": 6,
}  # fmt: skip
SIBLINGS = {"losses", "gradients", "regularizers", "optimizers", "metrics", "sparsity"}


def part_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """The absolute names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_lower_layers(path):
    own = part_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] in FRAMEWORKS:
            assert own == "backend", f"{path} imports {name}"
        if parts[0] == "minimand" and len(parts) > 1:
            other = parts[1] if parts[1] in LAYERS else None
            if other is None or own == other:
                continue
            assert LAYERS[other] <= LAYERS[own], f"{path} imports {name} from a higher layer"
            assert other != "testing", f"{path} imports {name}, which is for tests"
            assert not {own, other} <= SIBLINGS, f"{path} imports its sibling {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_are_short(path):
    assert len(path.read_text().splitlines()) <= 400


def test_import_brings_no_framework_but_the_one_in_use_and_no_extra():
    script = """
import sys

def loaded():
    names = ("jax", "tensorflow", "torch", "typer", "polars", "matplotlib", "jinja2", "rich")
    print(*[name for name in names if name in sys.modules])

import keras
loaded()
import minimand
loaded()
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=300)
    # Whatever Keras itself imports, and nothing more.
    keras_alone, with_minimand = map(str.split, done.stdout.splitlines())
    assert with_minimand == keras_alone
    assert keras.backend.backend() in keras_alone


@pytest.mark.parametrize(
    ("environment", "installed", "configured", "expected"),
    [
        ({}, ["jax", "tensorflow", "torch"], None, "jax"),
        ({}, ["tensorflow", "torch"], None, "tensorflow"),
        ({}, ["torch"], "tensorflow", "torch"),
        ({}, ["jax", "torch"], "torch", None),
        ({"KERAS_BACKEND": "torch"}, ["jax", "torch"], None, "torch"),
        ({}, [], None, ["JAX, TensorFlow or PyTorch", "minimand[jax]"]),
        ({"KERAS_BACKEND": "torch"}, ["jax"], None, ["'torch'", "minimand[torch]", "KERAS_BACKEND", "jax"]),
        ({}, [], "torch", ["'torch'", "minimand[torch]"]),
    ],
)
def test_the_backend_is_jax_or_else_what_there_is(environment, installed, configured, expected, tmp_path, monkeypatch):
    """`configured` is in keras.json, `expected` what KERAS_BACKEND is then (None: left alone), or words of an error."""
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    for key, value in ({"KERAS_HOME": str(tmp_path)} | environment).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found" if name in installed else None)
    if configured:
        tmp_path.joinpath("keras.json").write_text(json.dumps({"backend": configured}))
    if isinstance(expected, list):
        with told(ImportError, expected):
            choose_default_backend()
        monkeypatch.setattr(sys, "argv", ["/usr/bin/minimand", "doctor"])
        with told(SystemExit, expected):
            choose_default_backend()
    else:
        choose_default_backend()
        assert os.environ.get("KERAS_BACKEND") == expected
