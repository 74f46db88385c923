"""Losses and metrics that broadcast, average too much, or do not see weights and masks."""

from __future__ import annotations

import keras
from keras import ops

import kustom

register = keras.saving.register_keras_serializable("faults")


@register
class ScalarSquares(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred))


@register
class SquaresASample(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1)


def root_mean_square(y_true, y_pred):
    return ops.sqrt(ops.mean(ops.square(y_true - y_pred)))


@kustom.loss
def root_of_each_sample(y_true, y_pred):
    return ops.sqrt(ops.mean(ops.square(ops.subtract(y_true, y_pred)), axis=-1) + 1e-7)


@register
class MeanOverSamples(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred), axis=0, keepdims=True)


@register
class IgnoresItsWeights(keras.losses.Loss):
    def __call__(self, y_true, y_pred, sample_weight=None):
        return ops.mean(ops.abs(y_true - y_pred))

    def call(self, y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred), axis=-1)


@register
class LeavesItsWeightsToKeras(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred), axis=-1)


@register
class SquaresBroadcast(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1)


@kustom.loss
def squares_aligned(y_true, y_pred):
    return ops.square(ops.subtract(y_true, y_pred))


@register
class ErrorBroadcast(keras.metrics.Metric):
    def __init__(self, name="error", **kwargs):
        super().__init__(name=name, **kwargs)
        self.total = self.add_weight(name="total", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        errors = ops.abs(ops.cast(y_true, "float32") - y_pred)
        self.total.assign_add(ops.sum(errors))
        self.count.assign_add(ops.cast(ops.size(errors), "float32"))

    def result(self):
        return self.total / ops.maximum(self.count, 1.0)


@register
class ErrorReshaped(ErrorBroadcast):
    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(ops.reshape(ops.convert_to_tensor(y_true), ops.shape(y_pred)), y_pred)


@register
class PinballBroadcast(keras.losses.Loss):
    def __init__(self, q=0.9, **kwargs):
        super().__init__(**kwargs)
        self.q = q

    def call(self, y_true, y_pred):
        error = y_true - y_pred
        return ops.mean(ops.maximum(self.q * error, (self.q - 1) * error), axis=-1)

    def get_config(self):
        return {**super().get_config(), "q": self.q}


@register
class PinballAligned(PinballBroadcast):
    def __init__(self, q=0.9, **kwargs):
        super().__init__(q, **kwargs)

    def call(self, y_true, y_pred):
        if len(y_true.shape) == len(y_pred.shape) - 1:
            y_true = ops.expand_dims(y_true, -1)
        return super().call(y_true, y_pred)


@register
def squares_an_entry(y_true, y_pred):
    return ops.square(y_true - y_pred) / 2


PAIRS = [
    ("S204", ScalarSquares, SquaresASample),
    ("S204", root_mean_square, root_of_each_sample),
    ("S204", MeanOverSamples, SquaresASample),
    ("S204", squares_an_entry, root_of_each_sample),
    ("S204", IgnoresItsWeights, LeavesItsWeightsToKeras),
    ("S208", SquaresBroadcast, squares_aligned),
    ("S208", ErrorBroadcast, ErrorReshaped),
    ("S208", PinballBroadcast, PinballAligned),
]
