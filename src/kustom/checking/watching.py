"""What reaches the sublayers of a layer: whether each was told that it trains, noted while the layer is called."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import keras

from kustom.backends import keras as private

__all__ = ["Probe", "told"]


class Probe(keras.layers.Layer):
    """Passes its input on, and notes whether it was told that it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Any] = []

    def call(self, inputs: Any, training: Any = None) -> Any:
        self.noted.append(training)
        return inputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@contextlib.contextmanager
def told(layer: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Inside, the sublayers that take `training`, each with what it was told, in the order of their calls."""
    noted: list[tuple[Any, Any]] = []
    watched = [each for each in private.descendants(layer) if private.takes_training(each)]
    for each in watched:
        object.__setattr__(each, "call", _noting(each, each.call, noted))
    try:
        yield noted
    finally:
        for each in watched:
            vars(each).pop("call", None)


def _noting(layer: Any, call: Any, noted: list[tuple[Any, Any]]) -> Any:
    signature = inspect.signature(call)

    @functools.wraps(call)
    def noting(*args: Any, **kwargs: Any) -> Any:
        noted.append((layer, signature.bind_partial(*args, **kwargs).arguments.get("training")))
        return call(*args, **kwargs)

    return noting
