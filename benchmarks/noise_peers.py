"""Step time of noise on the weights on PyTorch, beside PyTorch packages: all variants take turns, epoch by epoch.

    pip install --no-deps bayesian-torch==0.5.0 ivon-opt pytorch_optimizer  (optional; what is absent is left out)
    KERAS_BACKEND=torch python benchmarks/noise_peers.py

MLP 784-512-512-10, batches of 128. Minimand runs in Keras's `fit`, the peers in a plain loop as their documentation
has it, with the divergence and Adam (IVON: its own step). Prints milliseconds a step and, in the same round, the ratio
to the plain step of each side: Keras's `fit`, and a plain PyTorch loop. Medians over the rounds.
"""

import contextlib
import importlib

import numpy as np
import torch
from step_time import BATCH, STEPS, VARIANTS, batches_of, epoch_of, mlp, take_turns

OURS = ("weight_noise", "noise_per_example", "learned_noise", "learned_per_example", "ivon", "sharpness_aware")


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
    x, y = batches_of((784,))
    epochs = {name: epoch_of(VARIANTS[name], mlp(), x, y) for name in ("plain", *OURS)}
    epochs["plain loop"] = loop(*plain_loop(), x, y)
    for name, make in PEERS.items():
        with contextlib.suppress(ImportError):
            epochs[name] = loop(*make(), x, y)
    seconds = take_turns(epochs)
    for name, found in seconds.items():
        side = "plain" if name in ("plain", *OURS) else "plain loop"
        print(f"{name:<36} {1e3 * np.median(found):6.2f} ms   {np.median(found / seconds[side]):.2f} x {side}")


if __name__ == "__main__":
    main()
