# %% [markdown]
# # Noise on the weights: how sure is a prediction?
#
# The size of each weight's noise is learned, against its divergence from a prior (variational inference). Predictions
# are drawn from it afterwards. Needs `pip install 'minimand[jax]' scikit-learn`.

# %%
import minimand  # chooses JAX, unless KERAS_BACKEND says otherwise
import keras
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import scale

x, y = load_diabetes(return_X_y=True)
x, x_test, y, y_test = train_test_split(scale(x), scale(y)[:, None], random_state=0)

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(50, "relu"), keras.layers.Dense(1)])
trainer = minimand.Trainer(model)
noise = minimand.transforms.VariationalWeightNoise(per="example", temperature=0.3, warm_up=50, seed=0)
likelihood = minimand.losses.TaskUncertainty("mean_squared_error")  # learns the spread of the targets, too
trainer.compile(keras.optimizers.Adam(0.01), likelihood, transforms=[noise])
trainer.fit(x, y, epochs=40, verbose=0)
print("clean weights, mean |error|:", np.abs(model.predict(x_test, verbose=0) - y_test).mean().round(3))

# %% [markdown]
# Each sample is one function: one draw of the weights for all rows.

# %%
samples = trainer.predict_samples(x_test, 64, seed=0)  # (64, rows, 1)
spread = np.exp(trainer.loss.log_variance / 2)  # of the targets
found = minimand.predict.summary(samples, "regression", noise_stddev=spread, quantiles=(0.05, 0.95))
low, high = found["quantiles"]
print("share of test targets in 90 % intervals:", np.mean((low < y_test) & (y_test < high)).round(3))
print(
    "of the variance, the model's part:",
    (found["epistemic"] / (found["epistemic"] + found["aleatoric"])).mean().round(3),
)

# %% [markdown]
# Weights whose noise is larger than they are do not matter.

# %%
for path, ratio in noise.signal_to_noise().items():
    print(f"{path}: {np.mean(np.asarray(ratio) < 1):.0%} below their noise")
