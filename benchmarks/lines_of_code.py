"""Lines of code for one task: five objectives on one network, five splits by groups, a corrected test and a report.

Each function does the task with one library, in the same number of trainings. `python benchmarks/lines_of_code.py` runs
them on random data and counts the lines of their bodies. The plain script and scikit-learn train one network at a time;
KerasTuner has neither splits nor a test, so both are written by hand, and its tuner only runs the objectives.
"""

import inspect
import tempfile
import time

import minimand  # chooses the backend
import keras
import numpy as np
from scipy import stats
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from minimand.study import Candidate

EPOCHS = 5


def network():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)])


def with_minimand(x, y, groups):
    losses = {"huber": keras.losses.Huber(0.5), "mae": "mae", "log-cosh": "log_cosh"}
    losses["robust"] = minimand.losses.GeneralRobust()
    candidates = [Candidate(name, loss=loss) for name, loss in losses.items()]
    folder = tempfile.mkdtemp()
    cv = GroupKFold(5)
    results = minimand.compare(network, x, y, candidates=candidates, groups=groups, cv=cv, epochs=EPOCHS, folder=folder)
    return results.verdict


def plainly(x, y, groups):
    losses = {"mse": "mse", "huber": keras.losses.Huber(0.5), "mae": "mae", "log-cosh": "log_cosh"}
    losses["robust"] = minimand.losses.GeneralRobust()
    scores = {name: [] for name in losses}
    ratios = []
    for split, (rest, test) in enumerate(GroupKFold(5).split(x, y, groups)):
        inner = GroupShuffleSplit(1, test_size=0.25, random_state=split)
        train, validation = next(inner.split(rest, groups=groups[rest]))
        train, validation = rest[train], rest[validation]
        scaler = StandardScaler().fit(x[train])
        inputs = scaler.transform(x).astype("float32")
        center = np.median(y[train])
        scale = 1.4826 * np.median(np.abs(y[train] - center))
        targets = ((y - center) / scale).astype("float32")
        ratios.append(len(test) / len(rest))
        for name, loss in losses.items():
            keras.utils.set_random_seed(split)
            model = network()
            model.compile(keras.optimizers.Adam(0.002), loss, metrics=["mae"])
            stop = keras.callbacks.EarlyStopping("val_mae", mode="min", patience=EPOCHS, restore_best_weights=True)
            arguments = {"validation_data": (inputs[validation], targets[validation]), "callbacks": [stop]}
            model.fit(inputs[train], targets[train], epochs=EPOCHS, verbose=0, **arguments)
            predicted = model.predict(inputs[test], verbose=0)[:, 0] * scale + center
            scores[name].append(np.abs(predicted - y[test]).mean())
    return report(scores, np.mean(ratios))


def with_scikit_learn(x, y, groups):
    losses = {"mse": "mse", "huber": keras.losses.Huber(0.5), "mae": "mae", "log-cosh": "log_cosh"}
    losses["robust"] = minimand.losses.GeneralRobust()

    def build(X, y, loss):  # noqa: N803
        model = network()
        model.compile(keras.optimizers.Adam(0.002), loss)
        return model

    scores = {}
    cv = GroupKFold(5)
    for name, loss in losses.items():
        keras.utils.set_random_seed(0)
        wrapped = keras.wrappers.SKLearnRegressor(
            build, model_kwargs={"loss": loss}, fit_kwargs={"epochs": EPOCHS, "verbose": 0}
        )
        pipeline = make_pipeline(StandardScaler(), clone(wrapped))
        scores[name] = -cross_val_score(pipeline, x, y, groups=groups, cv=cv, scoring="neg_mean_absolute_error")
    return report(scores, 1 / 4)


def report(scores, test_over_train):
    rows = []
    for name in list(scores)[1:]:
        difference = np.subtract(scores[name], scores["mse"])
        error = np.sqrt((1 / 5 + test_over_train) * difference.var(ddof=1))
        p = 2 * stats.t.sf(abs(difference.mean()) / error, 4)
        half = stats.t.ppf(0.975, 4) * error
        rows.append((p, name, difference.mean(), half))
    rows.sort()
    smallest = 0.0
    found = []
    for rank, (p, name, mean, half) in enumerate(rows):
        smallest = max(smallest, min(1.0, p * (len(rows) - rank)))
        found.append(f"{name}: {mean:+.3f} +- {half:.3f}, p = {smallest:.2g}")
    return "\n".join(found)


def lines(function):
    """Lines of the body that are not empty."""
    return sum(bool(line.strip()) for line in inspect.getsource(function).splitlines()[1:])


def main():
    keras.utils.disable_interactive_logging()
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 10)
    x = random.normal(size=(300, 6)) + random.normal(size=(30, 6))[groups]
    y = x[:, 0] * x[:, 1] + random.normal(size=300)
    for function in (with_minimand, plainly, with_scikit_learn):
        started = time.perf_counter()
        found = function(x, y, groups)
        count = lines(function) + (0 if function is with_minimand else lines(report))
        print(f"{function.__name__}: {count} lines, {time.perf_counter() - started:.1f} s\n{found}\n")


if __name__ == "__main__":
    main()
