"""Gradients that are wrong, cut off, infinite, or right only once."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

import kustom

register = keras.saving.register_keras_serializable("faults")


@kustom.custom_gradient
def _softplus_with_squared_sigmoid(z):
    sigmoid = ops.sigmoid(z)
    return ops.softplus(z), lambda upstream: upstream * sigmoid**2


def softplus_of_wrong_slope(z):
    return _softplus_with_squared_sigmoid(z)


@kustom.custom_gradient
def _softplus_with_sigmoid(z):
    return ops.softplus(z), lambda upstream: upstream * ops.sigmoid(z)


@kustom.activation
def softplus_of_right_slope(z):
    return _softplus_with_sigmoid(z)


@kustom.custom_gradient
def _clipped_cube(x):
    return x**3, lambda upstream: ops.clip(upstream * 3 * x**2, -1.0, 1.0)


def cube_of_clipped_slope(x):
    return _clipped_cube(x)


def cube(x):
    return x**3


@kustom.custom_gradient
def _one_percent_off(x):
    return ops.sin(x), lambda upstream: upstream * ops.cos(x) * 1.01


@register
class SineOnePercentOff(keras.layers.Layer):
    def call(self, x):
        return _one_percent_off(x)


@register
class Sine(keras.layers.Layer):
    def call(self, x):
        return ops.sin(x)


@kustom.loss
def distance_with_a_corner(y_true, y_pred):
    return ops.sqrt(ops.sum(ops.square(ops.subtract(y_true, y_pred)), axis=-1))


@kustom.loss
def distance_with_a_floor(y_true, y_pred):
    return ops.sqrt(ops.sum(ops.square(ops.subtract(y_true, y_pred)), axis=-1) + 1e-7)


def logarithm_chosen_late(x):
    return ops.where(x > 0, ops.log(x), ops.zeros_like(x))


def logarithm_chosen_early(x):
    return ops.where(x > 1e-6, ops.log(ops.where(x > 1e-6, x, ops.ones_like(x))), ops.zeros_like(x))


def entropy_chosen_late(y_true, y_pred):
    return -ops.sum(ops.where(y_true > 0, y_true * ops.log(y_pred), ops.zeros_like(y_pred)), axis=-1)


def entropy_chosen_early(y_true, y_pred):
    return -ops.sum(y_true * ops.log(ops.where(y_true > 0, y_pred, ops.ones_like(y_pred))), axis=-1)


@register
class UnitLength(keras.layers.Layer):
    def call(self, x):
        return x / (ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True)) + 1e-6)


@register
class UnitLengthOfSafeRoot(keras.layers.Layer):
    def call(self, x):
        return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-12))


@register
class StopsItsHidden(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(4)
        self.out = keras.layers.Dense(2)

    def call(self, x):
        return self.out(ops.stop_gradient(self.hidden(x)))


@register
class LearnsItsHidden(StopsItsHidden):
    def call(self, x):
        return self.out(ops.tanh(self.hidden(x)))


@register
class NeverReadsItsBias(keras.layers.Layer):
    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 2))
        self.bias = self.add_weight(shape=(2,), initializer="zeros")

    def call(self, x):
        return ops.matmul(x, self.kernel)


@register
class ReadsItsBias(NeverReadsItsBias):
    def call(self, x):
        return ops.matmul(x, self.kernel) + self.bias


@register
class RoundsItsScale(keras.layers.Layer):
    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return x * ops.round(self.scale * 8) / 8


@register
class RoundsItsScaleStraightThrough(RoundsItsScale):
    def call(self, x):
        return x * (self.scale + ops.stop_gradient(ops.round(self.scale * 8) / 8 - self.scale))


@kustom.custom_gradient
def _square_of_frozen_slope(x):
    slope = ops.stop_gradient(2 * x)
    return x * x, lambda upstream: upstream * slope


def square_of_frozen_slope(x):
    return _square_of_frozen_slope(x)


def square(x):
    return x * x


@kustom.custom_gradient
def _tanh_of_frozen_slope(x):
    y = ops.tanh(x)
    slope = ops.stop_gradient(1 - y * y)
    return y, lambda upstream: upstream * slope


@register
class TanhOfFrozenSlope(keras.layers.Layer):
    def call(self, x):
        return _tanh_of_frozen_slope(x)


@register
class Tanh(keras.layers.Layer):
    def call(self, x):
        return ops.tanh(x)


@kustom.custom_gradient
def _log_cosh(x):
    return ops.logaddexp(x, -x), lambda upstream: upstream * ops.stop_gradient(ops.tanh(x))


@kustom.loss
def log_cosh_of_frozen_slope(y_true, y_pred):
    return _log_cosh(ops.subtract(y_pred, y_true))


@kustom.loss
def log_cosh(y_true, y_pred):
    error = ops.subtract(y_pred, y_true)
    return ops.logaddexp(error, -error)


@register
class ContrastOfARoot(keras.losses.Loss):
    """Predictions are differences, of which the first target says whether they are of one kind."""

    def distance(self, y_pred):
        return ops.sqrt(ops.sum(ops.square(y_pred), axis=-1))

    def call(self, y_true, y_pred):
        distance = self.distance(y_pred)
        alike = ops.cast(y_true[..., 0], distance.dtype)
        return alike * ops.square(distance) + (1 - alike) * ops.square(ops.maximum(1.0 - distance, 0.0))


@register
class ContrastOfASafeRoot(ContrastOfARoot):
    def distance(self, y_pred):
        return ops.sqrt(ops.maximum(ops.sum(ops.square(y_pred), axis=-1), 1e-9))


@register
class ErrorByNumPy(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.convert_to_tensor(np.mean(np.abs(np.array(y_true) - np.array(y_pred)), axis=-1))


@register
class ErrorByOps(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred), axis=-1)


PAIRS = [
    ("G201", ErrorByNumPy, ErrorByOps),
    ("G202", ContrastOfARoot, ContrastOfASafeRoot),
    ("G201", softplus_of_wrong_slope, softplus_of_right_slope),
    ("G201", cube_of_clipped_slope, cube),
    ("G201", SineOnePercentOff, Sine),
    ("G202", distance_with_a_corner, distance_with_a_floor),
    ("G202", logarithm_chosen_late, logarithm_chosen_early),
    ("G202", UnitLength, UnitLengthOfSafeRoot),
    ("G202", entropy_chosen_late, entropy_chosen_early),
    ("G203", StopsItsHidden, LearnsItsHidden),
    ("G203", NeverReadsItsBias, ReadsItsBias),
    ("G203", RoundsItsScale, RoundsItsScaleStraightThrough),
    ("G204", square_of_frozen_slope, square),
    ("G204", TanhOfFrozenSlope, Tanh),
    ("G204", log_cosh_of_frozen_slope, log_cosh),
]
