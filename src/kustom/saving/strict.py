"""JSON, read strictly: one meaning, for every reader.

Python's own reader takes the last of two equal keys where a scanner may have looked at the first, takes `NaN` and
`Infinity`, which are no JSON, and follows any depth until it dies. kustom's configs write a number that is not finite as
`{"class_name": "__float__", "config": {"value": "inf"}}`, so that nothing is lost here.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from kustom.errors import CorruptFileError
from kustom.saving.limits import Limits

__all__ = ["loads"]

_TEXT = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}")
_NOT_NESTING = re.compile(r"[^\[\]{}]+")
_DIGITS = 40


def loads(data: bytes, limits: Limits, *, file: str | None, part: str) -> dict[str, Any]:
    """The JSON object that `data` is.

    Args:
        data: UTF-8 text.
        limits: How long, deep and rich it may be.
        file: The archive's name, for messages.
        part: The member.

    Raises:
        CorruptFileError: It is no JSON, no object, or ambiguous.
        LimitError: It is larger than `limits`.
    """

    def refuse(message: str) -> NoReturn:
        raise CorruptFileError(f"{message}. The file is damaged or was made by hand; save the model again.", file=file, part=part)

    limits.hold("max_config_bytes", len(data), "its length in bytes", file=file, part=part)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        refuse(f"this is no UTF-8 text, from the byte {error.start:,} on")
    skeleton = _TEXT.sub("", text)
    values = skeleton.count(",") + skeleton.count(":") + skeleton.count("[") + skeleton.count("{")
    limits.hold("max_values", values, "the number of its values", file=file, part=part)
    limits.hold("max_depth", _depth(skeleton), "its depth", file=file, part=part)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) != len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            refuse(f"the key {twice[:100]!r} stands twice in one object")
        return made

    def constant(name: str) -> NoReturn:
        refuse(
            f"{name} is no JSON; a setting of one of Keras's own parts is not finite, probably. Give it a finite one, or leave it "
            "to a part of kustom's, whose config writes such numbers as text"
        )

    def integer(digits: str) -> int:
        if len(digits) > _DIGITS:
            refuse(f"a whole number of {len(digits):,} digits")
        return int(digits)

    def real(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            refuse(f"the number {digits[:40]} is larger than any float")
        return number

    try:
        made = json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_int=integer, parse_float=real)
    except json.JSONDecodeError as error:
        refuse(f"this is no JSON: {error.msg} in line {error.lineno}, column {error.colno}")
    if not isinstance(made, dict):
        refuse(f"a JSON object was expected, not {type(made).__name__}")
    if _SURROGATE.search(text) and not _is_text(made):
        refuse("half of a surrogate pair, which is no text")
    return made


def _depth(skeleton: str) -> int:
    depth = deepest = 0
    for mark in _NOT_NESTING.sub("", skeleton):
        depth += 1 if mark in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
