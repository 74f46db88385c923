"""Settings: what a part is told when it is made, and how what it is given becomes what it holds.

A setting has a kind, from its annotation or else from its default. Values are converted by kind (`2` and `np.float32(2)`
for a float, a list for a tuple), and refused where they are of another or where no config could hold them.
"""

from __future__ import annotations

import copy
import enum
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kustom.backends import current
from kustom.backends import keras as private
from kustom.defining import naming
from kustom.errors import (
    DefinitionError,
    MissingSettingError,
    SettingError,
    UnknownSettingError,
    UnsavableSettingError,
    did_you_mean,
    hide_frames,
    refuse_tf_keras,
)
from kustom.typing import Converter

__all__ = ["MISSING", "Setting", "field", "fill", "hold", "of_keras", "show"]

MISSING: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Setting:
    """One setting of a part: a keyword-only parameter of its function, or an annotated field of its class."""

    name: str
    default: Any = MISSING
    factory: Callable[[], Any] | None = None
    annotation: Any = MISSING
    converter: Converter | None = None

    @property
    def required(self) -> bool:
        return self.default is MISSING and self.factory is None

    def initial(self) -> Any:
        """The default, a fresh copy where it could be changed."""
        if self.factory is not None:
            return self.factory()
        return copy.deepcopy(self.default) if isinstance(self.default, list | dict | np.ndarray) else self.default

    def accept(self, value: Any, owner: str) -> Any:
        """What the part holds when it is given `value`.

        Raises:
            SettingError: `value` is of another kind.
            UnsavableSettingError: No config could hold it.
        """
        try:
            held = self._held(value)
            if any(isinstance(leaf, enum.Enum) for leaf in leaves(held)):
                raise _Mismatch("plain data, since a member of an enum comes back as another type: give its .value", unsavable=True)
            return held
        except _Mismatch as mismatch:
            kind = UnsavableSettingError if mismatch.unsavable else SettingError
            raise kind(f"{owner}: the setting {self.name!r} is {mismatch.expected}, not {_shown(value)}.") from mismatch.__cause__

    def _held(self, value: Any) -> Any:
        converter = self.converter or _converter_of(self.annotation)
        if converter is not None:
            return _apply(converter, value)
        if self.annotation is MISSING and not _has_kind(self.default):
            return _plain(value)
        if value is None and self.default is None:
            return None
        if self.annotation is MISSING:
            return _by_default(value, self.default)
        return _by_annotation(value, self.annotation)


class _Field:
    """What `field(...)` leaves in the class body, until `part` reads it."""

    def __init__(self, default: Any, default_factory: Any, converter: Any) -> None:
        self.default = default
        self.default_factory = default_factory
        self.converter = converter


@hide_frames
def field(
    *,
    default: Any = MISSING,
    default_factory: Callable[[], Any] | None = None,
    converter: Callable[[Any], Any] | Converter | None = None,
) -> Any:
    """Say more of a field than its annotation does; and make a field of what would be none, such as a layer.

    Args:
        default: What it holds where nothing is given.
        default_factory: Called for a default that must be new each time.
        converter: Turns what is given into what is held. It must take its own results, too: they come back from a file.

    Raises:
        DefinitionError: Both a default and a factory are given.

    Example:
        >>> import keras, kustom
        >>> @kustom.part(package="docs")
        ... class Twice(keras.layers.Layer):
        ...     inner: keras.layers.Layer = kustom.field()
        ...
        ...     def call(self, x):
        ...         return self.inner(self.inner(x))
        >>> Twice(keras.layers.Dense(3, name="shared")).inner.name
        'shared'
    """
    if default is not MISSING and default_factory is not None:
        raise DefinitionError("kustom.field takes default= or default_factory=, not both.")
    return _Field(default, default_factory, converter)


def fill(settings: Mapping[str, Setting], given: Mapping[str, Any], owner: str, also: Iterable[str] = ()) -> dict[str, Any]:
    """The values of all settings, from those given.

    Args:
        settings: By name.
        given: By name.
        owner: The part, for an error message.
        also: Other arguments that the part takes, for an error message.

    Raises:
        UnknownSettingError: One is given that the part does not have.
        MissingSettingError: One without a default is not given.
        SettingError: One is of the wrong kind.
    """
    unknown = [name for name in given if name not in settings]
    if unknown:
        raise UnknownSettingError(unknown_setting(owner, unknown[0], settings, also))
    missing = [name for name, setting in settings.items() if setting.required and name not in given]
    if missing:
        raise MissingSettingError(
            f"{owner} needs the setting{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it has {_listed(settings)}."
        )
    return {name: setting.accept(given[name] if name in given else setting.initial(), owner) for name, setting in settings.items()}


def unknown_setting(owner: str, name: str, settings: Iterable[str], also: Iterable[str] = ()) -> str:
    """The message for a setting that a part does not have, with those it has and the nearest of them."""
    names = [*settings, *also]
    return f"{owner} has no setting {name!r}; it has {', '.join(names) or 'none'}.{did_you_mean(name, names)}"


def hold(part: Any, name: str, value: Any) -> None:
    """Set an attribute of a part to a setting.

    Keras wraps lists and dicts to track layers in them, and PyTorch wants to be set up first; plain data needs neither.
    """
    if any(isinstance(leaf, keras.Operation | keras.metrics.Metric | keras.Variable) for leaf in leaves(value)):
        setattr(part, name, value)
    else:
        object.__setattr__(part, name, value)


def leaves(value: Any) -> Iterator[Any]:
    """What a nested list, tuple or dict holds."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def of_keras(part: Any, name: str | None) -> dict[str, Any]:
    """Of Keras's own arguments, those that are not the default, as a `repr` shows them.

    Args:
        part: A part.
        name: What a loss or metric is called where it is told nothing; None where that is not known.
    """
    shown: dict[str, Any] = {}
    if isinstance(part, keras.losses.Loss | keras.metrics.Metric):
        # The name of a layer is nearly always Keras's own numbering.
        if name is not None and part.name != name:
            shown["name"] = part.name
        reduction = getattr(part, "reduction", "sum_over_batch_size")
        if reduction != "sum_over_batch_size":
            shown["reduction"] = reduction
        if part.dtype != keras.config.floatx():
            shown["dtype"] = part.dtype
    elif isinstance(part, keras.layers.Layer) and part.dtype_policy.name != keras.config.dtype_policy().name:
        shown["dtype"] = part.dtype_policy.name
    return shown


def show(value: Any) -> str:
    """A value of a setting as a `repr` shows it: short, and without addresses."""
    if isinstance(value, np.ndarray):
        return f"array(shape={value.shape}, dtype={value.dtype})" if value.size > 8 else repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(show, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {show(item)}' for key, item in value.items())}}}"
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return value.__name__
    if isinstance(value, keras.Variable):
        array = keras.ops.convert_to_numpy(value)
        return show(array) if array.ndim else repr(float(array))
    text = repr(value)
    return type(value).__name__ + "()" if " object at 0x" in text else text


def _listed(settings: Mapping[str, Setting]) -> str:
    return ", ".join(name if setting.required else f"{name}={show(setting.initial())}" for name, setting in settings.items())


class _Mismatch(Exception):
    def __init__(self, expected: str, *, unsavable: bool = False) -> None:
        super().__init__(expected)
        self.expected = expected
        self.unsavable = unsavable


def _shown(value: Any) -> str:
    text = show(value)
    return f"{text if len(text) < 80 else text[:77] + '...'} ({type(value).__name__})"


def _apply(converter: Converter, value: Any) -> Any:
    part = naming.find(value, converter.family) if isinstance(value, str) and converter.family is not None else None
    given: Any = value if part is None else part
    try:
        held = converter.function(given() if _is_bare_part(given) else given)
    except (TypeError, ValueError) as error:
        raise _Mismatch(converter.expected) from error
    return _savable(held)


def _converter_of(annotation: Any) -> Converter | None:
    if typing.get_origin(annotation) is not typing.Annotated:
        return None
    return next((extra for extra in typing.get_args(annotation)[1:] if isinstance(extra, Converter)), None)


def _has_kind(default: Any) -> bool:
    return isinstance(default, bool | int | float | str | tuple | list | dict | np.ndarray)


def _by_default(value: Any, default: Any) -> Any:
    if isinstance(default, int) and not isinstance(default, bool):
        # An integer as the default of a function's parameter rarely means that 2.5 is wrong.
        number = _number(value)
        return number if isinstance(number, int) else _by_annotation(number, float)
    for kind in (bool, float, str, tuple, list, dict, np.ndarray):
        if isinstance(default, kind):
            return _by_annotation(value, kind)
    return _plain(value)


def _by_annotation(value: Any, annotation: Any) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or annotation is object or isinstance(annotation, typing.TypeVar | str):
        return _plain(value)
    if origin is typing.Annotated:
        converter = _converter_of(annotation)
        return _apply(converter, value) if converter is not None else _by_annotation(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, arguments)
    if origin is typing.Literal:
        plain = value.item() if isinstance(value, np.generic) else value
        if any(plain == allowed and type(plain) is type(allowed) for allowed in arguments):
            return plain
        raise _Mismatch(f"one of {', '.join(map(repr, arguments))}")
    if annotation is None or annotation is type(None):
        if value is None:
            return None
        raise _Mismatch("None")
    if value is None:
        raise _Mismatch(f"{_words(annotation)} (None is not among its values)")
    kind = origin or annotation
    if kind in (tuple, list, dict) or kind in _ABSTRACT:
        return _container(value, _ABSTRACT.get(kind, kind), arguments)
    if kind is bool:
        if isinstance(value, bool | np.bool_):
            return bool(value)
        raise _Mismatch("True or False")
    if kind in (int, float, numbers.Real, numbers.Number):
        try:
            number = _number(value)
        except _Mismatch as mismatch:
            raise _Mismatch("a whole number" if kind is int else mismatch.expected, unsavable=mismatch.unsavable) from None
        if kind is int and not isinstance(number, int):
            raise _Mismatch("a whole number")
        return float(number) if kind is float else number
    if kind is np.ndarray:
        held = np.array(_plain(value))
        if held.dtype == object or isinstance(value, str | bytes | dict):
            raise _Mismatch("an array of numbers")
        return held
    if kind in (Callable, typing.Callable, types.FunctionType):
        if callable(value):
            return _savable(value() if _is_bare_part(value) else value)
        raise _Mismatch("something that can be called")
    if isinstance(kind, type):
        value = value() if _is_bare_part(value) and issubclass(value, kind) else value
        if isinstance(value, kind):
            return _plain(value)
        if kind is str and isinstance(value, np.str_):
            return str(value)
        raise _Mismatch(_words(annotation))
    return _plain(value)


_ABSTRACT = {
    typing.get_origin(typing.Sequence[int]): list,
    typing.get_origin(typing.Iterable[int]): list,
    typing.get_origin(typing.Mapping[str, int]): dict,
}


def _one_of(value: Any, members: tuple[Any, ...]) -> Any:
    if value is None and type(None) in members:
        return None
    failures = []
    exact = [m for m in members if isinstance(m, type) and type(value) is m]
    for member in [*exact, *(m for m in members if m not in exact and m is not type(None))]:
        try:
            return _by_annotation(value, member)
        except _Mismatch as mismatch:
            failures.append(mismatch.expected)
    raise _Mismatch(" or ".join(dict.fromkeys([*failures, *(["None"] if type(None) in members else [])])))


def _container(value: Any, kind: type, arguments: tuple[Any, ...]) -> Any:
    if kind is dict:
        if not isinstance(value, Mapping):
            raise _Mismatch("a dict")
        keys, items = arguments if len(arguments) == 2 else (Any, Any)
        return {_by_annotation(key, keys): _by_annotation(item, items) for key, item in value.items()}
    if not isinstance(value, list | tuple):
        raise _Mismatch(f"a {kind.__name__}")
    if kind is list or (len(arguments) == 2 and arguments[1] is Ellipsis):
        each = arguments[0] if arguments else Any
        return kind(_by_annotation(item, each) for item in value)
    if not arguments:
        return tuple(_plain(item) for item in value)
    if len(arguments) != len(value):
        raise _Mismatch(f"a tuple of {len(arguments)} values")
    return tuple(_by_annotation(item, each) for item, each in zip(value, arguments, strict=True))


def _number(value: Any) -> int | float:
    if isinstance(value, bool | np.bool_):
        raise _Mismatch("a number (not a truth value)")
    if isinstance(value, keras.Variable):
        raise _Mismatch("a number, not a Variable: what is learned is made in build(), by add_weight", unsavable=True)
    if isinstance(value, int | float) and not isinstance(value, np.generic):
        return value
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    elif keras.ops.is_tensor(value) and len(value.shape) == 0 and current().is_concrete(value):
        value = keras.ops.convert_to_numpy(value).item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Mismatch("a number")
    return value


def _plain(value: Any) -> Any:
    """A value of no declared kind, as it is held: numpy scalars as Python's, tensors as arrays, containers copied."""
    if isinstance(value, np.generic):
        # Some of them (float64, str_) are Python's own, too.
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            raise _Mismatch("an array of numbers, text or truth values", unsavable=True)
        return value.copy()
    if isinstance(value, keras.Variable):
        raise _Mismatch("no Variable: what is learned is made in build(), by add_weight", unsavable=True)
    if keras.ops.is_tensor(value):
        if not current().is_concrete(value):
            raise _Mismatch("a value that is known now, not one of a function that is being traced", unsavable=True)
        return np.array(keras.ops.convert_to_numpy(value))
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        if hasattr(value, "_fields"):
            raise _Mismatch("a plain tuple or dict, since a named tuple comes back without its names", unsavable=True)
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return _savable(value() if _is_bare_part(value) else value)


def _savable(value: Any) -> Any:
    """`value`, if a config can hold it."""
    refuse_tf_keras(value)
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        if not private.is_known_function(value):
            raise _Mismatch(
                "a function that a file can name: decorate it with kustom (or register it with Keras); a lambda has no name",
                unsavable=True,
            )
    elif isinstance(value, type):
        raise _Mismatch("an object, not a class", unsavable=True)
    elif not hasattr(value, "get_config") and not isinstance(value, _PLAIN):
        raise _Mismatch("something with a get_config(), or plain data", unsavable=True)
    return value


_PLAIN = (type(None), bool, int, float, str, bytes, list, tuple, dict, np.ndarray, np.generic, slice, type(Ellipsis))


def _is_bare_part(value: Any) -> bool:
    return isinstance(value, type) and hasattr(value, "fn")


def _words(annotation: Any) -> str:
    simple = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    name = getattr(annotation, "__name__", None) or str(annotation)
    return simple.get(annotation, f"a {name}") if isinstance(annotation, type) else f"a {name}"
