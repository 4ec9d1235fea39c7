"""Every part of the library through the suite that third parties run."""

import functools
import inspect

import keras
import pytest

import minimand
from minimand import testing
from tests import parts

# PyTorch compiles nothing, and puts every part through the whole suite. JAX does so with each tenth part, and TensorFlow,
# which traces for longest, with each twentieth.
STEP = {"torch": 1, "jax": 10, "tensorflow": 20}[keras.backend.backend()]


def slow(test):
    @pytest.mark.slow
    @functools.wraps(test)
    def marked(self):
        test(self)

    return marked


# `make test` compares each third part with its reference, and puts the first part of each list through the whole suite.
COMPARED = tuple(f"test_the_{what}" for what in ("value", "gradient", "objective", "path"))


def suites(suite, listed):
    tests = {name: test for name, test in inspect.getmembers(suite, inspect.isfunction) if name.startswith("test_")}
    compared = {name: test for name, test in tests.items() if name.startswith(COMPARED)}
    for index, (name, part) in enumerate(listed.items()):
        attributes = {}
        if index % 3:
            attributes = {each: slow(test) for each, test in compared.items()}
        if index:
            # A list keeps the order, which must be the same in all workers.
            others = [each for each in tests if each not in compared]
            attributes |= {each: None if index % STEP else slow(tests[each]) for each in others}
        title = "Test" + "".join(word.title() for word in name.split("_"))
        globals()[title] = parts.suite_of(suite, part, **attributes, __module__=__name__)


suites(testing.LossSuite, parts.LOSSES)
suites(testing.RegularizerSuite, parts.REGULARIZERS)
suites(testing.OptimizerSuite, parts.OPTIMIZERS)
suites(testing.TransformSuite, parts.TRANSFORMS)


def test_every_loss_is_in_the_list():
    public = {getattr(minimand.losses, name) for name in minimand.losses.__all__}
    classes = {part for part in public if isinstance(part, type)}
    abstract = {minimand.losses.TrainableLoss, minimand.losses.UncertaintyWeighted, minimand.losses.Parameter}
    assert classes - abstract == {type(part.make()) for part in parts.LOSSES.values()}


def test_every_regularizer_is_in_the_list():
    public = {getattr(minimand.regularizers, name) for name in minimand.regularizers.__all__}
    classes = {part for part in public if isinstance(part, type)}
    # The second is of several variables: see test_regularizers.py.
    others = {minimand.regularizers.WeightRegularizer, minimand.regularizers.JointGroupLasso}
    assert classes - others == {type(part.make()) for part in parts.REGULARIZERS.values()}


def test_every_optimizer_is_in_the_list():
    public = {getattr(minimand.optimizers, name) for name in minimand.optimizers.__all__}
    assert public == {type(part.make(0.1)) for part in parts.OPTIMIZERS.values()}


def test_every_transform_is_in_the_list():
    public = {getattr(minimand.transforms, name) for name in minimand.transforms.__all__}
    classes = {part for part in public if isinstance(part, type)}
    others = {minimand.transforms.Transform, minimand.transforms.Batch, minimand.transforms.ScaleMixturePrior}
    assert classes - others == {type(part.make()) for part in parts.TRANSFORMS.values()}
