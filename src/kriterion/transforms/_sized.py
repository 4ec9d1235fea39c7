"""Transforms that need the size of the training set."""

from __future__ import annotations

from typing import Any

from keras import ops

from kriterion.transforms.base import Transform


class SizedTransform(Transform):
    """A transform with the variable `examples`: the number of training examples, found by `fit` if `automatic`.

    Args:
        automatic: whether `fit` is to find the number.
        remedy: the argument that gives it otherwise, for messages.
        **kwargs: the arguments of `Transform`.
    """

    def __init__(self, *, automatic: bool, remedy: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.needs_examples, self._remedy = automatic, remedy
        self.examples = self.add_weight((), "zeros", "float32", trainable=False, name="examples")

    def begin_fit(self, examples: int | None) -> None:
        if examples is None:
            raise ValueError(
                f"{type(self).__name__}: the number of training examples is not known of a generator or data set "
                f"without a length. Give it: {self._remedy}."
            )
        self.examples.assign(examples)

    def check_ready(self) -> None:
        if self.needs_examples and float(ops.convert_to_numpy(self.examples.value)) == 0.0:
            raise ValueError(
                f"{type(self).__name__}: the number of training examples is found by `fit`. "
                f"Outside of it, give {self._remedy}."
            )
