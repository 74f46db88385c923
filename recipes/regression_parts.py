"""The custom parts of the regression, and the network made of them.

They stand in a module of their own so that a process that loads a saved model imports this file and nothing else of the
recipe. A file names each part by this module and its own name, and holds its settings.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

import kustom
from kustom.typing import ActivationLike, ConstraintLike, InitializerLike, RegularizerLike

__all__ = [
    "SMALL_TABLE",
    "TableRegressor",
    "elastic_net",
    "fan_in_normal",
    "huber",
    "max_norm",
    "network_for",
    "rmse",
    "signed_log",
    "swish",
]

# Rows to train on.
SMALL_TABLE = 2000


@kustom.loss
def huber(y_true: Any, y_pred: Any, *, threshold: float = 1.0) -> Any:
    """Quadratic for small errors, linear beyond the threshold: a few odd rows do not rule the rest."""
    error = ops.abs(ops.subtract(y_true, y_pred))
    return ops.where(error < threshold, ops.square(error) / 2, threshold * error - threshold**2 / 2)


def _root_of_mean(squares: Any, count: Any, scale: float) -> Any:
    return scale * ops.sqrt(squares / count)


@kustom.metric(result=_root_of_mean)
def rmse(y_true: Any, y_pred: Any, *, scale: float = 1.0) -> Any:
    """The root of the mean squared error; `scale` takes it from standardised targets back to their own units.

    It is a formula over sums, so that the value of an epoch is that of all its rows and no mean of roots.
    """
    squares = ops.square(ops.subtract(y_true, y_pred))
    return kustom.Sums(squares=squares, count=ops.ones_like(squares))


@kustom.activation
def swish(z: Any, *, sharpness: float = 1.0) -> Any:
    """z * sigmoid(sharpness * z) (Ramachandran et al., Searching for Activation Functions, 2017)."""
    return z * ops.sigmoid(sharpness * z)


@kustom.initializer
def fan_in_normal(shape: Any, dtype: Any = None, *, gain: float = 1.0, seed: int | None = None) -> Any:
    """Normal values with the standard deviation gain / sqrt(inputs), so that sums over the inputs keep their scale."""
    return keras.random.normal(shape, stddev=gain / math.sqrt(max(1, shape[0])), dtype=dtype, seed=seed)


@kustom.regularizer
def elastic_net(w: Any, *, l1: float = 0.0, l2: float = 0.0) -> Any:
    """l1 * sum(abs(w)) + l2 * sum(w**2): the first switches weights off, the second keeps all of them small."""
    return l1 * ops.sum(ops.abs(w)) + l2 * ops.sum(ops.square(w))


@kustom.constraint
def max_norm(w: Any, *, limit: float = 3.0) -> Any:
    """Weights whose columns, the inputs of one unit, have at most this length."""
    length = ops.sqrt(ops.sum(ops.square(w), axis=0, keepdims=True))
    return w * (limit / ops.maximum(length, limit))


@kustom.layer
def signed_log(x: Any) -> Any:
    """sign(x) * log(1 + abs(x)): a table's largest values stay the largest without drowning all others."""
    return ops.sign(x) * ops.log1p(ops.abs(x))


@kustom.part
class PeriodicFeatures(keras.layers.Layer):
    """Waves of learned frequencies over each number, beside the inputs themselves: a network bends sooner along waves.

    (Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning, 2022.)

    Args:
        numeric: How many of the inputs are numbers; they come first.
        frequencies: Waves a number.
        initializer: Of the frequencies: small ones are smooth.
        constraint: Of the frequencies.
    """

    numeric: int
    frequencies: int = 8
    initializer: InitializerLike = fan_in_normal()
    constraint: ConstraintLike = None

    def build(self, input_shape: Any) -> None:
        shape = (self.numeric, self.frequencies)
        self.frequency = self.add_weight(shape=shape, initializer=self.initializer, constraint=self.constraint, name="frequency")

    def call(self, x: Any) -> Any:
        angles = 2 * math.pi * ops.expand_dims(x[:, : self.numeric], -1) * self.frequency
        angles = ops.reshape(angles, (-1, self.numeric * self.frequencies))
        return ops.concatenate([x, ops.sin(angles), ops.cos(angles)], axis=-1)


@kustom.part
class ResidualBlock(keras.layers.Layer):
    """Adds to its input what two dense layers make of it; at first nothing, so that depth costs nothing."""

    units: int
    dropout: float = 0.0
    activation: ActivationLike = swish
    initializer: InitializerLike = fan_in_normal()
    regularizer: RegularizerLike = None
    constraint: ConstraintLike = None

    def setup(self) -> None:
        shared = {"kernel_regularizer": self.regularizer, "kernel_constraint": self.constraint}
        self.norm = keras.layers.LayerNormalization()
        self.widen = keras.layers.Dense(2 * self.units, self.activation, kernel_initializer=self.initializer, **shared)
        self.drop = keras.layers.Dropout(self.dropout)
        self.narrow = keras.layers.Dense(self.units, kernel_initializer="zeros", **shared)

    def call(self, x: Any, training: bool | None = None) -> Any:
        return x + self.narrow(self.drop(self.widen(self.norm(x)), training=training))


@kustom.part
class TableRegressor(keras.Model):
    """A linear regression and a network side by side; their outputs are added.

    Args:
        numeric: How many of the inputs are numbers; they come first.
        units: Of each layer of the network.
        blocks: Its residual blocks.
        frequencies: Waves a number, see `PeriodicFeatures`; 0: none.
        dropout: Of the blocks.
        gain: Of the kernels inside the network at the start, see `fan_in_normal`.
        hidden_regularizer: Of those kernels.
        deep_regularizer: Of the network's last kernel.
        wide_regularizer: Of the linear regression's.
    """

    numeric: int
    units: int = 64
    blocks: int = 2
    frequencies: int = 8
    dropout: float = 0.1
    gain: float = 1.0
    hidden_regularizer: RegularizerLike = None
    deep_regularizer: RegularizerLike = None
    wide_regularizer: RegularizerLike = None

    def setup(self) -> None:
        shared = {"kernel_regularizer": self.hidden_regularizer, "kernel_constraint": max_norm(limit=3.0)}
        waves = PeriodicFeatures(self.numeric, self.frequencies, fan_in_normal(), max_norm(limit=3.0))
        self.squash = signed_log()
        self.periodic = waves if self.numeric and self.frequencies else None
        self.first = keras.layers.Dense(self.units, kernel_initializer=fan_in_normal(gain=self.gain), **shared)
        self.residual = [
            ResidualBlock(
                self.units, self.dropout, swish, fan_in_normal(gain=self.gain), self.hidden_regularizer, max_norm(limit=3.0)
            )
            for _ in range(self.blocks)
        ]
        # No normalisation before it: that would undo what the regularizer holds down.
        self.deep = keras.layers.Dense(1, kernel_initializer="zeros", kernel_regularizer=self.deep_regularizer)
        self.wide = keras.layers.Dense(1, kernel_initializer="zeros", kernel_regularizer=self.wide_regularizer)

    def call(self, x: Any, training: bool | None = None) -> Any:
        z = self.squash(x)
        if self.periodic is not None:
            z = self.periodic(z)
        z = self.first(z)
        for block in self.residual:
            z = block(z, training=training)
        return self.wide(x) + self.deep(swish(z))


def network_for(rows: int, numeric: int) -> TableRegressor:
    """A network for a table with so many rows to train on.

    A small table is soon known by heart: its network is small, starts near 0, and is held there so strongly that little
    more than the linear regression is left unless the rows insist.
    """
    if rows < SMALL_TABLE:
        small, few = elastic_net(l2=0.1), elastic_net(l1=0.01)
        return TableRegressor(numeric, 16, 1, 2, gain=0.3, hidden_regularizer=small, deep_regularizer=small, wide_regularizer=few)
    small, few = elastic_net(l2=1e-4), elastic_net(l1=1e-4)
    return TableRegressor(numeric, 64, 2, 8, hidden_regularizer=small, deep_regularizer=small, wide_regularizer=few)
