# %% [markdown]
# # Noise on the weights: the uncertainty of a prediction
#
# Variational inference learns the size of each weight's noise. A divergence from a
# prior keeps the noise from vanishing. Predictions are drawn from the noise afterwards.
# This script needs `minimand[jax]` and `scikit-learn`.

# %%
import minimand  # chooses JAX unless KERAS_BACKEND says otherwise
import keras
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import scale

from minimand import losses, transforms, uncertainty

x, y = load_diabetes(return_X_y=True)
x, y = scale(x), scale(y)[:, None]
x, x_test, y, y_test = train_test_split(x, y, random_state=0)

keras.utils.set_random_seed(0)
hidden, output = keras.layers.Dense(50, "relu"), keras.layers.Dense(1)
model = keras.Sequential([keras.Input((10,)), hidden, output])
trainer = minimand.Trainer(model)
options = {"per": "example", "temperature": 0.3, "warm_up": 50}
noise = transforms.VariationalWeightNoise(**options, seed=0)
loss = losses.TaskUncertainty("mean_squared_error")  # learns the targets' noise, too
trainer.compile(keras.optimizers.Adam(0.01), loss, transforms=[noise])
trainer.fit(x, y, epochs=40, verbose=0)
error = np.abs(model.predict(x_test, verbose=0) - y_test).mean()
print(f"mean |error| with clean weights: {error:.3f}")

# %% [markdown]
# Each sample is one function: one draw of the weights predicts all rows.

# %%
samples = trainer.predict_samples(x_test, 64, seed=0)  # (64, rows, 1)
stddev = np.exp(loss.log_variance / 2)  # of the targets' noise
ends = (0.05, 0.95)
found = uncertainty.summary(samples, "regression", quantiles=ends, noise_stddev=stddev)
low, high = found["quantiles"]
inside = np.mean((low < y_test) & (y_test < high))
print(f"share of test targets in 90 % intervals: {inside:.3f}")
share = found["epistemic"] / (found["epistemic"] + found["aleatoric"])
print(f"mean share of the model in the variance: {share.mean():.3f}")

# %% [markdown]
# A weight whose noise is larger than the weight itself hardly matters.

# %%
for path, ratio in noise.signal_to_noise().items():
    print(f"{path}: {np.mean(np.asarray(ratio) < 1):.0%} are below their noise")
