"""Parts as people had them when they reported trouble with Keras in public, in plain Keras, and the codes they fall under."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

_registered = keras.saving.register_keras_serializable("reported")


@_registered
class Grid(keras.layers.Layer):
    """keras#20598: the inner lists are filled after they were appended."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.grid = []
        for _ in range(2):
            row = []
            self.grid.append(row)
            for _ in range(2):
                row.append(keras.layers.Dense(3))

    def call(self, x):
        for row in self.grid:
            for cell in row:
                x = cell(x)
        return x


@_registered
class Spy(keras.layers.Layer):
    """keras#21639: a metric that is made in `build`; on JAX `fit` fails."""

    def build(self, input_shape):
        self.seen = keras.metrics.Mean(name="seen")

    def call(self, x):
        self.seen.update_state(ops.mean(x))
        return x


@_registered
class FlatMSE(keras.losses.Loss):
    """keras#19662: targets (n,) broadcast against predictions (n, 1)."""

    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1)


@_registered
class OwnWeightOnly(keras.Model):
    """keras#18823: `build` makes the model's own weight and forgets the children."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = keras.layers.Dense(3), keras.layers.Dense(3)

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), name="scale", initializer="ones")

    def call(self, x):
        return self.second(self.first(x)) * self.scale

    def get_config(self):
        return {}


@_registered
class Tower(keras.Model):
    """keras#21546: a functional model made in `__init__`, whose config leaves the arguments out."""

    def __init__(self, width=4, scale=1.0, **kwargs):
        x = keras.Input((3,))
        super().__init__(inputs=x, outputs=keras.layers.Dense(width)(x) * scale, **kwargs)
        self.width, self.scale = width, scale


def make_pinball(q):
    """keras#7993: the parameter of a loss is in a closure."""

    def pinball(y_true, y_pred):
        e = ops.subtract(y_true, y_pred)
        return ops.mean(ops.maximum(q * e, (q - 1) * e), axis=-1)

    return pinball


@_registered
class DrawnSeed(keras.initializers.Initializer):
    """deel-lip#64: one instance as the initializer of two weights, which are born identical."""

    def __init__(self, seed=None):
        self.seed = int(keras.random.randint((), 0, 10**6)) if seed is None else seed

    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, dtype=dtype, seed=self.seed)

    def get_config(self):
        return {"seed": self.seed}


@_registered
class TwoOfOne(keras.layers.Layer):
    """The layer that is given one initializer for two weights."""

    def __init__(self, initializer, **kwargs):
        super().__init__(**kwargs)
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape):
        self.a, self.b = (self.add_weight(shape=(4, 4), initializer=self.initializer, name=name) for name in "ab")

    def call(self, x):
        return ops.matmul(ops.matmul(x, self.a), self.b)

    def get_config(self):
        return {**super().get_config(), "initializer": keras.initializers.serialize(self.initializer)}


@_registered
class Growing(keras.layers.Layer):
    """hub#926: the layer changes the list that it was given."""

    def __init__(self, sizes, **kwargs):
        super().__init__(**kwargs)
        self.sizes = sizes
        sizes.append(8)

    def call(self, x):
        return x * len(self.sizes)


class Other:
    """Something that Keras does not know."""


@_registered
class Holding(keras.layers.Layer):
    """tensorflow#93378: without a `get_config` Keras records what it is given, and an object of another kind it cannot."""

    def __init__(self, held, **kwargs):
        super().__init__(**kwargs)
        self.held = held

    def call(self, x):
        return x


def gate(factor):
    """keras#20406: another class under the same registered name takes its place."""

    @keras.saving.register_keras_serializable()
    class Gate(keras.layers.Layer):
        def call(self, x):
            return x * factor

    return Gate


@_registered
class Concatenating(keras.layers.Layer):
    """keras#19776: when loaded, `build` is given a list, and the setting is one."""

    def __init__(self, tail=(2,), **kwargs):
        super().__init__(**kwargs)
        self.tail = tail

    def build(self, input_shape):
        self.w = self.add_weight(shape=input_shape[-1:] + (2,), name="w")  # noqa: RUF005  (what was reported)

    def call(self, x):
        return ops.matmul(x, self.w)


@_registered
class ScalarMSE(keras.losses.Loss):
    """tensorflow#42446: one number for the batch, so that `sample_weight` cannot tell the samples apart."""

    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred))


@_registered
class Total(keras.metrics.Metric):
    """keras#21702: `result` returns the metric's own variable; weights are ignored."""

    def __init__(self, name="total"):
        super().__init__(name=name)
        self.total = self.add_variable((), "zeros", name="total")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(ops.sum(y_pred))

    def result(self):
        return self.total


@_registered
class FixedDense(keras.layers.Dense):
    """keras#19373: it fixes arguments itself, and gets them again from the file."""

    def __init__(self, units, **kwargs):
        super().__init__(units, activation="relu", use_bias=True, **kwargs)


@_registered
class GainDense(keras.layers.Dense):
    """keras#19373: one setting more, and the config of Dense."""

    def __init__(self, units, gain=1.0, **kwargs):
        super().__init__(units, **kwargs)
        self.gain = gain

    def call(self, x):
        return super().call(x) * self.gain


@_registered
class Scaled(keras.layers.Dense):
    """keras#19373: `build` without that of Dense, whose weights are saved all the same."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), name="scale", initializer="ones")

    def call(self, x):
        return x * self.scale


@_registered
class Wrap(keras.layers.Layer):
    """keras#9571: a layer that is given another, and writes it into its config."""

    def __init__(self, inner, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.inner, self.factor = inner, factor

    def build(self, input_shape):
        if not self.inner.built:
            self.inner.build(input_shape)

    def call(self, x):
        return self.inner(x) * self.factor

    def get_config(self):
        return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner), "factor": self.factor}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("inner")), **config)


def tied():
    """A model in which one layer is given to two that wrap it."""
    shared, x = keras.layers.Dense(2), keras.Input((3,))
    return keras.Model(x, Wrap(shared)(x) + Wrap(shared, 2.0)(x))


@_registered
class Pull(keras.regularizers.Regularizer):
    """tensorflow#41164: an array as a setting."""

    def __init__(self, target, strength=0.1):
        self.target, self.strength = target, strength

    def __call__(self, w):
        return self.strength * ops.sum(ops.square(w - ops.convert_to_tensor(self.target)))

    def get_config(self):
        return {"target": self.target, "strength": self.strength}


@_registered
class Shift(keras.layers.Layer):
    """keras#8401: an array as a setting of a layer."""

    def __init__(self, by, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def call(self, x):
        return ops.add(x, self.by)

    def get_config(self):
        return {**super().get_config(), "by": self.by}


def changed_afterwards():
    """tensorflow#93378: the attribute is changed after the layer was made, and the config says what it was made with."""
    layer = Rate()
    layer.rate = 0.9
    return layer


@_registered
class Rate(keras.layers.Layer):
    """A layer without a `get_config`."""

    def __init__(self, rate=0.5, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, x):
        return x * self.rate


# What makes the part, and the codes that it falls under.
REPORTED: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "layers in nested lists": (Grid, ("C109",)),
    "a metric made in build": (Spy, ("M508",)),
    "flat targets": (FlatMSE, ("S208",)),
    "children never built": (OwnWeightOnly, ("C103",)),
    "a functional subclass": (lambda: Tower(5, 3.0), ("C101", "C102")),
    "a closure": (lambda: make_pinball(0.9), ("C106",)),
    "one integer seed": (DrawnSeed, ("N312",)),
    "a list that is changed": (lambda: Growing([4]), ("C108",)),
    "an object of another kind": (lambda: Holding(Other()), ("C101",)),
    "an attribute changed afterwards": (changed_afterwards, ("C108",)),
    "two classes of one name": (lambda: (gate(2.0), gate(-7.0))[0](), ("C105",)),
    "arithmetic with a shape": (lambda: Concatenating((2,)), ("S209",)),
    "a loss of one number": (ScalarMSE, ("S204",)),
    "its own variable": (lambda: Total, ("M503", "M506")),
    "fixed arguments": (lambda: FixedDense(2), ("C102",)),
    "an added setting": (lambda: GainDense(2, gain=5.0), ("C101",)),
    "build without its base's": (lambda: Scaled(3), ("C103",)),
    "a shared layer": (tied, ("C109",)),
    "an array in a regularizer": (lambda: Pull(np.full((3, 2), 0.5, "float32")), ("C107",)),
    "an array in a layer": (lambda: Shift(np.full(3, 0.5, "float32")), ("C107",)),
}
