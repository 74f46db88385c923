"""`file:line`, and in a notebook `notebook.ipynb:cell 12:3`, counted among the cells of code: written and read in one place."""

from __future__ import annotations

import dataclasses
import os
import re

__all__ = ["Place", "place_in", "relative"]

_FORM = re.compile(r"^(?P<file>.*?)(?::cell (?P<cell>\d+))?(?::(?P<line>\d+))?$", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Place:
    """A line of a file, or of a cell of a notebook.

    Attributes:
        file: The path; empty where it is unknown.
        line: From 1; in a notebook within the cell.
        cell: From 1, among the cells of code; None outside of notebooks.
    """

    file: str
    line: int | None = None
    cell: int | None = None

    def __str__(self) -> str:
        cell = f":cell {self.cell}" if self.cell is not None else ""
        return f"{self.file}{cell}{f':{self.line}' if self.line is not None else ''}"


def place_in(text: str) -> Place:
    """The place that a finding's text names."""
    found = _FORM.match(text)
    assert found is not None
    line, cell = found["line"], found["cell"]
    return Place(found["file"], int(line) if line else None, int(cell) if cell else None)


def relative(path: str, to: str | None = None) -> str:
    """A path as seen from a folder, the current one by default, where it lies inside of it."""
    base = os.path.abspath(to or os.getcwd())
    inside = os.path.abspath(path)
    return os.path.relpath(inside, base) if inside.startswith(base + os.sep) else path
