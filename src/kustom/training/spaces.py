"""Modules and classes of the user's, as bags of settings: `settings.BETA`, `Config.beta`, `module.Class.attr`.

Of a layer everything may count, since Keras's code reads it; a module holds far more than a step reads. So only those of its
attributes count that the step's own code mentions as attributes, wherever it does: `c = Config` before `c.beta`, and a class
that stands in an attribute, are the same then. Modules of Python's own and of the libraries below Keras are left out. Of an
installed package the values are watched, and its functions and objects are not followed: they would lead through all of it.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterable
from typing import Any

from kustom.backends import keras as private

__all__ = ["attributes_in", "bases_of", "imported_in", "is_space", "leads_out", "stored_in"]

_READS = frozenset(["LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"])


def is_space(value: Any) -> bool:
    """Whether a value is a module or a class of the user's."""
    if isinstance(value, type):
        return _is_foreign_to_python(value.__module__)
    return isinstance(value, types.ModuleType) and _is_foreign_to_python(vars(value).get("__name__"))


def _is_foreign_to_python(module: Any) -> bool:
    return isinstance(module, str) and module.split(".")[0] not in sys.stdlib_module_names and not private.is_library(module)


def bases_of(cls: type) -> list[type]:
    """Those of the classes that a class derives from, itself included, that are the user's."""
    return [base for base in cls.__mro__ if is_space(base)]


def leads_out(space: Any, value: Any) -> bool:
    """Whether what a module or class holds is to be followed."""
    if isinstance(space, type) or isinstance(value, types.ModuleType):
        return True
    file = str(vars(space).get("__file__"))
    return "site-packages" not in file and "dist-packages" not in file


@functools.lru_cache(maxsize=1024)
def attributes_in(code: types.CodeType) -> frozenset[str]:
    """The names of the attributes that a function's code reads, those of the functions in it included."""
    return frozenset(name for kind, name in _instructions(code) if kind in _READS and not name.startswith("__"))


@functools.lru_cache(maxsize=1024)
def _imports_in(code: types.CodeType) -> frozenset[str]:
    return frozenset(name for kind, name in _instructions(code) if kind == "IMPORT_NAME")


def imported_in(code: types.CodeType) -> list[types.ModuleType]:
    """The modules that a function imports itself, as far as they have been imported."""
    return [sys.modules[name] for name in sorted(_imports_in(code)) if name in sys.modules]


def stored_in(codes: Iterable[types.CodeType]) -> frozenset[str]:
    """The names of the attributes and globals that functions set."""
    return frozenset[str]().union(*map(_stores_in, codes))


@functools.lru_cache(maxsize=1024)
def _stores_in(code: types.CodeType) -> frozenset[str]:
    return frozenset(name for kind, name in _instructions(code) if kind in ("STORE_ATTR", "STORE_GLOBAL"))


def _instructions(code: types.CodeType) -> list[tuple[str, str]]:
    found = []
    for each in dis.get_instructions(code):
        if isinstance(each.argval, types.CodeType):
            found += _instructions(each.argval)
        elif isinstance(each.argval, str):
            found.append((each.opname, each.argval))
    return found
