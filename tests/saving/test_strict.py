"""JSON with one meaning."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kustom import errors
from kustom.saving import strict
from kustom.saving.limits import DEFAULT, Limits


def loads(text: str | bytes, limits: Limits = DEFAULT):
    data = text.encode() if isinstance(text, str) else text
    return strict.loads(data, limits, file="a.keras", part="config.json")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_what_json_says_is_what_is_read(value):
    assert loads(json.dumps(value)) == value
    assert loads(json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"b": {"a": 1, "\\u0061": 2}}', "the key 'a' stands twice"),
        ('{"a": NaN}', "NaN is no JSON"),
        ('{"a": -Infinity}', "-Infinity is no JSON"),
        ('{"a": 1e999}', "larger than any float"),
        ('{"a": ' + "1" * 41 + "}", "a whole number of 41 digits"),
        ("[1]", "a JSON object was expected, not list"),
        ("{", "no JSON: .* in line 1"),
        ("", "no JSON"),
        ('{"a": 1} {}', "Extra data"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a": "\xff"}', "no UTF-8 text, from the byte 7 on"),
        ('{"a": 1}'.encode("utf-16"), "no UTF-8 text"),
        ('\ufeff{"a": 1}', "no JSON"),
        ("{'a': 1}", "no JSON"),
        ('{"a": "\n"}', "no JSON: Invalid control character"),
    ],
)
def test_what_two_readers_might_read_differently_is_refused(text, message):
    with pytest.raises(errors.CorruptFileError, match=message) as caught:
        loads(text)
    assert str(caught.value).startswith("a.keras: config.json: ")
    assert caught.value.part == "config.json"


@pytest.mark.parametrize(
    ("text", "limits", "name"),
    [
        ('{"a": ' + "[" * 129 + "]" * 129 + "}", DEFAULT, "max_depth"),
        ('{"a": ' + "[" * 10**6, DEFAULT, "max_depth"),
        ('{"a": [1, 2, 3]}', Limits(max_values=3), "max_values"),
        ('{"a": 1}' + " " * 100, Limits(max_config_bytes=50), "max_config_bytes"),
    ],
)
def test_what_is_larger_than_its_limit_names_it(text, limits, name):
    with pytest.raises(errors.LimitError, match=f"{name}="):
        loads(text, limits)


def test_marks_within_text_count_for_nothing():
    value = {"a": "[" * 1000 + '"' + "\\" + "," * 10}
    assert loads(json.dumps(value), Limits(max_depth=1, max_values=3)) == value
