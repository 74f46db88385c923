"""`Model`: a `keras.Model` whose steps are stateful functions of a batch, on every backend alike.

Keras's three trainers call a user's `train_step` in three ways: on JAX with the state as an argument, which cannot hold what
the model does not track; on TensorFlow once more at the end of a stream; on torch after a build with a batch that the model
may not take. Here `fit`, `evaluate` and their kin are Keras's in what they take and give, and run the step as `kustom.Loop`
runs one: the state is found, every batch is trained on once, what the step returns is averaged over the samples.

Under a `tf.distribute` strategy Keras's own trainer runs, with the same steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import keras
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private
from kustom.errors import StepError, hide_frames
from kustom.gradients.tape import GradientTape
from kustom.training.history import History
from kustom.training.leaves import class_weights
from kustom.training.steps import Steps
from kustom.training.waiting import let_wait

__all__ = ["FunctionalModel", "Model"]


@keras.saving.register_keras_serializable("kustom")
class Model(keras.Model):
    """A `keras.Model` with a stateful `train_step(self, data)` of one's own, under plain `fit` on every backend.

    Subclass it, or make it of symbolic tensors, `kustom.Model(inputs, outputs)`. `compile`, `fit`, `evaluate`, `predict`,
    `train_on_batch`, callbacks and files are Keras's. The steps, where they are overridden, read and write variables as they
    like: several models, optimizers and metrics, with a `kustom.GradientTape`; no list of variables is kept for them, and
    what is not built yet is built by the first step. `super().train_step(data)` is Keras's usual step.

    - `data` is `x`, `(x, y)` or `(x, y, sample_weight)`; `keras.utils.unpack_x_y_sample_weight(data)` takes it apart.
    - A step returns a dict of scalars, which are averaged over the epoch by the number of samples; of metrics, or of what
      their `result()` gave, which are reported as they stand at the end; or None: the metrics that it updates are reported.
    - The model's metrics are made new at each epoch. `evaluate` leaves them as they were.
    - `steps_per_execution` is how many batches go by between two calls of hooks by batch, which are told the true numbers of
      batches. Where no callback looks at each batch, as many are run in a call as take a tenth of a second.
    - `jit_compile` chooses between equal results: on TensorFlow XLA or its own kernels, on torch inductor or plain
      operations; on JAX a model that cannot be compiled runs eagerly, as everywhere with `run_eagerly`.
    - A step that needs a value to go on runs eagerly, with a warning. Where it raises, the variables are as before.
    - A file holds the variables of the optimizers that stand in attributes, too, not how they were made; that is for the
      constructor, or for a field of a `kustom.part`. They are read back at once into optimizers that are built, and into others
      when the first step builds them.

    Example:
        >>> import keras, kustom, numpy as np
        >>> from keras import ops
        >>> class GAN(kustom.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.generator = keras.Sequential([keras.layers.Dense(2)])
        ...         self.critic = keras.Sequential([keras.layers.Dense(1)])
        ...         self.optimizers = [keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.01)]
        ...
        ...     def train_step(self, real):
        ...         noise = keras.random.normal((ops.shape(real)[0], 3))
        ...         with kustom.GradientTape(persistent=True) as tape:
        ...             judged = self.critic(self.generator(noise))
        ...             losses = ops.mean(judged - self.critic(real)), -ops.mean(judged)
        ...         for part, loss, optimizer in zip((self.critic, self.generator), losses, self.optimizers):
        ...             variables = part.trainable_variables
        ...             optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        ...         return {"critic": losses[0], "generator": losses[1]}
        >>> gan = GAN()
        >>> gan.compile(optimizer=None)
        >>> history = gan.fit(np.ones((32, 2)), batch_size=8, epochs=2, verbose=0)
        >>> sorted(history.history), [int(optimizer.iterations.value) for optimizer in gan.optimizers]
        (['critic', 'generator'], [8, 8])
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is Model and private.are_functional(args, kwargs):
            return super().__new__(FunctionalModel)
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if private.are_functional(args, kwargs) and not isinstance(self, FunctionalModel):
            # Keras would make Functional the base of this class, and so of all models.
            _derive(type(self))
        super().__init__(*args, **kwargs)

    def train_step(self, data: Any) -> Any:
        """One step of training on a batch; override it.

        Args:
            data: `x`, `(x, y)` or `(x, y, sample_weight)`.

        Returns:
            A dict of scalars or metrics, or None.
        """
        if private.has_strategy(self):
            return super().train_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        optimizer = cast(Any, self.optimizer)
        if optimizer is None:
            raise StepError("the model was compiled without an optimizer; give one to compile, or override train_step.")
        with GradientTape(persistent=private.keeps_states(self)) as tape:
            y_pred = private.forward(self, x, training=True)
            loss = private.total_loss(self, x, y, y_pred, sample_weight, training=True)
            private.loss_tracker(self).update_state(loss, sample_weight=_samples(x))
            scaled = optimizer.scale_loss(loss)
        variables = self.trainable_variables
        if variables:
            optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        else:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def test_step(self, data: Any) -> Any:
        """One step of `evaluate` and of the validation; override it.

        Args:
            data: As of `train_step`.

        Returns:
            As of `train_step`.
        """
        if private.has_strategy(self):
            return super().test_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = private.forward(self, x, training=False)
        loss = private.total_loss(self, x, y, y_pred, sample_weight, training=False)
        private.loss_tracker(self).update_state(loss, sample_weight=_samples(x))
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def predict_step(self, data: Any) -> Any:
        """One step of `predict`; override it.

        Args:
            data: As of `train_step`.

        Returns:
            Tensors in any structure, with an axis of samples.
        """
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return private.forward(self, x, training=False)

    @hide_frames
    def fit(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: Any = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Sequence[int] = 1,
    ) -> Any:
        """Train, as `keras.Model.fit`; the data may be whatever `kustom.Loop.fit` takes.

        Raises:
            ValueError: The model is not compiled.
            DataError: The data does not fit together.
            StepError: The step returns something else than scalars and metrics.
        """
        private.need_compiled(self, "fit")
        given = {
            "batch_size": batch_size,
            "epochs": epochs,
            "verbose": verbose,
            "callbacks": callbacks,
            "validation_split": validation_split,
            "validation_data": validation_data,
            "shuffle": shuffle,
            "class_weight": class_weight,
            "initial_epoch": initial_epoch,
            "steps_per_epoch": steps_per_epoch,
            "validation_steps": validation_steps,
            "validation_batch_size": validation_batch_size,
            "validation_freq": validation_freq,
        }
        if private.has_strategy(self):
            return super().fit(x, y, sample_weight=sample_weight, **given)
        try:
            history = self._kustom_way().fit(
                x, y, sample_weight, on_nonfinite="ignore", execution=self._kustom_execution(), **given
            )
        finally:
            current().set_mode(self, training=False)
        self.history: History = history
        return history

    @hide_frames
    def evaluate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Measure, as `keras.Model.evaluate`; the metrics hold afterwards what they did before.

        Raises:
            ValueError: The model is not compiled.
            DataError: The data does not fit together.
        """
        private.need_compiled(self, "evaluate")
        given = {"batch_size": batch_size, "verbose": verbose, "steps": steps, "callbacks": callbacks}
        if private.has_strategy(self):
            return super().evaluate(x, y, sample_weight=sample_weight, return_dict=return_dict, **given, **kwargs)
        if kwargs:
            raise TypeError(f"evaluate() got unexpected arguments: {', '.join(kwargs)}.")
        values = self._kustom_way().evaluate(x, y, sample_weight, execution=self._kustom_execution(), **given)
        return values if return_dict else private.in_order(self, values)

    @hide_frames
    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Any, batch_size: int | None = None, verbose: Any = "auto", steps: int | None = None, callbacks: Any = None
    ) -> Any:
        """Predict, as `keras.Model.predict`."""
        given = {"batch_size": batch_size, "verbose": verbose, "steps": steps, "callbacks": callbacks}
        if private.has_strategy(self):
            return super().predict(x, **given)
        return self._kustom_way().predict(x, execution=self._kustom_execution(), **given)

    @hide_frames
    def train_on_batch(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """One step, as `keras.Model.train_on_batch`; the step gets its data as in `fit`."""
        private.need_compiled(self, "train_on_batch")
        if class_weight is not None:
            if sample_weight is not None:
                raise ValueError("sample_weight and class_weight were both given to train_on_batch; give one.")
            sample_weight = class_weights(ops.convert_to_numpy(y), class_weight)
        if private.has_strategy(self):
            return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)
        values = self._kustom_way().on_batch("train", (x, y, sample_weight), self._kustom_execution())
        return values if return_dict else private.in_order(self, values)

    @hide_frames
    def test_on_batch(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """One step of the evaluation, as `keras.Model.test_on_batch`."""
        private.need_compiled(self, "test_on_batch")
        if private.has_strategy(self):
            return super().test_on_batch(x, y, sample_weight, return_dict=return_dict)
        values = self._kustom_way().on_batch("evaluate", (x, y, sample_weight), self._kustom_execution())
        return values if return_dict else private.in_order(self, values)

    @hide_frames
    def predict_on_batch(self, x: Any) -> Any:
        """Predict one batch, as `keras.Model.predict_on_batch`."""
        if private.has_strategy(self):
            return super().predict_on_batch(x)
        return self._kustom_way().predicted_batch((x,), self._kustom_execution())

    def load_own_variables(self, store: Any) -> None:
        """Read the model's own variables; what the file holds of optimizers in attributes is kept until they are built."""
        for optimizer in private.optimizers_in(vars(self).values()):
            if optimizer is not getattr(self, "optimizer", None):
                let_wait(optimizer)
        super().load_own_variables(store)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as a file says; also without an optimizer, which Keras would build."""
        if config.get("optimizer") is None and type(self).compile is keras.Model.compile:
            self.compile(**keras.saving.deserialize_keras_object(config))
        else:
            super().compile_from_config(config)

    def _kustom_way(self) -> Steps:
        """What runs the steps; another one where the model has been compiled anew, or one of its parts exchanged."""
        kept = vars(self).get("_kustom_steps")
        if kept is None or not kept.is_of_now():
            # Not by assignment: Keras is not to track it.
            kept = self.__dict__["_kustom_steps"] = Steps(self)
        return kept

    def _kustom_execution(self) -> str:
        return "eager" if self.run_eagerly else current().execution(bool(self.jit_compile))


@keras.saving.register_keras_serializable("kustom")
class FunctionalModel(Model, private.Functional):
    """What `kustom.Model(inputs, outputs)` is, and the base of a subclass that is made so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def _derive(cls: type) -> None:
    """Put `FunctionalModel` in the place of `Model` among the bases of a class."""
    if not issubclass(cls, Model) or issubclass(cls, FunctionalModel):
        return
    for base in cls.__bases__:
        if base is not Model:
            _derive(base)
    cls.__bases__ = tuple(FunctionalModel if base is Model else base for base in cls.__bases__)


def _samples(x: Any) -> Any:
    return ops.shape(next(leaf for leaf in keras.tree.flatten(x) if leaf is not None))[0]
