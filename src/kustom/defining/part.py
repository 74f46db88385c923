"""`@kustom.part`: a class whose annotated attributes are its settings becomes a complete Keras part.

It writes what the author would have had to write and keep in step: the constructor, the config and its way back, the
`repr`, the registration. What is hand-written is respected. `constructing` holds how a part is made, `classes` how parts
of each kind are called, `building` how layers are built; here the class is read and put together.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform, overload

import keras

from kustom.backends import keras as private
from kustom.defining import classes, constructing, naming
from kustom.defining.settings import MISSING, Setting, _Field, field
from kustom.defining.versions import KEY, Versions
from kustom.errors import DefinitionError, ReservedNameError, hide_frames, refuse_tf_keras
from kustom.typing import Converter

__all__ = ["part"]

C = TypeVar("C", bound=type)

_FAMILIES: dict[type, str] = {
    keras.layers.Layer: "layers",
    keras.losses.Loss: "losses",
    keras.metrics.Metric: "metrics",
    keras.optimizers.Optimizer: "optimizers",
    keras.regularizers.Regularizer: "regularizers",
    keras.constraints.Constraint: "constraints",
    keras.initializers.Initializer: "initializers",
    keras.callbacks.Callback: "callbacks",
}


@dataclass_transform(field_specifiers=(field,))
@overload
def part(cls: C, /) -> C: ...
@overload
def part(
    cls: None = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Callable[[dict[str, Any], int], dict[str, Any]] | None = None,
) -> Callable[[C], C]: ...
@hide_frames
def part(
    cls: Any = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Callable[[dict[str, Any], int], dict[str, Any]] | None = None,
) -> Any:
    """Make a class a complete Keras part; its annotated attributes are its fields, and so its settings.

    The class derives from a Keras `Layer`, `Model`, `Loss`, `Metric`, `Optimizer`, `Regularizer`, `Initializer`,
    `Constraint` or `Callback`, or from one that does. Fields are constructor arguments in the order of definition, behind
    the arguments that the base has of its own (those keep their places, and the new ones are then keyword-only). No
    fields are `ClassVar`s, nor Variables, Layers and Metrics, which are what the part makes, unless `kustom.field()` says so.
    `setup(self)`, where the class has it, runs at the end of `__init__` and makes sublayers; `build` and `call` are Keras's.

    Args:
        cls: The class, where the decorator is written without arguments.
        package: What stands before the `>` in the registered name; the module's name where it is not given.
        formerly: Registered names under which older files know the part.
        version: Of the settings, from 1 on.
        migrate: `migrate(config, version)` turns a config of an older version into one of this version.

    Raises:
        DefinitionError: The class cannot become a part: see its subclasses in `kustom.errors`.
        NameClashError: Its name belongs to another part.

    Example:
        >>> import keras, kustom
        >>> from kustom.typing import ActivationLike
        >>> @kustom.part(package="docs")
        ... class SmallDense(keras.layers.Layer):
        ...     units: int
        ...     activation: ActivationLike = None
        ...
        ...     def build(self, input_shape):
        ...         self.kernel = self.add_weight(shape=(input_shape[-1], self.units))
        ...
        ...     def call(self, x):
        ...         return self.activation(x @ self.kernel)
        >>> SmallDense(4, activation="relu")
        SmallDense(units=4, activation=relu)
        >>> SmallDense.from_config(SmallDense(4).get_config()).units
        4
    """
    versions = Versions(version, migrate)
    frame = naming.caller()
    names = {**frame.f_globals, **frame.f_locals}

    @hide_frames
    def decorator(cls: Any) -> Any:
        return _make(cls, names, package, formerly, versions)

    return decorator if cls is None else decorator(cls)


def _make(cls: Any, names: dict[str, Any], package: Any, formerly: Any, versions: Versions) -> Any:
    if not isinstance(cls, type):
        raise DefinitionError(
            f"@kustom.part decorates a class, not {getattr(cls, '__qualname__', repr(cls))}; "
            "a function becomes a part by @kustom.loss, @kustom.layer and their kin."
        )
    refuse_tf_keras(cls)
    family = next((name for base, name in _FAMILIES.items() if issubclass(cls, base)), None)
    if family is None:
        known = ", ".join(base.__name__ for base in _FAMILIES)
        raise DefinitionError(f"{cls.__qualname__} derives from none of Keras's {known}; a part is one of them.")
    _refuse_reversed(cls)
    naming.refuse_closure(cls)
    own = _own_fields(cls, names)
    inherited: dict[str, Setting] = {}
    for base in reversed(cls.__mro__[1:]):
        inherited.update(vars(base).get("_kustom_own_fields", {}))
    _refuse_reserved(cls, own, inherited)
    cls._kustom_own_fields = own
    cls._kustom_fields = {**inherited, **own}
    cls.versions = versions
    constructing.install(cls)
    classes.install(cls)
    naming.register(cls, definition=cls, family=family, package=package, formerly=formerly, default=cls)
    return cls


def _refuse_reversed(cls: type) -> None:
    """Refuse a loss or metric whose author takes for the predictions what Keras gives as the targets."""
    for base, name in ((keras.losses.Loss, "call"), (keras.metrics.Metric, "update_state")):
        written = vars(cls).get(name) if issubclass(cls, base) else None
        if isinstance(written, types.FunctionType) and [*inspect.signature(written).parameters][1:3] == ["y_pred", "y_true"]:
            raise DefinitionError(
                f"{cls.__qualname__}.{name} takes (y_pred, y_true); Keras gives the targets first: "
                f"def {name}(self, y_true, y_pred, ...)."
            )


def _own_fields(cls: type, names: dict[str, Any]) -> dict[str, Setting]:
    fields = {}
    for name, annotation in inspect.get_annotations(cls).items():
        default = vars(cls).get(name, MISSING)
        annotation = _resolve(annotation, {**vars(sys.modules.get(cls.__module__, keras)), **names, cls.__name__: cls})
        made = not isinstance(default, _Field) and _is_made(annotation)
        if default is not MISSING and not made:
            # As a class attribute it would hide a layer that torch keeps under the name.
            delattr(cls, name)
        if isinstance(default, _Field):
            converter = default.converter
            if converter is not None and not isinstance(converter, Converter):
                converter = Converter(converter, f"what {getattr(converter, '__name__', 'its converter')} takes")
            fields[name] = Setting(name, default.default, default.default_factory, annotation, converter)
        elif not made:
            fields[name] = Setting(name, default, None, annotation)
    for name, value in list(vars(cls).items()):
        if isinstance(value, _Field):
            raise DefinitionError(f"{cls.__qualname__}.{name} = kustom.field(...) has no annotation; write {name}: <type> = ....")
    return fields


def _resolve(annotation: Any, names: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, names)
    except (NameError, AttributeError, TypeError):
        # A name that only a type checker knows. `ClassVar` must be seen all the same.
        return typing.ClassVar if annotation.split("[")[0].rpartition(".")[2] == "ClassVar" else Any


def _is_made(annotation: Any) -> bool:
    """Whether an annotation says of an attribute that the part makes it, and is not told it."""
    origin = typing.get_origin(annotation)
    if annotation is typing.ClassVar or origin is typing.ClassVar:
        return True
    if origin is not None:
        return any(_is_made(argument) for argument in typing.get_args(annotation))
    made = (keras.Variable, keras.layers.Layer, keras.metrics.Metric, keras.random.SeedGenerator)
    return isinstance(annotation, type) and issubclass(annotation, made)


def _refuse_reserved(cls: type, own: dict[str, Setting], inherited: dict[str, Setting]) -> None:
    base = next(base for base in cls.__mro__[1:] if "_kustom_own_fields" not in vars(base))
    needed = {name for name in dir(base) if not name.startswith("__")} | {"setup", "versions", KEY}
    for root, names in private.RESERVED.items():
        if issubclass(cls, root):
            needed |= names
    needed |= constructing.own_arguments(base).keys()
    defaults_only = {name for name in own if name in inherited}
    taken = sorted((own.keys() & needed) - defaults_only)
    if taken:
        raise ReservedNameError(
            f"{cls.__qualname__}: the field {taken[0]!r} has a name that {base.__name__} needs itself; choose another."
        )
