"""`kustom plot PART`: the picture of a part, written to a file."""

from __future__ import annotations

import argparse
import re

from kustom.errors import UsageError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("part", metavar="PART", help="package.module:Name(arguments), or file.py:Name")
    parser.add_argument("--output", metavar="FILE", help="a picture of any kind that Matplotlib writes; NAME.png by default")
    parser.add_argument("--setting", metavar="NAME=VALUES", help="a curve for each value: threshold=0.5,1,2")
    parser.add_argument("--domain", nargs=2, type=float, metavar=("LOW", "HIGH"), help="the range of the input")
    parser.add_argument("--no-findings", action="store_true", help="do not run the checks of numbers and gradients")


def run(arguments: argparse.Namespace) -> int:
    """Draw the picture.

    Raises:
        MissingLibraryError: Matplotlib is not installed.
        UsageError: There is no such part, or it has no such picture.
    """
    from kustom.checking.plot import plot
    from kustom.checking.targets import unit_of_expression

    if ":" not in arguments.part:
        raise UsageError(f"a part is named as package.module:Name(arguments) or file.py:Name, not {arguments.part!r}.")
    settings = _setting(arguments.setting) if arguments.setting else None
    domain = _domain(arguments.domain) if arguments.domain else None
    subject = unit_of_expression(arguments.part).subjects[0]
    figure = plot(subject.part, settings=settings, domain=domain, findings=not arguments.no_findings)
    output = arguments.output or re.sub(r"[^\w.]+", "_", subject.name) + ".png"
    try:
        figure.savefig(output, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"{output} cannot be written: {error}.") from error
    print(output)
    return 0


def _domain(numbers: list[float]) -> tuple[float, float]:
    if numbers[0] >= numbers[1]:
        raise UsageError(f"--domain is two numbers, the lower first, not {numbers[0]:g} {numbers[1]:g}.")
    return numbers[0], numbers[1]


def _setting(text: str) -> dict[str, list[float]]:
    name, equals, values = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--setting is NAME=VALUES, such as threshold=0.5,1,2, not {text!r}.")
    return {name: _numbers(values)}


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--setting takes numbers with commas between, not {text!r}.") from error
