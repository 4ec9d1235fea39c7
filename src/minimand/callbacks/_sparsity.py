"""A callback that logs the share of zero weights by epoch."""

from __future__ import annotations

from itertools import compress
from typing import Any

import keras
import numpy as np

from minimand._optimizer import proximal_of
from minimand._selection import Select, check_select, selection
from minimand._validation import check_bool
from minimand.trainer import Trainer


class Sparsity(keras.callbacks.Callback):
    """Sparsity logs the share of weights that are exactly zero, and stops before a kernel is all zero.

    Use Sparsity with `optimizers.Proximal` to watch weights vanish. The key of the logs is `sparsity`.

    If the strength of the regularizer of `Proximal` is a schedule, the logs also have the `strength` at the end of the
    epoch. With a strength for each epoch, the history is then the table of a regularisation path. Put Sparsity before
    callbacks that read the logs (`CSVLogger`, `EarlyStopping`, `ModelCheckpoint`).

    Args:
        select: the weights that are counted: `"kernels"` (rank 2 or more), `"all"`, a regular expression of paths, or a
            function of the variable.
        stop: whether training stops after an epoch in which `Proximal` left out a step that would have made all of a
            kernel zero. `Proximal` then warns and names the kernel.

    Raises:
        TypeError: `select` is neither a string nor a function, `stop` is not a boolean.
        ValueError: at the start of `fit`, `select` chooses nothing.

    Source: `docs/weight-regularization.md`.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
        >>> model.compile(minimand.optimizers.Proximal("sgd", minimand.regularizers.GroupLasso(1e-3)), "mse")
        >>> sparsity = minimand.callbacks.Sparsity()
        >>> history = model.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0, callbacks=[sparsity])
        >>> history.history["sparsity"]
        [0.0]
    """

    def __init__(self, select: Select = "kernels", *, stop: bool = True) -> None:
        super().__init__()
        self.select = check_select(select, "Sparsity")
        self.stop = check_bool("Sparsity", "stop", stop)

    def on_train_begin(self, logs: Any = None) -> None:
        optimizer = proximal_of(self.model.optimizer)
        self._steps_before = sum(optimizer.collapsed().values()) if optimizer is not None and optimizer.built else 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keras's hook; the next callbacks get the same dictionary `logs`."""
        logs = {} if logs is None else logs
        model = self.model.model if isinstance(self.model, Trainer) else self.model
        variables = model.trainable_variables
        chosen = compress(variables, selection(variables, self.select, "Sparsity"))
        values = [keras.ops.convert_to_numpy(variable) for variable in chosen]
        logs["sparsity"] = float(sum(np.sum(v == 0) for v in values) / sum(v.size for v in values))
        optimizer = proximal_of(self.model.optimizer)
        if optimizer is None:
            return
        strength = optimizer.strength()
        if strength is not None:
            logs["strength"] = strength
        if self.stop and sum(optimizer.collapsed().values()) > self._steps_before:
            self.model.stop_training = True
