"""What a file may reach: the parts that were judged, found where they are trusted to be, and nothing else.

A module is imported where the interpreter would find it without the model's folder: what came with a file is not code that
anybody chose. The folder of the script that runs is the program's own, wherever files lie.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kustom.backends import keras as private
from kustom.errors import MissingPartError, UntrustedError
from kustom.saving.archive import Archive
from kustom.saving.refusing import is_custom
from kustom.saving.verdict import Custom, Verdict

__all__ = ["Parts", "assets", "import_modules", "resolve"]


class Parts:
    """The classes and functions of a file that are not Keras's own, by the names that the file has for them."""

    def __init__(self, found: dict[str, Any], customs: tuple[Custom, ...], file: str) -> None:
        self._found, self._customs, self._file = found, customs, file
        self._last: str | None = None

    def find(self, node: dict[str, Any], name: str) -> Any:
        """The class or function for the config of a part; None where it is Keras's own.

        Raises:
            UntrustedError: It is not among those that were judged.
        """
        key = _key(node, name)
        if key not in self._found:
            if not is_custom(node):
                return None
            raise UntrustedError(f"a part of it asks for {key}, which was not judged.", file=self._file, wants=(key,))
        self._last = key
        return self._found[key]

    def named(self, name: str) -> Any:
        """The class or function of a registered name, or None."""
        return self._found.get(name)

    def last_place(self, text: str) -> str | None:
        """Where in the file the part stands that was made last, where an error's text speaks of it."""
        for custom in self._customs:
            if self._last in (custom.registered_name, custom.name) and (
                custom.name in text or self._last == custom.registered_name
            ):
                return custom.place
        return None

    def last_name(self, text: str) -> str:
        """What to begin a message with: the part that was made last."""
        return "" if self._last is None or self._last.rpartition(">")[2] in text else f"{self._last}: "

    def nearest(self, text: str) -> str:
        """A hint for a setting that a class no longer takes: the nearest that it does."""
        unexpected = re.search(r"(?:unexpected keyword argument |Unrecognized keyword arguments passed to \w+: {)'(\w+)'", text)
        if unexpected is None or self._last is None:
            return ""
        try:
            taken = list(inspect.signature(self._found[self._last]).parameters)
        except (TypeError, ValueError):
            return ""
        near = difflib.get_close_matches(unexpected[1], taken, n=1)
        return f" It takes {', '.join(taken)}." + (f" Did {unexpected[1]!r} become {near[0]!r}?" if near else "")


def _key(node: dict[str, Any], name: str) -> str:
    return name if node["class_name"] == "function" else str(node.get("registered_name") or name)


def import_modules(names: Iterable[str], folder: str | None, file: str) -> None:
    """Import what is trusted, and no module that lies in the folder of the file.

    Args:
        names: The modules.
        folder: The folder of the file, or None where it has none.
        file: The file, for messages.

    Raises:
        MissingPartError: One of them cannot be imported.
    """
    for name in names:
        _import(name, folder, file)


def resolve(verdict: Verdict, trust: Any, file: str) -> Parts:
    """Find the parts of a file that was judged.

    Args:
        verdict: The verdict, which was held.
        trust: What `load` was given.
        file: The file, for messages.

    Raises:
        MissingPartError: A module does not have a part.
    """
    given = dict(trust) if isinstance(trust, Mapping) else {}
    found = {}
    for custom in verdict.customs:
        key = custom.registered_name or custom.name
        found[key] = _part(custom, given, file)
    return Parts(found, verdict.customs, file)


def _import(name: str, folder: str | None, file: str) -> None:
    with _path_without(folder):
        try:
            importlib.import_module(name)
        except ImportError as error:
            inner = error.name if isinstance(error, ModuleNotFoundError) and error.name else None
            missing = inner is not None and (name == inner or name.startswith(inner + "."))
            why = f"there is no module {inner!r}" if missing else f"importing {name!r} fails: {error}"
            raise MissingPartError(
                f"{why}. Install the package that has it; a module that lies in the folder of the file is not looked at: import it "
                "before, where it is yours.",
                file=file,
            ) from error


@contextlib.contextmanager
def _path_without(folder: str | None) -> Iterator[None]:
    before = list(sys.path)
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    own = os.path.dirname(os.path.realpath(script)) if script else None
    if folder is not None and folder != own:
        sys.path[:] = [entry for entry in before if os.path.realpath(entry or os.getcwd()) != folder]
    try:
        yield
    finally:
        sys.path[:] = before


def _part(custom: Custom, given: Mapping[str, Any], file: str) -> Any:
    for name in (custom.registered_name, custom.name):
        if name in given:
            return given[name]
    registered = private.registered(custom.registered_name) if custom.registered_name else None
    if registered is not None:
        return registered
    module = sys.modules.get(custom.module or "")
    part: Any = module
    for name in custom.name.split("."):
        part = getattr(part, name, None)
    if module is None or part is None:
        names = [*private.registered_names(), *(vars(module) if module is not None else ())]
        near = difflib.get_close_matches(custom.registered_name, names, n=1) or difflib.get_close_matches(custom.name, names, n=1)
        hint = f" The nearest is {near[0]!r}." if near else ""
        raise MissingPartError(
            f"{custom.module or 'no module'} has no {custom.name!r}, as which it was saved.{hint} Give the class itself: "
            f"trust={{{custom.registered_name or custom.name!r}: ...}}.",
            file=file,
            part=custom.place,
        )
    return part


@contextlib.contextmanager
def assets(opened: Archive) -> Iterator[Any]:
    """The assets of a file in a folder of their own, for as long as they are loaded; None where it has none."""
    if not opened.assets:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in opened.assets:
            # The names were judged with the archive: relative, and without a way up.
            target = Path(folder, *name.split("/")[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(opened.data(name))
        yield private.assets_in(folder)
