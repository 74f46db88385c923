"""Section 12.3.3: an activation, an initializer, regularizers and a constraint."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

import kustom

__all__ = ["MyL1Regularizer", "my_glorot_initializer", "my_l1_regularizer", "my_positive_weights", "my_softplus"]


@kustom.activation
def my_softplus(z: Any) -> Any:
    """The softplus log(exp(z) + 1) of each entry, finite and with a finite gradient everywhere.

    The chapter's formula overflows from z = 89 on; log1p(exp(-abs(z))) + max(z, 0) does not, and is what `ops.softplus`
    computes, with the gradient sigmoid(z). `keras.activations.softplus` is the same.

    Args:
        z: A tensor of any shape and floating dtype.

    Example:
        >>> import kustom
        >>> [round(float(value), 4) for value in kustom.textbook.my_softplus([-100.0, 0.0, 100.0])]
        [0.0, 0.6931, 100.0]
    """
    return ops.softplus(z)


@kustom.initializer
def my_glorot_initializer(shape: Any, dtype: Any = None, *, seed: int | None = None) -> Any:
    """Normal values whose variance is 2 / (fan_in + fan_out), so that a signal keeps its scale both ways.

    (Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.) The chapter's
    brackets give 2 / fan_in + fan_out. For a convolution's kernel both fans count the receptive field.
    `keras.initializers.GlorotNormal` draws from a normal cut off at two standard deviations, with the same variance.

    Args:
        shape: Of the weight; the last two axes are inputs and outputs.
        dtype: Of the weight.
        seed: Of the values; None: another each time.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> round(float(ops.std(kustom.textbook.my_glorot_initializer(seed=1)((500, 300)))), 2)
        0.05
    """
    field = 1
    for size in shape[:-2]:
        field *= size
    fan_in, fan_out = (shape[-2] * field, shape[-1] * field) if len(shape) > 1 else (shape[0], shape[0]) if shape else (1, 1)
    stddev = (2.0 / max(1, fan_in + fan_out)) ** 0.5
    return keras.random.normal(shape, stddev=stddev, dtype=dtype, seed=seed)


@kustom.regularizer
def my_l1_regularizer(weights: Any, *, factor: float = 0.01) -> Any:
    """The l1 penalty: the sum of abs(factor * w). `keras.regularizers.L1(factor)` is the same.

    Args:
        weights: A tensor of any shape.
        factor: Of the penalty, from 0 on.

    Example:
        >>> import kustom
        >>> round(float(kustom.textbook.my_l1_regularizer([1.0, -2.0])), 4)
        0.03
    """
    return ops.sum(ops.abs(factor * weights))


@kustom.part
class MyL1Regularizer(keras.regularizers.Regularizer):
    """The l1 penalty as a class; see `my_l1_regularizer`.

    Args:
        factor: Of the penalty, from 0 on.

    Example:
        >>> import kustom
        >>> kustom.textbook.MyL1Regularizer(0.1).get_config()
        {'factor': 0.1}
    """

    factor: float

    def __call__(self, weights: Any) -> Any:
        return ops.sum(ops.abs(self.factor * weights))


@kustom.constraint
def my_positive_weights(weights: Any) -> Any:
    """Weights with 0 in the place of each negative one. `keras.constraints.NonNeg()` is the same.

    Args:
        weights: A tensor of any shape.

    Example:
        >>> import kustom
        >>> [float(value) for value in kustom.textbook.my_positive_weights([-1.0, 2.0])]
        [0.0, 2.0]
    """
    return ops.where(weights < 0.0, ops.zeros_like(weights), weights)
