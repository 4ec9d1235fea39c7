"""Evaluate a trainer's model at weights drawn at random: sampled predictions, and the trace of the Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand import backend
from minimand._batches import Batch
from minimand._selection import Select, check_select, selection, shifted
from minimand._validation import check_float, check_int, check_rows
from minimand.backend import Tensor
from minimand.uncertainty import Sharpness

# The most numbers that the weights of the samples in one call may have.
_CHUNK = 2**24

# Predictions.


def predict_samples(trainer: Any, x: Any, samples: int, seed: int | None, batch_size: int) -> Any:
    """As `Trainer.predict_samples`."""
    owner = "Trainer.predict_samples"
    if not any(transform.draws_weights for transform in trainer.transforms):
        raise ValueError(
            f"{owner}: `transforms` must have a transform that draws weights, such as WeightNoise. "
            f"Received: transforms={[transform.name for transform in trainer.transforms]!r}. Give one to `compile`."
        )
    check_int(owner, "samples", samples, minimum=1)
    check_int(owner, "batch_size", batch_size, minimum=1)
    count = check_rows(owner, "`x`", x)
    size = min(batch_size, count)
    if not trainer.model.built:
        trainer(_rows(x, np.arange(1)))
    predict = _compiled_once(trainer, ("predictions",), lambda: _sampled_predictions(trainer))
    values = [variable.value for variable in trainer.variables]
    parts = []
    for part in _chunks(_seeds(seed, samples), trainer.model):
        batches = [
            # The first rows fill up the last batch, so that all batches have one shape and are compiled once.
            predict(ops.convert_to_tensor(part), _rows(x, np.arange(start, start + size) % count), values)
            for start in range(0, count, size)
        ]
        parts.append(keras.tree.map_structure(lambda *leaves: _joined(leaves, count), *batches))
    return keras.tree.map_structure(lambda *leaves: np.concatenate(leaves), *parts)


def _sampled_predictions(trainer: Any) -> Callable[..., Any]:
    objective = trainer.data_objective(training=False)

    def predict(seed: Tensor, x: Any, values: Sequence[Tensor]) -> Any:
        with keras.StatelessScope(list(zip(trainer.variables, values, strict=True))):
            weights: Sequence[Tensor] = [variable.value for variable in trainer.model.trainable_variables]
            for index, transform in reversed(list(enumerate(trainer.transforms))):
                # Each transform draws numbers of its own.
                weights = transform.sample(weights, seed + ops.convert_to_tensor([index, 0], "int32"))
            return objective.outputs(weights, x)

    return backend.vmap(predict)


def _joined(batches: Sequence[Tensor], count: int) -> np.ndarray:
    return np.concatenate([ops.convert_to_numpy(batch) for batch in batches], axis=1)[:, :count]


# The trace of the Hessian.


def sharpness(
    trainer: Any, data: Any, samples: int, stddev: float, select: Select, seed: int | None, batch_size: int
) -> Sharpness:
    """As `Trainer.sharpness`; `data` is `(x, y, sample_weight)`."""
    owner = "Trainer.sharpness"
    check_int(owner, "samples", samples, minimum=2)
    check_int(owner, "batch_size", batch_size, minimum=1)
    check_float(owner, "stddev", stddev, above=0.0)
    count = check_rows(owner, "`x`, `y` and `sample_weight`", data)
    trainer.prepare(*_rows(data, np.arange(1)))
    mask = selection(trainer.model.trainable_variables, check_select(select, owner), owner)
    differences = _compiled_once(trainer, ("sharpness", *mask), lambda: _second_differences(trainer, mask))
    size = ops.convert_to_tensor(stddev, "float32")
    values = [variable.value for variable in trainer.variables]
    estimates: list[float] = []
    for part in _chunks(_seeds(seed, samples), trainer.model):
        total = np.zeros(len(part))
        for start in range(0, count, batch_size):
            rows = np.arange(start, min(start + batch_size, count))
            found = differences(ops.convert_to_tensor(part), _rows(data, rows), size, values)
            # The sum over the batches is in double precision.
            total += len(rows) / count * ops.convert_to_numpy(found).astype("float64")
        estimates.extend(total / stddev**2)
    return Sharpness(float(np.mean(estimates)), float(np.std(estimates, ddof=1) / math.sqrt(len(estimates))))


def _second_differences(trainer: Any, mask: Sequence[bool]) -> Callable[..., Any]:
    objective = trainer.data_objective(training=False)

    def difference(seed: Tensor, data: Any, size: Tensor, values: Sequence[Tensor]) -> Tensor:
        with keras.StatelessScope(list(zip(trainer.variables, values, strict=True))):
            weights = [variable.value for variable in trainer.model.trainable_variables]
            steps = backend.noise("rademacher", [tuple(weight.shape) for weight in compress(weights, mask)], seed, size)

            def loss(weights: Sequence[Tensor]) -> Tensor:
                return ops.cast(objective(weights, Batch(*data))[0], "float32")

            here = loss(weights)
            above, below = (loss(shifted(weights, mask, steps, sign)) for sign in (1, -1))
            return (above - here) + (below - here)

    return backend.vmap(difference)


# Both evaluate samples in chunks and rows in batches, by one compiled function of the values of all variables.


def _compiled_once(trainer: Any, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """The result of `make`, kept until the trainer is compiled again."""
    if key not in trainer.compiled_functions:
        trainer.compiled_functions[key] = make()
    return trainer.compiled_functions[key]


def _seeds(seed: int | None, samples: int) -> np.ndarray:
    """A pair of integers for each sample."""
    first = np.random.SeedSequence(seed).generate_state(1)[0] >> 1
    return np.stack([np.full(samples, first), np.arange(samples)], axis=1).astype("int32")


def _chunks(seeds: np.ndarray, model: keras.Model) -> Iterator[np.ndarray]:
    """The seeds, in parts that are small enough to be evaluated together."""
    size = max(1, _CHUNK // max(model.count_params(), 1))
    yield from np.split(seeds, range(size, len(seeds), size))


def _rows(data: Any, rows: np.ndarray) -> Any:
    """These rows of each array, as tensors."""
    return keras.tree.map_structure(
        lambda leaf: ops.convert_to_tensor(ops.convert_to_numpy(leaf)[rows]), data, none_is_leaf=False
    )
