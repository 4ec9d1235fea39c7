"""What TensorFlow and PyTorch share: steps that assign in place."""

from __future__ import annotations

from typing import Any

import keras


def minimise(trainer: Any, data: Any, differentiate: Any) -> dict[str, Any]:
    """One step: evaluate and differentiate the objective, then, and only then, assign.

    `differentiate(function, values)` returns `(aux, gradients)` of a function returning `(scaled loss, aux)`.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    variables = trainer.trainable_variables
    non_trainable = trainer.non_trainable_variables
    metrics = trainer.metrics_variables

    def objective(values: list[Any]) -> tuple[Any, Any]:
        loss, aux = trainer.evaluate_objective(
            values, [v.value for v in non_trainable], [v.value for v in metrics], (x, y, sample_weight)
        )
        return trainer.optimizer.scale_loss(loss), (loss, aux)

    (loss, (y_pred, new_non_trainable, new_metrics)), gradients = differentiate(objective, variables)
    for variable, value in zip(non_trainable + metrics, new_non_trainable + new_metrics, strict=True):
        variable.assign(value)
    trainer.optimizer.apply(gradients, variables)
    first = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
    trainer.track_loss(loss, keras.ops.shape(first)[0])
    return trainer.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
