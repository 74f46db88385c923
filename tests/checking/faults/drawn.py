"""Initializers of the wrong scale or with shared values; constraints that go on changing their own result."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

import kustom

register = keras.saving.register_keras_serializable("faults")


def glorot_of_the_notebook(shape, dtype=None):
    stddev = math.sqrt(2.0 / shape[0] + shape[1])
    return keras.random.normal(shape, stddev=stddev, dtype=dtype)


@kustom.initializer
def glorot_counted_right(shape, dtype, *, seed=None):
    receptive = int(np.prod(shape[:-2]))
    stddev = math.sqrt(2.0 / (receptive * (shape[-2] + shape[-1])))
    return keras.random.normal(shape, stddev=stddev, dtype=dtype, seed=seed)


@register
class FansOfTheFirstAxes(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, stddev=math.sqrt(2.0 / (shape[0] + shape[1])), dtype=dtype)

    def get_config(self):
        return {}


@register
class FansOfTheLastAxes(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        fan_in = int(np.prod(shape[:-1]))
        return keras.random.normal(shape, stddev=math.sqrt(2.0 / fan_in), dtype=dtype)

    def get_config(self):
        return {}


@register
class HeWithoutRoot(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, stddev=2.0 / int(np.prod(shape[:-1])), dtype=dtype)

    def get_config(self):
        return {}


@register
class OneSeedForAll(keras.initializers.Initializer):
    def __init__(self):
        self.seed = 42

    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, stddev=0.05, dtype=dtype, seed=self.seed)

    def get_config(self):
        return {}


@register
class OneGeneratorEach(keras.initializers.Initializer):
    def __init__(self, seed=None):
        self.seed = seed
        self._generator = keras.random.SeedGenerator(seed)

    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, stddev=0.05, dtype=dtype, seed=self._generator)

    def get_config(self):
        return {"seed": self.seed}


@register
class OneDrawnInteger(keras.initializers.Initializer):
    def __init__(self, seed=None):
        self.seed = seed if seed is not None else int(np.random.randint(0, 10**6))

    def __call__(self, shape, dtype=None):
        return keras.random.uniform(shape, -0.05, 0.05, dtype=dtype, seed=self.seed)

    def get_config(self):
        return {"seed": self.seed}


@kustom.initializer
def small_uniform(shape, dtype, *, seed=None):
    return keras.random.uniform(shape, -0.05, 0.05, dtype=dtype, seed=seed)


@register
class ForgetsItsSeed(keras.initializers.Initializer):
    def __init__(self, seed=None):
        self.seed = seed

    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, stddev=0.05, dtype=dtype)

    def get_config(self):
        return {"seed": self.seed}


@register
class ShrinksALittle(keras.constraints.Constraint):
    def __call__(self, w):
        return w * 0.99

    def get_config(self):
        return {}


@register
class ClipsToABox(keras.constraints.Constraint):
    def __call__(self, w):
        return ops.clip(w, -1.0, 1.0)

    def get_config(self):
        return {}


@register
class NormToItsRoot(keras.constraints.Constraint):
    def __call__(self, w):
        norm = ops.sqrt(ops.sum(ops.square(w), axis=0, keepdims=True))
        return w / (1e-7 + ops.sqrt(norm))

    def get_config(self):
        return {}


@register
class NormToOne(keras.constraints.Constraint):
    def __call__(self, w):
        norm = ops.sqrt(ops.sum(ops.square(w), axis=0, keepdims=True))
        return w / (1e-12 + norm)

    def get_config(self):
        return {}


@kustom.constraint
def centred_then_scaled_twice(w):
    return 2.0 * (w - ops.mean(w, axis=0, keepdims=True))


@kustom.constraint
def centred(w):
    return w - ops.mean(w, axis=0, keepdims=True)


PAIRS = [
    ("N311", glorot_of_the_notebook, glorot_counted_right),
    ("N311", FansOfTheFirstAxes, FansOfTheLastAxes),
    ("N311", HeWithoutRoot, FansOfTheLastAxes),
    ("N312", OneSeedForAll, OneGeneratorEach),
    ("N312", OneDrawnInteger, small_uniform),
    ("N312", ForgetsItsSeed, OneGeneratorEach),
    ("N313", ShrinksALittle, ClipsToABox),
    ("N313", NormToItsRoot, NormToOne),
    ("N313", centred_then_scaled_twice, centred),
]
