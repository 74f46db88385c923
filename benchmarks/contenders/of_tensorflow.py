"""TensorFlow: the textbook's loop as it stands, as people run it in earnest, and as one loop in a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from contenders.contender import Contender, Run, by_epoch
from contenders.of_keras import EAGER_STEPS, eager, of_every_backend
from contenders.workloads import Parts, Workload


def gradients(parts: Parts, x: Any, y: Any) -> tuple[Any, Any, list[Any]]:
    """Loss, predictions and gradients by TensorFlow's tape."""
    with tf.GradientTape() as tape:
        y_pred = parts.model(x, training=True)
        loss = parts.loss(y, y_pred)
    return loss, y_pred, tape.gradient(loss, [variable.value for variable in parts.variables])


def step(parts: Parts, x: Any, y: Any) -> None:
    """The textbook's step."""
    loss, y_pred, found = gradients(parts, x, y)
    parts.apply(found)
    parts.update(loss, y, y_pred)


def by_step(workload: Workload) -> Run:
    """A `tf.function` a step, on batches cut from the arrays."""
    parts, size, data = Parts(workload), workload.batch, []
    parts.build()

    @tf.function
    def compiled(x: Any, y: Any) -> None:
        step(parts, x, y)

    def begin(X: np.ndarray, y: np.ndarray) -> None:
        data[:] = X, y

    def epoch() -> tuple[float, float]:
        X, y = data
        for start in range(0, len(X), size):
            compiled(tf.constant(X[start : start + size]), tf.constant(y[start : start + size]))
        return parts.results()

    return by_epoch(begin, epoch)


def in_graph(*, xla: bool) -> Callable[[Workload], Run]:
    """An epoch is one call: a loop in the graph over slices of rows that are there."""

    def make(workload: Workload) -> Run:
        parts, size, data = Parts(workload), workload.batch, []
        parts.build()

        @tf.function(jit_compile=xla)
        def compiled(X: Any, y: Any) -> None:
            for i in tf.range(X.shape[0] // size):
                begin = [i * size, *[0] * (len(X.shape) - 1)]
                x = tf.slice(X, begin, [size, *X.shape[1:]])
                target = tf.slice(y, begin[: len(y.shape)], [size, *y.shape[1:]])
                step(parts, x, target)

        def begin(X: np.ndarray, y: np.ndarray) -> None:
            data[:] = tf.constant(X), tf.constant(y)

        def epoch() -> tuple[float, float]:
            compiled(*data)
            return parts.results()

        return by_epoch(begin, epoch)

    return make


CONTENDERS = [
    Contender("textbook, eager", eager(gradients, few=True), steps=EAGER_STEPS),
    Contender("by hand, tf.function a step", by_step),
    Contender("by hand, loop in a graph", in_graph(xla=False)),
    Contender("by hand, loop in a graph, XLA", in_graph(xla=True), slow="c"),
    *of_every_backend(),
]
