"""Giving a layer another call while a function runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from minimand._keras import get_stateless_scope

# Substituting values for variables without touching the variables.


def forked_scope(mapping: Iterable[tuple[keras.Variable, Any]] = ()) -> keras.StatelessScope:
    """A copy of the current scope with `mapping` laid over it.

    A nested `StatelessScope` hides the outer one; this one sees the same values. What is assigned in it
    stays in it, and can be read with `get_current_value`.
    """
    outer = get_stateless_scope()
    scope = keras.StatelessScope(collect_losses=True)
    if outer is not None:
        scope.state_mapping.update(outer.state_mapping)
    for variable, value in mapping:
        scope.add_update((variable, value))
    return scope


def isolated(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, such that the variables that it assigns keep their values.

    For passes whose side effects must not count (a step advances batch statistics and seeds once) and for
    functions that a framework traces by itself (a value assigned inside must not leak out of the trace).
    """

    def wrapped(*args: Any) -> Any:
        with forked_scope():
            return function(*args)

    return wrapped


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, such that it returns `(result, assigned)` and assigns nothing; `record` assigns it.

    For a pass within a function that is differentiated: what it assigns must leave that function as a result.
    """

    def wrapped(*args: Any) -> Any:
        with forked_scope() as scope:
            return function(*args), scope.state_mapping

    return wrapped


def record(assigned: dict[int, Any]) -> None:
    """Give variables the values that a `recorded` pass assigned, in the current scope."""
    outer = get_stateless_scope()
    if outer is not None:
        outer.state_mapping.update(assigned)


# Giving a layer another call while a function runs.


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
