"""From whatever holds numbers to NumPy arrays: tensors of any backend, tables, memory maps.

No library is imported for it: an object's own library is loaded already, and is found by the name of its type's module.
Dtypes are those that Keras gives arrays: floats become `floatx`, integers and booleans stay. A memory map stays one, and
is made `floatx` where its rows are read.
"""

from __future__ import annotations

import functools
import mmap
import sys
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kustom.backends import current
from kustom.errors import DataError

__all__ = [
    "as_array",
    "cast",
    "class_weights",
    "family",
    "final_dtype",
    "is_array",
    "is_mapped",
    "of_module",
    "refuse_unheld",
    "unheld",
]


def of_module(cls: type, *roots: str, name: str | None = None) -> bool:
    """Whether `cls`, or a class it derives from, is in a package of `roots` and, where that is given, called `name`."""
    return any(base.__module__.split(".")[0] in roots and name in (None, base.__name__) for base in cls.__mro__)


def family(x: Any) -> str:
    """How an error message names the type of `x`."""
    cls = type(x)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__.split('.')[0]}.{cls.__name__}"


@functools.lru_cache(maxsize=256)
def _kind(cls: type) -> str:
    if issubclass(cls, np.ma.MaskedArray):
        return "masked"
    if issubclass(cls, np.ndarray):
        return "numpy"
    if issubclass(cls, keras.Variable):
        return "variable"
    if issubclass(cls, keras.KerasTensor):
        return "symbolic"
    if of_module(cls, "pandas", "polars"):
        return "table"
    if of_module(cls, "torch", name="Tensor"):
        return "torch"
    if cls.__name__ in ("SparseTensor", "RaggedTensor") or of_module(cls, "scipy") or "jax.experimental.sparse" in cls.__module__:
        return "sparse"
    return "array" if hasattr(cls, "__array__") else ""


def is_array(x: Any) -> bool:
    """Whether `x` holds numbers by itself, so that it is a leaf and not something that gives batches."""
    return bool(_kind(type(x)))


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array, or what it is a view of, is a file mapped into memory."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if isinstance(owner, np.memmap):
            return True
        owner = owner.base
    return isinstance(owner, mmap.mmap)


def _is_float(dtype: np.dtype) -> bool:
    # bfloat16 and its like are NumPy's by way of ml_dtypes, as dtypes of kind V.
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name.startswith(("bfloat", "float")))


def _floatx() -> np.dtype:
    name = keras.config.floatx()
    return np.dtype(sys.modules["ml_dtypes"].bfloat16 if name == "bfloat16" else name)


def final_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype that a step gets data of `dtype` in."""
    return _floatx() if _is_float(dtype) else dtype.newbyteorder("=")


def cast(array: np.ndarray) -> np.ndarray:
    """An array in the dtype that a step gets; itself where it has that.

    Raises:
        DataError: A tensor cannot hold its numbers.
    """
    refuse_unheld(array)
    return array.astype(final_dtype(array.dtype), copy=False)


def refuse_unheld(array: np.ndarray) -> None:
    """Refuse integers that a tensor cannot hold.

    Raises:
        DataError: It is so.
    """
    if reason := unheld(array):
        raise DataError(f"the data is {reason}")


def unheld(array: np.ndarray) -> str:
    """Why a tensor cannot hold the integers of an array, and what to do; empty if it can.

    JAX would cut them off without a word.
    """
    if array.dtype.kind not in "iu" or array.dtype.itemsize < 8:
        return ""
    held, backend = current().integers(array.dtype), keras.backend.backend()
    if held is None:
        return f"an array of {array.dtype}, of which {backend} has no tensors. Give it as int64."
    if held == array.dtype or not array.size:
        return ""
    least, most = int(array.min()), int(array.max())
    if np.iinfo(held).min <= least and most <= np.iinfo(held).max:
        return ""
    return (
        f"an array of {array.dtype} with numbers from {least} to {most}, and the widest integers of {backend} are {held} here. "
        "Number them, by `np.unique(..., return_inverse=True)`, give floats, or set JAX_ENABLE_X64=1."
    )


def as_array(x: Any, where: str, *, column: bool = False) -> np.ndarray:
    """`x` as an array of numbers, not yet `cast`.

    Args:
        x: An array, tensor of any backend, variable, pandas or polars table or column.
        where: What `x` is, for a message.
        column: Whether one column of a table becomes `(n, 1)`, as Keras makes a pandas Series.

    Raises:
        DataError: It holds something other than numbers, or is sparse, ragged, masked or symbolic.
    """
    array = _numpy(x, where, column)
    if array.dtype.kind not in "biufc" and not _is_float(array.dtype):
        raise DataError(
            f"{where} is {family(x)} of dtype {array.dtype} and shape {array.shape}; a step gets numbers. Turn text into numbers "
            "first, by `np.unique(..., return_inverse=True)` or a preprocessing layer, and pad rows of unequal length."
        )
    return array


def _numpy(x: Any, where: str, column: bool) -> np.ndarray:
    kind = _kind(type(x))
    if kind == "numpy":
        return x
    if kind == "masked":
        raise DataError(f"{where} is a masked array, whose mask no step would see. Give `x.filled(...)` and `sample_weight`.")
    if kind == "symbolic":
        raise DataError(f"{where} is symbolic, {x}, and has no values. Give the data itself.")
    if kind == "variable":
        return _numpy(x.value, where, column)
    if kind == "table":
        return _table(x, where, column)
    if kind == "sparse" or (kind == "torch" and "strided" not in str(x.layout)):
        raise DataError(
            f"{where} is {family(x)}, sparse or ragged; a step gets dense arrays. Make it one, by `.toarray()`, `.to_dense()`, "
            "`.to_tensor()` or `tf.sparse.to_dense`, or make each batch dense in a generator."
        )
    if kind == "torch":
        x = x.detach().cpu().resolve_conj().resolve_neg()
        return (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy()
    if kind == "array":
        return np.asarray(x)
    raise DataError(
        f"{where} is {family(x)}; expected an array, a tensor or a table. Numbers and lists of them become an array by "
        "`np.asarray` (a list is taken for several inputs)."
    )


def _table(x: Any, where: str, column: bool) -> np.ndarray:
    if not hasattr(x, "to_numpy"):
        raise DataError(f"{where} is {family(x)}, not a table of values yet. Give `.collect()` of it.")
    if len(x.shape) == 1:
        values = _column(x, where)
        return values[:, None] if column else values
    columns = x.get_columns() if hasattr(x, "get_columns") else [x.iloc[:, i] for i in range(x.shape[1])]
    if not columns:
        raise DataError(f"{where} is a table without columns.")
    return np.stack([_column(series, f"column {series.name!r} of {where}") for series in columns], axis=1)


def _column(series: Any, where: str) -> np.ndarray:
    """The numbers of one column; what is missing is NaN."""
    polars = type(series).__module__.startswith("polars")
    if polars:
        numeric = series.dtype.is_numeric() or str(series.dtype) == "Boolean"
    else:
        numeric = sys.modules["pandas"].api.types.is_numeric_dtype(series.dtype)
    if not numeric:
        raise DataError(
            f"{where} is of dtype {series.dtype}; a step gets numbers. Drop it, or encode it first, by "
            f"{'`to_dummies`' if polars else '`pandas.get_dummies`'} or scikit-learn's OneHotEncoder."
        )
    if polars:
        return series.cast(sys.modules["polars"].Float64).to_numpy() if series.null_count() else series.to_numpy()
    if series.hasnans:
        return series.to_numpy(dtype="float64", na_value=float("nan"))
    return series.to_numpy(dtype=getattr(series.dtype, "numpy_dtype", None))


def class_weights(y: np.ndarray, class_weight: Mapping[Any, Any]) -> np.ndarray:
    """A weight for each sample of `y`, as Keras's `fit` makes it: `(n,)`, `floatx`, 1 for a class that is not named.

    Args:
        y: Class numbers `(n,)` or `(n, 1)`, or a score a class `(n, classes)`, of which the largest counts.
        class_weight: From class numbers to weights.
    """
    if y.ndim > 1:
        y = y[..., 0] if y.shape[-1] == 1 else np.argmax(y, axis=-1)
    classes, number = np.unique(np.round(y.astype("float64")).astype("int64"), return_inverse=True)
    return np.array([class_weight.get(int(c), 1.0) for c in classes], dtype=_floatx())[number.reshape(y.shape)]
