"""What the losses with a threshold at a quantile of another loss share."""

from __future__ import annotations

from typing import Any

from kriterion._validation import check_float
from kriterion.losses._running_threshold import RunningThreshold
from kriterion.losses._wrapping import WrappingLoss


class TailLoss(WrappingLoss):
    """A loss of another's values and a trained threshold near their quantile at `level`."""

    def __init__(self, loss: Any, level: float, *, reduction: str | None, name: str, dtype: Any) -> None:
        super().__init__(loss, reduction=reduction, name=name, dtype=dtype)
        self.level = check_float(type(self).__name__, "level", level, above=0.0, below=1.0)

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        super().build(y_true_shape, y_pred_shape)
        self._threshold = RunningThreshold(self, self.level)

    @property
    def threshold(self) -> float:
        """The threshold t."""
        self.require_built()
        return self._threshold.read()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "level": self.level}
