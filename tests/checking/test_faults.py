"""Every planted fault is found under its code, and every twin is clean of it: the checker's own test."""

from __future__ import annotations

import collections

import pytest
from faults import Pair, pairs

import kustom
from kustom.checking import rules
from kustom.checking.finding import Passed

ALL = pairs()
# One of each code by default, the others in the slow tests.
FIRST = {pair.code: pair.name for pair in reversed(ALL)}
MARKED = [pytest.param(p, id=p.name, marks=[] if FIRST[p.code] == p.name else pytest.mark.slow) for p in ALL]


@pytest.mark.parametrize("pair", MARKED)
def test_a_fault_is_found_under_its_code(pair: Pair):
    report = kustom.check(pair.faulty, only=pair.code, on_fail=None, **pair.given)
    assert {finding.code for finding in report.findings} == {pair.code}, report
    finding = report.findings[0]
    assert finding.message
    assert finding.why
    assert finding.mend


@pytest.mark.parametrize("pair", MARKED)
def test_its_twin_is_clean_of_it(pair: Pair):
    report = kustom.check(pair.twin, only=pair.code, on_fail=None, **pair.given)
    assert report.outcomes
    assert all(isinstance(outcome, Passed) for outcome in report), report


def test_each_code_has_three_faults_at_least():
    counted = collections.Counter(pair.code for pair in ALL)
    run = [code for code, rule in rules.load().items() if rule.where != "source"]
    assert {code: counted[code] for code in run if counted[code] < 3} == {}
