"""Section 12.3.1 and 12.3.2: the Huber loss, as a function, with a threshold, and as a class.

The chapter's linear branch is `t|e| - t * 2 * 0.5`, which jumps at the threshold unless t = 2; the right one,
`t|e| - t**2 / 2`, meets the square there.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

import kustom

__all__ = ["HuberLoss", "create_huber", "huber_fn"]


@kustom.loss
def huber_fn(y_true: Any, y_pred: Any, *, threshold: float = 1.0) -> Any:
    """The Huber loss of each entry: quadratic for small errors, linear beyond the threshold, so that outliers weigh less.

    With e = y_true - y_pred and threshold t: e**2 / 2 where abs(e) <= t, else t * abs(e) - t**2 / 2
    (Huber, Robust Estimation of a Location Parameter, 1964). `keras.losses.Huber(delta=t)` is the same.

    Args:
        y_true: Targets, of any dtype, of the shape `(batch, ...)`.
        y_pred: Predictions of that shape, of any dtype.
        threshold: Where the branches meet; in the units of the error, above 0.

    Example:
        >>> import kustom
        >>> [float(value) for value in kustom.textbook.huber_fn([0.0, 0.0], [0.5, 3.0])]
        [0.125, 2.5]
        >>> kustom.textbook.huber_fn(threshold=2.0)
        huber_fn(threshold=2.0)
    """
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(y_pred.dtype)):
        # Of two booleans, and of two unsigned integers, there is no error below 0.
        y_pred = ops.cast(y_pred, keras.config.floatx())
    error = ops.abs(ops.subtract(y_true, y_pred))
    return ops.where(error <= threshold, ops.square(error) / 2, threshold * error - threshold**2 / 2)


def create_huber(threshold: float = 1.0) -> keras.losses.Loss:
    """The Huber loss with a threshold: a part that knows it, where the chapter's closure loses it in the file.

    Example:
        >>> import kustom
        >>> kustom.textbook.create_huber(2.0).get_config()["threshold"]
        2.0
    """
    return huber_fn(threshold=threshold)


@kustom.part
class HuberLoss(keras.losses.Loss):
    """The Huber loss as a class; see `huber_fn`.

    Args:
        threshold: Where the branches meet; in the units of the error, above 0.

    Example:
        >>> import kustom
        >>> float(kustom.textbook.HuberLoss(2.0)([[0.0], [0.0]], [[1.0], [3.0]]))
        2.25
    """

    threshold: float = 1.0

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return huber_fn(y_true, y_pred, threshold=self.threshold, dtype=self.dtype)
