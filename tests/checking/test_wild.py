"""docs/found-in-the-wild.md: its reproducers show what they say, where the package is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

import keras
import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "found-in-the-wild.md"
ENTRY = re.compile(
    r"^### (?P<title>.+?)$.*?^```py\n(?P<code>.*?)^```$.*?^```text\n(?P<error>\w+): (?P<message>.*?)\n```$", re.M | re.S
)


def entries():
    if not PAGE.exists():
        return []
    text = PAGE.read_text(encoding="utf-8")
    found = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        package, version = section.partition("\n")[0].split()
        found += [
            pytest.param(package, version, *m.group("code", "error", "message"), id=m["title"]) for m in ENTRY.finditer(section)
        ]
    return found


def test_the_page_has_entries_each_with_its_reproducer():
    if not PAGE.exists():
        pytest.skip("the wheel is tested away from its sources")
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("\n### ") == len(entries()) >= 3


@pytest.mark.parametrize(("package", "version", "code", "error", "message"), entries())
def test_a_reproducer_shows_what_the_page_says(package, version, code, error, message):
    if importlib.util.find_spec(package.replace("-", "_")) is None or importlib.metadata.version(package) != version:
        pytest.skip(f"{package} {version} is not installed")
    keras.utils.clear_session()
    with pytest.raises(Exception, match=re.escape(message)) as caught:
        exec(compile(code, "reproducer", "exec"), {})
    assert error in {type(caught.value).__name__}
