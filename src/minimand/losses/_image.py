"""The adaptive robust loss of images, in a representation whose coefficients have heavy tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._validation import check_choice, check_int
from minimand.backend import Tensor
from minimand.losses._robust import BARRON, Positions, ResidualLikelihood, check_shape

# Linear representations of images that preserve volume, and the sub-bands of their coefficients.

# Lifting steps alternate: odd samples += step * (even neighbours), even += step * (odd neighbours); then the even, low
# samples are multiplied by the gain and the odd, high ones divided by it. Daubechies and Sweldens 1998, section 7.
_LIFTING = {
    "cdf97": (
        (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971),
        1.1496043988602418,
    ),
    "legall53": ((-0.5, 0.25), math.sqrt(2)),
}
# ITU-R BT.601 luma and colour differences, scaled to determinant 1.
_YUV = np.array([[0.299, 0.587, 0.114], [-0.14714119, -0.28886916, 0.43601035], [0.61497538, -0.51496512, -0.10001026]])
_YUV = _YUV / np.cbrt(np.linalg.det(_YUV))

REPRESENTATIONS = ("cdf97", "legall53", "haar", "dct", "pixel")
COLOR_SPACES = {"yuv": _YUV, "rgb": None}


def most_levels(height: int, width: int) -> int:
    """The number of times that the shorter side can be halved, rounding up, until it is 1."""
    return (min(height, width) - 1).bit_length()


def wavelet_matrix(wavelet: str, size: int) -> np.ndarray:
    """One level of a wavelet transform of `size` samples, low half first, of determinant +-1."""
    if size == 1:
        return np.eye(1)
    samples = np.eye(size)
    even, odd = samples[0::2].copy(), samples[1::2].copy()
    if wavelet == "haar":
        pairs = even[: len(odd)]
        low = np.concatenate([(pairs + odd) / math.sqrt(2), even[len(odd) :]])
        return np.concatenate([low, (odd - pairs) / math.sqrt(2)])
    steps, gain = _LIFTING[wavelet]
    for index, step in enumerate(steps):
        if index % 2 == 0:
            # Beyond the ends the signal is mirrored at its last sample.
            following = np.concatenate([even[1:], even[-1:]])[: len(odd)]
            odd += step * (even[: len(odd)] + following)
        else:
            before = np.concatenate([odd[:1], odd])[: len(even)]
            behind = np.concatenate([odd, odd[-1:]])[: len(even)]
            even += step * (before + behind)
    matrix = np.concatenate([gain * even, odd / gain])
    # An odd size has one low sample more than high ones.
    return matrix / gain ** ((len(even) - len(odd)) / size)


def cosine_matrix(size: int) -> np.ndarray:
    """The orthonormal discrete cosine transform (DCT-II)."""
    frequency, sample = np.arange(size)[:, None], np.arange(size)[None, :]
    matrix = math.sqrt(2 / size) * np.cos(math.pi * frequency * (2 * sample + 1) / (2 * size))
    matrix[0] /= math.sqrt(2)
    return matrix


class ImageTransform:
    """A representation of images (batch, channels, height, width), applied to each channel.

    Args:
        representation: one of `REPRESENTATIONS`.
        height: height of the images.
        width: width of the images.
        levels: number of levels of a wavelet; each level splits the low-pass corner of the level before.

    Attributes:
        bands: int array (height, width), the sub-band of each coefficient; 0 is the coarsest. The bands of the cosine
            transform are octaves of the greater of the two frequencies.
    """

    def __init__(self, representation: str, height: int, width: int, levels: int) -> None:
        self.bands = np.zeros((height, width), "int32")
        self._steps: list[tuple[np.ndarray, np.ndarray]] = []
        if representation == "dct":
            self._steps = [(cosine_matrix(height), cosine_matrix(width))]
            greater = np.maximum(np.arange(height)[:, None], np.arange(width)[None, :])
            self.bands = np.frexp(greater)[1].astype("int32")
        elif representation != "pixel":
            for level in range(levels):
                self._steps.append((wavelet_matrix(representation, height), wavelet_matrix(representation, width)))
                low_height, low_width = (height + 1) // 2, (width + 1) // 2
                first = 3 * (levels - level) - 2
                self.bands[:low_height, low_width:width] = first
                self.bands[low_height:height, :low_width] = first + 1
                self.bands[low_height:height, low_width:width] = first + 2
                height, width = low_height, low_width

    def __call__(self, images: Tensor) -> Tensor:
        """The coefficients, in the images' shape and dtype; a wavelet's low-pass part in the first corner."""
        return self._transformed(images, self._steps)

    def _transformed(self, images: Tensor, steps: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
        if not steps:
            return images
        rows, columns = (ops.convert_to_tensor(matrix, images.dtype) for matrix in steps[0])
        result = ops.matmul(ops.matmul(rows, images), ops.transpose(columns))
        if len(steps) == 1:
            return result
        height, width = steps[1][0].shape[0], steps[1][1].shape[0]
        corner = self._transformed(result[..., :height, :width], steps[1:])
        top = ops.concatenate([corner, result[..., :height, width:]], axis=-1)
        return ops.concatenate([top, result[..., height:, :]], axis=-2)


# The loss.


@keras.saving.register_keras_serializable(package="minimand")
class AdaptiveImage(ResidualLikelihood):
    """`AdaptiveRobust` of the coefficients of images in a wavelet or cosine basis, with a shape and scale for each.

    Use it for models that put out images, such as autoencoders and denoisers. Errors of images are sparse in a wavelet
    basis, with tails that differ from band to band, and the loss learns these tails.

    -log p(W(C x)), x = y_pred - y_true, averaged over the coefficients; C the colour space, W the representation

    Both preserve volume (determinant +-1), so that the loss is a likelihood of the images themselves.

    Args:
        representation: `"cdf97"` (Cohen, Daubechies, Feauveau), `"legall53"`, `"haar"`, `"dct"` or `"pixel"` (none).
            `"haar"` and `"dct"` are orthonormal.
        color_space: `"yuv"`, of three channels, scaled to determinant 1, or `"rgb"`, which leaves the channels as they
            are. Images of one channel are left as they are.
        levels: number of levels of a wavelet, at most as often as the shorter side can be halved; by default 5 or that.
        parameters: `"coefficient"`: a shape and scale for each coefficient. `"band"`: a shape and scale for each
            sub-band of each channel (an octave of the frequency for `"dct"`, all of `"pixel"`), which takes fewer
            images to learn.
        data_format: `"channels_last"`, images (batch, height, width, channels), or `"channels_first"`; by default
            `keras.config.image_data_format()`.
        alpha: a float in [0, inf] fixes the shape; by default it is learned.
        scale: a positive float fixes the scale; by default it is learned.
        alpha_range: (lo, hi), 0 <= lo < hi, open bounds of a learned shape.
        init: `"robust"` or `"reference"`, as in `AdaptiveRobust`.
        alpha_init: first shape, strictly inside `alpha_range`.
        scale_init: first scale, greater than `scale_min`.
        scale_min: lower bound of a learned scale, positive.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        As a call: for targets and predictions of equal shape, the reduced loss, one value an image. `.alpha` and
        `.scale` are NumPy arrays (height, width, channels) at the coefficients, in either data format.

    Raises:
        ValueError: an argument is outside of its range, images are not of rank 4 with known sizes, `"yuv"` has other
            than 1 or 3 channels, shapes of targets and predictions differ.

    Source: Barron, "A general and adaptive robust loss function", CVPR 2019, section 3.1 and supplement; Daubechies,
    Sweldens, "Factoring wavelet transforms into lifting steps", 1998 (the wavelets); ITU-R BT.601 (YUV).

    Examples:
        >>> import keras, numpy as np, minimand
        >>> loss = minimand.losses.AdaptiveImage(levels=2, parameters="band", data_format="channels_last")
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(0.5)]))
        >>> trainer.compile("adam", loss)
        >>> history = trainer.fit(np.random.rand(4, 8, 8, 3), np.zeros((4, 8, 8, 3)), verbose=0)
        >>> loss.alpha.shape
        (8, 8, 3)
    """

    density = BARRON

    def __init__(
        self,
        representation: str = "cdf97",
        *,
        color_space: str = "yuv",
        levels: int | None = None,
        parameters: str = "coefficient",
        data_format: str | None = None,
        alpha: float | None = None,
        scale: float | None = None,
        alpha_range: Sequence[float] = (0.001, 1.999),
        init: str = "robust",
        alpha_init: float | None = None,
        scale_init: float | None = None,
        scale_min: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        owner = "AdaptiveImage"
        if alpha is not None:
            alpha = check_shape(owner, alpha, minimum=0.0)
        super().__init__(alpha, alpha_range, alpha_init, init, scale, scale_init, scale_min, -1, False, None, **kwargs)
        self.representation = check_choice(owner, "representation", representation, REPRESENTATIONS)
        self.color_space = check_choice(owner, "color_space", color_space, tuple(COLOR_SPACES))
        self.levels = None if levels is None else check_int(owner, "levels", levels, minimum=1)
        self.parameters = check_choice(owner, "parameters", parameters, ("coefficient", "band"))
        if data_format is None:
            data_format = keras.config.image_data_format()
        self.data_format = check_choice(owner, "data_format", data_format, ("channels_last", "channels_first"))
        if levels is not None and representation in ("dct", "pixel"):
            raise ValueError(
                f"{owner}: `levels` is an option of the wavelets. "
                f"Received: levels={levels!r}, representation={representation!r}. Leave `levels` out."
            )

    def positions_of(self, y_pred_shape: Any) -> Positions:
        """The coefficients, or their bands, of images of this shape."""
        sizes = tuple(y_pred_shape[1:])
        if len(sizes) != 3 or None in sizes:
            raise ValueError(
                "AdaptiveImage: predictions must be images (batch, height, width, channels), or channels first, of "
                f"known sizes. Received: y_pred of shape {tuple(y_pred_shape)}"
            )
        channels, height, width = sizes if self.data_format == "channels_first" else (sizes[2], *sizes[:2])
        if self.color_space == "yuv" and channels not in (1, 3):
            raise ValueError(
                'AdaptiveImage: color_space="yuv" needs images of 3 channels, or of 1, left as it is. Received: '
                f'{channels} channels, data_format={self.data_format!r}. Use color_space="rgb".'
            )
        most = most_levels(height, width)
        if self.levels is not None and self.levels > most:
            raise ValueError(
                f"AdaptiveImage: `levels` must be at most {most} for images of {height} x {width}. "
                f"Received: levels={self.levels}"
            )
        levels = min(5, most) if self.levels is None else self.levels
        self._color = COLOR_SPACES[self.color_space] if channels == 3 else None
        self._transform = ImageTransform(self.representation, height, width, levels)
        self._coefficients = (channels, height, width)
        groups = None
        if self.parameters == "band":
            bands = self._transform.bands
            groups = (bands + (bands.max() + 1) * np.arange(channels)[:, None, None]).ravel().tolist()
        return Positions("AdaptiveImage", (None, channels * height * width), [-1], False, groups)

    def represented(self, residual: Tensor) -> Tensor:
        images = residual if self.data_format == "channels_first" else ops.transpose(residual, (0, 3, 1, 2))
        channels, height, width = self._coefficients
        if self._color is not None:
            pixels = ops.reshape(images, (-1, channels, height * width))
            images = ops.matmul(ops.convert_to_tensor(self._color, images.dtype), pixels)
            images = ops.reshape(images, (-1, channels, height, width))
        return ops.reshape(self._transform(images), (-1, channels * height * width))

    def _read(self, index: int) -> Any:
        return np.moveaxis(super()._read(index).reshape(self._coefficients), 0, -1)

    @property
    def alpha(self) -> Any:
        """The shape at each coefficient (height, width, channels), a NumPy array."""
        return self._read(0)
