"""What TensorFlow and PyTorch share: steps that assign in place, and maps that are loops."""

from __future__ import annotations

from typing import Any

import keras

from kriterion._structure import first_leaf


def minimise(trainer: Any, data: Any, differentiate: Any) -> dict[str, Any]:
    """One step: evaluate and differentiate the objective, then, and only then, assign.

    `differentiate(function, values)` returns `(aux, gradients)` of a function returning `(scaled loss, aux)`.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    variables = trainer.trainable_variables
    non_trainable = trainer.non_trainable_variables
    metrics = trainer.metrics_variables
    current = [variable.value for variable in non_trainable], [variable.value for variable in metrics]

    def objective(values: list[Any]) -> tuple[Any, Any]:
        loss, aux = trainer.evaluate_objective(values, *current, (x, y, sample_weight))
        return trainer.optimizer.scale_loss(loss), (loss, aux)

    (loss, (y_pred, new_non_trainable, new_metrics)), gradients = differentiate(objective, variables)
    old, new = [*current[0], *current[1]], [*new_non_trainable, *new_metrics]
    for variable, before, value in zip(non_trainable + metrics, old, new, strict=True):
        if value is not before:
            variable.assign(value)
    trainer.optimizer.apply(gradients, variables)
    trainer.track_loss(loss, keras.ops.shape(first_leaf(x))[0])
    return trainer.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def stacked(results: list[Any]) -> Any:
    """Results of one structure as one, each leaf with a leading axis."""
    return keras.tree.map_structure(lambda *leaves: keras.ops.stack(leaves), *results)
