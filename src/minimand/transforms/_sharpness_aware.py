"""The loss at the worst weights nearby."""

from __future__ import annotations

from itertools import compress
from typing import Any

import keras
from keras import ops

from minimand import backend
from minimand._batches import split
from minimand._ops import at_least_float32, nonzero_sqrt
from minimand._scope import isolated, record, recorded
from minimand._selection import Select, shifted
from minimand._validation import check_bool, check_float, check_int
from minimand.backend import Tensor
from minimand.transforms._base import Batch, Objective, Transform, Weights


@keras.saving.register_keras_serializable(package="minimand")
class SharpnessAware(Transform):
    """The loss at the weights within a distance that raise it most, to first order.

    Use `SharpnessAware` to find flat minima, which often generalise better, at about twice the cost of a step.

    L(w) -> L(w + stop_gradient(e(w))), g = grad L(w), with

    SAM: e = rho g / ||g||; ASAM (`adaptive`): e = rho w^2 g / || |w| g ||; AWP (`per_layer`), for each weight tensor
    l: e_l = rho ||w_l|| g_l / ||g_l||; m-SAM (`micro_batches=m`): the mean over m parts of the batch, each with its
    own e.

    A step takes one gradient more, so it costs about twice a plain step. Predictions, batch statistics and seeds are
    those of the first pass, at the clean weights; both passes see the same dropout and the same noise of earlier
    transforms. If the gradient is zero, e is zero.

    Args:
        rho: size > 0 of the perturbation: of its norm (SAM), of the norm of e / |w| (ASAM), or relative to the norm
            of each tensor (AWP). Usual values are 0.05 (SAM), 0.5 to 2 (ASAM) and 0.005 to 0.01 (AWP).
        adaptive: whether the perturbation is relative to each weight (ASAM); weights that are zero stay.
        per_layer: whether each weight tensor is perturbed in proportion to its own norm (AWP).
        micro_batches: number m >= 1 of parts of the batch, as equal as possible; None takes the batch as a whole. With
            parts, a step has one more pass forward: metrics and batch statistics are those of the whole batch.
        select: which weights are perturbed: `"all"`, `"kernels"` (rank 2 or more), a regular expression of paths, or
            a function of the variable.
        name: name of the transform.

    Raises:
        TypeError: `adaptive` or `per_layer` is not a boolean.
        ValueError: `rho` is not positive, `micro_batches` is less than 1, `adaptive` and `per_layer` are both True,
            `select` chooses nothing.

    Source: Foret et al., "Sharpness-aware minimization for efficiently improving generalization", ICLR 2021, section 2
    (m-SAM: section 4.1); Kwon et al., "ASAM", ICML 2021, equation 7, without its eta; Wu, Xia and Wang,
    "Adversarial weight perturbation helps robust generalization", NeurIPS 2020, section 4, with one step.

    Examples:
        >>> import minimand
        >>> sharp = minimand.transforms.SharpnessAware(0.05)
    """

    def __init__(
        self,
        rho: float,
        *,
        adaptive: bool = False,
        per_layer: bool = False,
        micro_batches: int | None = None,
        select: Select = "all",
        name: str | None = None,
    ) -> None:
        super().__init__(select=select, name=name)
        self.rho = check_float("SharpnessAware", "rho", rho, above=0.0)
        self.adaptive = check_bool("SharpnessAware", "adaptive", adaptive)
        self.per_layer = check_bool("SharpnessAware", "per_layer", per_layer)
        if adaptive and per_layer:
            raise ValueError(
                "SharpnessAware: choose one of `adaptive` (ASAM) and `per_layer` (AWP). "
                f"Received: adaptive={adaptive!r}, per_layer={per_layer!r}. Set the other one to False."
            )
        self.micro_batches = (
            None if micro_batches is None else check_int("SharpnessAware", "micro_batches", micro_batches, minimum=1)
        )

    def _perturbed(self, weights: Weights, gradients: Weights) -> list[Tensor]:
        """The weights w + e."""
        selected = zip(compress(weights, self.mask), compress(gradients, self.mask), strict=True)
        pairs = [(at_least_float32(ops.stop_gradient(w)), at_least_float32(g)) for w, g in selected]
        if self.per_layer:
            steps = [g * (self.rho * _norm([w]) / _norm([g])) for w, g in pairs]
        elif self.adaptive:
            scaled = [ops.abs(w) * g for w, g in pairs]
            factor = self.rho / _norm(scaled)
            steps = [factor * ops.abs(w) * v for (w, _), v in zip(pairs, scaled, strict=True)]
        else:
            factor = self.rho / _norm([g for _, g in pairs])
            steps = [factor * g for _, g in pairs]
        return shifted(weights, self.mask, steps)

    def apply(self, objective: Objective) -> Objective:
        def at_worst(weights: Weights, batch: Batch) -> tuple[Tensor, Tensor]:
            """The loss at w + e; and the aux of the clean pass, and what it assigned."""
            (_, left), gradients = backend.value_and_gradient(
                lambda values: recorded(objective)(values, batch.plain()), weights, differentiable=False
            )
            return isolated(objective)(self._perturbed(weights, gradients), batch)[0], left

        def sharp(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            if self.micro_batches is None:
                loss, (aux, assigned) = at_worst(weights, batch)
                record(assigned)
                return loss, aux
            losses = [share * at_worst(weights, part)[0] for part, share in split(batch, self.micro_batches)]
            # Metrics and batch statistics are those of the whole batch.
            return sum(losses[1:], losses[0]), objective([ops.stop_gradient(w) for w in weights], batch)[1]

        return sharp


def _norm(values: list[Tensor]) -> Tensor:
    return nonzero_sqrt(sum(ops.sum(ops.square(value)) for value in values))
