"""Configurations from signatures: an argument of `__init__` is an attribute of the same name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras


def config_of(part: Any, keras_config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments that make an equal part, for its `get_config`.

    Args:
        part: an object whose class keeps each argument of `__init__` as an attribute of the same name.
        keras_config: what `get_config` of the Keras base class gives; the arguments that it names are left to it.

    Raises:
        NotImplementedError: an argument is not an attribute, and the class does not override `get_config`.
    """
    config = dict(keras_config or {})
    names = [name for name in _arguments(type(part)) if name not in config]
    missing = [name for name in names if not hasattr(part, name)]
    if missing and type(part).get_config.__module__.startswith("minimand."):
        raise NotImplementedError(
            f"{type(part).__name__}.get_config: keep each argument of `__init__` as an attribute of the same name, "
            f"or override `get_config`. Received: no attribute for {missing}"
        )
    own = {name: keras.saving.serialize_keras_object(getattr(part, name)) for name in names if name not in missing}
    return {**config, **own}


def _arguments(kind: type) -> list[str]:
    """The arguments of `__init__`; those that `**kwargs` hands on to a base class too, up to Keras's classes."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        if base.__module__.startswith("keras."):
            break
        if "__init__" in vars(base):
            parameters = list(inspect.signature(base).parameters.values())
            named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            names |= {parameter.name: None for parameter in parameters if parameter.kind in named}
            if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
                break
    return list(names)


def from_config(kind: Any, config: Mapping[str, Any]) -> Any:
    """An object of the class `kind` with these arguments, as `config_of` gives them."""
    return kind(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})
