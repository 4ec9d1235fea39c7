"""The objective that transforms start from: the compiled loss of a batch, as a function of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import keras
from keras import ops

from minimand import backend
from minimand._batches import Batch
from minimand._keras import get_keras_mask, set_keras_mask
from minimand._scope import forked_scope, isolated
from minimand.backend import Tensor

Weights = Sequence[Tensor]
"""Values for the model's trainable variables, in the order of `model.trainable_variables`."""

Objective = Callable[[Weights, Batch], tuple[Tensor, Any]]
"""`objective(weights, batch)` returns `(loss, aux)`: a scalar, and what the forward pass left behind.

The aux (predictions, batch statistics, seeds) is opaque to a transform, which returns that of the pass that
counts: the unperturbed one where there are several.
"""


class DataObjective:
    """D: the loss on a batch at the given weights; `(loss, (predictions, values of variables by their id))`.

    Args:
        model: what holds the weights.
        call: `call(x, training)` gives the model's outputs.
        loss: `loss(x, y, y_pred, sample_weight, training)` gives a scalar.
        training: whether layers are in training mode.
        penalties_apart: whether the scalar is without penalties on the weights.
    """

    def __init__(
        self, model: keras.Model, call: Any, loss: Any, *, training: bool = True, penalties_apart: bool = True
    ) -> None:
        self.model, self.training = model, training
        self._call, self._loss = call, loss
        self._penalties_apart = penalties_apart
        # Whether the loss was that of the rows of outputs alone, in the last call.
        self.of_rows_alone = False

    def __call__(self, weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
        if isinstance(batch.gradient_weight, float):
            return ops.zeros(()), None
        with self._at(weights) as scope:
            y_pred = self._call(batch.x, training=self.training)
            for variable, weight in zip(self.model.trainable_variables, weights, strict=True):
                if scope.get_current_value(variable) is not weight:
                    raise NotImplementedError(
                        "Trainer: transforms do not work with layers that assign a trainable weight when they are "
                        "called, as SpectralNormalization does: a transform gives the weights values of its own, and "
                        f"the assignment would be lost. Received: a layer that assigns {variable.path}. Use a "
                        "kernel_constraint, or leave out the transforms."
                    )
            self.of_rows_alone = self._penalties_apart and not scope.losses
            if batch.gradient_weight is None:
                loss = self._loss(batch.x, batch.y, y_pred, batch.sample_weight, self.training)
            else:
                gradients = self.output_gradients(batch, y_pred)
                loss = pairing(y_pred, weighted_rows(gradients, batch.gradient_weight))
            return loss, (y_pred, scope.state_mapping)

    def _at(self, weights: Weights) -> keras.StatelessScope:
        return forked_scope(zip(self.model.trainable_variables, weights, strict=True))

    def outputs(self, weights: Weights, x: Any) -> Any:
        """The model's outputs for inputs x."""
        with self._at(weights):
            return self._call(x, training=self.training)

    def predictions(self, weights: Weights, batch: Batch) -> tuple[Any, list[Tensor], bool]:
        """The outputs for a batch, the gradients of the loss by them, and whether layers drew random numbers."""
        with self._at(weights) as scope:
            seeds = [id(v) for v in self.model.variables if v.name == "seed_generator_state"]
            before = [scope.state_mapping.get(seed) for seed in seeds]
            y_pred = self._call(batch.x, training=self.training)
            drawn = any(scope.state_mapping.get(s) is not old for s, old in zip(seeds, before, strict=True))
            return y_pred, self.output_gradients(batch, y_pred), drawn or (self.training and _drops(self.model))

    def kept_gradient(self, weights: Weights, batch: Batch, aux: Any) -> Callable[[Tensor | None], list[Tensor]] | None:
        """The gradient by some of the weights, for the batch with a `gradient_weight`, from the aux of a call.

        None where the framework does not keep a pass.
        """
        pull = backend.pullback(keras.tree.flatten(aux[0]), weights)
        if pull is None:
            return None

        @cache
        def factors() -> list[Tensor]:
            return self.output_gradients(batch.plain(), aux[0], differentiable=False)

        def gradient(weight: Tensor | None) -> list[Tensor]:
            return pull(factors() if weight is None else weighted_rows(factors(), weight))

        return gradient

    def output_gradients(self, batch: Batch, y_pred: Any, *, differentiable: bool = True) -> list[Tensor]:
        """The gradient of the loss by each of the outputs."""
        outputs = keras.tree.flatten(y_pred)
        masks = [get_keras_mask(output) for output in outputs]

        def loss(values: Sequence[Tensor]) -> tuple[Tensor, None]:
            # The loss reads the masks off the outputs.
            copies = [ops.convert_to_tensor(value) for value in values]
            for copy, mask in zip(copies, masks, strict=True):
                if mask is not None:
                    set_keras_mask(copy, mask)
            structure = keras.tree.pack_sequence_as(y_pred, copies)
            return self._loss(batch.x, batch.y, structure, batch.sample_weight, self.training), None

        return backend.value_and_gradient(isolated(loss), outputs, differentiable=differentiable)[1]


def _drops(model: keras.Model) -> bool:
    """Whether a layer drops inputs: Keras's unseeded dropout on PyTorch has no seed that would tell."""
    return any(
        hasattr(layer, "seed_generator") and any(getattr(layer, name, 0) for name in ("rate", "dropout"))
        for layer in model._flatten_layers()
    )


def _product(output: Tensor, factor: Tensor) -> tuple[Tensor, tuple[Tensor, None]]:
    return output * factor, (factor, None)


_held_product = backend.custom_derivative(_product)


def pairing(y_pred: Any, factors: Sequence[Tensor]) -> Tensor:
    """The sum of outputs times factors, the factors being constants to a first derivative, though not to a second.

    So its gradient is the vector-Jacobian product of `factors`, and can be differentiated once more.
    """
    outputs = keras.tree.flatten(y_pred)
    return sum(ops.sum(_held_product(o, ops.cast(f, o.dtype))) for o, f in zip(outputs, factors, strict=True))


def weighted_rows(tensors: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """Each tensor (batch, ...) with its rows multiplied by `weight` (batch,)."""
    return [t * ops.reshape(ops.cast(weight, t.dtype), (-1, *[1] * (len(t.shape) - 1))) for t in tensors]
