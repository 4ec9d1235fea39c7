# %% [markdown]
# # A loss with variables of its own
#
# In Keras a variable on a loss is never trained, and lost on saving. Here it is a variable like any other.
# Needs `pip install 'minimand[jax]' scikit-learn`.

# %%
import minimand  # chooses JAX, unless KERAS_BACKEND says otherwise
import keras
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale

x, y = load_diabetes(return_X_y=True)
x, y = scale(x), scale(y)[:, None]


# %% [markdown]
# The negative log likelihood of Laplace's distribution, |error| / b + log 2b, with b learned. At its minimum b is the
# mean absolute error.


# %%
@keras.saving.register_keras_serializable(package="example")
class LaplaceLikelihood(minimand.losses.TrainableLoss):
    def build(self, y_true_shape, y_pred_shape):
        positive = minimand.parametrizations.Positive()
        self.scale = self.add_weight((), 1.0, parametrization=positive, name="scale")

    def call(self, y_true, y_pred):
        scale = self.scale.value
        return keras.ops.mean(keras.ops.abs(y_true - y_pred) / scale + keras.ops.log(2 * scale), axis=-1)


keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)])
trainer = minimand.Trainer(model)
trainer.compile("adam", LaplaceLikelihood(name="laplace"), loss_learning_rate=0.02)
history = trainer.fit(x, y, epochs=30, verbose=0).history
print("b in the logs:", [round(b, 3) for b in history["laplace_scale"][::10]])
print(f"b: {trainer.loss.scale.numpy():.3f}, mean |error|: {np.abs(y - model.predict(x, verbose=0)).mean():.3f}")

# %% [markdown]
# It is in the trainer's file, and goes on from there. The model is a plain one.

# %%
trainer.save("laplace.keras")
again = keras.models.load_model("laplace.keras")
assert again.loss.scale.numpy() == trainer.loss.scale.numpy()
again.fit(x, y, epochs=1, verbose=0)
model.save("plain.keras")  # no Minimand needed to load it
