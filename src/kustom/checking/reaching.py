"""Which layers the attributes of a layer reach, wherever they stand: in lists in lists, dicts, sets, objects, or functions."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from kustom.backends import keras as private

__all__ = ["layers_in", "metrics_in"]


def layers_in(part: Any) -> Iterator[tuple[str, Any]]:
    """The layers below a layer, each once, with the path of attributes to it."""
    seen = {id(part)}
    for name, value in list(vars(part).items()):
        if not private.is_internal(part, name):
            yield from _walk(value, name, seen, 0)


def metrics_in(part: Any) -> Iterator[tuple[str, Any]]:
    """The metrics in the attributes of a model, each with its path."""
    for name, value in list(vars(part).items()):
        if private.is_internal(part, name):
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, keras.metrics.Metric):
                yield name, each


def _walk(value: Any, path: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if id(value) in seen or depth > 6 or value is None or isinstance(value, int | float | str | bytes | np.ndarray | type):
        return
    seen.add(id(value))
    if isinstance(value, keras.layers.Layer):
        yield path, value
        for name, held in list(vars(value).items()):
            if not private.is_internal(value, name):
                yield from _walk(held, f"{path}.{name}", seen, depth + 1)
    elif isinstance(value, dict):
        for name, held in list(value.items()):
            yield from _walk(held, f"{path}[{name!r}]", seen, depth + 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for index, held in enumerate(value):
            yield from _walk(held, f"{path}[{index}]", seen, depth + 1)
    elif isinstance(value, types.FunctionType):
        # A lambda or an inner function, which holds what it uses of the function around it.
        cells = inspect.getclosurevars(value).nonlocals if value.__closure__ else {}
        for name, held in cells.items():
            yield from _walk(held, f"{path}<{name}>", seen, depth + 1)
    elif hasattr(value, "__dict__") and not private.is_of_library(value) and not callable(value):
        for name, held in list(vars(value).items()):
            yield from _walk(held, f"{path}.{name}", seen, depth + 1)
