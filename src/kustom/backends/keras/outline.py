"""A file of weights, laid out as Keras does it, whose large arrays are not there yet.

HDF5 writes a file here and there, and the first bytes last, so that nothing of it can be summed up or sent to the disk
before all of it is written; a model of which there is one copy in memory needs a second one for that. So HDF5 is given
a file that remembers only what is written, and of a large array one number, which makes room for it. What comes out
byte by byte afterwards is the file that Keras writes, the arrays in their places, each taken when its turn has come.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import h5py
import keras
import numpy as np
from keras.src.saving import saving_lib

from kustom.backends import current
from kustom.backends.keras.saving import save_state
from kustom.backends.keras.variables import own_value

__all__ = ["Outline", "outline_of"]

# Bytes from which on an array is left out. HDF5 keeps up to 2**16 bytes of an array that is written piece by piece.
_LARGE = 2**20
# Bytes that are handed out at a time.
_BLOCK = 2**23
_KINDS = frozenset("float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64".split())


class _Pages(io.RawIOBase):
    """A file in memory that holds what is written to it, and zeros between."""

    _SIZE = 2**16

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._at = 0
        self.size = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for number, within, start, end in self._pieces(self._at, self._at + len(view)):
            page = self._pages.setdefault(number, bytearray(self._SIZE))
            page[within : within + end - start] = view[start:end]
        self._at += len(view)
        self.size = max(self.size, self._at)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(min(len(view), self.size - self._at), 0)
        view[:count] = self.bytes(self._at, self._at + count)
        self._at += count
        return count

    def bytes(self, first: int, last: int) -> bytes:
        """What stands from `first` to `last`."""
        found = bytearray(last - first)
        for number, within, start, end in self._pieces(first, last):
            if number in self._pages:
                found[start:end] = self._pages[number][within : within + end - start]
        return bytes(found)

    def _pieces(self, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
        """The pages in a range: the number of each, where in it the range goes on, and which part of the range that is."""
        at = first
        while at < last:
            number, within = divmod(at, self._SIZE)
            end = min(last, at + self._SIZE - within)
            yield number, within, at - first, end - first
            at = end


class _Store(saving_lib.H5IOStore):
    """Keras's store, which leaves room for large variables.

    Attributes:
        left: Each data set that has room alone, and the variable.
    """

    def __init__(self, pages: _Pages) -> None:
        # It insists on a path or a buffer.
        super().__init__(io.BytesIO(), mode="w")
        self.h5_file.close()
        self.h5_file = h5py.File(pages, "w")
        self.left: list[tuple[h5py.Dataset, keras.Variable]] = []

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(value, keras.Variable) or value.dtype not in _KINDS or _bytes_of(value) < _LARGE:
            super().__setitem__(key, value)
            return
        if not self._h5_entry_initialized:
            self._create_h5_group(self._h5_entry_path)
        group: Any = self._h5_entry_group
        room = group.create_dataset(key, shape=tuple(value.shape), dtype=value.dtype)
        room[(0,) * len(room.shape)] = 0
        self.left.append((room, value))


class Outline:
    """A file of weights, to be written once.

    Attributes:
        size: Its bytes.
    """

    def __init__(self, pages: _Pages, left: list[tuple[int, keras.Variable]]) -> None:
        self._pages, self._left, self.size = pages, sorted(left, key=lambda each: each[0]), pages.size

    def blocks(self) -> Iterator[bytes]:
        """Its bytes from the first to the last; they stay what they are, whatever becomes of the variables."""
        at = 0
        for start, variable in self._left:
            yield self._pages.bytes(at, start)
            # Each block is a copy; one of the whole, beside it, would take as long as the writing.
            array = np.ascontiguousarray(current().seen(own_value(variable)), variable.dtype)
            view = array.data.cast("B")
            for first in range(0, len(view), _BLOCK):
                yield bytes(view[first : first + _BLOCK])
            at = start + len(view)
        yield self._pages.bytes(at, self.size)


def outline_of(model: Any) -> Outline:
    """The file of a model's weights as Keras writes it."""
    pages = _Pages()
    store = _Store(pages)
    try:
        save_state(model, store)
        store.h5_file.flush()
        left = [(room.id.get_offset(), variable) for room, variable in store.left]
    finally:
        store.close()
    return Outline(pages, left)


def _bytes_of(variable: keras.Variable) -> int:
    return int(np.prod(variable.shape, dtype=np.int64)) * np.dtype(variable.dtype).itemsize
