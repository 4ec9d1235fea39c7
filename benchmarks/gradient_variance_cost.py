"""Step time and memory with the variance of the examples' gradients, over a plain step; on PyTorch beside packages.

    pip install --no-deps backpack-for-pytorch unfoldNd opacus  (optional, for PyTorch; what is absent is left out)
    KERAS_BACKEND=... python benchmarks/gradient_variance_cost.py [time | memory]

MLP 784-256-256-10, batches of 128, and a convnet 28 x 28, batches of 64, Adam. Minimand runs in Keras's `fit`, the
peers in a plain loop as their documentation has it; each over the plain step of its side, in the same round. Medians
over the rounds, and the quartiles. Then the peak memory of processes that take ten steps.
Two peers that write every example's gradient take hundreds of steps' time, and get fewer of them.
"""

import contextlib
import importlib
import pathlib
import subprocess
import sys

import minimand  # noqa: F401  first: it chooses the default backend
import keras
import numpy as np
import step_time
from step_time import convnet, epoch_of, plain, take_turns, trainer

from minimand import optimizers, transforms

SIZES = {"mlp": 128, "convnet": 64}
SLOW = ("Opacus", "torch.func.vmap")


def mlp():
    layers = [keras.layers.Dense(256, "relu"), keras.layers.Dense(256, "relu"), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((784,)), *layers])


def transformed(make):
    return trainer(make), keras.optimizers.Adam


def measured(**arguments):
    return transformed(lambda: transforms.MeasureGradient(**arguments))


OURS = {
    "plain": (plain, keras.optimizers.Adam),
    "measured, probe": measured(every=1),
    "measured, exact": measured(every=1, estimator="exact"),
    "measured, 8 micro-batches": measured(every=1, estimator="micro_batch"),
    "measured, every 50th step": measured(every=50),
    "penalty, probe": transformed(lambda: transforms.GradientVariancePenalty(1e-3)),
    "penalty, exact": transformed(lambda: transforms.GradientVariancePenalty(1e-3, estimator="exact")),
    "penalty, 4 micro-batches": transformed(lambda: transforms.GradientVariancePenalty(1e-3, estimator="micro_batch")),
    "penalty on the norm": transformed(lambda: transforms.GradientNormPenalty(1e-3)),
    "SNRScaling(Adam)": (plain, lambda: optimizers.SNRScaling("adam")),
    "M-SVAG": (plain, optimizers.MSVAG),
    "M-SVAG, mini-batch": (
        trainer(lambda: transforms.MiniBatchVariance(estimator="exact")),
        lambda: optimizers.MSVAG(variance="mini_batch"),
    ),
    "AdaBelief": (plain, optimizers.AdaBelief),
}


def peers(shape):
    """For each package a function that makes `(model, step(inputs, targets))`."""
    import torch

    def network():
        linear, relu = torch.nn.Linear, torch.nn.ReLU
        if len(shape) == 1:
            return torch.nn.Sequential(linear(784, 256), relu(), linear(256, 256), relu(), linear(256, 10))
        conv, pool = torch.nn.Conv2d, torch.nn.MaxPool2d
        parts = [conv(1, 16, 3), relu(), pool(2), conv(16, 32, 3), relu(), pool(2), torch.nn.Flatten(), linear(800, 10)]
        return torch.nn.Sequential(*parts)

    def plain_loop():
        model, loss = network(), torch.nn.CrossEntropyLoss()
        optimizer = torch.optim.Adam(model.parameters())

        def step(inputs, targets):
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()

        return step

    def backpack():
        module, extensions = (importlib.import_module(f"backpack{part}") for part in ("", ".extensions"))
        model, loss = module.extend(network()), module.extend(torch.nn.CrossEntropyLoss())
        optimizer = torch.optim.Adam(model.parameters())

        def step(inputs, targets):
            optimizer.zero_grad()
            with module.backpack(extensions.Variance()):
                loss(model(inputs), targets).backward()
            optimizer.step()

        return step

    def opacus():
        model = importlib.import_module("opacus").GradSampleModule(network())
        loss, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters())

        def step(inputs, targets):
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            for weight in model.parameters():
                weight.grad_sample.var(dim=0)
                weight.grad_sample = None
            optimizer.step()

        return step

    def vmapped():
        model = network()
        optimizer = torch.optim.Adam(model.parameters())

        def loss(weights, inputs, target):
            outputs = torch.func.functional_call(model, weights, (inputs[None],))
            return torch.nn.functional.cross_entropy(outputs, target[None])

        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

        def step(inputs, targets):
            found = each({name: weight.detach() for name, weight in model.named_parameters()}, inputs, targets)
            for name, weight in model.named_parameters():
                found[name].var(dim=0)
                weight.grad = found[name].mean(dim=0)
            optimizer.step()

        return step

    made = {"plain loop": plain_loop, "BackPACK Variance": backpack, "Opacus": opacus, "torch.func.vmap": vmapped}
    for name, make in made.items():
        with contextlib.suppress(ImportError):
            yield name, make()


def peer_epoch(step, x, y):
    import torch

    x = x.reshape(len(x), 1, 28, 28) if x.ndim == 4 else x
    batches = list(zip(*(torch.from_numpy(a).split(step_time.BATCH) for a in (x, y)), strict=True))

    def epoch():
        for inputs, targets in batches:
            step(inputs, targets)

    return epoch


def epochs_of(make_model, wanted):
    """The variants, by name, whose name `wanted(name)`."""
    step_time.BATCH = SIZES[make_model.__name__]
    x, y = step_time.batches_of(make_model().input_shape[1:])
    epochs = {name: epoch_of(v, make_model(), x, y) for name, v in OURS.items() if wanted(name)}
    if keras.backend.backend() == "torch":
        epochs.update({name: peer_epoch(step, x, y) for name, step in peers(x.shape[1:]) if wanted(name)})
    return epochs


def compare(make_model, wanted):
    seconds = take_turns(epochs_of(make_model, wanted))
    for name, found in seconds.items():
        side = "plain" if name in OURS else "plain loop"
        low, middle, high = np.percentile(found / seconds[side], [25, 50, 75])
        step = f"{1e3 * np.median(found):7.2f} ms"
        print(f"  {name:<28} {step} {middle:7.2f} x {side:<10} ({low:.2f} to {high:.2f})", flush=True)


def time():
    step_time.heading()
    for make_model in (mlp, convnet):
        print(make_model.__name__)
        compare(make_model, lambda name: name not in SLOW)
    if keras.backend.backend() == "torch":
        step_time.STEPS, step_time.ROUNDS = 2, 3
        for make_model in (mlp, convnet):
            print(make_model.__name__)
            compare(make_model, lambda name: name in ("plain loop", *SLOW))


def memory():
    names = [*OURS, "plain loop", "BackPACK Variance", *SLOW] if keras.backend.backend() == "torch" else list(OURS)
    for make_model in (mlp, convnet):
        print(make_model.__name__)
        for name in names:
            command = [sys.executable, __file__, make_model.__name__, name]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print(f"  {name:<28} {float(printed.split()[-1]):7.0f} MB", flush=True)


def main():
    if len(sys.argv) == 3:
        step_time.STEPS = 10
        for epoch in epochs_of(globals()[sys.argv[1]], lambda name: name == sys.argv[2]).values():
            epoch()
        # Not `getrusage`: its peak is the parent's where that is larger.
        print(int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024)
        return
    for part in (time, memory):
        if part.__name__ in (sys.argv[1:] or ("time", "memory")):
            part()


if __name__ == "__main__":
    main()
