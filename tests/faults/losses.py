"""Losses that are wrong in one way each."""

import keras
import numpy as np
from keras import ops

from minimand import testing
from minimand.losses import TrainableLoss
from minimand.parametrizations import Positive
from tests.faults import unrepeatable, with_part

register = keras.saving.register_keras_serializable(package="faults.losses")


@register
class Squared(keras.losses.Loss):
    """The mean of squares: the sound one."""

    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_pred - y_true), axis=-1)


class Sound(testing.LossSuite):
    # As of any loss of Keras's.
    hides_nan = False
    largest = 1e9
    part: type = Squared

    def make(self, **arguments):
        return self.part(**arguments)

    def reference(self, loss, y_true, y_pred):
        return np.mean((y_pred - y_true) ** 2, axis=-1)


@register
class Likelihood(TrainableLoss):
    """(r / s)^2 / 2 + log s with a learned s: sound, with a variable."""

    def build(self, y_true_shape, y_pred_shape):
        self.scale = self.add_weight((), 1.0, parametrization=Positive(), name="scale")

    def of(self, y_true, y_pred, s):
        return ops.mean(ops.square(y_pred - y_true), axis=-1) / (2 * ops.square(s)) + ops.log(s)

    def call(self, y_true, y_pred):
        return self.of(y_true, y_pred, self.scale.value)


class SoundTrainable(Sound):
    hides_nan = True
    part = Likelihood

    def reference(self, loss, y_true, y_pred):
        s = loss.scale.numpy()
        return np.mean((y_pred - y_true) ** 2, axis=-1) / (2 * s**2) + np.log(s)


class Scaled(Squared):
    """k times the sound one."""

    factor = 1.0

    def call(self, y_true, y_pred):
        return self.factor * super().call(y_true, y_pred)


@register
class Doubled(Scaled):
    factor = 2.0


@register
class HalfOfTheGradient(Squared):
    def call(self, y_true, y_pred):
        error = y_pred - y_true
        return ops.mean(ops.stop_gradient(error) * error, axis=-1)


@register
class ConstantVariable(Likelihood):
    """Its variable is read as a constant."""

    def call(self, y_true, y_pred):
        return self.of(y_true, y_pred, ops.stop_gradient(self.scale.value))


@register
class WithoutWeights(Squared):
    def __call__(self, y_true, y_pred, sample_weight=None):
        return super().__call__(y_true, y_pred)


@register
class OfTheBatch(Squared):
    """An example's value depends on how many there are with it, whatever their weights."""

    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred) + ops.mean(y_pred)


@register
class PlusOne(Squared):
    """A constant for the batch, which no weight reaches."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        return super().__call__(y_true, y_pred, sample_weight) + 1.0


@register
class Truncating(Squared):
    """What does not match is cut off."""

    def call(self, y_true, y_pred):
        return super().call(y_true[: y_pred.shape[0]], y_pred)


@register
class HidesNaN(Squared):
    def call(self, y_true, y_pred):
        return super().call(y_true, ops.nan_to_num(y_pred))


@register
class RootAtZero(Squared):
    """The norm's derivative at 0 is 0 / 0."""

    def call(self, y_true, y_pred):
        return ops.sqrt(super().call(y_true, y_pred))


@register
class InHalfPrecision(Squared):
    def call(self, y_true, y_pred):
        return ops.cast(super().call(ops.cast(y_true, "float16"), ops.cast(y_pred, "float16")), "float32")


@register
class Forgetful(Scaled):
    """Its argument is not in its configuration."""

    def __init__(self, factor=1.0, **arguments):
        super().__init__(**arguments)
        self.factor = factor


@register
class Shared(Likelihood):
    """Its copies are itself."""

    def __deepcopy__(self, memo):
        return self


@register
class LikeAnyOther(Likelihood):
    """Stock `compile` takes it, and leaves its variable alone."""

    @property
    def in_trainer(self):
        return True

    @in_trainer.setter
    def in_trainer(self, value):
        pass


@register
class Unrepeatable(Scaled):
    """Its numbers are those of the operating system."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.factor = unrepeatable()


@register
class Counting(Squared):
    """Its Python counts calls: once where it is compiled, each step where it is not."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.calls = 0

    def call(self, y_true, y_pred):
        self.calls += 1
        return self.calls * super().call(y_true, y_pred)


@register
class OfThePolicy(Scaled):
    """In mixed precision it is another."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.factor = 1.0 if keras.config.dtype_policy().name == "float32" else 2.0


@register
class OfTheDevices(Scaled):
    """On several devices it is another."""

    @property
    def factor(self):
        return 1.0 if keras.distribution.distribution() is None else 2.0


class WithNaNInMasks(Sound):
    """Keras's product with the mask keeps NaN."""

    hides_nan = True


class OfPictures(Sound):
    targets = "pictures"


class WithArgument(Sound):
    def make(self, **arguments):
        return Forgetful(factor=3.0, **arguments)


FAULTS = {
    "test_the_suite_is_told_what_the_loss_is_for": (OfPictures, "`targets` must be one of"),
    "test_the_values_are_the_references": (with_part(Sound, Doubled), "not the reference"),
    "test_the_gradient_is_the_references": (with_part(Sound, HalfOfTheGradient), "Not the gradient by the predictions"),
    "test_the_variables_gradient_is_the_references": (
        with_part(SoundTrainable, ConstantVariable),
        "Not the gradient by latent_scale",
    ),
    "test_reductions_and_sample_weights": (with_part(Sound, WithoutWeights), "A sample weight is not a factor"),
    "test_a_weight_counts_as_repetitions_do": (with_part(Sound, OfTheBatch), "is not k examples"),
    "test_a_batch_of_which_nothing_counts": (with_part(Sound, PlusOne), "All sample weights are 0"),
    "test_masked_positions_do_not_count": (WithNaNInMasks, "Masked positions change the loss"),
    "test_shapes_that_do_not_match_are_refused": (with_part(Sound, Truncating), "must be refused"),
    "test_nan_is_not_hidden": (with_part(Sound, HidesNaN), "A prediction is NaN"),
    "test_zero_and_extreme_predictions": (with_part(Sound, RootAtZero), "The gradient is [[nan"),
    "test_dtypes": (with_part(Sound, InHalfPrecision), "The loss of float16 predictions"),
    "test_the_configuration_makes_an_equal_loss": (WithArgument, "an argument is lost"),
    "test_copies_are_independent": (with_part(SoundTrainable, Shared), "changes the original"),
    "test_training_changes_weights_and_variables": (with_part(SoundTrainable, ConstantVariable), "latent_scale"),
    "test_stock_compile_works_or_is_refused": (with_part(SoundTrainable, LikeAnyOther), "took a loss with variables"),
    "test_fit_saves_and_goes_on": (WithArgument, "does not go on"),
    "test_the_same_seeds_give_the_same_numbers": (with_part(Sound, Unrepeatable), "The same seeds gave"),
    "test_compiled_and_eager_training_agree": (with_part(Sound, Counting), "Eager training differs"),
    "test_mixed_precision": (with_part(Sound, OfThePolicy), "Training in mixed_float16"),
    "test_two_devices_train_as_one": (with_part(Sound, OfTheDevices), "Two devices differ"),
}
SOUND = (Sound, SoundTrainable)
