"""Sections 12.3.6 and 12.3.7: models of blocks, and a loss and a metric that come from inside a model."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

import kustom

__all__ = ["ReconstructingRegressor", "ResidualBlock", "ResidualRegressor"]


@kustom.part
class ResidualBlock(keras.layers.Layer):
    """Dense layers whose output is added to their input (He et al., Deep Residual Learning for Image Recognition, 2016).

    Args:
        n_layers: How many dense layers.
        n_neurons: The outputs of each; as many as the block has inputs.

    Example:
        >>> import keras, kustom
        >>> keras.Sequential([keras.Input((30,)), kustom.textbook.ResidualBlock(2, 30)]).output_shape
        (None, 30)
    """

    n_layers: int
    n_neurons: int

    def setup(self) -> None:
        self.hidden = [_dense(self.n_neurons, "elu", "he_normal") for _ in range(self.n_layers)]

    def build(self, input_shape: Any) -> None:
        for layer in self.hidden:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, inputs: Any) -> Any:
        z = inputs
        for layer in self.hidden:
            z = layer(z)
        return inputs + z


@kustom.part
class ResidualRegressor(keras.Model):
    """A regressor of two residual blocks, of which the first is run through four times with the same weights.

    Args:
        output_dim: The number of targets.

    Example:
        >>> import numpy as np, kustom
        >>> kustom.textbook.ResidualRegressor(1)(np.zeros((2, 8), "float32")).shape == (2, 1)
        True
    """

    output_dim: int

    def setup(self) -> None:
        self.hidden1 = _dense(30, "elu", "he_normal")
        self.block1 = ResidualBlock(2, 30)
        self.block2 = ResidualBlock(2, 30)
        self.out = keras.layers.Dense(self.output_dim)

    def call(self, inputs: Any) -> Any:
        z = self.hidden1(inputs)
        for _ in range(1 + 3):
            z = self.block1(z)
        z = self.block2(z)
        return self.out(z)


@kustom.part
class ReconstructingRegressor(keras.Model):
    """A regressor that must also be able to reconstruct its inputs from its last hidden layer.

    0.05 times the mean squared error of the reconstruction is added to the loss; the error itself is shown by `fit` and by
    `kustom.Loop` as `reconstruction_error`. (Keras 3 has no `add_metric`; a metric that the model keeps in an attribute is
    found, and a part may update it in `call` on every backend.)

    Args:
        output_dim: The number of targets.

    Example:
        >>> import numpy as np, kustom
        >>> model = kustom.textbook.ReconstructingRegressor(1)
        >>> model.compile(optimizer="nadam", loss="mse")
        >>> x, y = np.ones((4, 8), "float32"), np.ones((4, 1), "float32")
        >>> sorted(model.fit(x, y, verbose=0).history)
        ['loss', 'reconstruction_error']
    """

    output_dim: int

    def setup(self) -> None:
        self.hidden = [_dense(30, "selu", "lecun_normal") for _ in range(5)]
        self.out = keras.layers.Dense(self.output_dim)
        self.reconstruction_error = keras.metrics.Mean(name="reconstruction_error")

    def build(self, input_shape: Any) -> None:
        self.reconstruct = keras.layers.Dense(input_shape[-1])

    def call(self, inputs: Any) -> Any:
        z = inputs
        for layer in self.hidden:
            z = layer(z)
        reconstruction = self.reconstruct(z)
        error = ops.mean(ops.square(reconstruction - inputs))
        self.add_loss(0.05 * error)
        # A smaller last batch counts for what it has.
        self.reconstruction_error.update_state(error, sample_weight=ops.shape(inputs)[0])
        return self.out(z)


def _dense(units: int, activation: str, initializer: str) -> keras.layers.Dense:
    return keras.layers.Dense(units, activation=activation, kernel_initializer=initializer)
