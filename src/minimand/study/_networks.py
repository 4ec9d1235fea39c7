"""The networks that a study trains unless the user gives one: for tables, images and series."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

# Images are halved until a side has at most so many pixels, and series until they have at most so many steps.
_LARGEST_GRID = 8
_LONGEST_SERIES = 128


def mlp(input_shape: tuple[int, ...], outputs: int, activation: str | None = None) -> keras.Model:
    """A network of two hidden layers with 64 rectified units each and dropout 0.1.

    Use it for tables. Initial weights and dropout follow Python's `random`, as those of any Keras model do.

    Args:
        input_shape: (features,).
        outputs: number of outputs.
        activation: activation of the outputs; by default one output is linear and several are a softmax.

    Returns:
        The network, not compiled.

    Examples:
        >>> from minimand.study import mlp
        >>> mlp((4,), 3).output_shape
        (None, 3)
    """
    seeds = [_seed() for _ in range(2)]
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.1, seed=seeds[0]),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.1, seed=seeds[1]),
            _last(outputs, activation),
        ],
        name="mlp",
    )


def convnet(input_shape: tuple[int, ...], outputs: int, activation: str | None = None) -> keras.Model:
    """A residual convolutional network of three stages with 16, 32 and 64 channels.

    Use it for images of 8 x 8 to 256 x 256 pixels in [0, 1]. Convolutions of stride 2 bring the image to at most
    8 x 8 positions first. A stage is one block `x -> relu(x + conv(relu(conv(x))))` of 3 x 3 convolutions, and each
    stage has half the height and width of the stage before it. The mean over positions and dropout 0.1 follow. The
    network does not normalise, because each block begins close to the identity.

    Args:
        input_shape: (height, width, channels).
        outputs: number of outputs.
        activation: activation of the outputs; by default one output is linear and several are a softmax.

    Returns:
        The network, not compiled.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the small weights at the end of a
    block follow Zhang et al., "Fixup Initialization", ICLR 2019.

    Examples:
        >>> from minimand.study import convnet
        >>> convnet((32, 32, 3), 10).count_params()
        123546
    """
    return _residual(input_shape, outputs, activation, "convnet", (16, 32, 64), (1, 1, 1), _LARGEST_GRID)


def convnet_1d(input_shape: tuple[int | None, ...], outputs: int, activation: str | None = None) -> keras.Model:
    """A residual convolutional network along time, of three stages with 32, 64 and 64 channels and dilations 1, 2, 4.

    Use it for series. Its blocks are those of `convnet`, with convolutions over 3 steps, `dilation` steps apart.
    Series of known length are halved to at most 128 steps first.

    Args:
        input_shape: (time, channels); time is None if series of several lengths come in batches of equal length.
        outputs: number of outputs.
        activation: activation of the outputs; by default one output is linear and several are a softmax.

    Returns:
        The network, not compiled.

    Source: Bai et al., "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence
    Modeling", 2018, for dilated residual blocks.

    Examples:
        >>> from minimand.study import convnet_1d
        >>> convnet_1d((None, 6), 1).output_shape
        (None, 1)
    """
    return _residual(input_shape, outputs, activation, "convnet_1d", (32, 64, 64), (1, 2, 4), _LONGEST_SERIES)


def augmented(model: keras.Model, input_shape: tuple[int, ...]) -> keras.Model:
    """The network behind layers that flip and move images in training.

    Use it when images and their mirror images have the same label. Flips are horizontal, and images move by at most
    a tenth of their height and width; pixels at the border fill the gap.

    Args:
        model: a network of images.
        input_shape: (height, width, channels).

    Returns:
        A network that shares the weights of `model`, not compiled.

    Examples:
        >>> from minimand.study._networks import augmented, convnet
        >>> augmented(convnet((8, 8, 1), 2), (8, 8, 1)).output_shape
        (None, 2)
    """
    inputs = keras.Input(input_shape)
    flip = layers.RandomFlip("horizontal", seed=_seed())
    move = layers.RandomTranslation(0.1, 0.1, fill_mode="nearest", seed=_seed())
    # Keras compiles no model with this layer, as XLA cannot compile TensorFlow's version. XLA compiles JAX's.
    move.supports_jit = keras.backend.backend() == "jax"
    return keras.Model(inputs, model(move(flip(inputs))), name=f"augmented_{model.name}")


def _residual(
    input_shape: tuple[int | None, ...],
    outputs: int,
    activation: str | None,
    name: str,
    widths: Sequence[int],
    dilations: Sequence[int],
    largest: int,
) -> keras.Model:
    inputs = x = keras.Input(input_shape)
    x = _convolution(x, widths[0], stride=1 if _shortest(x) <= largest else 2)
    while _shortest(x) > largest:
        x = _convolution(x, widths[0], stride=2)
    for stage, (width, dilation) in enumerate(zip(widths, dilations, strict=True)):
        if stage:
            x = _convolution(x, width, stride=2)
        branch = _convolution(x, width, dilation=dilation)
        # The branch begins small, which stands in for a normalisation. Zeros would hold penalised weights at zero.
        branch = layers.Dense(width, kernel_initializer=keras.initializers.VarianceScaling(0.1))(
            _neighbourhoods(branch, 1, dilation)
        )
        x = layers.ReLU()(layers.Add()([x, branch]))
    x = layers.GlobalAveragePooling1D()(x) if len(input_shape) == 2 else layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.1, seed=_seed())(x)
    return keras.Model(inputs, _last(outputs, activation)(x), name=name)


def _shortest(x: Any) -> int:
    return min(side or 0 for side in x.shape[1:-1])


def _convolution(x: Any, width: int, stride: int = 1, dilation: int = 1) -> Any:
    """A rectified convolution over 3 positions in each direction."""
    layer = layers.Dense(width, activation="relu", kernel_initializer="he_normal")
    return layer(_neighbourhoods(x, stride, dilation))


def _neighbourhoods(x: Any, stride: int, dilation: int) -> Any:
    """The values at the 3 positions around each position, in each direction, side by side as channels.

    A dense layer of these is a convolution. Unlike Keras's layer, it stays a matrix product when all seeds train at
    once; XLA makes a grouped convolution of Keras's layer, which is slow on a CPU.
    """
    for axis in range(1, len(x.shape) - 1):
        padded = ops.pad(x, [(dilation, dilation) if a == axis else (0, 0) for a in range(len(x.shape))])
        starts = (0, dilation, 2 * dilation)
        slices = [slice(start, start - 2 * dilation or None, stride) for start in starts]
        x = ops.concatenate([padded[(slice(None),) * axis + (part,)] for part in slices], axis=-1)
    return x


def _last(outputs: int, activation: str | None) -> keras.layers.Layer:
    return layers.Dense(outputs, activation=activation or ("linear" if outputs == 1 else "softmax"))


def _seed() -> int:
    """The seed of a layer: without one, Keras's dropout on PyTorch draws from a generator that no file restores."""
    return random.randrange(2**31)


def augmented_network(function: Any, input_shape: tuple[int, ...], outputs: int) -> keras.Model:
    """The network of a function behind the layers of `augmented`."""
    return augmented(function(input_shape, outputs), input_shape)
