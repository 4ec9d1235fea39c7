"""Step time of noise on the weights on PyTorch, beside PyTorch packages: all variants take turns, epoch by epoch.

    pip install --no-deps bayesian-torch==0.5.0 ivon-opt pytorch_optimizer  (optional; what is absent is left out)
    KERAS_BACKEND=torch python benchmarks/noise_peers.py

MLP 784-512-512-10, batches of 128. Kriterion runs in Keras's `fit`, the peers in a plain loop as their documentation
has it, with the divergence and Adam (IVON: its own step). Prints milliseconds a step and, in the same round, the ratio
to the plain step of each side: Keras's `fit`, and a plain PyTorch loop. Medians over the rounds.
"""

import contextlib
import importlib
import time

import keras
import numpy as np
import torch
from step_time import BATCH, STEPS, mlp, plain, trainer

from kriterion import optimizers, transforms

ROUNDS = 11
CASES = {
    "WeightNoise": (trainer(lambda: transforms.WeightNoise(0.05)), keras.optimizers.Adam),
    "WeightNoise per example": (trainer(lambda: transforms.WeightNoise(0.05, per="example")), keras.optimizers.Adam),
    "LearnedWeightNoise": (trainer(lambda: transforms.LearnedWeightNoise()), keras.optimizers.Adam),
    "LearnedWeightNoise per example": (
        trainer(lambda: transforms.LearnedWeightNoise(per="example")),
        keras.optimizers.Adam,
    ),
    "IVON": (trainer(lambda: transforms.IVONNoise()), optimizers.IVON),
    "SharpnessAware": (trainer(lambda: transforms.SharpnessAware(0.05)), keras.optimizers.Adam),
}


def ours(make, optimizer, x, y):
    model, arguments = make(mlp())
    model.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), **arguments)

    def epoch():
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)

    return epoch


def network():
    layers = [torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(512, 10))


def loop(model, step, x, y):
    batches = list(zip(torch.from_numpy(x).split(BATCH), torch.from_numpy(y).split(BATCH), strict=True))

    def epoch():
        model.train()
        for inputs, targets in batches:
            step(inputs, targets)

    return epoch


def simple(model, optimizer, penalty=lambda: 0.0):
    def step(inputs, targets):
        optimizer.zero_grad()
        (torch.nn.functional.cross_entropy(model(inputs), targets) + penalty()).backward()
        optimizer.step()

    return step


def bayesian(kind):
    module = importlib.import_module("bayesian_torch.models.dnn_to_bnn")
    model = network()
    module.dnn_to_bnn(model, {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "posterior_rho_init": -3.0,
                              "type": kind, "moped_enable": False, "moped_delta": 0.5})  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters())
    return model, simple(model, optimizer, lambda: module.get_kl_loss(model) / BATCH)


def ivon():
    model = network()
    optimizer = importlib.import_module("ivon").IVON(model.parameters(), lr=0.1, ess=BATCH * STEPS)

    def step(inputs, targets):
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return model, step


def sam():
    model = network()
    package = importlib.import_module("pytorch_optimizer")
    optimizer = package.SAM(model.parameters(), torch.optim.Adam, rho=0.05)

    def step(inputs, targets):
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.first_step(zero_grad=True)
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.second_step(zero_grad=True)

    return model, step


def plain_loop():
    model = network()
    return model, simple(model, torch.optim.Adam(model.parameters()))


PEERS = {
    "bayesian-torch, Reparameterization": lambda: bayesian("Reparameterization"),
    "bayesian-torch, Flipout": lambda: bayesian("Flipout"),
    "ivon-opt": ivon,
    "pytorch_optimizer SAM": sam,
}


def main():
    random = np.random.default_rng(0)
    x = random.normal(size=(BATCH * STEPS, 784)).astype("float32")
    y = random.integers(0, 10, size=BATCH * STEPS)
    epochs = {"plain Keras": ours(plain, keras.optimizers.Adam, x, y), "plain loop": loop(*plain_loop(), x, y)}
    epochs |= {name: ours(*case, x, y) for name, case in CASES.items()}
    for name, make in PEERS.items():
        with contextlib.suppress(ImportError):
            epochs[name] = loop(*make(), x, y)
    seconds = {name: [] for name in epochs}
    for round_ in range(ROUNDS + 1):
        for name, epoch in epochs.items():
            start = time.perf_counter()
            epoch()
            if round_:
                seconds[name].append((time.perf_counter() - start) / STEPS)
    for name, found in seconds.items():
        side = "plain Keras" if name in CASES or name == "plain Keras" else "plain loop"
        ratio = np.median(np.divide(found, seconds[side]))
        print(f"{name:<36} {1e3 * np.median(found):6.2f} ms   {ratio:.2f} x {side}")


if __name__ == "__main__":
    main()
