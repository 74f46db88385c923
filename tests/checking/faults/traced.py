"""What is frozen, or forgotten, when a call is traced once and run many times."""

from __future__ import annotations

import keras
import numpy as np
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


@register
class RanksByNumPy(keras.metrics.Metric):
    """Of each list, whether the first of three is relevant."""

    def __init__(self, name="hits", **kwargs):
        super().__init__(name=name, **kwargs)
        self.hits = self.add_variable((), initializer="zeros", name="hits")
        self.lists = self.add_variable((), initializer="zeros", name="lists")

    def first(self, y_pred):
        return ops.convert_to_tensor(np.argsort(-np.asarray(y_pred), axis=-1)[:, :1])

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true = ops.reshape(ops.cast(y_true, "float32"), ops.shape(y_pred))
        hit = ops.cast(ops.take_along_axis(y_true, self.first(y_pred), axis=-1)[:, 0] > 0.5, "float32")
        weight = ops.ones_like(hit) if sample_weight is None else ops.cast(sample_weight, hit.dtype)
        self.hits.assign_add(ops.sum(hit * weight))
        self.lists.assign_add(ops.sum(weight))

    def result(self):
        return ops.divide_no_nan(self.hits, self.lists)


@register
class RanksByOps(RanksByNumPy):
    def first(self, y_pred):
        return ops.argsort(-y_pred, axis=-1)[:, :1]


@register
class CountsItsSteps(keras.optimizers.Optimizer):
    """Momentum whose bias is corrected by a count in Python."""

    def __init__(self, learning_rate=0.01, beta=0.9, name="counts", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.beta = beta
        self.steps = 0

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.momenta = [self.add_variable_from_reference(v, "momentum") for v in variables]

    def step(self):
        self.steps += 1
        return self.steps

    def update_step(self, gradient, variable, learning_rate):
        momentum = self.momenta[self._get_variable_index(variable)]
        self.assign(momentum, self.beta * momentum + (1 - self.beta) * ops.cast(gradient, variable.dtype))
        corrected = momentum / (1 - ops.power(self.beta, ops.cast(self.step(), variable.dtype)))
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * corrected)

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}


@register
class CountsByIterations(CountsItsSteps):
    def __init__(self, learning_rate=0.01, beta=0.9, name="counts", **kwargs):
        super().__init__(learning_rate, beta, name, **kwargs)

    def step(self):
        return self.iterations + 1


@register
class FadesInPython(keras.regularizers.Regularizer):
    def __init__(self, strength=0.01):
        self.strength = strength
        self.calls = 0

    def __call__(self, w):
        self.calls += 1
        return self.strength / self.calls * ops.sum(ops.square(w))

    def get_config(self):
        return {"strength": self.strength}


@register
class Stays(FadesInPython):
    def __init__(self, strength=0.01):
        super().__init__(strength)

    def __call__(self, w):
        return self.strength * ops.sum(ops.square(w))


PAIRS = [
    ("T404", RanksByNumPy, RanksByOps),
    ("T404", CountsItsSteps, CountsByIterations),
    ("T404", FadesInPython, Stays),
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
