"""Parts of the tests' own, for files that a new process loads; it imports kustom and this module alone."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

import kustom
from kustom.typing import ActivationLike, LossLike


@kustom.loss
def pinball(y_true, y_pred, *, quantile: float = 0.5):
    error = ops.subtract(y_true, y_pred)
    return ops.maximum(quantile * error, (quantile - 1) * error)


@kustom.metric(result=lambda squares, count: ops.sqrt(ops.divide_no_nan(squares, count)))
def rmse(y_true, y_pred):
    squares = ops.square(ops.subtract(y_true, y_pred))
    return kustom.Sums(squares=squares, count=ops.ones_like(squares))


@kustom.activation
def leaky(x, *, slope: float = 0.1):
    return ops.where(x < 0, slope * x, x)


@kustom.initializer
def centred(shape, dtype, *, around: float = 0.0, seed: int | None = None):
    return around + keras.random.normal(shape, dtype=dtype, seed=seed, stddev=0.3)


@kustom.regularizer
def pull(w, *, target: np.ndarray, strength: float = 0.1):
    return strength * ops.sum(ops.square(w - target))


@kustom.constraint
def capped(w, *, at: float = 1.0):
    return ops.clip(w, -at, at)


@kustom.layer
def stretch(x, *, by: tuple[float, float] = (0.0, 1.0)):
    return by[0] + by[1] * x


@kustom.part
class Gated(keras.layers.Layer):
    units: int
    activation: ActivationLike = "tanh"
    scales: list[float] = [1.0, 0.5]  # noqa: RUF012
    offset: np.ndarray | None = None

    def setup(self):
        self.rows: list[Any] = []
        for _ in self.scales:
            row: list[Any] = []
            self.rows.append(row)
            row.append(keras.layers.Dense(self.units))

    def call(self, x):
        total = 0.0 if self.offset is None else ops.convert_to_tensor(self.offset, x.dtype)
        for scale, row in zip(self.scales, self.rows, strict=True):
            total = total + scale * row[0](x)
        return self.activation(total)


@kustom.part
class Lazy(keras.layers.Layer):
    """Its sublayer is built by the first call alone; its own `build` forgets it."""

    def setup(self):
        self.dense = keras.layers.Dense(4)

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        return self.dense(x) * self.scale


@kustom.part
class Twice(keras.Model):
    inner: keras.layers.Layer = kustom.field()
    auxiliary: LossLike = None

    def setup(self):
        self.head = keras.layers.Dense(1)

    def call(self, x):
        h = self.inner(self.inner(x))
        return self.head(h)


@kustom.part
class Slow(keras.optimizers.SGD):
    slower: float = 1.0

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient / self.slower, variable, learning_rate)
