"""Temporary changes while a function runs: values substituted for variables, and attributes of layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras

from minimand._keras import get_stateless_scope

# Values substituted for variables; the variables do not change.


class RecordingScope(keras.StatelessScope):
    """A scope that also collects losses, and the variables whose values are read in it, by their id."""

    def __init__(self) -> None:
        super().__init__(collect_losses=True)
        self.read: set[int] = set()

    def get_current_value(self, variable: keras.Variable) -> Any:
        """The value of the variable in this scope, or None."""
        self.read.add(id(variable))
        return super().get_current_value(variable)


def forked_scope(mapping: Iterable[tuple[keras.Variable, Any]] = ()) -> RecordingScope:
    """A copy of the current scope with the values of `mapping` in addition.

    A nested `StatelessScope` hides the outer scope; this scope sees the values of the outer one. Assignments inside
    stay inside, and can be read with `get_current_value`.
    """
    outer = get_stateless_scope()
    scope = RecordingScope()
    if outer is not None:
        scope.state_mapping.update(outer.state_mapping)
    for variable, value in mapping:
        scope.add_update((variable, value))
    return scope


def isolated(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without its side effects: the variables that it assigns keep their values.

    This is for passes that must not count, since a step advances batch statistics and seeds once, and for functions
    that a framework traces by itself, since a value assigned inside must not leak out of the trace.
    """

    def wrapped(*args: Any) -> Any:
        with forked_scope():
            return function(*args)

    return wrapped


def recorded(objective: Callable[..., Any]) -> Callable[..., Any]:
    """The objective, returning `(loss, (aux, assigned))` in place of assigning variables; `record` assigns them.

    This is for a pass within a function that is differentiated, which must return assigned values as results.
    """

    def wrapped(*args: Any) -> Any:
        with forked_scope() as scope:
            loss, aux = objective(*args)
            return loss, (aux, scope.state_mapping)

    return wrapped


def record(assigned: dict[int, Any]) -> None:
    """Give variables the values that a `recorded` pass assigned, in the current scope."""
    outer = get_stateless_scope()
    if outer is not None:
        outer.state_mapping.update(assigned)


# Attributes of layers.


@contextlib.contextmanager
def shadowed(layer: Any, name: str, value: Any) -> Iterator[None]:
    """Give a layer another attribute behind Keras's back, which would track or refuse the value."""
    attributes = vars(layer)
    before = {name: attributes[name]} if name in attributes else {}
    attributes[name] = value
    try:
        yield
    finally:
        del attributes[name]
        attributes.update(before)


@contextlib.contextmanager
def changed_outputs(layers: Sequence[Any], change: Callable[[int, Any, Any, Any], Any]) -> Iterator[None]:
    """A context in which the layers have other outputs before their activation.

    Args:
        layers: layers with an activation.
        change: `change(index, call, inputs, outputs)` returns the outputs that the layer with this index has in place
            of `outputs`; `call` is the layer's own, which at that time leaves out the activation.
    """

    def changed(index: int) -> Callable[..., Any]:
        layer, call = layers[index], layers[index].call

        def wrapped(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            activation = layer.activation
            with shadowed(layer, "activation", None):
                outputs = change(index, call, inputs, call(inputs, *args, **kwargs))
            return outputs if activation is None else activation(outputs)

        return wrapped

    with contextlib.ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.enter_context(shadowed(layer, "call", changed(index)))
        yield
