"""The registry of rules: one a code, each a function whose name is what it asserts, one file a family or a part of one.

A check takes a `Subject`, and where it has variants one of them, and yields `Measured` faults and `Undecided`; a check
that yields nothing has found everything right. `needs` names the checks without which it would say nothing of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any

from kustom.errors import UsageError

__all__ = ["ALL", "DIFFERENTIABLE", "FAMILIES", "KINDS", "RULES", "Rule", "by_code", "load", "rule", "selected"]

# Of a part. A plain function is of the kind that it is said to be, or that its parameters and results show.
KINDS = (
    *("loss", "metric", "layer", "model", "activation", "initializer", "regularizer", "constraint", "optimizer"),
    "train_step",
)
ALL = frozenset(KINDS) - {"train_step"}
DIFFERENTIABLE = frozenset(["loss", "layer", "model", "activation", "regularizer"])

FAMILIES = {
    "U": "names and calls",
    "E": "running",
    "C": "config and saving",
    "S": "shapes and dtypes",
    "G": "gradients",
    "N": "numbers",
    "T": "training and state",
    "M": "metrics",
    "B": "backends",
}

# Where a check runs: it reads the source, runs here, needs a new process, or one for each backend.
WHERE = ("source", "here", "new process", "every backend")

Check = Callable[..., Iterable[Any] | None]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What holds for a kind of parts, why, and the function that finds out.

    Attributes:
        code: Stable, a family's letter and a number.
        name: What it asserts, as a name.
        kinds: The kinds of parts that it holds for.
        asserts: What it asserts, in a sentence.
        why: Why that matters.
        example: Code that fails it.
        mend: How to mend that.
        check: The function.
        needs: Codes of the checks that must have passed.
        where: One of `WHERE`.
        variants: The circumstances under which it runs, a row of the report each; none: it runs once.
        preview: Whether the code is new, and shown only when asked for.
    """

    code: str
    name: str
    kinds: frozenset[str]
    asserts: str
    why: str
    example: str
    mend: str
    check: Check = dataclasses.field(repr=False)
    needs: tuple[str, ...] = ()
    where: str = "here"
    variants: tuple[str, ...] = ()
    preview: bool = False

    @property
    def family(self) -> str:
        """The letter of its family."""
        return self.code[0]


RULES: dict[str, Rule] = {}


def rule(
    code: str,
    *,
    kinds: Iterable[str] = ALL,
    asserts: str,
    why: str,
    example: str,
    mend: str,
    needs: tuple[str, ...] = (),
    where: str = "here",
    variants: tuple[str, ...] = (),
    preview: bool = False,
) -> Callable[[Check], Check]:
    """Register a function as the check of a rule; its name is the rule's."""

    def decorator(check: Check) -> Check:
        example_text = inspect.cleandoc(example)
        RULES[code] = Rule(
            code, check.__name__, frozenset(kinds), asserts, why, example_text, mend, check, needs, where, variants, preview
        )
        return check

    return decorator


@functools.cache
def load() -> dict[str, Rule]:
    """All rules by code, in the order of the families and of their numbers."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    order = list(FAMILIES)
    ordered = dict(sorted(RULES.items(), key=lambda item: (order.index(item[0][0]), item[0])))
    RULES.clear()
    RULES.update(ordered)
    return RULES


def by_code(code: str) -> Rule:
    """The rule of a code.

    Raises:
        UsageError: There is none.
    """
    rules = load()
    if code.upper() not in rules:
        raise UsageError(f"there is no rule {code!r}; the codes are {', '.join(rules)}.")
    return rules[code.upper()]


def selected(only: str | Iterable[str] | None, skip: str | Iterable[str] | None, *, preview: bool = False) -> list[Rule]:
    """The rules whose code, or the beginning of it, is in `only` (None: all), and not in `skip`.

    Raises:
        UsageError: A name in either is the beginning of no code.
    """
    rules = load()
    chosen, left_out = (_prefixes(names) for names in (only, skip))
    for name in (*chosen, *left_out):
        if not any(code.startswith(name) for code in rules):
            raise UsageError(f"{name!r} is no code of a rule, nor the beginning of one; the codes are {', '.join(rules)}.")
    return [
        each
        for code, each in rules.items()
        if (code.startswith(chosen) if chosen else only is None and (preview or not each.preview))
        and not (left_out and code.startswith(left_out))
    ]


def _prefixes(names: str | Iterable[str] | None) -> tuple[str, ...]:
    return tuple(name.strip().upper() for name in (names.split(",") if isinstance(names, str) else names or ()))
