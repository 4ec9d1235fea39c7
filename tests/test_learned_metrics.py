"""The learned metrics against brute force."""

import copy

import keras
import numpy as np
import pytest

import minimand
from minimand.losses import NCA, Mahalanobis
from minimand.losses._metric import large_margin, neighbor_errors, squared_distances
from tests.helpers import gradient, identity, numpy


def test_neighbor_errors_by_brute_force(random, float64):
    z, labels = random.normal(size=(7, 2)), np.array([0, 1, 0, 2, 1, 1, 0])
    counts = np.array([1.0, 1, 2, 1, 0, 1, 3])

    def brute(z):
        errors = []
        for i in range(7):
            weights = [0.0 if j == i else counts[j] * np.exp(-((z[i] - z[j]) ** 2).sum()) for j in range(7)]
            errors.append(1 - sum(w for w, own in zip(weights, labels == labels[i], strict=True) if own) / sum(weights))
        return np.array(errors)

    members, importance = keras.ops.convert_to_tensor(np.eye(3)[labels]), keras.ops.convert_to_tensor(counts)
    ours = numpy(neighbor_errors(keras.ops.convert_to_tensor(z), members, importance))
    np.testing.assert_allclose(ours, brute(z), rtol=1e-5)
    slope = gradient(lambda v: keras.ops.sum(neighbor_errors(v, members, importance)), z)[0]
    for index in np.ndindex(z.shape):
        shift = np.zeros_like(z)
        shift[index] = 1e-6
        assert slope[index] == pytest.approx((brute(z + shift) - brute(z - shift)).sum() / 2e-6, abs=1e-5)


def test_distances_far_from_the_origin(random):
    z = random.normal(size=(6, 3))
    expected = ((z[:, None] - z) ** 2).sum(axis=-1)
    actual = numpy(squared_distances(keras.ops.convert_to_tensor(z + 1000, "float32")))
    # In float32 the inputs are exact to 3e-5.
    np.testing.assert_allclose(actual, expected, atol=1e-3)


@pytest.mark.slow
def test_large_margins_by_brute_force(random, float64):
    """With a class of one example, which has no target neighbour, and one that does not count."""
    x, z = random.normal(size=(8, 3)), random.normal(size=(8, 2))
    labels, counts = np.array([0, 1, 0, 2, 1, 1, 0, 0]), np.array([1.0, 1, 1, 1, 1, 1, 0, 1])
    expected = np.zeros(8)
    for i in range(8):
        others = [j for j in range(8) if j != i and labels[j] == labels[i] and counts[j] > 0]
        targets = sorted(others, key=lambda j: ((x[i] - x[j]) ** 2).sum())[:2]
        for j in targets:
            d = ((z[i] - z[j]) ** 2).sum()
            impostors = [k for k in range(8) if labels[k] != labels[i] and counts[k] > 0]
            pushed = sum(max(0.0, 1 + d - ((z[i] - z[k]) ** 2).sum()) for k in impostors)
            expected[i] += (0.3 * d + 0.7 * pushed) / len(targets)
    same = (labels[:, None] == labels).astype("float64")
    tensors = map(keras.ops.convert_to_tensor, (z, x, same, counts))
    np.testing.assert_allclose(numpy(large_margin(*tensors, neighbors=2, push=0.7)), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [Mahalanobis(3), Mahalanobis(3, 2), NCA(3, 2, rank=2)], ids=["full", "low", "nca"])
@pytest.mark.slow
def test_transform_distance_and_precision_agree(loss, random):
    loss = copy.deepcopy(loss)
    loss.build_once((None, 3), (None, 3))
    for variable in loss.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    a, b = random.normal(size=(5, 3)), random.normal(size=(5, 3))
    quadratic = np.einsum("ni,ij,nj->n", a - b, loss.precision, a - b)
    np.testing.assert_allclose(loss.distance(a, b), np.sqrt(quadratic), rtol=1e-4)
    loss(np.arange(5) % 2 if isinstance(loss, NCA) else a, b)
    eigenvalues = np.linalg.eigvalsh(loss.precision)
    told_by_log = eigenvalues.sum() if isinstance(loss, NCA) else np.log(eigenvalues).sum()
    assert numpy(loss._log.result()) == pytest.approx(told_by_log, rel=1e-3, abs=1e-3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Rescaling(2.0)])
    mapped = loss.to_inference(model).predict(a, verbose=0)
    np.testing.assert_allclose(mapped, loss.transform(2 * a), rtol=1e-4, atol=1e-5)


def test_loadings_in_one_direction(random):
    """Where I + V'V, 1e8 and 1 in its eigenvalues, is singular in single precision."""
    y, direction = random.normal(size=(64, 6)).astype("float32"), random.normal(size=(6, 1))
    loss = Mahalanobis(6, rank=2)
    trainer = minimand.Trainer(identity((6,), trainable=False))
    trainer.compile(keras.optimizers.SGD(1e-3), loss)
    trainer.prepare(0 * y, y)
    loadings = np.float32(1e4 * direction / np.linalg.norm(direction) * [1.0, 1.0])
    next(v for v in loss.trainable_variables if v.name == "loadings").assign(loadings)
    covariance = np.eye(6) + loadings.astype("float64") @ loadings.T
    logarithm = np.linalg.slogdet(2 * np.pi * covariance)[1]
    expected = np.mean(np.einsum("ni,ij,nj->n", y, np.linalg.inv(covariance), y) + logarithm) / 2
    # A diagonal entry of R, of order 1, is what remains of numbers of 1e4.
    value = trainer.evaluate(0 * y, y, verbose=0, return_dict=True)["loss"]
    assert value == pytest.approx(expected, abs=6e4 * 2**-23)
    trainer.train_on_batch(0 * y, y)
    assert all(np.isfinite(v.numpy()).all() for v in loss.trainable_variables)
