"""Groups of weights of several variables, that vanish together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kriterion._selection import match_path
from kriterion._validation import check_bool
from kriterion.backend import Tensor
from kriterion.regularizers._groups import LabelGroups, labels_for, norms, shrunk
from kriterion.regularizers.base import WeightRegularizer, exact_dtype

Labels = Mapping[str, Any]
_Families = list[tuple[list[int], LabelGroups]]


@keras.saving.register_keras_serializable(package="kriterion")
class JointGroupSparsity(WeightRegularizer):
    """The group lasso with groups across variables: a filter with its bias, a unit's incoming and outgoing weights.

    R(w) = strength * sum over groups g of sqrt(p_g) ||w_g||_2, with p_g weights in group g

    `sparsity.unit_groups(model)` gives the groups that `sparsity.compact` can remove. A weight may be in several
    groups, as one between two layers is among the outgoing weights of a unit and the incoming ones of another: each
    mapping of a list holds groups that do not overlap. The proximal map is then found by Dykstra's algorithm, at the
    cost of one for each mapping and sweep; with a single mapping it is exact and direct.

    It is no `kernel_regularizer=`, which sees one variable: use `transforms.WeightPenalty` or `optimizers.Proximal`,
    with `select="all"` if there are biases.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        groups: a mapping of paths of variables to integers that broadcast to their shapes, or a list of such mappings.
            Equal integers of a mapping are a group, in whichever variable; negative ones are in none.
        weight_by_size: whether there is the factor sqrt(p_g).
        reduce: `"sum"`, or `"mean"`: divided by the number of weights in groups.

    Raises:
        TypeError: `groups` is not such a mapping or list; it is called for one variable.
        ValueError: a mapping is empty, labels are not integers; before the first step, a named variable is not among
            those selected, or labels do not broadcast to it.

    Source: Jacob, Obozinski and Vert, "Group lasso with overlap and graph lasso", ICML 2009, section 2, the penalty by
    norms; `prox` with overlap: Bauschke and Combettes, "A Dykstra-like algorithm for two monotone operators", Pacific
    J. Optimization 4 (2008).

    Examples:
        >>> import keras, numpy as np, kriterion
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="hidden"), keras.layers.Dense(1)])
        >>> columns = {"hidden/kernel": np.arange(2), "hidden/bias": np.arange(2)}
        >>> joint = kriterion.regularizers.JointGroupSparsity(1e-3, columns)
        >>> penalty = kriterion.transforms.WeightPenalty(joint, select="all")
    """

    def __init__(
        self, strength: Any, groups: Labels | Sequence[Labels], *, weight_by_size: bool = True, reduce: str = "sum"
    ) -> None:
        super().__init__(strength, reduce=reduce)
        self.groups = _checked(groups)
        self.weight_by_size = check_bool("JointGroupSparsity", "weight_by_size", weight_by_size)
        self._found: dict[Any, _Families] = {}

    def of(self, variable: Any) -> WeightRegularizer:
        raise TypeError(
            "JointGroupSparsity: its groups are of several variables: use transforms.WeightPenalty or "
            f"optimizers.Proximal. Received: a call for {getattr(variable, 'path', 'a tensor')} alone"
        )

    def check_variables(self, variables: Sequence[keras.Variable]) -> None:
        self._families(variables)

    def _families(self, variables: Sequence[keras.Variable]) -> _Families:
        """For each mapping, the indices of its variables among these, and its groups; found once."""
        key = tuple((variable.path, tuple(variable.shape)) for variable in variables)
        if key not in self._found:
            self._found[key] = self._find(variables)
        return self._found[key]

    def _find(self, variables: Sequence[keras.Variable]) -> _Families:
        index_of = {variable.path: index for index, variable in enumerate(variables)}
        families = []
        for mapping in self.groups:
            found = {path: match_path(path, index_of) for path in mapping}
            missing = [path for path, match in found.items() if match is None]
            if missing or len(set(found.values())) < len(found):
                raise ValueError(
                    "JointGroupSparsity: the variables that `groups` names must be among those selected, each once. "
                    f'Received: {(missing or list(found))[0]!r}, for {list(index_of)}. Use select="all", or groups of '
                    "this model."
                )
            indices = [index_of[match] for match in found.values()]
            shapes = [tuple(variables[index].shape) for index in indices]
            labels = [
                labels_for("JointGroupSparsity", each, shape, path)
                for (path, each), shape in zip(mapping.items(), shapes, strict=True)
            ]
            families.append((indices, LabelGroups(labels, shapes)))
        return families

    def _factors(self, groups: LabelGroups, families: _Families) -> Any:
        sizes = groups.sizes
        factors = np.sqrt(sizes) if self.weight_by_size else np.float64(sizes > 0)
        if self.reduce == "mean":
            factors = factors / sum(math.fsum(each.sizes) for _, each in families)
        return factors

    def total(self, variables: Sequence[keras.Variable], values: Sequence[Tensor]) -> Tensor:
        families = self._families(variables)
        result: Any = 0.0
        for indices, groups in families:
            parts = [values[index] for index in indices]
            factors = ops.convert_to_tensor(self._factors(groups, families), parts[0].dtype)
            result = result + ops.sum(factors * norms(groups, parts))
        return self.coefficient((), result.dtype) * result

    def require_proximal(self) -> None:
        """There is one."""

    def proximal_step(
        self, variables: Sequence[keras.Variable], values: Sequence[Tensor], steps: Sequence[Any]
    ) -> list[Tensor]:
        families = self._families(variables)
        exact = exact_dtype(values[0])
        strength = self.coefficient((), exact)
        current = [ops.cast(value, exact) for value in values]
        steps = [ops.convert_to_tensor(step, exact) * strength for step in steps]

        def shrink(family: int, parts: Sequence[Tensor]) -> list[Tensor]:
            indices, groups = families[family]
            factors = ops.convert_to_tensor(self._factors(groups, families), exact)
            return shrunk(groups, parts, [steps[index] for index in indices], factors)

        if len(families) == 1:
            for index, part in zip(families[0][0], shrink(0, [current[i] for i in families[0][0]]), strict=True):
                current[index] = part
        else:
            current = _dykstra(shrink, [indices for indices, _ in families], current)
        return [ops.cast(part, value.dtype) for part, value in zip(current, values, strict=True)]

    def get_config(self) -> dict[str, Any]:
        groups = [{path: labels.tolist() for path, labels in mapping.items()} for mapping in self.groups]
        return {**super().get_config(), "groups": groups, "weight_by_size": self.weight_by_size}


def _dykstra(shrink: Any, members: Sequence[Sequence[int]], values: list[Tensor]) -> list[Tensor]:
    """The proximal map of a sum of functions of some of the values each, from their own, `shrink(function, parts)`."""
    exponent = -11 if keras.backend.standardize_dtype(values[0].dtype) == "float64" else -6
    size = ops.max(ops.stack([ops.max(ops.abs(value)) for value in values]))

    def sweep(values: Any, rests: Any, alive: Any, change: Tensor) -> Any:
        before, values, rests, alive = list(values), list(values), [list(r) for r in rests], list(alive)
        kept = [ops.ones_like(value) for value in values]
        for function, indices in enumerate(members):
            pulled = [values[index] + rest for index, rest in zip(indices, rests[function], strict=True)]
            for k, (index, new) in enumerate(zip(indices, shrink(function, pulled), strict=True)):
                rests[function][k] = pulled[k] - new
                values[index] = new
                kept[index] = kept[index] * ops.cast(new != 0, new.dtype)
        change = ops.max(ops.stack([ops.max(ops.abs(a - b)) for a, b in zip(values, before, strict=True)]))
        return values, rests, kept, change

    rests = [[ops.zeros_like(values[index]) for index in indices] for indices in members]
    start = (values, rests, [ops.ones_like(value) for value in values], size)
    values, _, alive, _ = ops.while_loop(
        lambda values, rests, alive, change: change > 10.0**exponent * size, sweep, start, maximum_iterations=100
    )
    # A group that one function puts to 0 is moved off it by the next one, by less and less.
    return [value * mask for value, mask in zip(values, alive, strict=True)]


def _checked(groups: Any) -> list[dict[str, np.ndarray]]:
    mappings = [groups] if isinstance(groups, Mapping) else groups
    if not isinstance(mappings, (list, tuple)) or not all(isinstance(each, Mapping) for each in mappings):
        raise TypeError(
            "JointGroupSparsity: `groups` must be a mapping of paths of variables to integers, or a list of such. "
            f"Received: groups={groups!r}"
        )
    checked = [{str(path): np.asarray(labels) for path, labels in mapping.items()} for mapping in mappings]
    wrong = [labels for each in checked for labels in each.values() if not np.issubdtype(labels.dtype, np.integer)]
    if wrong or not checked or not all(any((a >= 0).any() for a in each.values()) for each in checked):
        raise ValueError(
            "JointGroupSparsity: each mapping of `groups` must have integers, one of them >= 0. "
            f"Received: groups={groups!r}"
        )
    return checked
