# %% [markdown]
# # The variance of the gradient, in the logs and in the loss
#
# A batch's gradient is the mean of its examples' gradients. The variance of these
# gradients tells how reliable the mean is.
# This script needs `minimand[jax]` and `scikit-learn`.

# %%
import minimand  # chooses JAX unless KERAS_BACKEND says otherwise
import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from minimand import gradients, transforms

x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(x / 16, y, train_size=300, random_state=0)


def fitted(*transforms):
    keras.utils.set_random_seed(0)
    hidden, output = keras.layers.Dense(64, "relu"), keras.layers.Dense(10)
    trainer = minimand.Trainer(keras.Sequential([keras.Input((64,)), hidden, output]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile("adam", loss, metrics=["accuracy"], transforms=transforms)
    history = trainer.fit(x, y, epochs=20, verbose=0).history
    return trainer, history


# %% [markdown]
# **In the logs.** The noise scale is the batch size at which noise makes up half of
# the gradient. The noise scale grows while the network learns, and is inf if a gradient
# cannot be told from its noise.

# %%
_, history = fitted(transforms.MeasureGradient(every=1, estimator="exact"))
for epoch in (0, 4, 9, 19):
    loss, scale = history["loss"][epoch], history["gradient_noise_scale"][epoch]
    print(f"epoch {epoch + 1}: loss {loss:.3f}, noise scale {scale:.0f}")

# %% [markdown]
# **In the loss.** A penalty on the variance prefers weights whose gradients agree
# between examples. The penalty does not help on these data. `minimand study` tells
# whether it helps on yours.

# %%
for strength in (0.0, 1e-2, 3e-2):
    trainer, _ = fitted(transforms.GradientVariancePenalty(strength, seed=0))
    variance = gradients.gradient_moments(trainer, x, y, estimator="exact").trace
    tested = trainer.evaluate(x_test, y_test, verbose=0, return_dict=True)
    print(f"strength {strength}: variance of the examples' gradients {variance:.2f},")
    print(f"  test accuracy {tested['accuracy']:.3f}")
