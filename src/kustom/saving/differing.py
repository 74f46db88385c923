"""In which settings a part and the one that was made of its config differ.

What a setting is called in a part is the part's business, so that there are four ways to find one that is lost: an attribute
of the argument's name; what a constructor made of an argument that nothing else tells; what the new part says of itself; and
what Keras's own, of which it is made or from which it derives, says of both.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from kustom.backends import keras as private
from kustom.defining import config as configs

__all__ = ["alike", "is_stand_in", "settings_of", "settings_of_sublayer", "sublayers_of"]

# Of a constructor's arguments those whose value is Keras's business.
_COMMON = frozenset("self name dtype trainable autocast activity_regularizer inputs outputs layers".split())


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
    yield from _of_bases(original, again)


def settings_of_sublayer(original: Any, again: Any) -> Iterator[tuple[str, Any, Any]]:
    """Likewise of two layers that the constructors of other parts have made, and that no config tells of."""
    if private.is_of_keras(type(original)):
        yield from _of_base(type(original), original, again)
    else:
        yield from _under_their_names(original, again)
        yield from _hidden(original, again, {"config": {}})
        yield from _of_bases(original, again)


def sublayers_of(original: Any, again: Any) -> Iterator[tuple[Any, Any]]:
    """The layers below two models, or other layers, that have the same place in both, at any depth."""
    seen: set[int] = set()
    waiting = [(original, again)]
    while waiting:
        one, other = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        there = private.sublayers_by_place(other)
        for place, layer in private.sublayers_by_place(one).items():
            if place in there:
                waiting.append((layer, there[place]))
                yield layer, there[place]


def _under_their_names(original: Any, again: Any) -> Iterator[tuple[str, Any, Any]]:
    for name in _arguments(type(original)):
        for attribute in (name, f"_{name}"):
            if not _has(original, attribute):
                continue
            before, after = _held(original, attribute), _held(again, attribute)
            if not alike(before, after):
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
        if not alike(before, after):
            yield name, before, after


def _told_otherwise(again: Any, config: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What a part is told by its config and does not take up: it would say something else the next time."""
    told, tells = config["config"], getattr(again, "get_config", None)
    if not isinstance(told, dict) or tells is None or isinstance(again, keras.Model):
        return
    now = tells()
    for name in sorted(told.keys() & now.keys() - {"name"}):
        before, after = told[name], now[name]
        if isinstance(before, _SCALARS) and isinstance(after, _SCALARS) and not alike(before, after):
            yield name, before, after


def _of_bases(original: Any, again: Any) -> Iterator[tuple[str, Any, Any]]:
    """What a part has of Keras's own that it derives from, whatever its own `get_config` makes of that."""
    cls = type(original)
    base = next((each for each in cls.__mro__ if private.is_of_keras(each) and "get_config" in vars(each)), None)
    # The config of a model is its graph, whose layers are compared one by one.
    if base is not None and not isinstance(original, keras.Model):
        yield from _of_base(base, original, again)


def _of_base(base: Any, original: Any, again: Any) -> Iterator[tuple[str, Any, Any]]:
    try:
        before, after = base.get_config(original), base.get_config(again)
    except NotImplementedError:
        # Of what Keras cannot tell the settings of, it does not tell these.
        return
    for name in sorted((before.keys() & after.keys()) - _COMMON_OF_BASES):
        if not alike(_unnamed(before[name]), _unnamed(after[name])):
            yield name, before[name], after[name]


# Names count on, seeds are drawn, and what a weight begins with it no longer has.
_COMMON_OF_BASES = frozenset("name seed layers layer cell cells backward_layer build_config".split())


def _unnamed(config: Any) -> Any:
    if isinstance(config, dict):
        if "DTypePolicy" in str(config.get("class_name")):
            # Its name is all that it is.
            return config["config"]
        kept = config.keys() - {"name", "seed", "shared_object_id"}
        return {key: _unnamed(config[key]) for key in kept if not str(key).endswith("initializer")}
    return type(config)(map(_unnamed, config)) if type(config) in (list, tuple) else config


_SCALARS = bool | int | float | str


def _written_by_constructors(cls: type) -> set[str]:
    """The attributes that somebody's own constructors name, and the methods that they call."""
    own: dict[str, list[Any]] = {}
    for base in cls.__mro__:
        if private.is_library(base.__module__):
            break
        for name, value in vars(base).items():
            own.setdefault(name, []).append(value)
    found: set[str] = set()
    waiting = {"__init__"} & own.keys()
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        names = set().union(*(_named_in(getattr(inspect.unwrap(each), "__code__", None)) for each in own[name]))
        found |= names
        waiting |= (names & own.keys()) - seen
    return found


def _named_in(code: types.CodeType | None) -> set[str]:
    """What code names: attributes, and text, by which they can be set, too."""
    if code is None:
        return set()
    found = set(code.co_names)
    for constant in code.co_consts:
        found.update(each for each in (constant if isinstance(constant, tuple) else (constant,)) if isinstance(each, str))
    return found


def _has(part: Any, attribute: str) -> bool:
    try:
        return hasattr(part, attribute)
    except (RuntimeError, ValueError):
        # As below.
        return True


def _held(part: Any, attribute: str) -> Any:
    try:
        return _plain(getattr(part, attribute, None))
    except (AttributeError, RuntimeError, ValueError):
        # A property that can be asked only of a part that has been called.
        return None


def _arguments(cls: type) -> list[str]:
    """What the constructors of somebody's own take, those included that they take out of the rest, as of `**kwargs`."""
    found: dict[str, None] = {}
    for base in cls.__mro__:
        if private.is_library(base.__module__) and not base.__module__.startswith("kustom"):
            break
        constructor = vars(base).get("__init__")
        if constructor is not None:
            parameters = inspect.signature(constructor).parameters.values()
            found |= dict.fromkeys(each.name for each in parameters if each.kind not in _MANY)
            code = getattr(inspect.unwrap(constructor), "__code__", None)
            if code is not None and any(each.kind is each.VAR_KEYWORD for each in parameters) and _TAKING & {*code.co_names}:
                found |= dict.fromkeys(text for text in code.co_consts if isinstance(text, str) and text.isidentifier())
        found |= dict.fromkeys(vars(base).get("_kustom_own_fields", {}))
    return [name for name in found if name not in _COMMON]


_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_TAKING = frozenset(("get", "pop"))


def _plain(value: Any) -> Any:
    # Keras's own lists and dicts, which track what they hold.
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if type(value) is tuple:
        return tuple(_plain(item) for item in value)
    return value


def alike(one: Any, other: Any, depth: int = 8) -> bool:
    """Whether two values are the same setting; an object of Keras's own that is tracked has its own counterpart."""
    if one is other or depth < 0:
        return True
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if isinstance(one, tuple) != isinstance(other, tuple) or len(one) != len(other):
            return False
        named = hasattr(one, "_fields") or hasattr(other, "_fields")
        return not (named and type(one) is not type(other)) and all(alike(a, b, depth - 1) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key], depth - 1) for key in one)
    plain = bool | int | float | complex | str | bytes | np.ndarray | np.generic | None
    if isinstance(one, plain) and isinstance(other, plain):
        if isinstance(one, np.generic) or isinstance(other, np.generic):
            one, other = (value.item() if isinstance(value, np.generic) else value for value in (one, other))
        return configs.same(one, other) or (type(one) in (int, float) and type(other) in (int, float) and one == other)
    if isinstance(one, plain) != isinstance(other, plain):
        return False
    if keras.ops.is_tensor(one) and keras.ops.is_tensor(other):
        return np.array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other), equal_nan=True)
    if isinstance(one, types.FunctionType) and isinstance(other, types.FunctionType):
        return alike(_of_function(one), _of_function(other), depth - 1)
    if isinstance(one, keras.Variable | type):
        return True
    if type(one) is not type(other):
        return is_stand_in(type(other), type(one))
    if isinstance(one, types.MethodType):
        return one.__func__ is other.__func__ and alike(one.__self__, other.__self__, depth - 1)
    if isinstance(one, functools.partial):
        return alike((one.func, one.args, one.keywords), (other.func, other.args, other.keywords), depth - 1)
    return _has_counterpart(one) or alike(_told_by(one), _told_by(other), depth - 1)


def _of_function(function: types.FunctionType) -> tuple[Any, ...]:
    """What makes a function: its code, and what it takes from around it, which a constructor makes anew each time."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    # Two that were made of the same lines have one code.
    return function.__module__, hash(function.__code__), function.__defaults__, function.__kwdefaults__, cells


_TRACKED = (
    keras.Operation,
    keras.losses.Loss,
    keras.metrics.Metric,
    keras.optimizers.Optimizer,
    keras.initializers.Initializer,
    keras.random.SeedGenerator,
)


def _has_counterpart(obj: Any) -> bool:
    """Whether an object is compared elsewhere, or is none of settings: of Keras's own they are those that Keras saves."""
    tracked = isinstance(obj, _TRACKED)
    foreign = private.is_of_library(obj) and not private.is_of_keras(type(obj)) and not isinstance(obj, types.SimpleNamespace)
    return tracked or foreign


def _told_by(obj: Any) -> dict[str, Any]:
    """What an object says of itself; one that says nothing, what is in it."""
    if callable(getattr(obj, "get_config", None)):
        with contextlib.suppress(NotImplementedError):
            return _unnamed(obj.get_config())
    slots = [name for base in type(obj).__mro__ for name in vars(base).get("__slots__", ()) if hasattr(obj, name)]
    return _plain({name: getattr(obj, name) for name in slots} | getattr(obj, "__dict__", {}))


def is_stand_in(again: type, original: type) -> bool:
    """Whether a class is a functional model's that Keras makes of the other on the way."""
    return isinstance(again, type) and (
        again.__qualname__ == original.__qualname__ and again.__module__ == original.__module__ and issubclass(again, keras.Model)
    )
