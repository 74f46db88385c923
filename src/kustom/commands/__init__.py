"""The command line: `kustom check TARGET`, `kustom rule CODE`, …, one file a command.

A command's module has `add_arguments(parser)` and `run(arguments)`, which returns the exit status: 0, or 1 where it found
something; what is asked for in a way that there is not ends with 2 and one line. A module is imported only when its command is
the one that was asked for, so that none waits for what another needs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import kustom
from kustom.errors import KustomError

__all__ = ["main"]

_COMMANDS = {
    "check": "check the parts in files, folders, modules and notebooks",
    "inspect": "show what a model's file holds, and what speaks against loading it; nothing of it is run",
    "plot": "draw the value and the gradient of a part",
    "rule": "explain a rule: what it asserts, why, an example that fails, how to mend it",
    "rules": "list the rules",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The words of the command line without the program's name; those of the process by default.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="kustom", description="Custom Keras parts as dependable as the built-in ones.")
    parser.add_argument("--version", action="version", version=f"kustom {kustom.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, about in _COMMANDS.items():
        subparser = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        if name == asked:
            importlib.import_module(f"kustom.commands.{name}").add_arguments(subparser)
    try:
        arguments = parser.parse_args(words)
        return importlib.import_module(f"kustom.commands.{arguments.command}").run(arguments)
    except SystemExit as end:
        # How argparse ends after --help, and after what it does not understand.
        return int(end.code or 0)
    except KustomError as error:
        print(f"kustom: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        sys.stderr.close()
        return 0
