"""What is frozen, or forgotten, when a call is traced once and run many times."""

from __future__ import annotations

import keras
from keras import ops

import kustom

register = keras.saving.register_keras_serializable("faults")


@register
class DividesIfLarge(keras.layers.Layer):
    def call(self, x):
        if ops.max(x) > 1.0:
            return x / ops.max(x)
        return x


@register
class DividesByWhere(keras.layers.Layer):
    def call(self, x):
        return x / ops.maximum(ops.max(x), 1.0)


def loss_with_a_python_float(y_true, y_pred):
    scale = float(ops.max(ops.abs(y_true)))
    return ops.mean(ops.square(y_true - y_pred), axis=-1) / (scale + 1.0)


@kustom.loss
def loss_with_a_tensor(y_true, y_pred):
    scale = ops.max(ops.abs(y_true))
    return ops.square(ops.subtract(y_true, y_pred)) / (scale + 1.0)


def activation_through_a_loop(x):
    count = int(ops.sum(ops.cast(x > 0, "int32")))
    for _ in range(count % 3):
        x = x * 1.5
    return x


def activation_without_a_loop(x):
    count = ops.sum(ops.cast(x > 0, "int32"))
    return x * ops.power(1.5, ops.cast(ops.mod(count, 3), x.dtype))


@register
class CountsInPython(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = 0

    def call(self, x):
        self.calls += 1
        return x


@register
class CountsInAVariable(keras.layers.Layer):
    def build(self, input_shape):
        self.calls = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1)
        return x


@register
class KeepsATensor(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.running = 0.0

    def call(self, x, training=None):
        if training:
            self.running = 0.9 * self.running + 0.1 * ops.mean(x)
        return x - self.running


@register
class KeepsAVariable(keras.layers.Layer):
    def build(self, input_shape):
        self.running = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=None):
        if training:
            self.running.assign(0.9 * self.running + 0.1 * ops.mean(x))
        return x - self.running


@register
class KeepsAHistory(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.history = []

    def call(self, x):
        self.history.append(x.shape)
        return x * 2.0


@kustom.layer
def keeps_nothing(x):
    return x * 2.0


@register
class UpdatesAMetric(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = keras.metrics.Mean(name="seen")

    def call(self, x):
        self.seen.update_state(ops.mean(x))
        return x


@kustom.part
class UpdatesAMetricOfOurs(keras.layers.Layer):
    def setup(self):
        self.seen = keras.metrics.Mean(name="seen")

    def call(self, x):
        self.seen.update_state(ops.mean(x))
        return x


@register
class MetricMadeInBuild(keras.layers.Layer):
    def build(self, input_shape):
        self.seen = keras.metrics.Mean(name="seen")

    def call(self, x):
        self.seen.update_state(ops.mean(x))
        return x


@register
class KeepsItsOwnSum(keras.layers.Layer):
    def build(self, input_shape):
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.seen.assign_add(ops.mean(x))
        return x


@register
class MetricOfASublayer(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = UpdatesAMetric()

    def call(self, x):
        return self.inner(x) * 2.0


@register
class SumOfASublayer(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = KeepsItsOwnSum()

    def call(self, x):
        return self.inner(x) * 2.0


PAIRS = [
    ("T404", DividesIfLarge, DividesByWhere),
    ("T404", loss_with_a_python_float, loss_with_a_tensor),
    ("T404", activation_through_a_loop, activation_without_a_loop),
    ("T405", CountsInPython, CountsInAVariable),
    ("T405", KeepsATensor, KeepsAVariable),
    ("T405", KeepsAHistory, keeps_nothing),
    ("M508", UpdatesAMetric, UpdatesAMetricOfOurs),
    ("M508", MetricMadeInBuild, KeepsItsOwnSum),
    ("M508", MetricOfASublayer, SumOfASublayer),
]
