"""Each faulty part that was reported in public is found, under the code it belongs to."""

from __future__ import annotations

import pytest
from reported import REPORTED

import kustom

FEW = ("layers in nested lists", "flat targets", "its own variable")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FEW else pytest.mark.slow) for n in REPORTED])
def test_a_reported_part_is_found(name: str) -> None:
    make, codes = REPORTED[name]
    report = kustom.check(make(), on_fail=None, only=codes if name in FEW else None)
    assert set(codes) <= {finding.code for finding in report.findings}, report
