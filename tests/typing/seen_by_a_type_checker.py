"""What a type checker sees of parts; `make lint` runs pyright over it, and each `assert_type` is a claim."""

from __future__ import annotations

from typing import Any, assert_type

import keras

import kustom
from kustom.typing import ActivationLike


@kustom.loss
def huber(y_true: Any, y_pred: Any, *, threshold: float = 1.0) -> Any: ...


@kustom.metric
def hits(y_true: Any, y_pred: Any, *, threshold: float = 0.5) -> Any: ...


@kustom.activation
def leaky(x: Any, *, slope: float = 0.01) -> Any: ...


@kustom.layer(package="typed")
def power(x: Any, *, exponent: float = 2.0) -> Any: ...


@kustom.part
class MyDense(keras.layers.Layer):
    units: int
    activation: ActivationLike = None
    rate: float = kustom.field(default=0.5)


def claims(y_true: Any, y_pred: Any) -> None:
    assert_type(huber(threshold=2.0), keras.losses.Loss)
    assert_type(huber(threshold=2.0, name="h"), keras.losses.Loss)
    assert_type(hits(), keras.metrics.Metric)
    assert_type(power(exponent=3.0), keras.layers.Layer)
    huber(y_true, y_pred)
    leaky(y_pred, slope=0.5)
    keras.layers.Dense(2, activation=leaky(slope=0.5))
    assert_type(MyDense(4).units, int)
    MyDense(4, activation="relu", rate=0.1)
    MyDense("four")  # pyright: ignore[reportArgumentType]
    MyDense(units=4, rat=0.1)  # pyright: ignore[reportCallIssue]
