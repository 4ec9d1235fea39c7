"""Models that grow by random layers."""

import keras
from keras import layers

ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid", "softmax", "gelu")
SMOOTH = ("linear", "tanh", "sigmoid", "softmax", "gelu")


class Graph:
    """A model that grows by random layers; `ends` are the tensors that the next may take."""

    def __init__(self, random, shape):
        self.random = random
        self.inputs = keras.Input(shape)
        self.ends = [self.inputs]
        self.made = []

    def pick(self, *choices):
        return choices[self.random.integers(len(choices))]

    def linear(self):
        activation, bias = self.pick(*ACTIVATIONS), bool(self.random.integers(2))
        units = int(self.random.integers(2, 6))
        if len(self.inputs.shape) == 2:
            return layers.Dense(units, activation, use_bias=bias)
        padding, size = self.pick("same", "valid"), int(self.random.integers(1, 4))
        return layers.Conv1D(units, size, padding=padding, activation=activation, use_bias=bias)

    def by_channel(self):
        choices = [
            layers.BatchNormalization(center=bool(self.random.integers(2)), scale=bool(self.random.integers(2))),
            layers.Activation(self.pick(*ACTIVATIONS)),
            layers.LeakyReLU(0.3),
            layers.ReLU(),
            layers.Dropout(0.5, seed=1),
        ]
        if len(self.inputs.shape) == 3:
            padding = self.pick("same", "valid")
            choices += [
                layers.MaxPooling1D(2, strides=1, padding=padding),
                layers.AveragePooling1D(2, strides=1, padding=padding),
                layers.ZeroPadding1D(1),
                layers.UpSampling1D(2),
                layers.DepthwiseConv1D(2, padding=padding, activation=self.pick(*ACTIVATIONS)),
            ]
        return self.pick(*choices)

    def grow(self):
        tensor = self.pick(*self.ends)
        kind = self.random.uniform()
        alike = [other for other in self.ends if other.shape == tensor.shape]
        of_one_length = [other for other in self.ends if other.shape[:-1] == tensor.shape[:-1]]
        if kind < 0.45:
            self.made.append(self.linear())
            new = self.made[-1](tensor)
        elif kind < 0.75:
            new = self.by_channel()(tensor)
        elif kind < 0.88 and len(alike) > 1:
            new = layers.Add()(alike) if self.random.integers(2) else alike[0] + alike[-1]
        elif len(of_one_length) > 1:
            new = layers.Concatenate()(of_one_length[:3])
        else:
            new = layers.LayerNormalization()(tensor)
        self.ends.append(new)

    def model(self):
        """Of the last tensor."""
        outputs = self.ends[-1]
        if len(self.inputs.shape) == 3:
            outputs = self.pick(layers.Flatten(), layers.GlobalAveragePooling1D(), layers.GlobalMaxPooling1D())(outputs)
        return keras.Model(self.inputs, layers.Dense(2)(outputs))


class SeparableGraph(Graph):
    """In which each example passes by itself, some layers are called again, and many are of other forms."""

    def linear(self):
        bias, units = bool(self.random.integers(2)), 2 * int(self.random.integers(1, 3))
        activation = self.pick(*SMOOTH)
        if len(self.inputs.shape) == 2:
            return self.pick(
                layers.Dense(units, activation, use_bias=bias),
                layers.EinsumDense("ab,bc->ac", (units,), activation=activation, bias_axes="c" if bias else None),
            )
        size, padding = int(self.random.integers(1, 4)), self.pick("same", "valid", "causal")
        dilation, stride = self.pick((1, 1), (2, 1), (1, 2))
        options = {"use_bias": bias, "activation": activation}
        return self.pick(
            layers.Dense(units, **options),
            layers.Conv1D(units, size, padding=padding, dilation_rate=dilation, strides=stride, **options),
            layers.Conv1DTranspose(units, size, padding="same", **options),
            layers.SeparableConv1D(units, size, padding="same", **options),
        )

    def by_channel(self):
        choices = [
            layers.LayerNormalization(),
            layers.GroupNormalization(1),
            layers.PReLU("uniform"),
            layers.Activation(self.pick(*SMOOTH)),
        ]
        if len(self.inputs.shape) == 3:
            choices += [layers.DepthwiseConv1D(2, padding="same"), layers.AveragePooling1D(2, strides=1)]
        return self.pick(*choices)

    def grow(self):
        again = [layer for layer in self.made if isinstance(layer, layers.Dense)]
        for layer in again if self.random.uniform() < 0.3 else []:
            fitting = [end for end in self.ends if end.shape[-1] == layer.kernel.shape[0]]
            if fitting:
                self.ends.append(layer(self.pick(*fitting)))
                return
        super().grow()
