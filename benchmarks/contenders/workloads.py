"""The work that all contenders do: rows, initial weights and the mathematics, known to NumPy and Keras alone.

Every contender starts from the same numbers, sees the same rows in the same order and keeps the same two means, so its
final loss tells whether it did the work. Rows fill whole batches: nobody has a smaller last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

L2 = 0.05


@dataclass(frozen=True)
class Workload:
    """One model with its data; `shapes` are those of its weights in Keras's order."""

    letter: str
    title: str
    batch: int
    steps: int
    quick_steps: int
    inputs: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    classes: bool = False

    def rows(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """`steps` batches of features and targets, with noise in both kinds of targets."""
        rng = np.random.default_rng(0)
        size = steps * self.batch
        X = rng.normal(size=(size, *self.inputs)).astype("float32")
        if not self.classes:
            noise = 0.3 * rng.normal(size=(size, 1))
            return X, (2 * X[:, :1] + np.sin(X[:, 1:2]) + noise).astype("float32")
        flat = X.reshape(size, -1)
        scores = flat @ rng.normal(size=(flat.shape[1], 10)) / math.sqrt(flat.shape[1])
        return X, (scores + rng.gumbel(size=scores.shape)).argmax(axis=1).astype("int32")

    def weights(self) -> list[np.ndarray]:
        """Initial weights: He's normal for kernels, zero for biases."""
        rng = np.random.default_rng(1)
        return [
            np.zeros(shape, "float32")
            if len(shape) == 1
            else (rng.normal(size=shape) * math.sqrt(2 / math.prod(shape[:-1]))).astype("float32")
            for shape in self.shapes
        ]

    @property
    def metric(self) -> str:
        """What is kept beside the mean loss."""
        return "accuracy" if self.classes else "mae"


WORKLOADS = {
    workload.letter: workload
    for workload in (
        Workload("a", "the notebook's: 8-30-1, batch 32, Nadam, l2", 32, 362, 10, (8,), ((8, 30), (30,), (30, 1), (1,))),
        Workload(
            *("b", "MLP 784-512-512-10, batch 128, Adam", 128, 100, 6, (784,)),
            ((784, 512), (512,), (512, 512), (512,), (512, 10), (10,)),
            classes=True,
        ),
        Workload(
            *("c", "convnet 32-64-10 on 28 × 28, batch 64, Adam", 64, 30, 3, (28, 28, 1)),
            ((3, 3, 1, 32), (32,), (3, 3, 32, 64), (64,), (5 * 5 * 64, 10), (10,)),
            classes=True,
        ),
        Workload(
            *("d", "wide and deep: 8-1 by SGD, 8-30-30-1 by Adam, batch 32", 32, 362, 10, (8,)),
            ((8, 1), (1,), (8, 30), (30,), (30, 30), (30,), (30, 1), (1,)),
        ),
    )
}
# Of workload d, how many of the weights belong to the wide part.
WIDE = 2


class Parts:
    """Keras's objects for one contender, all of them new."""

    def __init__(self, workload: Workload) -> None:
        import keras
        from keras import layers, metrics, optimizers

        self.workload = workload
        inputs = keras.Input(workload.inputs)
        l2 = keras.regularizers.L2(L2)
        body: Any = inputs
        match workload.letter:
            case "a":
                body = layers.Dense(30, activation="elu", kernel_regularizer=l2)(body)
                outputs: Any = layers.Dense(1, kernel_regularizer=l2)(body)
            case "b":
                for _ in range(2):
                    body = layers.Dense(512, activation="relu")(body)
                outputs = layers.Dense(10)(body)
            case "c":
                for filters in (32, 64):
                    body = layers.MaxPooling2D()(layers.Conv2D(filters, 3, activation="relu")(body))
                outputs = layers.Dense(10)(layers.Flatten()(body))
            case _:
                wide: Any = layers.Dense(1, name="wide")(inputs)
                for _ in range(2):
                    body = layers.Dense(30, activation="relu")(body)
                outputs = layers.Add()([wide, layers.Dense(1)(body)])
        self.model: Any = keras.Model(inputs, outputs)
        variables = self.model.trainable_variables
        if workload.letter == "d":  # Keras lists layers by depth, ours are wide first
            variables = sorted(variables, key=lambda variable: not variable.path.startswith("wide/"))
        for variable, value in zip(variables, workload.weights(), strict=True):
            variable.assign(value)
        if workload.letter == "d":
            wide_part, deep_part = variables[:WIDE], variables[WIDE:]
            self.groups: list[tuple[Any, list[Any]]] = [
                (optimizers.SGD(0.01), wide_part),
                (optimizers.Adam(1e-3), deep_part),
            ]
        else:
            self.groups = [(optimizers.Nadam(0.01) if workload.letter == "a" else optimizers.Adam(1e-4), variables)]
        self.variables = variables
        if workload.classes:
            self.loss_fn: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            self.metric: Any = metrics.SparseCategoricalAccuracy(name="accuracy")
        else:
            self.loss_fn = keras.losses.MeanSquaredError()
            self.metric = metrics.MeanAbsoluteError(name="mae")
        self.mean_loss: Any = metrics.Mean(name="loss")

    def optimizer(self) -> Any:
        """One optimizer for `compile`: the only one, or Keras's of several."""
        if len(self.groups) == 1:
            return self.groups[0][0]
        import keras

        chosen = {variable.path: optimizer for optimizer, variables in self.groups for variable in variables}
        return keras.optimizers.MultiOptimizer(lambda variable: chosen[variable.path])

    def loss(self, y: Any, y_pred: Any) -> Any:
        """The loss with what the layers add."""
        return sum(self.model.losses, self.loss_fn(y, y_pred))

    def apply(self, gradients: list[Any]) -> None:
        """Hand each optimizer its own gradients, which come in the order of `variables`."""
        start = 0
        for optimizer, variables in self.groups:
            optimizer.apply(gradients[start : start + len(variables)], variables)
            start += len(variables)

    def build(self) -> None:
        """Make the variables of optimizers and metrics, as in a loop by hand they must be there before it is traced."""
        for optimizer, variables in self.groups:
            optimizer.build(variables)
        if hasattr(self.metric, "build"):
            self.metric.build((self.workload.batch, 1), (self.workload.batch, 1))

    def update(self, loss: Any, y: Any, y_pred: Any) -> None:
        """Take a batch into the two means."""
        self.mean_loss.update_state(loss)
        self.metric.update_state(y, y_pred)

    def results(self) -> tuple[float, float]:
        """The two means since the last call."""
        both = float(self.mean_loss.result()), float(self.metric.result())
        self.mean_loss.reset_state()
        self.metric.reset_state()
        return both
