"""Planted faults: for each code parts with the fault, as people write them, each beside its corrected twin.

A module of this package is a family, with `PAIRS`: the code, the faulty part, the twin, and what both are checked with. The
parts are module-level classes and functions, so that other processes find them.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

FAMILIES = (
    *("configs", "files", "shaped", "losses", "slopes", "numeric", "drawn", "modal", "traced", "trained", "counted"),
    *("backends", "optimizing"),
)


class Pair(NamedTuple):
    """A fault and its twin."""

    code: str
    faulty: Any
    twin: Any
    given: dict[str, Any] = {}  # noqa: RUF012

    @property
    def name(self) -> str:
        """The code, and the faulty part's name."""
        named = self.faulty if hasattr(self.faulty, "__name__") else type(self.faulty)
        return f"{self.code}-{named.__name__}"


def pairs() -> list[Pair]:
    """All of them."""
    return [Pair(*each) for family in FAMILIES for each in importlib.import_module(f"faults.{family}").PAIRS]
