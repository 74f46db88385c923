"""Opening: what a loop is given as data, told apart and checked before anything is drawn.

`x` with its `y` and `sample_weight` are arrays, or `x` gives batches that hold all three. Arrays that fit are resident, and
a loop is handed the numbers of rows; all else is drawn ahead on a thread. A list is a list of batches if no `y` is given
beside it and all its items are tuples, `[(x, y), (x, y)]`; else it is several inputs, as in Keras.
"""

from __future__ import annotations

import itertools
import math
import numbers
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import keras
import numpy as np

from kustom.errors import DataError, DataWarning, warn
from kustom.training.indexed import passes
from kustom.training.leaves import as_array, cast, family, final_dtype, is_array, is_mapped, of_module
from kustom.training.onepass import OnePass
from kustom.training.rows import Chunked, Order, Resident, Shuffle, weigh, weighted
from kustom.training.source import Block, Source, flatten, unflatten
from kustom.training.streams import Passes

__all__ = ["Block", "Source", "gives_batches", "open_source", "split_validation"]

# Half a dozen chunks of it are about at once, and larger ones leave holes in the heap.
CHUNK_BYTES = 16 << 20
CHUNK_BATCHES = 1024

What = Literal["fit", "evaluate", "validation"]
_STEPS = {"fit": "steps_per_epoch", "evaluate": "steps", "validation": "validation_steps"}


def open_source(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int | None = None,
    steps_per_epoch: int | None = None,
    shuffle: Shuffle = True,
    seed: int | None = None,
    class_weight: Mapping[Any, Any] | None = None,
    what: What = "fit",
    resident_limit: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    chunk_batches: int = CHUNK_BATCHES,
) -> Source:
    """Make a source of batches from whatever a user trains on.

    Args:
        x: Arrays (NumPy, tensors of any backend, pandas or polars tables, memory maps) in any nest of dicts, lists and tuples;
            or what gives batches: a `tf.data.Dataset`, a torch `DataLoader`, a `keras.utils.PyDataset`, a list of tuples, an
            iterator, anything that can be iterated. None, with `steps_per_epoch`: steps without data.
        y: Targets, arrays with as many samples; not beside what gives batches.
        sample_weight: Weights, likewise.
        batch_size: Samples a batch of arrays; by default 32, or what makes `steps_per_epoch` batches of them. Not beside what
            gives batches itself, but for `what="validation"`, where it is what training uses.
        steps_per_epoch: Batches an epoch. Passes over arrays, and over what can be iterated anew, follow one another, and the
            next epoch goes on where this one ends; so does an iterator. What is measured is measured once: with another `what`
            than "fit" the batches of one pass are all that there are.
        shuffle: Of arrays: True, a permutation a pass; False; "batch", within each batch, as Keras; "replacement", each row
            drawn from all, with `n // batch_size` batches an epoch. Of a PyDataset: whether its batches come in another order
            each pass. Anything else comes in its own order.
        seed: From which the order is made, with the number of the pass; None, from NumPy's global random state.
        class_weight: From class numbers to weights, which multiply the sample weights.
        what: For whom it is, so that messages name the right arguments.
        resident_limit: How many bytes of arrays may be resident; None, a quarter of the memory. Memory maps never are.
        chunk_bytes: How many bytes are drawn at a time, where data is not resident.
        chunk_batches: How many batches are drawn at a time; 1 for a loop that takes one at a time.

    Raises:
        DataError: Anything does not fit together.
    """
    size = _whole(batch_size, "batch_size" if what != "validation" else "validation_batch_size")
    steps = _whole(steps_per_epoch, _STEPS[what])
    if not isinstance(shuffle, bool | np.bool_) and not (isinstance(shuffle, str) and shuffle in ("batch", "replacement")):
        raise DataError(f"shuffle is {shuffle!r}; expected True, False, 'batch' or 'replacement'.")
    if class_weight is not None:
        _check_class_weight(class_weight)
    if x is None and y is None:
        return _Nothing(_asked(steps, what))
    if not gives_batches(x, y, "x" if what != "validation" else "validation_data"):
        limit = _quarter_of_memory() if resident_limit is None else resident_limit
        structure, arrays = _arrays(x, y, sample_weight)
        size = size or (math.ceil(len(arrays[0]) / steps) if steps else 32)
        steps = _at_most(steps, math.ceil(len(arrays[0]) / size), "the data", what)
        order = Order(len(arrays[0]), size, shuffle, _seed(seed) if shuffle else 0, steps)
        return _open_arrays(structure, arrays, order, class_weight, limit, chunk_bytes, chunk_batches)
    for name, value in (("y", y), ("sample_weight", sample_weight)):
        if value is not None:
            raise DataError(
                f"{name} was given beside x, {family(x)}, whose batches hold it themselves. Let it give (x, y) or "
                "(x, y, sample_weight), or give arrays."
            )
    if size is not None and what != "validation":
        raise DataError(f"batch_size={size} was given beside {family(x)}, which makes its batches itself. Leave batch_size out.")
    if shuffle in ("batch", "replacement"):
        raise DataError(f"shuffle={shuffle!r} shuffles the rows of arrays; x is {family(x)}. Give arrays, or shuffle=True.")
    options = {"steps": steps, "class_weight": class_weight, "budget": chunk_bytes, "most": chunk_batches}
    return _open_stream(x, bool(shuffle), seed, what, options)


def gives_batches(x: Any, y: Any = None, name: str = "x") -> bool:
    """Whether `x`, which the user knows by `name`, makes its batches itself, and is not arrays.

    Raises:
        DataError: It is neither.
    """
    if x is None or is_array(x):
        return False
    if isinstance(x, list) and y is None and x and all(isinstance(item, tuple) for item in x):
        return True
    if isinstance(x, Mapping | list | tuple):
        return False
    if of_module(type(x), "torch", name="Dataset") and not of_module(type(x), "torch", name="DataLoader"):
        raise DataError(
            f"{name} is {family(x)}, a dataset of single samples. Give torch.utils.data.DataLoader({name}, batch_size=...)."
        )
    if isinstance(x, str | bytes | numbers.Number) or not isinstance(x, Iterable | keras.utils.PyDataset):
        hint = " Call it, and give what it returns." if callable(x) else ""
        raise DataError(f"{name} is {family(x)}; expected arrays, or something to iterate over that gives batches.{hint}")
    return True


def split_validation(x: Any, y: Any, sample_weight: Any, fraction: float) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """Split the last part of arrays off, as Keras's `validation_split` does, before any shuffling.

    Returns:
        `(x, y, sample_weight)` to train on, and to validate on.

    Raises:
        DataError: `fraction` is not between 0 and 1, leaves one part empty, or the data gives batches.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real) or not 0 < fraction < 1:
        raise DataError(f"validation_split is {fraction!r}; expected a number between 0 and 1, such as 0.2.")
    if gives_batches(x, y):
        raise DataError(f"validation_split was given beside {family(x)}, which cannot be split. Give validation_data instead.")
    structure, arrays = _arrays(x, y, sample_weight)
    samples = len(arrays[0])
    at = math.floor(samples * (1.0 - fraction))
    if not 0 < at < samples:
        raise DataError(f"validation_split={fraction} of {samples} samples leaves nothing to {'validate' if at else 'train'} on.")

    def part(rows: slice) -> tuple[Any, Any, Any]:
        x, y, sample_weight = (*unflatten(structure, [array[rows] for array in arrays]), None, None)[:3]
        return x, y, sample_weight

    return part(slice(at)), part(slice(at, None))


def _open_arrays(
    structure: Any,
    arrays: list[np.ndarray],
    order: Order,
    class_weight: Mapping[Any, Any] | None,
    limit: int,
    chunk_bytes: int,
    chunk_batches: int,
) -> Source:
    weights = None
    if class_weight is not None:
        structure, weights = weighted(structure, len(arrays), class_weight)
    row = sum(array[:1].size * final_dtype(array.dtype).itemsize for array in arrays)
    if row * order.samples > limit or order.dtype != np.int32 or any(is_mapped(array) for array in arrays):
        capacity = min(chunk_bytes // max(row * order.size, 1), chunk_batches)
        return Chunked(structure, arrays, order, max(capacity, 1), weights)
    arrays = [cast(array) for array in arrays]
    if weights is not None:
        weigh(arrays, weights, None, axes=1)
    return Resident(structure, arrays, order)


def _arrays(x: Any, y: Any, sample_weight: Any) -> tuple[Any, list[np.ndarray]]:
    """The arrays of a data set and where they belong, of equal length."""
    args: tuple[Any, ...] = (x, y, sample_weight)
    names, leaves, structure = [], [], []
    for name, arg in zip(("x", "y", "sample_weight"), args, strict=True):
        before = len(leaves)
        structure.append(flatten(arg, leaves))
        names += [name] * (len(leaves) - before)
    if sample_weight is not None and y is None:
        raise DataError("sample_weight was given without y; a step gets (x, y, sample_weight). Give y, or put the weights into x.")
    if not leaves:
        raise DataError(f"x is {x!r}, which holds no arrays. Give arrays, or None with steps_per_epoch for steps without data.")
    arrays = [as_array(leaf, name, column=name == "y") for name, leaf in zip(names, leaves, strict=True)]
    shown = ", ".join(f"{name} {array.shape}" for name, array in zip(names, arrays, strict=True))
    if any(not array.ndim for array in arrays):
        raise DataError(f"Expected arrays with a first axis of samples; got {shown}.")
    if len({len(array) for array in arrays}) > 1:
        raise DataError(f"All arrays must have the same number of samples on their first axis; got {shown}.")
    if not len(arrays[0]):
        raise DataError(f"There are no samples: {shown}. Expected at least one.")
    while structure and structure[-1] is None:
        structure.pop()
    return tuple(structure), arrays


def _open_stream(x: Any, shuffle: bool, seed: int | None, what: What, options: dict[str, Any]) -> Source:
    steps, name = options["steps"], family(x)
    if isinstance(x, keras.utils.PyDataset):
        length = x.num_batches
        if length == 0:
            raise DataError(f"{name} has no batches; expected at least one.")
        if length is None:
            _asked(steps, what, f"{name} has no end")
        options["steps"] = _at_most(steps, length, name, what)
        # Of one without an end any batch may be the first.
        hooks = {"begun": x.on_epoch_begin, "ended": x.on_epoch_end}
        seed = _seed(seed) if shuffle else 0
        source = Passes(name, passes(x, shuffle, seed), sys.maxsize if length is None else length, **hooks, **options)
        source.seed = seed
        return source
    if hasattr(type(x), "__next__"):
        return OnePass(name, x, trains=what == "fit", **options)
    length = _length(x)
    if length == 0:
        raise DataError(f"{name} has no batches; expected at least one.")
    if length is not None and length < 0:
        _asked(steps, what, f"{name} has no end")
        length = None
    options["steps"] = _at_most(steps, length, name, what)
    return Passes(name, _again(x), length, once=what != "fit", **options)


def _again(x: Any) -> Callable[[int, int], Iterator[Any]]:
    if not of_module(type(x), "tensorflow"):
        return lambda number, at: itertools.islice(iter(x), at, None)

    def make(number: int, at: int) -> Iterator[Any]:
        # A shuffled tf.data.Dataset has another order in each of its iterators; where a run is taken up again in a new
        # process, those of the passes before are made, and not drawn from.
        made = _made.get(x, 0)
        for _ in range(made, number):
            iter(x)
        _made[x] = max(made, number) + 1
        return itertools.islice(iter(x), at, None)

    return make


# How many iterators have been made of a tf.data.Dataset.
_made: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def _seed(seed: int | None) -> int:
    return int(np.random.randint(0, 2**31 - 1)) if seed is None else seed


def _length(x: Any) -> int | None:
    """How many batches `x` gives; None if it does not know, -1 if it has no end."""
    if of_module(type(x), "tensorflow"):
        # Of a distributed dataset it is a number, not a method; -2 stands for unknown.
        known = getattr(x, "cardinality", lambda: -2)
        count: Any = known() if callable(known) else known
        return None if int(count) == -2 else int(count)
    if not hasattr(type(x), "__len__"):
        return None
    try:
        return len(x)
    except TypeError:
        # A DataLoader over a stream.
        return None


class _Nothing(Source):
    """Steps without data."""

    structure = ()

    def __init__(self, steps: int) -> None:
        self.batches = steps
        self._at = steps

    def begin(self, epoch: int, at: int = 0) -> None:
        self._at = at

    def take(self, most: int) -> Block | None:
        start, self._at = self._at, min(self._at + most, self.batches or 0)
        return Block(self._at - start, 1, start, arrays=[]) if self._at > start else None


def _whole(value: Any, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral) or value < 1:
        raise DataError(f"{name} is {value!r}; expected a whole number of at least 1, or None.")
    return int(value)


def _at_most(steps: int | None, batches: int | None, name: str, what: What) -> int | None:
    """The steps; of an evaluation no more than there are batches, since what comes twice would count twice."""
    if what == "fit" or steps is None or batches is None or steps <= batches:
        return steps
    warn(f"{_STEPS[what]}={steps}, and {name} has {batches} batches; each is measured once.", DataWarning)
    return batches


def _asked(steps: int | None, what: What, why: str = "There is no data") -> int:
    if steps is None:
        raise DataError(f"{why}, so that nothing says when an epoch ends. Give {_STEPS[what]}.")
    return steps


def _check_class_weight(class_weight: Any) -> None:
    if not isinstance(class_weight, Mapping) or not all(
        isinstance(key, numbers.Integral) and isinstance(value, numbers.Real) for key, value in class_weight.items()
    ):
        raise DataError(
            f"class_weight is {class_weight!r}; expected a dict from class numbers to weights, such as {{0: 1.0, 1: 5.0}}."
        )


def _quarter_of_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, ValueError, OSError):
        # Not on Windows.
        return 4 << 30
