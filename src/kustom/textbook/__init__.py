"""The parts of the textbook's chapter on custom models and training, under its names, each correct.

They are written with kustom's public names alone, as a user would write them. Where Keras has the same thing, the
docstring says so, and a test holds the two equal.
"""

from kustom.textbook.layers import MyDense, MyGaussianNoise, MyMultiLayer, exponential_layer
from kustom.textbook.losses import HuberLoss, create_huber, huber_fn
from kustom.textbook.metrics import HuberMetric, precision
from kustom.textbook.models import ReconstructingRegressor, ResidualBlock, ResidualRegressor
from kustom.textbook.small import (
    MyL1Regularizer,
    my_glorot_initializer,
    my_l1_regularizer,
    my_positive_weights,
    my_softplus,
)
from kustom.textbook.training import print_status_bar, random_batch

__all__ = [
    "HuberLoss",
    "HuberMetric",
    "MyDense",
    "MyGaussianNoise",
    "MyL1Regularizer",
    "MyMultiLayer",
    "ReconstructingRegressor",
    "ResidualBlock",
    "ResidualRegressor",
    "create_huber",
    "exponential_layer",
    "huber_fn",
    "my_glorot_initializer",
    "my_l1_regularizer",
    "my_positive_weights",
    "my_softplus",
    "precision",
    "print_status_bar",
    "random_batch",
]
