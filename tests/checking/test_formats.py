"""A report in the forms that others read: SARIF, JUnit, GitHub, JSON."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest

from kustom.checking import formats
from kustom.checking.finding import Finding, NotChecked, NotRun, Passed
from kustom.checking.places import Place, place_in
from kustom.checking.report import Report

REPORT = Report(
    [
        Finding(
            code="U003",
            claim="attributes_exist",
            part="only_positive",
            place="parts.py:12",
            message="tf has no attribute 'zeors_like'",
            got="tf.zeors_like",
            expected="tf.zeros_like",
            mend="write tf.zeros_like",
            reproducer="import tensorflow as tf\ntf.zeors_like",
        ),
        Finding(
            code="N301",
            claim="finite",
            part="soft",
            place="n.ipynb:cell 3:2",
            message="inf, 100%\x00 <b>",
            variant="jax",
            mend="a\nb",
        ),
        Finding(code="N301", claim="finite", part="old", place="", message="inf", expected_because="its inputs are small"),
        NotChecked("B601", "soft", "it has no inputs"),
        NotRun("N301", "other", ("B601",)),
        Passed("B601", "other", "torch"),
    ],
    seconds=1.5,
)


def test_sarif_has_what_its_schema_asks_for():
    log = json.loads(formats.sarif(REPORT))
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "kustom"
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(ids) == len(set(ids))
    for rule in driver["rules"]:
        assert {"id", "name", "shortDescription", "fullDescription", "help"} <= rule.keys()
        assert rule["shortDescription"]["text"]
    assert len(run["results"]) == 3
    for result in run["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["message"]["text"]
        assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
    first, second, third = run["results"]
    assert first["locations"] == [{"physicalLocation": {"artifactLocation": {"uri": "parts.py"}, "region": {"startLine": 12}}}]
    assert second["message"]["text"].startswith("cell 3: soft: inf")
    assert second["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": "n.ipynb"}
    assert "locations" not in third
    assert third["suppressions"] == [{"kind": "inSource", "justification": "its inputs are small"}]


def test_a_fingerprint_stays_where_a_line_moves():
    def fingerprint(**changed):
        finding = Finding(**{"code": "N301", "claim": "", "part": "f", "place": "a.py:1", "message": "", **changed})
        return json.loads(formats.sarif(Report([finding])))["runs"][0]["results"][0]["partialFingerprints"]

    assert fingerprint() == fingerprint(place="a.py:9", message="another number")
    assert len({str(fingerprint(**c)) for c in ({}, {"part": "g"}, {"place": "b.py:1"}, {"variant": "jax"}, {"code": "B601"})}) == 5


def test_junit_counts_what_it_shows():
    root = ElementTree.fromstring(formats.junit(REPORT).encode())
    suites = {suite.get("name"): suite for suite in root}
    assert set(suites) == {"only_positive", "soft", "old", "other"}
    for suite in suites.values():
        assert int(suite.get("tests")) == len(suite)
        assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))
        assert int(suite.get("skipped")) == len(suite.findall("testcase/skipped"))
    (case,) = suites["only_positive"]
    assert (case.get("file"), case.get("line")) == ("parts.py", "12")
    assert "expected: tf.zeros_like" in case.find("failure").text
    assert suites["soft"].find("testcase/failure").get("message") == "inf, 100% <b>"
    assert [skip.get("message") for skip in root.iter("skipped")] == [
        "not checked: it has no inputs",
        "expected: its inputs are small",
        "not run: waits on B601",
    ]


def test_github_annotates_the_line_and_escapes():
    lines = formats.github(REPORT).splitlines()
    assert lines[0] == (
        "::error file=parts.py,line=12,title=U003 only_positive::tf has no attribute 'zeors_like'%0Awrite tf.zeros_like"
    )
    assert lines[1].startswith("::error file=n.ipynb,line=2,title=N301 soft::cell 3: inf, 100%25")
    assert lines[1].endswith("%0Aa%0Ab")
    assert len(lines) == 3


def test_json_comes_back_as_the_report():
    data = json.loads(formats.json_text(REPORT))
    assert data["ok"] is False
    assert Report.from_json(data).outcomes == REPORT.outcomes


@pytest.mark.parametrize("text", ["a.py:3", "a b/c.ipynb:cell 12:3", "C:\\parts.py:4", "a.py", "", "n.ipynb:cell 2"])
def test_a_place_is_written_as_it_was_read(text):
    assert str(place_in(text)) == text


def test_a_place_knows_its_cell():
    assert place_in("n.ipynb:cell 12:3") == Place("n.ipynb", 3, 12)
