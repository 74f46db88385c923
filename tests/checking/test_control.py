"""No false alarm: what Keras ships passes, but for the bugs of Keras that the docs list."""

from __future__ import annotations

import control
import keras
import pytest

import kustom
from kustom.checking.finding import NotChecked

MARKED = [pytest.param(name, marks=[] if name in control.FIXED else pytest.mark.slow) for name in control.CONTROLS]


@pytest.mark.parametrize("name", MARKED)
def test_no_fault_is_found_in_a_part_of_keras(name: str, request: pytest.FixtureRequest) -> None:
    part = control.CONTROLS[name]
    allowed = control.EXCEPTIONS.get(name, {})
    skip = None
    if request.config.option.markexpr:
        # Left to `make test-all`: other processes, for two of which each part would wait, and where each operation is
        # compiled, hundreds of gradients of gradients.
        skip = ["C103", "S201", "B601", "B602", *(["G204"] if keras.backend.backend() != "torch" else [])]
    report = kustom.check(part.make(), skip=skip, on_fail=None, **part.given)
    assert not [finding for finding in report.findings if finding.code not in allowed], report
    unfinished = [o for o in report if isinstance(o, NotChecked) and o.unfinished and o.code not in allowed]
    assert not unfinished, "\n".join(map(str, unfinished))


def test_the_group_is_large_and_its_exceptions_have_reasons() -> None:
    assert len(control.CONTROLS) >= 230
    assert len(control.FIXED) == 30
    assert set(control.FIXED) <= set(control.CONTROLS)
    assert all(reason for reasons in control.EXCEPTIONS.values() for reason in reasons.values())
