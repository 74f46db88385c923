"""A trained model for each part: those of the chapter, and the tests' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kustom import textbook as tb
from roundtrip import parts

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = X[:, :1] * 2 - 0.5


def _compiled(model: Any, loss: Any = "mse", metrics: Any = None, optimizer: Any = "sgd") -> Any:
    model.compile(optimizer, loss=loss, metrics=metrics)
    return model


def _losses() -> Any:
    """Each loss on an output of its own; what is compiled with a bare name comes back as the default part."""
    losses = {
        "huber_fn": tb.huber_fn,
        "create_huber": tb.create_huber(2.5),
        "HuberLoss": tb.HuberLoss(2.5),
        "pinball": parts.pinball(quantile=0.9),
    }
    metrics = {
        "huber_fn": [tb.HuberMetric(0.5)],
        "create_huber": [tb.precision, tb.precision(threshold=0.1, name="low")],
        "pinball": parts.rmse(),
    }
    inputs = keras.Input((4,))
    outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in losses}
    return _compiled(keras.Model(inputs, outputs), losses, metrics, parts.Slow(0.1, momentum=0.5, slower=2.0))


def _small() -> Any:
    """Each activation, initializer, regularizer and constraint in a dense layer."""
    settings = [
        {"activation": tb.my_softplus, "kernel_initializer": tb.my_glorot_initializer(seed=3)},
        {"activation": parts.leaky(slope=0.3), "kernel_initializer": tb.my_glorot_initializer},
        {"kernel_regularizer": tb.my_l1_regularizer(factor=0.2), "bias_regularizer": tb.my_l1_regularizer},
        {"kernel_regularizer": tb.MyL1Regularizer(0.2), "kernel_constraint": tb.my_positive_weights},
        {"kernel_initializer": parts.centred(around=0.2), "bias_initializer": parts.centred},
        {"kernel_regularizer": parts.pull(target=np.full((4, 4), 0.25, "float32"))},
        {"kernel_constraint": parts.capped(at=0.1), "activation": tb.exponential_layer},
    ]
    layers = [keras.layers.Dense(4, **each) for each in settings]
    return _compiled(keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(1)]), tb.huber_fn)


def _layers() -> Any:
    """Each layer, one after the other."""
    inputs = keras.Input((4,))
    h = tb.exponential_layer()(inputs * 0.1)
    h = tb.MyDense(4, activation=tb.my_softplus)(h)
    h = tb.MyGaussianNoise(0.2, seed=4)(h)
    h = tb.ResidualBlock(2, 4)(h)
    h = keras.layers.Concatenate()(tb.MyMultiLayer(epsilon=1e-3)([h, inputs]))
    h = parts.stretch(by=[1, 2])(h)
    h = parts.Gated(3, parts.leaky, (2.0, 0.5, 1.0), offset=np.array([1.0, 2.0, 3.0]))(h)
    h = parts.Lazy()(h)
    return _compiled(keras.Model(inputs, keras.layers.Dense(1)(h)), [tb.create_huber(0.3)])


def _shared() -> Any:
    tied, inputs = keras.layers.Dense(4, name="tied"), keras.Input((4,))
    twice = parts.Twice(tied, auxiliary=parts.pinball(quantile=0.2))
    return _compiled(keras.Model(inputs, keras.layers.Dense(1)(twice(inputs) + tied(inputs))), parts.pinball)


MODELS: dict[str, Callable[[], Any]] = {
    "losses": _losses,
    "small": _small,
    "layers": _layers,
    "shared": _shared,
    "residual": lambda: _compiled(tb.ResidualRegressor(1), tb.huber_fn(threshold=0.7), optimizer="nadam"),
    "reconstructing": lambda: _compiled(tb.ReconstructingRegressor(1)),
    "nested": lambda: _compiled(parts.Twice(parts.Gated(4))),
}


def targets_of(name: str) -> Any:
    """What the model is trained on."""
    return dict.fromkeys(("huber_fn", "create_huber", "HuberLoss", "pinball"), Y) if name == "losses" else Y


def trained(name: str) -> Any:
    """The model of a name, after a few steps."""
    keras.utils.set_random_seed(1)
    model = MODELS[name]()
    model.fit(X, targets_of(name), epochs=3, batch_size=6, verbose=0)
    return model
