"""A batch is the same after a step, though Keras's losses, and layers and losses of users, change it in place.

On PyTorch alone: the arrays of the other backends cannot be changed.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import minimand
from minimand.gradients import gradient_moments
from minimand.optimizers import IVON, MSVAG
from minimand.regularizers import fisher_information
from minimand.transforms import (
    Fishr,
    GradientNormPenalty,
    GradientVariancePenalty,
    IVONNoise,
    MeasureGradient,
    MiniBatchVariance,
    SharpnessAware,
    VariationalWeightNoise,
    WeightNoise,
    WeightPenalty,
)
from tests.helpers import numpy

TINY = 1e-12


class Doubles(layers.Layer):
    def call(self, inputs):
        return inputs.mul_(2.0)


class Masked(keras.Model):
    """A network of words and numbers; it empties the dictionary of its inputs."""

    def __init__(self):
        super().__init__()
        self.words, self.twice, self.last = layers.Embedding(4, 3, mask_zero=True), Doubles(), layers.Dense(1)

    def call(self, inputs):
        words, numbers = inputs.pop("words"), inputs.pop("numbers")
        return self.last(self.words(words) * self.twice(numbers))


class SquaredError(keras.losses.Loss):
    def call(self, y_true, y_pred):
        known = y_pred.detach()
        return ops.mean(ops.square(y_true.sub_(known) + known - y_pred), axis=-1)


def domains(batch):
    return batch.x["words"][:, 0].remainder_(2)


NOTHING = {
    "noise": lambda: WeightNoise(1e-7, samples=2, antithetic=True),
    "noise_by_example": lambda: WeightNoise(1e-7, per="example"),
    "learned_noise": lambda: VariationalWeightNoise(init=1e-7, kl_weight=0.0, samples=2),
    "ivon": lambda: IVONNoise(examples=1e14, samples=2),
    "sharpness_aware": lambda: SharpnessAware(1e-7),
    "weight_penalty": lambda: WeightPenalty(keras.regularizers.L2(TINY)),
    "gradient_norm": lambda: GradientNormPenalty(TINY),
    "probe": lambda: GradientVariancePenalty(TINY, estimator="probe"),
    "micro_batch": lambda: GradientVariancePenalty(TINY, estimator="micro_batch"),
    "exact": lambda: GradientVariancePenalty(TINY, estimator="exact"),
    "fishr": lambda: Fishr(TINY, domains, 2),
    "measure": lambda: MeasureGradient(every=1),
    "mini_batch_variance": MiniBatchVariance,
}
OPTIMIZERS = {"ivon": IVON, "mini_batch_variance": lambda: MSVAG(variance="mini_batch")}


@pytest.fixture
def batch(random):
    """Inputs, targets and a weight for each position, of which a third are masked."""
    words = random.integers(0, 3, size=(8, 5))
    numbers, y = random.normal(size=(2, 8, 5, 1)).astype("float32")
    return {"words": words, "numbers": numbers}, y, random.uniform(0.5, 2.0, size=(8, 5)).astype("float32")


def trainer_for(batch, *transforms, optimizer="sgd"):
    keras.utils.set_random_seed(3)
    trainer = minimand.Trainer(Masked())
    trainer.compile(optimizer, SquaredError(), transforms=transforms)
    trainer.prepare(*batch)
    return trainer


def unchanged(function, batch):
    """The function's result; the batch must be as it was."""
    tensors = keras.tree.map_structure(lambda leaf: ops.convert_to_tensor(leaf.copy()), batch)
    result = function(*tensors)
    keras.tree.map_structure(lambda a, b: np.testing.assert_array_equal(numpy(a), b), tensors, batch)
    return result


@pytest.mark.parametrize("name", NOTHING)
def test_a_transform_of_no_strength_gives_the_plain_loss(name, batch):
    plain = trainer_for(batch)
    expected, gradients = unchanged(plain.value_and_gradient, batch)
    trainer = trainer_for(batch, NOTHING[name](), optimizer=OPTIMIZERS.get(name, lambda: "sgd")())
    value, found = unchanged(trainer.value_and_gradient, batch)
    np.testing.assert_allclose(numpy(value), numpy(expected), rtol=1e-5)
    for a, b in zip(found, gradients, strict=False):
        np.testing.assert_allclose(numpy(a), numpy(b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transforms", [[], [SharpnessAware(1e-7)]], ids=["plain", "transformed"])
def test_metrics_are_weighted_once(transforms, batch):
    """Keras multiplies the weights by the mask in place, before the metrics read them."""
    trainer = trainer_for(batch)
    trainer.compile(keras.optimizers.SGD(0.0), SquaredError(), weighted_metrics=["mse", "mae"], transforms=transforms)
    x, y, weight = batch
    history = trainer.fit(x, y, sample_weight=weight, batch_size=8, verbose=0).history
    for name, metric in (("mse", keras.metrics.MeanSquaredError()), ("mae", keras.metrics.MeanAbsoluteError())):
        metric.update_state(y.copy(), trainer(dict(x)), weight.copy())
        assert history[name] == pytest.approx([float(numpy(metric.result()))], rel=1e-5)


@pytest.mark.parametrize("estimator", ["exact", "probe", "micro_batch"])
def test_moments_of_a_batch(estimator, batch):
    trainer = trainer_for(batch)
    arguments = {"estimator": estimator, "micro_batches": 8, "samples": 4, "seed": 1}
    moments = unchanged(lambda *data: gradient_moments(trainer, *data, **arguments), batch)
    _, gradients = unchanged(trainer.value_and_gradient, batch)
    if estimator != "micro_batch":
        for mean, gradient in zip(moments.mean, gradients, strict=True):
            np.testing.assert_allclose(mean, numpy(gradient), rtol=1e-4, atol=1e-6)
    assert moments.trace == unchanged(lambda *data: gradient_moments(trainer, *data, **arguments), batch).trace


def test_samples_sharpness_and_fisher_information(batch):
    trainer = trainer_for(batch, WeightNoise(1e-7))
    x, y, _ = batch
    samples = unchanged(lambda x: trainer.predict_samples(x, 3), (x,))
    np.testing.assert_allclose(samples, [trainer.predict(x, verbose=0)] * 3, rtol=1e-4, atol=1e-5)
    first, again = (unchanged(lambda *data: trainer.sharpness(*data, seed=1).trace, batch) for _ in range(2))
    assert first == again
    first, again = (
        unchanged(lambda x, y: fisher_information(trainer.model, x, y, SquaredError()), (x, y)) for _ in "ab"
    )
    for path, array in first.items():
        np.testing.assert_array_equal(array, again[path])
