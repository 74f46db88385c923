"""Names: under what a part is registered, so that a file finds it again, and that no two parts share one.

The name is `full.module.path>name`. Keras's own registry replaces without a word where two classes meet under one name,
and a file of the first then loads as the second; here that is an error, unless the newcomer is the same definition run
again: a cell, a reloaded module, a function that defines the part each time it is called.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kustom import errors
from kustom.backends import keras as private
from kustom.defining.config import same
from kustom.errors import ClosureError, DefinitionError, NameClashError

# The family of a part is the module of Keras that holds its kind: "losses", "metrics", "activations", ...
_FAMILIES: dict[str, tuple[str, Any]] = {}
_KIND_OF = {
    "losses": "loss",
    "metrics": "metric",
    "activations": "activation",
    "initializers": "initializer",
    "regularizers": "regularizer",
    "constraints": "constraint",
    "layers": "layer",
    "optimizers": "optimizer",
    "callbacks": "callback",
}
_PLACES: dict[str, Place] = {}
_PRINTS: dict[str, tuple[set[Any], dict[str, Any]]] = {}
_SITES: dict[str, Site] = {}
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_ERRORS = errors.__file__


@dataclass(frozen=True)
class Place:
    """Where a part was defined."""

    module: str
    qualname: str
    file: str
    line: int

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file or "an unknown place"
        return f"{self.module}.{self.qualname} ({where})"


@dataclass(frozen=True)
class Site:
    """Which piece of code a part's definition stands in, and where."""

    code: types.CodeType
    lines: tuple[int, ...]
    family: str

    def is_other_than(self, before: Site) -> bool:
        """Whether two definitions of one name are two parts, not one that is defined again.

        A function that is called again has the same code and the same line. A module that is reloaded, and a cell that was
        edited, are other code.
        """
        if self.code is before.code:
            return self.lines != before.lines or self.family != before.family
        return self.family != before.family and not self.code.co_name == before.code.co_name == "<module>"


def caller() -> types.FrameType:
    """The frame that called into the definition of parts."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_HERE, _ERRORS)):
        frame = frame.f_back
    return frame


def _site_of(definition: types.FunctionType | type, family: str) -> Site:
    frame: types.FrameType | None = caller()
    called_from = frame
    while frame is not None and frame.f_globals.get("__name__") != definition.__module__:
        # A decorator of the user's own, that calls ours, is no place of the part.
        frame = frame.f_back
    frame = frame or called_from
    assert frame is not None
    if isinstance(definition, types.FunctionType):
        return Site(frame.f_code, (definition.__code__.co_firstlineno,), family)
    # A class knows no line of its own; where it has no methods, that of its decorator is all there is.
    return Site(frame.f_code, (place_of(definition).line, frame.f_lineno), family)


def place_of(definition: types.FunctionType | type) -> Place:
    """Where a function or class was defined; a class counts where its first method stands."""
    own = getattr(sys.modules.get(definition.__module__), "__file__", None)
    code = getattr(definition, "__code__", None)
    if code is None:
        members = [inspect.unwrap(member) for member in vars(definition).values() if isinstance(member, types.FunctionType)]
        # Of a class of fields alone only the file is known.
        codes = [member.__code__ for member in members if own is None or member.__code__.co_filename == own]
        code = min(codes, key=lambda c: c.co_firstlineno, default=None)
    file, line = (code.co_filename, code.co_firstlineno) if code is not None else (own or "", 0)
    return Place(definition.__module__, definition.__qualname__, file, line)


def package_of(module: str) -> str:
    """The package under which what `module` defines is registered.

    A script that is run directly counts under the name by which another program would import it; so does a worker
    process that imported it as `__mp_main__`. A notebook and an interactive session have no such name.
    """
    if module not in ("__main__", "__mp_main__"):
        return module
    main = sys.modules.get(module)
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name not in ("__main__", "__mp_main__"):
        return spec.name.removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    if file is None or not file.endswith((".py", ".pyw")):
        return "__main__"
    return os.path.splitext(os.path.basename(file))[0]


def register(
    cls: type,
    *,
    definition: types.FunctionType | type,
    family: str,
    package: str | None,
    formerly: tuple[str, ...] | str,
    default: Any,
) -> str:
    """Register a part's class with Keras and return its name.

    Args:
        cls: The class that a file's config is handed to.
        definition: The function or class as the user wrote it.
        family: The module of Keras that holds its kind.
        package: What stands before the `>`; the module's name where it is None.
        formerly: Names under which older files know the part.
        default: What a field of its family gets where it is given the name as text.

    Raises:
        NameClashError: The name, or an older one, belongs to another part.
        DefinitionError: A package or an older name is not a name.
    """
    package = package_of(definition.__module__) if package is None else package
    older = (formerly,) if isinstance(formerly, str) else tuple(formerly)
    for text in (package, *older):
        if not isinstance(text, str) or not text:
            raise DefinitionError(f"{definition.__qualname__}: a package or former name must be text, not {text!r}.")
    name = f"{package}>{definition.__name__}"
    place = place_of(definition)
    for taken in (name, *older):
        _refuse_clash(taken, place)
    site = _site_of(definition, family)
    before = _SITES.get(name)
    if before is not None and private.registered(name) is not None and site.is_other_than(before):
        raise NameClashError(
            f"{name!r} is taken: the {_KIND_OF.get(family, family)} at {place.file}:{site.lines[-1]} was about to replace the "
            f"{_KIND_OF.get(before.family, before.family)} at {_PLACES[name].file}:{before.lines[-1]}, and files of the one would "
            "load as the other. Give one of them another name, or another `package=`."
        )
    print_ = _refuse_other_definition(name, definition)
    private.register(name, cls, bare=None if type(cls) is type else type(cls), formerly=older)
    _SITES[name] = site
    for taken in (name, *older):
        _PLACES[taken] = place
        _PRINTS[taken] = print_
        _FAMILIES[taken] = (family, default)
    return name


def _refuse_clash(name: str, place: Place) -> None:
    there = private.registered(name)
    if there is None:
        return
    other = _PLACES.get(name) or place_of(there)
    if (other.module, other.qualname) == (place.module, place.qualname):
        return
    raise NameClashError(
        f"{name!r} is taken: {place} was about to replace {other}, and files of the one would load as the other. "
        "Give one of them another name, or another `package=`."
    )


def _refuse_other_definition(name: str, definition: types.FunctionType | type) -> tuple[set[Any], dict[str, Any]]:
    """Refuse a second, different part from one function that makes parts; return what tells them apart.

    A function that is called again defines its part again, with the same code. Where a class attribute, a base or a
    helper's default differs, the two are different parts under one name, and what differs is no setting.
    """
    values: dict[str, Any] = {}
    codes: set[Any] = set()
    if "<locals>" in definition.__qualname__:
        _read(definition, definition.__name__, values, codes, set())
    before = _PRINTS.get(name)
    if before is not None and codes & before[0]:
        paths = [path for path in sorted({*values, *before[1]}) if not same(values.get(path), before[1].get(path))]
        if paths:
            raise NameClashError(
                f"{definition.__qualname__} is defined again, and {paths[0]} is another one: two different parts under one name, "
                "and a file of the one would load as the other. Make it a setting, or give each part its own name."
            )
    return codes, values


def _read(definition: Any, path: str, values: dict[str, Any], codes: set[Any], seen: set[int]) -> None:
    """The values that a definition inside a function takes from there, other than as settings, and its code."""
    if isinstance(definition, staticmethod | classmethod):
        definition = definition.__func__
    if id(definition) in seen:
        return
    seen.add(id(definition))
    if isinstance(definition, type):
        values[f"the bases of {path}"] = [f"{base.__module__}.{base.__qualname__}" for base in definition.__mro__[1:]]
        for base in definition.__mro__:
            fields = vars(base).get("_kustom_own_fields", {})
            if "<locals>" not in base.__qualname__ or "definition" in vars(base):
                continue
            for name, member in vars(base).items():
                if not name.startswith(("__", "_kustom", "_abc")) and name not in fields and name != "versions":
                    _read(member, f"{path}.{name}", values, codes, seen)
    elif isinstance(definition, types.FunctionType):
        definition = inspect.unwrap(definition)
        if definition.__module__.split(".")[0] == "kustom":
            return
        codes.add(definition.__code__)
        defaults = dict(enumerate(definition.__defaults__ or ()))
        if "." in path:
            # Of the part's own function they are its settings.
            defaults |= definition.__kwdefaults__ or {}  # type: ignore[arg-type]
        values |= {f"the default {key} of {path}": value for key, value in defaults.items() if not _is_code(value)}
        for name, cell in zip(definition.__code__.co_freevars, definition.__closure__ or (), strict=True):
            try:
                _read(cell.cell_contents, f"{path}.{name}", values, codes, seen)
            except ValueError:
                continue
    elif not _is_code(definition) and not isinstance(definition, property | functools.cached_property):
        partial = isinstance(definition, functools.partialmethod | functools.partial)
        values[path] = (definition.args, definition.keywords) if partial else definition


def find(name: str, family: str) -> Any:
    """The part of a family that text names: by its registered name, or by its own where only one part has it.

    Returns:
        What the part gives for a field, or None where there is no such part.

    Raises:
        NameClashError: Several parts have that name.
    """
    if ">" in name:
        found = _FAMILIES.get(name)
        return found[1] if found is not None and found[0] == family else None
    matches = {full: default for full, (kind, default) in _FAMILIES.items() if kind == family and full.rpartition(">")[2] == name}
    if len({id(default) for default in matches.values()}) > 1:
        raise NameClashError(f"{name!r} names {len(matches)} parts; write one of {', '.join(sorted(matches))}.")
    return next(iter(matches.values()), None)


def refuse_closure(definition: types.FunctionType | type) -> None:
    """Refuse a part that takes a value from the function around it.

    Modules, classes and functions that hold no such value themselves are fine: they are code, not settings.

    Raises:
        ClosureError: With the names of the values.
    """
    captured = sorted({name for name, value in _captured(definition, set()) if not _is_code(value)})
    if captured:
        raise ClosureError(
            f"{definition.__qualname__} takes {', '.join(captured)} from the function around it, where no file would find "
            f"{'them' if len(captured) > 1 else 'it'} again. Make {'each' if len(captured) > 1 else 'it'} a setting: a "
            "keyword-only parameter of a function, an annotated field of a class."
        )


def _captured(definition: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if id(definition) in seen:
        return
    seen.add(id(definition))
    if isinstance(definition, staticmethod | classmethod):
        definition = definition.__func__
    if isinstance(definition, functools.cached_property):
        definition = definition.func
    if isinstance(definition, property):
        for accessor in (definition.fget, definition.fset, definition.fdel):
            yield from _captured(accessor, seen)
    elif isinstance(definition, type):
        for base in definition.__mro__:
            # A base that is a part has been looked at.
            if "<locals>" in base.__qualname__ and "versions" not in vars(base):
                for member in list(vars(base).values()):
                    yield from _captured(member, seen)
    elif isinstance(definition, types.FunctionType) and definition.__module__.split(".")[0] != "kustom":
        yield from _captured(getattr(definition, "__wrapped__", None), seen)
        for name, cell in zip(definition.__code__.co_freevars, definition.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:
                # `__class__` while the class is being made, or a name that is bound later: a function or class.
                continue
            yield name, value
            yield from _captured(value, seen)


def _is_code(value: Any) -> bool:
    return (
        isinstance(
            value,
            types.ModuleType | types.FunctionType | types.BuiltinFunctionType | type | staticmethod | classmethod,
        )
        or getattr(type(value), "default_part", None) is value
    )
