"""A wrapping loss respects the mask, reduction, dtype and axis of the Keras loss that it wraps."""

import keras
import numpy as np
import pytest
from keras import losses, ops

from minimand.losses import (
    IRLS,
    CVaR,
    Focal,
    GeneralizedCrossEntropy,
    GradientHarmonized,
    GroupDRO,
    HardExampleMining,
    LearnedClassWeights,
    QuantileThreshold,
    SelfPaced,
    StandardizedIRLS,
    TaskUncertainty,
    TemperatureScaled,
)
from minimand.losses._base import trainable_losses
from minimand.testing import gradient
from tests.helpers import mostly_slow, numpy

VOID = 255
WRAPPERS = {
    "focal": lambda loss: Focal(loss, normalize=True),
    "generalized": GeneralizedCrossEntropy,
    "irls": lambda loss: IRLS(loss, normalize=True),
    "mining": lambda loss: HardExampleMining(loss, 0.5),
    "harmonized": GradientHarmonized,
    "self_paced": SelfPaced,
    "standardized": StandardizedIRLS,
    "cvar": lambda loss: CVaR(loss, 0.5),
    "quantile": lambda loss: QuantileThreshold(0.7, loss),
    "task": TaskUncertainty,
    "classes": lambda loss: LearnedClassWeights(3, loss, strength=0.5),
    "dro": lambda loss: GroupDRO(3, loss),
    "temperature": TemperatureScaled,
    "nested": lambda loss: Focal(TaskUncertainty(LearnedClassWeights(3, loss))),
}


def ready(loss, y, p):
    """The loss outside of a trainer."""
    for part in trainable_losses(loss):
        part.build_once(y.shape, p.shape)
    return loss


def probabilities(random, *shape):
    p = np.exp(random.normal(size=shape))
    return (p / p.sum(axis=-1, keepdims=True)).astype("float32")


@pytest.mark.parametrize("weighted", mostly_slow([False, True], True))
@pytest.mark.parametrize("name", mostly_slow(WRAPPERS, "focal", "quantile", "classes"))
def test_ignored_positions_do_not_count(name, weighted, random):
    """For images of classes, value, gradient and state are those of the other positions alone."""
    # PyTorch has no gradient of Keras's cross-entropy of probabilities for images.
    p, y = random.normal(size=(2, 3, 4, 3)).astype("float32"), random.integers(3, size=(2, 3, 4)).astype("float32")
    weight = random.uniform(0.5, 2.0, size=y.shape).astype("float32") if weighted else None
    y[random.random(size=y.shape) < 0.4] = VOID
    kept = y != VOID
    images, rows = (
        ready(WRAPPERS[name](losses.SparseCategoricalCrossentropy(True, ignore)), y[:1], p[:1])
        for ignore in (VOID, None)
    )
    for _ in range(3):
        value = images(y, p, sample_weight=weight)
        expected = rows(y[kept], p[kept], sample_weight=None if weight is None else weight[kept])
        np.testing.assert_allclose(numpy(value), numpy(expected), rtol=2e-5)
    for part, other in zip(trainable_losses(images), trainable_losses(rows), strict=True):
        part.training = other.training = False
        for a, b in zip(part.variables, other.variables, strict=True):
            np.testing.assert_allclose(numpy(a), numpy(b), rtol=1e-5, atol=1e-7)
    (of_images,) = gradient(lambda v: images(y, v, sample_weight=weight), p)
    (of_rows,) = gradient(lambda v: rows(y[kept], v, sample_weight=None if weight is None else weight[kept]), p[kept])
    np.testing.assert_allclose(of_images[kept], of_rows, rtol=1e-4, atol=1e-6)
    assert not of_images[~kept].any()


def same(random):
    """Losses and what they are given, as arguments of a call."""
    p, y = probabilities(random, 8, 3), random.integers(3, size=8)
    one_hot = np.eye(3, dtype="float32")[y]
    images, classes = probabilities(random, 2, 4, 5, 3), random.integers(3, size=(2, 4, 5))
    first = np.moveaxis(images, -1, 1), np.moveaxis(np.eye(3, dtype="float32")[classes], -1, 1)
    weights = random.uniform(0.5, 2.0, size=8).astype("float32")
    unit = p / np.linalg.norm(p, axis=-1, keepdims=True)
    void = np.where(random.random(size=y.shape) < 0.4, VOID, y)
    # Only PyTorch's function takes another axis of classes.
    sparse_axis = {"sparse_axis": (losses.SparseCategoricalCrossentropy(axis=1), classes, first[0], None)}
    return {
        **(sparse_axis if keras.backend.backend() == "torch" else {}),
        "ignore_class": (losses.SparseCategoricalCrossentropy(ignore_class=VOID), void, p, weights),
        "own_mask": (losses.Circle(), y, unit, weights),
        "smoothing": (losses.CategoricalCrossentropy(label_smoothing=0.2), one_hot, p, weights),
        "axis": (losses.CategoricalCrossentropy(axis=1), first[1], first[0], None),
        "sum": (losses.CategoricalCrossentropy(reduction="sum"), one_hot, p, weights),
        "weighted_mean": (losses.CategoricalCrossentropy(reduction="mean_with_sample_weight"), one_hot, p, weights),
        "half": (losses.CategoricalCrossentropy(dtype="float16"), one_hot, p, weights),
        "logits": (losses.CategoricalCrossentropy(from_logits=True), one_hot, np.log(p), weights),
    }


@pytest.mark.parametrize(
    "wrapper",
    [
        # At the first value of its variables each is the loss that it wraps.
        lambda loss: TaskUncertainty(loss, "classification"),
        lambda loss: LearnedClassWeights(3, loss),
        lambda loss: TemperatureScaled(loss, from_logits=loss.get_config().get("from_logits", False)),
        lambda loss: IRLS(loss, alpha=2.0),
        lambda loss: Focal(TaskUncertainty(loss, "classification"), gamma=1e-6),
    ],
    ids=["task", "classes", "temperature", "irls", "nested"],
)
def test_a_wrapper_without_effect_is_the_loss(wrapper, random):
    for name, (inner, y, p, weight) in same(random).items():
        if name == "own_mask" and wrapper(inner).name == "temperature_scaled":
            continue
        loss = ready(wrapper(inner), y, p)
        tolerance = 2e-3 if name == "half" else 2e-5
        np.testing.assert_allclose(
            numpy(loss(y, p, sample_weight=weight)),
            numpy(inner(y, p, sample_weight=weight)),
            rtol=tolerance,
            err_msg=name,
        )
        assert (loss.reduction, loss.dtype) == (inner.reduction, inner.dtype)


def test_a_wrappers_own_options_come_first(random):
    y, p, weight = np.eye(3, dtype="float32"), probabilities(random, 3, 3), np.float32([1.0, 2.0, 3.0])
    for inner in (losses.CategoricalCrossentropy(reduction="sum"), losses.CategoricalCrossentropy(reduction=None)):
        # Values that are not reduced are for the wrapper to reduce.
        expected = {"sum": "sum", None: "sum_over_batch_size"}[inner.reduction]
        for make in (Focal, lambda loss, **own: LearnedClassWeights(3, loss, **own)):
            assert make(inner).reduction == expected
            assert make(inner, reduction="none").reduction == "none"
            loss = ready(make(inner, reduction="mean_with_sample_weight"), y, p)
            each = ready(make(inner, reduction="none"), y, p)(y, p)
            value = numpy(loss(y, p, sample_weight=weight))
            assert value == pytest.approx(np.average(numpy(each), weights=weight), rel=1e-5)
            again = type(loss).from_config(loss.get_config())
            assert (again.reduction, again.loss.reduction) == ("mean_with_sample_weight", inner.reduction)


def test_a_mask_of_the_predictions_and_an_ignored_class(random):
    """A position counts that neither leaves out."""
    p, y = probabilities(random, 4, 5, 3), random.integers(3, size=(4, 5)).astype("float32")
    mask = random.random(size=(4, 5)) < 0.6
    y[random.random(size=(4, 5)) < 0.4] = VOID
    kept = mask & (y != VOID)
    loss = Focal(losses.SparseCategoricalCrossentropy(ignore_class=VOID))
    masked = keras.layers.Masking(mask_value=-1.0)(ops.convert_to_tensor(np.where(mask[..., None], p, -1.0)))
    actual = loss(y, masked)
    np.testing.assert_allclose(
        numpy(actual), numpy(Focal("sparse_categorical_crossentropy")(y[kept], p[kept])), rtol=1e-5
    )
