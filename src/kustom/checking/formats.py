"""A report as text for others to read: a table for the terminal, JSON, SARIF, JUnit's XML, GitHub's annotations.

Paths are relative to the folder that the command runs in, where they lie inside of it, as code hosts want them.
"""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from typing import Any

import kustom
from kustom.checking.finding import Finding, NotChecked, NotRun, Outcome, Passed
from kustom.checking.places import place_in, relative
from kustom.checking.report import Report
from kustom.checking.rules import load

__all__ = ["FORMATS", "github", "json_text", "junit", "sarif", "table"]

_HOME = "https://pypi.org/project/kustom/"


def table(report: Report, *, details: bool = False, notes: Iterable[str] = ()) -> str:
    """For the terminal: a line a finding, with how to mend it; what could not be checked; the counts.

    Args:
        report: The report.
        details: Whether to show inputs, values, reasons and reproducers, and what was not run.
        notes: Lines to show before the counts.
    """
    lines: list[str] = []
    findings = sorted(report.findings, key=_in_order)
    places = [_shown(finding.place) for finding in findings]
    wide = min(max((len(place) for place in places), default=0), 60)
    named = min(max((len(finding.part) for finding in findings), default=0), 40)
    for finding, place in zip(findings, places, strict=True):
        circumstances = f" [{finding.variant}]" if finding.variant else ""
        lines.append(f"{place:<{wide}}  {finding.part:<{named}}  {finding.code}{circumstances}  {finding.message}")
        lines += finding.details() if details else [f"    {finding.mend}"] if finding.mend else []
    for finding in report.expected if details else ():
        lines.append(f"{_shown(finding.place)}  {finding.part}  {finding.code}  expected: {finding.expected_because}")
    lines += [f"{o}; the declaration can go" for o in report.passed_after_all]
    lines += [str(outcome) for outcome in report.not_checked]
    lines += [str(outcome) for outcome in report.not_run] if details else []
    lines += notes
    return "\n".join([*lines, f"{report.summary()}; {report.seconds:.1f} s"]) + "\n"


def _in_order(finding: Finding) -> tuple[Any, ...]:
    place = place_in(finding.place)
    return place.file, place.cell or 0, place.line or 0, finding.code


def _shown(place: str) -> str:
    found = place_in(place)
    return place.replace(found.file, relative(found.file), 1) if found.file else place


def json_text(report: Report) -> str:
    """The report's own JSON, with whether all is right."""
    return json.dumps({"version": 1, "ok": report.ok, **report.to_json()}, indent=1) + "\n"


def sarif(report: Report) -> str:
    """SARIF 2.1.0, which code hosts show beside the lines; what is expected is suppressed with its reason."""
    rules = load()
    codes = list(rules)
    described = [
        {
            "id": code,
            "name": "".join(word.capitalize() for word in rules[code].name.split("_")),
            "shortDescription": {"text": rules[code].asserts},
            "fullDescription": {"text": rules[code].why},
            "help": {"text": f"{rules[code].mend}\n\nAn example that fails:\n\n{rules[code].example}"},
            "defaultConfiguration": {"level": "error"},
        }
        for code in codes
    ]
    findings = [outcome for outcome in report.outcomes if isinstance(outcome, Finding)]
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "kustom", "version": kustom.__version__, "informationUri": _HOME, "rules": described}},
                "columnKind": "unicodeCodePoints",
                "results": [_result(finding, codes) for finding in findings],
            }
        ],
    }
    return json.dumps(log, indent=1) + "\n"


def _result(finding: Finding, codes: list[str]) -> dict[str, Any]:
    place = place_in(finding.place)
    in_cell = f"cell {place.cell}: " if place.cell is not None else ""
    mend = f" {finding.mend}" if finding.mend else ""
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": codes.index(finding.code),
        "level": "error",
        "message": {"text": f"{in_cell}{finding.part}: {finding.message}.{mend}"},
        "partialFingerprints": {"kustom/v1": _fingerprint(finding)},
    }
    if place.file:
        region = {"region": {"startLine": place.line or 1}}
        uri = relative(place.file).replace("\\", "/")
        result["locations"] = [{"physicalLocation": {"artifactLocation": {"uri": uri}, **region}}]
    if finding.expected_because:
        result["suppressions"] = [{"kind": "inSource", "justification": finding.expected_because}]
    return result


def _fingerprint(finding: Finding) -> str:
    """The same for the same fault, wherever its line has moved."""
    parts = (finding.code, relative(place_in(finding.place).file), finding.part, finding.variant)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def github(report: Report) -> str:
    """Annotations of a run of GitHub Actions."""
    lines = []
    for finding in report.findings:
        place = place_in(finding.place)
        where = f"file={_property(relative(place.file))},line={place.line or 1}," if place.file else ""
        cell = f"cell {place.cell}: " if place.cell is not None else ""
        title = _property(f"{finding.code} {finding.part}")
        lines.append(
            f"::error {where}title={title}::{_data(cell + finding.message + (chr(10) + finding.mend if finding.mend else ''))}"
        )
    return "".join(line + "\n" for line in [*lines, report.summary()])


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def junit(report: Report) -> str:
    """JUnit's XML: a suite a part, a case a check and its circumstances."""
    root = ElementTree.Element("testsuites", name="kustom check", time=f"{report.seconds:.3f}")
    parts: dict[str, list[Outcome]] = {}
    for outcome in report.outcomes:
        parts.setdefault(outcome.part, []).append(outcome)
    for part, outcomes in parts.items():
        failures = [o for o in outcomes if isinstance(o, Finding) and not o.expected_because]
        skipped = [o for o in outcomes if not isinstance(o, Passed) and o not in failures]
        counts = {"tests": len(outcomes), "failures": len(failures), "errors": 0, "skipped": len(skipped)}
        suite = ElementTree.SubElement(root, "testsuite", {"name": part, **{k: str(v) for k, v in counts.items()}})
        for outcome in outcomes:
            _case(suite, outcome)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, outcome: Outcome) -> None:
    variant = getattr(outcome, "variant", "")
    claim = load()[outcome.code].name
    name = f"{outcome.code} {claim}{f' [{variant}]' if variant else ''}"
    case = ElementTree.SubElement(suite, "testcase", classname=outcome.part, name=name)
    if isinstance(outcome, Finding) and not outcome.expected_because:
        place = place_in(outcome.place)
        if place.file:
            case.set("file", relative(place.file))
            case.set("line", str(place.line or 1))
        failure = ElementTree.SubElement(case, "failure", message=_legal(outcome.message), type=outcome.code)
        failure.text = _legal("\n".join([_shown(outcome.place), *outcome.details()]))
    elif isinstance(outcome, Finding):
        ElementTree.SubElement(case, "skipped", message=_legal(f"expected: {outcome.expected_because}"))
    elif isinstance(outcome, NotChecked):
        ElementTree.SubElement(case, "skipped", message=_legal(f"not checked: {outcome.why}"))
    elif isinstance(outcome, NotRun):
        ElementTree.SubElement(case, "skipped", message=f"not run: waits on {', '.join(outcome.waits_on)}")


def _legal(text: str) -> str:
    """Without the control characters that XML has no place for."""
    return "".join(c for c in text if c in "\t\n\r" or ord(c) >= 32)


FORMATS: dict[str, Callable[[Report], str]] = {"json": json_text, "sarif": sarif, "github": github, "junit": junit}
