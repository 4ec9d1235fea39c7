"""Forward and backward of the robust losses over squared error and Huber's, compiled where that is usual.

Rounds alternate between the losses, so that a change of the machine's load meets all of them.
"""

import math
import os
import time

import minimand
import keras
import numpy as np
from keras import ops

from minimand import backend

BATCH, ROUNDS = 4096, 60
IMAGES, IMAGE_ROUNDS = (32, 64, 64, 3), 20


def ready(loss, shape):
    loss.build_once(shape, shape)
    return loss


def losses(shape):
    ours = {
        # By products and a square root, by a power, and for any shape.
        **{f"GeneralRobust({alpha:g})": minimand.losses.GeneralRobust(alpha) for alpha in (1.0, 0.7, -math.inf)},
        "AdaptiveRobust": ready(minimand.losses.AdaptiveRobust(init="reference"), shape),
    }
    if len(shape) == 4:
        ours = {
            f"AdaptiveImage, {representation}": ready(
                minimand.losses.AdaptiveImage(representation, init="reference", data_format="channels_last"), shape
            )
            for representation in ("cdf97", "dct", "pixel")
        }
    return {"squared error": keras.losses.MeanSquaredError(), "Huber": keras.losses.Huber(), **ours}


def step(loss, y):
    """`(function of [predictions, *variables] giving the loss and its gradient by all of them, the variables)`."""
    variables = getattr(loss, "trainable_variables", [])

    def forward(values):
        with keras.StatelessScope(list(zip(variables, values[1:], strict=True))):
            return loss(y, values[0])

    return differentiated(forward), [variable.value for variable in variables]


def differentiated(forward):
    if keras.backend.backend() == "torch":
        import torch

        def eager(values):
            values = [value.detach().requires_grad_() for value in values]
            return torch.autograd.grad(forward(values), values)

        return eager

    def gradient(values):
        return backend.value_and_gradient(lambda v: (forward(v), None), values)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        graph = tf.function(gradient)
        return lambda values: graph(values)[0][0].numpy()
    import jax

    fast = jax.jit(gradient)
    return lambda values: jax.block_until_ready(fast(values))


def measure(shape, rounds):
    random = np.random.default_rng(0)
    y = ops.convert_to_tensor(random.normal(size=shape), "float32")
    p = ops.convert_to_tensor(random.normal(size=shape), "float32")
    steps = {name: step(loss, y) for name, loss in losses(shape).items()}
    seconds = {name: [] for name in steps}
    for round_number in range(rounds + 5):
        for name, (function, values) in steps.items():
            start = time.perf_counter()
            function([p, *values])
            if round_number >= 5:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.median(values) for name, values in seconds.items()}


def main():
    print(f"backend {keras.backend.backend()}, load {os.getloadavg()[0]:.2f} before, {os.cpu_count()} cores")
    for shape in (*((BATCH, size) for size in (1, 16, 256)), IMAGES):
        seconds = measure(shape, ROUNDS if len(shape) == 2 else IMAGE_ROUNDS)
        print(f"{' x '.join(map(str, shape))}: squared error {1e3 * seconds['squared error']:.3f} ms")
        for name in list(seconds)[1:]:
            over = [f"{seconds[name] / seconds[other]:.2f} x {other}" for other in ("squared error", "Huber")]
            print(f"  {name:<21} {', '.join(over)}, {1e3 * seconds[name]:.3f} ms")


if __name__ == "__main__":
    main()
