"""How a part is made anew, here or in another process.

A class is called with the settings of its example, or with none. An instance is copied by its config; where it has none
that works, it is used itself, since it is what the user wants to know about. A function is what it is.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import importlib
import importlib.util
import inspect
import json
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kustom.backends import keras as private
from kustom.errors import SubjectError
from kustom.saving.rebuilding import public

__all__ = ["Making", "import_part", "parameters_of", "settings_in"]


class Making:
    """The making of one subject's part.

    Attributes:
        broken: Why no copy is of use, where one can be made; empty where that is not known.
        inputs: What the example gives the part; None where it gives nothing.
        source: The text of the part's module, where that is in no file (a notebook's cells).
    """

    def __init__(self, part: Any, kind: str, example: Any, source: str | None) -> None:
        self.part, self.kind, self.example, self.source = part, kind, example, source
        self.settings: dict[str, Any] = {}
        self.inputs: Any = None
        self.broken = ""
        self._factory: Callable[[], Any] | None = None
        self._first: Any = None
        if isinstance(example, dict):
            unknown = set(example) - {"settings", "inputs"}
            if unknown:
                raise SubjectError(f"an example has {min(unknown)!r}; its entries are settings, inputs.")
            self.settings = dict(example.get("settings", {}))
            self.inputs = example.get("inputs")
        elif callable(example):
            self._factory = example
            self.inputs = self._from_factory()[1]
        elif example is not None:
            raise SubjectError(
                f"an example is a dict with settings and inputs, or a function that returns the part, not {example!r}."
            )

    @property
    def is_class(self) -> bool:
        """Whether the part was given as what makes it."""
        return isinstance(self.part, type)

    @property
    def _is_named(self) -> bool:
        """Whether a module holds the part itself under its name: a class, a function."""
        return hasattr(self.part, "__qualname__")

    def _from_factory(self) -> tuple[Any, Any]:
        assert self._factory is not None
        made = self._factory()
        return made if isinstance(made, tuple) and len(made) == 2 else (made, None)

    def make(self, **settings: Any) -> Any:
        """A new part, with `settings` in the place of its own.

        Raises:
            SubjectError: It cannot be made.
        """
        if not self.is_class and not hasattr(self.part, "get_config"):
            return self.part
        if self._factory is not None and not settings:
            return self._from_factory()[0]
        if self.is_class:
            if self._factory is not None:
                held = settings_in(self._from_factory()[0])
                return self._called(type(self._from_factory()[0]), {**held, **settings})
            return self._called(self.part, {**copy.deepcopy(self.settings), **settings})
        if settings:
            return self._called(type(self.part), {**settings_in(self.part), **settings})
        if self.broken:
            raise SubjectError(self.broken)
        try:
            return _copied(self.part)
        except Exception as error:
            # Whatever a config raises: that is what C101 and C102 say.
            raise SubjectError(f"it cannot be copied by its config: {type(error).__name__}: {error}") from error

    def _called(self, cls: Any, settings: dict[str, Any]) -> Any:
        missing = [
            name
            for name, p in parameters_of(cls).items()
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in settings
        ]
        if missing:
            raise SubjectError(
                f"{cls.__name__} needs {', '.join(missing)}: give an instance, or say how it is made: "
                f"__kustom__ = {{'examples': [{{'settings': {{{missing[0]!r}: ...}}}}]}}."
            )
        return cls(**settings)

    def instance(self) -> Any:
        """The part that was given, where it is one; else one that is made once."""
        if not self.is_class:
            return self.part
        if self._first is None:
            self._first = self.make()
        return self._first

    def spelled(self) -> tuple[str, str]:
        """As Python text: the import, and what makes the part."""
        named = self.part if self._is_named else type(self.part)
        module, name = getattr(named, "__module__", "__main__"), getattr(named, "__qualname__", type(self.part).__name__)
        if "<" in name:
            # Inside of a function, where nothing can be imported from.
            name, module = named.__name__, None
        root = name.split(".")[0]
        head = f"from {module} import {root}" if module and module != "__main__" else f"# {name} as defined above"
        if named is self.part and not self.is_class:
            return head, name
        held = self.settings if self.is_class else settings_in(self.part)
        spelled = {k: repr(v) for k, v in held.items() if _is_plain(v) and v is not None}
        spelled |= {k: f"np.array({v.tolist()}, {str(v.dtype)!r})" for k, v in held.items() if isinstance(v, np.ndarray)}
        needed = [k for k, p in parameters_of(named).items() if p.default is p.empty and k not in spelled]
        if needed:
            return head, f"# part is the {name} that was checked; its {', '.join(needed)} cannot be written down"
        return head, f"{name}({', '.join(f'{k}={text}' for k, text in spelled.items())})"

    def recipe(self) -> dict[str, Any]:
        """How another process finds the part, as plain JSON.

        Raises:
            SubjectError: It cannot: the part is defined inside of a function, or its module has no file.
        """
        if self.broken:
            raise SubjectError(self.broken)
        named = self.part if self._is_named else _public_class(type(self.part))
        module_name = getattr(named, "__module__", None) or ""
        qualname = getattr(named, "__qualname__", "")
        if "<" in qualname or not qualname:
            raise SubjectError(f"{qualname or self.part!r} is defined inside of a function, where another process cannot find it")
        module = sys.modules.get(module_name)
        file = getattr(module, "__file__", None)
        # A layer of Keras's own that was made in a notebook is defined in Keras.
        source = self.source if module_name.partition(".")[0] != "keras" else None
        if source is None and file is None:
            raise SubjectError(f"its module {module_name} has no file that another process could import")
        text = source if source is not None else _text(file)
        recipe: dict[str, Any] = {
            "module": module_name,
            "file": file,
            "source": source,
            "stamp": hashlib.sha256(text.encode()).hexdigest(),
            "path": [p for p in sys.path if p],
            "qualname": qualname,
            "kind": self.kind,
        }
        if self.is_class and self.example is not None:
            declared = vars(self.part).get("__kustom__", getattr(self.part, "__kustom__", {})).get("examples", [])
            examples = declared if isinstance(declared, list | tuple) else [declared]
            position = next((i for i, each in enumerate(examples) if each is self.example), None)
            # One that the class does not declare was found in calls of it, and is of plain values.
            recipe |= {"example": position} if position is not None else {"settings": self.settings}
        elif not self.is_class and named is not self.part:
            recipe["config"] = _on_any_backend(json.loads(json.dumps(keras.saving.serialize_keras_object(self.part))))
        return recipe


def _public_class(cls: type) -> type:
    """The class under which Keras's own optimizer is known: on PyTorch its instances are of another, which is of that backend."""
    known = getattr(keras.optimizers, cls.__name__, cls) if private.is_library(cls.__module__) else cls
    return known if isinstance(known, type) and issubclass(cls, known) else cls


def _on_any_backend(config: Any) -> Any:
    if isinstance(config, dict):
        return public({key: _on_any_backend(value) for key, value in config.items()})
    return [_on_any_backend(value) for value in config] if isinstance(config, list) else config


def _text(file: str | None) -> str:
    if file is None:
        return ""
    with open(file, "rb") as opened:
        return opened.read().decode("utf-8", "replace")


def _copied(part: Any) -> Any:
    made = type(part).from_config(part.get_config())
    if not isinstance(made, type(part)):
        raise SubjectError(f"from_config made a {type(made).__name__}")
    if isinstance(part, keras.layers.Layer):
        held = {id(layer) for layer in private.descendants(part)}
        if any(id(layer) in held for layer in private.descendants(made)):
            raise SubjectError("a copy by its config holds the very layers that the part holds: they are in the config themselves")
    return made


def parameters_of(cls: Any) -> dict[str, inspect.Parameter]:
    """The constructor's parameters by name, without `self`, `*args` and `**kwargs`."""
    try:
        signature = inspect.signature(cls.__init__)
    except (TypeError, ValueError):
        return {}
    parameters = list(signature.parameters.values())[1:]
    return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def settings_in(part: Any) -> dict[str, Any]:
    """What an instance's constructor could be called with again, as far as its config and attributes say."""
    parameters = parameters_of(type(part))
    try:
        config = part.get_config()
    except Exception:
        # What a config raises is said by C101; the attributes are left.
        config = {}
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if name in config and _is_plain(config[name]):
            found[name] = config[name]
        elif hasattr(part, name):
            found[name] = getattr(part, name)
        elif name in config:
            found[name] = keras.saving.deserialize_keras_object(config[name])
        elif parameter.default is parameter.empty:
            raise SubjectError(f"nothing says with which {name} it was made")
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(type(part).__init__).parameters.values()):
        inherited = {name for base in type(part).__mro__[1:-1] for name in parameters_of(base)}
        found |= {n: v for n, v in config.items() if n in inherited and n not in found and _is_plain(v) and n != "name"}
    return {n: v for n, v in found.items() if n != "name"}


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str | bool | None | tuple) or (
        isinstance(value, list) and all(_is_plain(each) for each in value)
    )


def import_part(recipe: dict[str, Any]) -> Any:
    """The part of a recipe, in the process that has it.

    Raises:
        SubjectError: It is not there.
    """
    module = import_module(recipe)
    part: Any = module
    for name in recipe["qualname"].split("."):
        if not hasattr(part, name):
            raise SubjectError(f"{recipe['module']} has no {recipe['qualname']}")
        part = getattr(part, name)
    return part


def import_module(recipe: dict[str, Any]) -> types.ModuleType:
    """The module of a recipe: imported by its name, or from its file, or from the text of its source."""
    name, source = recipe["module"], recipe["source"]
    sys.path[:] = [*recipe["path"], *(p for p in sys.path if p not in recipe["path"])]
    if source is not None or name == "__main__":
        known = f"kustom_checked_{recipe['stamp'][:16]}"
        if known not in sys.modules:
            module = types.ModuleType(name)
            module.__file__ = recipe["file"]
            sys.modules[known] = module
            # Under its own name too, since what is registered and what is pickled are found by it.
            sys.modules[name] = module
            text = source if source is not None else _text(recipe["file"])
            vars(module)["__name__"] = name if source is not None else known
            # Text of cells has lines of its own, which are no place in a file.
            try:
                exec(compile(text, recipe["file"] if source is None else f"<{name}>", "exec"), vars(module))
            except (Exception, SystemExit):
                # What a script does below the part's definition is no matter of the part.
                if recipe["qualname"].partition(".")[0] not in vars(module):
                    raise
        return sys.modules[known]
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, recipe["file"])
    if spec is None or spec.loader is None:
        raise SubjectError(f"{recipe['file']} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def packed(value: Any) -> str:
    """Arrays in whatever structure, as text between our own processes."""
    return base64.b64encode(pickle.dumps(value)).decode()


def unpacked(text: str) -> Any:
    """What `packed` was given."""
    return pickle.loads(base64.b64decode(text))
