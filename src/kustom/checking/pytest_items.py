"""`pytest --kustom-check PACKAGE`: the battery's items, beside whatever else pytest has collected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kustom.checking.finding import Outcome
from kustom.checking.places import place_in
from kustom.checking.pytest_plugin import Check, different, judge
from kustom.checking.rules import load
from kustom.checking.runner import checks_of
from kustom.checking.settings import read_settings
from kustom.checking.targets import Unit, units
from kustom.errors import ConformanceError, UsageError

__all__ = ["items_of"]


def items_of(session: pytest.Session, targets: list[str]) -> list[pytest.Item]:
    """The tests of `--kustom-check`.

    Raises:
        UsageError: A target is none, or pyproject.toml says what there is not.
    """
    settings = read_settings(session.config.rootpath)
    chosen: dict[str, Any] = {"only": list(settings.select) or None, "skip": list(settings.ignore), "preview": settings.preview}
    try:
        loaded = list(units(targets, exclude=settings.exclude, seed=settings.seed))
    except UsageError as error:
        raise pytest.UsageError(f"--kustom-check: {error}") from error
    found: list[pytest.Item] = []
    for unit in loaded:
        collector = _Parts.from_parent(session, name=f"kustom-check {unit.name}", nodeid=f"kustom-check {unit.name}")
        collector.unit, collector.chosen = unit, chosen
        found += collector.collect()
    return found


class _Parts(pytest.Collector):
    """What was found in one file."""

    unit: Unit
    chosen: dict[str, Any]

    def collect(self) -> list[pytest.Item]:
        return list(self._items())

    def _items(self) -> Iterator[pytest.Item]:
        codes = {rule.code for rule in load().values() if rule.family in ("U", "E")}
        by_code: dict[str, list[Outcome]] = {}
        for outcome in self.unit.outcomes:
            by_code.setdefault(outcome.code, []).append(outcome)
        for code in sorted(codes & by_code.keys()):
            yield _Item.of(self, f"{code}-{load()[code].name}", lambda code=code: judge(by_code[code], 0), by_code[code][0])
        subjects = self.unit.subjects
        for subject, name in zip(subjects, different([s.name for s in subjects]), strict=True):
            for rule in checks_of(subject, self.chosen["only"], [*self.chosen["skip"], "U"], preview=self.chosen["preview"]):
                item = _Item.of(self, f"{name}-{rule.code}-{rule.name}", Check(subject, rule), subject)
                reason = subject.expected_failures.get(rule.code)
                if reason:
                    item.add_marker(pytest.mark.xfail(reason=reason, strict=False, raises=ConformanceError))
                yield item


class _Item(pytest.Item):
    """One check of one part."""

    check: Callable[[], None]
    place: str

    @classmethod
    def of(cls, parent: _Parts, name: str, check: Callable[[], None], placed: Any) -> _Item:
        item = cls.from_parent(parent, name=name)
        item.check, item.place = check, getattr(placed, "place", "")
        return item

    def runtest(self) -> None:
        self.check()

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        if isinstance(excinfo.value, ConformanceError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        place = place_in(self.place)
        return place.file or self.path, (place.line - 1) if place.line else None, self.name
