"""Configs that forget, that lie, that cannot be read back, and names that are nobody's or somebody else's."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

import kustom

register = keras.saving.register_keras_serializable("faults")


@register
class HuberWithoutConfig(keras.losses.Loss):
    def __init__(self, threshold=1.0, **kwargs):
        super().__init__(**kwargs)
        self.threshold = threshold

    def call(self, y_true, y_pred):
        error = ops.abs(y_true - y_pred)
        quadratic = ops.square(error) / 2
        return ops.mean(ops.where(error < self.threshold, quadratic, self.threshold * error - self.threshold**2 / 2), axis=-1)


@register
class HuberWithConfig(HuberWithoutConfig):
    def get_config(self):
        return {**super().get_config(), "threshold": self.threshold}


@register
class DenseWithGain(keras.layers.Dense):
    def __init__(self, units, gain=1.0, **kwargs):
        super().__init__(units, **kwargs)
        self.gain = gain

    def call(self, x):
        return super().call(x) * self.gain


@register
class DenseWithGainSaved(DenseWithGain):
    def __init__(self, units, gain=1.0, **kwargs):
        super().__init__(units, gain, **kwargs)

    def get_config(self):
        return {**super().get_config(), "gain": self.gain}


@register
class DecayRegularizer(keras.regularizers.Regularizer):
    def __init__(self, strength=0.01, power=2.0):
        self.strength = strength
        self.power = power

    def __call__(self, w):
        return self.strength * ops.sum(ops.power(ops.abs(w), self.power))

    def get_config(self):
        return {"strength": self.strength}


@register
class DecayRegularizerSaved(DecayRegularizer):
    def __init__(self, strength=0.01, power=2.0):
        super().__init__(strength, power)

    def get_config(self):
        return {"strength": self.strength, "power": self.power}


@register
class ScaleThatResets(keras.layers.Layer):
    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": 2.0}


@register
class ScaleThatKeeps(ScaleThatResets):
    def __init__(self, factor=2.0, **kwargs):
        super().__init__(factor, **kwargs)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@register
class FixedActivation(keras.layers.Dense):
    def __init__(self, units, **kwargs):
        super().__init__(units, activation="relu", **kwargs)


@register
class FixedActivationRead(keras.layers.Dense):
    def __init__(self, units, **kwargs):
        kwargs["activation"] = "relu"
        super().__init__(units, **kwargs)


@register
class MetricWithoutDtype(keras.metrics.Metric):
    def __init__(self, name="largest"):
        super().__init__(name=name)
        self.largest = self.add_variable((), "zeros", name="largest")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.largest.assign(ops.maximum(self.largest, ops.max(ops.abs(y_true - y_pred))))

    def result(self):
        return self.largest + 0.0


@register
class MetricWithDtype(MetricWithoutDtype):
    def __init__(self, name="largest", **kwargs):
        keras.metrics.Metric.__init__(self, name=name, **kwargs)
        self.largest = self.add_variable((), "zeros", name="largest")


class Unregistered(keras.layers.Layer):
    def call(self, x):
        return x * 2.0


@register
class Registered(keras.layers.Layer):
    def call(self, x):
        return x * 2.0


class UnregisteredLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1)


@kustom.loss
def registered_loss(y_true, y_pred):
    return ops.square(ops.subtract(y_true, y_pred))


def unregistered_activation(x):
    return x * ops.sigmoid(x)


@kustom.activation
def registered_activation(x):
    return x * ops.sigmoid(x)


@keras.saving.register_keras_serializable("faults_taken", name="Gate")
class GateTaken(keras.layers.Layer):
    def call(self, x):
        return x * 2.0


@keras.saving.register_keras_serializable("faults_taken", name="Gate")
class GateTaking(keras.layers.Layer):
    def call(self, x):
        return x * -7.0


@keras.saving.register_keras_serializable("faults_taken", name="OtherGate")
class GateOfItsOwn(keras.layers.Layer):
    def call(self, x):
        return x * 2.0


@keras.saving.register_keras_serializable("faults_taken", name="distance")
def distance_of_one(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred), axis=-1)


@keras.saving.register_keras_serializable("faults_taken", name="distance")
def distance_of_another(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


@kustom.loss(package="faults_taken")
def absolute_distance(y_true, y_pred):
    return ops.abs(ops.subtract(y_true, y_pred))


def make_pinball(q):
    @keras.saving.register_keras_serializable("faults_closure")
    def pinball(y_true, y_pred):
        error = ops.subtract(y_true, y_pred)
        return ops.mean(ops.maximum(q * error, (q - 1) * error), axis=-1)

    return pinball


@kustom.loss
def pinball_of(y_true, y_pred, *, q=0.9):
    error = ops.subtract(y_true, y_pred)
    return ops.maximum(q * error, (q - 1) * error)


def create_huber(threshold=1.0):
    def huber_fn(y_true, y_pred):
        error = ops.abs(y_true - y_pred)
        return ops.mean(ops.where(error < threshold, error**2 / 2, threshold * error - threshold**2 / 2), axis=-1)

    return huber_fn


@register
class Apply(keras.layers.Layer):
    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)

    def get_config(self):
        return {**super().get_config(), "function": keras.saving.serialize_keras_object(self.function)}

    @classmethod
    def from_config(cls, config):
        function = keras.saving.deserialize_keras_object(config.pop("function"))
        return cls(function, **config)


@register
class PullToArray(keras.regularizers.Regularizer):
    def __init__(self, target, strength=0.1):
        self.target = target
        self.strength = strength

    def __call__(self, w):
        return self.strength * ops.sum(ops.square(w - ops.convert_to_tensor(self.target)))

    def get_config(self):
        return {"target": self.target, "strength": self.strength}


@register
class PullToList(PullToArray):
    def __init__(self, target, strength=0.1):
        super().__init__(np.asarray(target, "float32"), strength)

    def get_config(self):
        return {"target": self.target.tolist(), "strength": self.strength}


@register
class ShiftByArray(keras.layers.Layer):
    def __init__(self, by, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def call(self, x):
        return ops.add(x, ops.convert_to_tensor(self.by))

    def get_config(self):
        return {**super().get_config(), "by": self.by}


@kustom.part
class ShiftByField(keras.layers.Layer):
    by: np.ndarray

    def call(self, x):
        return ops.add(x, self.by)


class Options:
    def __init__(self, scale):
        self.scale = scale


@register
class ScaleByOptions(keras.layers.Layer):
    def __init__(self, options=None, **kwargs):
        super().__init__(**kwargs)
        self.options = options or Options(2.0)

    def call(self, x):
        return x * self.options.scale

    def get_config(self):
        return {**super().get_config(), "options": self.options}


@register
class ScaleByNumber(keras.layers.Layer):
    def __init__(self, scale=2.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, x):
        return x * self.scale

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


@register
class Tail(keras.layers.Layer):
    def __init__(self, tail=(2, 2), **kwargs):
        super().__init__(**kwargs)
        self.tail = tail

    def call(self, x):
        return ops.reshape(x, (-1, *self.tail))

    def get_config(self):
        return {**super().get_config(), "tail": self.tail}


@register
class TailOfTuple(Tail):
    def __init__(self, tail=(2, 2), **kwargs):
        super().__init__(tail, **kwargs)
        self.tail = tuple(tail)


@register
class RateOfTheStart(keras.layers.Layer):
    def __init__(self, rate=0.5, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, x):
        return x * self.rate


@kustom.part
class RateOfNow(keras.layers.Layer):
    rate: float = 0.5

    def call(self, x):
        return x * self.rate


@register
class BoundsAsPair(keras.constraints.Constraint):
    def __init__(self, bounds=(0.0, 1.0)):
        self.bounds = bounds

    def __call__(self, w):
        return ops.clip(w, self.bounds[0], self.bounds[1])

    def get_config(self):
        return {"bounds": list(self.bounds)}


@register
class BoundsAsTuple(BoundsAsPair):
    def __init__(self, bounds=(0.0, 1.0)):
        super().__init__(tuple(bounds))


@register
class Regularized(keras.layers.Layer):
    def __init__(self, units=3, kernel_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), regularizer=self.kernel_regularizer)

    def call(self, x):
        return ops.matmul(x, self.kernel)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@register
class RegularizedSaved(Regularized):
    def __init__(self, units=3, kernel_regularizer=None, **kwargs):
        super().__init__(units, kernel_regularizer, **kwargs)

    def get_config(self):
        return {**super().get_config(), "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer)}


@register
class Residual(keras.layers.Layer):
    """The layer within comes back as a dict."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return x + self.inner(x)

    def get_config(self):
        return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner)}


@register
class ResidualReadBack(Residual):
    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "inner": keras.saving.deserialize_keras_object(config["inner"])})


X = np.linspace(-1, 1, 12, dtype="float32").reshape(3, 4)
ON_X = {"inputs": X}

PAIRS = [
    ("C101", HuberWithoutConfig, HuberWithConfig),
    ("C101", DenseWithGain(4), DenseWithGainSaved(4)),
    ("C101", DecayRegularizer, DecayRegularizerSaved),
    ("C101", Regularized, RegularizedSaved),
    ("C102", Residual(keras.layers.Dense(4)), ResidualReadBack(keras.layers.Dense(4))),
    ("C102", ScaleThatResets(3.0), ScaleThatKeeps(3.0)),
    ("C102", FixedActivation(3), FixedActivationRead(3)),
    ("C102", MetricWithoutDtype, MetricWithDtype),
    ("C104", Unregistered, Registered),
    ("C104", UnregisteredLoss, registered_loss),
    ("C104", unregistered_activation, registered_activation),
    ("C105", GateTaken, GateOfItsOwn),
    ("C105", GateTaking, GateOfItsOwn),
    ("C105", distance_of_one, absolute_distance),
    ("C106", make_pinball(0.9), pinball_of),
    ("C106", create_huber(2.0), kustom.textbook.huber_fn),
    ("C106", Apply(lambda x: x * 2.0), Apply(ops.relu)),
    ("C107", PullToArray(np.full((4,), 0.5, "float32")), PullToList([0.5] * 4), ON_X),
    ("C107", ShiftByArray(X[0]), ShiftByField(X[0]), ON_X),
    ("C107", ScaleByOptions, ScaleByNumber),
    ("C108", Tail(), TailOfTuple()),
    ("C108", RateOfTheStart, RateOfNow),
    ("C108", BoundsAsPair(), BoundsAsTuple()),
]
