"""Faulty optimizers, each with one fault."""

import keras
import numpy as np
from keras import ops

from minimand import testing
from tests.faults import unrepeatable, with_part

register = keras.saving.register_keras_serializable(package="faults.optimizers")


class Sound(testing.OptimizerSuite):
    """The suite of gradient descent."""

    part: type = keras.optimizers.SGD

    def make(self, learning_rate, **arguments):
        return self.part(learning_rate, **arguments)

    def reference(self, learning_rate, weights, gradients):
        return weights - learning_rate * np.cumsum(gradients, axis=0)


class SoundWithState(Sound):
    """The suite of gradient descent with momentum."""

    stops = False

    def make(self, learning_rate, **arguments):
        return keras.optimizers.SGD(learning_rate, momentum=0.9, **arguments)

    def reference(self, learning_rate, weights, gradients):
        path, velocity = [weights], 0.0
        for g in gradients:
            velocity = 0.9 * velocity - learning_rate * g
            path.append(path[-1] + velocity)
        return np.array(path[1:])


class Descent(keras.optimizers.SGD):
    """Gradient descent with a gradient that a subclass changes."""

    factor = 1.0

    def changed(self, gradient, variable):
        return self.factor * gradient

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(self.changed(gradient, variable), variable, learning_rate)


@register
class Doubled(Descent):
    factor = 2.0


@register
class DeafToSchedules(Descent):
    """The first learning rate of a schedule is used at every step."""

    def __init__(self, learning_rate, **arguments):
        if callable(learning_rate):
            learning_rate = float(ops.convert_to_numpy(learning_rate(0)))
        super().__init__(learning_rate, **arguments)


def without(name):
    """An optimizer that ignores this argument."""

    class Without(Descent):
        def __init__(self, learning_rate, **arguments):
            super().__init__(learning_rate, **{key: value for key, value in arguments.items() if key != name})

    return Without


@register
class Unclipped(Descent):
    def _clip_gradients(self, grads):
        return grads


@register
class Normalised(Descent):
    """A gradient of 0 becomes 0 / 0."""

    def changed(self, gradient, variable):
        return gradient / ops.norm(gradient)


@register
class HidesNaN(Descent):
    def changed(self, gradient, variable):
        return ops.nan_to_num(gradient)


class NotRegistered(Descent):
    """Keras does not find the class when a file is loaded."""


@register
class LeavesBiases(Descent):
    def changed(self, gradient, variable):
        return gradient * (len(variable.shape) > 1)


@register
class OfAllEver(Descent):
    """Every weight that any instance was built for decays."""

    seen: list = []  # noqa: RUF012

    def build(self, variables):
        super().build(variables)
        self.seen.extend(variables)

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)
        for variable in self.seen:
            variable.assign(0.99 * variable.value)


@register
class Forgetful(Descent):
    """The argument is not in the configuration."""

    def __init__(self, learning_rate, factor=1.0, **arguments):
        super().__init__(learning_rate, **arguments)
        self.factor = factor


@register
class Unrepeatable(Descent):
    """Random numbers come from the operating system."""

    def __init__(self, learning_rate, **arguments):
        super().__init__(learning_rate, **arguments)
        self.factor = unrepeatable()


@register
class Counting(Descent):
    """Python counts calls, once if compiled and at each step if not."""

    def __init__(self, learning_rate, **arguments):
        super().__init__(learning_rate, **arguments)
        self.calls = 0

    def changed(self, gradient, variable):
        self.calls += 1
        return self.calls * gradient


@register
class OfThePolicy(Descent):
    """The step has the wrong sign in mixed precision."""

    def __init__(self, learning_rate, **arguments):
        super().__init__(learning_rate, **arguments)
        self.factor = 1.0 if keras.config.dtype_policy().name == "float32" else -50.0


@register
class OfTheDevices(Descent):
    """The step is larger on several devices."""

    @property
    def factor(self):
        return 1.0 if keras.distribution.distribution() is None else 2.0


class WithArgument(Sound):
    def make(self, learning_rate, **arguments):
        return Forgetful(learning_rate, factor=3.0, **arguments)


FAULTS = {
    "test_the_path_is_the_references": (with_part(Sound, Doubled), "reference's path"),
    "test_learning_rates": (with_part(Sound, DeafToSchedules), "At a learning rate of 0"),
    "test_clipping": (with_part(Sound, Unclipped), "With {'clipvalue'"),
    "test_accumulation_is_a_step_of_the_mean": (
        with_part(Sound, without("gradient_accumulation_steps")),
        "Accumulated gradients",
    ),
    "test_weight_decay": (with_part(Sound, without("weight_decay")), "Three steps of decay"),
    "test_averaging": (with_part(Sound, without("use_ema")), "Not the moving average"),
    "test_vanishing_tiny_and_huge_gradients": (with_part(Sound, Normalised), "Gradients of 0"),
    "test_nan_is_not_hidden": (with_part(Sound, HidesNaN), "A gradient of NaN leaves"),
    "test_the_configuration_makes_an_equal_optimizer": (with_part(Sound, NotRegistered), "register_keras_serializable"),
    "test_training_moves_every_weight": (with_part(Sound, LeavesBiases), "bias as it was"),
    "test_frozen_layers_stay": (with_part(Sound, OfAllEver), "A frozen layer was trained"),
    "test_fit_saves_and_goes_on": (WithArgument, "does not go on"),
    "test_the_same_seeds_give_the_same_numbers": (with_part(Sound, Unrepeatable), "The same seeds gave"),
    "test_compiled_and_eager_training_agree": (with_part(Sound, Counting), "Eager training differs"),
    "test_mixed_precision": (with_part(Sound, OfThePolicy), "Training in mixed_float16"),
    "test_two_devices_train_as_one": (with_part(Sound, OfTheDevices), "Two devices differ"),
}
SOUND = (Sound, SoundWithState)
