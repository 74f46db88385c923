"""The cells of a notebook as text: one after the other, each with its place, without what only a notebook understands.

Lines of magics and of the shell are emptied, so that line numbers stay. A cell is counted among the cells of code, from 1.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

from kustom.checking.places import Place
from kustom.errors import UsageError

__all__ = ["Cell", "Notebook", "read_notebook"]

_MAGIC = re.compile(r"^\s*(?:[%!?]|[\w.]+\?\??\s*$)")
_ASSIGNED = re.compile(r"^(\s*)[\w\s,.\[\]]+=\s*[%!].*$")
# Cell magics whose body is Python that runs here; the body of any other is left out.
_TRANSPARENT = ("%%time", "%%timeit", "%%capture", "%%prun", "%%memit")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of code.

    Attributes:
        number: From 1, among the cells of code.
        text: Its source, with what is no Python emptied.
        first: The line of the text of all cells on which it begins, from 1.
        raises: Whether it is marked as one that raises.
    """

    number: int
    text: str
    first: int
    raises: bool = False

    @functools.cached_property
    def tree(self) -> ast.Module | None:
        """What it says; None where it is no Python."""
        return _parsed(self.text)

    @property
    def is_python(self) -> bool:
        """Whether it can be compiled."""
        return self.tree is not None


@dataclasses.dataclass(frozen=True)
class Notebook:
    """A notebook's cells of code.

    Attributes:
        path: Its file.
        cells: In order.
    """

    path: str
    cells: tuple[Cell, ...]

    @property
    def text(self) -> str:
        """All cells as one text; one that is no Python is empty lines."""
        return "".join(cell.text if cell.is_python else "\n" * cell.text.count("\n") for cell in self.cells)

    def place(self, line: int) -> str:
        """Where a line of the text stands."""
        cell = [cell for cell in self.cells if cell.first <= line][-1]
        return str(Place(self.path, line - cell.first + 1, cell.number))


def read_notebook(path: str | Path) -> Notebook:
    """The cells of code of a notebook.

    Args:
        path: Of a file in Jupyter's format, version 3 or later.

    Raises:
        UsageError: It is no notebook.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        listed = content["cells"] if "cells" in content else [cell for sheet in content["worksheets"] for cell in sheet["cells"]]
        sources = [(_source(cell), cell.get("metadata", {}).get("tags", [])) for cell in listed if cell.get("cell_type") == "code"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no notebook: {type(error).__name__}: {error}.") from error
    cells, first = [], 1
    for number, (source, tags) in enumerate(sources, 1):
        text = _python(source)
        cells.append(Cell(number, text, first, "raises-exception" in tags))
        first += text.count("\n")
    return Notebook(str(path), tuple(cells))


def _source(cell: dict[str, Any]) -> str:
    source = cell.get("source", cell.get("input", ""))
    return source if isinstance(source, str) else "".join(source)


def _python(source: str) -> str:
    """A cell's text with a line break at its end, and with magics and lines of the shell emptied."""
    source = source.rstrip("\n") + "\n"
    if _parsed(source) is not None:
        return source
    lines = source[:-1].split("\n")
    filled = next((line.strip() for line in lines if line.strip()), "")
    if filled.startswith("%%") and not filled.startswith(_TRANSPARENT):
        return "\n" * len(lines)
    kept, continued = [], False
    for line in lines:
        magic = continued or _MAGIC.match(line) or _ASSIGNED.match(line)
        continued = bool(magic) and line.endswith("\\")
        indent = line[: len(line) - len(line.lstrip())]
        kept.append(f"{indent}pass" if magic and indent else "" if magic else line)
    return "\n".join(kept) + "\n"


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except SyntaxError:
        return None
