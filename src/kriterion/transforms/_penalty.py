"""Transforms that add a penalty, with a strength that may follow a schedule."""

from __future__ import annotations

from typing import Any, TypeAlias

import keras
from keras import ops

from kriterion._validation import check_float
from kriterion.backend import Tensor
from kriterion.transforms.base import Transform

Strength: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule


class PenaltyTransform(Transform):
    """A transform with a strength >= 0, or a schedule of it by the number of training steps.

    Args:
        strength: the number or schedule.
        **kwargs: the arguments of `Transform`.
    """

    def __init__(self, strength: Strength, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(strength, keras.optimizers.schedules.LearningRateSchedule):
            strength = check_float(type(self).__name__, "strength", strength, minimum=0.0)
        else:
            self.step = self.add_weight((), "zeros", "int32", trainable=False, name="step")
        self.strength = strength

    def strength_now(self) -> float | Tensor:
        """The strength in this step; counts it."""
        if isinstance(self.strength, float):
            return self.strength
        strength = ops.cast(self.strength(self.step.value), "float32")
        # Last, since on PyTorch the value read above is the variable's own memory.
        self.step.assign(self.step.value + 1)
        return strength

    def get_config(self) -> dict[str, Any]:
        strength = self.strength
        if not isinstance(strength, float):
            strength = keras.saving.serialize_keras_object(strength)
        return {"strength": strength, **super().get_config()}
