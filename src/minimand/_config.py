"""Configurations from signatures: an argument of `__init__` is an attribute of the same name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras


def config_of(part: Any, keras_config: Mapping[str, Any] | None = None, base: type | None = None) -> dict[str, Any]:
    """The arguments that make an equal part, for its `get_config`.

    Args:
        part: an object whose class keeps each argument of `__init__` as an attribute of the same name.
        keras_config: what `get_config` of the Keras base class gives; the arguments that it names are left to it.
        base: the class whose arguments `**kwargs` of the part's class hands on, if there are any.

    Raises:
        NotImplementedError: an argument is not an attribute, and the class does not override `get_config`.
    """
    config = dict(keras_config or {})
    parameters = _parameters(type(part))
    if base is not None and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        parameters += _parameters(base)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = list(dict.fromkeys(p.name for p in parameters if p.kind in kinds and p.name not in config))
    missing = [name for name in names if not hasattr(part, name)]
    if missing and type(part).get_config.__module__.startswith("minimand."):
        raise NotImplementedError(
            f"{type(part).__name__}.get_config: keep each argument of `__init__` as an attribute of the same name, "
            f"or override `get_config`. Received: no attribute for {missing}"
        )
    own = {name: keras.saving.serialize_keras_object(getattr(part, name)) for name in names if name not in missing}
    return {**config, **own}


def _parameters(kind: type) -> list[inspect.Parameter]:
    return list(inspect.signature(kind).parameters.values())


def from_config(kind: Any, config: Mapping[str, Any]) -> Any:
    """An object of the class `kind` with these arguments, as `config_of` gives them."""
    return kind(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})
