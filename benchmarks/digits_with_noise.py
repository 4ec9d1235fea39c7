"""MNIST with noise on the weights: accuracy, negative log likelihood and calibration, few and many training images.

    python benchmarks/digits_with_noise.py DIRECTORY [--images 1000 60000] [--seeds 5]

reads MNIST's four idx files (gzip) from the directory. A network of two hidden layers of 256 ReLU units, Adam 0.001,
batches of 128, 1,600 steps at 1,000 images and 10 epochs at 60,000; every method with one setting for both. Mean and
standard error over the seeds on the 10,000 test images; "drawn": the mean probability of 32 samples of the weights.
"""

import argparse
import pathlib
import time

import kriterion
import keras
import numpy as np
from long_tail import digits as read

from kriterion import metrics, transforms

STEPS, EPOCHS, BATCH, SAMPLES = 1600, 10, 128, 32
METHODS = {
    "plain": lambda seed: [],
    "WeightNoise": lambda seed: [transforms.WeightNoise(0.2, mode="filter", per="example", seed=seed)],
    "LearnedWeightNoise": lambda seed: [
        transforms.LearnedWeightNoise(prior="empirical_bayes", per="example", seed=seed)
    ],
    "SharpnessAware": lambda seed: [transforms.SharpnessAware(0.1)],
}


def trained(make, x, y, seed):
    keras.utils.set_random_seed(seed)
    hidden = [keras.layers.Dense(256, "relu"), keras.layers.Dense(256, "relu")]
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), *hidden, keras.layers.Dense(10)])
    model.add(keras.layers.Softmax())
    trainer = kriterion.Trainer(model)
    trainer.compile("adam", "sparse_categorical_crossentropy", transforms=make(seed))
    epochs = max(EPOCHS, STEPS * BATCH // len(x))
    trainer.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return trainer


def scores(y, probabilities):
    """Accuracy and calibration error in percent, negative log likelihood."""
    accuracy = 100 * np.mean(probabilities.argmax(axis=-1) == y)
    nll = -np.mean(np.log(np.maximum(probabilities[np.arange(len(y)), y], 1e-30)))
    return accuracy, nll, 100 * float(metrics.expected_calibration_error(y, probabilities))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 60000])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    (x, y), (x_test, y_test) = read(arguments.directory, "train"), read(arguments.directory, "t10k")
    for images in arguments.images:
        print(f"{images} images: accuracy %, negative log likelihood, expected calibration error %")
        for name, make in METHODS.items():
            start, rows = time.perf_counter(), {}
            for seed in range(arguments.seeds):
                chosen = np.random.default_rng(seed).permutation(len(x))[:images]
                trainer = trained(make, x[chosen], y[chosen], seed)
                rows.setdefault(name, []).append(scores(y_test, trainer.predict(x_test, verbose=0)))
                if name.endswith("Noise"):
                    drawn = trainer.predict_samples(x_test, SAMPLES, seed=seed, batch_size=1000).mean(axis=0)
                    rows.setdefault(f"{name}, drawn", []).append(scores(y_test, drawn))
            for label, found in rows.items():
                error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
                cells = [f"{m:.3f} +- {e:.3f}" for m, e in zip(np.mean(found, axis=0), error, strict=True)]
                print(f"  {label:<26} {'   '.join(cells)}   {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
