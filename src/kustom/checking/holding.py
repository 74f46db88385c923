"""Models around a part, small as they can be, to save and to train; and what such a model does, to compare.

The same two functions run here and in the process that loads the file.
"""

from __future__ import annotations

import json
from typing import Any, cast

import keras
import numpy as np
from keras import ops

from kustom.backends import keras as private
from kustom.checking import calls

__all__ = ["deeds", "has_own_step", "model_with", "part_in", "trained"]


def model_with(subject: Any, part: Any, args: tuple[Any, ...]) -> keras.Model:
    """A model that holds the part where Keras keeps its kind; built."""
    kind = subject.kind
    if kind == "model":
        part(*calls.tensors(args), **calls.training_of(subject))
        return part
    if kind == "layer":
        symbolic = calls.mapped(lambda x: keras.Input(x.shape[1:], dtype=str(x.dtype)), args)
        outputs = part(*symbolic, **calls.training_of(subject))
        return keras.Model(calls.flat(symbolic) if len(calls.flat(symbolic)) > 1 else symbolic[0], outputs)
    if kind in ("loss", "metric"):
        data = args[1]
        # Without any loss Keras does not evaluate.
        model = keras.Sequential(
            [keras.Input(data.shape[1:], dtype=str(data.dtype)), keras.layers.Identity(activity_regularizer="l2")]
        )
        if kind == "loss":
            model.compile(loss=part, optimizer="sgd", run_eagerly=True)
        else:
            model.compile(metrics=[part], optimizer="sgd", run_eagerly=True)
        return model
    named = {
        "activation": "activation",
        "initializer": "kernel_initializer",
        "regularizer": "kernel_regularizer",
        "constraint": "kernel_constraint",
    }
    if kind == "optimizer":
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile(optimizer=part, loss="mse", run_eagerly=True)
        for _ in range(2):
            model.train_on_batch(*_batch())
        return model
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, **{named[kind]: part})])


def part_in(model: keras.Model, kind: str) -> Any:
    """The part where `model_with` has put it; None where Keras has made something else of it."""
    if kind in ("activation", "initializer", "regularizer", "constraint"):
        name = "activation" if kind == "activation" else f"kernel_{kind}"
        return getattr(model.layers[-1], name)
    return {"loss": getattr(model, "loss", None), "optimizer": getattr(model, "optimizer", None)}.get(kind)


def deeds(model: keras.Model, kind: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """What a model does with these arguments, as arrays, and how its part describes itself."""
    done: dict[str, Any] = {}
    if kind in ("layer", "model"):
        inputs = calls.tensors(calls.flat(args) if kind == "layer" and len(calls.flat(args)) > 1 else args)
        outputs = model(inputs) if kind == "layer" and len(inputs) > 1 else model(*inputs)
        done["outputs"] = calls.flat(calls.arrays(outputs))
    elif kind in ("loss", "metric"):
        y_true, y_pred = args
        values = model.evaluate(y_pred, y_true, batch_size=len(y_pred), verbose=cast(Any, 0), return_dict=True)
        done["values"] = {name: np.asarray(value, "float64") for name, value in values.items()}
    elif kind == "optimizer":
        for _ in range(2):
            model.train_on_batch(*_batch())
        done["outputs"] = [np.asarray(w) for w in model.get_weights()]
    else:
        done["outputs"] = [calls.arrays(model(ops.convert_to_tensor(_batch()[0])))]
        part = part_in(model, kind)
        w = ops.convert_to_tensor(_batch()[0][:, :3] * 3)
        if kind in ("regularizer", "constraint"):
            done["part"] = [calls.arrays(part(w))]
    held = part_in(model, kind)
    if held is not None:
        done["config"] = json.dumps(keras.saving.serialize_keras_object(held), sort_keys=True, default=repr)
    return done


def trained(subject: Any, part: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Fit a model with the part on two batches, compiled as Keras does; say whether the metrics that the part keeps changed."""
    model = model_with(subject, part, args)
    model.compile(optimizer="sgd", loss="mse")
    metrics = [m for layer in [part, *private.descendants(part)] for m in private.metrics_of(layer)]
    for metric in metrics:
        metric.reset_state()
    before = [calls.arrays(v) for m in metrics for v in m.variables]
    inputs = calls.flat(args)
    x = inputs[0] if len(inputs) == 1 else inputs
    y = calls.mapped(lambda o: np.zeros(o.shape, "float32"), calls.arrays(model(calls.tensors(x))))
    model.fit(x, y, batch_size=max(len(inputs[0]) // 2, 1), verbose=cast(Any, 0))
    after = [calls.arrays(v) for m in metrics for v in m.variables]
    return {"metrics": not calls.same(before, after, units=0.0)}


def has_own_step(cls: type) -> bool:
    """Whether a class below Keras's own writes train_step."""
    return any("train_step" in vars(base) for base in cls.__mro__ if not private.is_library(base.__module__))


def _batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 4)).astype("float32"), rng.normal(size=(5, 3)).astype("float32")
