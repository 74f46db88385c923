"""The bytes of members, held where nobody can change them, and their sums, computed beside the reading and writing.

A file that was judged could be another file a moment later. So the bytes are taken out of it once: into memory, or, where
there is not enough of that, into a file without a name that belongs to this process.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

__all__ = ["BLOCK", "Sums", "inflate", "room"]

BLOCK = 2**23
# Below this, a thread costs more than the sum.
_FEW = 2**20


class Sums:
    """SHA-256 and CRC-32 of bytes, computed as the bytes come; on threads of their own where there are many."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self._crc = 0
        self._workers: tuple[ThreadPoolExecutor, ...] = ()
        self._waiting: list[Future[None]] = []

    def update(self, data: Any) -> None:
        """Take the next bytes, which must stay as they are until `wait`."""
        if not self._workers and len(data) < _FEW:
            self._sha.update(data)
            self._crc_update(data)
            return
        if not self._workers:
            # One worker each: the blocks are taken in their order.
            self._workers = (ThreadPoolExecutor(1, "kustom-sha256"), ThreadPoolExecutor(1, "kustom-crc32"))
        for worker, task in zip(self._workers, (self._sha.update, self._crc_update), strict=True):
            self._waiting.append(worker.submit(task, data))

    def _crc_update(self, data: Any) -> None:
        self._crc = zlib.crc32(data, self._crc)

    def catch_up(self) -> None:
        """Wait until all bytes that were given are summed up."""
        for future in self._waiting:
            future.result()
        self._waiting.clear()

    def wait(self) -> tuple[str, int]:
        """The SHA-256, in hexadecimal digits, and the CRC-32 of all bytes that were given."""
        self.catch_up()
        self.close()
        return self._sha.hexdigest(), self._crc

    def close(self) -> None:
        """End the threads."""
        for worker in self._workers:
            worker.shutdown(wait=False, cancel_futures=True)


def room(size: int) -> memoryview:
    """Room for `size` bytes that only this process can write to."""
    if size <= _free_memory() // 2:
        return memoryview(bytearray(size))
    with tempfile.TemporaryFile(prefix="kustom-") as file:
        os.truncate(file.fileno(), size)
        return memoryview(mmap.mmap(file.fileno(), size))


def _free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        # Windows has no such call, macOS no such name.
        return 2**32


def inflate(take: Callable[[int, int], Any], offset: int, packed: int, into: memoryview) -> bool:
    """Unpack deflated bytes into room that they must fill exactly; whether they do."""
    unpacker, at, read = zlib.decompressobj(-15), 0, 0
    try:
        while read < packed or unpacker.unconsumed_tail:
            data = unpacker.unconsumed_tail
            if not data:
                data = take(offset + read, min(BLOCK, packed - read))
                read += len(data)
            piece = unpacker.decompress(data, min(BLOCK, len(into) - at) + 1)
            if at + len(piece) > len(into):
                return False
            into[at : at + len(piece)] = piece
            at += len(piece)
            if unpacker.eof:
                break
    except zlib.error:
        return False
    return at == len(into) and unpacker.eof and read == packed and not unpacker.unused_data
