"""What JSON has no form for, and configs mark: arrays, tensors, slices, bytes, Keras's as well as kustom's own.

An array's dtype and shape are numbers in a file like any others: `S1000000000` would be a gigabyte an entry. Here they must
be what the values that stand there need.
"""

from __future__ import annotations

import math
import re
from typing import Any

from kustom.errors import CorruptFileError, FileError, UnsafeFileError
from kustom.saving import table
from kustom.saving.limits import Limits

__all__ = ["NESTED", "fault"]

Fault = tuple[type[FileError], str] | None

# The marks in which other values stand, and under which keys.
NESTED = {"__slice__": ("start", "stop", "step"), "__tuple__": ("value",), "__dict__": ("value",)}
_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "__keras_tensor__": ({"shape", "dtype", "keras_history"}, set()),
    "__tensor__": ({"value", "dtype"}, set()),
    "__numpy__": ({"value", "dtype"}, {"shape"}),
    "__bytes__": ({"value"}, set()),
    "__slice__": ({"start", "stop", "step"}, set()),
    "__ellipsis__": (set(), set()),
    "__float__": ({"value"}, set()),
    "__tuple__": ({"value"}, set()),
    "__dict__": ({"value"}, set()),
    "__hex__": ({"value"}, set()),
}
_KUSTOMS = {"__float__", "__tuple__", "__dict__", "__hex__"}
_NOT_FINITE = {"inf", "-inf", "nan"}
_TEXT = re.compile(r"[<>=|]?U(\d{1,6})")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")


def fault(value: dict[str, Any], name: str, slot: str, limits: Limits) -> Fault:
    """What is wrong with a mark, or with its standing in a slot; None where nothing is."""
    if name == "__lambda__":
        return (
            UnsafeFileError,
            "a lambda, whose Python code stands in the file; make it a function of a module, decorated with kustom",
        )
    if name == "__typespec__":
        return UnsafeFileError, "a type of TensorFlow's, which no model needs"
    if name not in _KEYS or (name in _KUSTOMS and slot != "any") or (name == "__keras_tensor__" and slot != "node"):
        return UnsafeFileError, f"{name[:80]} stands where nobody reads it"
    needed, more = _KEYS[name]
    config = value.get("config")
    if not isinstance(config, dict) or not needed <= config.keys() <= needed | more or value.keys() != {"class_name", "config"}:
        return CorruptFileError, f"{name} is not written as it should be"
    check = _CHECKS.get(name)
    return check(config, limits) if check is not None else None


def _keras_tensor(config: dict[str, Any], limits: Limits) -> Fault:
    shape, history = config["shape"], config["keras_history"]
    if not isinstance(shape, list) or not all(n is None or (type(n) is int and n >= 0) for n in shape):
        return CorruptFileError, f"a symbolic tensor of the shape {shape!r:.80}"
    if math.prod(n for n in shape if n) > limits.max_size or len(shape) > 32:
        return CorruptFileError, f"a symbolic tensor of the shape {shape!r:.80}, which max_size does not allow"
    if not isinstance(config["dtype"], str) or not table.is_policy(config["dtype"]):
        return CorruptFileError, f"a symbolic tensor of the dtype {config['dtype']!r:.80}"
    fits = isinstance(history, list) and len(history) == 3 and isinstance(history[0], str)
    if not fits or not all(type(n) is int and 0 <= n < 2**31 for n in history[1:]):
        return CorruptFileError, f"a symbolic tensor from {history!r:.80}"
    return None


def _array(config: dict[str, Any], limits: Limits) -> Fault:
    dtype, told = config["dtype"], config.get("shape")
    try:
        shape, leaves = _shape(config["value"])
    except ValueError:
        return CorruptFileError, "an array whose rows are not equally long"
    text = _TEXT.fullmatch(dtype) if isinstance(dtype, str) else None
    if not isinstance(dtype, str) or not (text or dtype == "string" or table.DTYPES.fullmatch(dtype)):
        return UnsafeFileError, f"an array of the dtype {dtype!r:.80}, where numbers were expected"
    texts = [leaf for leaf in leaves if isinstance(leaf, str)]
    if text or dtype == "string":
        if len(texts) != len(leaves):
            return CorruptFileError, "an array of text that holds something else"
        if text and int(text[1]) * 4 * len(leaves) > limits.max_config_bytes:
            return UnsafeFileError, f"an array of {len(leaves):,} texts with the dtype {dtype}, far larger than they are"
    elif not all(isinstance(leaf, bool | int | float) or (leaf in _NOT_FINITE and "int" not in dtype) for leaf in leaves):
        return CorruptFileError, f"an array of {dtype} that holds something else"
    elif any(type(leaf) is int and not -(2**63) <= leaf < 2**64 for leaf in leaves):
        return CorruptFileError, f"an array of {dtype} with a number that does not fit"
    if told is not None:
        whole = isinstance(told, list) and len(told) <= 32 and all(type(n) is int and 0 <= n < 2**48 for n in told)
        if not whole or math.prod(told) != len(leaves):
            return CorruptFileError, f"an array of {len(leaves):,} values that should have the shape {told!r:.80}"
    return None if len(shape) <= 32 else (CorruptFileError, "an array of more than 32 axes")


def _shape(value: Any) -> tuple[list[int], list[Any]]:
    """The shape of nested lists, and what stands in them.

    Raises:
        ValueError: They are not equally long.
    """
    shape, level = [], [value]
    while level and isinstance(level[0], list):
        lengths = {len(item) if isinstance(item, list) else -1 for item in level}
        if len(lengths) != 1:
            raise ValueError
        shape.append(lengths.pop())
        level = [each for item in level for each in item]
    if any(isinstance(item, list | dict) for item in level):
        raise ValueError
    return shape, level


def _text(config: dict[str, Any], limits: Limits) -> Fault:
    return None if isinstance(config["value"], str) else (CorruptFileError, "bytes that are no text")


def _hex(config: dict[str, Any], limits: Limits) -> Fault:
    value = config["value"]
    return None if isinstance(value, str) and _HEX.fullmatch(value) else (CorruptFileError, "bytes that are no hexadecimal digits")


def _float(config: dict[str, Any], limits: Limits) -> Fault:
    value = config["value"]
    return (
        None
        if isinstance(value, str) and value in _NOT_FINITE
        else (CorruptFileError, f"{value!r:.80} is no number that is not finite")
    )


def _slice(config: dict[str, Any], limits: Limits) -> Fault:
    plain = all(value is None or type(value) is int or isinstance(value, dict) for value in config.values())
    return None if plain else (CorruptFileError, "a slice of something else than whole numbers")


def _tuple(config: dict[str, Any], limits: Limits) -> Fault:
    return None if isinstance(config["value"], list) else (CorruptFileError, "a tuple that is no list of values")


def _dict(config: dict[str, Any], limits: Limits) -> Fault:
    items = config["value"]
    if not isinstance(items, list) or not all(isinstance(item, list) and len(item) == 2 for item in items):
        return CorruptFileError, "a dict that is no list of pairs"
    if any(isinstance(key, list) or (isinstance(key, dict) and not _is_hashable(key)) for key, _ in items):
        return CorruptFileError, "a dict with a key that cannot be one"
    return None


def _is_hashable(key: dict[str, Any]) -> bool:
    """Whether a marked value can be the key of a dict: text, numbers, and tuples of them."""
    config = key.get("config")
    value = config.get("value") if isinstance(config, dict) else None
    if key.get("class_name") == "__tuple__" and isinstance(value, list):
        return all(not isinstance(item, list) and (not isinstance(item, dict) or _is_hashable(item)) for item in value)
    return key.get("class_name") in ("__float__", "__hex__", "__bytes__")


_CHECKS = {
    "__keras_tensor__": _keras_tensor,
    "__tensor__": _array,
    "__numpy__": _array,
    "__bytes__": _text,
    "__slice__": _slice,
    "__float__": _float,
    "__tuple__": _tuple,
    "__dict__": _dict,
    "__hex__": _hex,
}
