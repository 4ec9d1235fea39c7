# %% [markdown]
# # Wrong targets: the adaptive robust loss
#
# A fifth of the training targets is wrong, and nobody knows which. The loss learns how
# robust it has to be (Barron, CVPR 2019).
# This script needs `minimand[jax]` and `scikit-learn`.

# %%
import minimand  # chooses JAX unless KERAS_BACKEND says otherwise
import keras
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import scale

x, y = load_diabetes(return_X_y=True)
x, y = scale(x), scale(y)[:, None]
x, x_test, y, y_test = train_test_split(x, y, random_state=0)
random = np.random.default_rng(0)
wrong = random.random(y.shape) < 0.2
corrupted = np.where(wrong, random.uniform(5, 15, y.shape), y)


def fitted(loss, targets):
    keras.utils.set_random_seed(0)
    hidden, output = keras.layers.Dense(16, "relu"), keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((10,)), hidden, output])
    trainer = minimand.Trainer(model)
    trainer.compile(keras.optimizers.Adam(3e-3), loss)
    trainer.fit(x, targets, epochs=40, verbose=0)
    return trainer, np.abs(model.predict(x_test, verbose=0) - y_test).mean()


# %%
print("mean |error| on clean test targets, after training with")
print(f"squared error, all targets right: {fitted('mse', y)[1]:.3f}")
print(f"squared error, a fifth wrong: {fitted('mse', corrupted)[1]:.3f}")
print(f"Huber, a fifth wrong: {fitted('huber', corrupted)[1]:.3f}")
trainer, error = fitted(minimand.losses.AdaptiveRobust(), corrupted)
print(f"AdaptiveRobust, a fifth wrong: {error:.3f}")
alpha, c = trainer.loss.alpha, trainer.loss.scale
print(f"AdaptiveRobust learned the shape {alpha[0]:.2f} and the scale {c[0]:.2f}.")

# %% [markdown]
# The learned loss gives each target a weight in the gradient. A small weight marks a
# target that is probably wrong.

# %%
residuals = corrupted - trainer.model.predict(x, verbose=0)
weights = np.asarray(minimand.losses.robust_weights(residuals, alpha, c))
weights = weights / weights.max()
print(f"mean weight of right targets: {weights[~wrong].mean():.2f}")
print(f"mean weight of wrong targets: {weights[wrong].mean():.3f}")
