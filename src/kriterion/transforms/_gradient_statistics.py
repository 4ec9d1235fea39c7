"""What transforms that take statistics of the examples' gradients share."""

from __future__ import annotations

import keras

from kriterion._objective import DataObjective, Objective
from kriterion.gradients._exact import check_separable
from kriterion.gradients.moments import ESTIMATORS

__all__ = ["ESTIMATORS", "check_model", "check_objective"]


def check_model(estimator: str, model: keras.Model, owner: str) -> None:
    """Raise a `ValueError` if layers mix the examples that the estimator takes apart."""
    if estimator != "micro_batch":
        check_separable(model, f'{owner}: estimator="{estimator}"')


def check_objective(estimator: str, objective: Objective, owner: str) -> None:
    """Raise a `ValueError` if the estimator needs the loss of the data alone, and other transforms come before."""
    if estimator == "exact" and not isinstance(objective, DataObjective):
        raise ValueError(
            f'{owner}: estimator="exact" needs the loss of the data as it is. Received: earlier transforms. Put it '
            'first in `transforms`, or use estimator="probe".'
        )
