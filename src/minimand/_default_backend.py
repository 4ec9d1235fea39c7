"""JAX, where nobody has chosen a backend."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

_BACKENDS = ("jax", "tensorflow", "torch")


def choose_default_backend() -> None:
    """Set KERAS_BACKEND to jax or else to what is installed, unless a backend is chosen already.

    Chosen is: by KERAS_BACKEND; by having imported keras; by keras.json, if that names another one than TensorFlow,
    which Keras writes there by itself.

    Raises:
        ImportError: the backend is not installed, or none is. To who runs the command, this is a message.
    """
    if "keras" in sys.modules:
        return
    installed = [name for name in _BACKENDS if importlib.util.find_spec(name) is not None]
    chosen = os.environ.get("KERAS_BACKEND") or _configured()
    if chosen is None and installed:
        os.environ["KERAS_BACKEND"] = installed[0]
    elif chosen is None:
        _stop("Minimand needs JAX, TensorFlow or PyTorch, and none is installed: pip install 'minimand[jax]'.")
    elif chosen in _BACKENDS and chosen not in installed:
        others = f", or set KERAS_BACKEND to what is: {', '.join(installed)}" if installed else ""
        _stop(f"The backend {chosen!r} is chosen, but not installed: pip install 'minimand[{chosen}]'{others}.")


def _configured() -> str | None:
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    try:
        configured = json.loads((home / "keras.json").read_text()).get("backend")
    except (OSError, ValueError):
        return None
    return None if configured == "tensorflow" else configured


def _stop(message: str) -> None:
    # The command cannot catch it: this is run before any module of the package.
    if Path(sys.argv[0]).stem == "minimand":
        sys.exit(message)
    raise ImportError(message)
