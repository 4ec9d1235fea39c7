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
from minimand._scope import RecordingScope, forked_scope, isolated
from minimand.backend import Tensor

Weights = Sequence[Tensor]
"""Values for the model's trainable variables, in the order of `model.trainable_variables`."""

Objective = Callable[[Weights, Batch], tuple[Tensor, Any]]
"""`objective(weights, batch)` returns `(loss, aux)`: a scalar, and the results of the forward pass.

The aux (predictions, batch statistics, seeds) is opaque to a transform. A transform that takes several passes returns
the aux of the unperturbed pass.
"""


class DataObjective:
    """D: the loss on a batch at the given weights; `(loss, (predictions, values of variables by their id))`.

    Args:
        model: the owner of the weights.
        call: `call(x, training)` returns the model's outputs.
        loss: `loss(x, y, y_pred, sample_weight, training)` returns a scalar.
        training: whether layers are in training mode.
        penalties_apart: whether the scalar is without penalties on the weights.
    """

    def __init__(
        self, model: keras.Model, call: Any, loss: Any, *, training: bool = True, penalties_apart: bool = True
    ) -> None:
        self.model, self.training = model, training
        self._call, self._loss = call, loss
        self._penalties_apart = penalties_apart
        self._checked = False
        # True if the loss of the last call depended on nothing but the rows of the outputs.
        self.of_rows_alone = False

    def __call__(self, weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
        if isinstance(batch.gradient_weight, float):
            return ops.zeros(()), None
        with self._at(weights) as scope:
            y_pred = self._outputs(batch.x, scope)
            for variable, weight in zip(self.model.trainable_variables, weights, strict=True):
                if scope.get_current_value(variable) is not weight:
                    raise NotImplementedError(
                        "Trainer: transforms do not work with layers that assign a trainable weight in their call, "
                        "such as SpectralNormalization. A transform substitutes values for the weights, so the "
                        f"assignment would be lost. Received: a layer that assigns {variable.path}. Use a "
                        "kernel_constraint, or leave out the transforms."
                    )
            self.of_rows_alone = self._penalties_apart and not scope.losses
            if batch.gradient_weight is None:
                loss = self._loss(batch.x, batch.y, y_pred, batch.sample_weight, self.training)
            else:
                gradients = self.output_gradients(batch, y_pred)
                loss = pairing(y_pred, weighted_rows(gradients, batch.gradient_weight))
            return loss, (y_pred, scope.state_mapping)

    def _at(self, weights: Weights) -> RecordingScope:
        return forked_scope(zip(self.model.trainable_variables, weights, strict=True))

    def _outputs(self, x: Any, scope: RecordingScope) -> Any:
        """The outputs; the first call checks that they depend on the values in the scope alone."""
        x = copied(x)
        if self._checked:
            return self._call(x, training=self.training)
        y_pred, depends_on = backend.traced(lambda: self._call(x, training=self.training))
        unread = [v for v in self.model.trainable_variables if id(v) not in scope.read]
        # An empty scope gives the variables' own values.
        with keras.StatelessScope():
            kept = {id(v) for v in unread if depends_on(v)}
        if kept:
            layers = [
                f"{type(layer).__name__} {layer.name!r}"
                for layer in self.model._flatten_layers()
                if any(id(v) in kept for v in layer._trainable_variables)
            ]
            raise NotImplementedError(
                "Trainer: transforms and statistics of gradients do not work with trainable layers that keep their "
                "weights outside of Keras, such as TorchModuleWrapper and TFSMLayer. A transform substitutes values "
                f"for the weights, and such a layer would not read them. Received: {', '.join(layers)}. Set "
                "`trainable = False` on the layer, write it with Keras layers, or leave out the transforms."
            )
        self._checked = True
        return y_pred

    def outputs(self, weights: Weights, x: Any) -> Any:
        """The model's outputs for inputs x."""
        with self._at(weights) as scope:
            return self._outputs(x, scope)

    def predictions(self, weights: Weights, batch: Batch) -> tuple[Any, list[Tensor], bool]:
        """The outputs for a batch, the gradients of the loss by the outputs, and whether layers drew random numbers."""
        with self._at(weights) as scope:
            seeds = [id(v) for v in self.model.variables if v.name == "seed_generator_state"]
            before = [scope.state_mapping.get(seed) for seed in seeds]
            y_pred = self._outputs(batch.x, scope)
            drawn = any(scope.state_mapping.get(s) is not old for s, old in zip(seeds, before, strict=True))
            return y_pred, self.output_gradients(batch, y_pred), drawn or (self.training and _drops(self.model))

    def output_gradients(self, batch: Batch, y_pred: Any, *, differentiable: bool = True) -> list[Tensor]:
        """The gradient of the loss by each output."""
        outputs = keras.tree.flatten(y_pred)
        masks = [get_keras_mask(output) for output in outputs]

        def loss(values: Sequence[Tensor]) -> tuple[Tensor, None]:
            # The loss reads the mask that each output carries.
            copies = [backend.clone(ops.convert_to_tensor(value)) for value in values]
            for copy, mask in zip(copies, masks, strict=True):
                if mask is not None:
                    set_keras_mask(copy, backend.clone(mask))
            structure = keras.tree.pack_sequence_as(y_pred, copies)
            return self._loss(batch.x, batch.y, structure, batch.sample_weight, self.training), None

        return backend.value_and_gradient(isolated(loss), outputs, differentiable=differentiable)[1]

    def kept_gradient(self, weights: Weights, batch: Batch, aux: Any) -> Callable[[Tensor | None], list[Tensor]] | None:
        """The gradient by some of the weights, as a function of the `gradient_weight`, from the aux of a call.

        None if the framework does not keep the pass.
        """
        vjp = backend.vjp(keras.tree.flatten(aux[0]), weights)
        if vjp is None:
            return None

        @cache
        def factors() -> list[Tensor]:
            return self.output_gradients(batch.plain(), aux[0], differentiable=False)

        def gradient(weight: Tensor | None) -> list[Tensor]:
            return vjp(factors() if weight is None else weighted_rows(factors(), weight))

        return gradient


class OwnsDataObjective:
    """The base class of models that make their data objective themselves, as a `Trainer` does."""

    def data_objective(self, training: bool = True) -> DataObjective:
        """The compiled loss of a batch at given weights."""
        raise NotImplementedError


def data_objective_of(model: Any, training: bool) -> DataObjective:
    """The data objective of a trainer, or of a plain compiled model."""
    if isinstance(model, OwnsDataObjective):
        return model.data_objective(training)

    def loss(x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool) -> Tensor:
        x, y, sample_weight = copied((x, y, sample_weight))
        return model.compute_loss(x, y, y_pred, sample_weight, training=training)

    return DataObjective(model, model.__call__, loss, training=training, penalties_apart=False)


def copied(structure: Any) -> Any:
    """The parts of a batch for a callee that may change them in place, as Keras's losses change sample weights."""

    def copy(leaf: Any) -> Any:
        if not ops.is_tensor(leaf):
            return leaf
        own, mask = backend.clone(leaf), get_keras_mask(leaf)
        if mask is not None:
            set_keras_mask(own, backend.clone(mask))
        return own

    return keras.tree.map_structure(copy, structure)


def _drops(model: keras.Model) -> bool:
    """Tell whether a layer drops inputs; on PyTorch Keras's unseeded dropout has no seed that would show it."""
    return any(
        hasattr(layer, "seed_generator") and any(getattr(layer, name, 0) for name in ("rate", "dropout"))
        for layer in model._flatten_layers()
    )


_product_with_constant = backend.custom_derivative(lambda output, factor: (output * factor, (factor, None)))


def pairing(y_pred: Any, factors: Sequence[Tensor]) -> Tensor:
    """The sum of outputs times factors; the factors are constants to a first derivative, but not to a second.

    So the gradient is the vector-Jacobian product of `factors`, and can be differentiated again.
    """
    outputs = keras.tree.flatten(y_pred)
    pairs = zip(outputs, factors, strict=True)
    return sum(ops.sum(_product_with_constant(output, ops.cast(factor, output.dtype))) for output, factor in pairs)


def weighted_rows(tensors: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """Each tensor (batch, ...) with its rows multiplied by `weight` (batch,)."""
    return [t * ops.reshape(ops.cast(weight, t.dtype), (-1, *[1] * (len(t.shape) - 1))) for t in tensors]
