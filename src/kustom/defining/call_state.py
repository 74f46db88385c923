"""Metrics that a layer updates in its `call`, on JAX.

Keras's compiled JAX step hands a layer its variables while it is called, but not its metrics' (these come later, with the
loss), so that `self.seen.update_state(...)` in `call` ends in `'NoneType' object is not callable`. Here such a metric's
variables count among the layer's state, as a seed generator's do; and the model is shown the metric through a view that
has no variables of its own, lest the step bring back their old values. Inside the step the view has no value to show
(NaN); where the epoch ends, and wherever it is asked outside of a step, it has the metric's.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from kustom.backends import current
from kustom.backends import keras as private

__all__ = ["adopt", "shown"]

_VIEWS = "_kustom_metric_views"


class _State:
    """A variable that a layer counts as its state, in the way of a seed generator."""

    def __init__(self, variable: Any) -> None:
        self.state = variable


class _View:
    """A metric as the model sees it: everything but its variables."""

    def __init__(self, metric: Any) -> None:
        self._metric = metric
        self.variables: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._metric, name)

    def __repr__(self) -> str:
        return repr(self._metric)

    def result(self) -> Any:
        if all(private.has_value(variable) for variable in self._metric.variables):
            return self._metric.result()
        return ops.convert_to_tensor(float("nan"), dtype=self._metric.dtype)


def adopt(layer: Any, inputs: dict[str, Any]) -> None:
    """Make the metrics that `layer.call` updates its own, where the backend needs it.

    Args:
        layer: Built, or about to be.
        inputs: Symbolic arguments of its call, by name.
    """
    views = vars(layer).get(_VIEWS, {})
    metrics = [metric for metric in private.metrics_of(layer) if id(metric) not in views and metric.variables]
    if not metrics or current().HANDS_METRICS_TO_CALL:
        return
    updated: list[Any] = []

    def call(**arguments: Any) -> Any:
        outputs = layer.call(**arguments)
        updated.extend(metric for metric in metrics if any(map(private.is_assigned, metric.variables)))
        return outputs

    private.compute_output_spec(call, **inputs)
    for metric in updated:
        for variable in metric.variables:
            private.add_state(layer, _State(variable))
        views[id(metric)] = _View(metric)
    object.__setattr__(layer, _VIEWS, views)


def shown(layer: Any, metrics: list[Any]) -> list[Any]:
    """The metrics of a layer as a model sees them."""
    views = vars(layer).get(_VIEWS, {})
    return [views.get(id(metric), metric) for metric in metrics]
