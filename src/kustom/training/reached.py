"""Everything that a step reaches: through its cells, the globals that it names, its instance, the attributes of those.

What of it is noticed when it changes, `watching` tells.
"""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from kustom.backends import keras as private
from kustom.training.spaces import attributes_in, bases_of, imported_in, is_space, leads_out

__all__ = ["CONTAINERS", "Reached", "content_of", "is_keras", "is_of_user", "is_plain", "is_users"]

CONTAINERS = (list, tuple, dict, set, frozenset)
# A number of NumPy's is one of Python's, for who writes `alpha = np.float32(0.1)`.
_PLAIN = (int, float, str, bytes, bool, complex, type(None), np.number, np.bool_)
# What holds numbers that others may change in it.
_LOOSE = (np.ndarray, np.random.Generator, np.random.RandomState, random.Random)
# Where Keras keeps the graph of a functional model, and what it tracks a second time.
_UNFOLLOWED = frozenset(
    ["_functional", "_inbound_nodes", "_outbound_nodes", "_tracker", "_nodes", "_nodes_by_depth", "_operations_by_depth"]
)


def is_plain(value: Any) -> bool:
    """Whether it is noticed by its value that it changes: a number, text, None, or a tuple of them."""
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(is_plain, value)))


def is_keras(value: Any) -> bool:
    """Whether `value` is an object of Keras's, or of a class derived from one of Keras's."""
    return isinstance(value, _KERAS)


_KERAS = (
    keras.layers.Layer,
    keras.metrics.Metric,
    keras.losses.Loss,
    keras.optimizers.Optimizer,
    keras.optimizers.schedules.LearningRateSchedule,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.initializers.Initializer,
    keras.random.SeedGenerator,
)


class Reached:
    """Everything that a function reaches: through its cells, the globals that it names, its instance, its defaults.

    Args:
        roots: The function, method, partial or callable object, and whatever else is to be followed.
    """

    def __init__(self, *roots: Any) -> None:
        self.cells: list[tuple[Any, str]] = []
        self.globals: list[tuple[dict[str, Any], str]] = []
        self.objects: list[Any] = []
        self.others: list[Any] = []
        # Lists, dicts and sets, with the name that leads to each, and whose attribute that is.
        self.containers: list[tuple[Any, str, Any]] = []
        # Arrays and generators of random numbers, in the same way; one that several lead to is there several times.
        self.loose: list[tuple[Any, str, Any]] = []
        self.names: set[str] = set()
        # The code of the user's functions.
        self.codes: list[types.CodeType] = []
        # The user's modules and classes, and which of their attributes the code mentions.
        self.spaces: list[Any] = []
        self.mentioned: list[tuple[Any, str]] = []
        self._seen: set[int] = set()
        self._mentions: set[tuple[int, str]] = set()
        todo: list[tuple[Any, str, Any]] = [(root, "", None) for root in roots]
        while todo:
            value, name, owner = todo.pop()
            if isinstance(value, _LOOSE):
                self.loose.append((value, name, owner))
            if id(value) not in self._seen and not isinstance(value, _PLAIN):
                self._seen.add(id(value))
                # Not by +=, which asks a tuple of TensorFlow's first.
                todo.extend(self._inside(value, name, owner))
            if not todo:
                # Which names are mentioned is known when all code has been seen; what they lead to may have more.
                todo = self._of_spaces()

    def _of_spaces(self) -> list[tuple[Any, str, Any]]:
        attributes = frozenset[str]().union(*map(attributes_in, self.codes))
        inside = []
        for space in self.spaces:
            held = vars(space)
            for name in sorted(attributes & held.keys()):
                if (id(space), name) not in self._mentions:
                    self._mentions.add((id(space), name))
                    self.mentioned.append((space, name))
                    if leads_out(space, held[name]):
                        # As if it were a global: it has no owner from whose class something follows.
                        inside += [(value, name, None) for value in [*_functions_in(held[name])] or [held[name]]]
        return inside

    def _inside(self, value: Any, name: str, owner: Any) -> Iterable[tuple[Any, str, Any]]:
        if isinstance(value, type | types.ModuleType):
            if not is_space(value):
                return ()
            self.spaces.append(value)
            if isinstance(value, types.ModuleType):
                return ()
            # What makes an instance, and what Python calls by itself, nobody mentions.
            implied = [f for name, held in vars(value).items() if name.startswith("__") for f in _functions_in(held)]
            return _unnamed([*bases_of(value)[1:], *implied])
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        if isinstance(value, types.MethodType):
            return _unnamed([value.__func__, value.__self__])
        if isinstance(value, functools.partial):
            return _unnamed([value.func, *value.args, *value.keywords.values()])
        if isinstance(value, CONTAINERS):
            if not isinstance(value, tuple | frozenset):
                self.containers.append((value, name, owner))
            return [(each, name, owner) for each in (value.values() if isinstance(value, dict) else value)]
        if is_keras(value):
            self.objects.append(value)
            code = () if private.is_of_library(value) else _code(value)
            attributes = vars(value).items()
            leading = ((v, n, value) for n, v in attributes if n not in _UNFOLLOWED and _leads_on(v))
            return [*_unnamed([*code, *bases_of(type(value))]), *leading]
        if not is_users(value):
            # What is our own says by itself what of the user's it stands for; a compiled function does.
            wrapped = [w] if (w := getattr(value, "__dict__", {}).get("__wrapped__")) is not None else []
            return _unnamed([*getattr(value, "_kustom_reaches", ()), *wrapped])
        self.others.append(value)
        return [*((v, n, value) for n, v in vars(value).items()), *_unnamed([*_code(value), *bases_of(type(value))])]

    def _of_function(self, f: types.FunctionType) -> Iterable[tuple[Any, str, Any]]:
        inside = _unnamed([*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()])
        if hasattr(f, "__wrapped__"):
            inside += _unnamed([vars(f)["__wrapped__"]])
        # Keras wraps methods of each layer in functions of its own, which always lead to the same.
        is_users = not private.is_library(f.__globals__.get("__name__"))
        for cell, name in zip(f.__closure__ or (), f.__code__.co_freevars, strict=True):
            if is_users:
                self.cells.append((cell, name))
            inside.append((content_of(cell), name, None))
        names = set(_names(f.__code__))
        self.names |= names
        if is_users:
            self.codes.append(f.__code__)
            inside += _unnamed(imported_in(f.__code__))
        if private.is_library(f.__module__):
            return inside
        for name in names & f.__globals__.keys():
            self.globals.append((f.__globals__, name))
            inside.append((f.__globals__[name], name, None))
        return inside

    def all(self, kind: type) -> list[Any]:
        """The objects of a class of Keras's that are reached."""
        return [obj for obj in self.objects if isinstance(obj, kind)]


def _unnamed(values: Iterable[Any]) -> list[tuple[Any, str, Any]]:
    return [(value, "", None) for value in values]


def _code(obj: Any) -> list[Any]:
    """The functions in the bodies of an object's class and of those that it derives from, as far as they are the user's."""
    classes = [cls for cls in type(obj).__mro__ if not private.is_library(cls.__module__)]
    return [f for cls in classes for value in vars(cls).values() for f in _functions_in(value)]


def _functions_in(value: Any) -> Iterable[Any]:
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, property | functools.cached_property):
        return (value.func,) if isinstance(value, functools.cached_property) else filter(None, (value.fget, value.fset))
    # One that is compiled, or decorated otherwise, leads to the function.
    return (value,) if isinstance(value, types.FunctionType) or _wraps(value) else ()


def _wraps(value: Any) -> bool:
    return not isinstance(value, type) and isinstance(getattr(value, "__dict__", {}).get("__wrapped__"), types.FunctionType)


def _leads_on(value: Any) -> bool:
    plain = (*CONTAINERS, *_LOOSE, types.FunctionType, types.MethodType, functools.partial)
    return isinstance(value, plain) or is_keras(value) or is_users(value) or is_space(value)


def is_users(value: Any) -> bool:
    """Whether an object is of a class of the user's."""
    if isinstance(value, types.SimpleNamespace):
        return True
    return hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType) and not private.is_of_library(value)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def content_of(cell: Any) -> Any:
    """What a cell holds; None where its name is not bound yet."""
    try:
        return cell.cell_contents
    except ValueError:
        # The name is not bound yet.
        return None


def is_of_user(owner: Any, name: str) -> bool:
    """Whether a list or dict is the user's, and no register of Keras's or of a backend's; torch keeps layers in one."""
    if owner is None or isinstance(owner, types.SimpleNamespace):
        return True
    return not private.is_of_library(owner) and (name == "_modules" or not is_keras(owner) or not private.is_internal(owner, name))
