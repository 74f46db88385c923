"""`kustom rules`: the codes by family, each with what it asserts."""

from __future__ import annotations

import argparse
import json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--format", choices=["table", "json"], default="table", help="of the output; table by default")


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from kustom.checking.rules import FAMILIES, load

    rules = list(load().values())
    if arguments.format == "json":
        kept = ("code", "name", "asserts", "why", "example", "mend", "where", "preview")
        listed = [{**{name: getattr(rule, name) for name in kept}, "kinds": sorted(rule.kinds)} for rule in rules]
        print(json.dumps(listed, indent=1))
        return 0
    for letter, family in FAMILIES.items():
        of_family = [rule for rule in rules if rule.family == letter]
        if of_family:
            print(f"{letter}  {family}")
            for rule in of_family:
                print(f"  {rule.code}{' (preview)' if rule.preview else ''}  {rule.asserts}")
    return 0
