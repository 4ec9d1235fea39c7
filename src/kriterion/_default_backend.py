"""JAX, where nobody has chosen a backend."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path


def choose_default_backend() -> None:
    """Set KERAS_BACKEND to jax, unless a backend is chosen already or JAX is not installed.

    Chosen is: by KERAS_BACKEND; by having imported keras; by keras.json, if that names another one than TensorFlow,
    which Keras writes there by itself.
    """
    if "keras" in sys.modules or "KERAS_BACKEND" in os.environ or importlib.util.find_spec("jax") is None:
        return
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    try:
        configured = json.loads((home / "keras.json").read_text()).get("backend", "tensorflow")
    except (OSError, ValueError):
        configured = "tensorflow"
    if configured == "tensorflow":
        os.environ["KERAS_BACKEND"] = "jax"
