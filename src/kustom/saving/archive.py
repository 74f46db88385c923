"""The archive: a zip of the members that Keras and kustom write, and nothing besides; whole or not at all.

Reading takes the bytes of the file once. What is judged is what is handed on, whatever becomes of the file meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, Protocol

from kustom.errors import CorruptFileError, FileError, FormatError
from kustom.saving import hdf5, strict
from kustom.saving.holding import BLOCK, Sums, inflate, room
from kustom.saving.limits import DEFAULT, Limits
from kustom.saving.zipping import CONFIG, MANIFEST, METADATA, STORED, WEIGHTS, Member, directory, end, local

__all__ = ["CONFIG", "MANIFEST", "METADATA", "WEIGHTS", "Archive", "read", "write"]

Data = bytes | bytearray | memoryview


class Blocks(Protocol):
    """Bytes that come block by block.

    Attributes:
        size: How many there are.
    """

    size: int

    def blocks(self) -> Iterator[Data]:
        """All of them; a block stays what it is."""
        ...


Made = Data | Blocks | Callable[[Mapping[str, str]], Data]


class Archive:
    """A file that was read: its members' bytes, which nobody can change any more, and what stands in them.

    Attributes:
        file: The file's name, for messages.
        size: How many bytes it has.
        members: The members by name, in the order of the file.
        config: What `config.json` says, strictly read.
        config_bytes: The member itself.
        metadata: What `metadata.json` says.
        manifest: What `kustom.json` says; None in a file that plain Keras wrote. Its entry `sums` holds the SHA-256 of each
            other member, by name.
        weights: The tree of `model.weights.h5`, see `hdf5.Group`.
        assets: The names of the assets, such as `assets/layers/string_lookup/vocabulary.txt`, with their sizes.
        faults: What is wrong with it, where it was read for that.
    """

    def __init__(self, source: _Source, members: dict[str, Member]) -> None:
        self.file = source.name
        self.size = source.size
        self.members = members
        self.config: dict[str, Any] = {}
        self.config_bytes = b""
        self.metadata: dict[str, Any] = {}
        self.manifest: dict[str, Any] | None = None
        self.weights = hdf5.Group("")
        self.assets = {name: member.size for name, member in members.items() if name.startswith("assets/")}
        self.faults: list[FileError] = []
        self._source = source
        self._held: dict[str, memoryview] = {}
        self._sums: dict[str, Sums | tuple[str, int]] = {}

    def __repr__(self) -> str:
        return f"Archive({self.file!r}, {len(self.members)} members, {self.size:,} bytes)"

    def data(self, name: str) -> memoryview:
        """The bytes of a member as they were judged, read-only and without a copy.

        Raises:
            CorruptFileError: There is no such member, or it cannot be unpacked.
        """
        if name not in self._held:
            if name not in self.members:
                raise self._corrupt(name, "the member is missing")
            self._hold(self.members[name])
        return self._held[name]

    def digest(self, name: str) -> str:
        """The SHA-256 of a member, in hexadecimal digits; waits for the thread that computes it."""
        return self._summed(name)[0]

    def verify(self, found: list[FileError] | None = None) -> None:
        """Wait for the sums of all members, and hold them against the manifest's and the archive's.

        Raises:
            CorruptFileError: One of them does not agree, and `found` is None.
        """
        for error in self._wrong_sums():
            if found is None:
                raise error
            found.append(error)

    def _wrong_sums(self) -> Iterator[FileError]:
        told = (self.manifest or {}).get("sums")
        if self.manifest is not None:
            expected = self.members.keys() - {MANIFEST}
            if not isinstance(told, dict) or told.keys() != expected:
                yield self._corrupt(MANIFEST, f"it should have the sums of {', '.join(sorted(expected))}")
                told = {}
        for name, member in self.members.items():
            try:
                digest, crc = self._summed(name)
            except FileError as error:
                yield error
                continue
            if crc != member.crc:
                yield self._corrupt(name, f"its CRC-32 is {crc:08x}, and the archive says {member.crc:08x}")
            elif told and name in told and told[name] != digest:
                yield self._corrupt(name, f"its SHA-256 is {digest}, and the manifest says {str(told[name])[:64]}")

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the bytes; arrays that were read from them stay valid."""
        for sums in self._sums.values():
            if isinstance(sums, Sums):
                sums.close()
        self._held.clear()

    def _corrupt(self, name: str, message: str) -> CorruptFileError:
        return CorruptFileError(f"{message}. The file is damaged; get it again from where it came.", file=self.file, part=name)

    def _summed(self, name: str) -> tuple[str, int]:
        if name not in self._sums:
            self._sums[name] = self._sum_in_place(self.members[name]) if name in self.members else Sums().wait()
        sums = self._sums[name]
        if isinstance(sums, Sums):
            sums = self._sums[name] = sums.wait()
        return sums

    def _sum_in_place(self, member: Member) -> Sums | tuple[str, int]:
        if member.method != STORED:
            self._hold(member)
            return self._sums[member.name]
        sums = Sums()
        for at in range(0, member.size, BLOCK):
            sums.update(self._source.take(member.offset + at, min(BLOCK, member.size - at)))
            if at // BLOCK % 8 == 7:
                # Not the whole file in memory, waiting to be summed.
                sums.catch_up()
        return sums.wait()

    def _hold(self, member: Member) -> None:
        """Take the bytes of a member out of the file, summing them up meanwhile."""
        sums, fixed = Sums(), self._source.fixed
        if member.method == STORED and fixed is not None:
            space = fixed[member.offset : member.offset + member.size]
            sums.update(space)
        elif member.method == STORED:
            space = room(member.size)
            for at in range(0, member.size, BLOCK):
                block = space[at : at + BLOCK]
                self._source.fill(block, member.offset + at)
                sums.update(block)
        else:
            space = room(member.size)
            if not inflate(self._source.take, member.offset, member.packed, space):
                raise self._corrupt(member.name, f"it does not unpack to {member.size:,} bytes")
            sums.update(space)
        self._held[member.name] = space.toreadonly()
        self._sums[member.name] = sums


def read(
    source: str | os.PathLike[str] | IO[bytes], limits: Limits = DEFAULT, *, hold: bool = True, faults: bool = False
) -> Archive:
    """Read and check an archive; nothing of it is run, imported or written anywhere.

    The sums of large members are computed on threads meanwhile; `Archive.verify` waits for them.

    Args:
        source: A path, or a binary file object, which is read from its beginning.
        limits: How much the file may ask for.
        hold: Whether the weights are taken out of the file; where only their structure is looked at, they stay.
        faults: Whether faults are noted in `Archive.faults`, and reading goes on where that makes sense.

    Raises:
        FileError: It is no such archive, damaged, unsafe or larger than `limits`.
        OSError: The file cannot be opened or read.
    """
    with _opened(source, limits) as opened:
        found: list[FileError] | None = [] if faults else None
        archive = Archive(opened, directory(opened.take, opened.size, limits, opened.name, found))
        with _noting(found):
            archive.config_bytes, archive.config = _json(archive, CONFIG, limits)
        with _noting(found):
            archive.metadata = _json(archive, METADATA, limits)[1]
        if MANIFEST in archive.members:
            with _noting(found):
                archive.manifest = _json(archive, MANIFEST, limits)[1]
        if hold:
            for name in archive.assets:
                with _noting(found):
                    archive.data(name)
        member = archive.members.get(WEIGHTS)
        if member is not None:
            with _noting(found):
                archive.weights = hdf5.read(_weights(archive, member, hold), member.size, limits, file=archive.file, found=found)
        if not hold:
            archive.verify(found)
            archive.close()
        archive.faults = found or []
        return archive


def _weights(archive: Archive, member: Member, hold: bool) -> Callable[[int, int], Any]:
    if hold or member.method != STORED:
        view = archive.data(WEIGHTS)
        return lambda offset, size: view[offset : offset + size]
    return lambda offset, size: archive._source.take(member.offset + offset, size)


def _json(archive: Archive, name: str, limits: Limits) -> tuple[bytes, dict[str, Any]]:
    data = bytes(archive.data(name))
    made = strict.loads(data, limits, file=archive.file, part=name)
    if archive._summed(name)[1] != archive.members[name].crc:
        raise archive._corrupt(name, "its CRC-32 is not what the archive says")
    return data, made


@contextlib.contextmanager
def _noting(found: list[FileError] | None) -> Iterator[None]:
    try:
        yield
    except FileError as error:
        if found is None:
            raise
        found.append(error)


class _Source:
    """Where bytes come from: a file that is open, or bytes that nobody can change."""

    def __init__(self, name: str, size: int, *, file: Any = None, data: bytes = b"") -> None:
        self.name = name
        self.size = size
        self.fixed = memoryview(data) if file is None else None
        self._file: Any = file

    def take(self, offset: int, size: int) -> Any:
        if self.fixed is not None:
            return self.fixed[offset : offset + size]
        data = bytearray(size)
        self.fill(memoryview(data), offset)
        return data

    def fill(self, into: memoryview, offset: int) -> None:
        self._file.seek(offset)
        while into:
            count = self._file.readinto(into)
            if not count:
                raise CorruptFileError("the file became shorter while it was read.", file=self.name)
            into = into[count:]


@contextlib.contextmanager
def _opened(source: str | os.PathLike[str] | IO[bytes], limits: Limits) -> Iterator[_Source]:
    if not isinstance(source, str | bytes | os.PathLike):
        if not (callable(getattr(source, "read", None)) and callable(getattr(source, "seekable", None))):
            raise FormatError(f"a model is read from a path or from a binary file object, not from {source!r:.80}.")
        yield _of_object(source, limits)
        return
    name = os.fsdecode(source)
    if "://" in name:
        raise FormatError("this is an address; fetch the file, and give its path.", file=name)
    status = os.stat(name)
    if stat.S_ISDIR(status.st_mode):
        raise FormatError(
            "this is a folder, where a .keras file was expected. A SavedModel, or a model that was saved with zipped=False, is "
            "loaded with the program that wrote it; save it again with kustom.save.",
            file=name,
        )
    if not stat.S_ISREG(status.st_mode):
        raise FormatError("this is no ordinary file, but a pipe or a device.", file=name)
    with open(name, "rb", buffering=0) as file:
        yield _Source(name, os.fstat(file.fileno()).st_size, file=file)


def _of_object(source: IO[bytes], limits: Limits) -> _Source:
    name = getattr(source, "name", None)
    file = name if isinstance(name, str) else f"<{type(source).__name__}>"
    if source.seekable():
        limits.hold("max_bytes", source.seek(0, os.SEEK_END), "its size in bytes", file=file)
        source.seek(0)
    blocks, size = [], 0
    while block := source.read(-1 if source.seekable() else BLOCK):
        if not isinstance(block, bytes):
            raise FormatError("the file object gives no bytes; open the file with mode 'rb'.", file=file)
        size += len(block)
        limits.hold("max_bytes", size, "its size in bytes", file=file)
        blocks.append(block)
    return _Source(file, size, data=blocks[0] if len(blocks) == 1 else b"".join(blocks))


def write(target: str | os.PathLike[str] | IO[bytes], members: Iterable[tuple[str, Made]]) -> None:
    """Write an archive, whole or not at all.

    A path is written to the side, in the same folder, brought to the disk and renamed: after a crash at any moment the old
    file or the new one is there. A file object gets all bytes at once, at the end, where it cannot be rewound.

    Args:
        target: A path, replaced at the end, or a binary file object.
        members: Names with their bytes, or with what gives them block by block, in order. Where a function stands in their
            place, it is called, when all members before it have been written, with the SHA-256 of each of those, and returns
            the bytes.

    Raises:
        OSError: It cannot be written.
    """
    if not isinstance(target, str | os.PathLike):
        _write_object(target, members)
        return
    path = os.path.realpath(os.fspath(target))
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        # Otherwise the name of the file at the side, which nobody knows, would be said to be missing.
        raise FileNotFoundError(errno.ENOENT, "There is no such folder to save a model in; make it before", folder)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "This is a folder, which no model takes the place of", path)
    aside = os.path.join(folder, f".{os.path.basename(path)}.{secrets.token_hex(8)}.part")
    try:
        with open(aside, "xb", buffering=0) as file:
            _write_members(file, members, flush=lambda: os.fsync(file.fileno()))
            with contextlib.suppress(FileNotFoundError):
                os.chmod(aside, stat.S_IMODE(os.stat(path).st_mode))
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise
    _sync_folder(folder)


def _write_object(target: IO[bytes], members: Iterable[tuple[str, Made]]) -> None:
    if target.seekable() and target.tell() == 0:
        _write_members(target, members)
        return
    aside = io.BytesIO()
    _write_members(aside, members)
    target.write(aside.getbuffer())


def _write_members(file: Any, members: Iterable[tuple[str, Made]], flush: Callable[[], None] | None = None) -> None:
    done: list[Member] = []
    digests: dict[str, str] = {}
    at = 0
    for name, made in members:
        size, blocks = _in_blocks(made(dict(digests)) if callable(made) else made)
        head = local(name, 0, size)
        sums = Sums()
        _put(file, head)
        for number, block in enumerate(blocks, 1):
            sums.update(block)
            _put(file, block)
            if number % 8 == 0:
                # No more of it waits in memory.
                sums.catch_up()
        if flush is not None and size > BLOCK:
            # The disk works while the last sums are computed; at the end there is little left for it.
            flush()
        digests[name], crc = sums.wait()
        file.seek(at)
        _put(file, local(name, crc, size))
        offset = at + len(head)
        done.append(Member(name, STORED, crc, size, size, at, offset))
        at = offset + size
        file.seek(at)
    _put(file, end(done, at))
    file.truncate()


def _in_blocks(made: Data | Blocks) -> tuple[int, Iterator[Data]]:
    if not isinstance(made, bytes | bytearray | memoryview):
        return made.size, made.blocks()
    data = memoryview(made).cast("B")
    return len(data), (data[start : start + BLOCK] for start in range(0, len(data), BLOCK))


def _put(file: Any, data: Any) -> None:
    """Write all of it: an unbuffered file may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _sync_folder(folder: str) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        # Windows has no handles of folders.
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
