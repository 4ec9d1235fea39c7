"""Each suite passes a part that is sound, and fails one with a fault that third parties make."""

import keras
import numpy as np
import pytest
from keras import ops

from minimand import testing
from minimand.regularizers import WeightRegularizer
from minimand.transforms import Transform

register = keras.saving.register_keras_serializable(package="faults")


@register
class Squared(keras.losses.Loss):
    """The mean of squares."""

    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_pred - y_true), axis=-1)


@register
class HalfOfTheGradient(Squared):
    """One factor of the square is a constant to the gradient."""

    def call(self, y_true, y_pred):
        error = y_pred - y_true
        return ops.mean(ops.stop_gradient(error) * error, axis=-1)


class OfLosses(testing.LossSuite):
    hides_nan = False
    sound, faulty = Squared, HalfOfTheGradient

    def make(self, **arguments):
        return self.sound(**arguments)

    def reference(self, loss, y_true, y_pred):
        return np.mean((y_pred - y_true) ** 2, axis=-1)


@register
class Lasso(WeightRegularizer):
    """R(w) = sum |w|."""

    def penalty(self, weights):
        return ops.sum(weights * ops.sign(weights))

    def proximal(self, weights, step):
        return ops.sign(weights) * ops.relu(ops.abs(weights) - step)


@register
class HalfAStep(Lasso):
    """The proximal map of half the strength."""

    def proximal(self, weights, step):
        return super().proximal(weights, step / 2)


class OfRegularizers(testing.RegularizerSuite):
    sound, faulty = Lasso, HalfAStep

    def make(self, strength):
        return self.sound(strength)

    def reference(self, w):
        return np.abs(w).sum()


@register
class HidesNaN(keras.optimizers.SGD):
    """A gradient of NaN counts as 0."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(ops.nan_to_num(gradient), variable, learning_rate)


class OfOptimizers(testing.OptimizerSuite):
    sound, faulty = keras.optimizers.SGD, HidesNaN

    def make(self, learning_rate, **arguments):
        return self.sound(learning_rate, **arguments)

    def reference(self, learning_rate, weights, gradients):
        return weights - learning_rate * np.cumsum(gradients, axis=0)


@register
class Doubled(Transform):
    """L -> 2 L."""

    def apply(self, objective):
        def doubled(weights, batch):
            loss, aux = objective(weights, batch)
            return 2 * loss, aux

        return doubled


@register
class OfHalfTheBatch(Doubled):
    """The second half of the batch leaves no trace."""

    def apply(self, objective):
        apply = super().apply(objective)
        return lambda weights, batch: apply(weights, batch._replace(x=batch.x[:8], y=batch.y[:8]))


class OfTransforms(testing.TransformSuite):
    sound, faulty = Doubled, OfHalfTheBatch

    def make(self):
        return self.sound()

    def reference(self, problem, w):
        return 2 * problem.value(w)


@pytest.mark.parametrize(
    ("suite", "test", "words"),
    [
        (OfLosses, "test_the_gradient_is_the_references", "Not the gradient by the predictions"),
        (OfRegularizers, "test_nothing_nearby_is_better_than_the_proximal_map", "elsewhere it is"),
        (OfOptimizers, "test_nan_is_not_hidden", "A gradient of NaN leaves"),
        (OfTransforms, "test_statistics_and_seeds_advance_once_a_step", "The moving mean"),
    ],
)
def test_a_suite_finds_a_fault(suite, test, words):
    sound = suite()
    sound.setup_method()
    getattr(sound, test)()
    faulty = type("Faulty", (suite,), {"sound": suite.faulty})()
    faulty.setup_method()
    with pytest.raises(AssertionError, match=words):
        getattr(faulty, test)()
