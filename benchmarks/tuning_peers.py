"""Tuning by `minimand.study` beside KerasTuner and a plain script of Optuna and Keras doing the same work, on JAX.

    pip install keras-tuner 'minimand[tune]'
    python benchmarks/tuning_peers.py [TRIALS]

The work: learning rate and weight decay of Adam for the study's network on the diabetes data; a trial is trained on
five splits for 60 epochs of whole batches of 32, and scored by its mean best validation MAE. Building and compiling
included, importing not; each in its own process, with compiled programs kept on disk. That the best scores are close
says that the work was the same: the order of batches differs, and every tuner draws its own trials.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

SPLITS, EPOCHS, BATCH = 5, 60, 32
RATES, DECAYS = (2e-4, 2e-2), (1e-4, 1.0)


def folds():
    from minimand.study import load_data
    from minimand.study._problem import TUNING_SPLIT

    return [load_data("diabetes").fold(TUNING_SPLIT + split) for split in range(SPLITS)]


def by_fit(every, rate, decay):
    """Mean over the splits of the best validation MAE, in units of the target."""
    import keras

    from minimand.study import mlp

    total = 0.0
    for fold in every:
        x, y = fold.x_train, fold.y_train
        model = mlp(fold.input_shape, 1)
        model.compile(keras.optimizers.Adam(rate, weight_decay=decay), "mse", metrics=["mae"])
        rows = len(x) // BATCH * BATCH
        validation = (fold.x_validation, fold.y_validation)
        history = model.fit(x[:rows], y[:rows], epochs=EPOCHS, batch_size=BATCH, validation_data=validation, verbose=0)
        ((_, scale),) = fold.scaling
        total += min(history.history["val_mae"]) * scale[0]
    return total / len(every)


def optuna_and_keras(trials):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    every = folds()

    def objective(trial):
        rate = trial.suggest_float("learning_rate", *RATES, log=True)
        return by_fit(every, rate, trial.suggest_float("weight_decay", *DECAYS, log=True))

    study = optuna.create_study(storage="sqlite:///trials.db", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=trials)
    return study.best_value


def keras_tuner(trials):
    import keras_tuner

    every = folds()

    class Network(keras_tuner.HyperModel):
        def build(self, hp):
            import keras

            from minimand.study import mlp

            hp.Float("learning_rate", *RATES, sampling="log")
            hp.Float("weight_decay", *DECAYS, sampling="log")
            model = mlp((10,), 1)
            model.compile(keras.optimizers.Adam(), "mse")
            return model

        def fit(self, hp, model, *args, **kwargs):
            return by_fit(every, hp.get("learning_rate"), hp.get("weight_decay"))

    tuner = keras_tuner.BayesianOptimization(Network(), max_trials=trials, seed=0, directory=".", project_name="tuned")
    tuner.search(verbose=0)
    return tuner.oracle.get_best_trials(1)[0].score


def minimand(trials):
    from functools import partial
    from pathlib import Path

    from minimand.study import Candidate, Tuning, load_data, mlp
    from minimand.study._engines import train
    from minimand.study._problem import Problem
    from minimand.study._results import Storage
    from minimand.study._settings import Settings
    from minimand.study._tuning import tune

    problem = Problem(load_data("diabetes"), mlp, Settings(epochs=EPOCHS, batch_size=BATCH))
    ((_, tuned),) = tune(
        problem,
        [Candidate("baseline", search={"optimizer.learning_rate": RATES, "optimizer.weight_decay": DECAYS})],
        Tuning(trials, SPLITS),
        Storage(Path("here"), {}),
        partial(train, problem),
        on_epochs=lambda candidate, epochs: None,
        on_wait=lambda: None,
    )
    return min(trial["score"] for trial in tuned["trials"])


def one(way, trials):
    import keras  # noqa: F401

    import minimand.study  # noqa: F401

    started = time.perf_counter()
    score = globals()[way](trials)
    seconds = time.perf_counter() - started
    with open("/proc/self/status") as status:
        memory = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps([seconds, memory / 1024, score]))


def measured(way, trials, cache):
    settings = {
        "KERAS_BACKEND": "jax",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, os.path.abspath(__file__), "one", way, str(trials)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | settings,
        )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], int(sys.argv[3]))
    else:
        trials = int(sys.argv[1]) if len(sys.argv) > 1 else 20
        print(f"{trials} trials x {SPLITS} splits x {EPOCHS} epochs; load before: {os.getloadavg()[0]:.2f}")
        with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
            fastest, *_ = first = measured("minimand", trials, ours)
            ways = [("minimand", first), ("minimand again", measured("minimand", trials, ours))]
            ways += [(way, measured(way, trials, theirs)) for way in ("optuna_and_keras", "keras_tuner")]
        for name, (seconds, memory, score) in ways:
            ratio = f"{seconds / fastest:6.1f} of minimand's time"
            print(f"{name:<18} {seconds:8.1f} s {memory:8.0f} MB   best score {score:.2f}   {ratio}")
