"""What a run of checks says: findings first, then what could not be decided, with a count of what passed.

A report can be gone through outcome by outcome, prints as a table, shows as one in a notebook, and becomes plain JSON.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator
from typing import Any

from kustom.checking.finding import Finding, NotChecked, NotRun, Outcome, Passed

__all__ = ["Report"]


@dataclasses.dataclass
class Report:
    """The outcomes of the checks of one part, or of several.

    Attributes:
        outcomes: All of them, in the order of their running.
        seed: With which they were run.
        seconds: How long they took.
    """

    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    seed: int = 0
    seconds: float = 0.0

    @property
    def findings(self) -> list[Finding]:
        """The faults that nobody expected."""
        return [o for o in self.outcomes if isinstance(o, Finding) and not o.expected_because]

    @property
    def expected(self) -> list[Finding]:
        """The faults that the part declares, with their reasons."""
        return [o for o in self.outcomes if isinstance(o, Finding) and o.expected_because]

    @property
    def not_checked(self) -> list[NotChecked]:
        """The checks that could not decide."""
        return [o for o in self.outcomes if isinstance(o, NotChecked)]

    @property
    def not_run(self) -> list[NotRun]:
        """The checks that wait on others."""
        return [o for o in self.outcomes if isinstance(o, NotRun)]

    @property
    def passed(self) -> list[Passed]:
        """The checks that found everything right."""
        return [o for o in self.outcomes if isinstance(o, Passed)]

    @property
    def passed_after_all(self) -> list[Passed]:
        """The checks that passed though the part expects them to fail."""
        return [o for o in self.passed if o.after_all]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def __bool__(self) -> bool:
        return self.ok

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self.outcomes)

    def __len__(self) -> int:
        return len(self.outcomes)

    def by_code(self, code: str) -> list[Outcome]:
        """The outcomes of one code."""
        return [o for o in self.outcomes if o.code == code]

    def __str__(self) -> str:
        lines = []
        for finding in self.findings:
            lines += [str(finding), *finding.details()]
        lines += [f"{f}  (expected: {f.expected_because})" for f in self.expected]
        lines += [str(p) for p in self.passed_after_all]
        lines += [str(o) for o in (*self.not_checked, *self.not_run)]
        return "\n".join([*lines, self.summary()])

    __repr__ = __str__

    def summary(self) -> str:
        """The counts, in one line."""
        counts = {
            "finding": len(self.findings),
            "expected": len(self.expected),
            "not checked": len(self.not_checked),
            "not run": len(self.not_run),
            "passed": len(self.passed),
        }
        parts = sorted({o.part for o in self.outcomes})
        named = parts[0] if len(parts) == 1 else f"{len(parts)} parts"
        counted = [
            f"{n} {name}{'s' if name == 'finding' and n != 1 else ''}" for name, n in counts.items() if n or name == "finding"
        ]
        return f"{named}: {', '.join(counted)}; seed {self.seed}"

    def _repr_html_(self) -> str:
        rows = []
        for outcome in sorted(self.outcomes, key=lambda o: (Finding, NotChecked, NotRun, Passed).index(type(o))):
            label, text = _row(outcome)
            cells = [outcome.part, outcome.code, getattr(outcome, "variant", ""), label, text]
            rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
        head = "<tr><th>part</th><th>code</th><th>variant</th><th></th><th></th></tr>"
        return f"<p>{html.escape(self.summary())}</p><table>{head}{''.join(rows)}</table>"

    def to_json(self) -> dict[str, Any]:
        """The outcomes as plain JSON, each with its `type`."""
        outcomes = [{"type": type(o).__name__, **dataclasses.asdict(o)} for o in self.outcomes]
        return {"outcomes": outcomes, "seed": self.seed, "seconds": self.seconds}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """The report that `to_json` was asked of."""
        types: dict[str, Any] = {each.__name__: each for each in (Finding, NotChecked, NotRun, Passed)}
        outcomes = []
        for entry in data["outcomes"]:
            fields = {name: tuple(x) if isinstance(x, list) else x for name, x in entry.items() if name != "type"}
            outcomes.append(types[entry["type"]](**fields))
        return cls(outcomes, data["seed"], data["seconds"])


def _row(outcome: Outcome) -> tuple[str, str]:
    if isinstance(outcome, Finding):
        return ("expected" if outcome.expected_because else "finding"), outcome.expected_because or outcome.message
    if isinstance(outcome, NotChecked):
        return "not checked", outcome.why
    if isinstance(outcome, NotRun):
        return "not run", f"waits on {', '.join(outcome.waits_on)}"
    return ("passed after all" if outcome.after_all else "passed"), outcome.after_all
