"""What a compiled model computes with: its losses, its metrics, and the methods that Keras's own `fit` calls.

A loop of kustom's gives the numbers that Keras's does since it asks the same methods, in place of a copy of them.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
from keras.src.callbacks.monitor_callback import MonitorCallback
from keras.src.losses.loss import reduce_weighted_values
from keras.src.losses.losses import LossFunctionWrapper
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics
from keras.src.utils.tracking import Tracker

from kustom.backends.keras.exchanging import Exchange

__all__ = [
    "CompileLoss",
    "CompileMetrics",
    "Terms",
    "alone",
    "as_loss",
    "attributes_of",
    "direct",
    "forward",
    "has_strategy",
    "in_order",
    "loss_tracker",
    "need_compiled",
    "reduce_weighted_values",
    "results",
    "resumed_at",
    "synchronize",
    "total_loss",
    "variables_of_metrics",
]


def as_loss(function: Callable[..., Any]) -> keras.losses.Loss:
    """The loss that Keras makes of a function which `compile` is given."""
    return LossFunctionWrapper(function)


def alone(metric: keras.metrics.Metric) -> keras.metrics.Metric:
    """A metric with the same variables and settings, which can be called in a scope without a trace on the other.

    `copy` would make another of its config, which need not tell all settings.
    """
    made = object.__new__(type(metric))
    attributes = {name: _unshared(value) for name, value in vars(metric).items()}
    tracker = Tracker(
        {
            "variables": (lambda value: isinstance(value, keras.Variable), attributes["_variables"]),
            "metrics": (lambda value: isinstance(value, keras.metrics.Metric), attributes["_metrics"]),
        }
    )
    vars(made).update(attributes, _tracker=tracker)
    return made


def _unshared(value: Any) -> Any:
    return list(value) if isinstance(value, list) else dict(value) if isinstance(value, dict) else value


class Terms(CompileLoss):
    """Keras's loss of all outputs, which can be had term by term, too."""

    def build(self, y_true: Any, y_pred: Any) -> None:
        """Build it, and stand in front of each loss."""
        super().build(y_true, y_pred)
        self._flat_losses = [each._replace(loss=functools.partial(self._told, each[1], each[2])) for each in self._flat_losses]

    def _told(self, loss: Any, weight: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
        value = loss(y_true, y_pred, sample_weight)
        weighted = keras.ops.cast(value, self.dtype)
        self._terms.append((loss, weighted if weight is None else weighted * weight, y_pred, sample_weight))
        return value

    def terms(self, y_true: Any, y_pred: Any, sample_weight: Any) -> list[tuple[Any, Any, Any, Any]]:
        """For each loss: itself, its value times its weight, and the predictions and weights that it was given."""
        self._terms: list[Any] = []
        try:
            self(y_true, y_pred, sample_weight)
            return self._terms
        finally:
            # No tracer is to stay.
            self._terms = []


def forward(model: Any, x: Any, *, training: bool) -> Any:
    """Call a model as its trainer does."""
    return model(x, training=training) if model._call_has_training_arg else model(x)


def total_loss(model: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any, *, training: bool) -> Any:
    """The compiled loss of a model and its added losses, or what its `compute_loss` makes of them."""
    return model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)


def loss_tracker(model: Any) -> Any:
    """The metric "loss" of a compiled model."""
    return model._loss_tracker


def need_compiled(model: Any, method: str) -> None:
    """Refuse a model that is not compiled, as Keras does."""
    model._assert_compile_called(method)


def in_order(model: Any, values: dict[str, Any]) -> Any:
    """Values of metrics as a list in the order that Keras gives them, a single one by itself."""
    return model._flatten_metrics_in_order(values)


def direct(callback: Any, metrics: Mapping[str, Any]) -> None:
    """Tell a callback that monitors a metric which way it gets better, where that is left to what the metric says.

    Keras asks the metrics that its model was compiled with.

    Args:
        callback: Any callback.
        metrics: Metrics under the names that they are reported by; one that stands for several has them in `metrics`.
    """
    if not isinstance(callback, MonitorCallback) or callback.mode != "auto" or callback.monitor_op is not None:
        return
    monitored = callback.monitor.removeprefix("val_")
    for name, metric in metrics.items():
        for each in getattr(metric, "metrics", None) or [metric]:
            direction = getattr(each, "_direction", None)
            if direction is None or not (monitored in (name, each.name) or monitored.endswith(f"_{each.name}")):
                continue
            callback.mode = "max" if direction == "up" else "min"
            try:
                callback._set_monitor_op()
            finally:
                callback.mode = "auto"
            return


def resumed_at(model: Any) -> int:
    """The epoch that a callback has told a model to go on from, once: `BackupAndRestore` does; else 0."""
    epoch, model._initial_epoch = model._initial_epoch, None
    return epoch or 0


def has_strategy(model: Any) -> bool:
    """Whether a model was made under a `tf.distribute` strategy."""
    return getattr(model, "_distribute_strategy", None) is not None


def attributes_of(model: Any) -> dict[str, Any]:
    """The variables and objects of Keras that stand in a model's attributes, what it was compiled with among them."""
    kinds = (KerasSaveable, keras.losses.Loss, keras.Variable)
    return {name: value for name, value in vars(model).items() if isinstance(value, kinds)}


class _Results(threading.local):
    def __init__(self) -> None:
        self.all: list[dict[int, Any]] = []


_results = _Results()


@contextlib.contextmanager
def results(kinds: Iterable[type]) -> Iterator[dict[int, Any]]:
    """What metrics of these classes give as their results inside, in this thread.

    Gives, from the id of each tensor: the metric and which of its results it is (None where it has but one), and the tensor.
    """
    noted: dict[int, Any] = {}
    _results.all.append(noted)
    try:
        with contextlib.ExitStack() as stack:
            for kind in kinds:
                stack.enter_context(_results_of(kind))
            yield noted
    finally:
        _results.all.pop()


@functools.lru_cache(maxsize=256)
def _results_of(kind: type) -> Exchange:
    return Exchange(kind, "result", _noted_result)


def _noted_result(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(plain)
    def result(self: Any) -> Any:
        given = plain(self)
        for noted in _results.all:
            for key, value in given.items() if isinstance(given, dict) else [(None, given)]:
                noted.setdefault(id(value), ((self, key), value))
        return given

    return result


def synchronize(model: Any) -> None:
    """Have the variables of a model hold what they hold for its trainer, which on JAX keeps their values while it steps."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def variables_of_metrics(model: Any) -> list[keras.Variable]:
    """The variables of all metrics of a model and of the layers below it."""
    return [v for layer in model._flatten_layers() for metric in layer._metrics for v in metric.variables] + model.metrics_variables
