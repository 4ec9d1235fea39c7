"""Nearest neighbours under learned metrics: NCA and LMNN against metric-learn and scikit-learn.

    pip install metric-learn  (optional; it is left out if absent)
    python benchmarks/learned_metric.py [iris wine breast_cancer digits]

Accuracy of 3-NN in stratified 5-fold cross-validation, inputs standardised (digits: 30 principal components, divided by
one number), its standard error over the folds, and the seconds that all fits took, compilation included.
"""

import inspect
import sys
import time

import minimand
import keras
import numpy as np
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier, NeighborhoodComponentsAnalysis
from sklearn.preprocessing import StandardScaler

RATE, STEPS = 0.02, 150


def ours(metric):
    def fit(x, y):
        count = int(y.max()) + 1
        loss = metric(x.shape[1], count)
        trainer = minimand.Trainer(keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Rescaling(1.0)]))
        rate = keras.optimizers.schedules.CosineDecay(RATE, STEPS)
        trainer.compile(keras.optimizers.Adam(rate), loss)
        # All rows at each step.
        trainer.fit(np.tile(x, (STEPS, 1)), np.tile(y, STEPS), batch_size=len(x), shuffle=False, verbose=0)
        return loss.transform

    return fit


def theirs(estimator):
    return lambda x, y: estimator().fit(x, y).transform


def peers():
    found = {"scikit-learn NCA": theirs(lambda: NeighborhoodComponentsAnalysis(random_state=0))}
    try:
        import metric_learn
        from metric_learn import _util
    except ImportError:
        print("metric-learn is not installed")
        return found
    # metric-learn 0.7 calls scikit-learn's checks by an argument's former name.
    for name in ("check_array", "check_X_y"):
        check = getattr(_util, name)
        if "force_all_finite" not in inspect.signature(check).parameters:

            def renamed(*args, check=check, **kwargs):
                if "force_all_finite" in kwargs:
                    kwargs["ensure_all_finite"] = kwargs.pop("force_all_finite")
                return check(*args, **kwargs)

            setattr(_util, name, renamed)
    found["metric-learn NCA"] = theirs(lambda: metric_learn.NCA(max_iter=50, random_state=0))
    found["metric-learn LMNN"] = theirs(lambda: metric_learn.LMNN(n_neighbors=3))
    return found


def main():
    methods = {
        "Euclid": lambda x, y: lambda z: z,
        "minimand NCA": ours(minimand.losses.NCA),
        "minimand LMNN": ours(minimand.losses.LMNN),
        **peers(),
    }
    for name in sys.argv[1:] or ["iris", "wine", "breast_cancer", "digits"]:
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(x, y))
        for method, fit in methods.items():
            scores, seconds = [], 0.0
            for train, test in folds:
                scale = PCA(30, random_state=0) if name == "digits" else StandardScaler()
                unit = np.std(scale.fit_transform(x[train]))
                inputs, unseen = (np.float32(scale.transform(x[rows]) / unit) for rows in (train, test))
                start = time.perf_counter()
                transform = fit(inputs, y[train])
                seconds += time.perf_counter() - start
                neighbours = KNeighborsClassifier(3).fit(transform(inputs), y[train])
                scores.append(neighbours.score(transform(unseen), y[test]))
            error = np.std(scores, ddof=1) / len(scores) ** 0.5
            print(f"{name:14} {method:20} {np.mean(scores):.4f} +- {error:.4f}   {seconds:7.1f} s", flush=True)


if __name__ == "__main__":
    main()
