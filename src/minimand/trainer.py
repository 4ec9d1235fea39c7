"""The trainer: a Keras model that minimises a transformed objective of another Keras model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from minimand import _sampling, backend
from minimand._batches import Batch, training_examples
from minimand._objective import DataObjective, Objective, OwnsDataObjective, copied
from minimand._optimizer import exclude_from_weight_decay, portable, training_optimizer
from minimand._scope import shadowed
from minimand._selection import Select
from minimand._state import StateLayer
from minimand.backend import Tensor
from minimand.losses._base import trainable_losses
from minimand.transforms._base import Transform
from minimand.uncertainty import Sharpness


@keras.saving.register_keras_serializable(package="minimand")
class Trainer(backend.TrainStep, OwnsDataObjective, keras.Model):
    """A `keras.Model` that trains the given model on a transformed objective.

    Use a trainer to train with transforms, or with losses that have trainable variables.

    minimise T_k(...T_1(D))(w) + R(w)

    D is the loss of `compile` on a batch, T_1, ..., T_k are the transforms, and R is the sum of the model's own
    weight penalties, always at the clean weights w.

    `fit`, `evaluate`, `predict`, callbacks and saving are Keras's. The given model holds the trained weights at
    all times, so the given model is saved, exported and served without the trainer and without Minimand. `evaluate`
    and `predict` use the loss and the weights as they are, without transforms and without noise.

    Args:
        model: any `keras.Model` that does not override `train_step` or `compute_loss`.
        name: name of the trainer.

    Raises:
        TypeError: `model` is not a `keras.Model`.
        ValueError: `model` overrides `train_step` or `compute_loss`, which the trainer would silently replace.

    Source: `docs/architecture.md`.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> trainer = minimand.Trainer(model)
        >>> trainer.compile("adam", minimand.losses.AdaptiveRobust(),
        ...                 transforms=[minimand.transforms.WeightNoise(0.05)])
        >>> history = trainer.fit(np.ones((8, 3)), np.zeros((8, 1)), epochs=2, verbose=0)
        >>> model.predict(np.ones((2, 3)), verbose=0).shape
        (2, 1)
    """

    def __init__(self, model: keras.Model, *, name: str | None = None) -> None:
        if not isinstance(model, keras.Model):
            raise TypeError(f"Trainer: `model` must be a keras.Model. Received: {model!r} of type {type(model)}")
        for method in ("train_step", "compute_loss"):
            if getattr(type(model), method) is not getattr(keras.Model, method):
                raise ValueError(
                    f"Trainer: `model` must not override `{method}`, because the trainer would silently replace the "
                    f"override. Received: {type(model).__name__}, which overrides `{method}`. Move its computation "
                    "into a loss, `add_loss` or a minimand.transforms.Transform."
                )
        super().__init__(name=name or f"{model.name}_trainer", dtype=model.dtype_policy)
        self.model = model
        self.objective_state = StateLayer(name="objective")
        self.transforms: tuple[Transform, ...] = ()
        self._penalties_apart = self._evaluating = False
        self.built = model.built

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The model's outputs."""
        outputs = self.model(inputs, training=training)
        self._build_transforms()
        return outputs

    @property
    def output_names(self) -> list[str]:
        """The model's output names, by which losses and metrics can be given."""
        return self.model.output_names

    # Compile: compose the objective, and hold the variables of the loss and of the transforms.

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *,
        transforms: Sequence[Transform] = (),
        loss_learning_rate: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configure training, as `keras.Model.compile` does, with two more arguments.

        Args:
            optimizer: as in Keras. The optimizer trains the variables of losses and transforms too, without weight
                decay.
            loss: as in Keras; losses may have trainable variables (`minimand.losses.TrainableLoss`).
            transforms: transforms of the objective; the first is applied first, so `[A, B]` minimises B(A(L)).
            loss_learning_rate: learning rate > 0 (or schedule) of the trainable variables of losses and transforms;
                the optimizer's by default. Keras's callbacks that set learning rates scale both rates.
            **kwargs: `metrics`, `loss_weights`, `steps_per_execution`, `jit_compile` and so on, as in Keras.

        Raises:
            TypeError: `transforms` is not a sequence of transforms.
            ValueError: `loss_learning_rate` is not positive, or the optimizer cannot have a second learning rate.
            NotImplementedError: on the first batch, with transforms and several replicas of `tf.distribute`.
        """
        _check_transforms(transforms)
        if isinstance(loss, Mapping):
            loss = dict(loss)
        losses = trainable_losses(loss)
        optimizer = keras.optimizers.get(optimizer)
        trained_by = training_optimizer(optimizer, loss_learning_rate, self.objective_state)
        if loss_learning_rate is not None and not losses and not transforms:
            raise ValueError(
                "Trainer.compile: `loss_learning_rate` needs variables of a loss (minimand.losses.TrainableLoss) or of "
                f"a transform. Received: loss_learning_rate={loss_learning_rate!r}, loss={loss!r}, transforms=[]. "
                "Leave out `loss_learning_rate`."
            )
        self.transforms = tuple(transforms)
        self.compiled_functions: dict[tuple[Any, ...], Any] = {}
        # One loss may serve several outputs: each state is kept once, in the order of appearance.
        states = [*(loss.state for loss in losses), *(transform.state for transform in self.transforms)]
        # A recompiled trainer must not keep its former loss.
        self.objective_state.parts.clear()
        self.objective_state.parts.extend(list(dict.fromkeys(states)))
        self._composed: Objective = self.data_objective()
        for transform in self.transforms:
            transform.bind(optimizer)
            self._composed = transform.apply(self._composed)
            # The set of trainable weights may have changed since the last `compile`.
            transform.built = False
        if self.model.built:
            self._build_transforms()
        super().compile(optimizer=trained_by, loss=loss, **kwargs)
        self._user_compile_config = {
            "optimizer": optimizer,
            "transforms": list(self.transforms),
            "loss_learning_rate": loss_learning_rate,
        }

    def _build_transforms(self) -> None:
        for transform in self.transforms:
            if not transform.built:
                transform.build(self.model)
                transform.built = True

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Variables of a loss need the shape of the targets, variables of a transform need a built model.
        super()._symbolic_build(iterator=iterator, data_batch=data_batch)
        self._build_transforms()
        _check_reductions(self.loss, self.transforms)
        for loss in trainable_losses(self.loss):
            loss.check_minimum()
        exclude_from_weight_decay(self.optimizer, self.objective_state.trainable_variables)

    # Fit and evaluate: Keras's, with metrics and checks of the transforms.

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; transforms that need the number of training examples receive it."""
        sized = [transform for transform in self.transforms if transform.needs_examples]
        if not sized:
            return super().fit(*args, **kwargs)
        given = inspect.signature(keras.Model.fit).bind(self, *args, **kwargs)
        examples, given.arguments["x"] = training_examples(given.arguments)
        for transform in sized:
            transform.begin_fit(examples)
        return super().fit(*given.args[1:], **given.kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`; metrics that transforms measure in training are left out."""
        with shadowed(self, "_evaluating", True):
            return super().evaluate(*args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`."""
        self._check_ready()
        return super().train_on_batch(*args, **kwargs)

    def _check_ready(self) -> None:
        for transform in self.transforms:
            transform.check_ready()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics, as in Keras."""
        left_out = self.transforms if self._evaluating else ()
        measured = {id(metric) for transform in left_out for metric in transform.state.metrics}
        # Keras lists metrics of layers inside layers twice.
        return [metric for metric in dict.fromkeys(super().metrics) if id(metric) not in measured]

    def track_loss(self, loss: Tensor, batch_size: Any) -> None:
        """Add a batch's loss to the running mean that `fit` reports."""
        self._loss_tracker.update_state(loss, sample_weight=batch_size)

    # The objective.

    def evaluate_objective(
        self,
        trainable_values: Sequence[Tensor],
        non_trainable_values: Sequence[Tensor],
        metrics_values: Sequence[Tensor],
        data: tuple[Any, Any, Any],
    ) -> tuple[Tensor, tuple[Any, list[Tensor], list[Tensor]]]:
        """The transformed objective in training, as a pure function of all variables' values and a batch.

        Args:
            trainable_values: values of `trainable_variables`.
            non_trainable_values: values of `non_trainable_variables`.
            metrics_values: values of `metrics_variables`.
            data: the batch `(x, y, sample_weight)`.

        Returns:
            `(loss, (y_pred, new non-trainable values, new metrics values))`. No variable changes.
        """
        # Each of these properties walks through all layers.
        trainable, non_trainable = self.trainable_variables, self.non_trainable_variables
        state = [*non_trainable, *self.metrics_variables]
        values = [*trainable_values, *non_trainable_values, *metrics_values]
        with keras.StatelessScope(list(zip([*trainable, *state], values, strict=True))) as scope:
            weights = [scope.get_current_value(variable) for variable in self.model.trainable_variables]
            loss, (y_pred, assigned) = self._composed(weights, Batch(*data))
            for variable in trainable:
                if variable.regularizer is not None:
                    penalty = variable.regularizer(variable)
                    loss = loss + keras.ops.cast(keras.ops.sum(penalty), loss.dtype)
        # The forward pass that counts assigned the model's state; the transforms assigned their own state here.
        own = {id(variable) for transform in self.transforms for variable in transform.variables}
        new = [scope.get_current_value(v) if id(v) in own else assigned[id(v)] for v in state]
        return loss, (y_pred, new[: len(non_trainable)], new[len(non_trainable) :])

    def data_objective(self, training: bool = True) -> DataObjective:
        """The compiled loss of a batch at given weights, without transforms and without weight penalties.

        Args:
            training: whether layers are in training mode.
        """

        def loss(x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool) -> Tensor:
            self._penalties_apart = True
            try:
                return self.compute_loss(x, y, y_pred, sample_weight, training=training)
            finally:
                self._penalties_apart = False

        return DataObjective(self.model, self.__call__, loss, training=training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """As `keras.Model.compute_loss`; running statistics of losses change in training only."""
        losses = trainable_losses(self.loss)
        for loss in losses:
            loss.training, loss.in_trainer = training, True
        y, sample_weight = copied((y, sample_weight))
        try:
            return super().compute_loss(x, y, y_pred, sample_weight, training=training)
        finally:
            for loss in losses:
                loss.in_trainer = False

    @property
    def losses(self) -> list[Tensor]:
        """Scalar losses of `add_loss`, activity regularizers and weight regularizers, as in Keras."""
        losses = super().losses
        if self._penalties_apart:
            # Keras lists the weight penalties last, one for each trainable weight that has a regularizer.
            penalties = sum(variable.regularizer is not None for variable in self.trainable_variables)
            return losses[: len(losses) - penalties]
        return losses

    # Hand-written loops.

    def prepare(self, x: Any, y: Any = None, sample_weight: Any = None) -> tuple[Any, Any, Any]:
        """Make all variables (model, loss, transforms, optimizer) for batches like this one, as `fit` does.

        Args:
            x: inputs of a batch, as for `train_on_batch`.
            y: targets.
            sample_weight: weights of the examples.

        Returns:
            The batch `(x, y, sample_weight)` as tensors.

        Raises:
            ValueError: the trainer is not compiled.

        Examples:
            >>> import keras, numpy as np, minimand
            >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
            >>> trainer.compile("adam", "mse")
            >>> batch = trainer.prepare(np.ones((8, 3)), np.zeros((8, 1)))
            >>> trainer.optimizer.built
            True
        """
        if not self.compiled:
            raise ValueError(
                "Trainer.prepare: the trainer must be compiled. Received: a trainer without an optimizer and a loss. "
                "Call `trainer.compile(optimizer, loss)` first."
            )
        data = keras.tree.map_structure(keras.ops.convert_to_tensor, (x, y, sample_weight), none_is_leaf=False)
        self._symbolic_build(data_batch=data)
        return data

    def value_and_gradient(self, x: Any, y: Any = None, sample_weight: Any = None) -> tuple[Tensor, list[Tensor]]:
        """The objective on a batch and its gradient, for a hand-written loop.

        As in a training step, batch statistics and seeds advance.

        Args:
            x: inputs of a batch, as for `train_on_batch`.
            y: targets.
            sample_weight: weights of the examples.

        Returns:
            `(loss, gradients)`: a scalar, and tensors aligned with `trainer.trainable_variables`.

        Raises:
            ValueError: the trainer is not compiled, or the batch is empty.

        Examples:
            >>> import keras, numpy as np, minimand
            >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
            >>> trainer.compile(keras.optimizers.SGD(0.1), "mse")
            >>> loss, gradients = trainer.value_and_gradient(np.ones((8, 3)), np.zeros((8, 1)))
            >>> trainer.optimizer.apply(gradients, trainer.trainable_variables)
        """
        if any(tuple(part.shape)[:1] == (0,) for part in keras.tree.flatten((x, y)) if hasattr(part, "shape")):
            raise ValueError(
                "Trainer.value_and_gradient: `x` and `y` must have at least one row. Received: arrays without rows. "
                "Skip empty batches."
            )
        data = self.prepare(x, y, sample_weight)
        self._check_ready()
        state = [variable.value for variable in self.non_trainable_variables]
        metrics = [variable.value for variable in self.metrics_variables]

        def objective(values: Sequence[Tensor]) -> tuple[Tensor, Any]:
            return self.evaluate_objective(values, state, metrics, data)

        values = [variable.value for variable in self.trainable_variables]
        (loss, (_, new, _)), gradients = backend.value_and_gradient(objective, values, differentiable=False)
        for variable, value in zip(self.non_trainable_variables, new, strict=True):
            variable.assign(value)
        return loss, gradients

    # Weights drawn at random.

    def predict_samples(self, x: Any, samples: int = 64, *, seed: int | None = None, batch_size: int = 256) -> Any:
        """Predictions of functions that are drawn from the transforms' noise: each function predicts all rows.

        Use the samples for predictive intervals, with `minimand.uncertainty.summary`.

        f(x; w_k), k = 1, ..., samples, where the transforms draw w_k around the trained weights

        Layers are in inference mode, as in `predict`. The samples do not depend on `batch_size`.

        Args:
            x: inputs (rows, ...): an array or tensor, or a structure of them.
            samples: number of functions >= 1.
            seed: integer; the same seed gives the same functions. None draws unpredictable functions.
            batch_size: number of rows >= 1 that are evaluated at once.

        Returns:
            An array (samples, rows, ...), or a structure of arrays like the model's outputs.

        Raises:
            ValueError: no transform draws weights, the trainer is not compiled, or a number is out of its range.
            TypeError: `x` has leaves that are not arrays.

        Source: as Monte-Carlo prediction in Blundell et al., "Weight uncertainty in neural networks", ICML 2015.

        Examples:
            >>> import keras, numpy as np, minimand
            >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
            >>> trainer.compile("adam", "mse", transforms=[minimand.transforms.WeightNoise(0.1)])
            >>> trainer.predict_samples(np.ones((8, 3)), 5).shape
            (5, 8, 1)
        """
        return _sampling.predict_samples(self, x, samples, seed, batch_size)

    def sharpness(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        samples: int = 64,
        stddev: float = 1e-3,
        select: Select = "all",
        seed: int | None = None,
        batch_size: int = 256,
    ) -> Sharpness:
        """An estimate of the trace of the loss's Hessian: how sharp the minimum is.

        Use the estimate to compare minima of one network that were found with different transforms.

        tr H ~ mean over k of (L(w + s e_k) + L(w - s e_k) - 2 L(w)) / s^2, e_k random signs

        L is the mean loss of the batches in evaluation, without weight penalties. The bias is of the order s^2; if
        s is too small, rounding raises the standard error.

        Args:
            x: inputs (rows, ...): an array or tensor, or a structure of them.
            y: targets.
            sample_weight: weights of the examples.
            samples: number of pairs >= 2.
            stddev: size s > 0 of the steps.
            select: weights that vary: `"all"`, `"kernels"` (rank 2 or more), a regular expression of paths, or a
                function of the variable.
            seed: integer, or None.
            batch_size: number of rows >= 1 that are evaluated at once.

        Returns:
            `minimand.uncertainty.Sharpness(trace, standard_error)`.

        Raises:
            ValueError: the trainer is not compiled, a number is out of its range, or `select` matches no weight.
            TypeError: the data have leaves that are not arrays.

        Source: Hutchinson, "A stochastic estimator of the trace of the influence matrix", Communications in Statistics
        18 (1989), with the product of Hessian and vector by differences.

        Examples:
            >>> import keras, numpy as np, minimand
            >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
            >>> trainer = minimand.Trainer(model)
            >>> trainer.compile("adam", "mse")
            >>> round(trainer.sharpness(np.full((8, 1), 2.0), np.zeros((8, 1)), stddev=0.1).trace)  # 2 x^2
            8
        """
        return _sampling.sharpness(self, (x, y, sample_weight), samples, stddev, select, seed, batch_size)

    # Files.

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.export`; exports the given model."""
        return self.model.export(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal trainer."""
        return {"name": self.name, "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Trainer:
        """A trainer made from `get_config()`."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        return cls(model, name=config["name"])

    def get_compile_config(self) -> dict[str, Any]:
        """The arguments of `compile`, and what losses and transforms need to make their variables again."""
        config = super().get_compile_config()
        if config:
            config |= {k: keras.saving.serialize_keras_object(v) for k, v in self._user_compile_config.items()}
            states = {
                "loss_states": [loss.built_state() for loss in trainable_losses(self.loss)],
                "transform_states": [transform.built_state() for transform in self.transforms],
            }
            config |= keras.saving.serialize_keras_object(states)
        return portable(config)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile with `get_compile_config()`, and make the variables that a saved file has values for."""
        config = keras.saving.deserialize_keras_object(config)
        loss_states, transform_states = config.pop("loss_states"), config.pop("transform_states")
        for transform, state in zip(config["transforms"], transform_states, strict=True):
            transform.restore_built_state(state)
        self.compile(**config)
        for loss, state in zip(trainable_losses(self.loss), loss_states, strict=True):
            loss.restore_built_state(state)
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)
            exclude_from_weight_decay(self.optimizer, self.objective_state.trainable_variables)

    def save_own_variables(self, store: Any) -> None:
        """Save the seeds too, which Keras leaves out: a resumed run must draw the noise that comes next."""
        super().save_own_variables(store)
        for index, seed in enumerate(self._seeds()):
            store[f"seed_{index}"] = seed.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Restore the seeds of all layers, losses and transforms."""
        seeds = self._seeds()
        keys = list(store.keys())
        stored = [key for key in keys if key.startswith("seed_")]
        if len(stored) != len(seeds):
            raise ValueError(
                f"Trainer: the file must come from a trainer with {len(seeds)} random seeds, as this trainer has. "
                f"Received: a file with {len(stored)} random seeds. Compile this trainer with the same transforms as "
                "the saved trainer, or load the weights into `trainer.model`."
            )
        super().load_own_variables({key: store[key] for key in keys if key not in stored})
        for index, seed in enumerate(seeds):
            seed.assign(store[f"seed_{index}"])

    def _seeds(self) -> list[keras.Variable]:
        weights = {id(weight) for weight in self.weights}
        return [variable for variable in self.variables if id(variable) not in weights]


def _check_reductions(losses: Any, transforms: Sequence[Transform]) -> None:
    sums = [loss for loss in keras.tree.flatten(losses) if getattr(loss, "reduction", None) == "sum"]
    splitting = [transform.name for transform in transforms if transform.splits_batches]
    if sums and splitting:
        raise ValueError(
            'Trainer: estimator="auto" takes micro-batches for this model, which need losses that are means over a '
            f'batch. Received: {splitting} with {type(sums[0]).__name__}(reduction="sum"). Use '
            'reduction="sum_over_batch_size", or estimator="probe" or "exact".'
        )


def _check_transforms(transforms: Any) -> None:
    if not isinstance(transforms, Sequence) or not all(isinstance(t, Transform) for t in transforms):
        raise TypeError(
            "Trainer.compile: `transforms` must be a list of minimand.transforms.Transform instances. "
            f"Received: transforms={transforms!r}"
        )
    names = [transform.name for transform in transforms]
    if len(set(names)) < len(names):
        raise ValueError(
            f"Trainer.compile: `transforms` must have different names. Received: {names}. "
            "Give each transform a name of its own with `name=`."
        )
