"""Findings that are not counted: those of old, in a file, and those that a comment exempts with its reason.

A finding of old is known by its code, file, part and circumstances, and by how many there are of it, not by its line, which
moves. So a file of them is only ever to shrink: what is not found any more is said.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import linecache
import re
from pathlib import Path

from kustom.checking.cells import read_notebook
from kustom.checking.finding import Finding, Outcome
from kustom.checking.places import Place, place_in, relative
from kustom.checking.report import Report
from kustom.errors import UsageError

__all__ = ["exempted", "read_baseline", "with_baseline", "write_baseline"]

_COMMENT = re.compile(r"#\s*kustom:\s*ignore\[(?P<codes>[A-Z0-9,\s]+)\](?P<reason>[^#]*)")
Key = tuple[str, str, str, str]


def write_baseline(report: Report, path: str | Path) -> int:
    """Write the findings of a report to a file; returns how many.

    Args:
        report: The report.
        path: The file; a baseline that stands there is replaced.
    """
    counts = collections.Counter(_key(finding, Path(path)) for finding in report.findings)
    entries = [dict(zip(("code", "file", "part", "variant"), key, strict=True), count=n) for key, n in sorted(counts.items())]
    Path(path).write_text(json.dumps({"version": 1, "findings": entries}, indent=1) + "\n", encoding="utf-8")
    return len(report.findings)


def read_baseline(path: str | Path) -> collections.Counter[Key]:
    """The findings of old in a file, with how many there are of each.

    Raises:
        UsageError: There is no such file, or it is no baseline.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["version"] != 1:
            raise UsageError(f"{path} is a baseline of version {content['version']}; this kustom reads 1. Write it anew.")
        entries = [(entry["code"], entry["file"], entry["part"], entry["variant"], entry["count"]) for entry in content["findings"]]
    except OSError as error:
        raise UsageError(f"there is no baseline {path}; make one: --write-baseline {path}.") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is no baseline: {type(error).__name__}: {error}.") from error
    return collections.Counter({(code, file, part, variant): count for code, file, part, variant, count in entries})


def with_baseline(report: Report, path: str | Path) -> tuple[Report, list[str]]:
    """A report in which the findings of old are expected; and which of them are found no more.

    Raises:
        UsageError: There is no such file, or it is no baseline.
    """
    left = read_baseline(path)
    outcomes: list[Outcome] = []
    for outcome in report.outcomes:
        if isinstance(outcome, Finding) and not outcome.expected_because and left[_key(outcome, Path(path))] > 0:
            left[_key(outcome, Path(path))] -= 1
            outcome = dataclasses.replace(outcome, expected_because=f"in the baseline {Path(path).name}")
        outcomes.append(outcome)
    gone = [
        f"{file} {part}  {code}{f' [{variant}]' if variant else ''}" for (code, file, part, variant), n in left.items() if n > 0
    ]
    return Report(outcomes, report.seed, report.seconds), gone


def _key(finding: Finding, baseline: Path) -> Key:
    file = relative(place_in(finding.place).file, str(baseline.resolve().parent)) if finding.place else ""
    return finding.code, file, finding.part, finding.variant


def exempted(report: Report) -> tuple[Report, list[str]]:
    """A report in which the findings that a comment exempts are expected; and what is wrong with such comments.

    `# kustom: ignore[G202] the argument is never 0` counts on the line of the finding, on that of its part, and on a line of
    its own above either. Without a reason it does not count.
    """
    outcomes: list[Outcome] = []
    complaints: list[str] = []
    for outcome in report.outcomes:
        if isinstance(outcome, Finding) and outcome.place and not outcome.expected_because:
            reason, where = _reason(outcome)
            if where and not reason:
                complaint = f"{where} exempts {outcome.code} without a reason: # kustom: ignore[{outcome.code}] why"
                complaints += [] if complaint in complaints else [complaint]
            elif reason:
                outcome = dataclasses.replace(outcome, expected_because=reason)
        outcomes.append(outcome)
    return Report(outcomes, report.seed, report.seconds), complaints


def _reason(finding: Finding) -> tuple[str, str]:
    """The reason of the comment that exempts a finding, and where it stands; both empty where there is none."""
    place = place_in(finding.place)
    lines = _lines(place)
    for number in _candidates(lines, place.line or 1):
        found = _COMMENT.search(lines[number - 1])
        codes = [code.strip() for code in found["codes"].split(",")] if found else []
        if found and any(code and finding.code.startswith(code) for code in codes):
            return found["reason"].strip(), str(dataclasses.replace(place, line=number))
    return "", ""


def _candidates(lines: list[str], line: int) -> list[int]:
    """The lines whose comments count for one line: itself, those of comments above it, and the same of the definition around it."""
    if not 1 <= line <= len(lines):
        return []
    found = [line, *_comments_above(lines, line)]
    # A part may begin with its decorators.
    below = line
    while below < len(lines) and lines[below - 1].lstrip().startswith("@"):
        below += 1
        found.append(below)
    indent = _indent(lines[line - 1])
    for number in range(line - 1, 0, -1):
        text = lines[number - 1]
        if text.strip() and _indent(text) < indent:
            indent = _indent(text)
            if text.lstrip().startswith(("def ", "class ", "async def ")):
                found += [number, *_comments_above(lines, number)]
    return found


def _comments_above(lines: list[str], line: int) -> list[int]:
    found = []
    while line > 1 and lines[line - 2].lstrip().startswith(("#", "@")):
        line -= 1
        found.append(line)
    return found


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())


def _lines(place: Place) -> list[str]:
    if place.cell is None:
        linecache.checkcache(place.file)
        return linecache.getlines(place.file)
    return _cells(place.file)[place.cell - 1]


@functools.cache
def _cells(file: str) -> list[list[str]]:
    return [cell.text.split("\n") for cell in read_notebook(file).cells]
