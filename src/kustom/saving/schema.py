"""What a manifest may say, entry by entry: held against it before anything of the file runs, and without Keras.

A manifest decides what is computed and compared, so that one that was changed must neither switch that off nor make it
fail with whatever Python says. Entries that are not known here are passed over; they are those of a newer kustom.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import kustom
from kustom.errors import FormatError
from kustom.saving.zipping import MANIFEST

__all__ = ["FORMAT", "check"]

# Raised where an older kustom would read something else than what is meant.
FORMAT = 1
_BYTES = {
    **{"bool": 1, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "int8": 1, "int16": 2, "int32": 4, "int64": 8},
    **{"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8},
}
_AXES = 32
# Twice the coarsest that is written, that of bfloat16; beyond it, nothing is compared any more.
_TOLERANCE = 0.1
_NUMBERS = 2.0**64
_SEEDS = 10**6


class _Other(Exception):
    """It says something else; the message is what."""


def check(manifest: Mapping[str, Any], file: str) -> None:
    """Refuse a manifest that a newer kustom wrote, or none did.

    Args:
        manifest: What stands in `kustom.json`.
        file: The file, for messages.

    Raises:
        FormatError: It is of a newer format, or of none; or an entry is not what kustom writes.
    """
    version = manifest.get("format")
    if type(version) is not int or version < 1:
        raise FormatError(
            f"its format is {version!r:.80}, where a whole number was expected; it was not written by kustom.",
            file=file,
            part=MANIFEST,
        )
    if version > FORMAT:
        versions = manifest.get("versions")
        wrote = versions.get("kustom") if isinstance(versions, dict) else None
        raise FormatError(
            f"it is of format {version}, and this kustom ({kustom.__version__}) reads up to {FORMAT}. Install the one that wrote "
            f"it: kustom {wrote if isinstance(wrote, str) else 'of a newer version'}.",
            file=file,
            part=MANIFEST,
        )
    for name, known in _ENTRIES.items():
        if name in manifest:
            try:
                known(manifest[name])
                if name == "recorded" and "backend" not in manifest.get("versions", {}):
                    _other("versions", manifest.get("versions"), "the name of a backend beside what was recorded")
            except _Other as other:
                raise FormatError(
                    f"its entry {name!r} is not what kustom writes: {other}. Get the file again.", file=file, part=MANIFEST
                ) from None


def _other(place: str, value: Any, expected: str) -> NoReturn:
    raise _Other(f"{place} is {value!r:.80}, where {expected} was expected")


def _text(value: Any, place: str) -> None:
    if not isinstance(value, str):
        _other(place, value, "text")


def _text_or_null(value: Any, place: str) -> None:
    if value is not None:
        _text(value, place)


def _list(value: Any, place: str, item: Callable[[Any, str], None]) -> None:
    if not isinstance(value, list):
        _other(place, value, "a list")
    for number, each in enumerate(value):
        item(each, f"{place}[{number}]")


def _texts(value: Any, place: str) -> None:
    _list(value, place, _text)


def _whole(value: Any, place: str, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        _other(place, value, f"a whole number from {least} to {most:,}")


def _number(value: Any, place: str, least: float, most: float) -> None:
    if type(value) not in (int, float) or not least <= value <= most:
        _other(place, value, f"a number from {least:g} to {most:g}")


def _object(
    value: Any, place: str, needed: Mapping[str, Callable[[Any, str], None]], more: Mapping[str, Callable[[Any, str], None]]
) -> None:
    if not isinstance(value, dict):
        _other(place, value, "an object")
    for key, known in {**needed, **more}.items():
        if key in value:
            known(value[key], f"{place}.{key}")
        elif key in needed:
            _other(place, value, f"one with {key!r}")


def _versions(value: Any) -> None:
    if not isinstance(value, dict):
        _other("it", value, "an object")
    for key, item in value.items():
        _text(item, key)


def _use(value: Any, place: str) -> None:
    _object(value, place, {"place": _text}, {"settings": lambda value, place: _object(value, place, {}, {})})


def _source(value: Any, place: str) -> None:
    if value is not None and not (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
        _other(place, value, "a SHA-256 in hexadecimal digits, or null")


def _part(value: Any, place: str) -> None:
    texts = dict.fromkeys(("module", "name", "distribution", "version"), _text_or_null)
    uses = {"uses": lambda value, place: _list(value, place, _use)}
    _object(value, place, {"registered_name": _text}, {**texts, **uses, "source": _source})


def _shape(value: Any, place: str) -> None:
    _list(value, place, lambda size, place: _whole(size, place, 0, 2**31 - 1))
    if len(value) > _AXES:
        _other(place, value, f"a shape of at most {_AXES} axes")


def _dtype(value: Any, place: str) -> None:
    if not isinstance(value, str) or value not in (*_BYTES, "string"):
        _other(place, value, "a dtype")


def _array(value: Any, place: str) -> None:
    """An array, with all that is said to be in it."""
    _object(value, place, {"shape": _shape, "dtype": _dtype}, {"data": _text, "text": _texts})
    size, dtype = math.prod(value["shape"]), value["dtype"]
    if dtype == "string":
        if len(value.get("text", ())) != size or "data" in value:
            _other(place, value, f"an array of {size:,} texts")
    elif len(value.get("data", "")) != -(-size * _BYTES[dtype] // 3) * 4 or "text" in value:
        _other(place, value, f"an array of {size:,} numbers in base64")


def _rule(value: Any, place: str) -> None:
    """What makes an array."""
    kinds: dict[str, Callable[[Any, str], None]] = {"shape": _shape, "dtype": _dtype}
    if "words" in value:
        _object(value, place, {**kinds, "words": _texts}, {})
        if not value["words"] or value["dtype"] != "string":
            _other(place, value, "words, and the dtype string")
        return

    def bound(number: Any, place: str) -> None:
        _number(number, place, -_NUMBERS, _NUMBERS)

    def seed(number: Any, place: str) -> None:
        _whole(number, place, 0, _SEEDS)

    _object(value, place, {**kinds, "low": bound, "high": bound, "seed": seed}, {})
    if value["low"] > value["high"] or value["dtype"] == "string" or type(value.get("whole", False)) is not bool:
        _other(place, value, "low and high of numbers, low below high")


def _input(value: Any, place: str) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or len(value) != 1:
        _other(place, value, "a list, a tuple, a dict or a leaf")
    kind, inner = next(iter(value.items()))
    if kind in ("list", "tuple"):
        _list(inner, f"{place}.{kind}", _input)
    elif kind == "dict":
        _object(inner, f"{place}.dict", {}, dict.fromkeys(inner if isinstance(inner, dict) else (), _input))
    elif kind != "leaf" or not isinstance(inner, dict):
        _other(place, value, "a list, a tuple, a dict or a leaf")
    else:
        (_array if "data" in inner or "text" in inner else _rule)(inner, f"{place}.leaf")


def _output(value: Any, place: str) -> None:
    _object(value, place, {"place": _text, "shape": _shape, "dtype": _text}, {"values": _array})
    if value.get("random", False) is not ("values" not in value):
        _other(place, value, "values, or that they are random")


def _measure(value: Any, place: str) -> None:
    _object(value, place, {"place": _text, "probe": _text, "values": _array}, {})
    values = value["values"]
    if values["dtype"] != "float64" or len(values["shape"]) != 1 or values["shape"][0] < 1:
        _other(f"{place}.values", values, "one float64, or several in a row")


def _recorded(value: Any) -> None:
    def tolerance(number: Any, place: str) -> None:
        _number(number, place, 0, _TOLERANCE)

    lists = {key: lambda value, place, item=item: _list(value, place, item) for key, item in _LISTS.items()}

    def losses(number: Any, place: str) -> None:
        _number(number, place, -sys.float_info.max, sys.float_info.max)

    more = {**lists, "input": _input, "nothing_since": _text_or_null, "losses": losses}
    _object(value, "it", {"tolerance": tolerance, "device": _text}, more)
    if ("input" in value) is not ("outputs" in value):
        _other("it", sorted(value), "an input and outputs, or neither")


_LISTS: dict[str, Callable[[Any, str], None]] = {"outputs": _output, "measures": _measure}
_ENTRIES: dict[str, Callable[[Any], None]] = {
    "versions": _versions,
    "parts": lambda value: _list(value, "it", _part),
    "types": lambda value: _object(value, "it", {}, {"tuples": _texts, "arrays": _texts}),
    "paths": lambda value: _texts(value, "it"),
    "recorded": _recorded,
}
