"""Each option of each part with another value than its own, from the signature of the part and the option's name."""

import inspect
from typing import Any, NamedTuple

import keras
import numpy as np

from minimand import losses, optimizers, regularizers, transforms

BASES = {
    losses.Parameter,
    losses.TrainableLoss,
    regularizers.WeightRegularizer,
    transforms.Batch,
    transforms.Transform,
}
LOSSES, TRANSFORMS, REGULARIZERS, OPTIMIZERS = (
    [part for name in package.__all__ if inspect.isclass(part := getattr(package, name)) and part not in BASES]
    for package in (losses, transforms, regularizers, optimizers)
)


class Case(NamedTuple):
    """Arguments that make a part and, for each of its options, another value or a `Where`."""

    arguments: dict[str, Any]
    options: dict[str, Any]


class Where(NamedTuple):
    """An option that means something beside other arguments only."""

    others: dict[str, Any]
    value: Any


def adam():
    return keras.optimizers.Adam(0.01)


def positive_inputs(batch):
    """The number of positive inputs among the first two is 0, 1 or 2."""
    return keras.ops.sum(keras.ops.cast(batch.x[:, :2] > 0, "int32"), axis=1)


# Values of an option. A part that must have the option gets the first value. The other value is the first that differs
# from what the part has. A boolean needs no entry. Optimizers are made anew each time.
VALUES = {
    # These options belong to losses.
    "loss": ["mse", "mae"], "alpha": [0.5], "alpha_init": [1.0], "alpha_range": [(0.001, 1.5)], "axis": [1],
    "bins": [5], "center": [[2.0, 1.0]], "classification": [["b"]], "color_space": ["rgb"],
    "data_format": ["channels_first"], "df": [3.0], "df_init": [2.0], "df_range": [(0.5, 9.0)], "dim": [2],
    "false_negative_cost": [5.0], "false_positive_cost": [2.0], "form": ["classification"], "fraction": [0.5, 0.3],
    "frequencies": [[5, 3, 1], [1, 1, 2]], "from_logits": [True], "gamma": [1.0], "init": ["reference"],
    "level": [0.5, 0.7], "levels": [Where({"data_format": "channels_first", "color_space": "yuv"}, 1)],
    "log_variance_range": [(-1.0, 1.0)], "losses": [{"a": "mse", "b": "mse"}, {"a": "mse", "b": "mae"}],
    "momentum": [0.1], "neighbors": [1], "nu": [0.5], "num_classes": [3], "parameters": ["band"],
    "precision": [0.5, 0.8], "push": [0.1], "q": [0.5], "rank": [1], "recall": [0.5, 0.8],
    "representation": ["haar"], "scale": [0.7], "scale_init": [2.0], "scale_min": [0.5], "share": [0.3],
    "step": [0.5], "tau": [0.5], "temperature": [2.0], "temperature_range": [(0.5, 2.0)],
    # These options belong to transforms.
    "distribution": ["uniform"], "domains": [positive_inputs, lambda batch: batch.x[:, 1] > 0],
    "estimator": ["exact"], "every": [3], "examples": [1000], "kl_weight": [0.5],
    "micro_batches": [Where({"estimator": "micro_batch"}, 2)], "mode": ["relative"], "narrow": [0.1],
    "num_domains": [2, 3], "per": ["example"], "prior": [0.1], "regularizer": ["l2", "l1"], "rho": [0.1, 0.2],
    "samples": [2], "seed": [1, 2], "select": ["kernels", "all"], "start": [2], "stddev": [0.1, 0.2], "stop": [2],
    "strength": [0.1, 0.2], "warm_up": [3], "wide": [2.0],
    # These options belong to regularizers of a kernel (4, 8).
    "anchor": [np.zeros((4, 8)), np.ones((4, 8))], "fisher": [np.ones((4, 8)), 2 * np.ones((4, 8))],
    "gates": [Where({"axis": 1}, 2)], "groups": ["input"], "high": [0.1, 0.2],
    "isotropic": [Where({"axis": (0, 1)}, True)], "l1_ratio": [0.5, 0.2], "low": [-0.1, -0.2], "order": [2],
    "power": [1], "reduction": ["mean"], "shape": [(2, 2)],
    # These options belong to optimizers.
    "beta": [0.5], "beta_1": [0.5], "beta_2": [0.9], "epsilon": [0.1], "granularity": ["tensor"],
    "hessian_init": [0.5], "learning_rate": [0.2], "metric": ["learning_rate"],
    "optimizer": [adam, keras.optimizers.SGD], "variance": ["mini_batch"], "weight_decay": [0.1],
}  # fmt: skip
# A part gets these arguments beside the first values by name, or instead of them.
GIVEN = {
    losses.AdaptiveImage: {"data_format": "channels_last"},
    losses.Mahalanobis: {"dim": 8},
    losses.QuantileThreshold: {"loss": "mse"},
    losses.TemperatureScaled: {"loss": "sparse_categorical_crossentropy"},
    optimizers.Proximal: {"regularizer": regularizers.Range(0.1, -0.1, 0.1)},
    regularizers.JointGroupLasso: {"groups": {"dense/kernel": np.arange(32).reshape(4, 8) % 4}},
    regularizers.TotalVariation: {"axis": 0},
    transforms.MeasureGradient: {"every": 1},
}
# Other values where those by name do not fit.
FOCAL = losses.Focal("sparse_categorical_crossentropy")
OTHERS = {
    losses.AdaptiveRobust: {"groups": [0, 0]},
    losses.AdaptiveStudentT: {"groups": [0, 0]},
    losses.CostThreshold: {"loss": "binary_crossentropy"},
    losses.F1Threshold: {"loss": "binary_crossentropy"},
    losses.GroupDRO: {"loss": FOCAL},
    losses.LearnedClassWeights: {"loss": FOCAL},
    losses.PrecisionAtRecallThreshold: {"loss": "binary_crossentropy"},
    losses.RecallAtPrecisionThreshold: {"loss": "binary_crossentropy"},
    losses.TemperatureScaled: {"loss": keras.losses.SparseCategoricalCrossentropy(ignore_class=0)},
    optimizers.Proximal: {
        "regularizer": regularizers.Range(0.2, -0.1, 0.1),
        "select": Where({"regularizer": regularizers.Range(0.1, 1.0, 2.0)}, "all"),
    },
    regularizers.JointGroupLasso: {"groups": {"dense/kernel": np.arange(32).reshape(4, 8) // 8}},
    transforms.GradientVariancePenalty: {"estimator": "probe", "seed": Where({"estimator": "probe"}, 2)},
    transforms.MeasureGradient: {"name": "measured"},
    transforms.MiniBatchVariance: {"estimator": "probe", "seed": Where({"estimator": "probe"}, 2)},
    transforms.SharpnessAware: {"micro_batches": 2},
    transforms.VariationalWeightNoise: {"init": 0.1},
}
# These have to be what the data are, or are tested elsewhere.
LEFT_OUT = {"num_classes", "dim", "name", "kwargs"}


def case_of(part):
    """The case of a part; a `KeyError` names an option that has no entry above."""
    parameters = inspect.signature(part).parameters
    needed = {n for n, p in parameters.items() if (p.default is p.empty and n != "kwargs") or n == "seed"}
    given = {name: VALUES[name][0] for name in needed - GIVEN.get(part, {}).keys()} | GIVEN.get(part, {})

    def other(name):
        present = given.get(name, parameters[name].default)
        values = VALUES.get(name, [not present]) if isinstance(present, bool) else VALUES[name]
        return next(value for value in values if not np.array_equal(value, present))

    own = OTHERS.get(part, {})
    return Case(given, {name: other(name) for name in parameters if name not in LEFT_OUT | own.keys()} | own)


CASES = {part: case_of(part) for part in [*LOSSES, *TRANSFORMS, *REGULARIZERS, *OPTIMIZERS]}
