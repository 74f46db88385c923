"""What a dotted path stands for in the libraries whose names are known: Keras, NumPy, the backends, kustom.

A library is imported, which runs its code and never the code that is read; its internal modules are left alone.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import warnings
from typing import Any

__all__ = ["ROOTS", "Thing", "get", "has", "is_internal", "library", "longest"]

# The libraries whose names are known. Importing one runs its code, never the code that is read.
ROOTS = ("keras", "kustom", "numpy", "tensorflow", "jax", "torch")


@dataclasses.dataclass(frozen=True, eq=False)
class Thing:
    """An object of a library, and the name under which the source reaches it."""

    object: Any
    path: str


def library(path: str) -> Thing | None:
    """What a dotted path of an import stands for, where it is of a library in `ROOTS` that is installed."""
    head, *rest = path.split(".")
    if head not in ROOTS or _is_internal(path):
        return None
    found = _module(head)
    if rest:
        # The import system's own way comes first: a package's attribute may hide a module of the same name.
        home = _module(path.rpartition(".")[0])
        found = (
            get(home, rest[-1])
            if home is not None
            else functools.reduce(lambda o, n: None if o is None else get(o, n), rest, found)
        )
    return Thing(found, path) if found is not None else None


def longest(path: str) -> tuple[Thing, str] | None:
    """The beginning of a module's path that there is, and the first name behind it that there is not; None where all is there."""
    names = path.split(".")
    if names[0] not in ROOTS or _module(names[0]) is None:
        return None
    for count in range(1, len(names)):
        home = library(".".join(names[:count]))
        if home is None or not inspect.ismodule(home.object) or is_internal(home.object):
            return None
        if not has(home.object, names[count]):
            return home, names[count]
    return None


def is_internal(module: Any) -> bool:
    """Whether a module is a library's own affair, whose names may differ from one backend to the next."""
    return _is_internal(module.__name__.replace("keras._tf_keras.", ""))


def _is_internal(path: str) -> bool:
    # To import one of these is to change the library: Keras's modules of another backend write over those of its own.
    return any(name in ("src", "python") or name.startswith("_") for name in path.split("."))


def has(owner: Any, name: str) -> bool:
    """Whether a module or class has an attribute; a module's submodules count, imported or not."""
    if _attribute_of(owner, name) is not _NOTHING:
        return True
    if not inspect.ismodule(owner) or not hasattr(owner, "__path__"):
        return False
    return importlib.util.find_spec(f"{owner.__name__}.{name}") is not None


_NOTHING = object()


def _attribute_of(owner: Any, name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return getattr(owner, name, _NOTHING)
        except ImportError:
            # It is there, and needs what is not installed.
            return None


def get(owner: Any, name: str) -> Any:
    """An attribute or submodule; None where there is none, or it cannot be imported."""
    found = _attribute_of(owner, name)
    if found is not _NOTHING:
        return found
    path = f"{getattr(owner, '__name__', '')}.{name}"
    return _module(path) if inspect.ismodule(owner) and not _is_internal(path) and has(owner, name) else None


@functools.cache
def _module(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        # Not installed, or it needs what is not.
        return None
