"""The diagonal of the Fisher information, from gradients of single examples."""

from __future__ import annotations

import base64
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand import backend
from minimand._selection import match_path
from minimand._validation import check_rows
from minimand.backend import Tensor
from minimand.gradients._exact import sums_of_powers
from minimand.regularizers._base import WeightRegularizer

# Arrays that belong to variables: one, or one for each path; in a configuration as text.


def arrays_of(owner: str, name: str, value: Any) -> dict[str | None, np.ndarray]:
    """Arrays by path; a single one, for whatever weights it is used on, has the path None.

    Args:
        owner: the class, for messages.
        name: the argument, for messages.
        value: a model, whose trainable weights as they are now are copied; a mapping of paths to arrays; an array.
    """
    if isinstance(value, keras.Model):
        if not value.built:
            raise ValueError(
                f"{owner}: `{name}` must be a built model. Received: {value.name}, which has no weights yet"
            )
        value = {variable.path: variable.numpy() for variable in value.trainable_variables}
    if isinstance(value, Mapping):
        arrays = {path: np.array(keras.ops.convert_to_numpy(each)) for path, each in value.items()}
    else:
        arrays = {None: np.array(keras.ops.convert_to_numpy(value))}
    for path, array in arrays.items():
        if not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
            raise ValueError(f"{owner}: `{name}` must be finite numbers. Received: others, for {path or 'the weights'}")
    return arrays


def array_for(owner: str, name: str, arrays: Mapping[str | None, np.ndarray], variable: Any) -> np.ndarray:
    """The array of a variable, or of a tensor if there is a single array."""
    own = getattr(variable, "path", "")
    path = None if None in arrays else match_path(own, [path for path in arrays if path])
    if path not in arrays:
        raise ValueError(
            f"{owner}: `{name}` must have an array for each weight that is penalised. "
            f"Received: none for {own or 'weights without a path'}, but for {list(arrays)}"
        )
    if arrays[path].shape != tuple(variable.shape):
        raise ValueError(
            f"{owner}: `{name}` must have the shape of the weights. "
            f"Received: an array of shape {arrays[path].shape} for weights of shape {tuple(variable.shape)}"
        )
    return arrays[path]


def to_text(arrays: Mapping[str | None, np.ndarray]) -> list[list[Any]]:
    """Rows of path, type, shape and base64: exact, and a quarter of the size of decimal numbers."""
    return [
        [path, str(each.dtype), list(each.shape), base64.b64encode(np.ascontiguousarray(each).tobytes()).decode()]
        for path, each in arrays.items()
    ]


def from_text(rows: list[list[Any]]) -> Any:
    """What `arrays_of` takes, from `to_text`."""
    arrays = {path: np.frombuffer(base64.b64decode(text), dtype).reshape(shape) for path, dtype, shape, text in rows}
    return arrays.get(None, arrays)


# Weights kept near those that they started from.


@keras.saving.register_keras_serializable(package="minimand")
class L2SP(WeightRegularizer):
    """The squared distance to given weights, as those of a pretrained model: L2-SP.

    R(w) = strength * sum (w - w0)^2

    The anchor w0 is copied when the regularizer is made, and is a part of its configuration: a loaded model has the
    same one (as text, of 5.3 bytes a weight), not the weights that it is loaded with.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        anchor: w0: a built model, whose trainable weights as they are now are taken; a mapping of paths of variables to
            arrays; or, for `kernel_regularizer=`, an array of the weights' shape.
        reduce: `"sum"`, or `"mean"`: divided by the number of weights.

    Returns:
        As a call: for weights that have an anchor, a scalar. `project` gives the anchor.

    Raises:
        ValueError: the model is not built, a number is not finite; on call, there is no anchor for the weights, or one
            of another shape.

    Source: Li, Grandvalet and Davoine, "Explicit inductive bias for transfer learning with convolutional networks",
    ICML 2018, equation 2.

    Examples:
        >>> import keras, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])  # with pretrained weights
        >>> penalty = minimand.transforms.WeightPenalty(minimand.regularizers.L2SP(0.01, model))
    """

    def __init__(self, strength: Any, anchor: Any, *, reduce: str = "sum") -> None:
        super().__init__(strength, reduce=reduce)
        self.anchors = arrays_of("L2SP", "anchor", anchor)

    def of(self, variable: Any) -> L2SP:
        other = copy.copy(self)
        other.anchors = {None: array_for("L2SP", "anchor", self.anchors, variable)}
        return other

    def penalty(self, weights: Tensor) -> Tensor:
        return ops.sum(ops.square(weights - ops.cast(self.anchors[None], weights.dtype)))

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        anchor = ops.cast(self.anchors[None], weights.dtype)
        return anchor + (weights - anchor) / (1.0 + 2.0 * step)

    def projection(self, weights: Tensor) -> Tensor:
        return ops.cast(self.anchors[None], weights.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "anchor": to_text(self.anchors)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> L2SP:
        """A regularizer made from `get_config()`."""
        return super().from_config({**config, "anchor": from_text(config["anchor"])})


# Weights kept near given ones, the more the more the data said about each.


@keras.saving.register_keras_serializable(package="minimand")
class ElasticWeightConsolidation(WeightRegularizer):
    """Elastic weight consolidation: the squared distance to weights trained on an earlier task, by their importance.

    R(w) = strength / 2 * sum F (w - w0)^2

    With F the diagonal of the Fisher information on the earlier task's data (`fisher_information`) and the strength
    the number of its examples, over that of the new task's if the loss is a mean, this is the earlier task's
    Laplace approximation. Both arrays are copied when the regularizer is made and are a part of its configuration, as
    text of 5.3 bytes a number.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        fisher: F >= 0: a mapping of paths of variables to arrays, or an array of the weights' shape.
        anchor: w0: a built model, whose trainable weights as they are now are taken, or as `fisher`.
        reduce: `"sum"`, or `"mean"`: divided by the number of weights.

    Returns:
        As a call: for weights that have an anchor, a scalar.

    Raises:
        ValueError: a number is not finite or an entry of `fisher` negative; on call, there is no array for the
            weights, or one of another shape.

    Source: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 114 (2017), equation 3.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "softmax")])  # trained on x, y
        >>> x, y = np.ones((8, 3)), np.zeros(8)
        >>> fisher = minimand.regularizers.fisher_information(model, x, y, "sparse_categorical_crossentropy")
        >>> elastic = minimand.regularizers.ElasticWeightConsolidation(8.0, fisher, model)
        >>> penalty = minimand.transforms.WeightPenalty(elastic, select="all")
    """

    def __init__(self, strength: Any, fisher: Any, anchor: Any, *, reduce: str = "sum") -> None:
        super().__init__(strength, reduce=reduce)
        self.fishers = arrays_of("ElasticWeightConsolidation", "fisher", fisher)
        self.anchors = arrays_of("ElasticWeightConsolidation", "anchor", anchor)
        negative = [path for path, array in self.fishers.items() if np.any(array < 0)]
        if negative:
            raise ValueError(
                "ElasticWeightConsolidation: `fisher` must be >= 0. "
                f"Received: negative entries for {negative[0] or 'the weights'}"
            )

    def of(self, variable: Any) -> ElasticWeightConsolidation:
        other = copy.copy(self)
        other.fishers = {None: array_for("ElasticWeightConsolidation", "fisher", self.fishers, variable)}
        other.anchors = {None: array_for("ElasticWeightConsolidation", "anchor", self.anchors, variable)}
        return other

    def penalty(self, weights: Tensor) -> Tensor:
        distance = weights - ops.cast(self.anchors[None], weights.dtype)
        return 0.5 * ops.sum(ops.cast(self.fishers[None], weights.dtype) * ops.square(distance))

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        anchor = ops.cast(self.anchors[None], weights.dtype)
        return anchor + (weights - anchor) / (1.0 + step * ops.cast(self.fishers[None], weights.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "fisher": to_text(self.fishers), "anchor": to_text(self.anchors)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ElasticWeightConsolidation:
        """A regularizer made from `get_config()`."""
        return super().from_config(
            {**config, "fisher": from_text(config["fisher"]), "anchor": from_text(config["anchor"])}
        )


# The diagonal of the Fisher information, from gradients of single examples.

# Rows whose squares are summed in float32.
_ROWS = 1024


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
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "softmax")])
        >>> x = np.random.default_rng(0).normal(size=(8, 3))
        >>> drawn = [np.random.default_rng(0).choice(2, p=p / p.sum()) for p in np.float64(model.predict(x, verbose=0))]
        >>> fisher = minimand.regularizers.fisher_information(model, x, drawn, "sparse_categorical_crossentropy")
        >>> [array.shape for array in fisher.values()]
        [(3, 2), (2,)]
    """
    if not model.built:
        raise ValueError(f"fisher_information: `model` must be built. Received: {model.name}, which has no weights yet")
    data = keras.tree.map_structure(ops.convert_to_tensor, (x, np.asarray(y)))
    count = check_rows("fisher_information", "`x` and `y`", data)
    criterion = keras.losses.get(loss)
    variables = model.trainable_variables

    def sums(rows: Any, trainable: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
        def example_loss(values: Sequence[Tensor], row: Any) -> tuple[Tensor, Tensor]:
            inputs, targets = keras.tree.map_structure(lambda leaf: leaf[None], row)
            outputs, _ = model.stateless_call(values, other, inputs, training=False)
            return ops.sum(criterion(targets, outputs)), ops.zeros(())

        members = ops.ones((keras.tree.flatten(rows)[0].shape[0], 1))
        return [squares[0] for (squares,) in sums_of_powers(example_loss, trainable, rows, members)[0]]

    state = [v.value for v in variables], [v.value for v in model.non_trainable_variables]
    compiled = backend.jit(sums)
    totals: list[Any] = [0.0] * len(variables)
    for start in range(0, count, _ROWS):
        rows = keras.tree.map_structure(lambda leaf, start=start: leaf[start : start + _ROWS], data)
        found = compiled(rows, *state)
        # In double precision over the parts.
        totals = [t + ops.convert_to_numpy(f).astype("float64") for t, f in zip(totals, found, strict=True)]
    return {v.path: np.asarray(t / count, dtype=v.dtype) for v, t in zip(variables, totals, strict=True)}
