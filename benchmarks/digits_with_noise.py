"""MNIST with noise on the weights: accuracy, negative log likelihood and calibration, few and many training images.

    python benchmarks/digits_with_noise.py DIRECTORY [--images 1000 60000] [--seeds 5]

reads MNIST's four idx files (gzip) from the directory. A network of two hidden layers of 256 ReLU units, Adam 0.001,
batches of 128, 1,600 steps at 1,000 images and 10 epochs at 60,000. A method's setting is that of the best likelihood
on a held-out fifth of the training images, the mean over two seeds, by its drawn predictions if it has some. Mean and
standard error over the seeds on the 10,000 test images; "drawn": the mean probability of 32 samples of the weights.
"""

import argparse
import pathlib
import time

import minimand
import keras
import numpy as np
from long_tail import digits as read
from scipy import stats

from minimand import metrics, transforms

STEPS, EPOCHS, BATCH, SAMPLES, TRIALS = 1600, 10, 128, 32, 2


def weight_noise(stddev, seed):
    return [transforms.WeightNoise(stddev, mode="filter", per="example", seed=seed)]


def learned_noise(temperature, seed):
    return [
        transforms.VariationalWeightNoise(
            prior="empirical_bayes", temperature=temperature, warm_up=800, per="example", seed=seed
        )
    ]


METHODS = {
    "plain": (lambda setting, seed: [], (None,)),
    "WeightNoise": (weight_noise, (0.1, 0.3, 0.6, 1.0)),
    "VariationalWeightNoise": (learned_noise, (1.0, 0.3, 0.1, 0.03)),
    "SharpnessAware": (lambda rho, seed: [transforms.SharpnessAware(rho)], (0.02, 0.05, 0.1, 0.2)),
}


def trained(noise, x, y, seed):
    keras.utils.set_random_seed(seed)
    hidden = [keras.layers.Dense(256, "relu"), keras.layers.Dense(256, "relu")]
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), *hidden, keras.layers.Dense(10)])
    model.add(keras.layers.Softmax())
    trainer = minimand.Trainer(model)
    trainer.compile("adam", "sparse_categorical_crossentropy", transforms=noise)
    epochs = max(EPOCHS, STEPS * BATCH // len(x))
    trainer.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return trainer


def scores(y, probabilities):
    """Accuracy and calibration error in percent, negative log likelihood."""
    accuracy = 100 * np.mean(probabilities.argmax(axis=-1) == y)
    nll = -np.mean(np.log(np.maximum(probabilities[np.arange(len(y)), y], 1e-30)))
    return accuracy, nll, 100 * float(metrics.expected_calibration_error(y, probabilities))


def judged(name, setting, train, test, seed):
    """Scores by the predictions that the method has, the clean ones first."""
    trainer = trained(METHODS[name][0](setting, seed), *train, seed)
    found = {name: scores(test[1], trainer.predict(test[0], verbose=0))}
    if name.endswith("Noise"):
        drawn = trainer.predict_samples(test[0], SAMPLES, seed=seed, batch_size=1000).mean(axis=0)
        found[f"{name}, drawn"] = scores(test[1], drawn)
    return found


def chosen(name, draws):
    """The setting of the best likelihood on the first fifth of the images, of these draws of images."""
    settings = METHODS[name][1]
    if len(settings) == 1:
        return settings[0]

    def nll(setting):
        total = 0.0
        for seed, (x, y) in enumerate(draws):
            held = len(x) // 5
            found = judged(name, setting, (x[held:], y[held:]), (x[:held], y[:held]), seed)
            total += list(found.values())[-1][1]
        return total

    return min(settings, key=nll)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 60000])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    (x, y), test = read(arguments.directory, "train"), read(arguments.directory, "t10k")
    for images in arguments.images:
        print(f"{images} images: accuracy %, negative log likelihood, expected calibration error %")
        rows = [np.random.default_rng(seed).permutation(len(x))[:images] for seed in range(arguments.seeds)]
        draws = [(x[part], y[part]) for part in rows]
        for name in METHODS:
            start = time.perf_counter()
            setting = chosen(name, draws[:TRIALS])
            found = [judged(name, setting, train, test, seed) for seed, train in enumerate(draws)]
            for label in found[0]:
                values = [each[label] for each in found]
                error = stats.sem(values)
                cells = [f"{m:.3f} +- {e:.3f}" for m, e in zip(np.mean(values, axis=0), error, strict=True)]
                seconds = time.perf_counter() - start
                print(f"  {label:<26} {'   '.join(cells)}   setting {setting}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
