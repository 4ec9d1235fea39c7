"""Transforms that are wrong in one way each."""

import keras
from keras import ops

from minimand import testing
from minimand.transforms import Transform
from tests.faults import unrepeatable, with_part

register = keras.saving.register_keras_serializable(package="faults.transforms")


@register
class Scaled(Transform):
    """L -> k L: the sound one."""

    def __init__(self, factor=2.0, *, name=None):
        super().__init__(name=name)
        self.factor = factor

    def apply(self, objective):
        def scaled(weights, batch):
            loss, aux = objective(weights, batch)
            return self.factor * loss, aux

        return scaled

    def get_config(self):
        return {"factor": self.factor, "name": self.name}


class Sound(testing.TransformSuite):
    part: type = Scaled

    def make(self):
        return self.part()

    def reference(self, problem, w):
        return 2 * problem.value(w)


@register
class Tripled(Scaled):
    def __init__(self, factor=3.0, *, name=None):
        super().__init__(factor, name=name)


@register
class OfHalfTheBatch(Scaled):
    """The other half leaves no trace."""

    def apply(self, objective):
        apply = super().apply(objective)
        return lambda weights, batch: apply(weights, batch._replace(x=batch.x[:8], y=batch.y[:8]))


@register
class Assigning(Scaled):
    """It changes the weights themselves before training."""

    needs_examples = True

    def build(self, model):
        self.weights = model.trainable_variables

    def begin_fit(self, examples):
        for weight in self.weights:
            weight.assign(1.01 * weight.value)


@register
class OfTheTrainer(Scaled):
    """It reaches into the trainer that it is part of, and evaluates as it trains."""

    def apply(self, objective):
        trainer = objective._call.__self__
        plain = trainer.compute_loss
        trainer.compute_loss = lambda *args, training=True, **kwargs: (
            (1 if training else self.factor) * plain(*args, training=training, **kwargs)
        )
        return super().apply(objective)


@register
class HidesNaN(Scaled):
    def apply(self, objective):
        apply = super().apply(objective)

        def hiding(weights, batch):
            loss, aux = apply(weights, batch)
            return ops.nan_to_num(loss), aux

        return hiding


class NotRegistered(Scaled):
    """Keras does not find it when a file is loaded."""


@register
class Idle(Scaled):
    """It does nothing."""

    def __init__(self, factor=1.0, *, name=None):
        super().__init__(factor, name=name)


@register
class FirstOnly(Scaled):
    """It takes every objective for the data's."""

    def apply(self, objective):
        self.model = objective.model
        return super().apply(objective)


@register
class WithoutWeights(Scaled):
    def apply(self, objective):
        apply = super().apply(objective)
        return lambda weights, batch: apply(weights, batch._replace(sample_weight=None))


@register
class Forgetful(Scaled):
    """Its argument is not in its configuration."""

    def get_config(self):
        return {"name": self.name}


@register
class Unrepeatable(Scaled):
    """Its numbers are those of the operating system."""

    def __init__(self, *, name=None):
        super().__init__(unrepeatable(), name=name)


@register
class Counting(Scaled):
    """Its Python counts calls: once where it is compiled, each step where it is not."""

    def apply(self, objective):
        calls = []

        def counting(weights, batch):
            calls.append(1)
            loss, aux = objective(weights, batch)
            return len(calls) * loss, aux

        return counting


@register
class OfThePolicy(Scaled):
    """In mixed precision it is another."""

    def __init__(self, *, name=None):
        super().__init__(2.0 if keras.config.dtype_policy().name == "float32" else 4.0, name=name)


@register
class OfTheDevices(Scaled):
    """On several devices it is another."""

    def __init__(self, *, name=None):
        super().__init__(2.0 if keras.distribution.distribution() is None else 4.0, name=name)


class WithArgument(Sound):
    def make(self):
        return Forgetful(3.0)


FAULTS = {
    "test_the_objective_is_the_references": (with_part(Sound, Tripled), "those of the reference"),
    "test_statistics_and_seeds_advance_once_a_step": (with_part(Sound, OfHalfTheBatch), "The moving mean"),
    "test_weights_are_changed_by_the_optimizer_alone": (with_part(Sound, Assigning), "changed at a learning rate of 0"),
    "test_an_error_in_a_step_leaves_the_model_as_it_was": (with_part(Sound, Assigning), "An error in a step changed"),
    "test_evaluation_and_prediction_are_the_models": (with_part(Sound, OfTheTrainer), "`evaluate` is not the model's"),
    "test_nan_in_the_data_is_seen": (with_part(Sound, HidesNaN), "An input is NaN"),
    "test_the_configuration_makes_an_equal_transform": (with_part(Sound, NotRegistered), "register_keras_serializable"),
    "test_training_changes": (with_part(Sound, Idle), "training is the same"),
    "test_composition": (with_part(Sound, FirstOnly), "has no attribute 'model'"),
    "test_sample_weights": (with_part(Sound, WithoutWeights), "Sample weights change nothing"),
    "test_fit_saves_and_goes_on": (WithArgument, "does not go on"),
    "test_the_same_seeds_give_the_same_numbers": (with_part(Sound, Unrepeatable), "The same seeds gave"),
    "test_compiled_and_eager_training_agree": (with_part(Sound, Counting), "Eager training differs"),
    "test_mixed_precision": (with_part(Sound, OfThePolicy), "Training in mixed_float16"),
    "test_two_devices_train_as_one": (with_part(Sound, OfTheDevices), "Two devices differ"),
}
SOUND = (Sound,)
