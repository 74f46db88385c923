"""How a part's class is constructed, and how its construction is told to a file and read back.

For each setting three values count: the one given, the one held when construction was over, and the one held now. Where
the last two are the same, the file gets the one given, so that a constructor or `setup` which works on a setting (doubles
it, appends to it) does so once, not once more a load. A setting changed afterwards is saved as it is now.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kustom.backends import keras as private
from kustom.defining.config import decode, encode, same
from kustom.defining.settings import MISSING, Setting, fill, hold, leaves, of_keras, show, unknown_setting
from kustom.defining.tracking import check_tracking
from kustom.errors import (
    ConfigError,
    DefinitionError,
    MissingSettingError,
    UnknownSettingError,
    UnsavableSettingError,
    hide_frames,
    refuse_tf_keras,
)

__all__ = ["install", "own_arguments", "refuse_networks", "refuse_undecorated", "root_of", "undecorated"]

_KINDS = inspect.Parameter
# Where an instance keeps the values given, the values held when it was made, what its base said then, and that it is set up.
_GIVEN = "_kustom_given"
_MADE = "_kustom_made"
_BASE_MADE = "_kustom_base_made"
_SET_UP = "_kustom_set_up"


def install(cls: Any) -> None:
    """Give a part's class its constructor, config and `repr`, as far as they are not hand-written."""
    written = vars(cls).get("__init__")
    cls.__init__ = _generated(cls) if written is None else _respected(cls, written)
    if "get_config" not in vars(cls):
        cls.get_config = _CONFIG
        cls._kustom_base_config = _base_config(cls)
    if "from_config" not in vars(cls):
        cls.from_config = classmethod(_from_config)
    if "__repr__" not in vars(cls):
        cls.__repr__ = _repr


def root_of(cls: type) -> type:
    """The base of Keras whose constructor's arguments are common to its kind, such as `Layer`; else `object`."""
    return next((root for root in private.ROOTS if issubclass(cls, root)), object)


def own_arguments(base: type) -> dict[str, inspect.Parameter]:
    """The arguments that a base takes of its own, beside the common ones (`name`, `dtype`, ...) of its kind."""
    common = private.ROOTS.get(root_of(base), ())
    own: dict[str, inspect.Parameter] = {}
    own_is_complete = False
    for owner in base.__mro__:
        if owner is object or _is_root(owner):
            break
        if "__init__" not in vars(owner):
            continue
        parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]
        kinds = {p.kind for p in parameters}
        if _KINDS.VAR_POSITIONAL in kinds:
            # It hands on whatever it gets, as TensorFlow's side of an optimizer does.
            continue
        for p in parameters:
            if p.kind is not _KINDS.VAR_KEYWORD and p.name not in common and p.name not in own:
                # What a further base takes can be given by name alone, and need not be.
                own[p.name] = p.replace(kind=_KINDS.KEYWORD_ONLY, default=None) if own_is_complete else p
        if _KINDS.VAR_KEYWORD not in kinds:
            break
        own_is_complete = True
    return own


def _is_root(owner: type) -> bool:
    return owner in private.ROOTS or owner is keras.Operation


def _generated(cls: Any) -> Callable[..., None]:
    base = next(c for c in cls.__mro__[1:] if "__init__" in vars(c) and not hasattr(vars(c)["__init__"], "_kustom_generated"))
    fields = _fields_above(cls, base)
    of_base = own_arguments(base)
    common = private.ROOTS.get(root_of(cls), ()) if _takes_common(base) else ()
    signature = _signature(cls, of_base, fields, common)

    @hide_frames
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = _bind(type(self), cls, signature, args, kwargs)
        settings = {name: given.pop(name) for name in list(given) if name in fields}
        refuse_tf_keras(*settings.values(), *given.values())
        values = fill(fields, settings, cls.__name__)
        refuse_networks(cls, values.values())
        if issubclass(cls, keras.losses.Loss | keras.metrics.Metric) and "name" in common and given.get("name") is None:
            given["name"] = private.to_snake_case(cls.__name__)
        outermost = _GIVEN not in vars(self)
        _remember(self, {})
        base.__init__(self, **given)
        for name, value in values.items():
            hold(self, name, value)
        kept = {name: value for name, value in given.items() if name in of_base or (name == "autocast" and value is False)}
        _remember(self, {**kept, **values})
        if outermost or "setup" in dir(cls):
            _finish(self, outermost)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__._kustom_generated = True  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    return __init__


def _respected(cls: Any, written: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(written)
    parameters = list(signature.parameters.values())[1:]
    starred = next((p.name for p in parameters if p.kind is _KINDS.VAR_KEYWORD), None)
    explicit = [p.name for p in parameters if p.kind not in (_KINDS.VAR_POSITIONAL, _KINDS.VAR_KEYWORD)]
    fields: dict[str, Setting] = cls._kustom_fields
    own = cls._kustom_own_fields
    saves_itself = "get_config" in vars(cls)
    many = next((p.name for p in parameters if p.kind is _KINDS.VAR_POSITIONAL), None)
    above = next(base for base in cls.__mro__[1:] if "__init__" in vars(base))
    if many and not saves_itself and not issubclass(cls, keras.Model) and "_kustom_own_fields" not in vars(above):
        _refuse_many(cls, many)

    @hide_frames
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        extra = bound.arguments.get(starred, {}) if starred else {}
        refuse_tf_keras(*bound.arguments.values(), *extra.values())
        given = {name: bound.arguments[name] for name in explicit}
        refuse_networks(cls, [*given.values(), *extra.values()])
        for name, value in given.items():
            if name in fields:
                bound.arguments[name] = given[name] = fields[name].accept(value, cls.__name__)
            elif not saves_itself and name not in private.ROOTS.get(root_of(cls), ()):
                given[name] = Setting(name).accept(value, cls.__name__)
                bound.arguments[name] = copy.deepcopy(value) if isinstance(value, list | dict) else value
        for name, setting in own.items():
            if name in given:
                object.__setattr__(self, name, _snapshot(given[name]))
            elif name in extra and not _reaches_a_field(cls, name):
                given[name] = setting.accept(extra.pop(name), cls.__name__)
                object.__setattr__(self, name, given[name])
            elif not setting.required and name not in vars(self):
                given[name] = setting.accept(setting.initial(), cls.__name__)
                object.__setattr__(self, name, given[name])
        outermost = _GIVEN not in vars(self)
        _remember(self, {})
        written(*bound.args, **bound.kwargs)
        passed_on = len(vars(self)[_GIVEN])
        lost = many is not None and not saves_itself and len(bound.arguments.get(many, ())) > passed_on
        if lost and not (isinstance(self, keras.Model) and private.is_functional(self)):
            _refuse_many(cls, str(many))
        for name in own:
            # Set before the base was ready to track what it holds.
            if name in vars(self):
                hold(self, name, vars(self)[name])
        _remember(self, {**extra, **given})
        if outermost:
            _finish(self, outermost)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__doc__ = written.__doc__
    __init__.__qualname__ = written.__qualname__
    return __init__


def _refuse_many(cls: Any, many: str) -> None:
    raise DefinitionError(
        f"{cls.__qualname__}.__init__ takes *{many}, of which a config could hold nothing. Name each setting, take them as one "
        f"tuple ({many}: tuple), or write get_config() and from_config()."
    )


def _reaches_a_field(cls: Any, name: str) -> bool:
    """Whether a keyword that a hand-written constructor passes on arrives at a base that has it as a field."""
    return any(name in vars(base).get("_kustom_own_fields", {}) for base in cls.__mro__[1:])


def _fields_above(cls: Any, base: type) -> dict[str, Setting]:
    """The fields of the part and of its bases, down to the one whose constructor is called."""
    above = cls.__mro__[: cls.__mro__.index(base)]
    fields: dict[str, Setting] = {}
    for c in reversed(above):
        fields.update(vars(c).get("_kustom_own_fields", {}))
    return fields


def _takes_common(base: type) -> bool:
    if _is_root(base):
        return True
    return any(p.kind is _KINDS.VAR_KEYWORD or p.name == "name" for p in inspect.signature(base.__init__).parameters.values())


def _signature(cls: Any, of_base: dict[str, Any], fields: dict[str, Setting], common: tuple[str, ...]) -> inspect.Signature:
    """The base's own arguments in their places, a base part's fields in theirs, and then what is new."""
    inherited = [name for name in fields if name not in cls._kustom_own_fields]
    new_kind = _KINDS.KEYWORD_ONLY if of_base or inherited else _KINDS.POSITIONAL_OR_KEYWORD
    parameters = [_KINDS("self", _KINDS.POSITIONAL_OR_KEYWORD), *of_base.values()]
    for name, setting in fields.items():
        kind = _inherited_kind(cls, name) if name in inherited else new_kind
        default = MISSING if setting.required else setting.initial()
        parameters.append(_KINDS(name, kind, default=default, annotation=setting.annotation))
    parameters += [_KINDS(name, _KINDS.KEYWORD_ONLY, default=None) for name in common]
    parameters.sort(key=lambda p: p.kind)
    try:
        return inspect.Signature(parameters)
    except ValueError as error:
        raise DefinitionError(f"{cls.__qualname__}: {error}. Give the later field a default, or move it to the front.") from error


def _inherited_kind(cls: Any, name: str) -> Any:
    for base in cls.__mro__[1:]:
        if "_kustom_own_fields" in vars(base):
            parameter = inspect.signature(base.__init__).parameters.get(name)
            if parameter is not None:
                return parameter.kind
    return _KINDS.KEYWORD_ONLY


def _bind(made: type, cls: Any, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the generated constructor of `cls` was given, by name; `made` is the class of which a part is made.

    Raises:
        UnknownSettingError: Something the part does not take, or too much by position.
        MissingSettingError: Something it needs is missing.
    """
    parameters = list(signature.parameters.values())[1:]
    by_position = [p.name for p in parameters if p.kind is not _KINDS.KEYWORD_ONLY]
    names = [p.name for p in parameters]
    if len(args) > len(by_position):
        near = [name for name in vars(cls).get("__annotations__", {}) if name not in names]
        hint = f" ({near[0]!r} is annotated as what the part makes; to be told it: {near[0]} = kustom.field().)" if near else ""
        raise UnknownSettingError(
            f"{made.__name__} takes {len(by_position)} settings by position ({', '.join(by_position) or 'none'}), "
            f"not {len(args)}; by name it takes {', '.join(names) or 'none'}.{hint}{undecorated(made, cls)}"
        )
    given = dict(zip(by_position, args, strict=False))
    for name, value in kwargs.items():
        if name in given:
            raise UnknownSettingError(f"{cls.__name__} was given {name!r} twice, by position and by name.")
        if name not in names:
            raise UnknownSettingError(unknown_setting(made.__name__, name, names) + _why_unknown(made, cls, name))
        given[name] = value
    missing = [p.name for p in parameters if p.default is MISSING and p.name not in given]
    if missing:
        raise MissingSettingError(f"{cls.__name__} needs {', '.join(missing)}; it has {', '.join(names)}.")
    return given


def _why_unknown(made: type, cls: type, name: str) -> str:
    """Why a name that stands in a class is no setting of it, where the class says so."""
    if name in _annotated(cls):
        return " It is annotated as what the part makes; to be told it: kustom.field()."
    if undecorated(made, cls):
        return undecorated(made, cls)
    value = next((vars(base)[name] for base in cls.__mro__ if "_kustom_own_fields" in vars(base) and name in vars(base)), MISSING)
    if value is MISSING or callable(value) or isinstance(value, property | staticmethod | classmethod | functools.cached_property):
        return ""
    annotation = type(value).__name__ if type(value).__module__ == "builtins" and value is not None else "<type>"
    return (
        f" It stands in the class without an annotation, and so is no setting; annotate it: {name}: {annotation} = {show(value)}."
    )


def undecorated(made: type, cls: type) -> str:
    """What to say of a subclass of the part `cls` that is no part itself; nothing where there is none."""
    for base in made.__mro__[: made.__mro__.index(cls)]:
        # Keras makes subclasses of its own on the way.
        if base.__module__.split(".")[0] != "keras" and "_kustom_own_fields" not in vars(base):
            return f" {base.__name__} is a subclass of the part {cls.__name__} and no part itself: decorate it with @kustom.part."
    return ""


def _annotated(cls: type) -> set[str]:
    return {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}


def _snapshot(value: Any) -> Any:
    """A copy of plain data; objects of Keras are the same object."""
    if isinstance(value, dict):
        return {key: _snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_snapshot(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value.copy() if isinstance(value, np.ndarray) else value


_WITHOUT_LAYERS: dict[type, str] = {
    keras.metrics.Metric: "metric",
    keras.regularizers.Regularizer: "regularizer",
    keras.constraints.Constraint: "constraint",
    keras.initializers.Initializer: "initializer",
}


def refuse_networks(cls: type, values: Any, kind: str | None = None) -> None:
    """Refuse a layer as a setting where Keras saves no weights of one, so that it would come back with fresh ones.

    Args:
        cls: The part's class.
        values: Its settings.
        kind: What it is, where that cannot be told from the class: an activation has no class of Keras.
    """
    kind = next((word for root, word in _WITHOUT_LAYERS.items() if issubclass(cls, root)), kind)
    for value in values if kind is not None else ():
        if any(isinstance(leaf, keras.layers.Layer) for leaf in leaves(value)):
            article = "an" if str(kind)[0] in "ai" else "a"
            use = "give the metric what it returns" if kind == "metric" else f"give the {kind} numbers or arrays"
            raise UnsavableSettingError(
                f"{cls.__name__} was given a {type(value).__name__}: Keras saves no weights of the layers in {article} {kind}. "
                f"Compute with the layer in the model, and {use}."
            )


def refuse_undecorated(part: Any) -> None:
    """Refuse to write a config for a subclass of a part that is no part itself: what it adds would be lost.

    Raises:
        ConfigError: Neither is it decorated, nor does it write its own config.
    """
    for cls in type(part).__mro__:
        if "_kustom_own_fields" in vars(cls) or "definition" in vars(cls) or "get_config" in vars(cls):
            return
        # Keras makes subclasses of its own on the way.
        if cls.__module__.split(".")[0] != "keras":
            raise ConfigError(
                f"{cls.__qualname__} is a subclass of a part and no part itself, so that no file would hold what it adds; decorate "
                "it with @kustom.part, or write its get_config()."
            )


def _remember(self: Any, given: dict[str, Any]) -> None:
    before = vars(self).get(_GIVEN, {})
    object.__setattr__(self, _GIVEN, {**before, **{name: _snapshot(value) for name, value in given.items()}})


def _finish(self: Any, outermost: bool) -> None:
    """End the construction of `self`: `setup`, once; and where nothing more will come, look at what there is."""
    if hasattr(self, "setup") and _SET_UP not in vars(self):
        object.__setattr__(self, _SET_UP, True)
        self.setup()
    if not outermost:
        return
    check_tracking(self)
    given = vars(self)[_GIVEN]
    object.__setattr__(self, _MADE, {name: _snapshot(getattr(self, name, value)) for name, value in given.items()})
    cls = type(self)
    if "_kustom_base_config" in vars(cls) and not hasattr(cls.__init__, "_kustom_generated"):
        object.__setattr__(self, _BASE_MADE, copy.deepcopy(cls._kustom_base_config(self)))


def _base_config(cls: Any) -> Callable[[Any], dict[str, Any]]:
    """The `get_config` that is not ours, nearest to the class; bound by hand, since a functional model changes its bases."""
    for base in cls.__mro__[1:]:
        written = vars(base).get("get_config")
        if written is None or isinstance(written, _Config):
            continue
        if "definition" in vars(base):
            return lambda self: written.__get__(self, type(self))()
        if base is keras.regularizers.Regularizer:
            break
        if issubclass(base, keras.Model):
            # Of a functional or sequential model that is the whole graph, which the constructor makes.
            return keras.layers.Layer.get_config
        if base is keras.losses.Loss:
            return lambda self: {**written(self), "dtype": self.dtype}
        return written
    return lambda self: {}


class _Config:
    """The `get_config` of a part; of its class nobody can ask for one."""

    def __get__(self, part: Any, cls: Any) -> Callable[[], dict[str, Any]]:
        return functools.partial(_get_config, part) if part is not None else functools.partial(_refuse_config, cls)


_CONFIG = _Config()


@hide_frames
def _refuse_config(cls: Any) -> dict[str, Any]:
    raise ConfigError(f"{cls.__name__} stands where a file would need a part: write {cls.__name__}(...), not {cls.__name__}.")


@hide_frames
def _get_config(self: Any) -> dict[str, Any]:
    """The config of the part: its settings, and what its base has to say."""
    refuse_undecorated(self)
    cls = type(self)
    given, made, fields = vars(self).get(_GIVEN, {}), vars(self).get(_MADE, {}), cls._kustom_fields
    base = cls._kustom_base_config(self)
    config = base if hasattr(cls.__init__, "_kustom_generated") else _passed_on(self, base, given)
    own = {
        name: _saved(self, name, given, made, fields)
        for name in dict.fromkeys([*fields, *given])
        if name in fields or name not in base
    }
    return cls.versions.stamp({**config, **own})


def _accepted(parameters: Any, name: str) -> bool:
    return name in parameters or any(p.kind is _KINDS.VAR_KEYWORD for p in parameters.values())


def _saved(self: Any, name: str, given: dict[str, Any], made: dict[str, Any], fields: dict[str, Setting]) -> Any:
    now = getattr(self, name, made.get(name))
    if name in given and same(_plain(now), _plain(made[name])):
        return encode(given[name], name)
    if name in given and not same(_plain(given[name]), _plain(made[name])) and not isinstance(now, keras.KerasTensor):
        raise UnsavableSettingError(
            f"{type(self).__name__}: the setting {name!r} was given as {show(given[name])}, made into {show(made[name])} by the "
            f"constructor, and is {show(now)} now; no argument gives that back. Keep what is computed under another name."
        )
    return encode(fields[name].accept(now, type(self).__name__) if name in fields else now, name)


def _plain(value: Any) -> Any:
    """Keras's tracked lists and dicts as Python's."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return tuple(_plain(item) for item in value) if type(value) is tuple else value


def _passed_on(self: Any, base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Of a base's config, what a hand-written constructor can be given: what it was given, and what changed since.

    All else it fixes itself, and would get twice. `name`, `trainable` and `dtype` are set by `from_config` where the
    constructor does not take them.
    """
    before = vars(self).get(_BASE_MADE, {})
    common = private.ROOTS.get(root_of(type(self)), ())
    explicit = inspect.signature(type(self).__init__).parameters
    kept = {}
    for name, value in base.items():
        changed = name in before and not same(_plain(value), _plain(before[name]))
        if name in common or name in explicit or name in given:
            kept[name] = value
        elif changed:
            raise UnsavableSettingError(
                f"{type(self).__name__}: {name!r} is fixed by the constructor and was changed since, to {show(value)}; no argument "
                f"gives that back. Make it an argument of {type(self).__name__}."
            )
    return kept


@hide_frames
def _from_config(cls: Any, config: dict[str, Any]) -> Any:
    """The part that a config describes."""
    config = cls.versions.upgrade(config, cls.__name__)
    values = {name: decode(value) for name, value in config.items()}
    parameters = inspect.signature(cls.__init__).parameters
    common = private.ROOTS.get(root_of(cls), ())
    settable = {*common, *cls._kustom_fields}
    later = {name: values.pop(name) for name in list(values) if name in settable and not _accepted(parameters, name)}
    if not any(p.kind is _KINDS.VAR_KEYWORD for p in parameters.values()):
        unknown = [name for name in values if name not in parameters]
        if unknown:
            raise ConfigError(f"a config: {unknown_setting(cls.__name__, unknown[0], [*parameters][1:])}")
    missing = [
        p.name
        for p in [*parameters.values()][1:]
        if p.default is MISSING and p.name not in values and p.kind not in (_KINDS.VAR_POSITIONAL, _KINDS.VAR_KEYWORD)
    ]
    if missing:
        raise ConfigError(f"a config of {cls.__name__} has no {missing[0]!r}; it has {', '.join(config) or 'nothing'}.")
    part = _made(cls, values, common, later)
    for name, value in later.items():
        attribute = "dtype_policy" if name == "dtype" else name
        if hasattr(part, attribute):
            setattr(part, attribute, value)
    return part


def _made(cls: Any, values: dict[str, Any], common: Any, later: dict[str, Any]) -> Any:
    """The part of these values, of which a hand-written constructor may fix some itself: `super().__init__(name="mine", **kwargs)`.

    Nobody can see that in its signature. What it refuses to be given twice, and fixes to another value, is added to `later`.
    """
    values, fixed = dict(values), {}
    fixable = {*common, *cls._kustom_fields} - inspect.signature(cls.__init__).parameters.keys()
    while True:
        try:
            part = cls(**values)
            break
        except TypeError as error:
            twice = re.search(r"got multiple values for (?:keyword )?argument '(\w+)'", str(error))
            if twice is None or twice[1] not in fixable or twice[1] not in values:
                raise
            fixed[twice[1]] = values.pop(twice[1])
    for name, value in fixed.items():
        attribute = "dtype_policy" if name == "dtype" and hasattr(part, "dtype_policy") else name
        place = getattr(type(part), attribute, None)
        settable = not isinstance(place, property) or place.fset is not None
        held = getattr(part, attribute, value)
        if settable and not same(held, keras.dtype_policies.get(value) if attribute == "dtype_policy" else value):
            later[name] = value
    return part


def _repr(self: Any) -> str:
    cls = type(self)
    common = private.ROOTS.get(root_of(cls), ())
    needed = [
        name for name, p in inspect.signature(cls.__init__).parameters.items() if p.default is MISSING and hasattr(self, name)
    ]
    written = not hasattr(cls.__init__, "_kustom_generated")
    given = [name for name in vars(self).get(_GIVEN, {}) if written and name not in common]
    names = dict.fromkeys([*needed, *cls._kustom_fields, *given])
    shown = {name: getattr(self, name, vars(self).get(_GIVEN, {}).get(name)) for name in names}
    shown |= of_keras(self, None if written else private.to_snake_case(cls.__name__))
    return f"{cls.__name__}({', '.join(f'{name}={show(_plain(value))}' for name, value in shown.items())})"
