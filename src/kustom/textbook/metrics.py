"""Section 12.3.4: metrics that stream, so that the value of an epoch is not a mean of batches."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

import kustom
from kustom.textbook.losses import huber_fn

__all__ = ["HuberMetric", "precision"]


@kustom.metric
def precision(y_true: Any, y_pred: Any, *, threshold: float = 0.5) -> Any:
    """Of what was predicted positive, the part that is: true positives / (true positives + false positives).

    Two batches with 4 of 5 and 0 of 3 give 4 of 8, not the mean of 80 % and 0 %. Nothing predicted positive gives 0.
    `keras.metrics.Precision(thresholds=threshold)` is the same.

    Args:
        y_true: Targets, 0 or 1 or booleans, of the shape `(batch, ...)`.
        y_pred: Predictions of that shape.
        threshold: A prediction above it is positive.

    Example:
        >>> import kustom
        >>> precision = kustom.textbook.precision()
        >>> round(float(precision([0, 1, 1, 1, 0, 1, 0, 1], [1, 1, 0, 1, 0, 1, 0, 1])), 4)
        0.8
        >>> round(float(precision([0, 1, 0, 0, 1, 0, 1, 1], [1, 0, 1, 1, 0, 0, 0, 0])), 4)
        0.5
    """
    predicted = ops.cast(y_pred, "float32") > threshold
    positive = ops.cast(y_true, "bool")
    return kustom.Ratio(ops.logical_and(positive, predicted), predicted)


@kustom.part
class HuberMetric(keras.metrics.Metric):
    """The mean Huber loss over all samples seen, weighted by `sample_weight`; see `huber_fn`.

    Args:
        threshold: Where the branches meet; in the units of the error, above 0.

    Example:
        >>> import kustom
        >>> metric = kustom.textbook.HuberMetric(2.0)
        >>> metric.update_state([[0.0], [0.0]], [[1.0], [3.0]], sample_weight=[1.0, 0.0])
        >>> float(metric.result())
        0.5
    """

    threshold: float = 1.0

    def setup(self) -> None:
        self.total = self.add_weight(shape=(), initializer="zeros", name="total")
        self.count = self.add_weight(shape=(), initializer="zeros", name="count")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        values = huber_fn(y_true, y_pred, threshold=self.threshold, dtype=self.dtype)
        weights = ops.ones_like(values)
        if sample_weight is not None:
            missing = len(values.shape) - len(sample_weight.shape)
            weights = weights * ops.reshape(sample_weight, (*ops.shape(sample_weight), *[1] * missing))
        self.total.assign_add(ops.sum(values * weights))
        self.count.assign_add(ops.sum(weights))

    def result(self) -> Any:
        return ops.divide_no_nan(self.total, self.count)
