"""Every planted fault is found under its code, and every twin is clean of it: the checker's own test."""

from __future__ import annotations

import collections

import pytest
from faults import Pair, pairs

import kustom
from kustom.checking import rules
from kustom.checking.finding import Passed

ALL = pairs()
# One of each code by default, the others in the slow tests; so are those of codes that start a process for each backend.
FIRST = {pair.code: pair.name for pair in reversed(ALL) if rules.load()[pair.code].where != "every backend"}
MARKED = [pytest.param(p, id=p.name, marks=[] if FIRST.get(p.code) == p.name else pytest.mark.slow) for p in ALL]


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
    # What is read from the source, and cells and files that fail, have tests of their own.
    run = [code for code, rule in rules.load().items() if rule.where != "source" and rule.family != "E"]
    assert {code: counted[code] for code in run if counted[code] < 3} == {}
