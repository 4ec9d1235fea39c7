"""A loss, a regularizer, a transform and an optimizer of one's own, from their papers."""

import keras
from keras import ops

import minimand

register = keras.saving.register_keras_serializable(package="minimand_example")


@register
class Biweight(keras.losses.Loss):
    """Tukey's: c^2/6 (1 - (1 - (r/c)^2)^3) for |r| < c, and c^2/6 beyond (Beaton and Tukey, Technometrics 1974)."""

    def __init__(self, c=4.685, *, name="biweight", **kwargs):
        super().__init__(name=name, **kwargs)
        self.c = c

    def call(self, y_true, y_pred):
        if y_true.shape[1:] != y_pred.shape[1:]:
            raise ValueError(f"Biweight: targets {y_true.shape} must have the predictions' shape, {y_pred.shape}.")
        share = ops.square(ops.clip((y_pred - y_true) / self.c, -1.0, 1.0))
        return self.c**2 / 6 * ops.mean(1.0 - (1.0 - share) ** 3, axis=-1)

    def get_config(self):
        return {**super().get_config(), "c": self.c}


@register
class Hoyer(minimand.regularizers.WeightRegularizer):
    """Sparsity that does not depend on scale: |w|_1^2 / |w|_2^2 (Yang, Wen and Li, DeepHoyer, ICLR 2020)."""

    def penalty(self, weights):
        # The ratio has no limit at 0: there it counts as 0, with no gradient.
        squares = ops.sum(ops.square(weights))
        nothing = squares <= 0
        return ops.where(nothing, 0.0, ops.square(ops.sum(ops.abs(weights))) / ops.where(nothing, 1.0, squares))


@register
class Flooding(minimand.transforms.Transform):
    """L -> |L - b| + b: the loss is kept from falling below b (Ishida et al., ICML 2020)."""

    def __init__(self, level, *, name=None):
        super().__init__(name=name)
        self.level = level

    def apply(self, objective):
        def flooded(weights, batch):
            loss, aux = objective(weights, batch)
            return ops.abs(loss - self.level) + self.level, aux

        return flooded

    def get_config(self):
        return {"level": self.level, "name": self.name}


@register
class SignDescent(keras.optimizers.Optimizer):
    """Steps of the gradient's sign: w <- w - rate sign(g) (Bernstein et al., signSGD, ICML 2018)."""

    def __init__(self, learning_rate=1e-3, *, name="sign_descent", **kwargs):
        super().__init__(learning_rate, name=name, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        gradient = ops.cast(gradient, variable.dtype)
        # On PyTorch the sign of NaN is 0, which would hide it.
        sign = ops.where(ops.isnan(gradient), gradient, ops.sign(gradient))
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * sign)
