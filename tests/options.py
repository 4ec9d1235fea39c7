"""Each option of each part with another value than its own, and where a difference is to be seen."""

from typing import Any, NamedTuple

import keras
import numpy as np

import minimand
from minimand.losses import (
    IRLS,
    LMNN,
    NCA,
    AdaptiveImage,
    AdaptiveRobust,
    AdaptiveStudentT,
    ClassMahalanobis,
    CostThreshold,
    CVaR,
    DeepSVDD,
    F1Threshold,
    Focal,
    GeneralizedCrossEntropy,
    GeneralRobust,
    GradientHarmonized,
    GroupDRO,
    HardExampleMining,
    LearnedClassWeights,
    LogitAdjusted,
    Mahalanobis,
    PrecisionAtRecallThreshold,
    QuantileThreshold,
    RecallAtPrecisionThreshold,
    SelfPaced,
    StandardizedIRLS,
    TaskUncertainty,
    TemperatureScaled,
    UncertaintyWeighted,
)
from minimand.optimizers import IVON, MSVAG, SVAG, AdaBelief, Proximal, SNRScaling
from minimand.regularizers import (
    L2SP,
    ElasticWeightConsolidation,
    GroupLasso,
    JointGroupLasso,
    Range,
    SparseGroupLasso,
    TotalVariation,
)
from minimand.transforms import (
    Fishr,
    GradientNormPenalty,
    GradientVariancePenalty,
    IVONNoise,
    MeasureGradient,
    MiniBatchVariance,
    ScaleMixturePrior,
    SharpnessAware,
    VariationalWeightNoise,
    WeightNoise,
    WeightPenalty,
)

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(16, 4)).astype("float32")
LABELS = np.arange(16) % 3
# Inputs, targets and the last layers of a network, by kind of problem.
DATA = {
    "numbers": (X, RANDOM.normal(size=(16, 8)), lambda: [keras.layers.Dense(8)]),
    "rows": (RANDOM.normal(size=(16, 3, 4)), RANDOM.normal(size=(16, 3, 2)), lambda: [keras.layers.Dense(2)]),
    "images": (RANDOM.uniform(size=(16, 3, 8, 3)), RANDOM.uniform(size=(16, 3, 8, 3)), lambda: [keras.layers.Dense(3)]),
    "classes": (X, LABELS, lambda: [keras.layers.Dense(3, "softmax")]),
    "embedded": (X, LABELS, lambda: [keras.layers.Dense(2)]),
    "binary": (X, LABELS[:, None] % 2, lambda: [keras.layers.Dense(1, "sigmoid")]),
}


def fitted(kind, loss="mse", optimizer=None, transforms=()):
    """The logs of two epochs of two batches, and the weights after them."""
    x, y, layers = DATA[kind]
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    trainer = minimand.Trainer(keras.Sequential([keras.Input(x.shape[1:]), *layers()]))
    trainer.compile(optimizer or keras.optimizers.SGD(0.1), loss, transforms=transforms)
    history = trainer.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    return {**history, **{w.path: w.numpy() for w in trainer.model.weights}}


def of_loss(kind):
    return lambda loss: fitted(kind, loss)


def of_tasks(loss):
    x, y, _ = DATA["numbers"]
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in ("a", "b")}
    trainer = minimand.Trainer(keras.Model(inputs, outputs))
    trainer.compile(keras.optimizers.SGD(0.1), loss)
    history = trainer.fit(x, {"a": y[:, :1], "b": 3 * y[:, 1:2]}, epochs=2, batch_size=8, shuffle=False, verbose=0)
    return history.history


def of_transform(transform):
    optimizer = IVON(0.1) if isinstance(transform, IVONNoise) else None
    if isinstance(transform, MiniBatchVariance):
        optimizer = MSVAG(0.1, variance="mini_batch")
    return fitted("numbers", optimizer=optimizer, transforms=[transform])


def positive_inputs(batch):
    """How many of the first two inputs are positive: 0, 1 or 2."""
    return keras.ops.sum(keras.ops.cast(batch.x[:, :2] > 0, "int32"), axis=1)


def of_prior(prior):
    return of_transform(VariationalWeightNoise(prior=prior, init=0.1, seed=1))


def of_regularizer(regularizer):
    return fitted("numbers", transforms=[WeightPenalty(regularizer)])


def of_optimizer(optimizer):
    transforms = [IVONNoise(seed=1)] if isinstance(optimizer, IVON) else []
    if isinstance(optimizer, (SVAG, MSVAG)) and optimizer.variance == "mini_batch":
        transforms = [MiniBatchVariance(estimator="exact")]
    return fitted("numbers", optimizer=optimizer, transforms=transforms)


class Case(NamedTuple):
    """What is seen of a part, its arguments, and for each option another value, or further arguments and that."""

    seen: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


class Where(NamedTuple):
    """An option that means something beside other arguments only."""

    others: dict[str, Any]
    value: Any


WEIGHTED = {"normalize": True, "loss": "mae"}
THRESHOLD = {"loss": "binary_crossentropy", "temperature": 2.0, "momentum": 0.5, "from_logits": True}
LIKELIHOOD = {"scale": 1.0, "init": "reference", "scale_init": 2.0, "scale_min": 0.5}
BARRON = {"alpha": 1.0, "alpha_range": (0.001, 1.5), "alpha_init": 1.0}
ROBUST = {**LIKELIHOOD, "axis": 1, "shared": True, "groups": [0, 0]}
KERNEL = {"dense/kernel": np.arange(32).reshape(4, 8) % 4}

LOSSES = {
    GeneralRobust: Case(of_loss("numbers"), {"alpha": 0.5}, {"alpha": 1.0, "scale": 0.7}),
    AdaptiveRobust: Case(of_loss("rows"), {}, {**ROBUST, **BARRON}),
    AdaptiveStudentT: Case(of_loss("rows"), {}, {**ROBUST, "df": 3.0, "df_range": (0.5, 9.0), "df_init": 2.0}),
    AdaptiveImage: Case(
        of_loss("images"),
        {"data_format": "channels_last"},
        {
            "representation": "haar",
            "color_space": "rgb",
            "levels": Where({"data_format": "channels_first", "color_space": "yuv"}, 1),
            "parameters": "band",
            "data_format": "channels_first",
            **LIKELIHOOD,
            **BARRON,
        },
    ),
    GradientHarmonized: Case(of_loss("numbers"), {"loss": "mse"}, {**WEIGHTED, "momentum": 0.5, "bins": 5}),
    SelfPaced: Case(of_loss("numbers"), {"loss": "mse"}, {**WEIGHTED, "momentum": 0.1, "share": 0.3}),
    StandardizedIRLS: Case(
        of_loss("numbers"),
        {"loss": "mse"},
        {**WEIGHTED, "momentum": 0.5, "alpha": 1.0, "scale": 1.0, "differentiate": True},
    ),
    CVaR: Case(of_loss("numbers"), {"loss": "mse", "level": 0.5}, {"loss": "mae", "level": 0.7}),
    Focal: Case(of_loss("numbers"), {"loss": "mse"}, {**WEIGHTED, "gamma": 1.0, "differentiate": False}),
    GeneralizedCrossEntropy: Case(of_loss("numbers"), {"loss": "mse"}, {"loss": "mae", "q": 0.5}),
    IRLS: Case(of_loss("numbers"), {"loss": "mse"}, {**WEIGHTED, "alpha": 1.0, "scale": 2.0, "differentiate": True}),
    HardExampleMining: Case(of_loss("numbers"), {"loss": "mse", "fraction": 0.5}, {**WEIGHTED, "fraction": 0.3}),
    LearnedClassWeights: Case(
        of_loss("classes"), {"num_classes": 3}, {"loss": Focal("sparse_categorical_crossentropy"), "strength": 2.0}
    ),
    GroupDRO: Case(
        of_loss("classes"),
        {"num_classes": 3},
        {"loss": Focal("sparse_categorical_crossentropy"), "step": 0.5, "tau": 1.0},
    ),
    F1Threshold: Case(of_loss("binary"), {}, THRESHOLD),
    CostThreshold: Case(of_loss("binary"), {}, {**THRESHOLD, "false_positive_cost": 2.0, "false_negative_cost": 5.0}),
    PrecisionAtRecallThreshold: Case(of_loss("binary"), {"recall": 0.5}, {**THRESHOLD, "recall": 0.8}),
    RecallAtPrecisionThreshold: Case(of_loss("binary"), {"precision": 0.5}, {**THRESHOLD, "precision": 0.8}),
    LogitAdjusted: Case(
        of_loss("classes"), {"frequencies": [5, 3, 1]}, {"frequencies": [1, 1, 2], "tau": 0.5, "from_logits": True}
    ),
    Mahalanobis: Case(of_loss("numbers"), {"dim": 8}, {"rank": 1}),
    ClassMahalanobis: Case(of_loss("embedded"), {"dim": 2, "num_classes": 3}, {"rank": 1, "strength": 0.5}),
    NCA: Case(of_loss("embedded"), {"dim": 2, "num_classes": 3}, {"rank": 1, "strength": 0.5}),
    LMNN: Case(of_loss("embedded"), {"dim": 2, "num_classes": 3}, {"rank": 1, "neighbors": 1, "push": 0.1}),
    QuantileThreshold: Case(of_loss("numbers"), {"level": 0.5, "loss": "mse"}, {"level": 0.7, "loss": "mae"}),
    DeepSVDD: Case(of_loss("embedded"), {}, {"nu": 0.5, "center": [2.0, 1.0]}),
    TaskUncertainty: Case(
        of_loss("numbers"),
        {"loss": "mse"},
        {"loss": "mae", "form": "classification", "log_variance_range": (-1.0, 1.0)},
    ),
    TemperatureScaled: Case(
        of_loss("classes"),
        {"loss": "sparse_categorical_crossentropy"},
        {
            "loss": keras.losses.SparseCategoricalCrossentropy(ignore_class=0),
            "temperature_range": (0.5, 2.0),
            "from_logits": True,
        },
    ),
    UncertaintyWeighted: Case(
        of_tasks,
        {"losses": {"a": "mse", "b": "mse"}},
        {"losses": {"a": "mse", "b": "mae"}, "classification": ["b"], "log_variance_range": (-1.0, 1.0)},
    ),
}

SEEDED = {"seed": 1}
TRANSFORMS = {
    WeightNoise: Case(
        of_transform,
        {"stddev": 0.1, **SEEDED},
        {
            "stddev": 0.2,
            "distribution": "uniform",
            "mode": "relative",
            "select": "all",
            "samples": 2,
            "antithetic": True,
            "per": "example",
            "start": 2,
            "stop": 2,
            "seed": 2,
        },
    ),
    VariationalWeightNoise: Case(
        of_transform,
        SEEDED,
        {
            "prior": 0.1,
            "kl_weight": 0.5,
            "temperature": 0.5,
            "warm_up": 3,
            "init": 0.1,
            "select": "kernels",
            "samples": 2,
            "antithetic": True,
            "per": "example",
            "seed": 2,
        },
    ),
    IVONNoise: Case(of_transform, SEEDED, {"examples": 1000, "select": "kernels", "samples": 2, "seed": 2}),
    SharpnessAware: Case(
        of_transform,
        {"rho": 0.1},
        {"rho": 0.2, "adaptive": True, "per_layer": True, "micro_batches": 2, "select": "kernels"},
    ),
    WeightPenalty: Case(of_transform, {"regularizer": "l2"}, {"regularizer": "l1", "select": "all"}),
    GradientNormPenalty: Case(
        of_transform, {"strength": 0.1}, {"strength": 0.2, "squared": False, "select": "kernels"}
    ),
    GradientVariancePenalty: Case(
        of_transform,
        {"strength": 0.1, **SEEDED},
        {
            "strength": 0.2,
            "estimator": "exact",
            "micro_batches": Where({"estimator": "micro_batch"}, 2),
            "select": "kernels",
            "seed": 2,
        },
    ),
    Fishr: Case(
        of_transform,
        {"strength": 0.1, "domains": positive_inputs, "num_domains": 2},
        {"strength": 0.2, "domains": lambda batch: batch.x[:, 1] > 0, "num_domains": 3, "select": "kernels"},
    ),
    MeasureGradient: Case(
        of_transform,
        {"every": 1, **SEEDED},
        {
            "every": 3,
            "estimator": "exact",
            "micro_batches": Where({"estimator": "micro_batch"}, 2),
            "select": "kernels",
            "seed": 2,
            "name": "measured",
        },
    ),
    MiniBatchVariance: Case(
        of_transform,
        SEEDED,
        {"estimator": "exact", "micro_batches": Where({"estimator": "micro_batch"}, 2), "seed": 2},
    ),
    ScaleMixturePrior: Case(of_prior, {}, {"wide": 2.0, "narrow": 0.1, "share": 0.2}),
}

OF_GROUPS = {
    "strength": 0.2,
    "groups": "input",
    "weight_by_size": False,
    "reduction": "mean",
}
REGULARIZERS = {
    TotalVariation: Case(
        of_regularizer,
        {"strength": 0.1, "axis": 0},
        {
            "strength": 0.2,
            "axis": 1,
            "order": 2,
            "isotropic": Where({"axis": (0, 1)}, True),
            "periodic": True,
            "gates": Where({"axis": 1}, 2),
            "shape": (2, 2),
            "reduction": "mean",
        },
    ),
    Range: Case(
        of_regularizer,
        {"strength": 0.1, "low": -0.1, "high": 0.1},
        {"strength": 0.2, "low": -0.2, "high": 0.2, "power": 1, "reduction": "mean"},
    ),
    GroupLasso: Case(of_regularizer, {"strength": 0.1}, OF_GROUPS),
    SparseGroupLasso: Case(of_regularizer, {"strength": 0.1, "l1_ratio": 0.5}, {**OF_GROUPS, "l1_ratio": 0.2}),
    JointGroupLasso: Case(
        of_regularizer,
        {"strength": 0.1, "groups": KERNEL},
        {
            "strength": 0.2,
            "groups": {"dense/kernel": np.arange(32).reshape(4, 8) // 8},
            "weight_by_size": False,
            "reduction": "mean",
        },
    ),
    L2SP: Case(
        of_regularizer,
        {"strength": 0.1, "anchor": np.zeros((4, 8))},
        {"strength": 0.2, "anchor": np.ones((4, 8)), "reduction": "mean"},
    ),
    ElasticWeightConsolidation: Case(
        of_regularizer,
        {"strength": 0.1, "fisher": np.ones((4, 8)), "anchor": np.zeros((4, 8))},
        {"strength": 0.2, "fisher": 2 * np.ones((4, 8)), "anchor": np.ones((4, 8)), "reduction": "mean"},
    ),
}


def adam():
    return keras.optimizers.Adam(0.01)


# Optimizers in arguments are made anew each time.
OPTIMIZERS = {
    IVON: Case(
        of_optimizer,
        {},
        {"learning_rate": 0.2, "hessian_init": 0.5, "beta_1": 0.5, "beta_2": 0.9, "weight_decay": 0.1},
    ),
    AdaBelief: Case(of_optimizer, {}, {"learning_rate": 0.01, "beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.1}),
    Proximal: Case(
        of_optimizer,
        {"optimizer": adam, "regularizer": Range(0.1, -0.1, 0.1)},
        {
            "optimizer": keras.optimizers.SGD,
            "regularizer": Range(0.2, -0.1, 0.1),
            "select": Where({"regularizer": Range(0.1, 1.0, 2.0)}, "all"),
            "metric": "learning_rate",
        },
    ),
    SVAG: Case(of_optimizer, {}, {"learning_rate": 0.2, "beta": 0.5, "variance": "mini_batch"}),
    MSVAG: Case(of_optimizer, {}, {"learning_rate": 0.2, "beta": 0.5, "variance": "mini_batch"}),
    SNRScaling: Case(
        of_optimizer, {"optimizer": adam}, {"optimizer": keras.optimizers.SGD, "beta": 0.5, "granularity": "tensor"}
    ),
}

CASES = LOSSES | TRANSFORMS | REGULARIZERS | OPTIMIZERS
