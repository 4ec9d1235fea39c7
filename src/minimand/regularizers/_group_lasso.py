"""Penalties that make groups of weights vanish together: the groups, their proximal map, and the regularizers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand import backend
from minimand._ops import at_least, compute_dtype, safe_abs, safe_sqrt, soft_threshold
from minimand._selection import by_path, match_path
from minimand._validation import check_bool, check_float
from minimand.backend import Tensor
from minimand.regularizers._base import WeightRegularizer

# Disjoint groups of the entries of tensors, the parts. `sizes` has the number of entries of each group: a number, or an
# array of the shape of `sums`.


class AxisGroups:
    """Groups of a tensor that is seen in the shape `view`: `axes` run over a group, the other axes over the groups."""

    def __init__(self, view: tuple[int, ...], axes: tuple[int, ...]) -> None:
        self.view, self.axes = view, axes
        self.sizes = math.prod(view[axis] for axis in axes)

    def sums(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum over each group."""
        return ops.sum(ops.reshape(parts[0], self.view), axis=self.axes, keepdims=True)

    def broadcast(self, values: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
        """For each entry of the parts its group's value, in shapes that broadcast to the parts'."""
        return [ops.reshape(ops.broadcast_to(values, self.view), parts[0].shape)]


class LabelGroups:
    """Groups of equal labels, in one or several tensors; entries with negative labels are in no group.

    Args:
        labels: for each part, integers in a shape that broadcasts to the part's.
        shapes: shapes of the parts.
    """

    def __init__(self, labels: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> None:
        # The last group holds the entries that are in no group; its size is 0.
        found = np.unique(np.concatenate([each[each >= 0].ravel() for each in labels]))
        self.count = len(found)
        self.labels = [np.where(each >= 0, np.searchsorted(found, each), self.count).astype("int32") for each in labels]
        self.sizes = np.zeros(self.count + 1)
        for each, shape in zip(self.labels, shapes, strict=True):
            np.add.at(self.sizes, each.ravel(), math.prod(shape) // each.size)
        self.sizes[-1] = 0.0

    def sums(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum over each group."""
        total: Any = 0.0
        for part, labels in zip(parts, self.labels, strict=True):
            axes = tuple(axis for axis, size in enumerate(labels.shape) if size == 1 and part.shape[axis] > 1)
            flat = ops.reshape(ops.sum(part, axis=axes) if axes else part, (-1,))
            total = total + backend.segment_sum(flat, labels.ravel(), self.count + 1)
        return total

    def broadcast(self, values: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
        """For each entry of the parts its group's value, in shapes that broadcast to the parts'."""
        return [ops.reshape(ops.take(values, each.ravel()), each.shape) for each in self.labels]


Groups = AxisGroups | LabelGroups


def _labels_for(owner: str, labels: np.ndarray, shape: tuple[int, ...], name: str = "weights") -> np.ndarray:
    """The labels with as many axes as weights of this shape, to which they must broadcast."""
    short = len(shape) - labels.ndim
    if short < 0 or any(a not in (1, b) for a, b in zip(labels.shape, shape[short:], strict=True)):
        raise ValueError(
            f"{owner}: labels in `groups` must broadcast to the weights. "
            f"Received: labels of shape {labels.shape}, {name} of shape {shape}"
        )
    return labels.reshape((1,) * short + labels.shape)


def _factors_of(groups: Groups, weight_by_size: bool, dtype: Any) -> Tensor:
    """The factor f_g of each group's norm: sqrt(p_g), or 1 for groups that are not empty."""
    sizes = np.asarray(groups.sizes)
    return ops.convert_to_tensor(np.sqrt(sizes) if weight_by_size else np.float64(sizes > 0), dtype)


# The sum of norms and its proximal map.


def sum_of_norms(groups: Groups, parts: Sequence[Tensor], weight_by_size: bool) -> Tensor:
    """The sum over groups of f_g ||w_g||_2."""
    lengths = safe_sqrt(groups.sums([ops.square(part) for part in parts]))
    return ops.sum(_factors_of(groups, weight_by_size, lengths.dtype) * lengths)


def shrunk(groups: Groups, parts: Sequence[Tensor], steps: Sequence[Any], weight_by_size: bool) -> list[Tensor]:
    """argmin_u sum over groups f_g ||u_g|| + sum (u - w)^2 / (2 s): the proximal map of `sum_of_norms`.

    A group is 0 if and only if ||w_g / s_g|| <= f_g. Otherwise u = w r / (r + s f_g), where the norm r of u is the root
    of phi(r) = sum (w / (r + s f_g))^2 = 1. With equal steps s the root is r = ||w_g|| - s f_g. With other steps, the
    root is found by Newton's method for phi^(-1/2), which is increasing and concave. From the left of the root the
    iterates increase to the root, and one step from the right leads to its left.

    Args:
        groups: the groups.
        parts: w.
        steps: s >= 0, for each part: a scalar, the same for all of them, or of the part's shape.
        weight_by_size: whether the factors f_g are sqrt(p_g), or 1.

    Source: Yuan and Lin, JRSS B 68 (2006), section 2 (equal steps); Yun, Lozano and Yang, "Adaptive proximal gradient
    methods for structured neural networks", NeurIPS 2021 (other diagonal metrics); the concavity, as for the secular
    equation of trust regions: Conn, Gould and Toint, "Trust-region methods", 2000, section 7.3.
    """
    squares = [ops.square(part) for part in parts]
    length = safe_sqrt(groups.sums(squares))
    factors = _factors_of(groups, weight_by_size, length.dtype)
    if all(len(ops.shape(step)) == 0 for step in steps):
        kept = length - steps[0] * factors
        ratio = ops.where(kept <= 0, 0.0, kept / ops.where(length <= 0, 1.0, length))
        return [part * share for part, share in zip(parts, groups.broadcast(ratio, parts), strict=True)]
    limits = np.finfo(keras.backend.standardize_dtype(length.dtype))
    of_group = groups.broadcast(factors + ops.zeros_like(length), parts)
    # 0 / 0 must be 0 where nothing is shrunk and all weights are 0.
    shifts = [ops.clip(step * f, float(limits.tiny), np.inf) for step, f in zip(steps, of_group, strict=True)]
    lengths = groups.sums([ops.square(part / shift) for part, shift in zip(parts, shifts, strict=True)])
    positive = ops.logical_not(lengths <= 1.0)
    # To first order in the steps.
    first = groups.sums([square * shift for square, shift in zip(squares, shifts, strict=True)])
    start = at_least(length - first / ops.where(length > 0, length * length, 1.0), 0.01 * length)
    start = ops.where(positive, start, 0.0)

    def improve(root: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        inverse = [1.0 / (r + shift) for r, shift in zip(groups.broadcast(root, parts), shifts, strict=True)]
        terms = [square * each * each for square, each in zip(squares, inverse, strict=True)]
        phi = groups.sums(terms)
        slope = groups.sums([term * each for term, each in zip(terms, inverse, strict=True)])
        better = root + phi * (ops.sqrt(phi) - 1.0) / ops.where(slope > 0, slope, 1.0)
        better = ops.where(positive, at_least(better, 0.1 * root), 0.0)
        return better, ops.abs(better - root)

    # After a relative change d the relative error is 1.5 d^2 at most: with a = 1 / (r + shift) and the weights of the
    # terms of phi, it is 1.5 r Var(a) / E(a), and 0 < r a < 1.
    tolerance = math.sqrt(float(limits.eps)) / 2
    root, _ = ops.while_loop(
        lambda root, change: ops.any(ops.logical_and(positive, change > tolerance * root)),
        improve,
        (start, length),
        maximum_iterations=50,
    )
    roots = groups.broadcast(root, parts)
    return [part * (r / (r + shift)) for part, r, shift in zip(parts, roots, shifts, strict=True)]


# The group lasso of one tensor.

# The axes that count the groups. The positions of a convolution are all axes but the last two.
_AXES_OF = {"output": (-1,), "input": (-2,), "channel": (-2,), "position": ()}


@keras.saving.register_keras_serializable(package="minimand")
class GroupLasso(WeightRegularizer):
    """GroupLasso pushes whole groups of weights to zero together.

    Use GroupLasso to remove units, filters or channels, which makes a smaller model; `sparsity.compact` makes it.

    R(w) = strength * sum over groups g of sqrt(p_g) ||w_g||_2, with p_g weights in group g

    The gradient at a group that is all zero is the smallest subgradient, 0. Gradient steps on this penalty make groups
    small but never exactly zero. `optimizers.Proximal` makes them zero by taking `prox` at each step.

    The groups, for weights whose last two axes are inputs and outputs (Dense, Conv1D, Conv2D, Conv3D), are

    - `"output"`: all weights of an output unit or filter (last axis). For an Embedding, a group is a feature.
    - `"input"` or `"channel"`: all weights of an input unit or channel (last axis but one). For a depthwise convolution
      a group is a channel, and for an Embedding a token.
    - `"position"`: all weights of a position of a convolution's window (all axes but the last two).
    - `("gates", 4)`: as `"output"`, for a last axis with the units of each of 4 gates in turn (LSTM; 3 for GRU). A
      group has the weights of a unit in all gates.
    - `("block", (rows, columns))`: blocks of so many inputs and outputs, at each position.
    - `("axes", axes)`: one group for each index along these axes. `("axes", (-2, -1))` are the filters of a depthwise
      convolution; for EinsumDense's (inputs, heads, features), `("axes", 1)` are heads.
    - an array of integers that broadcasts to the weights: equal integers are a group, negative ones are in no group.

    `JointGroupLasso` has groups across several variables.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        groups: as above.
        weight_by_size: whether there is the factor sqrt(p_g), without which large groups are favoured.
        reduction: `"sum"`, or `"mean"`: divided by the number of weights.

    Returns:
        As a call: for weights of rank 2 or more (of any rank by labels or axes), a scalar. `prox` is exact, for a step
        of each weight too.

    Raises:
        ValueError: a number is out of its range, `groups` or `reduction` is unknown; on call, the weights have a rank
            below 2, no such axis, no axis of positions, or a size that blocks or gates do not divide.

    Source: Yuan and Lin, "Model selection and estimation in regression with grouped variables", JRSS B 68 (2006);
    for networks, Scardapane et al., "Group sparse regularization for deep neural networks", Neurocomputing 241 (2017).

    Examples:
        >>> import minimand
        >>> penalty = minimand.regularizers.GroupLasso(0.1)
        >>> round(float(penalty([[3.0, 0.0], [4.0, 0.0]])), 6)  # 0.1 * sqrt(2) * 5
        0.707107
        >>> [float(w) for w in penalty.prox([[3.0, 0.01], [4.0, 0.01]], 0.5)[:, 1]]
        [0.0, 0.0]
    """

    def __init__(
        self, strength: Any, groups: Any = "output", *, weight_by_size: bool = True, reduction: str = "sum"
    ) -> None:
        super().__init__(strength, reduction=reduction)
        owner = type(self).__name__
        self.groups = _checked_groups(groups, owner)
        self.weight_by_size = check_bool(owner, "weight_by_size", weight_by_size)
        self._found: dict[tuple[int, ...], LabelGroups] = {}

    def check(self, shape: tuple[int, ...]) -> None:
        self._grouping(shape)

    def _grouping(self, shape: tuple[int, ...]) -> Groups:
        """The groups of weights of this shape."""
        owner, rank = type(self).__name__, len(shape)
        if isinstance(self.groups, np.ndarray):
            # Labels may be as many as weights, so they are sorted once.
            if shape not in self._found:
                self._found[shape] = LabelGroups([_labels_for(owner, self.groups, shape)], [shape])
            return self._found[shape]
        kind, numbers = self.groups if isinstance(self.groups, tuple) else (self.groups, _AXES_OF[self.groups])
        received = f"Received: groups={self.groups!r}, weights of shape {shape}"
        if kind != "axes" and rank < 2:
            raise ValueError(f"{owner}: the weights must have rank 2 or more (a kernel). {received}")
        if kind in ("block", "gates"):
            rows, columns = numbers if kind == "block" else (1, *numbers)
            if shape[-2] % rows or shape[-1] % columns:
                raise ValueError(f"{owner}: blocks and gates must divide the last axes of the weights. {received}")
            if kind == "gates":
                return AxisGroups((*shape[:-1], columns, shape[-1] // columns), tuple(range(rank)))
            view = (*shape[:-2], shape[-2] // rows, rows, shape[-1] // columns, columns)
            return AxisGroups(view, (rank - 1, rank + 1))
        if kind == "position" and rank < 3:
            raise ValueError(
                f'{owner}: groups="position" needs the weights of a convolution, of rank 3 or more. {received}'
            )
        if not all(-rank <= axis < rank for axis in numbers):
            raise ValueError(f"{owner}: the axes in `groups` must be axes of the weights. {received}")
        counting = set(range(rank - 2)) if kind == "position" else {axis % rank for axis in numbers}
        return AxisGroups(shape, tuple(axis for axis in range(rank) if axis not in counting))

    def penalty(self, weights: Tensor) -> Tensor:
        return sum_of_norms(self._grouping(tuple(weights.shape)), [weights], self.weight_by_size)

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        return shrunk(self._grouping(tuple(weights.shape)), [weights], [step], self.weight_by_size)[0]


def _checked_groups(groups: Any, owner: str) -> Any:
    """A name, a pair of a kind and its numbers, or an array of labels."""
    if isinstance(groups, str) and groups in _AXES_OF:
        return groups
    if isinstance(groups, (tuple, list)) and len(groups) == 2 and groups[0] in ("block", "axes", "gates"):
        kind, numbers = groups
        numbers = tuple(numbers) if isinstance(numbers, Sequence) else (numbers,)
        integers = numbers and all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
        count = {"block": 2, "gates": 1, "axes": len(numbers)}[kind]
        if integers and len(numbers) == count and (kind == "axes" or min(numbers) >= 1):
            return kind, numbers
    elif not isinstance(groups, str):
        labels = np.asarray(groups)
        if labels.size and np.issubdtype(labels.dtype, np.integer) and labels.max() >= 0:
            return labels
    raise ValueError(
        f'{owner}: `groups` must be one of {", ".join(map(repr, _AXES_OF))}, ("gates", number), '
        '("block", (rows, columns)), ("axes", axes) or an array of integers with a group. '
        f"Received: groups={groups!r}"
    )


@keras.saving.register_keras_serializable(package="minimand")
class SparseGroupLasso(GroupLasso):
    """SparseGroupLasso pushes whole groups of weights to zero, and single weights in the groups that stay.

    Use SparseGroupLasso in place of `GroupLasso` when single weights of a useful unit may go too.

    R(w) = strength * (a sum |w| + (1 - a) sum over groups g of sqrt(p_g) ||w_g||_2), a = `l1_ratio`

    The proximal map is exactly that of the first term followed by that of the second, also with a step for each weight.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        l1_ratio: a, 0 <= a <= 1. At 1 this is the lasso, at 0 the group lasso.
        groups: as in `GroupLasso`.
        weight_by_size: as in `GroupLasso`.
        reduction: `"sum"`, or `"mean"`: divided by the number of weights.

    Returns:
        As a call: for weights of a shape that has such groups, a scalar.

    Raises:
        ValueError: as `GroupLasso`, or `l1_ratio` is out of its range.

    Source: Simon et al., "A sparse-group lasso", JCGS 22 (2013), section 3.

    Examples:
        >>> import minimand
        >>> penalty = minimand.regularizers.SparseGroupLasso(1.0, 0.5)
        >>> [[round(float(w), 4) for w in row] for row in penalty.prox([[3.0, 0.5], [0.2, 0.5]], 1.0)]
        [[1.7929, 0.0], [0.0, 0.0]]
    """

    def __init__(
        self,
        strength: Any,
        l1_ratio: float,
        groups: Any = "output",
        *,
        weight_by_size: bool = True,
        reduction: str = "sum",
    ) -> None:
        super().__init__(strength, groups, weight_by_size=weight_by_size, reduction=reduction)
        self.l1_ratio = check_float("SparseGroupLasso", "l1_ratio", l1_ratio, minimum=0.0, maximum=1.0)

    def penalty(self, weights: Tensor) -> Tensor:
        return self.l1_ratio * ops.sum(safe_abs(weights)) + (1.0 - self.l1_ratio) * super().penalty(weights)

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        within = soft_threshold(weights, self.l1_ratio * step)
        return super().proximal(within, (1.0 - self.l1_ratio) * step)


# The group lasso of several tensors.

_Families = list[tuple[list[int], LabelGroups]]


@keras.saving.register_keras_serializable(package="minimand")
class JointGroupLasso(WeightRegularizer):
    """JointGroupLasso is the group lasso with groups across variables, such as a filter with its bias.

    Use JointGroupLasso to remove units with all of their weights: `sparsity.unit_groups(model)` gives the groups that
    `sparsity.compact` can remove.

    R(w) = strength * sum over groups g of sqrt(p_g) ||w_g||_2, with p_g weights in group g

    Each mapping of a list holds groups that do not overlap. A weight may be in groups of several mappings: a weight
    between two layers is an outgoing weight of one unit and an incoming weight of another. The proximal map is exact
    and direct for a single mapping. For several mappings it is found by Dykstra's algorithm, at the cost of one map for
    each mapping and sweep.

    A `kernel_regularizer=` sees one variable, so use `transforms.WeightPenalty` or `optimizers.Proximal`, with
    `select="all"` if there are biases.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        groups: a mapping of paths of variables to integers that broadcast to their shapes, or a list of such mappings.
            Equal integers of a mapping are a group, in whichever variable; negative ones are in no group.
        weight_by_size: whether there is the factor sqrt(p_g).
        reduction: `"sum"`, or `"mean"`: divided by the number of weights in groups.

    Raises:
        TypeError: `groups` is not such a mapping or list; on a call with one variable.
        ValueError: a mapping is empty, labels are not integers; before the first step, a named variable is not
            selected, or labels do not broadcast to it.

    Source: Jacob, Obozinski and Vert, "Group lasso with overlap and graph lasso", ICML 2009, section 2, the penalty by
    norms; `prox` with overlap: Bauschke and Combettes, "A Dykstra-like algorithm for two monotone operators", Pacific
    J. Optimization 4 (2008).

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="hidden"), keras.layers.Dense(1)])
        >>> columns = {"hidden/kernel": np.arange(2), "hidden/bias": np.arange(2)}
        >>> joint = minimand.regularizers.JointGroupLasso(1e-3, columns)
        >>> penalty = minimand.transforms.WeightPenalty(joint, select="all")
    """

    def __init__(
        self,
        strength: Any,
        groups: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        weight_by_size: bool = True,
        reduction: str = "sum",
    ) -> None:
        super().__init__(strength, reduction=reduction)
        self.groups = _checked_mappings(groups)
        self.weight_by_size = check_bool("JointGroupLasso", "weight_by_size", weight_by_size)
        self._found: dict[Any, _Families] = {}

    def of(self, variable: Any) -> WeightRegularizer:
        raise TypeError(
            "JointGroupLasso: the groups are across variables, so a call needs all of them. "
            f"Received: {getattr(variable, 'path', 'a tensor')} alone. Use transforms.WeightPenalty or "
            "optimizers.Proximal."
        )

    def check_variables(self, variables: Sequence[keras.Variable]) -> None:
        self._families(variables)

    def _families(self, variables: Sequence[keras.Variable]) -> _Families:
        """For each mapping, the indices of its variables among these, and its groups; found once."""
        key = tuple((variable.path, tuple(variable.shape)) for variable in variables)
        if key in self._found:
            return self._found[key]
        index_of: dict[Any, int] = by_path("JointGroupLasso", variables, range(len(variables)))
        families = []
        for mapping in self.groups:
            found = {path: match_path(path, index_of) for path in mapping}
            missing = [path for path, match in found.items() if match is None]
            if missing or len(set(found.values())) < len(found):
                raise ValueError(
                    "JointGroupLasso: the variables that `groups` names must be among those selected, each once. "
                    f'Received: {(missing or list(found))[0]!r}, for {list(index_of)}. Use select="all", or groups of '
                    "this model."
                )
            indices = [index_of[match] for match in found.values()]
            shapes = [tuple(variables[index].shape) for index in indices]
            labels = [_labels_for("JointGroupLasso", mapping[p], s, p) for p, s in zip(mapping, shapes, strict=True)]
            families.append((indices, LabelGroups(labels, shapes)))
        self._found[key] = families
        return families

    def _strength(self, families: _Families, dtype: Any) -> Tensor:
        """The coefficient for the number of weights in groups."""
        return self.coefficient((sum(int(groups.sizes.sum()) for _, groups in families),), dtype)

    def total(self, variables: Sequence[keras.Variable], values: Sequence[Tensor]) -> Tensor:
        families = self._families(variables)
        parts = [(groups, [values[index] for index in indices]) for indices, groups in families]
        total: Any = sum(sum_of_norms(groups, part, self.weight_by_size) for groups, part in parts)
        return self._strength(families, total.dtype) * total

    def require_proximal(self) -> None:
        """`proximal_step` is the proximal map."""

    def proximal_step(
        self, variables: Sequence[keras.Variable], values: Sequence[Tensor], steps: Sequence[Any]
    ) -> list[Tensor]:
        families = self._families(variables)
        exact = compute_dtype(values[0])
        strength = self._strength(families, exact)
        current = [ops.cast(value, exact) for value in values]
        steps = [ops.convert_to_tensor(step, exact) * strength for step in steps]

        def shrink(family: int, parts: Sequence[Tensor]) -> list[Tensor]:
            indices, groups = families[family]
            return shrunk(groups, parts, [steps[index] for index in indices], self.weight_by_size)

        if len(families) == 1:
            indices, _ = families[0]
            for index, part in zip(indices, shrink(0, [current[i] for i in indices]), strict=True):
                current[index] = part
        else:
            current = _dykstra(shrink, [indices for indices, _ in families], current)
        return [ops.cast(part, value.dtype) for part, value in zip(current, values, strict=True)]


def _dykstra(shrink: Any, members: Sequence[Sequence[int]], values: list[Tensor]) -> list[Tensor]:
    """The proximal map of a sum of functions of parts of the values; `shrink(function, parts)` is that of one."""
    exponent = -11 if keras.backend.standardize_dtype(values[0].dtype) == "float64" else -6

    def largest(values: Sequence[Tensor]) -> Tensor:
        return ops.max(ops.stack([ops.max(ops.abs(value)) for value in values]))

    def sweep(values: Any, rests: Any, kept: Any, change: Tensor) -> Any:
        before, values, rests = list(values), list(values), [list(r) for r in rests]
        kept = [ops.ones_like(value) for value in values]
        for function, indices in enumerate(members):
            pulled = [values[index] + rest for index, rest in zip(indices, rests[function], strict=True)]
            for k, (index, new) in enumerate(zip(indices, shrink(function, pulled), strict=True)):
                rests[function][k] = pulled[k] - new
                values[index] = new
                kept[index] = kept[index] * ops.cast(new != 0, new.dtype)
        return values, rests, kept, largest([a - b for a, b in zip(values, before, strict=True)])

    size = largest(values)
    rests = [[ops.zeros_like(values[index]) for index in indices] for indices in members]
    start = (values, rests, [ops.ones_like(value) for value in values], size)
    values, _, kept, _ = ops.while_loop(
        lambda values, rests, kept, change: change > 10.0**exponent * size, sweep, start, maximum_iterations=100
    )
    # The next function moves a group off 0 again, by less and less in each sweep.
    return [value * mask for value, mask in zip(values, kept, strict=True)]


def _checked_mappings(groups: Any) -> list[dict[str, np.ndarray]]:
    mappings = [groups] if isinstance(groups, Mapping) else groups
    refusal = (
        "JointGroupLasso: `groups` must be a mapping of paths of variables to integers, one of them >= 0, or a list of "
        f"such mappings. Received: groups={groups!r}"
    )
    if not isinstance(mappings, (list, tuple)) or not all(isinstance(each, Mapping) for each in mappings):
        raise TypeError(refusal)
    checked = [{str(path): np.asarray(labels) for path, labels in mapping.items()} for mapping in mappings]
    wrong = [labels for each in checked for labels in each.values() if not np.issubdtype(labels.dtype, np.integer)]
    if wrong or not checked or not all(any((a >= 0).any() for a in each.values()) for each in checked):
        raise ValueError(refusal)
    return checked
