"""A module imports from its layer and lower ones, without circles; frameworks stay in backend/, Keras's privates in _keras."""

import ast
import graphlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import keras
import pytest

import minimand
from minimand._default_backend import choose_default_backend, require_keras
from tests.helpers import told

ROOT = Path(minimand.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
FRAMEWORKS = {"jax", "tensorflow", "torch"}
# By the first part of a module's path. Parts of one layer may import each other.
LAYERS = [
    {"backend", "_batches", "_config", "_default_backend", "_keras", "_objective", "_ops", "_scope", "_selection", "_state",
     "_validation"},
    {"losses", "regularizers", "optimizers", "gradients", "metrics", "uncertainty", "sparsity", "parametrizations"},
    {"transforms", "_optimizer", "_sampling"},
    {"trainer"},
    {"study", "callbacks", "testing"},
    {"cli"},
    {"__init__"},
]  # fmt: skip
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
PUBLIC = {"trainer", "uncertainty", "parametrizations", "cli"}


def name_of(path):
    """The module's name; a package's is that of its folder."""
    parts = ["minimand", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


NAMES = {name_of(path): path for path in MODULES}


def imports(nodes):
    """The absolute names that these statements import, wherever in them."""
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_its_layer_and_lower_ones(path):
    own = part_of(path)
    for name in imports([ast.parse(path.read_text())]):
        parts = name.split(".")
        if parts[0] in FRAMEWORKS:
            assert own == "backend", f"{path} imports {name}"
        if name.startswith("keras.src"):
            assert own == "_keras", f"{path} imports {name}, a private name of Keras"
        if parts[0] == "minimand" and len(parts) > 1:
            # Names that `minimand` itself makes are what its modules have.
            other = parts[1] if parts[1] in LAYER else "__init__"
            if own != other:
                assert LAYER[other] <= LAYER[own], f"{path} imports {name} from a higher layer"
                assert other != "testing", f"{path} imports {name}, which is for tests"


def executed(name):
    """The package's modules that run when the module is imported, before it has run itself."""
    body = ast.parse(NAMES[name].read_text()).body
    later = {"FunctionDef", "ClassDef"}
    run = [n for n in body if type(n).__name__ not in later and not ast.unparse(n).startswith("if TYPE_CHECKING:")]
    for imported in imports(run):
        parts = imported.split(".")
        # A module's packages run before it, unless they have begun to: those that it shares with the importing one.
        prefixes = [".".join(parts[: count + 1]) for count in range(1, len(parts))]
        yield from (p for p in prefixes if p in NAMES and p != name and not name.startswith(f"{p}."))


def test_no_module_imports_itself_through_others():
    order = graphlib.TopologicalSorter({name: set(executed(name)) for name in NAMES if name != "minimand"})
    # Raises a `CycleError` that names the modules of a circle.
    order.prepare()


def test_modules_are_private_unless_listed():
    """What is public of a package is in its `__init__`."""
    for path in MODULES:
        *folders, module = path.relative_to(ROOT).with_suffix("").parts
        if folders[:1] != ["backend"] and module != "__init__":
            public = not folders and module in PUBLIC
            assert module.startswith("_") != public, f"{path} is {'not ' * public}private"


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


def test_keras_must_be_as_new_as_the_project_file_asks(monkeypatch):
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    oldest = next(each.removeprefix("keras>=") for each in project["dependencies"] if each.startswith("keras>="))
    for version in (oldest, f"{oldest}.4", "3.100.0", "4.0rc1"):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, version=version: version)
        require_keras()
    first, second = map(int, oldest.split("."))
    for version in ("2.15.0", f"{first}.{second - 1}.3"):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, version=version: version)
        with told(ImportError, [f"Keras {oldest}", f"Keras {version}", f"'keras>={oldest}'"]):
            require_keras()


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
