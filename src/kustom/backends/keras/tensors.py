"""What Keras knows of tensors and has no public name for: dtypes, masks, symbolic results, its code for the backend.

A tensor is the backend's, so that what Keras adds to it stands in tables and attributes of Keras's own.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from keras.src import backend
from keras.src.backend.common import dtypes
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.variables import is_float_dtype, standardize_dtype

from kustom.backends.keras.exchanging import lock

__all__ = [
    "backend_module",
    "compute_output_spec",
    "get_keras_mask",
    "is_float_dtype",
    "kind_of",
    "set_keras_mask",
    "standardize_dtype",
    "wide_floats",
]


def compute_output_spec(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What `function` would return for symbolic arguments, as `KerasTensor`s; no variable changes."""
    return backend.compute_output_spec(function, *args, **kwargs)


def backend_module(name: str) -> ModuleType:
    """A module of Keras's code for the backend in use, such as `nn`."""
    return importlib.import_module(f"keras.src.backend.{backend.backend()}.{name}")


class _Widths(dict[str, str]):
    """Keras's table of the dtypes that it makes narrower in a promotion; in a thread that wants them, floats stay wide."""

    def __init__(self, plain: dict[str, str]) -> None:
        super().__init__(plain)
        self.wanting: dict[int, int] = {}

    def get(self, key: str, default: Any = None) -> Any:
        if key in ("float64", "complex128") and threading.get_ident() in self.wanting:
            return key
        return super().get(key, default)


@contextlib.contextmanager
def wide_floats() -> Iterator[None]:
    """Inside, in this thread, float64 is not made float32 where Keras promotes dtypes: on JAX and torch it always is."""
    mine = threading.get_ident()
    with lock:
        table = dtypes.BIT64_TO_BIT32_DTYPE
        if not isinstance(table, _Widths):
            table = dtypes.BIT64_TO_BIT32_DTYPE = _Widths(table)
        table.wanting[mine] = table.wanting.get(mine, 0) + 1
    try:
        yield
    finally:
        with lock:
            table.wanting[mine] -= 1
            if not table.wanting[mine]:
                del table.wanting[mine]
            if not table.wanting:
                dtypes.BIT64_TO_BIT32_DTYPE = dict(table)


def kind_of(dtype: str) -> str:
    """Whether a dtype is `"float"`, `"int"`, or something else, by its name."""
    dtype = standardize_dtype(dtype)
    return "float" if is_float_dtype(dtype) else "int" if "int" in dtype else dtype
