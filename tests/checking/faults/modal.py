"""Layers that mistake training for inference, return nothing, or draw what nobody can repeat."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

import kustom

register = keras.saving.register_keras_serializable("faults")


@register
class DropsAlways(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, x):
        return self.dropout(x, training=True)


@register
class DropsInTraining(DropsAlways):
    def call(self, x, training=None):
        return self.dropout(x, training=training)


@register
class NeverDrops(DropsAlways):
    def call(self, x, training=None):
        return self.dropout(x, training=False)


@register
class NoiseInPredict(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + 0.1 * keras.random.normal(ops.shape(x), seed=self.seed_generator)


@register
class NoiseInTraining(NoiseInPredict):
    def call(self, x, training=None):
        return super().call(x) if training else x


@register
class NothingAtInference(keras.layers.Layer):
    def __init__(self, stddev=0.1, **kwargs):
        super().__init__(**kwargs)
        self.stddev = stddev
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        if training:
            return x + self.stddev * keras.random.normal(ops.shape(x), seed=self.seed_generator)

    def get_config(self):
        return {**super().get_config(), "stddev": self.stddev}


@register
class SomethingAtInference(NothingAtInference):
    def __init__(self, stddev=0.1, **kwargs):
        super().__init__(stddev, **kwargs)

    def call(self, x, training=None):
        noisy = super().call(x, training=training)
        return x if noisy is None else noisy


@register
class NothingInTraining(keras.layers.Layer):
    def build(self, input_shape):
        self.mean = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=None):
        if training:
            self.mean.assign(ops.mean(x))
        else:
            return x - self.mean


@register
class SomethingInTraining(NothingInTraining):
    def call(self, x, training=None):
        if training:
            self.mean.assign(ops.mean(x))
        return x - self.mean


@register
class ForgetsToReturn(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(2)

    def call(self, x, training=None):
        self.dense(x)


@register
class Returns(ForgetsToReturn):
    def call(self, x, training=None):
        return self.dense(x)


@register
class UnseededNoise(keras.layers.Layer):
    def call(self, x, training=None):
        return x + keras.random.normal(ops.shape(x)) if training else x


@register
class SeededNoise(keras.layers.Layer):
    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, x, training=None):
        return x + keras.random.normal(ops.shape(x), seed=self.seed_generator) if training else x

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


@register
class NoiseOfNumPy(keras.layers.Layer):
    def call(self, x, training=None):
        return x + np.random.normal(size=x.shape[-1:]).astype("float32") if training else x


@kustom.layer
def noise_of_a_setting(x, *, training=None, stddev=1.0, seed=None):
    return x + stddev * keras.random.normal(ops.shape(x), seed=seed) if training else x


@register
class DropsColumnsUnseeded(keras.layers.Layer):
    def call(self, x, training=None):
        if not training:
            return x
        return x * ops.cast(keras.random.uniform((1, x.shape[-1])) > 0.5, x.dtype)


@register
class TrainsByDefault(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.normalization = keras.layers.BatchNormalization()

    def call(self, x, training=True):
        return self.normalization(x, training=training)


@register
class AsksItsModel(TrainsByDefault):
    def call(self, x, training=None):
        return self.normalization(x, training=training)


@register
class ModelThatTrainsByDefault(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3)
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, x, training=True):
        return self.dropout(self.dense(x), training=training)


@register
class ModelThatIsTold(ModelThatTrainsByDefault):
    def call(self, x, training=None):
        return self.dropout(self.dense(x), training=training)


@register
class ScalesByDefault(keras.layers.Layer):
    def call(self, x, training=True):
        return x * 2.0 if training else x


@register
class ScalesWhenTold(keras.layers.Layer):
    def call(self, x, training=None):
        return x * 2.0 if training else x


@register
class UnseededAndNothingAtInference(keras.layers.Layer):
    def call(self, x, training=None):
        if training:
            return x + keras.random.normal(keras.ops.shape(x))


PAIRS = [
    ("T401", DropsAlways, DropsInTraining),
    ("T401", NeverDrops, DropsInTraining),
    ("T401", NoiseInPredict, NoiseInTraining),
    ("T402", NothingAtInference, SomethingAtInference),
    ("T402", NothingInTraining, SomethingInTraining),
    ("T402", ForgetsToReturn, Returns),
    ("T403", UnseededNoise, SeededNoise),
    ("T403", UnseededAndNothingAtInference, SeededNoise),
    ("T403", NoiseOfNumPy, noise_of_a_setting),
    ("T403", DropsColumnsUnseeded, SeededNoise),
    ("T408", TrainsByDefault, AsksItsModel),
    ("T408", ModelThatTrainsByDefault, ModelThatIsTold),
    ("T408", ScalesByDefault, ScalesWhenTold),
]
