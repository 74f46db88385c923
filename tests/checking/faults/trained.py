"""Models that do not learn, and training steps that forget what Keras's own remembers."""

from __future__ import annotations

import keras
from keras import ops

import kustom

register = keras.saving.register_keras_serializable("faults")


@register
class RoundsItsOutput(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return ops.round(self.dense(x) * 10) / 10


@register
class LearnsItsOutput(RoundsItsOutput):
    def call(self, x):
        return self.dense(x)


@register
class StopsItsGradient(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(8, activation="tanh")
        self.out = keras.layers.Dense(2)

    def call(self, x):
        return ops.stop_gradient(self.out(self.hidden(x)))


@register
class LetsItThrough(StopsItsGradient):
    def call(self, x):
        return self.out(self.hidden(x))


class Stepping(kustom.Model):
    """What the models below share: one Dense, and a step by tape."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(2)
        self.dropout = keras.layers.Dropout(0.0)

    def call(self, x, training=None):
        return self.dropout(self.dense(x), training=training)


@register
class NeverApplies(Stepping):
    def train_step(self, data):
        x, y = data
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(y - self(x, training=True)))
        tape.gradient(loss, self.trainable_variables)
        return {"loss": loss}


@register
class StepsRight(Stepping):
    def train_step(self, data):
        x, y = data
        with kustom.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


@register
class ForgetsAddedLosses(Stepping):
    def train_step(self, data):
        x, y = data
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(y - self(x, training=True)))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


@register
class ForgetsConstraints(Stepping):
    def train_step(self, data):
        x, y = data
        with kustom.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        for variable, gradient in zip(self.trainable_variables, tape.gradient(loss, self.trainable_variables), strict=True):
            variable.assign_sub(0.01 * gradient)
        return {"loss": loss}


@register
class ForgetsTraining(Stepping):
    def train_step(self, data):
        x, y = data
        with kustom.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=False))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


@register
class ForgetsToResetAMetric(StepsRight):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mean_error = keras.metrics.Mean(name="mean_error")

    @property
    def metrics(self):
        return [m for m in super().metrics if m is not self.mean_error]


@register
class ListsItsMetric(StepsRight):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mean_error = keras.metrics.Mean(name="mean_error")


PAIRS = [
    ("T406", RoundsItsOutput, LearnsItsOutput),
    ("T406", StopsItsGradient, LetsItThrough),
    ("T406", NeverApplies, StepsRight),
    ("T407", ForgetsAddedLosses, StepsRight),
    ("T407", ForgetsConstraints, StepsRight),
    ("T407", ForgetsTraining, StepsRight),
    ("T407", ForgetsToResetAMetric, ListsItsMetric),
]
