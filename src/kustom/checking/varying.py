"""Settings away from their defaults: what a file forgets is seen only where it differs from what it would come back as.

Of an argument's default another value is made of the same kind; whether the part takes it is found by trying. What cannot
be varied says nothing.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.checking import calls, stepping
from kustom.checking.making import parameters_of, settings_in
from kustom.errors import SubjectError

__all__ = [
    "all_varied",
    "another",
    "functions_in",
    "has_config",
    "is_plain",
    "leaves",
    "lost",
    "overrides_from_config",
]

_OF_KERAS = ("name", "dtype", "trainable", "reduction", "autocast", "activity_regularizer", "seed")


def has_config(subject: Any) -> bool:
    """Whether the part is one that has a config at all: a function has none."""
    return not subject.is_function and hasattr(subject.instance(), "get_config")


def _others(value: Any) -> list[Any]:
    """Values of the same kind as a default, the likelier ones to be legal first."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value + 2]
    if isinstance(value, float):
        return [value * 0.75 + 0.1, value * 0.5 + 0.01, value * 1.5 + 0.25, 2.0]
    if isinstance(value, tuple) and value and all(isinstance(each, int) and not isinstance(each, bool) for each in value):
        return [tuple(each + 1 for each in value)]
    if value is None:
        # What Keras has names for beside numbers: an initializer, regularizer, constraint and activation.
        return [0.5, 2, "ones", "l2", "non_neg", "softplus"]
    return []


def another(subject: Any, name: str) -> tuple[Any, Any] | None:
    """Another value of an argument, and the part made with it that still works; None where none is found.

    A part that was given with a value of its own for the argument is itself that part.
    """
    return subject.once(f"another {name}", lambda: _another(subject, name))


def _another(subject: Any, name: str) -> tuple[Any, Any] | None:
    part = subject.instance()
    parameter = parameters_of(type(part)).get(name)
    if parameter is None or parameter.default is parameter.empty:
        return None
    held = subject.making.settings.get(name, getattr(part, name, parameter.default))
    if not callable(held) and is_plain(held) and held != parameter.default and type(held) is type(parameter.default):
        return held, part
    args = None
    for value in _others(parameter.default):
        try:
            made = subject.make(**{name: value})
            if subject.kind not in ("optimizer",):
                args = args or subject.inputs.arguments()
                calls.call(subject, made, *args)
            return value, made
        except Exception:
            # Whatever a part raises for a value that may be illegal.
            continue
    return None


def all_varied(subject: Any) -> dict[str, tuple[Any, Any]]:
    """For each argument that can be varied by itself another value, and the part made with it; also several at once."""
    part = subject.instance()
    found = {}
    for name, parameter in parameters_of(type(part)).items():
        if name in _OF_KERAS or parameter.default is parameter.empty or parameter.default is None:
            continue
        other = another(subject, name)
        if other is not None and other[1] is not part:
            found[name] = other
    return found


def matters(subject: Any, made: Any) -> bool:
    """Whether a part made with another setting is seen to be another: by its weights, its losses, or what it gives."""
    part = subject.make()
    if subject.kind == "optimizer":
        return not calls.same(stepping.trained_by(part), stepping.trained_by(made))
    args = subject.inputs.arguments()
    ours, theirs = (calls.outputs_of(subject, each, *args) for each in (part, made))
    if subject.kind in ("layer", "model"):
        if not calls.cloned_weights(part, made):
            return True
        theirs = calls.outputs_of(subject, made, *args)
        if not calls.same(*(calls.arrays(each.losses) for each in (part, made))):
            return True
        constraints = ([v.constraint is not None for v in each.trainable_variables] for each in (part, made))
        if operator.ne(*constraints):
            return True
    return not calls.same(ours, theirs)


def overrides_from_config(part: Any) -> bool:
    """Whether the part reads its config in a way of its own."""
    return "from_config" in vars(type(part))


def lost(subject: Any, name: str) -> bool:
    """Whether a copy has another value of the argument than the part, as far as its attribute shows."""
    other = another(subject, name)
    part = other[1] if other is not None else subject.instance()
    try:
        copy = type(part).from_config(part.get_config())
    except Exception:
        # C102 says what it raises.
        return False
    return hasattr(part, name) and is_plain(getattr(part, name)) and getattr(copy, name, None) != getattr(part, name)


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a config, each with where it stands."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from leaves(value, f"{path}.{name}" if path else str(name))
    elif isinstance(config, list | tuple):
        for index, value in enumerate(config):
            yield from leaves(value, f"{path}.{index}")
    else:
        yield path, config


def is_plain(value: Any) -> bool:
    """Whether a file holds a value, or Keras makes it something that a file holds and reads it back."""
    if isinstance(value, tuple | list):
        return all(is_plain(each) for each in value)
    if isinstance(value, dict):
        return all(is_plain(each) for each in value.values())
    if isinstance(value, np.ndarray | keras.Variable) or ops.is_tensor(value):
        return False
    if isinstance(value, int | float | str | bool | None | np.generic | types.FunctionType | types.BuiltinFunctionType):
        return True
    return hasattr(value, "get_config") or isinstance(value, bytes | slice | type(Ellipsis))


def functions_in(part: Any) -> list[tuple[str, Any]]:
    """The settings of a part that are functions, by what its attributes hold."""
    try:
        held = settings_in(part)
    except SubjectError:
        held = {}
    own = {**held, **{n: v for n, v in vars(part).items() if n in parameters_of(type(part))}}
    found = []
    for name, value in own.items():
        for leaf in calls.flat(value) if isinstance(value, list | tuple | dict) else [value]:
            if isinstance(leaf, types.FunctionType):
                found.append((name, leaf))
    return found
