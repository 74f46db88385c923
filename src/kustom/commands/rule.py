"""`kustom rule CODE`: what a rule asserts, for which parts, why it matters, an example that fails, and the mend."""

from __future__ import annotations

import argparse
import textwrap

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("codes", nargs="+", metavar="CODE", help="such as G202")


def run(arguments: argparse.Namespace) -> int:
    """Print the rules.

    Raises:
        UsageError: There is no such code.
    """
    from kustom.checking.rules import by_code

    print("\n\n".join(explained(by_code(code)) for code in arguments.codes))
    return 0


def explained(rule: object) -> str:
    """A rule's explanation, in lines of a terminal's width."""
    from kustom.checking.rules import ALL, FAMILIES, Rule

    assert isinstance(rule, Rule)
    kinds = "every part" if rule.kinds >= ALL else ", ".join(sorted(rule.kinds)) or FAMILIES[rule.family]
    lines = [
        f"{rule.code}  {rule.name.replace('_', ' ')}",
        f"{FAMILIES[rule.family]}; holds for: {kinds}" + ("; new, runs with --preview" if rule.preview else ""),
        "",
        textwrap.fill(rule.asserts, 100),
        "",
        textwrap.fill(f"Why: {rule.why}", 100),
        "",
        "An example that fails:",
        "",
        textwrap.indent(rule.example, "    "),
        "",
        textwrap.fill(f"Mend: {rule.mend}", 100),
    ]
    if rule.needs:
        lines += ["", f"Waits on {', '.join(rule.needs)}."]
    return "\n".join(lines)
