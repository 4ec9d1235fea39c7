"""Giving a layer another call while a function runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def shadowed(layer: Any, name: str, value: Any) -> Iterator[None]:
    """Give a layer another attribute, unseen by Keras, which would track or refuse it."""
    attributes = vars(layer)
    before = {name: attributes[name]} if name in attributes else {}
    attributes[name] = value
    try:
        yield
    finally:
        del attributes[name]
        attributes.update(before)
