"""Draws the figures of trainable-losses.md: `python docs/trainable_figures.py` (needs the study extra)."""

import minimand
import keras
import numpy as np
from scipy import special
from style import BLUE, GREEN, ORANGE, RED, SKY, figure

RANDOM = np.random.default_rng(0)


class Watch(keras.callbacks.Callback):
    """The values of some keys of the logs, after each batch."""

    def __init__(self, keys):
        super().__init__()
        self.keys, self.seen = keys, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append([float(logs[key]) for key in self.keys])


def fitted(loss, predictions, targets, keys=(), rate=0.02, **arguments):
    """A loss's variables trained at fixed predictions, and what the logs said of them after each batch."""
    model = keras.Sequential([keras.Input(predictions.shape[1:]), keras.layers.Rescaling(1.0)])
    trainer = minimand.Trainer(model)
    trainer.compile(keras.optimizers.Adam(rate), loss)
    watch = Watch([f"{loss.name}_{key}" for key in keys])
    trainer.fit(predictions, targets, verbose=0, callbacks=[watch], **arguments)
    return np.array(watch.seen)


class LaplaceLikelihood(minimand.losses.TrainableLoss):
    """The page's own loss, of one output."""

    def build(self, y_true_shape, y_pred_shape):
        positive = minimand.parametrizations.Positive()
        self.scale = self.add_weight((), 1.0, parametrization=positive, name="scale")

    def call(self, y_true, y_pred):
        scale = self.scale.value
        return keras.ops.mean(keras.ops.abs(y_true - y_pred) / scale + keras.ops.log(2 * scale), axis=-1)


class ByHand(keras.losses.Loss):
    """The same, as a stock loss that makes its variable itself."""

    def __init__(self):
        super().__init__()
        self.log_scale = keras.Variable(0.0)

    def call(self, y_true, y_pred):
        error = keras.ops.abs(y_true - y_pred) * keras.ops.exp(-self.log_scale)
        return keras.ops.mean(error + self.log_scale, axis=-1)


@figure("trainable-scale.svg", 1)
def scale(axes):
    y = RANDOM.laplace(scale=3.0, size=(32 * 200, 1)).astype("float32")
    seen = fitted(LaplaceLikelihood(name="laplace"), 0 * y, y, ["scale"], batch_size=32)[:, 0]
    stock = ByHand()
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.02), stock)
    by_hand = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: by_hand.append(np.exp(stock.log_scale.numpy()))
    )
    model.fit(0 * y, y, batch_size=32, verbose=0, callbacks=[note])
    axes.axhline(np.abs(y).mean(), color="black", linestyle=":", label="mean absolute error")
    axes.plot(seen, color=BLUE, label="TrainableLoss")
    axes.plot(by_hand, color=RED, label="keras.Variable in a loss")
    axes.set(xlabel="batch", ylabel="the scale in the loss", ylim=(0, 3.5))
    axes.legend(loc="lower right", fontsize=8)


@figure("trainable-threshold.svg", 2)
def threshold(left, right):
    y = (RANDOM.uniform(size=(8192, 1)) < 0.1).astype("float32")
    scores = special.expit(RANDOM.normal(size=y.shape) + 2 * y - 3.2).astype("float32")
    grid = np.linspace(0.01, 0.8, 159)
    tp, fp = ((scores >= grid) * y).mean(axis=0), ((scores >= grid) * (1 - y)).mean(axis=0)
    recall, precision, f1 = tp / y.mean(), tp / np.maximum(tp + fp, 1e-9), 2 * tp / (tp + fp + y.mean())
    cases = {
        "F1": (minimand.losses.F1Threshold("binary_crossentropy"), BLUE),
        "precision at recall": (minimand.losses.PrecisionAtRecallThreshold(0.8, "binary_crossentropy"), ORANGE),
        "recall at precision": (minimand.losses.RecallAtPrecisionThreshold(0.7, "binary_crossentropy"), GREEN),
    }
    for objective, (loss, colour) in cases.items():
        seen = fitted(loss, scores, y, ["threshold"], batch_size=256, epochs=20)[:, 0]
        right.plot(seen, color=colour, label=objective)
        left.axvline(seen[-1], color=colour, linestyle=":")
    for values, colour, label in ((f1, BLUE, "F1"), (recall, ORANGE, "recall"), (precision, GREEN, "precision")):
        left.plot(grid, values, color=colour, label=label)
    left.set(title="hard decisions, learned thresholds dotted", xlabel="threshold", ylim=(0, 1.05))
    right.set(title="the threshold in training", xlabel="batch", ylim=(0, 0.6))
    left.legend()
    right.legend()


@figure("trainable-tail.svg", 2)
def tail(left, right):
    y = RANDOM.exponential(size=(32 * 600, 1)).astype("float32")
    loss = minimand.losses.CVaR("mean_absolute_error", 0.9)
    seen = fitted(loss, 0 * y, y, ["threshold"], batch_size=32)[:, 0]
    batches = y.reshape(600, 32)
    own = np.sort(batches, axis=1)[:, ::-1]
    # The worst 3.2 of 32.
    plug_in = (own[:, :3].sum(axis=1) + 0.2 * own[:, 3]) / 3.2
    trained = seen[:-1] + 10 * np.maximum(batches[1:] - seen[:-1, None], 0).mean(axis=1)
    left.plot(seen, color=BLUE, label="trained threshold")
    left.axhline(np.log(10), color="black", linestyle=":", label="0.9-quantile")
    left.set(title="value at risk of exponential losses", xlabel="batch of 32", ylim=(0, 4))
    left.legend(loc="lower right")
    count = np.arange(1, 600)
    right.plot(count, np.cumsum(trained) / count, color=BLUE, label="with the trained threshold")
    right.plot(count, np.cumsum(plug_in[1:]) / count, color=ORANGE, label="worst tenth of each batch")
    right.axhline(1 + np.log(10), color="black", linestyle=":", label="truth")
    right.set(title="mean of the worst tenth, so far", xlabel="batch of 32", ylim=(2.7, 3.7))
    right.legend(loc="lower right")


@figure("trainable-class-weights.svg", 3)
def class_weights(first, second, third):
    losses = np.array([0.2, 0.5, 1.0, 3.0])
    probabilities = np.exp(-losses)
    rest = (1 - probabilities)[:, None] / 3 * np.ones((4, 4))
    predictions = np.where(np.eye(4, dtype=bool), probabilities[:, None], rest).astype("float32")
    predictions, y = np.tile(predictions, (600, 1)), np.tile(np.arange(4), 600)
    logits, softmax = np.zeros(4), []
    for _ in range(600):
        weights = special.softmax(logits)
        softmax.append(weights)
        logits -= 0.1 * weights * (losses - weights @ losses)
    keys = [f"class_weights_{k}" for k in range(4)]
    traces = {"softmax weights, minimised": np.array(softmax)}
    for title, loss in (
        ("LearnedClassWeights", minimand.losses.LearnedClassWeights(4)),
        ("GroupDRO, tau = 1", minimand.losses.GroupDRO(4, tau=1.0)),
    ):
        traces[title] = fitted(loss, predictions, y, keys, batch_size=4, shuffle=False)
    for axes, (title, trace) in zip((first, second, third), traces.items(), strict=True):
        for k, colour in enumerate((SKY, GREEN, ORANGE, RED)):
            axes.plot(trace[:, k], color=colour, label=f"class with loss {losses[k]:g}")
        axes.set(title=title, xlabel="step", ylim=(0, None))
    first.legend()


@figure("trainable-tasks.svg", 1)
def tasks(axes):
    spreads = {"metres": 5.0, "seconds": 0.2}
    inputs = keras.Input((2,))
    outputs = {name: keras.layers.Lambda(lambda x, k=k: x[:, k : k + 1])(inputs) for k, name in enumerate(spreads)}
    losses = minimand.losses.UncertaintyWeighted(dict.fromkeys(spreads, "mean_squared_error"))
    trainer = minimand.Trainer(keras.Model(inputs, outputs))
    trainer.compile(keras.optimizers.Adam(0.02), losses)
    x = np.zeros((32 * 400, 2), "float32")
    targets = {name: RANDOM.normal(0, spread, size=(len(x), 1)) for name, spread in spreads.items()}
    watch = Watch([f"{name}_uncertainty_log_variance" for name in spreads])
    trainer.fit(x, targets, verbose=0, callbacks=[watch])
    for k, (name, spread) in enumerate(spreads.items()):
        axes.plot(np.array(watch.seen)[:, k], color=(BLUE, ORANGE)[k], label=name)
        axes.axhline(np.log(spread**2), color=(BLUE, ORANGE)[k], linestyle=":")
    axes.set(title="log variance s; dotted: log L", xlabel="batch")
    axes.legend(loc="center right")


@figure("trainable-metric.svg", 2)
def metric(left, right):
    covariance = np.array([[2.0, 1.4], [1.4, 1.3]])
    residuals = RANDOM.multivariate_normal([0, 0], covariance, size=150).astype("float32")
    loss = minimand.losses.Mahalanobis(2)
    fitted(loss, 0 * residuals, residuals, batch_size=150, epochs=400)
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    left.scatter(*residuals.T, s=6, color=SKY)
    for radius in (1, 2):
        left.plot(*(radius * np.linalg.inv(np.linalg.cholesky(loss.precision)).T @ circle), color=BLUE)
    left.set(title="Mahalanobis: residuals at distance 1 and 2", aspect="equal")
    labels = RANDOM.integers(2, size=200)
    x = np.stack([RANDOM.normal(0, 3, size=200), RANDOM.normal(size=200) * 0.4 + labels], axis=1).astype("float32")
    loss = minimand.losses.NCA(2, 2)
    fitted(loss, x, labels, rate=0.05, batch_size=200, epochs=200)
    right.scatter(*x.T, s=6, c=np.where(labels, ORANGE, BLUE))
    across, along = np.linalg.inv(np.linalg.cholesky(loss.precision)).T @ circle
    right.plot(across, along + 0.5, color="black")
    right.set(title="NCA: points at equal distance", xlim=(-9, 9))


@figure("trainable-temperature.svg", 1)
def temperature(axes):
    logits = RANDOM.normal(size=(8000, 3))
    y = (logits + RANDOM.gumbel(size=logits.shape)).argmax(axis=-1)
    sure = special.softmax(3 * logits, axis=-1).astype("float32")
    loss = minimand.losses.TemperatureScaled("sparse_categorical_crossentropy")
    fitted(loss, sure, y, batch_size=500, epochs=20)
    scaled = special.softmax(np.log(np.maximum(sure, 1e-7)) / loss.temperature, axis=-1)
    axes.plot([1 / 3, 1], [1 / 3, 1], color="black", linestyle=":")
    for p, colour, label in ((sure, ORANGE, "as trained"), (scaled, BLUE, f"T = {loss.temperature:.2f}")):
        confidence, right = p.max(axis=-1), p.argmax(axis=-1) == y
        parts = np.array_split(np.argsort(confidence), 10)
        axes.plot(
            [confidence[i].mean() for i in parts], [right[i].mean() for i in parts], "o-", color=colour, label=label
        )
    axes.set(title="calibration on held-out data", xlabel="confidence", ylabel="share that is right")
    axes.legend()


@figure("trainable-sphere.svg", 1)
def sphere(axes):
    x = RANDOM.normal(size=(2000, 8)).astype("float32")
    layers = [keras.layers.Dense(16, "relu", use_bias=False), keras.layers.Dense(2, use_bias=False)]
    encoder = keras.Sequential([keras.Input((8,)), *layers])
    loss = minimand.losses.DeepSVDD(0.1)
    trainer = minimand.Trainer(encoder)
    trainer.compile(keras.optimizers.Adam(0.002), loss, loss_learning_rate=0.05)
    trainer.fit(x, np.zeros(2000), batch_size=100, epochs=8, verbose=0)
    odd = x[:150] + RANDOM.choice([-3, 3], size=(150, 8))
    for points, colour, label in ((x[:300], BLUE, "normal"), (odd, RED, "anomalies")):
        axes.scatter(*encoder.predict(points, verbose=0).T, s=6, color=colour, label=label)
    angle = np.linspace(0, 2 * np.pi, 100)
    center = loss.sphere_center
    axes.plot(center[0] + loss.radius * np.cos(angle), center[1] + loss.radius * np.sin(angle), color="black")
    axes.set(title="embeddings, a tenth of the normal outside", aspect="equal", ylim=(None, 2.2))
    axes.legend(loc="upper left", ncols=2)
