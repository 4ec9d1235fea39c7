# %% [markdown]
# # Structure in the weights, with exact zeros
#
# A penalty in the loss makes weights small, and none of them zero. A proximal step makes whole groups zero, and then
# the network can be made smaller without changing its outputs. Needs `pip install 'minimand[jax]' scikit-learn`.

# %%
from minimand import optimizers, regularizers, sparsity  # chooses JAX, unless KERAS_BACKEND says otherwise
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


def fitted(model, wrap=lambda adam: adam):
    """The larger epsilon bounds Adam's steps, and with them the proximal ones."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(wrap(keras.optimizers.Adam(2e-3, epsilon=1e-3)), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=64, epochs=40, verbose=0)
    zeros = np.mean(np.concatenate([np.ravel(layer.kernel) == 0 for layer in model.layers]))
    print(f"accuracy {model.evaluate(x_test, y_test, verbose=0)[1]:.3f}, exact zeros {zeros:.0%}")
    return model


# %% [markdown]
# Plain, and with a group for each unit: its incoming and its outgoing weights. The strength rises, so that the loss
# speaks first.

# %%
fitted(network())
model = network()
rising = keras.optimizers.schedules.PolynomialDecay(0.0, STEPS // 4, 1e-3)
groups = regularizers.JointGroupLasso(rising, sparsity.unit_groups(model, outgoing=True))
fitted(model, lambda adam: optimizers.Proximal(adam, groups, select="all"))

# %%
print(sparsity.report(model))
smaller = sparsity.compact(model)
print(f"{model.count_params()} numbers before, {smaller.count_params()} after; largest difference of an output:")
print(np.abs(smaller.predict(x_test, verbose=0) - model.predict(x_test, verbose=0)).max())
