"""Penalties on the distance to given weights, and the Fisher information that weights one of them."""

from __future__ import annotations

import base64
import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from minimand import backend
from minimand._config import config_of, from_config
from minimand._objective import DataObjective, copied
from minimand._selection import by_path, match_path
from minimand._validation import check_rows
from minimand.backend import Tensor
from minimand.gradients._exact import sums_of_powers
from minimand.regularizers._base import WeightRegularizer

# Arrays by the paths of variables. The path None stands for any weights.
_Arrays = dict[str | None, np.ndarray]


def _arrays_of(owner: str, name: str, value: Any) -> _Arrays:
    """Copies of a model's trainable weights, of the arrays of a mapping by path, or of one array."""
    if isinstance(value, keras.Model):
        if not value.built:
            raise ValueError(
                f"{owner}: `{name}` must be a built model. Received: {value.name}, which has no weights yet. Call it "
                "once, or begin it with keras.Input."
            )
        variables = value.trainable_variables
        value = by_path(owner, variables, (variable.numpy() for variable in variables))
    given = value if isinstance(value, Mapping) else {None: value}
    arrays = {path: np.array(ops.convert_to_numpy(each)) for path, each in given.items()}
    for path, array in arrays.items():
        if not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
            raise ValueError(f"{owner}: `{name}` must be finite numbers. Received: others, for {path or 'the weights'}")
    return arrays


def _array_for(owner: str, name: str, arrays: _Arrays, variable: Any) -> np.ndarray:
    """The array of a variable; a tensor has no path and needs a single array."""
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


def _to_text(arrays: _Arrays) -> list[list[Any]]:
    """Rows of path, type, shape and base64, which is exact and a quarter of the size of decimal numbers."""
    return [
        [path, str(each.dtype), list(each.shape), base64.b64encode(np.ascontiguousarray(each).tobytes()).decode()]
        for path, each in arrays.items()
    ]


def _from_text(rows: list[list[Any]]) -> Any:
    """An argument for `_arrays_of`, from `_to_text`."""
    arrays = {path: np.frombuffer(base64.b64decode(text), dtype).reshape(shape) for path, dtype, shape, text in rows}
    return arrays.get(None, arrays)


class _Anchored(WeightRegularizer):
    """Base class of penalties on the distance to an anchor, with arrays of the weights' shapes as arguments."""

    _names: ClassVar[tuple[str, ...]] = ("anchor",)
    anchor: _Arrays

    def __init__(self, strength: Any, reduction: str, **arrays: Any) -> None:
        super().__init__(strength, reduction=reduction)
        for name, value in arrays.items():
            setattr(self, name, _arrays_of(type(self).__name__, name, value))

    def of(self, variable: Any) -> WeightRegularizer:
        other = copy.copy(self)
        for name in self._names:
            setattr(other, name, {None: _array_for(type(self).__name__, name, getattr(self, name), variable)})
        return other

    def _own(self, weights: Tensor) -> list[Tensor]:
        """The arrays of these weights, in the weights' precision."""
        return [ops.cast(getattr(self, name)[None], weights.dtype) for name in self._names]

    def get_config(self) -> dict[str, Any]:
        return config_of(self, {name: _to_text(getattr(self, name)) for name in self._names})

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """A regularizer made from `get_config()`."""
        arrays = {name: _from_text(config[name]) for name in cls._names}
        return from_config(partial(cls, **arrays), {k: v for k, v in config.items() if k not in arrays})


@keras.saving.register_keras_serializable(package="minimand")
class L2SP(_Anchored):
    """L2-SP penalises the squared distance of the weights to given weights, as those of a pretrained model.

    Use L2SP in place of weight decay for fine-tuning, so that weights stay near the pretrained ones and not near zero.

    R(w) = strength * sum (w - w0)^2

    The anchor w0 is copied when the regularizer is made. The anchor is a part of the configuration (as text, of 5.3
    bytes a weight), so a loaded model has the same anchor and does not use its loaded weights.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        anchor: w0: a built model, whose present trainable weights are copied; a mapping of paths of variables to
            arrays; or, for `kernel_regularizer=`, an array of the weights' shape.
        reduction: `"sum"`, or `"mean"`: divided by the number of weights.

    Returns:
        As a call: for weights that have an anchor, a scalar. `project` gives the anchor.

    Raises:
        ValueError: the model is not built, a number is not finite; on call, the weights have no anchor, or an anchor of
            another shape.

    Source: Li, Grandvalet and Davoine, "Explicit inductive bias for transfer learning with convolutional networks",
    ICML 2018, equation 2.

    Examples:
        >>> import keras, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])  # with pretrained weights
        >>> penalty = minimand.transforms.WeightPenalty(minimand.regularizers.L2SP(0.01, model))
    """

    def __init__(self, strength: Any, anchor: Any, *, reduction: str = "sum") -> None:
        super().__init__(strength, reduction, anchor=anchor)

    def penalty(self, weights: Tensor) -> Tensor:
        return ops.sum(ops.square(weights - self.projection(weights)))

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        anchor = self.projection(weights)
        return anchor + (weights - anchor) / (1.0 + 2.0 * step)

    def projection(self, weights: Tensor) -> Tensor:
        return self._own(weights)[0]


@keras.saving.register_keras_serializable(package="minimand")
class ElasticWeightConsolidation(_Anchored):
    """Elastic weight consolidation penalises changes of the weights that were important for an earlier task.

    Use ElasticWeightConsolidation to train on a new task without forgetting the earlier one, whose data are no longer
    at hand.

    R(w) = strength / 2 * sum F (w - w0)^2

    This is the Laplace approximation of the earlier task if F is the diagonal of the Fisher information on its data
    (`fisher_information`), and the strength is the number of its examples; if the loss is a mean, divide by the number
    of examples of the new task. Both arrays are copied when the regularizer is made, and are a part of its
    configuration, as text of 5.3 bytes a number.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        fisher: F >= 0: a mapping of paths of variables to arrays, or an array of the weights' shape.
        anchor: w0: a built model, whose present trainable weights are copied, or as `fisher`.
        reduction: `"sum"`, or `"mean"`: divided by the number of weights.

    Returns:
        As a call: for weights that have an anchor, a scalar.

    Raises:
        ValueError: a number is not finite or an entry of `fisher` negative; on call, the weights have no array, or an
            array of another shape.

    Source: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 114 (2017), equation 3.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "softmax")])  # trained on x, y
        >>> x, y = np.ones((8, 3)), np.zeros(8)
        >>> fisher = minimand.regularizers.fisher_information(model, x, y, "sparse_categorical_crossentropy")
        >>> elastic = minimand.regularizers.ElasticWeightConsolidation(8.0, fisher, model)
        >>> penalty = minimand.transforms.WeightPenalty(elastic, select="all")
    """

    _names = ("fisher", "anchor")
    fisher: _Arrays

    def __init__(self, strength: Any, fisher: Any, anchor: Any, *, reduction: str = "sum") -> None:
        super().__init__(strength, reduction, fisher=fisher, anchor=anchor)
        negative = [path for path, array in self.fisher.items() if np.any(array < 0)]
        if negative:
            raise ValueError(
                "ElasticWeightConsolidation: `fisher` must be >= 0. "
                f"Received: negative entries for {negative[0] or 'the weights'}"
            )

    def penalty(self, weights: Tensor) -> Tensor:
        fisher, anchor = self._own(weights)
        return 0.5 * ops.sum(fisher * ops.square(weights - anchor))

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        fisher, anchor = self._own(weights)
        return anchor + (weights - anchor) / (1.0 + step * fisher)


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
    objective = DataObjective(model, model.__call__, criterion, training=False)
    of_path = by_path("fisher_information", model.trainable_variables, model.trainable_variables)
    variables = list(of_path.values())

    def sums(rows: Any, trainable: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
        def example_loss(values: Sequence[Tensor], row: Any) -> tuple[Tensor, Tensor]:
            inputs, targets = keras.tree.map_structure(lambda leaf: leaf[None], row)
            outputs = objective.outputs(values, inputs)
            return ops.sum(criterion(copied(targets), outputs)), ops.zeros(())

        members = ops.ones((keras.tree.flatten(rows)[0].shape[0], 1))
        with keras.StatelessScope(list(zip(model.non_trainable_variables, other, strict=True))):
            return [squares[0] for (squares,) in sums_of_powers(example_loss, trainable, rows, members)[0]]

    state = [v.value for v in variables], [v.value for v in model.non_trainable_variables]
    compiled = backend.jit(sums)
    totals: list[Any] = [0.0] * len(variables)
    for start in range(0, count, _ROWS):
        rows = keras.tree.map_structure(lambda leaf, start=start: leaf[start : start + _ROWS], data)
        found = compiled(rows, *state)
        # In double precision over the parts.
        totals = [t + ops.convert_to_numpy(f).astype("float64") for t, f in zip(totals, found, strict=True)]
    means = (np.asarray(t / count, dtype=v.dtype) for v, t in zip(variables, totals, strict=True))
    return dict(zip(of_path, means, strict=True))
