"""A study on JAX beside the same trainings by a loop of Keras's `fit`: time and peak memory, each in its own process.

    python benchmarks/study_speed.py [study | seeds | rows | kinds]

study: the default study (8 candidates x 10 seeds x 60 epochs, batches of 32, diabetes); building, compiling and judging
included, importing not. `fit` has a new network and compiles for each training; `study` compiles each program, and
`study again` finds them in its cache. seeds and rows: the baseline alone, with so many seeds and rows. kinds: the
baseline on 5,000 images of 32 x 32 x 3, and on 2,000 texts of eight words, which each split encodes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

SEEDS, EPOCHS = (1, 10, 100), 60
ROWS = {442: 60, 10_000: 10, 100_000: 3}
KINDS = {"images": 5, "texts": 60}


def data_of(rows):
    """Images, texts, or ten features and a noisy, not quite linear target."""
    import numpy as np
    import polars as pl

    from minimand.study import array_data, load_data

    if rows == 442:
        return load_data("diabetes")
    random = np.random.default_rng(0)
    if rows == "images":
        return array_data(random.integers(256, size=(5000, 32, 32, 3), dtype="uint8"), np.arange(5000) % 10)
    if rows == "texts":
        words = np.array([f"w{number}" for number in range(3000)])
        texts = [" ".join(words[(3000 * random.random(8) ** 2).astype(int)]) for _ in range(2000)]
        return array_data(pl.DataFrame({"title": texts}), np.arange(2000) % 5)
    x = random.normal(size=(rows, 10))
    y = x @ random.normal(size=10) + np.sin(3 * x[:, 0]) + random.standard_t(3, size=rows)
    return array_data(x, y, name=f"rows-{rows}")


def network_of(rows):
    from minimand.study import convnet, mlp

    return convnet if rows == "images" else mlp


def by_fit(candidates, rows, seeds, epochs):
    import keras

    from minimand.study import Part, build_trainer

    data, network = data_of(rows), network_of(rows)
    loss = Part("MeanSquaredError" if data.outputs == 1 else "CategoricalCrossentropy")
    started = time.perf_counter()
    for candidate in candidates:
        for seed in range(seeds):
            fold = data.fold(seed)
            x, y = fold.x_train, fold.y_train
            model = network(fold.input_shape, data.outputs)
            if candidate.name == "baseline":
                trained = model
                trained.compile(keras.optimizers.Adam(0.002), loss.build())
            else:
                trained = build_trainer(candidate, model, loss)
            validation = (fold.x_validation, fold.y_validation)
            trained.fit(x, y, epochs=epochs, batch_size=32, validation_data=validation, verbose=0)
            trained.predict(fold.x_test, verbose=0)
    return time.perf_counter() - started


def by_study(candidates, rows, seeds, epochs):
    from minimand.study._engines import divided, train
    from minimand.study._problem import Problem
    from minimand.study._settings import Settings

    data = data_of(rows)
    started = time.perf_counter()
    problem = Problem(data, network_of(rows), Settings(epochs=epochs))
    for _ in train(problem, divided(problem, candidates, range(seeds)), lambda candidate, epochs: None):
        pass
    return time.perf_counter() - started


def one(way, names, rows, seeds, epochs):
    """In a process: seconds, and the peak of its memory in MB."""
    import minimand  # noqa: F401  first: it chooses the default backend
    from minimand.study import default_candidates

    candidates = [c for c in default_candidates() if not names or c.name in names]
    seconds = {"fit": by_fit, "study": by_study}[way](candidates, rows, seeds, epochs)
    with open("/proc/self/status") as status:
        memory = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps([seconds, memory / 1024]))


def measured(cache, way, names=(), rows=442, seeds=10, epochs=EPOCHS):
    """With a folder for compiled programs, or None for none."""
    settings = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    call = json.dumps([way, names, rows, seeds, epochs])
    done = subprocess.run(
        [sys.executable, __file__, "one", call],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"KERAS_BACKEND": "jax"} | (settings if cache else {}),
    )
    return json.loads(done.stdout.splitlines()[-1])


def show(label, seconds, memory, than=None):
    ratio = "" if than is None else f"   {than / seconds:6.1f} times as fast"
    print(f"{label:<28} {seconds:8.2f} s {memory:8.0f} MB{ratio}", flush=True)


def whole():
    with tempfile.TemporaryDirectory() as cache:
        fit, memory = measured(None, "fit")
        show("fit", fit, memory)
        show("study", *measured(cache, "study"), fit)
        show("study again", *measured(cache, "study"), fit)


def scaling(cases):
    """Against one `fit` of the case, times its seeds: it takes each the same."""
    for rows, seeds, epochs in cases:
        unit = "" if rows in KINDS else " rows"
        with tempfile.TemporaryDirectory() as cache:
            fit, memory = measured(None, "fit", ["baseline"], rows, 1, epochs)
            show(f"fit, {rows}{unit}, 1 seed", fit, memory)
            name = f"study, {rows}{unit}, {seeds} seeds"
            show(name, *measured(cache, "study", ["baseline"], rows, seeds, epochs), fit * seeds)
            show("  again", *measured(cache, "study", ["baseline"], rows, seeds, epochs), fit * seeds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(*json.loads(sys.argv[2]))
    else:
        print(f"load before: {os.getloadavg()[0]:.2f}")
        what = sys.argv[1:] or ["study", "seeds", "rows", "kinds"]
        if "study" in what:
            whole()
        if "seeds" in what:
            scaling([(442, seeds, EPOCHS) for seeds in SEEDS])
        if "rows" in what:
            scaling([(rows, 10, epochs) for rows, epochs in ROWS.items()])
        if "kinds" in what:
            scaling([(kind, 10, epochs) for kind, epochs in KINDS.items()])
