"""Arrays in a manifest: whole where they are inputs, a few thousand entries of them where they are outputs.

An input that nobody gave is no array in the file at all but a rule that makes it, the same on every machine and with every
version of NumPy: the fractional parts of the multiples of the golden ratio, which fill an interval evenly.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["LARGEST", "MOST", "decoded", "encoded", "flatten", "made", "sample", "spread", "structured", "unstructured", "weight"]

# Bytes of one array of an input that was given.
LARGEST = 1 << 20
# Entries of all arrays of an input that are made by rules.
MOST = 8 * LARGEST
# Entries of an output that are recorded, and compared.
SAMPLE = 4096
_GOLDEN = 0.6180339887498949
_DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64")


def spread(shape: tuple[int, ...], low: float, high: float, seed: int = 0) -> np.ndarray:
    """Numbers that fill an interval evenly, float64."""
    numbers = np.arange(1, math.prod(shape) + 1, dtype="float64")
    # In place, since the largest take 64 MiB.
    numbers += seed * 7919
    numbers *= _GOLDEN
    np.modf(numbers, numbers, np.empty_like(numbers))
    numbers *= high - low
    numbers += low
    return numbers.reshape(shape)


def weight(rule: dict[str, Any]) -> int:
    """How many entries a rule makes; of text each counts as the longest of its words."""
    return math.prod(rule["shape"]) * max((len(word) for word in rule.get("words", ())), default=1)


def made(rule: dict[str, Any]) -> np.ndarray:
    """The array that a rule in a manifest makes.

    Args:
        rule: `shape`, `dtype`, and either `low`, `high` and `seed` of `spread`, or the `words` that are taken in turn.

    Raises:
        ValueError: It is no such rule, or makes something larger than an input that could be given.
    """
    shape = tuple(rule["shape"])
    if not all(isinstance(size, int) and size >= 0 for size in shape) or weight(rule) > MOST:
        raise ValueError(f"an array of the shape {list(shape)}")
    if "words" in rule:
        words = [str(word) for word in rule["words"]]
        return np.array([words[n % len(words)] for n in range(math.prod(shape))], dtype=object).reshape(shape)
    if rule["dtype"] not in (*_DTYPES, "float16", "bfloat16"):
        raise ValueError(f"an array of the dtype {rule['dtype']!r}")
    numbers = spread(shape, float(rule["low"]), float(rule["high"]), int(rule["seed"]))
    kind = np.dtype(rule["dtype"]).kind if rule["dtype"] != "bfloat16" else "f"
    if kind == "b":
        return numbers < (rule["low"] + rule["high"]) / 2
    numbers = np.floor(numbers) if kind in "iu" or rule.get("whole") else numbers
    with np.errstate(invalid="ignore", over="ignore"):
        return numbers.astype("float32" if kind == "f" and rule["dtype"] != "float64" else rule["dtype"])


def encoded(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON."""
    if array.dtype.kind in "OUS":
        text = [item.decode() if isinstance(item, bytes) else str(item) for item in array.reshape(-1)]
        return {"shape": list(array.shape), "dtype": "string", "text": text}
    if array.dtype.name not in _DTYPES:
        array = array.astype("float32")
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"shape": list(array.shape), "dtype": array.dtype.name, "data": base64.b64encode(data.tobytes()).decode()}


def decoded(entry: dict[str, Any]) -> np.ndarray:
    """The array that `encoded` was given.

    Raises:
        ValueError: It is none.
    """
    shape = tuple(entry["shape"])
    if entry["dtype"] == "string":
        return np.array([str(item) for item in entry["text"]], dtype=object).reshape(shape)
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"an array of the dtype {entry['dtype']!r}")
    data = base64.b64decode(entry["data"], validate=True)
    return np.frombuffer(data, np.dtype(entry["dtype"]).newbyteorder("<")).reshape(shape).astype(entry["dtype"])


def sample(array: np.ndarray) -> np.ndarray:
    """At most a few thousand entries of an array, evenly from all of it."""
    flat = array.reshape(-1)
    if flat.size <= SAMPLE:
        return flat
    return flat[np.arange(SAMPLE, dtype="int64") * (flat.size - 1) // (SAMPLE - 1)]


def flatten(value: Any, place: str = "") -> list[tuple[str, Any]]:
    """The leaves of a nested structure of lists, tuples and dicts, each with its place."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=str) for leaf in flatten(value[key], f"{place}[{key!r}]")]
    if isinstance(value, list | tuple):
        return [leaf for number, item in enumerate(value) for leaf in flatten(item, f"{place}[{number}]")]
    return [] if value is None else [(place, value)]


def structured(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """A structure as JSON: lists, tuples and dicts by name, and what `leaf` makes of each leaf."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {"dict": {str(key): structured(item, leaf) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [structured(item, leaf) for item in value]}
    return {"leaf": leaf(value)}


def unstructured(entry: Any, leaf: Callable[[Any], Any]) -> Any:
    """The structure that `structured` was given.

    Raises:
        ValueError: It is none.
    """
    if entry is None:
        return None
    for kind, make in (("list", list), ("tuple", tuple)):
        if kind in entry:
            return make(unstructured(item, leaf) for item in entry[kind])
    if "dict" in entry:
        return {key: unstructured(item, leaf) for key, item in entry["dict"].items()}
    if "leaf" not in entry:
        raise ValueError(f"an input of {', '.join(map(str, entry))}")
    return leaf(entry["leaf"])
