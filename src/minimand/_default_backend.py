"""Checks before Keras is imported: its version, and the backend, which is JAX unless the user has chosen another."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

BACKENDS = ("jax", "tensorflow", "torch")
OLDEST_KERAS = (3, 12)


def require_keras() -> None:
    """Check the version of Keras.

    Raises:
        ImportError: Keras is older than `OLDEST_KERAS`. The command exits with the message instead.
    """
    # A nightly build has another name, and is new.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found = importlib.metadata.version("keras")
        if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST_KERAS:
            oldest = ".".join(map(str, OLDEST_KERAS))
            _stop(
                f"Minimand needs Keras {oldest} or newer. Received: Keras {found}. Run: pip install 'keras>={oldest}'"
            )


def choose_default_backend() -> None:
    """Set KERAS_BACKEND to jax, or else to an installed backend, unless the user has chosen a backend.

    A user chooses a backend by KERAS_BACKEND, by importing keras first, or by keras.json. The entry "tensorflow" in
    keras.json does not count, because Keras writes it by itself.

    Raises:
        ImportError: the chosen backend is not installed, or no backend is. The command exits with the message instead.
    """
    if "keras" in sys.modules:
        return
    installed = [name for name in BACKENDS if importlib.util.find_spec(name) is not None]
    chosen = os.environ.get("KERAS_BACKEND") or _configured()
    if chosen is None and installed:
        os.environ["KERAS_BACKEND"] = installed[0]
    elif chosen is None:
        _stop(
            "Minimand needs JAX, TensorFlow or PyTorch. Received: an environment without any of them. "
            "Run: pip install 'minimand[jax]'"
        )
    elif chosen in BACKENDS and chosen not in installed:
        others = f", or set KERAS_BACKEND to an installed backend: {', '.join(installed)}" if installed else ""
        _stop(f"The chosen backend {chosen!r} is not installed. Run: pip install 'minimand[{chosen}]'{others}")


def _configured() -> str | None:
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    try:
        configured = json.loads((home / "keras.json").read_text()).get("backend")
    except (OSError, ValueError):
        return None
    return None if configured == "tensorflow" else configured


def _stop(message: str) -> None:
    # The command cannot catch an exception that is raised before any of its modules is imported.
    if Path(sys.argv[0]).stem == "minimand":
        sys.exit(message)
    raise ImportError(message)
