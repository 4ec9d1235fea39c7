"""Backends that are wrong in one way each."""

from types import SimpleNamespace

import keras
from keras import ops

import minimand
from minimand import backend
from tests.backend_suite import BackendSuite


class Sound(BackendSuite):
    """Of the one in use."""


def with_gradients(change):
    """A `value_and_gradient` whose gradients are changed."""

    def value_and_gradient(function, values, *, differentiable=True):
        found, gradients = backend.value_and_gradient(function, values, differentiable=differentiable)
        return found, [change(gradient) for gradient in gradients]

    return value_and_gradient


def with_half_of_the_aux(function, values, *, differentiable=True):
    """As if its own derivatives were half as large."""
    (value, aux), gradients = backend.value_and_gradient(function, values, differentiable=differentiable)
    if aux is None:
        return (value, aux), gradients
    return (value, keras.tree.map_structure(lambda leaf: (leaf + ops.stop_gradient(leaf)) / 2, aux)), gradients


def doubled_vjp(outputs, values):
    pull = backend.vjp(outputs, values)
    return pull and (lambda cotangents: [2 * gradient for gradient in pull(cotangents)])


def differentiated_by_the_framework(function):
    """Whatever derivative is given."""
    return lambda *arguments: function(*arguments)[0]


def of_the_first_row(function):
    mapped = backend.vmap(function)
    return lambda rows, *rest: keras.tree.map_structure(lambda leaf: leaf[:1] + 0 * leaf, mapped(rows, *rest))


def in_order(array, positions, values):
    return backend.scatter_update(array, ops.sort(positions), values)


def faulty(**functions):
    """The backend in use with other functions, as a suite's."""
    return type("Faulty", (Sound,), {"backend": SimpleNamespace(**vars(backend) | functions)})


class OfAnotherStep(Sound):
    """The step is that of `minimand.Trainer`: here its loss is another than Keras's."""

    def test_the_train_step_is_kerass(self):
        compute_loss = minimand.Trainer.compute_loss
        minimand.Trainer.compute_loss = lambda self, *args, **kwargs: 1.1 * compute_loss(self, *args, **kwargs)
        try:
            super().test_the_train_step_is_kerass()
        finally:
            minimand.Trainer.compute_loss = compute_loss


ones_for_zeros = with_gradients(lambda gradient: ops.where(gradient == 0, 1.0, gradient))

FAULTS = {
    "test_value_aux_and_gradient": (faulty(value_and_gradient=with_gradients(lambda g: 2 * g)), "The first gradient"),
    "test_the_gradient_of_an_unused_value_is_zero": (faulty(value_and_gradient=ones_for_zeros), "an unused value"),
    "test_the_gradient_of_an_embedding_is_dense": (faulty(value_and_gradient=ones_for_zeros), "of a table"),
    "test_the_gradient_of_a_gradient": (
        faulty(pure_value_and_gradient=with_gradients(lambda g: 2 * g)),
        "The second derivative",
    ),
    "test_what_is_differentiated_by_what_the_function_holds": (
        faulty(value_and_gradient=with_half_of_the_aux),
        "by the value",
    ),
    "test_the_vjp_is_the_gradient": (faulty(vjp=doubled_vjp), "The vector-Jacobian product"),
    "test_derivatives_in_closed_form": (
        faulty(custom_derivative=differentiated_by_the_framework),
        "constant to a first",
    ),
    "test_a_tap_has_a_gradient_on_the_side": (faulty(tap=lambda output, *rest: output), "shadow's gradient"),
    "test_noise_has_the_stated_law": (
        faulty(noise=lambda law, shapes, seed, scale=1.0: backend.noise(law, shapes, seed, 1.1 * scale)),
        "The variance of normal noise",
    ),
    "test_loops": (faulty(vmap=of_the_first_row), "A function of each row"),
    "test_scatter_update": (faulty(scatter_update=in_order), "Values put into an array"),
    "test_devices_and_replicas": (faulty(devices=list), "`devices` must name some"),
    "test_the_train_step_is_kerass": (OfAnotherStep, "loss with []"),
}
SOUND = (Sound,)
