"""The diagonal of the Fisher information, from gradients of single examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kriterion import backend
from kriterion._validation import check_rows
from kriterion.backend import Tensor

# Numbers of gradients that are held at once, and rows whose squares are summed in float32.
_CHUNK, _ROWS = 2**22, 1024


def fisher_information(model: keras.Model, x: Any, y: Any, loss: Any) -> dict[str, np.ndarray]:
    """The mean over examples of the squared gradient of each one's loss.

    F = 1/N sum over i of (grad l_i)^2, elementwise, l_i = loss(y_i, f(x_i)), in evaluation

    If the loss is a negative log likelihood and `y` drawn from the model's own predictions, this estimates the diagonal
    of the Fisher information without bias; with the data's `y` it is the "empirical" one, which vanishes where the
    model fits them exactly.

    Args:
        model: a built model, of one output.
        x: inputs (N, ...): an array, or a structure of arrays.
        y: targets (N, ...).
        loss: a Keras loss or its name.

    Returns:
        An array of its shape for the path of each trainable weight.

    Raises:
        ValueError: the model is not built, there are no examples, or `x` and `y` differ in their number.
        TypeError: an array has no axis of examples.

    Source: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 114 (2017); on the choice
    of `y`: Kunstner, Balles and Hennig, "Limitations of the empirical Fisher approximation", NeurIPS 2019.

    Examples:
        >>> import keras, numpy as np, kriterion
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "softmax")])
        >>> x = np.random.default_rng(0).normal(size=(8, 3))
        >>> drawn = [np.random.default_rng(0).choice(2, p=p / p.sum()) for p in np.float64(model.predict(x, verbose=0))]
        >>> fisher = kriterion.regularizers.fisher_information(model, x, drawn, "sparse_categorical_crossentropy")
        >>> [array.shape for array in fisher.values()]
        [(3, 2), (2,)]
    """
    if not model.built:
        raise ValueError(f"fisher_information: `model` must be built. Received: {model.name}, which has no weights yet")
    data = keras.tree.map_structure(ops.convert_to_tensor, (x, np.asarray(y)))
    count = check_rows("fisher_information", "`x` and `y`", data)
    criterion = keras.losses.get(loss)
    variables = model.trainable_variables

    leaves = keras.tree.flatten(data)

    def total(rows: list[Tensor], trainable: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
        def squared(row: list[Tensor]) -> list[Tensor]:
            inputs, targets = keras.tree.pack_sequence_as(data, [leaf[None] for leaf in row])

            def example_loss(values: Sequence[Tensor]) -> tuple[Tensor, None]:
                outputs, _ = model.stateless_call(values, other, inputs, training=False)
                return ops.sum(criterion(targets, outputs)), None

            _, gradients = backend.value_and_gradient(example_loss, trainable, differentiable=False)
            return [ops.square(gradient) for gradient in gradients]

        return backend.summed(squared, rows, max(1, _CHUNK // max(model.count_params(), 1)))

    state = [v.value for v in variables], [v.value for v in model.non_trainable_variables]
    compiled = backend.compiled(total)
    sums: list[Any] = [0.0] * len(variables)
    for start in range(0, count, _ROWS):
        found = compiled([leaf[start : start + _ROWS] for leaf in leaves], *state)
        # In double precision over the parts.
        sums = [s + ops.convert_to_numpy(f).astype("float64") for s, f in zip(sums, found, strict=True)]
    return {v.path: np.asarray(s / count, dtype=v.dtype) for v, s in zip(variables, sums, strict=True)}
