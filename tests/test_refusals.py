"""Arguments that make no sense are refused at once: the message names the argument, the rule and what was received."""

import contextlib
import inspect
import math
import sys

import keras
import numpy as np
import pytest

import minimand
from minimand import callbacks, gradients, losses, metrics, optimizers, parametrizations, regularizers, transforms
from minimand.gradients import GradientMoments
from tests.helpers import told
from tests.options import CASES, Where
from tests.test_public_names import OBJECTS

NOWHERE = object()
# A learning rate is Keras's to check, and any name of a weight is a regular expression; both are seen to below.
FREE = {("learning_rate", None), ("select", "no such"), ("name", None), ("groups", "no such"), ("domains", "no such")}


def made(part, option, value):
    """The part, with this value of an option beside what the option needs."""
    case = CASES[part]
    known = case.options[option]
    arguments = case.arguments | (known.others if isinstance(known, Where) else {}) | {option: value}
    if callable(arguments.get("optimizer")):
        arguments["optimizer"] = arguments["optimizer"]()
    return part(**arguments)


@contextlib.contextmanager
def refused(option):
    """Within it, an error names the option and says what was received, in Keras's words where Keras looks it up."""
    with pytest.raises((TypeError, ValueError), match=rf"(?s)\b{option}\b.*(Received|identifier): "):
        yield


OPTIONS = [
    (part, option, value)
    for part, case in CASES.items()
    for option in case.options
    for value in (math.nan, "no such", NOWHERE)
    if not FREE & {(option, None), (option, value)} or (option == "groups" and issubclass(part, losses.TrainableLoss))
]


@pytest.mark.parametrize(("part", "option", "value"), OPTIONS)
def test_no_option_takes_what_makes_no_sense(part, option, value):
    with refused(option):
        made(part, option, value)


# Closed ends of an option, which are taken, and values beyond, which are not.
POSITIVE = ([1e-9], [0.0, -1.0, math.inf])
NOT_NEGATIVE = ([0.0], [-1e-9, math.inf])
SHARE = ([1e-9, 1 - 1e-9], [0.0, 1.0])
UP_TO_ONE = ([1e-9, 1.0], [0.0, 1.1])
MOMENTUM = ([0.0, 1 - 1e-9], [-1e-9, 1.0])
KERNEL = {"dense/kernel": np.arange(32).reshape(4, 8) % 4}


def count_from(least):
    return ([least, np.int64(least)], [least - 1, least + 0.5, True])


# Each rule gives the ends of the options with these names.
RULES = [
    (POSITIVE, "df epsilon hessian_init narrow prior rho scale scale_min step temperature wide"),
    (POSITIVE, "false_negative_cost false_positive_cost"),
    (NOT_NEGATIVE, "kl_weight stddev strength tau weight_decay"),
    (SHARE, "beta beta_1 beta_2 level nu precision push recall share"),
    (UP_TO_ONE, "fraction q"),
    (MOMENTUM, "momentum"),
    (count_from(0), "start warm_up"),
    (count_from(1), "every gates levels neighbors order samples"),
    (count_from(2), "bins micro_batches num_domains"),
]
ENDS = {name: ends for ends, names in RULES for name in names.split()} | {
    "alpha": ([0.0, math.inf], [-1e-9]),
    "alpha_init": ([0.0011, 1.9989], [0.001, 1.999, 2.5]),
    "alpha_range": ([(0.0, 4.0)], [(-0.1, 1.0), (1.0, 1.0), (2.0, 1.0), (0.1, math.inf), (0.1, 1.0, 2.0)]),
    "anchor": ([np.zeros(3)], [[math.inf], "a"]),
    "axis": ([-2, (1, 2), np.int64(1), np.array(1)], [0.5, "1", [1.5]]),
    "center": ([[0.0, -1.0], np.ones(2)], [[math.inf], ["a"]]),
    "classification": ([[], ("a", "b"), {"a"}], [["c"], 3]),
    "df_init": ([0.11, 9e3], [0.1, 1e4, 0.0]),
    "df_range": ([(0.9, 1.1)], [(0.0, 2.0), (1.0, 2.0), (2.0, 0.5), (0.5, math.inf), (0.5,)]),
    "examples": ([1, 0.5], [0.0, -1]),
    "fisher": ([np.zeros(3)], [[-1e-9], [math.inf]]),
    "frequencies": ([[1, 1e-9], np.ones(3)], [[1.0], [1.0, 0.0], []]),
    "gamma": ([1e-9, 7.0], [0.0, -1.0]),
    "groups": (
        [("gates", 1), ["gates", [4]], ("axes", -1)],
        [("gates", 0), ("gates", (2, 2)), ("block", 2), "unit"],
    ),
    "high": ([-0.1, 1e9], [math.inf, -0.2]),
    "l1_ratio": ([0.0, 1.0], [-1e-9, 1.1]),
    "log_variance_range": ([(-1e-9, 1e-9)], [(0.0, 1.0), (-1.0, 0.0), (1.0, -1.0), (-math.inf, 1.0), (-1.0,)]),
    "losses": ([{"a": "mse"}], [{}, ["mse"]]),
    "low": ([-1e9, 0.1], [-math.inf, 0.2]),
    "power": ([1, 2], [0, 3, 1.5]),
    "rank": ([1], [0, 2]),
    "scale_init": ([2e-5], [1e-5]),
    "seed": ([0, None], [0.5]),
    "shape": ([(1, 4), [2, 2]], [(0, 4), (2.5,), 4]),
    "stop": ([1, np.int64(9)], [0, 0.5]),
    "temperature_range": ([(1e-9, 1 + 1e-9)], [(0.0, 2.0), (1.0, 2.0), (0.5, 1.0), (0.5, math.inf)]),
}
AT_MOST_TWO = ([2.0, -math.inf], [2.1, math.inf])
POSITIONS = ([[0, 1, 0], np.array([1, 0])], [[1, 2], [0, 2], [0.0, 1.0]])
# These parts have other ends than the rules give.
OWN_ENDS = {
    losses.AdaptiveRobust: {"groups": POSITIONS},
    losses.AdaptiveStudentT: {"groups": POSITIONS, "scale_init": ([1e-9], [0.0, -1.0])},
    losses.ClassMahalanobis: {"strength": POSITIVE},
    losses.GeneralRobust: {"alpha": ([-math.inf, math.inf, np.float32(0.5), np.array(0.5)], ["2", [0.5]])},
    losses.GroupDRO: {"tau": ([0.0, 99.9], [-0.1, 100.0])},
    losses.IRLS: {"alpha": AT_MOST_TWO},
    losses.LearnedClassWeights: {
        "strength": ([1e-9, np.float32(1.0), np.array(1.0), np.ones(3)], [0.0, [1.0, 2.0], [1.0, 2.0, 0.0]])
    },
    losses.Mahalanobis: {"rank": ([1, 7], [0, 8])},
    losses.NCA: {"strength": POSITIVE},
    losses.SelfPaced: {"share": UP_TO_ONE},
    losses.StandardizedIRLS: {"alpha": AT_MOST_TWO},
    optimizers.IVON: {"beta_1": MOMENTUM, "beta_2": MOMENTUM},
    regularizers.JointGroupLasso: {
        "groups": (
            [KERNEL, [KERNEL, KERNEL]],
            [[], {}, {"dense/kernel": [0.5]}, {"dense/kernel": [-1]}, 3, [KERNEL, 3]],
        )
    },
    regularizers.TotalVariation: {"axis": ([0, -1, (0, 1), "spatial"], [0.5, (), True])},
    transforms.SharpnessAware: {"micro_batches": count_from(1)},
    transforms.VariationalWeightNoise: {"init": POSITIVE, "temperature": NOT_NEGATIVE},
}
ENDS_OF = {part: ENDS | OWN_ENDS.get(part, {}) for part in CASES}
FLAT_ENDS = [
    (part, option, value, taken)
    for part, case in CASES.items()
    for option in case.options
    if option in ENDS_OF[part]
    for values, taken in zip(ENDS_OF[part][option], (True, False), strict=True)
    for value in values
]


@pytest.mark.parametrize(("part", "option", "value", "taken"), FLAT_ENDS)
def test_ranges_end_where_they_are_said_to(part, option, value, taken):
    if taken:
        made(part, option, value)
    else:
        with refused(option):
            made(part, option, value)


def test_every_number_has_its_ends():
    for part, case in CASES.items():
        for option in case.options.keys() - ENDS_OF[part].keys() - {"learning_rate"}:
            default = inspect.signature(part).parameters[option].default
            assert isinstance(default, bool) or not isinstance(default, (int, float)), (part, option)


def moments(*rows):
    return GradientMoments.of_examples([np.array(rows, "float64")])


TWO = moments([1.0], [3.0])
MODEL = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
ROWS = np.zeros((4, 2), "float32")
NOISE = [transforms.WeightNoise(0.1)]


def compiled(loss="mse", **arguments):
    trainer = minimand.Trainer(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    trainer.compile("sgd", loss, **arguments)
    return trainer


# Functions and methods: the call, and words of what it is told.
CALLS = {
    "noise_scale": [(lambda: gradients.noise_scale([]), ["`moments`", "moments=[]"])],
    "noise_scale_of_sizes": [
        (lambda: gradients.noise_scale_of_sizes(1.5, 1.1, 0, 32), ["`small_size`", ">= 1", "0"]),
        (lambda: gradients.noise_scale_of_sizes(1.5, 1.1, 8, 8), ["`large_size`", ">= 9", "8"]),
    ],
    "noise_scale_of_replicas": [
        (lambda: gradients.noise_scale_of_replicas([[np.ones(2)]], 8), ["`gradients`", "2", "1"]),
        (lambda: gradients.noise_scale_of_replicas([[np.ones(2)]] * 2, 0), ["`examples`", ">= 1", "0"]),
    ],
    "critical_batch_size": [
        (lambda: gradients.critical_batch_size([8.0], [100.0]), ["`batch_sizes`", "`steps`"]),
        (lambda: gradients.critical_batch_size([8.0, 16.0], [100.0]), ["`batch_sizes`", "`steps`"]),
        (lambda: gradients.critical_batch_size([8.0, 0.0], [100.0, 90.0]), ["`batch_sizes`", "`steps`"]),
        (lambda: gradients.critical_batch_size([8.0, 16.0], [100.0, -1.0]), ["`batch_sizes`", "`steps`"]),
    ],
    "training_cost": [
        (lambda: gradients.training_cost(0, 256), ["`batch_size`", "> 0"]),
        (lambda: gradients.training_cost(64, 0), ["`noise_scale`", "> 0"]),
    ],
    "cabs_batch_size": [
        (lambda: gradients.cabs_batch_size(TWO, 0.0, 0.1), ["`loss`", "> 0"]),
        (lambda: gradients.cabs_batch_size(TWO, 1.0, 0.0), ["`learning_rate`", "> 0"]),
    ],
    "norm_test": [(lambda: gradients.norm_test(TWO, 0.0), ["norm_test", "`theta`", "> 0"])],
    "inner_product_test": [
        (lambda: gradients.inner_product_test(TWO, -0.5), ["inner_product_test", "`theta`", "-0.5"])
    ],
    "evidence": [(lambda: gradients.evidence(moments([1.0], [1.0])), ["varies"])],
    "gradient_moments": [
        (lambda: gradients.gradient_moments(MODEL, ROWS, ROWS[:, :1]), ["compile"]),
        (lambda: gradients.gradient_moments("model", ROWS), ["`model`", "'str'"]),
        (lambda: gradients.gradient_moments(compiled(), ROWS, ROWS[:2, :1]), ["rows", "[4, 2]"]),
        (lambda: gradients.gradient_moments(compiled(), ROWS, ROWS[:, :1], estimator="all"), ["`estimator`", "'all'"]),
        (lambda: gradients.gradient_moments(compiled(), ROWS, ROWS[:, :1], samples=0), ["`samples`", ">= 1"]),
        (
            lambda: gradients.gradient_moments(compiled(), ROWS, ROWS[:, :1], micro_batches=1),
            ["`micro_batches`", ">= 2"],
        ),
        (lambda: gradients.gradient_moments(compiled(), ROWS, ROWS[:, :1], training=1), ["`training`", "1"]),
    ],
    "RunningMoments": [
        (lambda: gradients.RunningMoments.start([], beta=0.0), ["`beta`", "> 0", "0.0"]),
        (lambda: gradients.RunningMoments.start([], beta=1.0), ["`beta`", "< 1", "1.0"]),
    ],
    "general_robust": [
        (lambda: losses.general_robust(1.0, math.nan), ["`alpha`", "nan"]),
        (lambda: losses.general_robust(1.0, 1.0, 0.0), ["`scale`", "> 0"]),
    ],
    "robust_weights": [(lambda: losses.robust_weights(1.0, 1.0, -1.0), ["`scale`", "> 0", "-1.0"])],
    "robust_log_density": [(lambda: losses.robust_log_density(1.0, -0.1), ["`alpha`", ">= 0", "-0.1"])],
    "log_partition": [(lambda: losses.log_partition(-0.1), ["`alpha`", ">= 0", "-0.1"])],
    "sample_robust": [
        (lambda: losses.sample_robust((2,), -1.0), ["`alpha`", ">= 0"]),
        (lambda: losses.sample_robust((2,), 1.0, 0.0), ["`scale`", "> 0"]),
    ],
    "shape_of_power": [
        (lambda: losses.shape_of_power(1.1), ["`lam`", "<= 1", "1.1"]),
        (lambda: losses.shape_of_power(math.nan), ["`lam`", "nan"]),
    ],
    "ExpectedCalibrationError": [(lambda: metrics.ExpectedCalibrationError(0), ["`bins`", ">= 1"])],
    "expected_calibration_error": [
        (lambda: metrics.expected_calibration_error([0], [[1.0, 0.0]], bins=0), ["`bins`", ">= 1"]),
        (lambda: metrics.expected_calibration_error(np.zeros(0), np.zeros((0, 3))), ["at least one"]),
    ],
    "adaptive_calibration_error": [
        (lambda: metrics.adaptive_calibration_error([0], [[1.0, 0.0]], bins=0), ["`bins`", ">= 1"]),
        (lambda: metrics.adaptive_calibration_error(np.zeros(0), np.zeros((0, 3))), ["at least one"]),
    ],
    "sample_crps": [(lambda: metrics.sample_crps(0.0, [1.0]), ["`samples`", "2", "1"])],
    "summary": [
        (lambda: minimand.uncertainty.summary(np.ones((2, 3, 2)), "ranking"), ["`task`", "'regression'", "'ranking'"]),
        (lambda: minimand.uncertainty.summary(np.ones((2, 3, 2)), "classification"), ["softmax", "sums from 2"]),
        (lambda: minimand.uncertainty.summary(np.ones(3), "regression"), ["`samples`", "(3,)"]),
        (
            lambda: minimand.uncertainty.summary(np.ones((2, 3)), "regression", quantiles=[-0.1]),
            ["`quantiles`", ">= 0"],
        ),
        (lambda: minimand.uncertainty.summary(np.ones((2, 3)), "regression", quantiles=[1.5]), ["`quantiles`", "<= 1"]),
        (
            lambda: minimand.uncertainty.summary(np.ones((2, 3)), "regression", noise_stddev=-1.0),
            ["`noise_stddev`", ">= 0", "-1.0"],
        ),
    ],
    "Bounded": [
        (lambda: parametrizations.Bounded(1.0, 1.0), ["`high`", "> 1", "1.0"]),
        (lambda: parametrizations.Bounded(0.0, 1.0, log=True), ["`low`", "> 0", "0.0"]),
        (lambda: parametrizations.Bounded(0.0, 1.0).unconstrain(1.0), ["between 0 and 1", "1."]),
    ],
    "Positive": [
        (lambda: parametrizations.Positive().unconstrain(0.0), ["positive", "0."]),
        (lambda: parametrizations.Positive().unconstrain(math.inf), ["finite", "inf"]),
    ],
    "UnitInterval": [(lambda: parametrizations.UnitInterval().unconstrain(1.0), ["between 0 and 1", "1."])],
    "Simplex": [(lambda: parametrizations.Simplex().unconstrain([0.5, 0.6]), ["0.6"])],
    "PositiveDefinite": [
        (lambda: parametrizations.PositiveDefinite().unconstrain([[1.0, 2.0], [2.0, 1.0]]), ["positive definite"]),
        (lambda: parametrizations.PositiveDefinite().unconstrain([[1.0, 0.5], [0.0, 1.0]]), ["symmetric"]),
    ],
    "CholeskyFactor": [(lambda: parametrizations.CholeskyFactor().unconstrain([[1.0, 1.0], [0.0, 1.0]]), ["triang"])],
    "fisher_information": [
        (lambda: regularizers.fisher_information(MODEL, ROWS, ROWS[:2], "mse"), ["rows", "[4, 2]"]),
        (lambda: regularizers.fisher_information(MODEL, ROWS[:0], ROWS[:0], "mse"), ["at least 1"]),
        (lambda: regularizers.fisher_information(MODEL, 3.0, ROWS, "mse"), ["axis of rows"]),
        (lambda: regularizers.fisher_information(keras.Sequential(), ROWS, ROWS, "mse"), ["built"]),
    ],
    "compact": [(lambda: minimand.sparsity.compact(keras.Sequential()), ["compact", "`model`"])],
    "report": [(lambda: minimand.sparsity.report(keras.Sequential()), ["report", "`model`"])],
    "unit_groups": [
        (lambda: minimand.sparsity.unit_groups(MODEL, incoming=False), ["`incoming`", "`outgoing`"]),
        (lambda: minimand.sparsity.unit_groups(MODEL), ["unit"]),
    ],
    "Fishr": [
        (
            lambda: compiled(transforms=[transforms.Fishr(1.0, "site", 2)]).train_on_batch(ROWS, ROWS[:, :1]),
            ["`domains`", "'site'", "no names"],
        )
    ],
    "Sparsity": [
        (lambda: callbacks.Sparsity(select=3), ["`select`", "3"]),
        (lambda: callbacks.Sparsity(stop="yes"), ["`stop`", "'yes'"]),
    ],
    "Trainer": [
        (lambda: minimand.Trainer("model"), ["`model`", "'model'"]),
        (lambda: minimand.Trainer(minimand.Trainer(MODEL)), ["`model`"]),
        (lambda: minimand.Trainer(MODEL).prepare(ROWS, ROWS[:, :1]), ["compile"]),
        (lambda: compiled(loss_learning_rate=0.0), ["`loss_learning_rate`", "> 0"]),
        (lambda: compiled(loss_learning_rate=np.float32(-1.0)), ["`loss_learning_rate`", "> 0", "-1.0"]),
        (lambda: compiled(transforms=["noise"]), ["`transforms`", "'noise'"]),
        (lambda: compiled(transforms=None), ["`transforms`", "list", "None"]),
        # One that is read once would be empty the second time.
        (lambda: compiled(transforms=(t for t in NOISE)), ["`transforms`", "list", "generator"]),
        (lambda: compiled().sharpness(ROWS, ROWS[:, :1], samples=1), ["`samples`", ">= 2"]),
        (lambda: compiled().sharpness(ROWS, ROWS[:, :1], batch_size=0), ["`batch_size`", ">= 1"]),
        (lambda: compiled().sharpness(ROWS, ROWS[:, :1], stddev=0.0), ["`stddev`", "> 0"]),
        (lambda: compiled().predict_samples(ROWS), ["WeightNoise", "transforms=[]"]),
        (lambda: compiled(transforms=NOISE).predict_samples(ROWS, samples=0), ["`samples`", ">= 1"]),
        (lambda: compiled(transforms=NOISE).predict_samples(ROWS, batch_size=0), ["`batch_size`", ">= 1"]),
    ],
}


@pytest.mark.parametrize(
    "figure",
    [
        lambda: minimand.sparsity.report(MODEL).figure(),
        lambda: compiled(transforms=[transforms.MeasureGradient()]).fit(
            ROWS, ROWS[:, :1], verbose=0, callbacks=[callbacks.GradientReport()]
        ),
    ],
)
def test_pictures_name_the_extra_that_they_need(figure, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with told(ImportError, ["Matplotlib", "pip install 'minimand[study]'"]):
        figure()


@pytest.mark.parametrize(("call", "words"), [case for cases in CALLS.values() for case in cases])
def test_a_call_that_makes_no_sense_is_told(call, words):
    with told((TypeError, ValueError), words):
        call()


def test_every_function_that_refuses_is_here():
    """Parts are above; what `study` refuses is fuzzed."""
    refusing = {
        name.rpartition(".")[2]
        for name, part in OBJECTS.items()
        if part not in CASES and "Raises:\n" in part.__doc__ and not name.startswith("minimand.study")
    }
    # Base classes, and a callback that refuses in `fit`.
    assert refusing - {"Transform", "TrainableLoss", "WeightRegularizer", "GradientReport"} <= set(CALLS)
