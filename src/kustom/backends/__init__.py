"""The rooms for what differs between backends, and for what is private to Keras. Only these files import a backend.

`choose()` runs when kustom is imported: it decides which backend Keras will take where nobody else has. `current()` is
the module of the backend in use; each has the same names, so that nobody above knows which one it is.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import sys
from types import ModuleType

from kustom.errors import BackendError

__all__ = ["choose", "current", "installed"]

# Keras's own default comes first.
KNOWN = ("tensorflow", "jax", "torch")


def choose() -> None:
    """Choose a backend for Keras where neither the user nor Keras's own default can.

    Nothing is done where Keras is imported already, `KERAS_BACKEND` is set, Keras's configuration file names a backend,
    or Keras's default is installed.

    Raises:
        BackendError: No backend is installed, or Keras's configuration file names one that is not.
    """
    if "keras" in sys.modules or os.environ.get("KERAS_BACKEND"):
        return
    configured = _configured()
    # Keras writes its default into the file when it first starts, whatever runs; that is nobody's choice.
    if configured is not None and (configured != KNOWN[0] or _installed(configured)):
        if configured in KNOWN and not _installed(configured):
            raise BackendError(
                f"Keras's configuration file {_configuration_file()} chooses the backend {configured!r}, which is not "
                f"installed. Set the environment variable KERAS_BACKEND, or install it: pip install 'kustom[{configured}]'."
            )
        return
    found = installed()
    if not found:
        raise BackendError(
            "kustom found none of tensorflow, jax and torch. Install one: pip install 'kustom[jax]' (or [tensorflow], [torch])."
        )
    if found[0] != KNOWN[0]:
        os.environ["KERAS_BACKEND"] = found[0]
        print(f"kustom: no backend was chosen; taking {found[0]} (KERAS_BACKEND={found[0]})", file=sys.stderr)


def current(room: str = "") -> ModuleType:
    """The module of the backend that Keras runs on, such as `kustom.backends.jax`.

    Args:
        room: One of the folders that have a module for each backend, such as `tapes`; the backend's own where it is empty.

    Raises:
        BackendError: Keras runs on a backend that kustom has no room for.
    """
    import keras

    name = keras.backend.backend()
    if name not in KNOWN:
        raise BackendError(f"kustom works on {', '.join(KNOWN)}; Keras runs on {name!r}. Set KERAS_BACKEND to one of them.")
    return _room(f"{room}.{name}" if room else name)


@functools.cache
def _room(name: str) -> ModuleType:
    return importlib.import_module(f"kustom.backends.{name}")


def installed() -> list[str]:
    """The backends that could be chosen here."""
    return [name for name in KNOWN if _installed(name)]


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _configuration_file() -> str:
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    return os.path.join(home, "keras.json")


def _configured() -> str | None:
    try:
        with open(_configuration_file(), encoding="utf-8") as file:
            return json.load(file).get("backend")
    except (OSError, ValueError, AttributeError):
        # Keras ignores a file that it cannot read, too.
        return None
