"""What several test modules need."""

import contextlib
from functools import partial

import keras
import numpy as np
import pytest
from scipy import optimize

import kriterion
from kriterion import backend

TRANSFORMS = {
    "weight_noise": lambda: kriterion.transforms.WeightNoise(0.1, mode="relative", seed=3),
    "scheduled_noise": lambda: kriterion.transforms.WeightNoise(
        keras.optimizers.schedules.ExponentialDecay(0.2, 10, 0.9), draws="table", antithetic=True, stop=12, seed=3
    ),
    "example_noise": lambda: kriterion.transforms.WeightNoise(0.1, select="all", per="example", seed=3),
    "learned_noise": lambda: kriterion.transforms.LearnedWeightNoise(
        prior=kriterion.transforms.ScaleMixturePrior(1.0, 0.1), init=0.1, warm_up=3, antithetic=True, seed=3
    ),
    "sharpness_aware": lambda: kriterion.transforms.SharpnessAware(0.1),
    "weight_penalty": lambda: kriterion.transforms.WeightPenalty(keras.regularizers.L2(0.01)),
    "gradient_variance_penalty": lambda: kriterion.transforms.GradientVariancePenalty(
        0.01, estimator="micro_batch", micro_batches=3
    ),
    "gradient_norm_penalty": lambda: kriterion.transforms.GradientNormPenalty(0.01),
}


HALF_SQUARED = kriterion.losses.GeneralRobust(alpha=2.0)
LOSSES = {
    "general_robust": lambda **kwargs: kriterion.losses.GeneralRobust(alpha=0.5, scale=0.7, **kwargs),
    "adaptive_robust": lambda **kwargs: kriterion.losses.AdaptiveRobust(scale_init=0.7, **kwargs),
    "adaptive_student_t": lambda **kwargs: kriterion.losses.AdaptiveStudentT(df_init=3.0, scale_init=0.7, **kwargs),
    "confidence_weighted": lambda **kwargs: kriterion.losses.ConfidenceWeighted(
        HALF_SQUARED, differentiate=True, **kwargs
    ),
    "error_weighted": lambda **kwargs: kriterion.losses.ErrorWeighted(HALF_SQUARED, differentiate=True, **kwargs),
    "batch_adaptive": lambda **kwargs: kriterion.losses.BatchAdaptive(HALF_SQUARED, **kwargs),
    "cvar": lambda **kwargs: kriterion.losses.CVaR(HALF_SQUARED, 0.3, **kwargs),
    "quantile_threshold": lambda **kwargs: kriterion.losses.QuantileThreshold(0.7, HALF_SQUARED, **kwargs),
    "task_uncertainty": lambda **kwargs: kriterion.losses.TaskUncertainty(HALF_SQUARED, **kwargs),
}
# For class indices (batch, ...) and probabilities or embeddings (batch, ..., 3).
SPARSE = keras.losses.SparseCategoricalCrossentropy()
CLASSIFIERS = {
    "barrier": lambda **kwargs: kriterion.losses.LearnedClassWeights(3, "barrier", SPARSE, **kwargs),
    "uncertainty": lambda **kwargs: kriterion.losses.LearnedClassWeights(3, "uncertainty", SPARSE, **kwargs),
    "adversarial": lambda **kwargs: kriterion.losses.LearnedClassWeights(3, "adversarial", SPARSE, **kwargs),
    "logit_adjusted": lambda **kwargs: kriterion.losses.LogitAdjusted([5, 3, 1], **kwargs),
    "temperature_scaled": lambda **kwargs: kriterion.losses.TemperatureScaled(SPARSE, **kwargs),
    "class_gaussian": lambda **kwargs: kriterion.losses.Mahalanobis(
        3, form="class_gaussian", num_classes=3, strength=0.3, **kwargs
    ),
}


def examples(name, random, *shape):
    """Targets and predictions of this shape for a loss in one of the lists."""
    p = random.normal(size=shape).astype("float32")
    if name in CLASSIFIERS:
        p = np.exp(p) / np.exp(p).sum(axis=-1, keepdims=True)
        return random.integers(shape[-1], size=shape[:-1]).astype("float32"), p
    return random.normal(size=shape).astype("float32"), p


def settled(name, **arguments):
    """A loss of one of the lists for predictions (batch, ..., 3), after a batch of training, now in evaluation."""
    loss = {**LOSSES, **CLASSIFIERS}[name](**arguments)
    if isinstance(loss, kriterion.losses.TrainableLoss):
        loss.build_once((None, 3), (None, 3))
        loss(*examples(name, np.random.default_rng(5), 20, 3))
        loss.training = False
    return loss


REGULARIZERS = {
    "total_variation": lambda strength=0.3: kriterion.regularizers.TotalVariation(strength, axis=0),
    "range": lambda strength=0.3: kriterion.regularizers.Range(strength, -0.2, 0.4),
    "group_sparsity_output": lambda strength=0.3: kriterion.regularizers.GroupSparsity(strength),
    "group_sparsity_input": lambda strength=0.3: kriterion.regularizers.GroupSparsity(strength, groups="input"),
    "sparse_group_sparsity": lambda strength=0.3: kriterion.regularizers.SparseGroupSparsity(strength, 0.4),
}
OPTIMIZERS = {
    "variance_scaling": lambda: kriterion.optimizers.VarianceScaling(keras.optimizers.AdamW(0.01)),
}


def numpy(value):
    return (
        value.numpy()
        if isinstance(value, keras.Variable)
        else keras.ops.convert_to_numpy(keras.ops.stop_gradient(value))
    )


def gradient(function, *values):
    """Gradients of a scalar function of arrays, as NumPy arrays."""
    tensors = [keras.ops.convert_to_tensor(value) for value in values]
    _, gradients = backend.value_and_gradient(lambda t: (function(*t), None), tensors)
    return [numpy(g) for g in gradients]


def minimise_variables(loss, y_true, y_pred, sample_weight=None, smooth=True):
    """Set the loss's variables to where its value is least, at fixed predictions; the least value.

    By BFGS or, where the loss is a convex function with corners of one variable, by golden sections.
    """
    variables = loss.trainable_variables
    shapes = [variable.shape for variable in variables]
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])

    def parts(flat):
        return [np.reshape(flat[a:b], s) for a, b, s in zip(ends[:-1], ends[1:], shapes, strict=True)]

    def objective(values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            # Keras's averages are in float32 on PyTorch.
            each = loss(y_true, y_pred, sample_weight=sample_weight)
            return keras.ops.sum(each) / len(y_true), None

    differentiated = partial(backend.value_and_gradient, objective)
    if backend.name == "jax":
        import jax

        differentiated = jax.jit(differentiated)

    def value_and_gradient(flat):
        values = [keras.ops.convert_to_tensor(part, v.dtype) for part, v in zip(parts(flat), variables, strict=True)]
        (value, _), gradients = differentiated(values)
        return float(numpy(value)), np.concatenate([numpy(g).ravel() for g in gradients]).astype("float64")

    start = np.concatenate([variable.numpy().ravel() for variable in variables]).astype("float64")
    loss.reduction, reduction = "none", loss.reduction
    if smooth:
        found = optimize.minimize(value_and_gradient, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    else:
        found = optimize.minimize_scalar(
            lambda v: value_and_gradient(np.array([v]))[0], bounds=(-50, 50), method="bounded", options={"xatol": 1e-8}
        )
    for variable, part in zip(variables, parts(np.atleast_1d(found.x)), strict=True):
        variable.assign(part)
    loss.reduction = reduction
    return found.fun


def finite_difference(function, value, step=1e-6):
    """Central differences of a scalar function of one float64 array."""
    value = np.array(value, dtype="float64")
    result = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        shift = np.zeros_like(value)
        shift[index] = step
        result[index] = (float(function(value + shift)) - float(function(value - shift))) / (2 * step)
    return result


def data(random, rows=70, features=5, outputs=2):
    x = random.normal(size=(rows, features)).astype("float32")
    y = (x @ random.normal(size=(features, outputs))).astype("float32")
    return x, y


def network(features=5, outputs=2, **dense):
    """Dense, batch normalisation and dropout, from fixed seeds (unseeded, Keras's dropout on PyTorch has no state)."""
    keras.utils.set_random_seed(11)
    return keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dense(8, activation="tanh", **dense),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2, seed=5),
            keras.layers.Dense(outputs),
        ]
    )


def weights_of(model):
    return [numpy(variable) for variable in model.variables]


def assert_same(left, right, **tolerance):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@contextlib.contextmanager
def told(error, words):
    """Within it an error is raised, and its message has all these words."""
    with pytest.raises(error) as raised:
        yield raised
    for word in words:
        assert word in str(raised.value)
