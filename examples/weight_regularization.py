# %% [markdown]
# # Structure in the weights, with exact zeros
#
# A penalty in the loss makes weights small, but not zero. A proximal step makes whole
# groups of weights zero. A network with such zeros can be made smaller without changing
# its outputs.
# This script needs `minimand[jax]` and `scikit-learn`.

# %%
import minimand  # chooses JAX unless KERAS_BACKEND says otherwise
import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(x / 16, y, random_state=0)
STEPS = 40 * len(x) // 64


def network():
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(40, "relu"), keras.layers.Dense(20, "relu")]
    return keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])


def fitted(model, optimizer):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=64, epochs=40, verbose=0)
    accuracy = model.evaluate(x_test, y_test, verbose=0)[1]
    kernels = np.concatenate([np.ravel(layer.kernel) for layer in model.layers])
    print(f"accuracy {accuracy:.3f}, exact zeros {np.mean(kernels == 0):.0%}")


def adam():
    """Return Adam with a large epsilon, which bounds all steps."""
    return keras.optimizers.Adam(2e-3, epsilon=1e-3)


# %% [markdown]
# The first network has no penalty. The second one has a group for each unit, with the
# unit's incoming and outgoing weights. The strength of its penalty rises from 0, so the
# network learns before units are removed.

# %%
fitted(network(), adam())
model = network()
strength = keras.optimizers.schedules.PolynomialDecay(0.0, STEPS // 4, 1e-3)
groups = minimand.sparsity.unit_groups(model, outgoing=True)
penalty = minimand.regularizers.JointGroupLasso(strength, groups)
fitted(model, minimand.optimizers.Proximal(adam(), penalty, select="all"))

# %%
print(minimand.sparsity.report(model))
smaller = minimand.sparsity.compact(model)
difference = smaller.predict(x_test, verbose=0) - model.predict(x_test, verbose=0)
print(f"{model.count_params()} weights before, {smaller.count_params()} after")
print(f"largest difference of an output: {np.abs(difference).max():.2g}")
