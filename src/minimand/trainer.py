"""The trainer: a Keras model that minimises a transformed objective of another Keras model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from minimand import backend
from minimand._batches import Batch, training_examples
from minimand._objective import DataObjective, Objective
from minimand._optimizer import LossVariablesOptimizer, exclude_from_weight_decay, portable, without_proximal_steps
from minimand._sampling import WeightSamples
from minimand._state import StateLayer
from minimand._validation import check_float, is_number
from minimand.backend import Tensor
from minimand.losses._base import trainable_losses
from minimand.transforms._base import Transform


@keras.saving.register_keras_serializable(package="minimand")
class Trainer(backend.TrainStep, WeightSamples, keras.Model):
    """A `keras.Model` that trains the given model on a transformed objective.

    minimise T_k(...T_1(D))(w) + R(w), with D the loss of `compile` on a batch, T_1, ..., T_k the transforms, and
    R the model's own weight penalties (always at the clean weights w)

    `fit`, `evaluate`, `predict`, callbacks and saving are Keras's. The given model holds the trained weights at
    all times, and needs neither the trainer nor Minimand to be saved, exported or served. `evaluate` and
    `predict` use the loss and the weights as they are: no transform, no noise.

    Args:
        model: any `keras.Model` that does not override `train_step` or `compute_loss`.
        name: name of the trainer.

    Raises:
        TypeError: `model` is not a `keras.Model`.
        ValueError: `model` has a training step or loss of its own, which the trainer would silently replace.

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
                    f"Trainer: `model` must not have its own `{method}`, because the trainer's would replace it "
                    f"without a word. Received: {type(model).__name__}, which overrides `{method}`. Move what it "
                    "computes into a loss, `add_loss` or a minimand.transforms.Transform."
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
        """The model's output names (losses and metrics can be given by name where the model has names)."""
        return self.model.output_names

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
            optimizer: as in Keras. It trains the loss's and the transforms' variables too, without weight decay.
            loss: as in Keras; losses may have trainable variables (`minimand.losses.TrainableLoss`).
            transforms: transforms of the objective, the first being applied first: `[A, B]` minimises B(A(L)).
            loss_learning_rate: learning rate (or schedule) of the loss's and transforms' trainable variables; by
                default the optimizer's. Keras's callbacks that set rates set both, each from its own.
            **kwargs: `metrics`, `loss_weights`, `steps_per_execution`, `jit_compile` and so on, as in Keras.

        Raises:
            TypeError: `transforms` is not a sequence of transforms.
            ValueError: `loss_learning_rate` is not positive, or given with an optimizer that cannot be combined.
            NotImplementedError: on the first batch, with transforms and several replicas of `tf.distribute`.
        """
        if not isinstance(transforms, Sequence) or not all(isinstance(t, Transform) for t in transforms):
            raise TypeError(
                "Trainer.compile: `transforms` must be a list of minimand.transforms.Transform instances. "
                f"Received: transforms={transforms!r}"
            )
        names = [transform.name for transform in transforms]
        if len(set(names)) < len(names):
            raise ValueError(
                f"Trainer.compile: transforms must have different names. Received: {names}. "
                "Give each its own with `name=`."
            )
        if isinstance(loss, Mapping):
            loss = dict(loss)
        losses = trainable_losses(loss)
        if is_number(loss_learning_rate):
            check_float("Trainer.compile", "loss_learning_rate", loss_learning_rate, above=0.0)
        if loss_learning_rate is not None and not losses and not transforms:
            raise ValueError(
                "Trainer.compile: `loss_learning_rate` needs a loss with variables (minimand.losses.TrainableLoss) or "
                f"a transform that has some. Received: loss_learning_rate={loss_learning_rate!r}, loss={loss!r}"
            )
        optimizer = keras.optimizers.get(optimizer)
        trained_by = without_proximal_steps(optimizer, self.objective_state)
        if loss_learning_rate is not None:
            trained_by = LossVariablesOptimizer.from_optimizer(optimizer, loss_learning_rate, self.objective_state)
        self.transforms = tuple(transforms)
        self._compiled_functions: dict[tuple[Any, ...], Any] = {}
        # A set, because one loss may serve several outputs; in the order of appearance.
        states = [*(loss.state for loss in losses), *(transform.state for transform in self.transforms)]
        self.objective_state.replace_parts(list(dict.fromkeys(states)))
        self._composed: Objective = self.data_objective()
        for transform in self.transforms:
            transform.bind(optimizer)
            self._composed = transform.apply(self._composed)
            # Which weights there are may have changed since the last time.
            transform.built = False
        if self.model.built:
            self._build_transforms()
        super().compile(optimizer=trained_by, loss=loss, **kwargs)
        self._user_compile_config = {
            "optimizer": optimizer,
            "transforms": list(self.transforms),
            "loss_learning_rate": loss_learning_rate,
        }

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; tells the transforms that need it the number of training examples."""
        sized = [transform for transform in self.transforms if transform.needs_examples]
        if sized:
            examples = training_examples(inspect.signature(keras.Model.fit).bind(self, *args, **kwargs).arguments)
            for transform in sized:
                transform.begin_fit(examples)
        return super().fit(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`; what transforms measure in training is left out."""
        self._evaluating = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._evaluating = False

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics, as in Keras."""
        kept_back = self.transforms if self._evaluating else ()
        measured = {id(metric) for transform in kept_back for metric in transform.state.metrics}
        # Keras lists those of layers in layers twice.
        return [metric for metric in dict.fromkeys(super().metrics) if id(metric) not in measured]

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`."""
        self._check_ready()
        return super().train_on_batch(*args, **kwargs)

    def _check_ready(self) -> None:
        for transform in self.transforms:
            transform.check_ready()

    # Variables that appear late: those of the loss need the targets' shape, those of transforms a built model.

    def _build_transforms(self) -> None:
        for transform in self.transforms:
            if not transform.built:
                transform.build(self.model)
                transform.built = True

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        super()._symbolic_build(iterator=iterator, data_batch=data_batch)
        self._build_transforms()
        for loss in trainable_losses(self.loss):
            loss.check_minimum()
        exclude_from_weight_decay(self.optimizer, self.objective_state.trainable_variables)

    def evaluate_objective(
        self,
        trainable_values: Sequence[Tensor],
        non_trainable_values: Sequence[Tensor],
        metrics_values: Sequence[Tensor],
        data: tuple[Any, Any, Any],
    ) -> tuple[Tensor, tuple[Any, list[Tensor], list[Tensor]]]:
        """The transformed objective in training, as a pure function of all variables' values and a batch.

        Returns:
            `(loss, (y_pred, new non-trainable values, new metrics values))`; no variable is changed.
        """
        # Each of these walks through all layers.
        trainable, non_trainable = self.trainable_variables, self.non_trainable_variables
        state = [*non_trainable, *self.metrics_variables]
        values = [*trainable_values, *non_trainable_values, *metrics_values]
        with keras.StatelessScope(list(zip([*trainable, *state], values, strict=True))) as scope:
            weights = [scope.get_current_value(variable) for variable in self.model.trainable_variables]
            loss, (y_pred, evaluated) = self._composed(weights, Batch(*data))
            for variable in trainable:
                if variable.regularizer is not None:
                    penalty = variable.regularizer(variable)
                    loss = loss + keras.ops.cast(keras.ops.sum(penalty), loss.dtype)
        # What the forward pass assigned comes from the pass that counts, the transforms' own state from here.
        own = {id(variable) for transform in self.transforms for variable in transform.variables}
        new = [scope.get_current_value(v) if id(v) in own else evaluated[id(v)] for v in state]
        return loss, (y_pred, new[: len(non_trainable)], new[len(non_trainable) :])

    def data_objective(self, training: bool = True) -> DataObjective:
        """The loss on a batch at given weights, without transforms and without the model's weight penalties."""

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
        """As `keras.Model.compute_loss`; losses with running statistics change them in training only."""
        losses = trainable_losses(self.loss)
        for loss in losses:
            loss.training, loss.in_trainer = training, True
        try:
            return super().compute_loss(x, y, y_pred, sample_weight, training=training)
        finally:
            for loss in losses:
                loss.in_trainer = False

    @property
    def losses(self) -> list[Tensor]:
        """Scalar losses of `add_loss`, activity and weight regularizers, as in Keras."""
        losses = super().losses
        if self._penalties_apart:
            # Keras lists the weight penalties last, one for each trainable weight that has a regularizer.
            penalties = sum(variable.regularizer is not None for variable in self.trainable_variables)
            return losses[: len(losses) - penalties]
        return losses

    def track_loss(self, loss: Tensor, batch_size: Any) -> None:
        """Add a batch's loss to the running mean that `fit` reports."""
        self._loss_tracker.update_state(loss, sample_weight=batch_size)

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
            raise ValueError("Trainer.prepare: call `trainer.compile(optimizer, loss)` first.")
        data = keras.tree.map_structure(
            lambda leaf: None if leaf is None else keras.ops.convert_to_tensor(leaf), (x, y, sample_weight)
        )
        self._symbolic_build(data_batch=data)
        return data

    def value_and_gradient(self, x: Any, y: Any = None, sample_weight: Any = None) -> tuple[Tensor, list[Tensor]]:
        """The objective on a batch and its gradient, for a hand-written loop.

        Args:
            x: inputs of a batch, as for `train_on_batch`.
            y: targets.
            sample_weight: weights of the examples.

        Returns:
            `(loss, gradients)`: a scalar and tensors aligned with `trainer.trainable_variables`. As in a training
            step, batch statistics and seeds advance.

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
            raise ValueError("Trainer.value_and_gradient: a batch must have at least one row. Received: none")
        data = self.prepare(x, y, sample_weight)
        self._check_ready()
        state = [*self.non_trainable_variables, *self.metrics_variables]
        count = len(self.non_trainable_variables)
        current = [variable.value for variable in state]

        def objective(values: Sequence[Tensor]) -> tuple[Tensor, Any]:
            return self.evaluate_objective(values, current[:count], current[count:], data)

        values = [variable.value for variable in self.trainable_variables]
        (loss, (_, new, _)), gradients = backend.value_and_gradient(objective, values, differentiable=False)
        for variable, value in zip(self.non_trainable_variables, new, strict=True):
            variable.assign(value)
        return loss, gradients

    # Files.

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.export`, of the given model, which is what is served."""
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
        """The arguments of `compile`, and the shapes that the losses were built with."""
        config = super().get_compile_config()
        if config:
            config |= {k: keras.saving.serialize_keras_object(v) for k, v in self._user_compile_config.items()}
            states = [loss.built_state() for loss in trainable_losses(self.loss)]
            config["loss_states"] = keras.saving.serialize_keras_object(states)
        return portable(config)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile with `get_compile_config()`, and make the variables that a saved file has values for."""
        config = keras.saving.deserialize_keras_object(config)
        states = config.pop("loss_states")
        self.compile(**config)
        for loss, state in zip(trainable_losses(self.loss), states, strict=True):
            loss.restore_built_state(state)
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)
            exclude_from_weight_decay(self.optimizer, self.objective_state.trainable_variables)

    def save_own_variables(self, store: Any) -> None:
        """Keras does not save seeds; without them a resumed run would draw other noise."""
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
                f"Trainer: the file was saved by a trainer with {len(stored)} random seeds, but this one has "
                f"{len(seeds)}. Compile it with the same transforms, or load the weights into `trainer.model`."
            )
        super().load_own_variables({key: store[key] for key in keys if key not in stored})
        for index, seed in enumerate(seeds):
            seed.assign(store[f"seed_{index}"])

    def _seeds(self) -> list[keras.Variable]:
        weights = {id(weight) for weight in self.weights}
        return [variable for variable in self.variables if id(variable) not in weights]
