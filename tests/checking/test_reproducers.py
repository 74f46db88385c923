"""The lines that a finding gives to see it are lines to paste: they run, in a fresh program that has the part."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import pytest
from faults import Pair, pairs

import kustom

ALL = pairs()
# A few by default; the others run their checks once more.
FEW = ("C104", "S203", "T401", "N301", "G202", "M501", "C102")
FIRST = {pair.code: pair.name for pair in reversed(ALL)}
MARKED = [
    pytest.param(pair, id=pair.name, marks=[] if pair.code in FEW and FIRST[pair.code] == pair.name else pytest.mark.slow)
    for pair in ALL
]


@pytest.mark.parametrize("pair", MARKED)
def test_the_lines_of_a_finding_run(pair: Pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finding = kustom.check(pair.faulty, only=pair.code, on_fail=None, **pair.given).findings[0]
    if not finding.reproducer:
        return
    assert "..." not in finding.reproducer
    part = pair.faulty if hasattr(pair.faulty, "__name__") else type(pair.faulty)
    # A class inside of a function, and a part of the program itself, are "as defined above".
    namespace: dict[str, Any] = {} if "as defined above" not in finding.reproducer else {part.__name__: part}
    if "# part is the" in finding.reproducer:
        namespace["part"] = pair.faulty
    before = keras.config.dtype_policy()
    raised: Exception | None = None
    try:
        with warnings.catch_warnings():
            # A program that is pasted goes on after a warning.
            warnings.simplefilter("ignore")
            exec(compile(finding.reproducer, "<reproducer>", "exec"), namespace)
    except Exception as error:
        # A part that raises is shown by its raising.
        raised = error
    finally:
        keras.config.set_dtype_policy(before)
    assert not isinstance(raised, SyntaxError), finding.reproducer
    # A name that is not defined is one that the part itself asks for.
    assert not isinstance(raised, NameError) or f"{raised.name!r}" in finding.message, finding.reproducer
    said = f"{finding.message} {finding.got}"
    assert raised is None or type(raised).__name__ in said or str(raised)[:40] in said, f"{raised!r} in\n{finding.reproducer}"
