"""`Supervised`: the usual step of a model with targets, and nothing that a user would have to remember.

What the losses and metrics of several outputs mean, and how they are called, is Keras's own: the classes that `compile`
makes of its arguments are used, beside the model, which is not compiled. Where `fit` is right, the numbers are `fit`'s.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kustom.backends import keras as private
from kustom.errors import SettingError, StepError, hide_frames, refuse_tf_keras
from kustom.gradients.tape import GradientTape
from kustom.training.accumulation import SIZE, Accumulation, divisor, take_over
from kustom.typing import LossLike, OptimizerLike

__all__ = ["Supervised"]

# What a model may do in its own way under `fit`, and what a step beside it would pass over without a word.
_OWN_WAYS = ("train_step", "test_step", "compute_loss", "compute_metrics")


class Supervised:
    """The usual step: the model's predictions, the loss, its gradient, the update, the metrics.

    It takes `(x, y, sample_weight)` as `fit` does, the last two where there are any, and returns nothing: what it measures
    is in its `metrics`, under the names that `fit` reports. It has all that `fit` has: weights and masks, the losses that
    layers add and regularizers, constraints, clipping, mixed precision with loss scaling, several inputs and outputs. It
    trains `model.trainable_variables`, as they are at each call.

    Args:
        model: The model, built or not. It is not compiled, and what it was compiled with does not matter.
        optimizer: An optimizer or its name. Under `mixed_float16` it is wrapped in a `LossScaleOptimizer`, as by `compile`.
        loss: A loss, a function `(y_true, y_pred)` or a name; for several outputs a list or dict of them, in the structure
            of the outputs or by their names; None where the layers' added losses are all.
        loss_weights: A number for each loss, in the structure of `loss`.
        metrics: Metrics, functions or names, as for `compile`: a list, for several outputs a list of lists or a dict.
        weighted_metrics: As `metrics`; these take account of `sample_weight`.

    Attributes:
        model: The model.
        optimizer: The optimizer that is applied: the `LossScaleOptimizer` around the one given, where one was put there.
        metrics: Two metrics: the mean of the loss, `"loss"`, and one that holds all others, whose result is a dict.

    Raises:
        SettingError: One of them is nothing that Keras knows, or the model has a `train_step` of its own.
        StepError: When it is called: there is a loss and no `y`, or nothing to minimize.

    Example:
        >>> import keras, kustom, numpy as np
        >>> model = keras.Sequential([keras.layers.Dense(1)])
        >>> loop = kustom.Loop(kustom.Supervised(model, optimizer=keras.optimizers.Adam(0.1), loss="mse", metrics=["mae"]))
        >>> x = np.linspace(-1, 1, 64, dtype="float32")[:, None]
        >>> history = loop.fit(x, 3 * x, epochs=30, verbose=0)
        >>> sorted(history.history), history.history["mae"][-1] < 0.5
        (['loss', 'mae'], True)
        >>> sorted(loop.evaluate(x, 3 * x))
        ['loss', 'mae']
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        optimizer: OptimizerLike,
        loss: LossLike,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
    ) -> None:
        refuse_tf_keras(model, optimizer)
        if not isinstance(model, keras.Model):
            raise SettingError(f"model is {type(model).__name__} {str(model)[:40]!r}; give a keras.Model.")
        _refuse_own_ways(model)
        self.model = model
        self.optimizer = _optimizer(optimizer, model)
        _refuse_unknown_names(loss, keras.losses.get, ("crossentropy", "ce"), "loss")
        for name, given in (("metrics", metrics), ("weighted_metrics", weighted_metrics)):
            if given is not None and not isinstance(given, list | tuple | dict):
                raise SettingError(f"{name} is {type(given).__name__} {str(given)[:40]!r}; give a list, or a dict by output.")
            _refuse_unknown_names(given, keras.metrics.get, ("accuracy", "acc"), name)
        names = getattr(model, "output_names", None)
        self._loss = None
        if loss is not None:
            self._loss = _made("loss_weights", lambda: private.Terms(loss, loss_weights, output_names=names))
        elif loss_weights is not None:
            raise SettingError(f"loss_weights={loss_weights!r} was given without a loss; give the losses that they weigh.")
        self._metrics = None
        if metrics is not None or weighted_metrics is not None:
            self._metrics = private.CompileMetrics(metrics, weighted_metrics, output_names=names)
        steps = take_over(self.optimizer)
        self._accumulation = None if steps is None else Accumulation(steps, self._apply)
        self._mean = keras.metrics.Mean(name="loss")
        self.metrics: list[keras.metrics.Metric] = [self._mean, _Others(model, self._loss, self._metrics)]

    def __repr__(self) -> str:
        return f"<kustom.Supervised of {self.model.name!r} by {self.optimizer.name!r}>"

    @property
    def _kustom_reaches(self) -> tuple[Any, ...]:
        """What is followed by whoever follows what a step reaches."""
        return self.model, self.optimizer, self._loss, self._metrics, self._mean

    @hide_frames
    def __call__(self, x: Any, y: Any = None, sample_weight: Any = None) -> None:
        """Train on one batch.

        Args:
            x: What the model takes: a tensor, or a structure of them, of the shape `(batch, ...)`.
            y: The targets, for several outputs in a structure.
            sample_weight: A weight for each sample, or for each step of each sequence; for several outputs one for all, or
                a structure.
        """
        if self._accumulation is not None:
            self._accumulate(self._accumulation, x, y, sample_weight)
            return
        with GradientTape(persistent=private.keeps_states(self.model)) as tape:
            y_pred = self._called(x, training=True)
            loss = _total(*self._losses(x, y, y_pred, sample_weight))
            scaled = self.optimizer.scale_loss(loss)
        variables = self._trained()
        if variables:
            self._apply(tape.gradient(scaled, variables), variables)
        self._measure(x, y, y_pred, loss, sample_weight)

    def _accumulate(self, accumulation: Accumulation, x: Any, y: Any, sample_weight: Any) -> None:
        groups: dict[Any, Any] = {}
        with GradientTape(persistent=True) as tape:
            y_pred = self._called(x, training=True)
            terms, added = self._losses(x, y, y_pred, sample_weight)
            for group, amount, value in terms + added:
                groups.setdefault(group, (amount, []))[1].append(value)
            scaled = {group: self.optimizer.scale_loss(_sum(values)) for group, (_, values) in groups.items()}
        variables = self._trained()
        if variables:
            if not self.optimizer.built:
                # In the branch where it is applied it would be too late.
                self.optimizer.build(variables)
            for group, (amount, _) in groups.items():
                accumulation.add(group, tape.gradient(scaled[group], variables), variables, amount)
            accumulation.count(variables)
        self._measure(x, y, y_pred, _total(terms, added), sample_weight)

    def _trained(self) -> list[keras.Variable]:
        variables = self.model.trainable_variables
        if not variables:
            warnings.warn(f"{self.model.name!r} has no trainable variables: nothing is trained. Is it frozen?", stacklevel=2)
        return variables

    def _apply(self, gradients: list[Any], variables: list[keras.Variable]) -> None:
        # An average that overwrites the weights from time to time is not to change those that are frozen.
        frozen = [v for v in private.averaged(self.optimizer) if not v.trainable]
        kept = [ops.copy(v) for v in frozen]
        self.optimizer.apply(gradients, variables)
        if any(each.gradient_accumulation_steps for each in private.steppers_of(self.optimizer)):
            raise SettingError(
                f"{self.optimizer.name!r} has made an optimizer that accumulates gradients; it must be there from the first: in "
                "a keras.optimizers.OptimizerMap."
            )
        for variable, value in zip(frozen, kept, strict=True):
            variable.assign(value)

    @hide_frames
    def eval_step(self, x: Any, y: Any = None, sample_weight: Any = None) -> None:
        """Measure one batch, and train nothing.

        Args:
            x: As for the step.
            y: As for the step.
            sample_weight: As for the step.
        """
        y_pred = self._called(x, training=False)
        loss = _total(*self._losses(x, y, y_pred, sample_weight))
        self._measure(x, y, y_pred, loss, sample_weight)

    @property
    def begin(self) -> Callable[[], None] | None:
        """What is to be called where a training begins: a run that was cut short may have left a part of a group of batches."""
        return None if self._accumulation is None else self._accumulation.clear

    @property
    def epoch_end(self) -> Callable[[], None] | None:
        """What is to be called at the end of each epoch: where gradients are accumulated, it applies the rest."""
        return None if self._accumulation is None else self._apply_rest

    def _apply_rest(self) -> None:
        if self._accumulation is not None:
            self._accumulation.rest(self.model.trainable_variables)

    def end(self) -> None:
        """The training has ended: where the optimizer keeps an average of the weights, it becomes the weights."""
        frozen = [v for v in private.averaged(self.optimizer) if not v.trainable]
        kept = [ops.copy(v) for v in frozen]
        if self.optimizer.built:
            self.optimizer.finalize_variable_values(private.trained_by(self.optimizer))
        for variable, value in zip(frozen, kept, strict=True):
            variable.assign(value)

    def _called(self, x: Any, *, training: bool) -> Any:
        keywords = {"training": training} if private.takes_training(self.model) else {}
        return self.model(x, **keywords)

    def _losses(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> tuple[list[Any], list[Any]]:
        """The losses of the outputs and the added ones, which count as means: for each its group, its divisor, its value."""
        samples = _samples(x)
        terms, added = [], []
        if self._loss is not None:
            if y is None:
                raise StepError("there is a loss and no targets: give y, loop.fit(x, y), or batches of (x, y).")
            for i, (loss, value, predicted, weight) in enumerate(self._terms(y, y_pred, sample_weight)):
                terms.append((*divisor(i, loss, predicted, weight, samples), value))
        for loss in self.model.losses:
            value = loss if private.is_float_dtype(loss.dtype) else ops.cast(loss, keras.config.floatx())
            added.append((SIZE, samples, ops.sum(value)))
        if not terms and not added:
            raise StepError("there is nothing to minimize: Supervised has no loss, and the model adds none. Give loss=.")
        return terms, added

    def _terms(self, y: Any, y_pred: Any, sample_weight: Any) -> list[tuple[Any, Any, Any, Any]]:
        loss: Any = self._loss
        try:
            return loss.terms(y, y_pred, sample_weight)
        except (ValueError, KeyError) as error:
            if loss.built:
                # Of a loss itself.
                raise
            raise SettingError(
                f"loss= and loss_weights= do not fit the outputs of {self.model.name!r} and their targets. {error.args[0]}"
            ) from None

    def _measure(self, x: Any, y: Any, y_pred: Any, loss: Any, sample_weight: Any) -> None:
        self._mean.update_state(loss, sample_weight=_samples(x))
        if self._metrics is not None:
            self._metrics.update_state(y, y_pred, sample_weight)


def _total(terms: list[Any], added: list[Any]) -> Any:
    # In the order in which `fit` adds them up, which rounding depends on.
    losses = [sum(value for *_, value in terms)] if terms else []
    return _sum([*losses, *(value for *_, value in added)])


def _sum(losses: list[Any]) -> Any:
    if len(losses) == 1:
        return losses[0]
    # Those of layers are in the layer's dtype, and TensorFlow does not mix them.
    dtype = keras.backend.result_type(*(private.standardize_dtype(loss.dtype) for loss in losses))
    return ops.sum([ops.cast(loss, dtype) for loss in losses])


def _samples(x: Any) -> Any:
    return ops.shape(next(each for each in keras.tree.flatten(x) if each is not None))[0]


class _Others(keras.metrics.Metric):
    """All metrics but the mean of the loss, in Keras's order: of the outputs, of each loss, of the model and its layers.

    Which there are is known after the first step; so they stand behind one, which asks each time.
    """

    def __init__(self, model: keras.Model, loss: Any, metrics: Any) -> None:
        super().__init__(name="supervised")
        self._of: tuple[keras.Model, Any, Any] = (model, loss, metrics)

    def _all(self) -> dict[int, keras.metrics.Metric]:
        model, loss, metrics = self._of
        # A model inside has been trained by itself, and keeps its own.
        layers = [layer for layer in private.descendants(model) if not isinstance(layer, keras.Model)]
        found = [*([] if metrics is None else [metrics]), *([] if loss is None else loss.metrics)]
        found += [metric for layer in (model, *layers) for metric in private.metrics_of(layer)]
        return {id(metric): metric for metric in found}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Those of them that report one value each."""
        return [one for metric in self._all().values() for one in getattr(metric, "metrics", None) or [metric]]

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of all of them."""
        return [variable for metric in self._all().values() for variable in metric.variables]

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Each is updated where it stands."""

    def reset_state(self) -> None:
        """Make all of them new."""
        for metric in self._all().values():
            metric.reset_state()

    def result(self) -> dict[str, Any]:
        """What they say, by name."""
        results: dict[str, Any] = {}
        for metric in self._all().values():
            if not getattr(metric, "built", True):
                continue
            result = metric.result()
            results |= _flat(result) if isinstance(result, dict) else {_free(metric.name, results): result}
        return results


def _flat(results: dict[str, Any]) -> dict[str, Any]:
    """Of metrics that have several results each, as `fit` reports them: under their own names."""
    flat: dict[str, Any] = {}
    for name, result in results.items():
        flat |= _flat(result) if isinstance(result, dict) else {name: result}
    return flat


def _free(name: str, taken: dict[str, Any]) -> str:
    number, free = 1, name
    while free in taken:
        free = f"{name}_{number}"
        number += 1
    return free


def _optimizer(given: Any, model: keras.Model) -> Any:
    optimizer = _made("optimizer", lambda: keras.optimizers.get(given))
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise SettingError(f"optimizer is {given!r}; give a keras.optimizers.Optimizer or its name, such as 'adam'.")
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if model.dtype_policy.name == "mixed_float16" and not scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
    return optimizer


def _refuse_own_ways(model: keras.Model) -> None:
    for name in _OWN_WAYS:
        if not private.is_library(getattr(type(model), name).__module__):
            raise SettingError(
                f"{type(model).__name__} has a {name} of its own, which Supervised would not call. Write the step that does: "
                "kustom.Loop(step); or train by model.fit."
            )


def _refuse_unknown_names(given: Any, get: Callable[[Any], Any], chosen_by_shape: tuple[str, ...], what: str) -> None:
    for leaf in keras.tree.flatten(given):
        if isinstance(leaf, str) and leaf.lower() not in chosen_by_shape:
            _made(what, lambda leaf=leaf: get(leaf))
        elif leaf is not None and not isinstance(leaf, str) and not callable(leaf):
            raise SettingError(f"{what} holds {type(leaf).__name__} {str(leaf)[:40]!r}; give objects, functions or names.")


def _made(what: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (ValueError, TypeError) as error:
        raise SettingError(f"{what} is nothing that Keras knows. {error}") from None
