"""State, saving, exceptions and errors of the trainer."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import minimand
from minimand.transforms import GradientVariancePenalty, SharpnessAware, WeightNoise, WeightPenalty
from tests.helpers import (
    WITHOUT_TENSORFLOW,
    assert_same,
    data,
    dtype_policy,
    network,
    numpy,
    tail_loss,
    told,
    weights_of,
)

ALL = [
    lambda: WeightNoise(0.1, start=1, seed=1),
    lambda: WeightPenalty("l2"),
    lambda: SharpnessAware(0.05),
    lambda: GradientVariancePenalty(0.01, estimator="micro_batch", micro_batches=2),
]


def trainer_of(model, loss="mse", optimizer=None, **arguments):
    trainer = minimand.Trainer(model)
    trainer.compile(optimizer or keras.optimizers.Adam(0.01), loss, **arguments)
    return trainer


def fit(trainer, x, y, epochs=2):
    return trainer.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def test_loss_and_transform_variables_are_the_trainers(random):
    x, y = data(random)
    loss = minimand.losses.AdaptiveRobust()
    trainer = trainer_of(network(), loss, transforms=[WeightNoise(0.1)])
    fit(trainer, x, y)
    held = {id(v) for v in trainer.trainable_variables}
    assert {id(v) for v in loss.trainable_variables} <= held
    assert id(trainer.transforms[0].seed_generator.state) in {id(v) for v in trainer.non_trainable_variables}
    assert not np.allclose(loss.alpha, 1.0)
    assert not np.allclose(loss.scale, 1.0)


@pytest.mark.parametrize(
    ("make", "transforms"),
    [(minimand.losses.AdaptiveRobust, []), pytest.param(tail_loss, ALL, marks=pytest.mark.slow)],
    ids=["none", "all"],
)
def test_resumes_exactly_after_loading(make, transforms, random, tmp_path):
    # A smaller last batch would be another program.
    x, y = data(random, rows=64)
    trainer = trainer_of(
        network(kernel_regularizer="l2"), make(), transforms=[t() for t in transforms], loss_learning_rate=0.05
    )  # fmt: skip
    fit(trainer, x, y)
    trainer.save(tmp_path / "trainer.keras")
    expected = fit(trainer, x, y)
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    assert fit(loaded, x, y) == expected
    assert_same(weights_of(loaded), weights_of(trainer))
    assert_same(*([numpy(variable) for variable in each.loss.variables] for each in (loaded, trainer)))


def test_weights_file_restores_the_losss_variables(random, tmp_path):
    x, y = data(random)
    trainer = trainer_of(network(), minimand.losses.AdaptiveRobust())
    fit(trainer, x, y)
    trainer.save_weights(tmp_path / "w.weights.h5")
    other = trainer_of(network(), minimand.losses.AdaptiveRobust())
    other.prepare(x, y)
    other.load_weights(tmp_path / "w.weights.h5")
    assert_same([other.loss.alpha, other.loss.scale], [trainer.loss.alpha, trainer.loss.scale])
    assert_same(weights_of(other), weights_of(trainer))


def test_a_file_of_another_trainer_is_refused(random, tmp_path):
    x, y = data(random)
    trainer = trainer_of(network(), transforms=[WeightNoise(0.1)])
    fit(trainer, x, y, epochs=1)
    trainer.save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(ValueError, match="random seeds"):
        trainer_of(network()).load_weights(tmp_path / "w.weights.h5")


@pytest.mark.slow
def test_the_saved_model_needs_no_minimand(random, tmp_path):
    x, y = data(random)
    trainer = trainer_of(network(), minimand.losses.AdaptiveRobust(), transforms=[WeightNoise(0.1)])
    fit(trainer, x, y)
    trainer.model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "expected.npy", trainer.predict(x, verbose=0))
    script = (
        f"{WITHOUT_TENSORFLOW}sys.modules['minimand'] = None\n"
        "import numpy as np\n"
        f"folder = {str(tmp_path)!r}\n"
        "model = keras.saving.load_model(folder + '/model.keras')\n"
        "predicted = model.predict(np.load(folder + '/x.npy'), verbose=0)\n"
        "np.testing.assert_allclose(predicted, np.load(folder + '/expected.npy'), rtol=1e-5, atol=1e-6)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=300)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="only there Keras writes classes of a backend into files"
)
def test_another_backend_goes_on_from_a_trainers_file(tmp_path, random):
    # A smaller last batch would be another program.
    x, y = data(random, rows=64)
    optimizer = minimand.optimizers.SNRScaling(keras.optimizers.Adam(0.01))
    trainer = trainer_of(network(), minimand.losses.AdaptiveRobust(), optimizer, transforms=[WeightNoise(0.1)])
    fit(trainer, x, y)
    trainer.save(tmp_path / "trainer.keras")
    stored = [v.numpy() for v in (*trainer.loss.variables, *trainer.optimizer.variables)]
    np.savez(tmp_path / "stored.npz", *stored)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    script = (
        f"{WITHOUT_TENSORFLOW}folder = {str(tmp_path)!r}\n"
        "import minimand\n"
        "import numpy as np\n"
        "trainer = keras.models.load_model(folder + '/trainer.keras')\n"
        "stored = np.load(folder + '/stored.npz').values()\n"
        "for variable, value in zip((*trainer.loss.variables, *trainer.optimizer.variables), stored, strict=True):\n"
        "    np.testing.assert_array_equal(variable.numpy(), value)\n"
        "trainer.fit(**np.load(folder + '/data.npz'), verbose=0)\n"
    )
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=environment, timeout=300)


def test_an_exception_in_a_step_leaves_everything_as_it_was(random):
    class Fails(minimand.transforms.Transform):
        def apply(self, objective):
            def failing(weights, batch):
                objective([2.0 * w for w in weights], batch)
                raise ArithmeticError("in the middle of a step")

            return failing

    x, y = data(random)
    trainer = trainer_of(network(), transforms=[WeightNoise(0.5), Fails()])
    trainer.prepare(x, y)
    before = weights_of(trainer)
    with pytest.raises(ArithmeticError, match="in the middle"):
        fit(trainer, x, y)
    assert_same(weights_of(trainer), before)


@pytest.mark.parametrize("transforms", [[], pytest.param(ALL, marks=pytest.mark.slow)], ids=["none", "all"])
def test_statistics_and_seeds_advance_once_a_step(transforms, random):
    """The moving mean of the inputs to a first-layer BatchNormalization does not depend on weights or noise."""
    x, y = data(random, rows=64)
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.BatchNormalization(momentum=0.9, name="norm"),
            keras.layers.Dropout(0.3, seed=1, name="drop"),
            keras.layers.Dense(2),
        ]
    )
    counter = model.get_layer("drop").seed_generator.state
    start = counter.numpy()[1]
    trainer = trainer_of(model, transforms=[t() for t in transforms])
    trainer.fit(x, y, batch_size=16, epochs=1, shuffle=False, verbose=0)
    expected = np.zeros(5)
    for batch in np.split(x, 4):
        expected = 0.9 * expected + 0.1 * batch.mean(axis=0)
    np.testing.assert_allclose(model.get_layer("norm").moving_mean.numpy(), expected, rtol=1e-5, atol=1e-7)
    assert counter.numpy()[1] - start == 4


def test_noise_differs_each_step_and_repeats_with_the_seed(random):
    x, y = data(random)
    losses = []
    for _ in range(2):
        trainer = trainer_of(network(), transforms=[WeightNoise(0.5, seed=4)], optimizer=keras.optimizers.SGD(0.0))
        # The same batch again and again: only the noise can differ.
        losses.append([float(trainer.train_on_batch(x[:16], y[:16])) for _ in range(3)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3


def test_no_noise_is_no_transform(random):
    """Bit for bit, after 50 steps."""
    x, y = data(random, rows=160)
    results = []
    for transforms in ([], [WeightNoise(0.0)]):
        model = network()
        losses = fit(trainer_of(model, transforms=transforms), x, y, epochs=5)
        results.append([*weights_of(model), losses])
    assert_same(*results, rtol=0)


def test_a_layer_that_assigns_its_own_kernel_is_refused(random):
    x, y = data(random)
    normalised = keras.layers.SpectralNormalization(keras.layers.Dense(2))
    trainer = trainer_of(keras.Sequential([keras.Input((5,)), normalised]), transforms=[WeightNoise(0.1)])
    with told(NotImplementedError, ["SpectralNormalization", "kernel"]):
        fit(trainer, x, y)


def test_order_of_transforms_is_composition(random):
    """Noise first, then the penalty: R(w). The penalty first, then noise: R(w + e)."""
    x, y = data(random)

    def losses(transforms):
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, kernel_initializer="zeros")])
        trainer = trainer_of(model, transforms=transforms, optimizer=keras.optimizers.SGD(0.0))
        return float(numpy(trainer.value_and_gradient(x, y)[0]))

    noise, penalty = (lambda: WeightNoise(1.0, seed=9)), (lambda: WeightPenalty(keras.regularizers.L2(10.0)))
    noisy = losses([noise()])
    assert losses([noise(), penalty()]) == pytest.approx(noisy, rel=1e-6)
    # 10 ||e||^2 over 10 standard normals
    assert losses([penalty(), noise()]) > noisy + 10.0


def test_regularizers_of_the_model_see_the_clean_weights(random):
    x, y = data(random)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(3.0))])
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    plain.layers[0].kernel_regularizer = None
    plain.layers[0].kernel.regularizer = None
    values = [
        float(numpy(trainer_of(m, transforms=[WeightNoise(1.0, seed=2)]).value_and_gradient(x, y)[0]))
        for m in (model, plain)
    ]
    penalty = 3.0 * float(np.sum(model.get_weights()[0] ** 2))
    assert values[0] - values[1] == pytest.approx(penalty, rel=1e-4)


def test_weight_decay_spares_the_losss_variables(random):
    x, y = data(random)
    for decay in (0.0, 0.9):
        optimizer = keras.optimizers.AdamW(0.01, weight_decay=decay)
        trainer = trainer_of(network(), minimand.losses.AdaptiveRobust(), optimizer=optimizer)
        trainer.prepare(x, y)
        trainer.loss.latent_shape.assign([5.0, 5.0])
        trainer.model.trainable = False
        before = trainer.loss.latent_shape.numpy()
        gradients = [keras.ops.zeros(v.shape) for v in optimizer._trainable_variables]
        optimizer.apply(gradients, optimizer._trainable_variables)
        np.testing.assert_array_equal(trainer.loss.latent_shape.numpy(), before)


def test_the_users_own_exclusions_from_weight_decay_stay(random):
    x, y = data(random)
    model = network()
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[model.layers[0].kernel], var_names=["bias"])
    trainer = trainer_of(model, minimand.losses.AdaptiveRobust(), optimizer=optimizer)
    trainer.prepare(x, y)
    decayed = {v.path for v in trainer.trainable_variables if optimizer._use_weight_decay(v)}
    assert not any("bias" in path or "latent" in path for path in decayed)
    assert model.layers[0].kernel.path not in decayed
    assert model.layers[-1].kernel.path in decayed


def test_loss_learning_rate_is_the_losss_alone(random):
    x, y = data(random)
    loss = minimand.losses.AdaptiveRobust(init="reference")
    trainer = trainer_of(network(), loss, optimizer=keras.optimizers.SGD(0.0), loss_learning_rate=0.5)
    trainer.prepare(x, y)
    before = [v.numpy() for v in trainer.model.trainable_variables]
    fit(trainer, x, y, epochs=1)
    assert_same([v.numpy() for v in trainer.model.trainable_variables], before)
    assert not np.allclose(loss.scale, 1.0)
    # Keras's callbacks find the weights' learning rate.
    trainer.optimizer.learning_rate = 0.25
    assert float(numpy(keras.ops.convert_to_tensor(trainer.optimizer.learning_rate))) == 0.25


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_two_equal_rates_are_one(policy, random):
    """Momentum, clipping, averages, accumulated gradients and scaled losses are those of a single optimizer."""
    x, y = data(random, rows=64)
    found = []
    for rate in (None, 0.05):
        optimizer = keras.optimizers.SGD(
            0.05, momentum=0.9, clipvalue=0.02, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=2,
            loss_scale_factor=64.0,
        )  # fmt: skip
        with dtype_policy(policy):
            trainer = trainer_of(network(), minimand.losses.AdaptiveRobust(), optimizer, loss_learning_rate=rate)
        fit(trainer, x, y)
        found.append([numpy(variable) for variable in trainer.trainable_variables])
    assert_same(*found, rtol=1e-6, atol=1e-7)


def test_freezing_layers_and_recompiling_selects_anew(random):
    x, y = data(random)
    model = network()
    transforms = [WeightNoise(0.1), WeightPenalty("l2")]
    trainer = trainer_of(model, transforms=transforms)
    fit(trainer, x, y, epochs=1)
    model.layers[0].trainable = False
    frozen = model.layers[0].kernel.numpy()
    trainer.compile("sgd", "mse", transforms=transforms)
    fit(trainer, x, y, epochs=1)
    assert sum(transforms[0].mask) == 1
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), frozen)


@pytest.mark.slow
def test_recompiling_drops_the_former_loss(random):
    x, y = data(random)
    trainer = trainer_of(network(), minimand.losses.AdaptiveRobust(), transforms=[WeightNoise(0.1)])
    fit(trainer, x, y, epochs=1)
    weights = len(trainer.model.trainable_variables)
    assert len(trainer.trainable_variables) == weights + 2
    trainer.compile("sgd", "mse")
    assert len(trainer.trainable_variables) == weights
    trainer.compile("sgd", minimand.losses.AdaptiveRobust())
    fit(trainer, x, y, epochs=1)
    assert len(trainer.trainable_variables) == weights + 2


@pytest.mark.slow
def test_a_trainable_loss_for_each_output(random):
    x, y = data(random)
    inputs = keras.Input((5,))
    model = keras.Model(
        inputs, {"u": keras.layers.Dense(2, name="u")(inputs), "v": keras.layers.Dense(1, name="v")(inputs)}
    )
    losses = {"u": minimand.losses.AdaptiveRobust(name="first"), "v": minimand.losses.AdaptiveRobust(name="second")}
    trainer = trainer_of(model, losses, transforms=[WeightNoise(0.01)])
    trainer.fit(x, {"u": y, "v": y[:, :1]}, epochs=1, verbose=0)
    assert losses["u"].alpha.shape == (2,)
    assert losses["v"].alpha.shape == (1,)
    learned = {id(v) for loss in losses.values() for v in loss.trainable_variables}
    assert len(learned) == 4
    assert learned <= {id(v) for v in trainer.trainable_variables}


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="elsewhere Keras's layers compute in float32")
def test_value_and_gradient_equals_finite_differences(random, float64):
    x = random.normal(size=(6, 2))
    y = random.normal(size=(6, 1))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "tanh", kernel_regularizer="l2")])
    transforms = [
        GradientVariancePenalty(0.1, estimator="micro_batch", micro_batches=3),
        WeightPenalty(minimand.regularizers.GroupLasso(0.2)),
    ]
    # Keras's averaging reductions compute in float32.
    loss = minimand.losses.AdaptiveRobust(init="reference", reduction="sum")
    trainer = trainer_of(model, loss, transforms=transforms)
    _, gradients = trainer.value_and_gradient(x, y)
    for variable, gradient in zip(trainer.trainable_variables, gradients, strict=True):
        value = variable.numpy()
        for index in np.ndindex(value.shape):
            ends = []
            for sign in (1, -1):
                shifted = value.copy()
                shifted[index] += sign * 1e-6
                variable.assign(shifted)
                ends.append(float(numpy(trainer.value_and_gradient(x, y)[0])))
            variable.assign(value)
            assert numpy(gradient)[index] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_hand_written_loop_equals_fit(random):
    x, y = data(random, rows=64)
    expected = network()
    fit(
        trainer_of(expected, transforms=[WeightNoise(0.1, seed=1)], optimizer=keras.optimizers.SGD(0.1)), x, y, epochs=1
    )
    model = network()
    trainer = trainer_of(model, transforms=[WeightNoise(0.1, seed=1)], optimizer=keras.optimizers.SGD(0.1))
    for rows in np.split(np.arange(64), 4):
        _, gradients = trainer.value_and_gradient(x[rows], y[rows])
        trainer.optimizer.apply(gradients, trainer.trainable_variables)
    assert_same(weights_of(model), weights_of(expected), rtol=1e-4, atol=1e-6)


class WithTrainStep(keras.Model):
    def train_step(self, *args):
        return {}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: minimand.Trainer("model"), TypeError, ["`model`", "keras.Model", "'model'"]),
        (lambda: minimand.Trainer(WithTrainStep()), ValueError, ["train_step", "WithTrainStep"]),
        (lambda: trainer_of(network(), transforms=WeightNoise(0.1)), TypeError, ["`transforms`", "list"]),
        (lambda: trainer_of(network(), transforms=["noise"]), TypeError, ["`transforms`", "'noise'"]),
        (lambda: trainer_of(network(), transforms=[WeightNoise(0.1)] * 2), ValueError, ["different names", "name="]),
        (lambda: trainer_of(network(), loss_learning_rate=1.0), ValueError, ["`loss_learning_rate`", "TrainableLoss"]),
        (lambda: trainer_of(network(), loss_learning_rate=-1.0), ValueError, ["`loss_learning_rate`", "> 0", "-1.0"]),
        (
            lambda: trainer_of(
                network(), minimand.losses.AdaptiveRobust(), loss_learning_rate=0.1, optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
            ),
            ValueError,
            ["`loss_learning_rate`", "LossScaleOptimizer"],
        ),
        (lambda: trainer_of(network(), transforms=[WeightNoise(0.1, select="nothing")]), ValueError, ["`select`", "'nothing'"]),
        (lambda: minimand.Trainer(network()).prepare(np.ones((2, 5))), ValueError, ["compile"]),
    ],
)  # fmt: skip
def test_bad_input_is_told(make, error, words):
    with told(error, words):
        make()


def test_an_empty_batch_is_refused(random):
    x, y = data(random)
    trainer = trainer_of(network())
    for call in (trainer.value_and_gradient, trainer.sharpness):
        with told(ValueError, ["Trainer", "at least"]):
            call(x[:0], y[:0])
    with told(ValueError, ["Trainer", "at least"]):
        trainer_of(network(), transforms=[WeightNoise(0.1)]).predict_samples(x[:0])


def test_a_trainable_loss_in_stock_compile_raises(random):
    x, y = data(random)
    model = network()
    model.compile("sgd", minimand.losses.AdaptiveRobust())
    with pytest.raises(RuntimeError, match=r"minimand\.Trainer"):
        model.fit(x, y, verbose=0)
