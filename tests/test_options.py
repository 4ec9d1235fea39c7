"""Each option of each part changes what is trained or logged: none is ignored in silence.

Here each changes something; what it should change is in the tests of the part.
"""

import inspect

import keras
import numpy as np
import pytest

import minimand
from minimand import losses, optimizers, transforms
from tests.options import CASES, LOSSES, REGULARIZERS, TRANSFORMS, Where

# Each option is trained with two values.
pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(16, 4)).astype("float32")
LABELS = np.arange(16) % 3
# Inputs, targets and the last layer of a network, by kind of problem.
DATA = {
    "numbers": (X, RANDOM.normal(size=(16, 8)), lambda: keras.layers.Dense(8)),
    "rows": (RANDOM.normal(size=(16, 3, 4)), RANDOM.normal(size=(16, 3, 2)), lambda: keras.layers.Dense(2)),
    "images": (RANDOM.uniform(size=(16, 3, 8, 3)), RANDOM.uniform(size=(16, 3, 8, 3)), lambda: keras.layers.Dense(3)),
    "classes": (X, LABELS, lambda: keras.layers.Dense(3, "softmax")),
    "embedded": (X, LABELS, lambda: keras.layers.Dense(2)),
    "binary": (X, LABELS[:, None] % 2, lambda: keras.layers.Dense(1, "sigmoid")),
}
# The kind of problem of losses that are not for numbers.
KINDS = {
    "rows": {losses.AdaptiveRobust, losses.AdaptiveStudentT},
    "images": {losses.AdaptiveImage},
    "classes": {losses.GroupDRO, losses.LearnedClassWeights, losses.LogitAdjusted, losses.TemperatureScaled},
    "embedded": {losses.ClassMahalanobis, losses.DeepSVDD, losses.LMNN, losses.NCA},
    "binary": {
        losses.CostThreshold,
        losses.F1Threshold,
        losses.PrecisionAtRecallThreshold,
        losses.RecallAtPrecisionThreshold,
    },
}


def fitted(kind, loss="mse", optimizer=None, transforms=()):
    """The logs of two epochs of two batches, and the weights after them."""
    x, y, layer = DATA[kind]
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    trainer = minimand.Trainer(keras.Sequential([keras.Input(x.shape[1:]), layer()]))
    trainer.compile(optimizer or keras.optimizers.SGD(0.1), loss, transforms=transforms)
    history = trainer.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    return {**history, **{w.path: w.numpy() for w in trainer.model.weights}}


def of_tasks(loss):
    x, y, _ = DATA["numbers"]
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in ("a", "b")}
    trainer = minimand.Trainer(keras.Model(inputs, outputs))
    trainer.compile(keras.optimizers.SGD(0.1), loss)
    history = trainer.fit(x, {"a": y[:, :1], "b": 3 * y[:, 1:2]}, epochs=2, batch_size=8, shuffle=False, verbose=0)
    return history.history


def of_transform(transform):
    optimizer = None
    if isinstance(transform, transforms.IVONNoise):
        optimizer = optimizers.IVON(0.1)
    if isinstance(transform, transforms.MiniBatchVariance):
        optimizer = optimizers.MSVAG(0.1, variance="mini_batch")
    return fitted("numbers", optimizer=optimizer, transforms=[transform])


def of_optimizer(optimizer):
    needed = []
    if isinstance(optimizer, optimizers.IVON):
        needed = [transforms.IVONNoise(seed=1)]
    if getattr(optimizer, "variance", None) == "mini_batch":
        needed = [transforms.MiniBatchVariance(estimator="exact")]
    return fitted("numbers", optimizer=optimizer, transforms=needed)


def made(part, arguments):
    return part(**{k: v() if k == "optimizer" else v for k, v in arguments.items()})


def seen(part, arguments):
    """The result holds the logs and the weights of a model that is trained with the part."""
    instance = made(part, arguments)
    if part is losses.UncertaintyWeighted:
        return of_tasks(instance)
    if part is transforms.ScaleMixturePrior:
        return of_transform(transforms.VariationalWeightNoise(prior=instance, init=0.1, seed=1))
    if part in LOSSES:
        return fitted(next((kind for kind, parts in KINDS.items() if part in parts), "numbers"), instance)
    if part in REGULARIZERS:
        return of_transform(transforms.WeightPenalty(instance))
    return of_transform(instance) if part in TRANSFORMS else of_optimizer(instance)


SEEN = {}


def seen_twice(part, arguments):
    """Return what a training with these arguments shows. A second training must give the same numbers."""
    key = part, repr(arguments)
    if key not in SEEN:
        SEEN[key] = seen(part, arguments)
        assert same(SEEN[key], seen(part, arguments))
    return SEEN[key]


def same(found, other):
    return found.keys() == other.keys() and all(np.array_equal(found[key], other[key], equal_nan=True) for key in found)


@pytest.mark.parametrize(
    ("part", "option"),
    [(part, option) for part, case in CASES.items() for option in case.options],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_option_changes_something(part, option):
    case = CASES[part]
    value = case.options[option]
    others, value = value if isinstance(value, Where) else ({}, value)
    before = case.arguments | others
    assert not same(seen_twice(part, before), seen(part, before | {option: value}))


@pytest.mark.parametrize("part", CASES, ids=lambda part: part.__name__)
def test_names(part):
    if "name" in inspect.signature(part).parameters:
        assert made(part, CASES[part].arguments | {"name": "mine"}).name == "mine"
