"""The notebook's loop, the same file on every backend: `python textbook_loop.py OUT.json` writes what it reaches.

The weights start from NumPy's numbers, since each backend draws others.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import kustom  # before keras

# isort: split
import keras
import numpy as np
from keras import ops

rng = np.random.default_rng(42)
X = rng.normal(size=(500, 8)).astype("float32")
y = (np.sin(X[:, :1]) + X[:, 1:2] + 0.1 * rng.normal(size=(500, 1))).astype("float32")
X_valid, y_valid = X[:100], y[:100]


def trained(**options: Any) -> dict[str, Any]:
    """Section 12.3.9, compiled; what its history and its model are afterwards."""
    l2_reg = keras.regularizers.l2(0.05)
    model = keras.models.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(30, activation="elu", kernel_initializer="he_normal", kernel_regularizer=l2_reg),
            keras.layers.Dense(1, kernel_regularizer=l2_reg),
        ]
    )
    draw = np.random.default_rng(0)
    model.set_weights([draw.normal(scale=len(w) ** -0.5, size=w.shape) if w.ndim > 1 else w for w in model.get_weights()])
    optimizer = keras.optimizers.Nadam(learning_rate=0.01)
    loss_fn = keras.losses.mean_squared_error
    mean_loss = keras.metrics.Mean()
    mae = keras.metrics.MeanAbsoluteError()

    def step(x: Any, y: Any) -> None:
        with kustom.GradientTape() as tape:
            y_pred = model(x, training=True)
            loss = ops.mean(loss_fn(y, y_pred)) + sum(model.losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        mean_loss(loss)
        mae(y, y_pred)

    loop = kustom.Loop(step, metrics={"loss": mean_loss, "mae": mae})
    history = loop.fit(X, y, epochs=5, batch_size=32, seed=1, verbose=0, **options)
    return {
        "history": history.history,
        "predictions": model.predict(X_valid, verbose=0)[:, 0].tolist(),
        "iterations": int(ops.convert_to_numpy(optimizer.iterations.value)),
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(trained()))
