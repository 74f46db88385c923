"""The bytes of an HDF5 file: who reads them claims them, and no byte can be claimed twice."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NoReturn

from kustom.errors import CorruptFileError, FileError, FormatError, UnsafeFileError

__all__ = ["UNDEFINED", "Space"]

UNDEFINED = 2**64 - 1
Take = Callable[[int, int], Any]


class Space:
    """A file's bytes, and which of them have a meaning already.

    Args:
        take: `take(offset, size)` gives bytes.
        size: How many there are.
        file: The file's name, for messages.
        member: The member that is read.
    """

    def __init__(self, take: Take, size: int, file: str | None, member: str) -> None:
        self.take = take
        self.size = size
        self.file = file
        self.member = member
        self._claimed = 0
        self._ranges: dict[int, tuple[int, str, str]] = {}

    def corrupt(self, place: str, message: str) -> NoReturn:
        """Refuse bytes that are not what the format says."""
        self._fail(CorruptFileError, place, f"{message}. The file is damaged; get it again from where it came.")

    def foreign(self, place: str, message: str) -> NoReturn:
        """Refuse what the format knows and Keras never writes."""
        self._fail(
            FormatError, place, f"{message}, which Keras does not write. Load it with the program that wrote it, and save it again."
        )

    def unsafe(self, place: str, message: str) -> NoReturn:
        """Refuse what reaches out of the array where it stands."""
        self._fail(UnsafeFileError, place, f"{message}; weights are numbers that stand in the file itself, once. Do not load it.")

    def _fail(self, error: type[FileError], place: str, message: str) -> NoReturn:
        raise error(message, file=self.file, part=f"{self.member}: {place}")

    def claim(self, offset: int, size: int, what: str, place: str) -> None:
        """Take a range for `what`; a second claim on one of its bytes is refused."""
        end = offset + size
        if offset < 0 or size < 0 or end > self.size:
            self.corrupt(place, f"{what} should be at the bytes {offset:,} to {end:,}, and the weights have {self.size:,}")
        if not size:
            return
        self._claimed += size
        if offset in self._ranges or self._claimed > self.size:
            self._shared(what, place)
        self._ranges[offset] = (end, what, place)

    def settle(self) -> None:
        """Refuse ranges that overlap; a circle, or more than the file has, was refused before."""
        last = 0
        for offset, (end, what, place) in sorted(self._ranges.items()):
            if offset < last:
                self._shared(what, place)
            last = end

    def _shared(self, what: str, place: str) -> NoReturn:
        self.unsafe(place, f"{what} lies on bytes of something else (two names for one thing, or a circle)")

    def read(self, offset: int, size: int, what: str, place: str) -> bytes:
        """Claim a range, and read it."""
        self.claim(offset, size, what, place)
        return bytes(self.take(offset, size))

    def unpack(self, form: str, data: bytes, at: int, place: str) -> tuple[Any, ...]:
        """Numbers out of bytes, little-endian."""
        form = f"<{form}"
        if at < 0 or at + struct.calcsize(form) > len(data):
            self.corrupt(place, "a structure ends before its last number")
        return struct.unpack_from(form, data, at)
