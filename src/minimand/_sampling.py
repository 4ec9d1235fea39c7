"""What noise on the weights tells: predictions with uncertainty, and how sharp a minimum is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any, NamedTuple

import keras
import numpy as np

from minimand import backend
from minimand._batches import Batch
from minimand._scope import forked_scope
from minimand._selection import Select, check_select, selection, shifted
from minimand._validation import check_float, check_int, check_rows
from minimand.backend import Tensor
from minimand.transforms._base import Transform

# Numbers that the weights of all samples that are evaluated together may take.
_CHUNK = 2**24


class Sharpness(NamedTuple):
    """An estimate of the trace of the loss's Hessian, and its standard error."""

    trace: float
    standard_error: float


class WeightSamples:
    """The methods of a trainer that evaluate its model at weights drawn at random."""

    def predict_samples(self: Any, x: Any, samples: int = 64, *, seed: int | None = None, batch_size: int = 256) -> Any:
        """Predictions of functions drawn from the transforms' noise: for each sample, one draw for all rows.

        f(x; w_k), k = 1, ..., samples, with w_k what the transforms make of the trained weights

        Layers are in inference mode, as in `predict`. The samples do not depend on `batch_size`.

        Args:
            x: inputs (rows, ...): an array or tensor, or a structure of them.
            samples: number of functions >= 1.
            seed: integer; the same seed gives the same functions. None for unpredictable ones.
            batch_size: number of rows that are evaluated at once.

        Returns:
            An array (samples, rows, ...), or a structure of them like the model's outputs.

        Raises:
            ValueError: no transform draws weights, the trainer is not compiled, a number is out of its range.
            TypeError: `x` is not made of arrays.

        Source: as Monte-Carlo prediction in Blundell et al., "Weight uncertainty in neural networks", ICML 2015.

        Examples:
            >>> import keras, numpy as np, minimand
            >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
            >>> trainer.compile("adam", "mse", transforms=[minimand.transforms.WeightNoise(0.1)])
            >>> trainer.predict_samples(np.ones((8, 3)), 5).shape
            (5, 8, 1)
        """
        if not any(type(transform).sample is not Transform.sample for transform in self.transforms):
            raise ValueError(
                "Trainer.predict_samples: needs a transform that draws weights, such as WeightNoise. "
                f"Received: transforms={[transform.name for transform in self.transforms]!r}. Give one to `compile`."
            )
        check_int("Trainer.predict_samples", "samples", samples, minimum=1)
        check_int("Trainer.predict_samples", "batch_size", batch_size, minimum=1)
        count = check_rows("Trainer.predict_samples", "`x`", x)
        size = min(batch_size, count)
        if not self.model.built:
            self(_rows(x, np.arange(1)))
        predict = self._compiled_once(("predictions",), lambda: _sampled_predictions(self))
        state = _values(self)
        parts = []
        for part in _chunks(_seeds(seed, samples), self.model):
            batches = [
                # The last batch is filled up with the first rows: all have one shape, compiled once.
                predict(keras.ops.convert_to_tensor(part), _rows(x, np.arange(start, start + size) % count), *state)
                for start in range(0, count, size)
            ]
            parts.append(keras.tree.map_structure(lambda *leaves: _joined(leaves, count), *batches))
        return keras.tree.map_structure(lambda *leaves: np.concatenate(leaves), *parts)

    def sharpness(
        self: Any, x: Any, y: Any = None, sample_weight: Any = None, *, samples: int = 64, stddev: float = 1e-3,
        select: Select = "all", seed: int | None = None, batch_size: int = 256,
    ) -> Sharpness:  # fmt: skip
        """An estimate of the trace of the loss's Hessian: how sharp the minimum is.

        tr H ~ mean over k of (L(w + s e_k) + L(w - s e_k) - 2 L(w)) / s^2, e_k random signs

        L is the mean loss of the batches in evaluation, without weight penalties. The bias is of the order s^2; where
        s is too small, rounding shows in the standard error.

        Args:
            x: inputs (rows, ...): an array or tensor, or a structure of them.
            y: targets.
            sample_weight: weights of the examples.
            samples: number of pairs >= 2.
            stddev: size s > 0 of the steps.
            select: which weights vary: `"all"`, `"kernels"` (rank 2 or more), a regular expression of paths, or a
                function of the variable.
            seed: integer, or None.
            batch_size: number of rows that are evaluated at once.

        Returns:
            `Sharpness(trace, standard_error)`.

        Raises:
            ValueError: the trainer is not compiled, a number is out of its range, `select` chooses nothing.
            TypeError: the data are not made of arrays.

        Source: Hutchinson, "A stochastic estimator of the trace of the influence matrix", Communications in Statistics
        18 (1989), with the product of Hessian and vector by differences.

        Examples:
            >>> import keras, numpy as np, minimand
            >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
            >>> trainer = minimand.Trainer(model)
            >>> trainer.compile("adam", "mse")
            >>> round(trainer.sharpness(np.full((8, 1), 2.0), np.zeros((8, 1)), stddev=0.1).trace)  # 2 x^2
            8
        """
        check_int("Trainer.sharpness", "samples", samples, minimum=2)
        check_int("Trainer.sharpness", "batch_size", batch_size, minimum=1)
        check_float("Trainer.sharpness", "stddev", stddev, above=0.0)
        data = (x, y, sample_weight)
        count = check_rows("Trainer.sharpness", "`x`, `y` and `sample_weight`", data)
        self.prepare(*_rows(data, np.arange(1)))
        check_select(select, "Trainer.sharpness")
        mask = selection(self.model.trainable_variables, select, "Trainer.sharpness")
        differences = self._compiled_once(("sharpness", *mask), lambda: _second_differences(self, mask))
        size = keras.ops.convert_to_tensor(stddev, "float32")
        state = _values(self)
        estimates: list[float] = []
        for part in _chunks(_seeds(seed, samples), self.model):
            total = np.zeros(len(part))
            for start in range(0, count, batch_size):
                rows = np.arange(start, min(start + batch_size, count))
                found = differences(keras.ops.convert_to_tensor(part), _rows(data, rows), size, *state)
                # In double precision over the batches.
                total += len(rows) / count * keras.ops.convert_to_numpy(found).astype("float64")
            estimates.extend(total / stddev**2)
        return Sharpness(float(np.mean(estimates)), float(np.std(estimates, ddof=1) / math.sqrt(len(estimates))))

    def _compiled_once(self: Any, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` returns, kept until the trainer is compiled again."""
        if key not in self._compiled_functions:
            self._compiled_functions[key] = make()
        return self._compiled_functions[key]


def _rows(data: Any, rows: np.ndarray) -> Any:
    """These rows of each array, as tensors."""
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else keras.ops.convert_to_tensor(keras.ops.convert_to_numpy(leaf)[rows]), data
    )


def _joined(batches: Sequence[Tensor], count: int) -> np.ndarray:
    return np.concatenate([keras.ops.convert_to_numpy(batch) for batch in batches], axis=1)[:, :count]


def _seeds(seed: int | None, samples: int) -> np.ndarray:
    """A pair of integers for each sample."""
    first = np.random.SeedSequence(seed).generate_state(1)[0] >> 1
    return np.stack([np.full(samples, first), np.arange(samples)], axis=1).astype("int32")


def _chunks(seeds: np.ndarray, model: keras.Model) -> Iterator[np.ndarray]:
    """The seeds, in parts for as many samples as should be evaluated together."""
    size = max(1, _CHUNK // max(model.count_params(), 1))
    yield from np.split(seeds, range(size, len(seeds), size))


def _values(trainer: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The values of the trainer's variables, trainable and not."""
    return (
        [variable.value for variable in trainer.trainable_variables],
        [variable.value for variable in trainer.non_trainable_variables],
    )


def _scope(trainer: Any, trainable: Sequence[Tensor], other: Sequence[Tensor]) -> keras.StatelessScope:
    """In which the trainer's variables have these values."""
    variables = [*trainer.trainable_variables, *trainer.non_trainable_variables]
    return keras.StatelessScope(list(zip(variables, [*trainable, *other], strict=True)))


def _sampled_predictions(trainer: Any) -> Callable[..., Any]:
    def predict(seed: Tensor, x: Any, trainable: Sequence[Tensor], other: Sequence[Tensor]) -> Any:
        with _scope(trainer, trainable, other):
            weights: Sequence[Tensor] = [variable.value for variable in trainer.model.trainable_variables]
            for index, transform in reversed(list(enumerate(trainer.transforms))):
                # Each transform draws numbers of its own.
                weights = transform.sample(weights, seed + keras.ops.convert_to_tensor([index, 0], "int32"))
            with forked_scope(zip(trainer.model.trainable_variables, weights, strict=True)):
                return trainer.model(x, training=False)

    return backend.vmap(predict)


def _second_differences(trainer: Any, mask: Sequence[bool]) -> Callable[..., Any]:
    objective = trainer.data_objective(training=False)

    def difference(
        seed: Tensor, data: Any, size: Tensor, trainable: Sequence[Tensor], other: Sequence[Tensor]
    ) -> Tensor:
        with _scope(trainer, trainable, other):
            weights = [variable.value for variable in trainer.model.trainable_variables]
            steps = backend.noise("rademacher", [tuple(weight.shape) for weight in compress(weights, mask)], seed, size)

            def loss(values: Sequence[Tensor]) -> Tensor:
                return keras.ops.cast(objective(values, Batch(*data))[0], "float32")

            here = loss(weights)
            above, below = (loss(shifted(weights, mask, steps, sign)) for sign in (1, -1))
            return (above - here) + (below - here)

    return backend.vmap(difference)
