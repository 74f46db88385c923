"""Section 12.3.5: layers, without weights and with them, with several inputs and outputs, and with two modes."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

import kustom
from kustom.typing import ActivationLike

__all__ = ["MyDense", "MyGaussianNoise", "MyMultiLayer", "exponential_layer"]


@kustom.layer
def exponential_layer(x: Any) -> Any:
    """The exponential of each entry: as a layer, `exponential_layer()`, and as an activation, `activation=exponential_layer`.

    The chapter's `Lambda` layer around a Python lambda is refused by Keras when it loads. `keras.activations.exponential`
    is the same as an activation.

    Args:
        x: A tensor of any shape and floating dtype.

    Example:
        >>> import kustom
        >>> [round(float(value), 4) for value in kustom.textbook.exponential_layer([0.0, 1.0])]
        [1.0, 2.7183]
    """
    return ops.exp(x)


@kustom.part
class MyDense(keras.layers.Layer):
    """A dense layer: activation(x @ kernel + bias). `keras.layers.Dense(units, activation, "glorot_normal")` is the same.

    Args:
        units: The number of outputs.
        activation: Whatever Keras takes as one; None: none.

    Example:
        >>> import keras, kustom
        >>> keras.Sequential([keras.Input((3,)), kustom.textbook.MyDense(4, activation="relu")]).output_shape
        (None, 4)
    """

    units: int
    activation: ActivationLike = None

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), initializer="glorot_normal", name="kernel")
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, x: Any) -> Any:
        return self.activation(ops.matmul(x, self.kernel) + self.bias)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], self.units)


@kustom.part
class MyMultiLayer(keras.layers.Layer):
    """Two inputs, three outputs: their sum, product and quotient.

    The chapter's quotient is infinite, and its gradient NaN, where the second input is 0. Here it is 0 where that is no
    greater than `epsilon`, and so is its gradient. A quotient that the dtype cannot hold (in float16 beyond 60000) is the
    largest that counts (60000), of its sign, with the gradient 0.

    Args:
        epsilon: Below which, in absolute value, the second input counts as 0.

    Example:
        >>> import numpy as np, kustom
        >>> added, multiplied, divided = kustom.textbook.MyMultiLayer()([np.array([[4.0]]), np.array([[2.0]])])
        >>> float(added[0, 0]), float(multiplied[0, 0]), float(divided[0, 0])
        (6.0, 8.0, 2.0)
    """

    epsilon: float = 1e-7

    def call(self, inputs: Any) -> Any:
        first, second = inputs
        largest = _LARGEST.get(keras.backend.standardize_dtype(second.dtype), 3e38)
        divides = ops.abs(second) > self.epsilon
        fits = ops.abs(first) < largest * ops.minimum(ops.abs(second), 1.0)
        # The inner `where` keeps the division, and so its gradient, away from 0; the outer one alone would not.
        divisor = ops.where(ops.logical_and(divides, fits), second, ops.ones_like(second))
        beyond = ops.stop_gradient(largest * ops.sign(first) * ops.sign(second))
        quotient = ops.where(fits, first / divisor, beyond)
        return [first + second, first * second, ops.where(divides, quotient, ops.zeros_like(quotient))]


# Of each floating dtype a number below its largest; of float32 and bfloat16 it is 3e38.
_LARGEST = {"float16": 6e4, "float64": 1e308}


@kustom.part
class MyGaussianNoise(keras.layers.Layer):
    """Gaussian noise while training; at inference the input as it is. `keras.layers.GaussianNoise` is the same.

    Args:
        stddev: Of the noise, from 0 on.
        seed: Of the noise; None: another each time the layer is made.

    Example:
        >>> import numpy as np, kustom
        >>> noise = kustom.textbook.MyGaussianNoise(0.1)
        >>> [float(value) for value in noise(np.array([1.0, 2.0]), training=False)]
        [1.0, 2.0]
    """

    stddev: float
    seed: int | None = None

    def setup(self) -> None:
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self.supports_masking = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        if not training:
            return x
        return x + keras.random.normal(ops.shape(x), stddev=self.stddev, dtype=x.dtype, seed=self.seed_generator)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape
