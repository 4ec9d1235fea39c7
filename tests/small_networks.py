"""A network of two layers whose gradients can be had for each example, and data and a trainer for it."""

import keras
from keras import layers, ops

import minimand
from tests.helpers import compiled


def small_network(*more, activation="tanh"):
    keras.utils.set_random_seed(4)
    return keras.Sequential([keras.Input((3,)), layers.Dense(4, activation), *more, layers.Dense(2)])


def batch_for(model, random, rows=7):
    return random.normal(size=(rows, *model.input_shape[1:])), random.normal(size=(rows, *model.output_shape[1:]))


@keras.saving.register_keras_serializable(package="tests")
def squares(y_true, y_pred):
    """Keras's mean squared error computes in float32."""
    return ops.sum(ops.square(y_true - y_pred), axis=-1)


def trainer_of(model, *transforms, optimizer="sgd", loss=squares, **arguments):
    trainer = minimand.Trainer(model)
    trainer.compile(optimizer, loss, transforms=transforms, **arguments)
    return trainer


def objective_of(trainer, x, y):
    """The trainer's objective as a function of the trainable values, from the same seeds at each call."""
    batch = trainer.prepare(x, y)
    state = [v.value for v in trainer.non_trainable_variables], [v.value for v in trainer.metrics_variables]
    return compiled(lambda values: trainer.evaluate_objective(values, *state, batch)[0])


def value_and_gradient(trainer, x, y):
    """As `trainer.value_and_gradient`, but as one program and without a change of the trainer's state."""
    trainer.prepare(x, y)
    return compiled(trainer.value_and_gradient)(x, y)


def one_layer(input_shape, outputs):
    """The network of a study whose training is not what is tested: it compiles in less time than `mlp`."""
    return keras.Sequential([keras.Input(input_shape), layers.Dense(outputs, "linear" if outputs == 1 else "softmax")])
