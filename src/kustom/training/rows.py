"""Arrays: which rows make up which batch, and blocks of them.

The order is a function of the seed and of the number of the pass over the data, so that an epoch can be begun anywhere and
is the same on every backend: row numbers are drawn by NumPy, wherever the rows themselves are. An epoch is a pass, unless
`steps_per_epoch` says otherwise; then epochs are cut one after another from passes without end, and still each row comes
once a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from kustom.errors import DataError
from kustom.training.ahead import Ahead, Chunk
from kustom.training.leaves import cast, class_weights, final_dtype, is_mapped, refuse_unheld
from kustom.training.source import Block, Source

__all__ = ["Chunked", "Order", "Resident", "Shuffle", "Weights", "weigh", "weighted"]

Weights = tuple[int, int | None, Mapping[Any, Any]]
Shuffle = bool | Literal["batch", "replacement"]


class Order:
    """Which rows make up which batch.

    Args:
        samples: How many rows there are.
        size: Samples a batch; the last of a pass has what is left.
        shuffle: True, a permutation each pass; False, the order of the data; "batch", as Keras: rows are shuffled within each
            batch of consecutive ones; "replacement", each row drawn by itself from all.
        seed: What the order is made from.
        steps: Batches an epoch; None, a pass is an epoch.
    """

    def __init__(self, samples: int, size: int, shuffle: Shuffle, seed: int, steps: int | None) -> None:
        self.samples, self.size, self.shuffle, self.seed = samples, size, shuffle, seed
        self.full, self.left = divmod(samples, size)
        if shuffle == "replacement":
            self.full, self.left = steps or max(self.full, 1), 0
        self.in_pass = self.full + bool(self.left)
        self.steps = steps or self.in_pass
        self.dtype = np.dtype(np.int32 if samples <= np.iinfo(np.int32).max else np.int64)
        self._made: tuple[int, np.ndarray, np.ndarray] | None = None

    def rows(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of pass `number`: of its full batches `(full, size)`, and of a smaller last one `(1, left)`."""
        key = number if self.shuffle else 0
        if self._made is None or self._made[0] != key:
            draw = np.random.default_rng([self.seed, key])
            if self.shuffle == "replacement":
                rows = draw.integers(0, self.samples, self.full * self.size, dtype=self.dtype)
            else:
                rows = np.arange(self.samples, dtype=self.dtype)
                if self.shuffle not in (False, "batch"):
                    draw.shuffle(rows)
            cut = self.full * self.size
            full, last = rows[:cut].reshape(self.full, self.size), rows[cut:].reshape(1, -1)
            if self.shuffle == "batch":
                full, last = draw.permuted(full, axis=1), draw.permuted(last, axis=1)
            self._made = key, full, last
        return self._made[1:]

    def run(self, at: int, end: int) -> tuple[np.ndarray, int, int]:
        """Batches of one size from number `at` of all epochs, at most to `end`: their rows, where they begin, how many."""
        number, within = divmod(at, self.in_pass)
        full, last = self.rows(number)
        if within == self.full:
            return last, 0, 1
        return full, within, min(self.full - within, end - at)


class _Arrays(Source):
    def __init__(self, structure: Any, order: Order) -> None:
        self.structure, self._order = structure, order
        self.batches, self.samples, self.seed = order.steps, order.samples, order.seed
        self._at = self._first = self._end = 0

    def begin(self, epoch: int, at: int = 0) -> None:
        self._first = epoch * self._order.steps
        self._at, self._end = self._first + at, self._first + self._order.steps


class Resident(_Arrays):
    """Arrays that are whole in memory, or on the device: a block is rows of them."""

    def __init__(self, structure: Any, arrays: list[np.ndarray], order: Order) -> None:
        super().__init__(structure, order)
        self.resident = arrays

    def take(self, most: int) -> Block | None:
        if self._at >= self._end:
            return None
        rows, offset, batches = self._order.run(self._at, self._end)
        block = Block(min(batches, most), rows.shape[1], self._at - self._first, offset, rows=rows)
        self._at += block.batches
        return block


class Chunked(_Arrays):
    """Arrays that do not fit into memory, or are files mapped into it: their rows are read ahead, a chunk at a time.

    Args:
        structure: With one more leaf than there are arrays where there are class weights.
        arrays: The data.
        order: Which rows make up which batch.
        capacity: How many batches a chunk has.
        weights: The leaf of the targets, that of a given sample weight, and the class weights; None without.
    """

    def __init__(
        self,
        structure: Any,
        arrays: list[np.ndarray],
        order: Order,
        capacity: int,
        weights: Weights | None = None,
    ) -> None:
        super().__init__(structure, order)
        self._data = [np.asarray(array) for array in arrays]
        self._capacity = min(capacity, max(order.full, 1))
        self._weights = weights
        self._ahead: Ahead | None = None
        self._chunk: Chunk | None = None

    def begin(self, epoch: int, at: int = 0) -> None:
        self.close()
        super().begin(epoch, at)

    def take(self, most: int) -> Block | None:
        if self._at >= self._end:
            return None
        if self._ahead is None:
            chunks = self._chunks(self._at, self._end)
            self._ahead = Ahead(lambda batch: self._capacity)
            self._ahead.start(lambda ahead: _hand(ahead, chunks))
        if self._chunk is None:
            self._chunk = self._ahead.get()
        chunk = self._chunk
        assert chunk is not None
        block = Block(min(chunk.batches - chunk.used, most), chunk.size, self._at - self._first, chunk.used, arrays=chunk.arrays)
        self._at += block.batches
        chunk.used += block.batches
        if chunk.used == chunk.batches:
            self._chunk = None
        return block

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
        self._ahead = self._chunk = None

    def _chunks(self, at: int, end: int) -> Iterator[Chunk]:
        while at < end:
            rows, offset, batches = self._order.run(at, end)
            capacity = min(self._capacity, len(rows))
            batches = min(batches, capacity)
            arrays = self._read(rows[offset : offset + batches], capacity)
            yield Chunk(self.structure, arrays, rows.shape[1], batches)
            at += batches

    def _read(self, rows: np.ndarray, capacity: int) -> list[np.ndarray]:
        count, size = rows.shape
        flat = rows.reshape(-1)
        read = []
        for data in self._data:
            into = np.empty((capacity, size, *data.shape[1:]), final_dtype(data.dtype))
            part = into[:count].reshape(count * size, *data.shape[1:])
            if self._order.shuffle:
                _gather(data, flat, part)
            else:
                part[...] = data[flat[0] : flat[-1] + 1]
            refuse_unheld(into[:count])
            read.append(into)
        if self._weights is not None:
            weigh(read, self._weights, count, axes=2)
        return read


def _gather(data: np.ndarray, rows: np.ndarray, into: np.ndarray) -> None:
    """`into[:] = data[rows]`."""
    if is_mapped(data) and into.size:
        # One number of each row, in the order of the file, so that the disk is read forwards.
        data[(np.sort(rows), *(0,) * (data.ndim - 1))]
    # A few rows at a time, so that what stands between the two stays in the processor's cache.
    few = max(1, (1 << 19) // max(data[:1].nbytes, 1))
    for at in range(0, len(rows), few):
        into[at : at + few] = data[rows[at : at + few]]


def _hand(ahead: Ahead, chunks: Iterator[Chunk]) -> bool:
    chunk = next(chunks, None)
    if chunk is not None:
        ahead.put(chunk)
    return chunk is not None


def weighted(structure: Any, leaves: int, class_weight: Mapping[Any, Any]) -> tuple[Any, Weights]:
    """The structure `(x, y, sample_weight)` of weighted data, whose weights are the last of the leaves where there are none.

    Raises:
        DataError: There is not one array of targets.
    """
    target, given = (*structure, None, None, None)[1:3]
    if not isinstance(target, int) or not isinstance(given, int | None):
        raise DataError(
            f"class_weight weighs samples by the class in one array of targets; the data is {structure}, where "
            "numbers stand for arrays. Give data with one y, or a sample_weight in place of class_weight."
        )
    return (structure[0], target, leaves if given is None else given), (target, given, class_weight)


def weigh(arrays: list[np.ndarray], weights: Weights, count: int | None, axes: int) -> None:
    """Put class weights into arrays: times the sample weight that is there, or as a last one.

    Args:
        arrays: Leaves, changed in place.
        weights: The leaf of the targets, that of a given sample weight or None, and the class weights.
        count: How many entries of the first axis count; None, all.
        axes: How many first axes count samples: 1 in whole arrays, 2 in stacked batches.
    """
    target, given, class_weight = weights
    y = arrays[target][:count]
    lead = y.shape[:axes]
    made = class_weights(y.reshape(-1, *y.shape[axes:]), class_weight)
    made = made.reshape(*lead, *made.shape[1:])
    if given is None:
        whole = np.ones((len(arrays[target]), *made.shape[1:]), made.dtype)
        whole[:count] = made
        arrays.append(whole)
        return
    before = arrays[given][:count]
    made = made.reshape(made.shape + (1,) * (before.ndim - made.ndim))
    whole = np.ones((len(arrays[given]), *np.broadcast_shapes(before.shape, made.shape)[1:]), made.dtype)
    whole[:count] = cast(before) * made
    arrays[given] = whole
