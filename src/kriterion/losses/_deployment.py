"""What a loss has learned, as a part of a model without Kriterion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


def extended(owner: str, model: keras.Model, function: Callable[[Any], Any]) -> keras.Model:
    """The model with a function of Keras's operations after its output; the weights are shared."""
    outputs = keras.tree.flatten(getattr(model, "outputs", None) or [])
    if len(outputs) != 1:
        raise ValueError(
            f"{owner}.to_inference: the model must be functional or sequential, built, with one output. "
            f"Received: {type(model).__name__} with {len(outputs)} known outputs."
        )
    # In the structure that the model takes.
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.Model(inputs, function(outputs[0]), name=f"{model.name}_{owner.lower()}")
