"""Keras's parts as data: which names a file may use, and in which place. Written by `scripts/keras_parts.py`.

It is data so that a file can be judged without importing Keras, and so that a name that Keras will export tomorrow is
unknown today, not allowed.
"""

from __future__ import annotations

import functools
import json
import re
from importlib import resources
from typing import Any

__all__ = ["DTYPES", "defined", "entry", "functions", "is_policy", "names", "versions"]

_FLOATS = "float16|float32|float64|bfloat16"
_NUMBERS = f"{_FLOATS}|float8_e4m3fn|float8_e5m2|u?int(4|8|16|32|64)|bool|complex64|complex128"
DTYPES = re.compile(_NUMBERS)
# A dtype, or a policy: mixed precision, and what a layer was quantized to from what.
_POLICY = re.compile(
    rf"({_NUMBERS}|string|mixed_(float16|bfloat16)|((int8|int4|float8)(/-?\d+)?|(gptq|awq)/\d+/-?\d+)_from_(mixed_)?({_FLOATS}))"
)


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(resources.files("kustom.saving").joinpath("parts.json").read_text(encoding="utf-8"))


def versions() -> list[str]:
    """The releases of Keras that the table was made from."""
    return _table()["keras"]


def entry(name: str) -> dict[str, Any] | None:
    """What is known of a name such as `keras.layers.Dense`; None where it is no part."""
    return _table()["parts"].get(name)


def defined(module: str, name: str) -> dict[str, Any] | None:
    """What is known of a class by where Keras defines it, such as `keras.src.layers.core.dense`; None where it is no part."""
    return _defined().get(f"{module}.{name}")


@functools.cache
def _defined() -> dict[str, dict[str, Any]]:
    parts = _table()["parts"].items()
    return {f"{home}.{each.get('also', name.rpartition('.')[2])}": each for name, each in parts for home in each.get("homes", ())}


@functools.cache
def names(slot: str) -> frozenset[str]:
    """The names that Keras takes as text in a place."""
    return frozenset(_table()["texts"].get(slot, ()))


@functools.cache
def functions(name: str) -> frozenset[str]:
    """The places that a function of Keras's has, by its bare name, as files name it that say `builtins`."""
    parts = _table()["parts"].items()
    found = [each["slots"] for full, each in parts if each["kind"] == "function" and full.rpartition(".")[2] == name]
    return frozenset(slot for slots in found for slot in slots)


def is_of_keras(module: str | None) -> bool:
    """Whether a module is Keras's."""
    return (module or "").partition(".")[0] == "keras"


def is_policy(text: str) -> bool:
    """Whether text is a dtype, or a dtype policy's name."""
    return _POLICY.fullmatch(text) is not None
