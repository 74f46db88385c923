"""A decorated function: still the function where it is given data, a part where it is given settings.

The decorator makes a class from the function; its metaclass tells data from settings. `Definition` is what is known of
the function: its data, its settings, and how it is called.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import ops

from kustom.backends import keras as private
from kustom.defining import calling, data, naming
from kustom.defining.config import decode, encode
from kustom.defining.constructing import refuse_networks, refuse_undecorated, undecorated
from kustom.defining.kinds import KINDS
from kustom.defining.settings import MISSING, Setting, fill, hold, leaves, of_keras, show, unknown_setting
from kustom.defining.sums import Ratio
from kustom.defining.tracking import state_of
from kustom.defining.versions import Versions
from kustom.errors import (
    ConfigError,
    DefinitionError,
    ReservedNameError,
    ReturnError,
    ShapeError,
    UnknownSettingError,
    hide_frames,
    refuse_tf_keras,
)

__all__ = ["Definition", "make"]

_CALL_ARGUMENTS = ("training", "mask")


class Definition:
    """What a part is: one function, its data and its settings."""

    def __init__(self, kind: str, function: Callable[..., Any], formula: Callable[..., Any] | None) -> None:
        if not isinstance(function, types.FunctionType):
            raise DefinitionError(
                f"@kustom.{kind} decorates a function, not {show(function)} ({type(function).__name__}); "
                "a class becomes a part by @kustom.part."
            )
        self.kind, self.function, self.name = kind, function, function.__name__
        self.base, self.count, self.family = KINDS[kind]
        self.signature = inspect.signature(function)
        self.formula = formula
        annotations = _annotations(function)
        parameters = list(self.signature.parameters.values())
        self.data = self._data_of(parameters)
        keyword_only = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        self.call_arguments = [p for p in keyword_only if kind == "layer" and p.name in _CALL_ARGUMENTS]
        self.settings = {
            p.name: Setting(p.name, p.default, annotation=annotations.get(p.name, MISSING))
            for p in keyword_only
            if p not in self.call_arguments
        }
        self.common = private.ROOTS.get(next((root for root in private.ROOTS if issubclass(self.base, root)), object), ())
        self._refuse_reserved()
        if function.__name__ == "<lambda>":
            raise DefinitionError(f"@kustom.{kind} was given a lambda, which has no name to be saved under; write a def.")
        naming.refuse_closure(function)
        if formula is not None:
            naming.refuse_closure(formula)

    def _data_of(self, parameters: list[inspect.Parameter]) -> list[str]:
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        names = [p.name for p in positional]
        starred = [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if starred:
            raise DefinitionError(f"{self.name} takes {starred[0]}: name each setting, so that a file can hold it.")
        least = 1 if self.kind in ("layer", "initializer") else self.count
        if self.count is not None and len(names) > self.count:
            extra = names[self.count :]
            raise DefinitionError(
                f"{self.name} takes {', '.join(extra)} by position; a setting is keyword-only: "
                f"def {self.name}({', '.join(names[: self.count])}, *, {', '.join(extra)}=...)."
            )
        if len(names) < (least or 1):
            wanted = {"loss": "y_true, y_pred", "metric": "y_true, y_pred", "initializer": "shape, dtype"}.get(self.kind, "x")
            raise DefinitionError(f"{self.name} takes ({', '.join(names)}); a {self.kind} takes ({wanted}).")
        if names == ["y_pred", "y_true"]:
            raise DefinitionError(
                f"{self.name} takes (y_pred, y_true); Keras gives a {self.kind} its targets first: "
                f"def {self.name}(y_true, y_pred, ...)."
            )
        if self.kind == "layer" and any(p.default is not MISSING for p in positional[1:]):
            late = next(p.name for p in positional[1:] if p.default is not MISSING)
            raise DefinitionError(f"{self.name} takes {late} by position, with a default; a setting is keyword-only.")
        return names

    def _refuse_reserved(self) -> None:
        needed = {name for name in dir(self.base) if not name.startswith("__")} | {"fn", "definition"} | set(self.common)
        for root, names in private.RESERVED.items():
            if issubclass(self.base, root):
                needed |= names
        taken = sorted(needed & (self.settings.keys() | ({*self.data} if self.kind == "layer" else set())) - {"inputs", "mask"})
        if taken:
            raise ReservedNameError(
                f"{self.name}: the setting {taken[0]!r} has a name that a {self.kind} of Keras needs itself; choose another."
            )

    def has_data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call gives data, by position or by name."""
        return bool(args) or any(name in kwargs for name in self.data)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The data by name, and the settings given beside it."""
        named = {name: kwargs[name] for name in self.data if name in kwargs}
        rest = {name: value for name, value in kwargs.items() if name not in named}
        by_position = dict(zip(self.data, args, strict=False))
        if len(args) > len(self.data):
            raise UnknownSettingError(
                f"{self.name} takes {len(self.data)} argument{'s' if len(self.data) > 1 else ''} by position "
                f"({', '.join(self.data)}), not {len(args)}; settings are given by name: {', '.join(self.settings) or 'none'}."
            )
        twice = by_position.keys() & named.keys()
        if twice:
            raise UnknownSettingError(f"{self.name} was given {min(twice)} twice, by position and by name.")
        bound = {name: {**by_position, **named}[name] for name in self.data if name in by_position or name in named}
        needed = [p.name for p in self.signature.parameters.values() if p.name in self.data and p.default is MISSING]
        missing = [name for name in needed if name not in bound and not (self.kind == "initializer" and name == "dtype")]
        if missing:
            raise UnknownSettingError(
                f"{self.name} was given {', '.join(bound)} without {', '.join(missing)}. Settings are given by name: "
                f"{self.name}({', '.join(f'{name}=...' for name in self.settings)})."
            )
        return bound, rest

    def bind_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The data of a layer's call by name, and `training` and `mask` as far as the function takes them."""
        inputs, rest = self.bind(args, kwargs)
        return inputs, {p.name: rest.get(p.name, None if p.default is MISSING else p.default) for p in self.call_arguments}

    def check_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a layer's call that has not one argument an input.

        Raises:
            UnknownSettingError: With the inputs that the layer takes, and what arrived.
        """
        inputs = [*args, *(value for name, value in kwargs.items() if name in self.data)]
        if len(inputs) == len(self.data):
            return
        of_one = len(inputs) == 1 and isinstance(inputs[0], list | tuple)
        arrived = f"one argument, a {type(inputs[0]).__name__} of {len(inputs[0])}" if of_one else str(len(inputs))
        raise UnknownSettingError(
            f"{self.name} takes {len(self.data)} input{'s' if len(self.data) > 1 else ''} ({', '.join(self.data)}) and was given "
            f"{arrived}. Give each as an argument of its own: {self.name}(...)({', '.join(self.data)})."
        )

    def settings_of(self, part: Any) -> dict[str, Any]:
        """What a part holds now."""
        return {name: getattr(part, name) for name in self.settings}

    def compute(self, part: Any, inputs: dict[str, Any], dtype: str | None, named: dict[str, Any] | None = None) -> Any:
        """Call the function with what a part holds; `named` comes before that.

        Args:
            part: Holds the settings.
            inputs: The data by name; what is no tensor yet becomes one.
            dtype: What floating data is cast to; None: it keeps its own.
            named: `training`, `mask`, or a seed in the place of the one that is held.
        """
        inputs = {name: keras.tree.map_structure(lambda x: data.tensor(x, dtype), x) for name, x in inputs.items()}
        return self._call(inputs, {**self.settings_of(part), **(named or {})}, dtype)

    def draw(self, settings: dict[str, Any], shape: Any, dtype: Any = None) -> Any:
        """Call an initializer's function; the values have the shape and dtype that are asked for.

        Raises:
            ShapeError: The function returned another shape.
        """
        shape = tuple(int(size) for size in ([shape] if isinstance(shape, int) else shape))
        dtype = private.standardize_dtype(dtype or keras.config.floatx())
        values = data.tensor(self._call(dict(zip(self.data, (shape, dtype), strict=False)), settings, dtype))
        if tuple(values.shape) != shape:
            raise ShapeError(f"{self.name} was asked for the shape {shape} and returned {tuple(values.shape)}.")
        return ops.cast(values, dtype)

    def result(self, part: Any, sums: dict[str, Any]) -> Any:
        """A metric's formula over its sums, with the settings that it names."""
        assert self.formula is not None
        names = inspect.signature(self.formula).parameters
        value = self.formula(**sums, **{n: v for n, v in self.settings_of(part).items() if n in names})
        return data.returned(value, f"the formula of {self.name}")

    def check_sums(self, sums: Iterable[str]) -> None:
        """Refuse sums that the formula does not take, or that it could not tell from a setting.

        Raises:
            ReturnError: With the sums and with what the formula asks for.
        """
        if self.formula is None:
            return
        parameters = inspect.signature(self.formula).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        asked = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        needed = [name for name in asked if parameters[name].default is MISSING]
        twice = [name for name in sums if name in self.settings]
        missing = [name for name in needed if name not in sums and name not in self.settings]
        unknown = [] if takes_any else [name for name in sums if name not in asked]
        if not (twice or missing or unknown):
            return
        wrong = (
            f"the sum {twice[0]!r} has the name of a setting; give it another"
            if twice
            else f"the formula asks for {missing[0]!r}, which is neither a sum nor a setting"
            if missing
            else f"the formula does not take the sum {unknown[0]!r}"
        )
        raise ReturnError(
            f"{self.name}: {wrong}. The sums are {', '.join(sums)}; the settings are {', '.join(self.settings) or 'none'}; "
            f"the formula in result= takes {', '.join(asked) or 'none'}."
        )

    @staticmethod
    def leaves(made: Any) -> Any:
        """What a metric's function returned, as something of which Keras can infer the shapes."""
        return [made.numerator, made.denominator] if isinstance(made, Ratio) else getattr(made, "parts", made)

    def direct(self, cls: type, held: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function as the user does, on data and with settings beside it; `held` are those of the part called."""
        inputs, rest = self.bind(args, kwargs)
        call_arguments = {p.name: rest.pop(p.name) for p in self.call_arguments if p.name in rest}
        dtype = rest.pop("dtype", None) if "dtype" in self.common else None
        settings = self._beside_data({**held, **rest})
        if self.kind == "initializer":
            shape, *dtypes = inputs.values()
            return self.draw(settings, shape, *dtypes[:1])
        if self.kind == "layer":
            return self._direct_layer(cls, inputs, settings, call_arguments, dtype)
        if self.kind in ("loss", "metric"):
            dtype = private.standardize_dtype(dtype or keras.config.floatx())
            inputs = dict(zip(self.data, (data.tensor(x, dtype) for x in inputs.values()), strict=True))
            y_true, y_pred = inputs.values()
            aligned = data.align(y_true, y_pred, self.name)
            data.refuse_broadcast(lambda t, p: self.leaves(self._call({"t": t, "p": p}, settings, dtype)), *aligned, self.name)
            inputs = dict(zip(self.data, aligned, strict=True))
        return self._call({name: data.tensor(x, dtype) for name, x in inputs.items()}, settings, dtype)

    def _direct_layer(self, cls: type, inputs: Any, settings: Any, call_arguments: Any, dtype: Any) -> Any:
        flat = keras.tree.flatten(list(inputs.values()))
        if any(isinstance(x, keras.KerasTensor) for x in flat):
            # In a functional model it is a layer of its own, with its settings in the file.
            return cls(**settings, **({"dtype": dtype} if dtype else {}))(*inputs.values(), **call_arguments)
        inputs = {name: _tensors(x, dtype) for name, x in inputs.items()}
        flat = keras.tree.flatten(list(inputs.values()))
        named = {p.name: call_arguments.get(p.name, None if p.default is MISSING else p.default) for p in self.call_arguments}
        if named.get("mask", 0) is None:
            named["mask"] = private.get_keras_mask(flat[0])
        given = leaves([settings, list(inputs.values())])
        return calling.watched(
            self,
            named.get("training"),
            lambda: self._call(inputs, {**settings, **named}, dtype),
            self.function,
            lambda: {id(variable) for leaf in given for variable in state_of(leaf)},
            self.name,
            of_function=True,
        )

    def _beside_data(self, given: dict[str, Any]) -> dict[str, Any]:
        """Settings given beside data. A tensor passes as it is, so that it can be differentiated."""
        free = {n: v for n, v in given.items() if n in self.settings and (ops.is_tensor(v) or isinstance(v, keras.Variable))}
        filled = fill(
            {n: s for n, s in self.settings.items() if n not in free},
            {n: v for n, v in given.items() if n not in free},
            self.name,
        )
        return {**filled, **{name: data.tensor(value) for name, value in free.items()}}

    def _call(self, inputs: dict[str, Any], settings: dict[str, Any], dtype: str | None) -> Any:
        first = next((x for x in keras.tree.flatten(inputs) if hasattr(x, "dtype") and data.is_floating(x)), None)
        floating = dtype or (private.standardize_dtype(first.dtype) if first is not None else keras.config.floatx())
        return data.returned(data.call(self.function, self.name, inputs, data.setting_tensors(settings, floating)), self.name)


class PartType(type):
    """The class of a decorated function's class: tells data from settings, and looks like the function."""

    definition: Definition

    @hide_frames
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        definition = cls.definition
        if definition.has_data(args, kwargs):
            return definition.direct(cls, {name: s.initial() for name, s in definition.settings.items()}, args, kwargs)
        return super().__call__(**kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        return cls.definition.signature


class _Both:
    """A method of a part that its class has, too, there for the default part: Keras asks a bare name for its config."""

    def __init__(self, of_part: Callable[[Any], Any], of_class: Callable[[Any], Any]) -> None:
        self.of_part, self.of_class = of_part, of_class

    def __get__(self, part: Any, cls: type) -> Callable[[], Any]:
        return functools.partial(self.of_part, part) if part is not None else functools.partial(self.of_class, cls)


def make(
    kind: str,
    function: Callable[..., Any],
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    versions: Versions | None = None,
    result: Callable[..., Any] | None = None,
) -> Any:
    """The part that a function becomes: a class, or for an activation the default part.

    Raises:
        DefinitionError: The function cannot become one; see its subclasses.
        NameClashError: Its name is taken.
    """
    definition = Definition(kind, function, result)
    versions = versions or Versions()
    base = definition.base
    namespace = {
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
        "__doc__": function.__doc__,
        "__init__": _init(definition),
        "__repr__": _repr,
        "definition": definition,
        "fn": staticmethod(function),
        "from_config": classmethod(_from_config),
        "get_config": _Both(_get_config, _get_class_config),
        "versions": versions,
    }
    if kind == "layer":
        namespace["call"] = _layer_call(definition)
        namespace["get_build_config"] = _Both(base.get_build_config, lambda cls: None)  # asked of a bare name, too
    names = {"__module__": function.__module__, "__qualname__": function.__qualname__}
    meta = type(function.__name__, (PartType,), dict(names))
    cls = meta(function.__name__, (base,), namespace)
    part = cls
    if kind == "activation":
        part = cls.default_part = type.__call__(cls)
        vars(part).update(names, __doc__=function.__doc__, __signature__=definition.signature, fn=function)
    naming.register(cls, definition=function, family=definition.family, package=package, formerly=formerly, default=part)
    return part


def _init(definition: Definition) -> Callable[..., None]:
    def __init__(self: Any, **given: Any) -> None:
        common = {name: given.pop(name) for name in definition.common if name in given}
        refuse_tf_keras(*given.values())
        part = next(base for base in type(self).__mro__ if "definition" in vars(base))
        unknown = next((name for name in given if name not in definition.settings), None)
        if unknown is not None and undecorated(type(self), part):
            names = [*definition.settings, *definition.common]
            raise UnknownSettingError(unknown_setting(type(self).__name__, unknown, names) + undecorated(type(self), part))
        values = fill(definition.settings, given, definition.name, also=definition.common)
        refuse_networks(type(self), values.values(), kind="activation" if definition.kind == "activation" else None)
        if definition.kind in ("loss", "metric"):
            common.setdefault("name", definition.name)
        definition.base.__init__(self, **common)
        for name, value in values.items():
            hold(self, name, value)
        if hasattr(self, "made"):
            self.made()

    parameter = inspect.Parameter
    parameters = [parameter("self", parameter.POSITIONAL_OR_KEYWORD)]
    parameters += [p for p in definition.signature.parameters.values() if p.name in definition.settings]
    parameters += [parameter(name, parameter.KEYWORD_ONLY, default=None) for name in definition.common]
    __init__.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{definition.function.__qualname__}.__init__"
    return __init__


def _layer_call(definition: Definition) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return definition.base.call(self, *args, **kwargs)

    parameter = inspect.Parameter
    parameters = [parameter("self", parameter.POSITIONAL_OR_KEYWORD)]
    parameters += [p for p in definition.signature.parameters.values() if p.name in definition.data]
    parameters += [p.replace(default=None if p.default is MISSING else p.default) for p in definition.call_arguments]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _repr(self: Any) -> str:
    held = {**self.definition.settings_of(self), **of_keras(self, self.definition.name)}
    return f"{self.definition.name}({', '.join(f'{name}={show(value)}' for name, value in held.items())})"


@hide_frames
def _get_config(self: Any) -> dict[str, Any]:
    refuse_undecorated(self)
    definition = self.definition
    held = definition.settings_of(self)
    own = {name: encode(definition.settings[name].accept(value, definition.name), name) for name, value in held.items()}
    return self.versions.stamp({**definition.base.get_config(self), **own})


@hide_frames
def _get_class_config(cls: Any) -> dict[str, Any]:
    if "definition" not in vars(cls):
        raise ConfigError(f"{cls.__qualname__} is a subclass of a part and no part itself; decorate it with @kustom.part.")
    # A layer would have another name each time.
    return type.__call__(cls, **({"name": cls.definition.name} if cls.definition.kind == "layer" else {})).get_config()


@hide_frames
def _from_config(cls: Any, config: dict[str, Any]) -> Any:
    config = cls.versions.upgrade(config, cls.__name__)
    names = [*cls.definition.settings, *cls.definition.common]
    unknown = [name for name in config if name not in names]
    if unknown:
        raise ConfigError(f"a config: {unknown_setting(cls.__name__, unknown[0], names)}")
    values = {name: decode(value) for name, value in config.items()}
    missing = [name for name, setting in cls.definition.settings.items() if setting.required and name not in values]
    if missing:
        raise ConfigError(f"a config of {cls.__name__} has no {missing[0]!r}; it has {', '.join(config) or 'nothing'}.")
    return type.__call__(cls, **values)


def _tensors(x: Any, dtype: Any) -> Any:
    """The inputs of a layer as tensors: a list of numbers is one, a list of tensors or arrays several."""
    if any(hasattr(leaf, "shape") for leaf in keras.tree.flatten(x)):
        return keras.tree.map_structure(lambda leaf: data.tensor(leaf, dtype), x)
    return data.tensor(x, dtype)


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return inspect.get_annotations(function, eval_str=True)
    except NameError:
        # A name that only a type checker knows; such an annotation says nothing here.
        return {name: a for name, a in inspect.get_annotations(function).items() if not isinstance(a, str)}
