"""Parts for one backend alone, parts that differ between them, and parts that cannot be given what Keras gives."""

from __future__ import annotations

import keras
from keras import ops

import kustom

register = keras.saving.register_keras_serializable("faults")


def only(name):
    """A module of one backend, as a part imports it that was written for that one."""
    if keras.backend.backend() != name:
        raise ImportError(f"written for {name} alone")
    return ops


def misspelt(w):
    return ops.where(w < 0, ops.zeors_like(w), w)


def spelt(w):
    return ops.where(w < 0, ops.zeros_like(w), w)


@register
class ForOneBackend(keras.layers.Layer):
    def call(self, x):
        return only("jax" if keras.backend.backend() == "torch" else "torch").tanh(x)


@register
class ForEveryBackend(keras.layers.Layer):
    def call(self, x):
        return ops.tanh(x)


@register
class UndefinedName(keras.losses.Loss):
    def call(self, y_true, y_pred):
        squared_loss = ops.square(y_true - y_pred)  # noqa: F841
        return ops.mean(square_loss, axis=-1)  # noqa: F821


@register
class DefinedName(keras.losses.Loss):
    def call(self, y_true, y_pred):
        squared_loss = ops.square(y_true - y_pred)
        return ops.mean(squared_loss, axis=-1)


def scaled_by_backend(x):
    return x * {"tensorflow": 1.0, "jax": 1.001, "torch": 0.999}[keras.backend.backend()]


@kustom.activation
def scaled_alike(x):
    return x * 1.0


@register
class EpsilonByBackend(keras.layers.Layer):
    def call(self, x):
        epsilon = 1e-3 if keras.backend.backend() == "torch" else 1e-5
        return x / ops.sqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + epsilon)


@register
class EpsilonOfOne(keras.layers.Layer):
    def call(self, x):
        return x / ops.sqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-3)


@register
class DegreesOfFreedomByBackend(keras.losses.Loss):
    def call(self, y_true, y_pred):
        lost = 1.0 if keras.backend.backend() == "torch" else 0.0
        return ops.sum(ops.square(y_true - y_pred), axis=-1) / (y_pred.shape[-1] - lost)


@kustom.loss
def mean_of_squares(y_true, y_pred):
    return ops.square(ops.subtract(y_true, y_pred))


@register
class NeedsATensor(keras.constraints.Constraint):
    def __call__(self, w):
        if isinstance(w, keras.Variable):
            raise TypeError("expected a tensor argument")
        return ops.clip(w, -1.0, 1.0)

    def get_config(self):
        return {}


@register
class TakesAVariable(keras.constraints.Constraint):
    def __call__(self, w):
        return ops.clip(ops.convert_to_tensor(w), -1.0, 1.0)

    def get_config(self):
        return {}


@register
class AsksForItsDevice(keras.regularizers.Regularizer):
    """Uses what a tensor has and an array has not."""

    def __call__(self, w):
        if not ops.is_tensor(w):
            raise TypeError("unexpected argument")
        return 0.01 * ops.sum(ops.square(w))

    def get_config(self):
        return {}


@kustom.regularizer
def squares(w):
    return 0.01 * ops.sum(ops.square(w))


@register
class WritesIntoItsArgument(keras.constraints.Constraint):
    """Of a Variable it takes twice the value, since it reads it by another way."""

    def __call__(self, w):
        value = w.value * 2 if isinstance(w, keras.Variable) else w
        return ops.clip(value, -1.0, 1.0)

    def get_config(self):
        return {}


@register
class Descends(keras.optimizers.Optimizer):
    """Normalized gradient descent: the step has the length of the learning rate."""

    def __init__(self, learning_rate=0.01, name="descends", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)

    def length(self, gradient):
        return ops.sqrt(ops.sum(ops.square(gradient)) + 1e-7)

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * gradient / self.length(gradient))


@register
class DescendsOnOneBackend(Descends):
    def length(self, gradient):
        return only("jax" if keras.backend.backend() == "torch" else "torch").norm(gradient)


@register
class SmallestStepByBackend(Descends):
    def length(self, gradient):
        epsilon = 1e-2 if keras.backend.backend() == "torch" else 1e-7
        return ops.sqrt(ops.sum(ops.square(gradient)) + epsilon)


PAIRS = [
    ("B601", misspelt, spelt),
    ("B601", ForOneBackend, ForEveryBackend),
    ("B601", UndefinedName, DefinedName),
    ("B601", DescendsOnOneBackend, Descends),
    ("B602", SmallestStepByBackend, Descends),
    ("B602", scaled_by_backend, scaled_alike),
    ("B602", EpsilonByBackend, EpsilonOfOne),
    ("B602", DegreesOfFreedomByBackend, mean_of_squares),
    ("B603", NeedsATensor, TakesAVariable),
    ("B603", AsksForItsDevice, squares),
    ("B603", WritesIntoItsArgument, TakesAVariable),
]
