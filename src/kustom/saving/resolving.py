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
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kustom.backends import keras as private
from kustom.errors import MissingPartError, UntrustedError
from kustom.saving import table
from kustom.saving.archive import Archive
from kustom.saving.customs import Custom, Key, key_of
from kustom.saving.trusting import Trust, is_part
from kustom.saving.verdict import Verdict

__all__ = ["Parts", "assets", "folder_of", "import_modules", "resolve"]


class Parts:
    """The classes and functions of a file that are not Keras's own.

    Attributes:
        found: They, by what the file says of them; see `customs.key_of`.
    """

    def __init__(self, found: dict[Key, Any], customs: tuple[Custom, ...], file: str) -> None:
        self.found = found
        self._customs, self._file = customs, file
        self._last: Custom | None = None

    def find(self, node: dict[str, Any], name: str) -> Any:
        """The class or function for the config of a part; None where it is Keras's own.

        Raises:
            UntrustedError: It is not among those that were judged.
        """
        key = key_of(node)
        if key in self.found:
            self._last = next(custom for custom in self._customs if custom.key == key)
            return self.found[key]
        module = node.get("module")
        if isinstance(module, str) and (module == "builtins" or table.is_of_keras(module)):
            return None
        # Keras would look further than in its registry: it imports packages, and what it finds there nobody judged.
        wanted = str(node.get("registered_name") or name)
        raise UntrustedError(f"a part of it asks for {wanted}, which was not judged.", file=self._file, wants=(wanted,))

    def named(self, name: str) -> Any:
        """The class or function of a registered name, or None."""
        return next((self.found[custom.key] for custom in self._customs if custom.registered_name == name), None)

    def last_place(self) -> str | None:
        """Where in the file the part stands that was made last."""
        return None if self._last is None else self._last.place

    def last_name(self, text: str) -> str:
        """What to begin a message with: the part that was made last."""
        return "" if self._last is None or self._last.name in text else f"{self._last.registered_name}: "

    def nearest(self, text: str) -> str:
        """A hint for a setting that a class no longer takes: the nearest that it does."""
        unexpected = re.search(r"(?:unexpected keyword argument |Unrecognized keyword arguments passed to \w+: {)'(\w+)'", text)
        if unexpected is None or self._last is None:
            return ""
        try:
            taken = list(inspect.signature(self.found[self._last.key]).parameters)
        except (TypeError, ValueError):
            return ""
        near = difflib.get_close_matches(unexpected[1], taken, n=1)
        return f" It takes {', '.join(taken)}." + (f" Did {unexpected[1]!r} become {near[0]!r}?" if near else "")


def folder_of(source: Any) -> str | None:
    """The folder that a file lies in, given its path, or a file object that was opened by one; None where it lies in none."""
    name = source if isinstance(source, str | bytes | os.PathLike) else getattr(source, "name", None)
    if not isinstance(name, str | bytes | os.PathLike):
        # In memory, or opened by a number.
        return None
    return os.path.dirname(os.path.realpath(os.fsdecode(name)))


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
    """Find the parts of a file that was judged, and whose modules were imported.

    Args:
        verdict: The verdict, which was held.
        trust: What `load` was given.
        file: The file, for messages.

    Raises:
        MissingPartError: A module does not have a part.
        UntrustedError: It has it from somewhere else.
    """
    trusted = Trust(trust)
    return Parts({custom.key: _part(custom, trusted, file) for custom in verdict.customs}, verdict.customs, file)


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


def _part(custom: Custom, trust: Trust, file: str) -> Any:
    if custom.registered_name in trust.objects:
        return trust.objects[custom.registered_name]
    registered = private.registry().get(custom.registered_name)
    if registered is not None:
        return registered
    module = sys.modules.get(custom.module or "")
    # Its own namespace alone, and no path through it: what a module has imported is not what it was trusted for.
    part = vars(module).get(custom.name) if module is not None else None
    if part is None:
        names = [*private.registered_names(), *(vars(module) if module is not None else ())]
        near = difflib.get_close_matches(custom.registered_name, names, n=1) or difflib.get_close_matches(custom.name, names, n=1)
        hint = f" The nearest is {near[0]!r}." if near else ""
        raise MissingPartError(
            f"{custom.module or 'no module'} has no {custom.name!r}, as which it was saved.{hint} {_by_hand(custom)}",
            file=file,
            part=custom.place,
        )
    is_own = _is_own(part, custom, trust)
    # A function is handed tensors alone; a class is made with whatever the file says.
    if is_own and (is_part(part) or isinstance(part, types.FunctionType)):
        return part
    why = (
        "no part: a class that derives from nothing of Keras's and is registered nowhere. Register it there, with "
        "keras.saving.register_keras_serializable"
        if is_own
        else f"{_what(part)}, and no {_kind(custom)} that is defined as such in a trusted module"
    )
    raise UntrustedError(
        f"{custom.module}.{custom.name} is {why}. {_by_hand(custom)}",
        file=file,
        part=custom.place,
        wants=(custom.registered_name,),
    )


def _is_own(part: Any, custom: Custom, trust: Trust) -> bool:
    """Whether a part is a class or function of a trusted module, under its own name there."""
    if not isinstance(part, types.FunctionType if _kind(custom) == "function" else type):
        return False
    return trust.covers(part.__module__ or "") and part.__qualname__ == custom.name


def _kind(custom: Custom) -> str:
    return "function" if custom.key[1] == "function" else "class"


def _what(part: Any) -> str:
    if isinstance(part, types.ModuleType):
        return f"the module {part.__name__}"
    if isinstance(part, type | types.FunctionType | types.BuiltinFunctionType):
        return f"{part.__module__}.{part.__qualname__}"
    return f"a {type(part).__module__}.{type(part).__qualname__}"


def _by_hand(custom: Custom) -> str:
    return f"If you know it, give it itself: trust={{{custom.registered_name!r}: ...}}."


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
