"""The image loss: its representations by their defining properties, and the loss by the plain one of coefficients."""

import keras
import numpy as np
import pytest

import minimand
from minimand.losses import AdaptiveImage, AdaptiveRobust
from minimand.losses._image import (
    COLOR_SPACES,
    REPRESENTATIONS,
    ImageTransform,
    cosine_matrix,
    most_levels,
    wavelet_matrix,
)
from tests.helpers import gradient, numpy, told

WAVELETS = ("cdf97", "legall53", "haar")


def low_count(size):
    return (size + 1) // 2


def inverse_level(wavelet, coefficients):
    """One level undone, sample by sample, by the lifting steps in reverse."""
    size = len(coefficients)
    if size == 1:
        return coefficients.copy()
    if wavelet == "haar":
        low, high = coefficients[: low_count(size)], coefficients[low_count(size) :]
        samples = np.zeros(size)
        for i in range(len(high)):
            samples[2 * i], samples[2 * i + 1] = (low[i] - high[i]) / 2**0.5, (low[i] + high[i]) / 2**0.5
        if size % 2:
            samples[-1] = low[-1]
        return samples
    steps, gain = {
        "cdf97": ((-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971), 1.1496043988602418),
        "legall53": ((-0.5, 0.25), 2**0.5),
    }[wavelet]
    coefficients = coefficients * gain ** ((size % 2) / size)
    samples = np.zeros(size)
    samples[0::2] = coefficients[: low_count(size)] / gain
    samples[1::2] = coefficients[low_count(size) :] * gain
    for index in reversed(range(len(steps))):
        for i in range(1 - index % 2, size, 2):
            left = samples[i - 1] if i > 0 else samples[1]
            right = samples[i + 1] if i + 1 < size else samples[size - 2]
            samples[i] -= steps[index] * (left + right)
    return samples


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 17, 64])
def test_a_level_is_undone_and_preserves_volume(wavelet, size, random):
    matrix = wavelet_matrix(wavelet, size)
    signal = random.normal(size=size)
    np.testing.assert_allclose(inverse_level(wavelet, matrix @ signal), signal, atol=1e-12)
    assert abs(np.linalg.det(matrix)) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(("wavelet", "moments"), [("cdf97", 4), ("legall53", 2), ("haar", 1)])
def test_high_passes_do_not_see_polynomials(wavelet, moments):
    """The number of vanishing moments; low passes do not see those of alternating sign, a constant they multiply by sqrt 2.

    These equations have one solution, so that they hold every constant of a wavelet.
    """
    matrix = wavelet_matrix(wavelet, 32)
    np.testing.assert_allclose(matrix[:16] @ np.ones(32), 2**0.5, rtol=1e-13)
    alternating = (-1.0) ** np.arange(32)
    for row in (8, 24):  # far from the mirrored ends
        position = np.arange(32) - 16.0
        for power in range(moments):
            signs = alternating if row < 16 else 1.0
            np.testing.assert_allclose(matrix[row] @ (signs * position**power), 0, atol=2e-13)
    assert abs(matrix[24] @ np.linspace(-1, 1, 32) ** moments) > 1e-7


def test_filters_are_the_published_ones():
    """Cohen, Daubechies and Feauveau's 9/7 and LeGall's 5/3 analysis filters."""
    np.testing.assert_allclose(
        wavelet_matrix("cdf97", 32)[8, 12:21],
        [0.037828455507, -0.023849465020, -0.110624404418, 0.377402855613, 0.852698679009,
         0.377402855613, -0.110624404418, -0.023849465020, 0.037828455507], atol=1e-9,
    )  # fmt: skip
    np.testing.assert_allclose(
        wavelet_matrix("cdf97", 32)[24, 14:21] * np.sign(wavelet_matrix("cdf97", 32)[24, 17]),
        [-0.064538882629, 0.040689417609, 0.418092273222, -0.788485616406,
         0.418092273222, 0.040689417609, -0.064538882629] * np.array(-1), atol=1e-9,
    )  # fmt: skip
    np.testing.assert_allclose(wavelet_matrix("legall53", 32)[8, 14:19] * 4 * 2**0.5, [-1, 2, 6, 2, -1], atol=1e-12)


@pytest.mark.parametrize("matrix", [cosine_matrix(7), cosine_matrix(16), wavelet_matrix("haar", 16), wavelet_matrix("haar", 7)])  # fmt: skip
def test_orthonormal(matrix):
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-12)


def test_yuv_is_the_published_one():
    """BT.601's luma, and 0.492111 (B - Y) and 0.877283 (R - Y) to 8 decimals, scaled to determinant 1."""
    luma = np.array([0.299, 0.587, 0.114])
    published = np.round([luma, 0.492111 * (np.eye(3)[2] - luma), 0.877283 * (np.eye(3)[0] - luma)], 8)
    yuv = COLOR_SPACES["yuv"]
    np.testing.assert_allclose(yuv / yuv[0].sum(), published, rtol=1e-13)
    assert np.linalg.det(yuv) == pytest.approx(1.0, rel=1e-13)
    # The scale of the paper's "syuv".
    assert yuv[0].sum() == pytest.approx(1.580227820074, rel=1e-12)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 7), (1, 5)])
def test_images_are_reconstructed(representation, height, width, random):
    images = random.normal(size=(2, 3, height, width)).astype("float32")
    levels = most_levels(height, width)
    transform = ImageTransform(representation, height, width, levels)
    coefficients = numpy(transform(keras.ops.convert_to_tensor(images))).astype("float64")
    assert coefficients.shape == images.shape
    if representation == "dct":
        coefficients = np.einsum("ij,bcik,kl->bcjl", cosine_matrix(height), coefficients, cosine_matrix(width))
    elif representation != "pixel":
        sizes = [(height, width)]
        for _ in range(levels - 1):
            sizes.append(tuple(low_count(size) for size in sizes[-1]))
        for rows, columns in reversed(sizes if levels else []):
            corner = coefficients[..., :rows, :columns]
            corner = np.apply_along_axis(lambda v: inverse_level(representation, v), -1, corner)
            corner = np.apply_along_axis(lambda v: inverse_level(representation, v), -2, corner)
            coefficients[..., :rows, :columns] = corner
    np.testing.assert_allclose(coefficients, images, atol=1e-5)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_the_whole_transform_preserves_volume(representation):
    transform = ImageTransform(representation, 6, 5, 3)
    basis = np.eye(30).reshape(30, 1, 6, 5).astype("float32")
    matrix = numpy(transform(keras.ops.convert_to_tensor(basis))).reshape(30, 30)
    assert abs(np.linalg.det(matrix.astype("float64"))) == pytest.approx(1.0, rel=1e-4)


def test_bands_of_a_wavelet_are_the_corners():
    np.testing.assert_array_equal(
        ImageTransform("haar", 4, 4, 2).bands, [[0, 1, 4, 4], [2, 3, 4, 4], [5, 5, 6, 6], [5, 5, 6, 6]]
    )
    np.testing.assert_array_equal(ImageTransform("dct", 2, 5, 1).bands, [[0, 1, 2, 2, 3], [1, 1, 2, 2, 3]])
    assert not ImageTransform("pixel", 3, 3, 1).bands.any()


def ready(shape, **arguments):
    loss = AdaptiveImage(data_format="channels_last", init="reference", **arguments)
    loss.build_once((None, *shape), (None, *shape))
    return loss


@pytest.mark.slow
def test_pixels_in_rgb_are_the_plain_loss(random):
    y, p = (random.normal(size=(3, 4, 5, 3)).astype("float32") for _ in range(2))
    plain = AdaptiveRobust(axis=(1, 2, 3), init="reference", reduction=None)
    plain.build_once(y.shape, y.shape)
    loss = ready((4, 5, 3), representation="pixel", color_space="rgb", reduction=None)
    assert loss(y, p).shape == (3,)
    np.testing.assert_allclose(numpy(loss(y, p)), numpy(plain(y, p)).mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.slow
def test_data_formats_agree(representation, random):
    y, p = (random.normal(size=(2, 8, 6, 3)).astype("float32") for _ in range(2))
    last = ready((8, 6, 3), representation=representation)
    first = AdaptiveImage(representation, data_format="channels_first", init="reference")
    first.build_once((None, 3, 8, 6), (None, 3, 8, 6))
    moved = (np.moveaxis(value, -1, 1) for value in (y, p))
    assert float(numpy(first(*moved))) == pytest.approx(float(numpy(last(y, p))), rel=1e-5)
    assert first.alpha.shape == last.alpha.shape == (8, 6, 3)


@pytest.mark.parametrize(("parameters", "count"), [("coefficient", 192), ("band", 3 * 7)])
def test_shapes_and_scales_of_coefficients_or_bands(parameters, count, random):
    loss = ready((8, 8, 3), levels=2, parameters=parameters)
    assert [tuple(v.shape) for v in loss.trainable_variables] == [(count,), (count,)]
    loss.latent_shape.assign(random.normal(size=count))
    per_band = len({tuple(values) for values in loss.alpha.reshape(64, 3)})
    assert per_band == (64 if parameters == "coefficient" else 7)
    if parameters == "band":
        assert len(np.unique(loss.alpha[:2, :2])) == 3  # the low-pass corner: one band a channel


@pytest.mark.slow
def test_one_channel_is_taken_as_it_is(random):
    y, p = (random.normal(size=(2, 8, 8, 1)).astype("float32") for _ in range(2))
    values = [float(numpy(ready((8, 8, 1), color_space=space)(y, p))) for space in ("yuv", "rgb")]
    assert values[0] == values[1]


@pytest.mark.slow
def test_the_scale_starts_from_that_of_the_coefficients(random):
    """White noise stays white in an orthonormal basis, so every coefficient has the noise's deviation."""
    loss = AdaptiveImage("haar", color_space="rgb", parameters="band", data_format="channels_last")
    loss.build_once((None, 8, 8, 3), (None, 8, 8, 3))
    noise = random.normal(0, 3, size=(4000, 8, 8, 3)).astype("float32")
    loss(0 * noise, noise)
    # The quartile of 4000 has a relative error of sqrt(3/16/4000)/(0.3186 * 2 * 0.3792) = 2.8 %; means of bands less.
    np.testing.assert_allclose(loss.scale, 0.6, rtol=5 * 0.028)


@pytest.mark.slow
def test_gradient_by_the_images(random, float64):
    y, p = (random.normal(size=(2, 4, 4, 3)) for _ in range(2))
    loss = ready((4, 4, 3), levels=1, dtype="float64")
    slope = gradient(lambda v: loss(y, v), p)[0]
    direction = random.normal(size=p.shape)
    ahead, behind = (float(numpy(loss(y, p + step * direction))) for step in (1e-4, -1e-4))
    # Keras multiplies matrices in float32 on some backends: rounding 1e-7 over the step.
    assert (slope * direction).sum() == pytest.approx((ahead - behind) / 2e-4, rel=5e-3, abs=2e-3)


def test_trained_saved_and_restored(random, tmp_path):
    x = random.uniform(size=(16, 8, 8, 3)).astype("float32")
    trainer = minimand.Trainer(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 3, padding="same")]))
    trainer.compile(
        keras.optimizers.Adam(0.05), AdaptiveImage("legall53", parameters="band", data_format="channels_last")
    )
    history = trainer.fit(x, x, epochs=3, batch_size=8, verbose=0)
    assert "adaptive_image_alpha" in history.history
    trainer.save(tmp_path / "trainer.keras")
    restored = keras.saving.load_model(tmp_path / "trainer.keras").loss
    np.testing.assert_array_equal(restored.alpha, trainer.loss.alpha)
    np.testing.assert_array_equal(restored.scale, trainer.loss.scale)
    assert restored.get_config() == trainer.loss.get_config()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdaptiveImage("db4"), ["`representation`", "db4"]),
        (lambda: AdaptiveImage(color_space="lab"), ["`color_space`", "lab"]),
        (lambda: AdaptiveImage(levels=0), ["`levels`", ">= 1"]),
        (lambda: AdaptiveImage("dct", levels=2), ["`levels`", "wavelets"]),
        (lambda: AdaptiveImage(parameters="image"), ["`parameters`", "image"]),
        (lambda: ready((8, 8, 2)), ["yuv", "2 channels"]),
        (lambda: ready((8, 4, 3), levels=3), ["`levels`", "at most 2"]),
        (lambda: ready((None, 8, 3)), ["known sizes"]),
        (lambda: ready((8, 3)), ["channels", "(None, 8, 3)"]),
    ],
)
def test_bad_arguments_are_told(make, words):
    with told(ValueError, words):
        make()
