"""Configs: how the settings of a part become plain JSON, and come back in their own types.

Keras writes a tuple as a list, a 0-d or empty array without its shape, an infinite number as text that is no JSON, and
the keys of a dict as text. Here each of them is marked, in the form that Keras uses for arrays:
`{"class_name": "__tuple__", "config": {"value": [...]}}`. Keras hands a part's config to `from_config` unread, so that
nobody but `decode` meets the marks.
"""

from __future__ import annotations

import enum
import math
import types
from typing import Any

import keras
import ml_dtypes  # noqa: F401  (teaches numpy the dtype bfloat16)
import numpy as np

from kustom.backends import keras as private
from kustom.errors import UnsavableSettingError

__all__ = ["decode", "encode", "same"]


def encode(value: Any, name: str) -> Any:
    """The setting `name` with the value `value`, as plain JSON.

    Raises:
        UnsavableSettingError: No config can hold it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, enum.Enum):
        raise UnsavableSettingError(
            f"the setting {name!r} holds {value}, a member of an enum, which would come back as another type; give its .value."
        )
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _mark("__float__", repr(value))
    if isinstance(value, np.ndarray):
        return _encode_array(value, name)
    if isinstance(value, tuple):
        return _mark("__tuple__", [encode(item, name) for item in value])
    if isinstance(value, list):
        return [encode(item, name) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and not {"class_name", "config"} <= value.keys():
            return {key: encode(item, name) for key, item in value.items()}
        return _mark("__dict__", [[encode(key, name), encode(item, name)] for key, item in value.items()])
    if isinstance(value, bytes):
        return _mark("__hex__", value.hex())
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        if not private.is_known_function(value):
            raise UnsavableSettingError(
                f"the setting {name!r} holds the function {value.__qualname__!r}, which no file can name; decorate it with "
                "kustom, or register it with Keras."
            )
    elif not hasattr(value, "get_config") and not isinstance(value, slice | type(Ellipsis)):
        raise UnsavableSettingError(
            f"the setting {name!r} holds a {type(value).__module__}.{type(value).__qualname__}, which has no get_config(); "
            "give plain data, or a part."
        )
    config = keras.saving.serialize_keras_object(value)
    private.share(value, config)
    return config


def decode(value: Any) -> Any:
    """What `encode` was given; Keras's own marks and objects are read, too."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_name" not in value or "config" not in value:
        return {key: decode(item) for key, item in value.items()}
    kind, config = value["class_name"], value["config"]
    if kind == "__float__":
        return float(config["value"])
    if kind == "__tuple__":
        return tuple(decode(item) for item in config["value"])
    if kind == "__dict__":
        return {decode(key): decode(item) for key, item in config["value"]}
    if kind == "__hex__":
        return bytes.fromhex(config["value"])
    if kind == "__numpy__":
        return _decode_array(config["value"], np.dtype(config["dtype"]), config.get("shape"))
    return keras.saving.deserialize_keras_object(value)


def same(one: Any, other: Any) -> bool:
    """Whether two values of a setting are the same value, in the same type."""
    if one is other:
        return True
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        equal_nan = one.dtype.kind in "fc" and other.dtype.kind in "fc"
        return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other, equal_nan=equal_nan)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        alike = isinstance(one, tuple) == isinstance(other, tuple) and len(one) == len(other)
        return alike and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return False
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    return type(one) is type(other) and one == other


def _mark(kind: str, value: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"value": value}}


def _encode_array(array: np.ndarray, name: str) -> dict[str, Any]:
    if array.dtype.kind in "OcMm" or array.dtype.names:
        raise UnsavableSettingError(
            f"the setting {name!r} holds an array of dtype {array.dtype}; a config holds numbers, text and truth values."
        )
    if array.dtype.kind == "S":
        raise UnsavableSettingError(f"the setting {name!r} holds an array of bytes; give text or numbers.")
    values, dtype = array.tolist(), array.dtype.str if array.dtype.kind == "U" else array.dtype.name
    if _is_inexact(array.dtype):
        numbers = array.astype("float64")
        finite = np.isfinite(numbers)
        if not np.all(finite):
            values = np.where(finite, numbers.astype(object), numbers.astype(str).astype(object)).tolist()
    return {"class_name": "__numpy__", "config": {"value": values, "dtype": dtype, "shape": list(array.shape)}}


def _decode_array(values: Any, dtype: np.dtype, shape: Any) -> np.ndarray:
    array = np.array(values, dtype="float64" if _is_inexact(dtype) else dtype).astype(dtype)
    return array if shape is None else array.reshape(shape)


def _is_inexact(dtype: np.dtype) -> bool:
    # bfloat16 and its kin have the kind V, or f.
    return dtype.kind in "fV"
