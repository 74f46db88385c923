"""Models that do not learn, and training steps that forget what Keras's own remembers."""

from __future__ import annotations

import keras
import numpy as np
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


@register
class MovesItsHead(Stepping):
    """Of two layers only the last is trained."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(3)

    def call(self, x, training=None):
        return super().call(self.hidden(x), training=training)

    def trained(self):
        return self.dense.trainable_variables

    def train_step(self, data):
        x, y = data
        with kustom.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trained()), self.trained())
        return {"loss": loss}


@register
class MovesAll(MovesItsHead):
    def trained(self):
        return self.trainable_variables


@register
class NeverClears(StepsRight):
    """Adds up gradients in a list that it does not empty."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.sums = None

    def train_step(self, data):
        x, y = data
        with kustom.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.sums = gradients if self.sums is None else [a + b for a, b in zip(self.sums, gradients, strict=True)]
        self.optimizer.apply(self.sums, self.trainable_variables)
        return {"loss": loss}


def _regression():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_regularizer="l2"), keras.layers.Dropout(0.2)])
    optimizer = keras.optimizers.SGD(0.01)
    optimizer.build(model.trainable_variables)
    x, y = np.random.default_rng(0).normal(size=(2, 32, 4)).astype("float32")
    return {"inputs": (model, optimizer, x, y[:, :3])}


def step_of_a_model(model, optimizer, x, y):
    with kustom.GradientTape() as tape:
        loss = ops.mean(ops.square(y - model(x, training=True))) + sum(model.losses)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return loss


def step_of_a_vector(model, optimizer, x, y):
    with kustom.GradientTape() as tape:
        loss = ops.mean(ops.square(y - model(x, training=True)), axis=-1) + sum(model.losses)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return {"loss": ops.mean(loss)}


def step_in_inference(model, optimizer, x, y):
    with kustom.GradientTape() as tape:
        loss = ops.mean(ops.square(y - model(x))) + sum(model.losses)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return loss


for step in (step_of_a_model, step_of_a_vector, step_in_inference):
    vars(step)["__kustom__"] = {"kind": "train_step"}

PAIRS = [
    ("T406", RoundsItsOutput, LearnsItsOutput),
    ("T406", StopsItsGradient, LetsItThrough),
    ("T406", NeverApplies, StepsRight),
    ("T407", ForgetsAddedLosses, StepsRight),
    ("T407", ForgetsConstraints, StepsRight),
    ("T407", ForgetsTraining, StepsRight),
    ("T407", ForgetsToResetAMetric, ListsItsMetric),
    ("T407", MovesItsHead, MovesAll),
    ("T407", NeverClears, StepsRight),
    ("T407", step_of_a_vector, step_of_a_model, _regression()),
    ("T407", step_in_inference, step_of_a_model, _regression()),
]
