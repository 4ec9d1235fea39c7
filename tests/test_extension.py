"""The example package: installed as any other is, outside of the tree, it passes the suites."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import pytest

# A package is installed.
pytestmark = pytest.mark.slow

EXTENSION = Path(__file__).parent.parent / "examples" / "extension"


def test_an_extension_passes_the_suites(tmp_path):
    source, installed, tests = (tmp_path / name for name in ("source", "installed", "tests"))
    shutil.copytree(EXTENSION, source, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*pip, installed, source], check=True, capture_output=True, timeout=300)
    # Away from the source: it is the installed package that is imported.
    tests.mkdir()
    shutil.move(source / "test_minimand_example.py", tests)
    # Keras's `set_random_seed` imports TensorFlow wherever it is installed, which takes long.
    if keras.backend.backend() != "tensorflow":
        (tests / "conftest.py").write_text("import sys\n\nsys.modules['tensorflow'] = None\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests],
        env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
