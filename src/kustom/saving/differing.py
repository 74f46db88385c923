"""In which settings a part and the one that was made of its config differ.

What a setting is called in a part is the part's business, so that there are three ways to find one that is lost: an attribute
of the argument's name; what a constructor made of an argument that nothing else tells; and what the new part says of itself.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from kustom.backends import keras as private
from kustom.defining import config as configs

__all__ = ["is_stand_in", "settings_of"]

# Of a constructor's arguments those whose value is Keras's business.
_COMMON = frozenset("self args kwargs name dtype trainable autocast activity_regularizer inputs outputs layers".split())


def settings_of(original: Any, again: Any, config: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The settings in which two parts of one class differ: the name, what it is in the one, what in the other.

    Args:
        original: A part.
        again: What was made of its config.
        config: The config, with its class's name.
    """
    yield from _under_their_names(original, again)
    yield from _hidden(original, again, config)
    yield from _told_otherwise(again, config)


def _under_their_names(original: Any, again: Any) -> Iterator[tuple[str, Any, Any]]:
    for name in _arguments(type(original)):
        for attribute in (name, f"_{name}"):
            if attribute not in vars(original) and not hasattr(type(original), attribute):
                continue
            before, after = _held(original, attribute), _held(again, attribute)
            if not _alike(before, after):
                yield name, before, after
            break


def _hidden(original: Any, again: Any, config: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What a constructor made of an argument that neither the config nor an attribute of its name tells."""
    told = config["config"] if isinstance(config["config"], dict) else {}
    attributes = vars(original)
    if all(name in told or name in attributes or f"_{name}" in attributes for name in _arguments(type(original))):
        return
    for name in sorted(_written_by_constructors(type(original)) & attributes.keys() & vars(again).keys()):
        before, after = _held(original, name), _held(again, name)
        # Functions that a constructor makes are others each time.
        if not any(map(callable, keras.tree.flatten([before, after]))) and not _alike(before, after):
            yield name, before, after


def _told_otherwise(again: Any, config: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What a part is told by its config and does not take up: it would say something else the next time."""
    told, tells = config["config"], getattr(again, "get_config", None)
    if not isinstance(told, dict) or tells is None or isinstance(again, keras.Model):
        return
    now = tells()
    for name in sorted(told.keys() & now.keys() - {"name"}):
        before, after = told[name], now[name]
        if isinstance(before, _SCALARS) and isinstance(after, _SCALARS) and not _alike(before, after):
            yield name, before, after


_SCALARS = bool | int | float | str


def _written_by_constructors(cls: type) -> set[str]:
    """The attributes that somebody's own constructors name."""
    found: set[str] = set()
    for base in cls.__mro__:
        if private.is_library(base.__module__):
            break
        code = getattr(inspect.unwrap(vars(base).get("__init__", object)), "__code__", None)
        found.update(code.co_names if code is not None else ())
    return found


def _held(part: Any, attribute: str) -> Any:
    try:
        return _plain(getattr(part, attribute, None))
    except (AttributeError, RuntimeError, ValueError):
        # A property that can be asked only of a part that has been called.
        return None


def _arguments(cls: type) -> list[str]:
    found: dict[str, None] = {}
    for base in cls.__mro__:
        if private.is_library(base.__module__) and not base.__module__.startswith("kustom"):
            break
        if "__init__" in vars(base):
            found |= dict.fromkeys(inspect.signature(vars(base)["__init__"]).parameters)
        found |= dict.fromkeys(vars(base).get("_kustom_own_fields", {}))
    return [name for name in found if name not in _COMMON]


def _plain(value: Any) -> Any:
    # Keras's own lists and dicts, which track what they hold.
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return isinstance(one, tuple) == isinstance(other, tuple) and len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    plain = bool | int | float | complex | str | bytes | np.ndarray | np.generic | None
    if isinstance(one, plain) and isinstance(other, plain):
        if isinstance(one, np.generic) or isinstance(other, np.generic):
            one, other = (value.item() if isinstance(value, np.generic) else value for value in (one, other))
        return configs.same(one, other) or (type(one) in (int, float) and type(other) in (int, float) and one == other)
    if isinstance(one, plain) != isinstance(other, plain):
        return False
    if keras.ops.is_tensor(one) and keras.ops.is_tensor(other):
        return np.array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other), equal_nan=True)
    if isinstance(one, types.FunctionType) or isinstance(other, types.FunctionType):
        return one is other
    # An object has its own counterpart, and a variable its value.
    return type(one) is type(other) or isinstance(one, keras.Variable | type) or is_stand_in(type(other), type(one))


def is_stand_in(again: type, original: type) -> bool:
    """Whether a class is a functional model's that Keras makes of the other on the way."""
    return isinstance(again, type) and (
        again.__qualname__ == original.__qualname__ and again.__module__ == original.__module__ and issubclass(again, keras.Model)
    )
