"""What a check can say: a fault, with what was measured; that it could not decide; on what it waits; that all is right.

A check itself yields `Measured` and `Undecided`; the runner adds what the rule knows. Everything here turns into plain JSON
and back, since other processes report the same way.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

__all__ = ["Finding", "Measured", "NotChecked", "NotRun", "Outcome", "Passed", "Undecided", "shown"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A fault as the check saw it.

    Attributes:
        message: One sentence, with the numbers that matter.
        input: With what the part was called.
        got: What it gave.
        expected: What it should have given.
        reproducer: About five lines that show it when pasted.
        mend: How to mend it, where that can be said better than the rule does.
        variant: Under which circumstances, where there are several.
        place: `file:line`, where it is another than that of the part.
    """

    message: str
    _: dataclasses.KW_ONLY
    input: str = ""
    got: str = ""
    expected: str = ""
    reproducer: str = ""
    mend: str = ""
    variant: str = ""
    place: str = ""


@dataclasses.dataclass(frozen=True)
class Undecided:
    """A check's own word that it could not decide, and why."""

    why: str
    variant: str = ""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault of a part.

    Attributes:
        code: The rule's.
        claim: The rule's name, which is what should hold.
        part: The part's name.
        place: `file:line`, where the part is written; empty where that is unknown.
        message: What was measured, in one sentence.
        input: With what the part was called.
        got: What it gave.
        expected: What it should have given.
        why: Why it matters.
        mend: How to mend it.
        reproducer: About five lines that show it when pasted.
        variant: Under which circumstances: `float16`, `compiled`, `jax`; empty where there is but one.
        expected_because: The reason, where the part declares this code an expected failure.
    """

    code: str
    claim: str
    part: str
    place: str
    message: str
    input: str = ""
    got: str = ""
    expected: str = ""
    why: str = ""
    mend: str = ""
    reproducer: str = ""
    variant: str = ""
    expected_because: str = ""

    def __str__(self) -> str:
        circumstances = f" [{self.variant}]" if self.variant else ""
        return f"{self.place + ' ' if self.place else ''}{self.part}  {self.code}{circumstances}  {self.message}"

    def details(self) -> list[str]:
        """The lines below the first: what was given, what came, why it matters, what to do, how to see it."""
        named = [(name, getattr(self, name)) for name in ("input", "got", "expected", "why", "mend")]
        lines = [f"    {name}: {text}" for name, text in named if text]
        if self.reproducer:
            lines += ["    to see it:", *(f"        {line}" for line in self.reproducer.splitlines())]
        return lines


@dataclasses.dataclass(frozen=True)
class NotChecked:
    """A check that could not decide.

    Attributes:
        code: The rule's.
        part: The part's name.
        why: Why not.
        variant: Under which circumstances.
        unfinished: Whether the check itself ended by an exception that it does not understand.
    """

    code: str
    part: str
    why: str
    variant: str = ""
    unfinished: bool = False

    def __str__(self) -> str:
        circumstances = f" [{self.variant}]" if self.variant else ""
        return f"{self.part}  {self.code}{circumstances}  not checked: {self.why}"


@dataclasses.dataclass(frozen=True)
class NotRun:
    """A check that was not run, since one that it depends on has found a fault or could not decide.

    Attributes:
        code: The rule's.
        part: The part's name.
        waits_on: The codes that must hold first.
    """

    code: str
    part: str
    waits_on: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.part}  {self.code}  not run: waits on {', '.join(self.waits_on)}"


@dataclasses.dataclass(frozen=True)
class Passed:
    """A check that found everything right.

    Attributes:
        code: The rule's.
        part: The part's name.
        variant: Under which circumstances.
        after_all: The reason for which it was expected to fail, where the part says so: the declaration can go.
    """

    code: str
    part: str
    variant: str = ""
    after_all: str = ""

    def __str__(self) -> str:
        circumstances = f" [{self.variant}]" if self.variant else ""
        note = f", though expected to fail: {self.after_all}" if self.after_all else ""
        return f"{self.part}  {self.code}{circumstances}  passed{note}"


Outcome = Finding | NotChecked | NotRun | Passed


def shown(x: Any, limit: int = 60) -> str:
    """A number, shape, array or anything else, short enough for one line."""
    if isinstance(x, str):
        text = x
    elif isinstance(x, float | np.floating):
        text = f"{float(x):.6g}"
    elif isinstance(x, np.ndarray):
        text = f"{float(x):.6g}" if x.ndim == 0 and x.dtype.kind in "fiu" else np.array2string(x, precision=5, threshold=6)
    elif isinstance(x, tuple | list) and all(isinstance(each, float | np.floating) for each in x):
        text = ", ".join(f"{float(each):.6g}" for each in x)
    else:
        text = repr(x)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
