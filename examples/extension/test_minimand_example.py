"""The suites of `minimand.testing` for the four parts; `KERAS_BACKEND=... pytest` runs them on a backend."""

import minimand_example
import numpy as np

from minimand import testing


class TestBiweight(testing.LossSuite):
    hides_nan = False

    def make(self, **arguments):
        return minimand_example.Biweight(2.0, **arguments)

    def reference(self, loss, y_true, y_pred):
        share = np.minimum(((y_pred - y_true) / 2.0) ** 2, 1.0)
        return 4 / 6 * (1 - (1 - share) ** 3).mean(axis=-1)


class TestHoyer(testing.RegularizerSuite):
    convex = False

    def make(self, strength):
        return minimand_example.Hoyer(strength)

    def reference(self, w):
        return np.abs(w).sum() ** 2 / (w**2).sum()


class TestFlooding(testing.TransformSuite):
    def make(self):
        return minimand_example.Flooding(5.0)

    def reference(self, problem, w):
        return abs(problem.value(w) - 5.0) + 5.0


class TestSignDescent(testing.OptimizerSuite):
    def make(self, learning_rate, **arguments):
        return minimand_example.SignDescent(learning_rate, **arguments)

    def reference(self, learning_rate, weights, gradients):
        return weights - learning_rate * np.cumsum(np.sign(gradients), axis=0)
