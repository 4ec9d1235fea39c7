"""Structures of arrays, as Keras takes them for inputs."""

from __future__ import annotations

from typing import Any

import keras


def first_leaf(structure: Any) -> Any:
    """The first array or tensor: all have the same rows."""
    return next(leaf for leaf in keras.tree.flatten(structure) if leaf is not None)
