"""Two models without a network, on the same splits: is this network worth choosing an objective for?"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from minimand.study._problem import Problem
from minimand.study._training import measured


def references(problem: Problem) -> dict[str, dict[str, float]]:
    """Mean test metrics of gradient-boosted trees and of a constant; empty for anything but a table with one target.

    Both learn from the training rows of each split; the validation rows end the growth of trees, as they end a
    training. The constant is the median of the targets, or the frequencies of the classes.
    """
    x = problem.fold(0).x
    (target, *others) = problem.targets
    one = not others and not target.positions and (target.has_classes or target.shape == (1,))
    if not one or not isinstance(x, np.ndarray) or x.ndim != 2 or problem.data.stream is not None:
        return {}
    trees: Any = HistGradientBoostingClassifier if target.has_classes else HistGradientBoostingRegressor
    constant: Any = DummyClassifier(strategy="prior") if target.has_classes else DummyRegressor(strategy="median")
    models = {"trees": trees(early_stopping=True, random_state=0), "constant": constant}
    settings = problem.settings
    seeds = [split * settings.repeats for split in range(settings.seeds)]
    return {name: _mean([_tested(problem, seed, model) for seed in seeds]) for name, model in models.items()}


def _tested(problem: Problem, seed: int, model: Any) -> dict[str, float]:
    fold = problem.fold(seed)
    (y,), (weights,) = fold.y, fold.weights
    train, validation, test = fold.split
    classes = problem.targets[0].has_classes
    if classes:
        y = y[:, 0].astype(int) if y.shape[1] == 1 else y.argmax(axis=1)
        # Trees cannot be tested on a class that they have not seen.
        validation = validation[np.isin(y[validation], y[train])]
    else:
        y = y[:, 0]
    held_out = {"X_val": fold.x[validation], "y_val": y[validation]} if hasattr(model, "early_stopping") else {}
    model.fit(fold.x[train], y[train], None if weights is None else weights[train], **held_out)
    if classes:
        predicted = np.zeros((len(test), len(problem.targets[0].classes)))
        predicted[:, model.classes_] = model.predict_proba(fold.x[test])
    else:
        predicted = model.predict(fold.x[test])[:, None]
    return measured(problem, seed, test, [predicted])


def _mean(every: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([each[key] for each in every])) for key in every[0]}
