"""`kustom inspect FILE`: what a model's file holds, as tables or as JSON; nothing of it is run or imported."""

from __future__ import annotations

import argparse
import json
import sys

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("file", metavar="FILE", help="a .keras file")
    parser.add_argument("--json", action="store_true", help="as JSON, with all settings")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="MODULE", help="a module that loading would be told to trust"
    )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        type=_limit,
        metavar="NAME=NUMBER",
        help="a limit that loading would be given, as its message says it, such as max_bytes=1_000_000",
    )


def _limit(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    return name, int(number)


def run(arguments: argparse.Namespace) -> int:
    """Print what is in the file.

    Returns:
        1 where something speaks against loading it, else 0; 2 where it cannot be opened.
    """
    from kustom.saving.inspecting import inspect

    try:
        found = inspect(arguments.file, trust=arguments.trust, **dict(arguments.limit))
    except OSError as error:
        print(f"kustom: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print(found.text(color=sys.stdout.isatty()))
    return 1 if found.anomalies else 0
