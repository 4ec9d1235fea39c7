"""Linear, volume-preserving representations of images, and the sub-bands that their coefficients belong to."""

from __future__ import annotations

import math

import numpy as np
from keras import ops

from kriterion.backend import Tensor

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
    """How often the shorter side can be halved, rounding up, until it is 1."""
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
    # One low sample more than high ones, where the size is odd.
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
        height, width: of the images.
        levels: of a wavelet; each splits the low-pass corner of the one before.

    Attributes:
        bands: int array (height, width), the sub-band of each coefficient; 0 is the coarsest. Those of the cosine
            transform are octaves of the greater of the two frequencies.
    """

    def __init__(self, representation: str, height: int, width: int, levels: int) -> None:
        self.height, self.width = height, width
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
