"""Overflow, jumps, negative distances, and constants that low precision does not hold."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

import kustom

register = keras.saving.register_keras_serializable("faults")


def softplus_that_overflows(z):
    return ops.log(ops.exp(z) + 1.0)


@kustom.activation
def softplus_by_logaddexp(z):
    return ops.logaddexp(z, ops.zeros_like(z))


@register
class SoftmaxThatOverflows(keras.layers.Layer):
    def call(self, x):
        e = ops.exp(x)
        return e / ops.sum(e, axis=-1, keepdims=True)


@register
class SoftmaxOfDifferences(keras.layers.Layer):
    def call(self, x):
        e = ops.exp(x - ops.max(x, axis=-1, keepdims=True))
        return e / ops.sum(e, axis=-1, keepdims=True)


@register
class RelativeError(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred) / ops.abs(y_true), axis=-1)


@register
class RelativeErrorWithFloor(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred) / ops.maximum(ops.abs(y_true), 1e-3), axis=-1)


@register
class DividesByNorm(keras.constraints.Constraint):
    def __call__(self, w):
        return w / ops.sqrt(ops.sum(ops.square(w), axis=0, keepdims=True))


@register
class DividesByNormWithFloor(keras.constraints.Constraint):
    def __call__(self, w):
        return w / (1e-7 + ops.sqrt(ops.sum(ops.square(w), axis=0, keepdims=True)))


def entropy_of_zero(y_true, y_pred):
    return -ops.sum(y_true * ops.log(y_pred), axis=-1)


def entropy_clipped(y_true, y_pred):
    return -ops.sum(y_true * ops.log(ops.clip(y_pred, 1e-7, 1.0)), axis=-1)


def relative_entropy_of_zero(y_true, y_pred):
    return ops.sum(y_true * (ops.log(y_true) - ops.log(y_pred)), axis=-1)


def relative_entropy_clipped(y_true, y_pred):
    return ops.sum(y_true * (ops.log(ops.clip(y_true, 1e-7, 1.0)) - ops.log(ops.clip(y_pred, 1e-7, 1.0))), axis=-1)


def huber_of_the_notebook(y_true, y_pred):
    error = ops.abs(y_true - y_pred)
    return ops.mean(ops.where(error < 3.0, ops.square(error) / 2, 3.0 * error - 3.0 * 2 * 0.5), axis=-1)


def huber_of_three(y_true, y_pred):
    error = ops.abs(y_true - y_pred)
    return ops.mean(ops.where(error < 3.0, ops.square(error) / 2, 3.0 * error - 3.0**2 / 2), axis=-1)


@kustom.loss
def huber_right_for_two(y_true, y_pred, *, threshold=2.0):
    error = ops.abs(ops.subtract(y_true, y_pred))
    return ops.where(error < threshold, ops.square(error) / 2, threshold * error - threshold * 2 * 0.5)


@kustom.loss
def huber_right_for_all(y_true, y_pred, *, threshold=2.0):
    error = ops.abs(ops.subtract(y_true, y_pred))
    return ops.where(error < threshold, ops.square(error) / 2, threshold * error - threshold**2 / 2)


def elu_with_a_step(x):
    return ops.where(x > 0, x, ops.exp(x) - 1.5)


def elu_without_a_step(x):
    return ops.where(x > 0, x, ops.expm1(ops.minimum(x, 0.0)))


@register
class SignedError(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(y_pred - y_true, axis=-1)


@register
class AbsoluteError(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.abs(y_pred - y_true), axis=-1)


@register
class CubedError(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean((y_pred - y_true) ** 3, axis=-1)


@kustom.regularizer
def sum_of_weights(weights):
    return 0.01 * ops.sum(weights)


@kustom.regularizer
def sum_of_sizes(weights):
    return 0.01 * ops.sum(ops.abs(weights))


@register
class DistanceWithAnOffset(keras.losses.Loss):
    __kustom__ = {"tags": {"distance": True}}  # noqa: RUF012

    def call(self, y_true, y_pred):
        return ops.sqrt(ops.mean(ops.square(y_pred - y_true), axis=-1) + 0.01)


@register
class DistanceWithoutOffset(keras.losses.Loss):
    __kustom__ = {"tags": {"distance": True}}  # noqa: RUF012

    def call(self, y_true, y_pred):
        return ops.sqrt(ops.mean(ops.square(y_pred - y_true), axis=-1) + 0.01) - 0.1


@register
class LogLossOfTinyConstant(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return -ops.mean(y_true * ops.log(y_pred + 1e-9) + (1 - y_true) * ops.log(1 - y_pred + 1e-9), axis=-1)


@register
class LogLossClipped(keras.losses.Loss):
    def call(self, y_true, y_pred):
        y_pred = ops.clip(ops.cast(y_pred, "float32"), 1e-6, 1 - 1e-6)
        y_true = ops.cast(y_true, "float32")
        return -ops.mean(y_true * ops.log(y_pred) + (1 - y_true) * ops.log(1 - y_pred), axis=-1)


def swish_by_large_powers(x):
    return x * ops.sqrt(ops.power(ops.sigmoid(x) * 1000.0, 2)) / 1000.0


def swish_by_sigmoid(x):
    return x * ops.sigmoid(x)


@register
class NormOfLargeSums(keras.layers.Layer):
    def call(self, x):
        return x / (ops.sqrt(ops.sum(ops.square(x * 1000.0), axis=-1, keepdims=True)) / 1000.0 + 1e-3)


@register
class NormOfSums(keras.layers.Layer):
    def call(self, x):
        return x / (ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True)) + 1e-3)


@register
class GainNotDivisible(keras.metrics.Metric):
    """NDCG; of a list in which nothing is relevant it is 0 by 0."""

    def __init__(self, name="ndcg", **kwargs):
        super().__init__(name=name, **kwargs)
        self.total = self.add_variable((), initializer="zeros", name="total")
        self.lists = self.add_variable((), initializer="zeros", name="lists")

    def gain(self, relevance):
        discounts = 1.0 / np.log2(np.arange(2, relevance.shape[1] + 2))
        return ops.sum((ops.exp2(relevance) - 1.0) * ops.convert_to_tensor(discounts.astype("float32")), axis=-1)

    def divided(self, gained, best):
        return gained / best

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true = ops.reshape(ops.cast(y_true, "float32"), ops.shape(y_pred))
        ranked = ops.take_along_axis(y_true, ops.argsort(-y_pred, axis=-1), axis=-1)
        each = self.divided(self.gain(ranked), self.gain(-ops.sort(-y_true, axis=-1)))
        weight = ops.ones_like(each) if sample_weight is None else ops.cast(sample_weight, each.dtype)
        self.total.assign_add(ops.sum(weight * each))
        self.lists.assign_add(ops.sum(weight))

    def result(self):
        return ops.divide_no_nan(self.total, self.lists)


@register
class GainDivisible(GainNotDivisible):
    def divided(self, gained, best):
        return ops.divide_no_nan(gained, best)


@register
class CosineOfNothing(keras.losses.Loss):
    def call(self, y_true, y_pred):
        y_true = y_true / ops.norm(y_true, axis=-1, keepdims=True)
        return 1.0 - ops.sum(y_true * y_pred / ops.norm(y_pred, axis=-1, keepdims=True), axis=-1)


@register
class CosineWithFloor(keras.losses.Loss):
    def call(self, y_true, y_pred):
        y_true = y_true / ops.sqrt(ops.sum(ops.square(y_true), axis=-1, keepdims=True) + 1e-12)
        return 1.0 - ops.sum(y_true * y_pred / ops.sqrt(ops.sum(ops.square(y_pred), axis=-1, keepdims=True) + 1e-12), axis=-1)


@register
class ContrastByExp(keras.losses.Loss):
    """Of logits, with a temperature: targets are shares, predictions any number."""

    def __init__(self, temperature=0.1, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature

    def call(self, y_true, y_pred):
        e = ops.exp(y_pred / self.temperature)
        return -ops.sum(y_true * ops.log(e / ops.sum(e, axis=-1, keepdims=True)), axis=-1)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}


@register
class ContrastBySoftmax(ContrastByExp):
    def __init__(self, temperature=0.1, **kwargs):
        super().__init__(temperature, **kwargs)

    def call(self, y_true, y_pred):
        return -ops.sum(y_true * ops.log_softmax(y_pred / self.temperature, axis=-1), axis=-1)


def symmetric_error_of_zeros(y_true, y_pred):
    return 2.0 * ops.mean(ops.abs(y_true - y_pred) / (ops.abs(y_true) + ops.abs(y_pred)), axis=-1)


def symmetric_error_with_floor(y_true, y_pred):
    return 2.0 * ops.mean(ops.abs(y_true - y_pred) / (ops.abs(y_true) + ops.abs(y_pred) + 1e-3), axis=-1)


PROBABILITIES = {"domain": "unit"}

PAIRS = [
    ("N301", GainNotDivisible, GainDivisible),
    ("N301", CosineOfNothing, CosineWithFloor),
    ("N301", ContrastByExp, ContrastBySoftmax),
    ("N301", symmetric_error_of_zeros, symmetric_error_with_floor),
    ("N301", softplus_that_overflows, softplus_by_logaddexp),
    ("N301", SoftmaxThatOverflows, SoftmaxOfDifferences),
    ("N301", RelativeError, RelativeErrorWithFloor),
    ("N301", DividesByNorm, DividesByNormWithFloor),
    ("N301", entropy_of_zero, entropy_clipped),
    ("N301", entropy_of_zero, entropy_clipped, {"domain": (0.0, 1.0)}),
    ("N301", relative_entropy_of_zero, relative_entropy_clipped, {"domain": "probabilities"}),
    ("N302", huber_of_the_notebook, huber_of_three),
    ("N302", huber_right_for_two, huber_right_for_all),
    ("N302", elu_with_a_step, elu_without_a_step),
    ("N303", SignedError, AbsoluteError),
    ("N303", CubedError, AbsoluteError),
    ("N303", sum_of_weights, sum_of_sizes),
    ("N303", DistanceWithAnOffset, DistanceWithoutOffset),
    ("N304", LogLossOfTinyConstant, LogLossClipped, PROBABILITIES),
    ("N304", swish_by_large_powers, swish_by_sigmoid),
    ("N304", NormOfLargeSums, NormOfSums),
]
