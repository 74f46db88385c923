"""What was found in the weights: groups, arrays and their sizes, with the values to be had when they are wanted."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kustom.errors import CorruptFileError
from kustom.saving.hdf5.space import Space

__all__ = ["Chunk", "Dataset", "Group"]


@dataclass(frozen=True)
class Chunk:
    """A compressed piece of an array.

    Args:
        start: The index of its first entry, for each axis.
        offset: Where its bytes begin.
        size: How many there are.
    """

    start: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Dataset:
    """An array in the weights, whose values have not been read.

    Args:
        path: Such as `layers/dense/vars/0`.
        shape: Its shape.
        dtype: Its dtype as Keras calls it, such as `float32`.
        itemsize: Bytes an entry.
        offset: Where its values begin, unless it stands in chunks.
        chunks: Its compressed pieces; None where the values stand in one row.
        chunk_shape: The shape of each piece.
        space: Where the bytes are.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    offset: int
    chunks: tuple[Chunk, ...] | None
    chunk_shape: tuple[int, ...]
    space: Space = field(repr=False, compare=False)

    @property
    def size(self) -> int:
        """The number of its entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of its values, when unpacked."""
        return self.size * self.itemsize

    def read(self) -> Any:
        """The values, as a read-only NumPy array; without a copy where the file stands in memory, uncompressed.

        Raises:
            CorruptFileError: A compressed piece is not what it says.
        """
        import ml_dtypes
        import numpy as np

        dtype = np.dtype(getattr(ml_dtypes, self.dtype, self.dtype))
        if self.chunks is None:
            values = np.frombuffer(self.space.take(self.offset, self.nbytes), dtype=dtype).reshape(self.shape)
        else:
            values = np.empty(self.shape, dtype=dtype)
            for chunk in self.chunks:
                piece = np.frombuffer(self._inflated(chunk), dtype=dtype).reshape(self.chunk_shape)
                inside = tuple(
                    slice(s, min(s + n, end)) for s, n, end in zip(chunk.start, self.chunk_shape, self.shape, strict=True)
                )
                values[inside] = piece[tuple(slice(0, each.stop - each.start) for each in inside)]
        values.flags.writeable = False
        return values

    def _inflated(self, chunk: Chunk) -> bytes:
        expected = math.prod(self.chunk_shape) * self.itemsize
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(self.space.take(chunk.offset, chunk.size), expected + 1)
        except zlib.error as error:
            raise self._broken(chunk, str(error)) from None
        if len(data) != expected or not unpacker.eof or unpacker.unused_data or unpacker.unconsumed_tail:
            raise self._broken(chunk, f"it does not unpack to {expected:,} bytes")
        return data

    def _broken(self, chunk: Chunk, why: str) -> CorruptFileError:
        return CorruptFileError(
            f"the compressed piece at {chunk.start}: {why}. The file is damaged; get it again from where it came.",
            file=self.space.file,
            part=f"{self.space.member}: /{self.path}",
        )


@dataclass(frozen=True)
class Group:
    """A group in the weights.

    Args:
        path: Such as `layers/dense/vars`; empty for the outermost.
        groups: The groups in it, by name.
        datasets: The arrays in it, by name.
        attributes: Its text attributes.
    """

    path: str
    groups: dict[str, Group] = field(default_factory=dict)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)

    def walk(self) -> Iterator[Dataset]:
        """All arrays in it and below."""
        waiting: list[Group] = [self]
        while waiting:
            group = waiting.pop()
            yield from group.datasets.values()
            waiting.extend(reversed(list(group.groups.values())))

    def get(self, path: str) -> Group | None:
        """The group at a path below, such as `layers/dense/vars`; None where there is none."""
        group: Group | None = self
        for name in filter(None, path.split("/")):
            group = group.groups.get(name) if group is not None else None
        return group

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays in it and below, when unpacked."""
        return sum(dataset.nbytes for dataset in self.walk())
