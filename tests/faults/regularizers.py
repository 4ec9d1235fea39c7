"""Faulty regularizers, each with one fault."""

import keras
import numpy as np
from keras import ops

from minimand import testing
from minimand.regularizers import WeightRegularizer
from tests.faults import with_part

register = keras.saving.register_keras_serializable(package="faults.regularizers")


@register
class Lasso(WeightRegularizer):
    """The sound regularizer sum |w|, with derivative 0 at 0; `abs` has derivative 1 on JAX."""

    def penalty(self, weights):
        return ops.sum(weights * ops.sign(weights))

    def proximal(self, weights, step):
        return ops.sign(weights) * ops.relu(ops.abs(weights) - step) + 0 * weights


class Sound(testing.RegularizerSuite):
    part: type = Lasso

    def make(self, strength):
        return self.part(strength)

    def reference(self, w):
        return np.abs(w).sum()


class SoundOfKeras(Sound):
    zero_at_zero = False
    part = keras.regularizers.L1


@register
class Doubled(Lasso):
    def penalty(self, weights):
        return 2 * super().penalty(weights)


@register
class WithoutGradient(Lasso):
    """The gradient is not that of the value."""

    def penalty(self, weights):
        return ops.sum(
            weights * ops.stop_gradient(ops.sign(weights)) + ops.relu(weights) - ops.stop_gradient(ops.relu(weights))
        )


@register
class SquaredStrength(Lasso):
    def coefficient(self, shape, dtype):
        return ops.square(super().coefficient(shape, dtype)) / 0.3


@register
class RootAtZero(Lasso):
    """The derivative of sqrt(w^2) at 0 is 0 / 0."""

    def penalty(self, weights):
        return ops.sum(ops.sqrt(ops.square(weights)))


@register
class HidesNaN(Lasso):
    def penalty(self, weights):
        return super().penalty(ops.where(ops.isfinite(weights), weights, 0))


@register
class Forgetful(Lasso):
    """The argument is not in the configuration."""

    def __init__(self, strength, *, factor=2.0, reduction="sum"):
        super().__init__(strength, reduction=reduction)
        self.factor = factor

    def get_config(self):
        return {"strength": self.strength, "reduction": self.reduction}

    def penalty(self, weights):
        return self.factor * super().penalty(weights)


@register
class TwiceAsATransform(Lasso):
    """A transform gets another value than a layer."""

    def total(self, variables, values):
        return 2.0 * super().total(variables, values)


@register
class DeafToSchedules(Lasso):
    def at(self, iteration):
        return super().at(0 * iteration)


@register
class HalfAStep(Lasso):
    def proximal(self, weights, step):
        return super().proximal(weights, step / 2)


@register
class ProximalHidesNaN(Lasso):
    def proximal(self, weights, step):
        return super().proximal(ops.where(ops.isfinite(weights), weights, 0), step)


@register
class HardThreshold(Lasso):
    """Large weights stay as they are, so the map has jumps, unlike that of a convex penalty."""

    def proximal(self, weights, step):
        return ops.where(ops.abs(weights) > step, weights, 0)


class WithArgument(Sound):
    def make(self, strength):
        return Forgetful(strength, factor=1.0)


FAULTS = {
    "test_the_value_is_the_references": (with_part(Sound, Doubled), "Not the reference"),
    "test_the_gradient_is_the_references": (with_part(Sound, WithoutGradient), "Not the gradient"),
    "test_strength_is_a_factor": (with_part(Sound, SquaredStrength), "Twice the strength"),
    "test_gradients_where_weights_vanish": (with_part(Sound, RootAtZero), "The gradient is [[nan"),
    "test_nan_is_not_hidden": (with_part(Sound, HidesNaN), "A weight is nan"),
    "test_the_configuration_makes_an_equal_regularizer": (WithArgument, "it has another value"),
    "test_as_an_argument_of_a_layer": (WithArgument, "The loaded layer's loss"),
    "test_as_a_transform": (with_part(Sound, TwiceAsATransform), "As a transform"),
    "test_a_schedule_as_strength": (with_part(Sound, DeafToSchedules), "Step 2 of a schedule"),
    "test_nothing_nearby_is_better_than_the_proximal_map": (with_part(Sound, HalfAStep), "elsewhere it is"),
    "test_a_proximal_map_keeps_nan": (with_part(Sound, ProximalHidesNaN), "The proximal map makes"),
    "test_a_proximal_map_is_smooth": (with_part(Sound, HardThreshold), "further apart"),
}
SOUND = (Sound, SoundOfKeras)
