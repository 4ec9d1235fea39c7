"""The noise that goes with the optimizer IVON."""

from __future__ import annotations

from functools import partial
from itertools import compress
from typing import Any

import keras
from keras import ops

from kriterion import backend
from kriterion._selection import Select, check_select, selection, shifted
from kriterion._validation import check_float, check_int
from kriterion.backend import Tensor
from kriterion.optimizers import IVON
from kriterion.transforms._passes import mean_of
from kriterion.transforms._sized import SizedTransform
from kriterion.transforms.base import Batch, Objective, Weights


@keras.saving.register_keras_serializable(package="kriterion")
class IVONNoise(SizedTransform):
    """Weights drawn from the posterior that the optimizer `IVON` maintains.

    L(w) -> E_e[ L(w + s e) ], e ~ N(0, I), s = 1 / sqrt(N (h + d))

    h is the optimizer's running estimate of the Hessian's diagonal, from products of gradient and noise, and d its
    weight decay. The noise is in the objective alone: the weights themselves are never noisy.

    Args:
        examples: N > 0, or `"auto"`: the number of training examples that `fit` is given (see `LearnedWeightNoise`). A
            smaller number gives more noise.
        select: which weights get noise: `"all"`, `"kernels"` (rank 2 or more), a regular expression of paths, or a
            function of the variable.
        samples: number >= 1 of draws a step, over which gradient and Hessian are averaged.
        seed: integer seed, or None.
        name: name of the transform.

    Raises:
        ValueError: a number is out of its range, `select` chooses nothing, the optimizer is not an `IVON`; in `fit`,
            the number of training examples is not known.

    Source: Shen et al., "Variational learning is effective for large deep networks", ICML 2024, algorithm 1, lines 1
    to 3.

    Examples:
        >>> import kriterion
        >>> noise = kriterion.transforms.IVONNoise(seed=0)
    """

    def __init__(
        self,
        *,
        examples: float | str = "auto",
        select: Select = "all",
        samples: int = 1,
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        automatic = isinstance(examples, str) and examples == "auto"
        super().__init__(automatic=automatic, remedy="examples=", seed=seed, name=name)
        self.number: float | str = examples if automatic else check_float("IVONNoise", "examples", examples, above=0.0)
        self.select = check_select(select, "IVONNoise")
        self.samples = check_int("IVONNoise", "samples", samples, minimum=1)
        self.hessians: dict[str, keras.Variable] = {}

    def bind(self, optimizer: keras.optimizers.Optimizer) -> None:
        if not isinstance(optimizer, IVON):
            raise ValueError(
                "IVONNoise: goes with the optimizer kriterion.optimizers.IVON. "
                f"Received: optimizer={type(optimizer).__name__}"
            )
        self.optimizer = optimizer

    def build(self, model: keras.Model) -> None:
        self.chosen = selection(model.trainable_variables, self.select, "IVONNoise")
        self.selected = list(compress(model.trainable_variables, self.chosen))
        start = keras.initializers.Constant(self.optimizer.hessian_init)
        for weight in self.selected:
            if weight.path not in self.hessians:
                name = f"{weight.path.replace('/', '_')}_hessian"
                self.hessians[weight.path] = self.add_weight(weight.shape, start, "float32", name=name)
            self.optimizer.track(weight, self.hessians[weight.path])

    def _draw(self, weights: Weights, seed: Tensor) -> list[Tensor]:
        """The weights with noise, such that the derivative by h is the estimate of the Hessian's diagonal.

        That estimate is k = g e / s, with the gradient g at the noisy weights: the noise s e is given the derivative
        e / s by h.
        """
        examples = self.examples.value if isinstance(self.number, str) else self.number
        noise = backend.noise("normal", [tuple(v.shape) for v in self.selected], seed)

        def of_tensors(hessian: Tensor, e: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            stddev = ops.rsqrt(examples * (hessian + self.optimizer.decay))
            return e * stddev, (e / stddev, stddev)

        hessians = [self.hessians[variable.path].value for variable in self.selected]
        return shifted(weights, self.chosen, map(backend.elementwise(of_tensors), hessians, noise))

    def sample(self, weights: Weights, seed: Tensor) -> list[Tensor]:
        """Weights drawn from the posterior."""
        return self._draw(weights, seed)

    def apply(self, objective: Objective) -> Objective:
        def noisy(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            draws = [self._draw(weights, self.seed_generator.next()) for _ in range(self.samples)]
            return mean_of([partial(objective, draw) for draw in draws], batch)

        return noisy

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "examples": self.number, "select": self.select, "samples": self.samples}
