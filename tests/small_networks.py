"""A network of two layers whose gradients can be had for each example, and data and a trainer for it."""

import keras
from keras import layers, ops

import minimand


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
