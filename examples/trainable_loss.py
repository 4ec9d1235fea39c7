# %% [markdown]
# # A loss with variables of its own
#
# Keras neither trains nor saves a variable that lives on a loss. `minimand.Trainer`
# does both.
# This script needs `minimand[jax]` and `scikit-learn`.

# %%
import minimand  # chooses JAX unless KERAS_BACKEND says otherwise
import keras
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale

x, y = load_diabetes(return_X_y=True)
x, y = scale(x), scale(y)[:, None]


# %% [markdown]
# The loss is the negative log likelihood of Laplace's distribution,
# |error| / b + log 2b, with a learned b. At the minimum, b is the mean absolute error.


# %%
@keras.saving.register_keras_serializable(package="example")
class LaplaceLikelihood(minimand.losses.TrainableLoss):
    def build(self, y_true_shape, y_pred_shape):
        positive = minimand.parametrizations.Positive()
        self.scale = self.add_weight((), 1.0, parametrization=positive, name="scale")

    def call(self, y_true, y_pred):
        b, error = self.scale.value, keras.ops.abs(y_true - y_pred)
        return keras.ops.mean(error / b + keras.ops.log(2 * b), axis=-1)


keras.utils.set_random_seed(0)
hidden, output = keras.layers.Dense(32, "relu"), keras.layers.Dense(1)
model = keras.Sequential([keras.Input((10,)), hidden, output])
trainer = minimand.Trainer(model)
trainer.compile("adam", LaplaceLikelihood(name="laplace"), loss_learning_rate=0.02)
history = trainer.fit(x, y, epochs=30, verbose=0).history
print("b in the logs:", [round(b, 3) for b in history["laplace_scale"][::10]])
error = np.abs(y - model.predict(x, verbose=0)).mean()
print(f"b: {trainer.loss.scale.numpy():.3f}, mean |error|: {error:.3f}")

# %% [markdown]
# The trainer's file holds b, and training can go on from the file. The model is a plain
# Keras model.

# %%
trainer.save("laplace.keras")
again = keras.models.load_model("laplace.keras")
assert again.loss.scale.numpy() == trainer.loss.scale.numpy()
again.fit(x, y, epochs=1, verbose=0)
model.save("plain.keras")  # this file loads without Minimand
