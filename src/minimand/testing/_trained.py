"""What is asked of all parts that take part in training."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from minimand import backend
from minimand.testing._suite import (
    Suite,
    data_parallel,
    dtype_policy,
    file,
    fit,
    require,
    require_two_devices,
    same_numbers,
    same_weights,
    skip,
)


class TrainedSuite(Suite):
    """Tests of `fit` with a part, for a subclass that says by `_compiled` what is trained, and on what."""

    # How a step may be run, in arguments of `compile`; the first is what the others must agree with.
    _modes: tuple[dict[str, Any], ...] = ({"run_eagerly": True}, {"jit_compile": True})

    def _compiled(self, *, dropout: bool = False, **arguments: Any) -> keras.Model:
        """A new compiled model with the part, always of the same weights; `arguments` are those of `compile`.

        Dropout draws other numbers in half precision, and on TensorFlow when XLA compiles it.
        """
        raise NotImplementedError

    def _targets(self, random: np.random.Generator, rows: int) -> np.ndarray:
        """Targets for the model."""
        return random.normal(size=(rows, 2)).astype("float32")

    def _data(self, rows: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, always the same; by default two batches."""
        random = np.random.default_rng(3)
        return random.normal(size=(rows, 4)).astype("float32"), self._targets(random, rows)

    def test_fit_saves_and_goes_on(self) -> None:
        """With a last batch of one row; loaded from its file, a model goes on as the saved one does, bit for bit."""
        x, y = self._data(rows=33)
        model = self._compiled(dropout=True)
        fit(model, x, y)
        with file("model.keras") as path:
            model.save(path)
            loaded = keras.saving.load_model(path)
        same_weights(loaded, model, "Not what was saved")
        expected, found = fit(model, x, y, epochs=2), fit(loaded, x, y, epochs=2)
        require(found == expected, f"A loaded model does not go on as the saved one does: {found}, not {expected}")
        same_weights(loaded, model, "A loaded model does not go on as the saved one does")

    def test_the_same_seeds_give_the_same_numbers(self) -> None:
        x, y = self._data()
        first, second = (fit(self._compiled(dropout=True), x, y) for _ in range(2))
        # Keras numbers the names of parts that are not named.
        require([*first.values()] == [*second.values()], f"The same seeds gave {first} and {second}.")

    def test_compiled_and_eager_training_agree(self) -> None:
        if backend.name == "torch":
            skip("Keras trains eagerly on PyTorch")
        x, y = self._data()
        losses = [fit(self._compiled(**mode), x, y, epochs=2)["loss"] for mode in self._modes]
        for mode, loss in zip(self._modes, losses, strict=True):
            same_numbers(loss, losses[0], f"Eager training differs from that with {mode}.", rtol=1e-3, atol=1e-4)

    def test_mixed_precision(self) -> None:
        """Keras scales the loss in float16; the part must see it as it is."""
        x, y = self._data()
        expected = fit(self._compiled(), x, y)["loss"]
        for policy in ("mixed_float16", "mixed_bfloat16"):
            with dtype_policy(policy):
                model = self._compiled()
            scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
            require(scaled == (policy == "mixed_float16"), f"The optimizer in {policy} is {model.optimizer}.")
            # bfloat16 has 8 bits: each of the network's layers adds an error of up to 2^-8.
            same_numbers(fit(model, x, y)["loss"], expected, f"Training in {policy}.", rtol=0.1, atol=0.05)

    def test_two_devices_train_as_one(self) -> None:
        devices = require_two_devices()
        x, y = self._data()
        expected = fit(self._compiled(dropout=True), x, y, epochs=2)["loss"]
        with data_parallel(devices):
            actual = fit(self._compiled(dropout=True), x, y, epochs=2)["loss"]
        # Sums over devices are taken in another order.
        same_numbers(actual, expected, "Two devices differ from one.", rtol=1e-3, atol=1e-4)
