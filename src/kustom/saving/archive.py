"""The archive: a zip of the members that Keras and kustom write, and nothing besides; whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import IO, Any

from kustom.saving.limits import DEFAULT, Limits

__all__ = ["Archive", "read", "write"]

Data = bytes | bytearray | memoryview


class Archive:
    """A file that was read: its members' bytes, which nobody can change any more, and what stands in them.

    Attributes:
        file: The file's name, for messages.
        config: What `config.json` says, strictly read.
        metadata: What `metadata.json` says.
        manifest: What `kustom.json` says; None in a file that plain Keras wrote.
        weights: The tree of `model.weights.h5` (see `hdf5`): `weights.groups`, `weights.datasets`, `dataset.read()`.
        assets: The names of the assets, such as `assets/layers/string_lookup/vocabulary.txt`, with their sizes.
    """

    file: str
    config: dict[str, Any]
    config_bytes: bytes
    metadata: dict[str, Any]
    manifest: dict[str, Any] | None
    weights: Any
    assets: dict[str, int]

    def digest(self, name: str) -> str:
        """The SHA-256 of a member, in hexadecimal digits; waits for the thread that computes it."""
        raise NotImplementedError

    def data(self, name: str) -> memoryview:
        """The bytes of a member as they were judged, read-only and without a copy."""
        raise NotImplementedError

    def verify(self) -> None:
        """Wait for the sums of all members, and hold them against the manifest's and the archive's.

        Raises:
            CorruptFileError: One of them does not agree.
        """
        raise NotImplementedError

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the bytes."""


def read(source: str | PathLike[str] | IO[bytes], limits: Limits = DEFAULT) -> Archive:
    """Read and check an archive; nothing of it is run, imported or written anywhere.

    Raises:
        FileError: It is no such archive, damaged, unsafe or larger than `limits`.
    """
    raise NotImplementedError


def write(
    target: str | PathLike[str] | IO[bytes],
    members: Iterable[tuple[str, Data | Callable[[Mapping[str, str]], Data]]],
) -> None:
    """Write an archive, whole or not at all.

    Args:
        target: A path, replaced at the end, or a binary file object.
        members: Names with their bytes, in order; nothing is copied. Where a function stands in place of the bytes, it is
            called, when all members before it have been written, with the SHA-256 of each of those, and returns the bytes.
    """
    raise NotImplementedError
