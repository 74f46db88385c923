"""The zip format, as far as Keras and kustom write it: every byte of the file belongs to one member, or to the table of them.

A zip file can be read in more than one way: from its end or from its beginning, by the table or by the heads of the
members. Here all of them must agree. The layout is that of PKWARE's APPNOTE.TXT, version 6.3.10.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from kustom.errors import CorruptFileError, FileError, FormatError, UnsafeFileError
from kustom.saving.limits import Limits

__all__ = ["CONFIG", "MANIFEST", "METADATA", "STORED", "WEIGHTS", "Member", "directory", "end", "local"]

CONFIG, METADATA, WEIGHTS, MANIFEST = "config.json", "metadata.json", "model.weights.h5", "kustom.json"
STORED, DEFLATED = 0, 8
_JSON = (CONFIG, METADATA, MANIFEST)
_ENCRYPTED, _DESCRIBED, _UTF8 = 1, 8, 0x800
_FLAGS = 6 | _DESCRIBED | _UTF8
_ZIP64, _UNICODE_PATH = 0x0001, 0x7075
_MANY, _LARGE = 0xFFFF, 0xFFFFFFFF
# Below this, no member is so large that its ratio would matter.
_SMALL = 2**20
# The first day that the format knows: the same model gives the same bytes.
_DATE = (1 << 5) | 1


@dataclass(frozen=True)
class Member:
    """A member of an archive.

    Args:
        name: Its name.
        method: `STORED` or `DEFLATED`.
        crc: The CRC-32 of its bytes.
        packed: How many bytes it takes in the archive.
        size: How many bytes it has.
        head: Where its head begins.
        offset: Where its bytes begin.
    """

    name: str
    method: int
    crc: int
    packed: int
    size: int
    head: int
    offset: int = -1
    flags: int = 0


class _Reader:
    def __init__(self, take: Callable[[int, int], Any], size: int, limits: Limits, file: str, found: list[FileError] | None):
        self.take = take
        self.size = size
        self.limits = limits
        self.file = file
        self.found = found

    def fail(self, error: type[FileError], message: str, part: str | None = None) -> NoReturn:
        raise error(f"{message.rstrip('.')}.", file=self.file, part=part)

    def corrupt(self, message: str, part: str | None = None) -> NoReturn:
        self.fail(CorruptFileError, f"{message}. The file is damaged; get it again from where it came.", part)

    def note(self, error: FileError) -> None:
        if self.found is None:
            raise error
        self.found.append(error)

    def bytes(self, offset: int, size: int, what: str) -> bytes:
        if offset < 0 or size < 0 or offset + size > self.size:
            self.corrupt(f"{what} should be at the byte {offset:,}, and the file has {self.size:,}")
        return bytes(self.take(offset, size))


def directory(
    take: Callable[[int, int], Any], size: int, limits: Limits, file: str, found: list[FileError] | None = None
) -> dict[str, Member]:
    """The members of an archive, by name, in the order of the file.

    Args:
        take: `take(offset, size)` gives bytes of the file.
        size: How many it has.
        limits: How many members, and how large.
        file: The file's name, for messages.
        found: Where faults are noted that leave the rest readable; None: the first is raised.

    Raises:
        FileError: It is no such archive.
    """
    reader = _Reader(take, size, limits, file, found)
    limits.hold("max_bytes", size, "its size in bytes", file=file)
    count, start, length, table_end = _end(reader)
    limits.hold("max_members", count, "the number of its members", file=file)
    if start + length != table_end:
        reader.fail(
            UnsafeFileError,
            f"{table_end - start - length:,} bytes stand before the archive or inside of it that belong to no member",
        )
    members = _table(reader, count, start, length)
    return _checked(reader, members, start)


def _end(reader: _Reader) -> tuple[int, int, int, int]:
    """The number of members, where the table of them begins, how long it is, and where it must end."""
    if reader.size < 22 or reader.bytes(0, 2, "the archive") != b"PK":
        head = reader.bytes(0, min(8, reader.size), "the archive")
        if head == b"\x89HDF\r\n\x1a\n":
            reader.fail(
                FormatError,
                "this is an HDF5 file: a whole model in Keras's older format, which runs what it names, or weights alone. Load it "
                'with the program that wrote it, and save the model with kustom.save(model, "model.keras")',
            )
        known = {b"\x80\x02": "a pickle", b"\x80\x04": "a pickle", b"\x80\x05": "a pickle", b"\x1f\x8b": "a gzip file"}
        what = "an empty file" if not reader.size else known.get(head[:2])
        if what is None:
            start = bytes(reader.take(0, min(reader.size, 2**20))).find(b"PK\3\4")
            if start > 0:
                reader.fail(UnsafeFileError, f"{start:,} bytes stand before the archive")
        reader.fail(FormatError, f"this is {what or 'no zip archive'}, where a .keras file was expected")
    data = reader.bytes(reader.size - 22, 22, "the archive's end")
    at = reader.size - 22
    if data[:4] != b"PK\5\6" or data[20:22] != b"\0\0":
        tail = reader.bytes(max(0, reader.size - 2**16 - 22), min(reader.size, 2**16 + 22), "the archive's end")
        found = tail.rfind(b"PK\5\6")
        if found >= 0:
            reader.fail(UnsafeFileError, f"{len(tail) - found - 22:,} bytes stand behind the archive's end, or in a comment there")
        reader.corrupt("the archive's end is missing: it was cut off")
    _, disk, first, here, count, length, start, _ = struct.unpack("<4s4H2IH", data)
    if disk or first or here != count:
        reader.fail(FormatError, "an archive in several pieces")
    if count == _MANY or _LARGE in (length, start):
        where = reader.bytes(at - 20, 20, "the larger archive's end")
        signature, disk, record, disks = struct.unpack("<4sIQI", where)
        if signature != b"PK\6\7" or disk or disks != 1 or record + 56 != at - 20:
            reader.corrupt("the larger archive's end is not where it should be")
        values = struct.unpack("<4sQ2H2I4Q", reader.bytes(record, 56, "the larger archive's end"))
        signature, rest, _, _, disk, first, here, count, length, start = values
        if signature != b"PK\6\6" or rest != 44 or disk or first or here != count:
            reader.corrupt("the larger archive's end is none")
        at = record
    return count, start, length, at


def _table(reader: _Reader, count: int, start: int, length: int) -> list[Member]:
    data = reader.bytes(start, length, "the table of members")
    members, at = [], 0
    for _ in range(count):
        if at + 46 > length:
            reader.corrupt("the table of members is too short")
        values = struct.unpack_from("<4s6H3I5H2I", data, at)
        signature, made, _, flags, method, _, _, crc, packed, size, named, extra, comment, disk, _, attributes, head = values
        if signature != b"PK\1\2" or at + 46 + named + extra + comment > length:
            reader.corrupt("the table of members is none")
        name = _name(reader, data[at + 46 : at + 46 + named], flags)
        fields = _extra(reader, data[at + 46 + named : at + 46 + named + extra], name)
        size, packed, head = _wide(reader, fields.get(_ZIP64, b""), (size, packed, head), name)
        if comment or disk not in (0, _MANY):
            reader.fail(UnsafeFileError, "a member with a comment, or on another disk", name)
        _refuse_kind(reader, name, flags, method, made >> 8, attributes)
        members.append(Member(name, method, crc, packed, size, head, flags=flags))
        at += 46 + named + extra + comment
    if at != length:
        reader.corrupt("the table of members is too long")
    return members


def _name(reader: _Reader, data: bytes, flags: int) -> str:
    try:
        return data.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        reader.fail(UnsafeFileError, f"the name of a member is no text that all read alike: {data[:80]!r}")


def _extra(reader: _Reader, data: bytes, name: str) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        code, size = struct.unpack_from("<HH", data, at)
        if code in fields or code == _UNICODE_PATH or at + 4 + size > len(data):
            reader.fail(UnsafeFileError, "a second name, or fields that do not fit", name)
        fields[code] = data[at + 4 : at + 4 + size]
        at += 4 + size
    if at != len(data):
        reader.corrupt("the fields of a member do not fit", name)
    return fields


def _wide(reader: _Reader, data: bytes, values: tuple[int, ...], name: str) -> tuple[int, ...]:
    wide, at = [], 0
    for value in values:
        if value == _LARGE:
            if at + 8 > len(data):
                reader.corrupt("a size of a large member is missing", name)
            (value,) = struct.unpack_from("<Q", data, at)
            at += 8
        wide.append(value)
    return tuple(wide)


def _refuse_kind(reader: _Reader, name: str, flags: int, method: int, system: int, attributes: int) -> None:
    if flags & _ENCRYPTED:
        reader.fail(UnsafeFileError, "an encrypted member", name)
    if flags & ~_FLAGS or method not in (STORED, DEFLATED):
        reader.fail(
            FormatError, f"a member packed by the method {method} with the flags {flags:#x}; expected stored or deflated", name
        )
    kind = stat.S_IFMT(attributes >> 16) if system == 3 else 0
    if kind not in (0, stat.S_IFDIR if name.endswith("/") else stat.S_IFREG):
        reader.fail(UnsafeFileError, "a link or a device, where a file was expected", name)


def _checked(reader: _Reader, members: list[Member], start: int) -> dict[str, Member]:
    """Hold the heads of the members against the table, and the members against each other."""
    seen: dict[str, Member] = {}
    folded: set[str] = set()
    total = assets = here = 0
    for member in sorted(members, key=lambda each: each.head):
        if member.head != here:
            what = "lies on another one" if member.head < here else f"has {member.head - here:,} bytes of nobody before it"
            reader.fail(UnsafeFileError, f"the member {what}", member.name)
        member, here = _head(reader, member, start)
        if member.name.casefold() in folded:
            reader.note(
                UnsafeFileError("the member is there twice; readers differ in which they take.", file=reader.file, part=member.name)
            )
            continue
        folded.add(member.name.casefold())
        fault = _fault(member)
        if fault is not None:
            error, message = fault
            reader.note(error(f"{message}.", file=reader.file, part=member.name))
            continue
        total += member.size
        assets += member.size if member.name.startswith("assets/") else 0
        try:
            _hold(reader, member, total, assets)
        except FileError as error:
            reader.note(error)
            continue
        seen[member.name] = member
    if here != start:
        reader.fail(UnsafeFileError, f"{start - here:,} bytes of nobody stand before the table of members")
    for name in (CONFIG, METADATA, WEIGHTS):
        if name.casefold() not in folded:
            reader.note(
                CorruptFileError(
                    "the member is missing. The file is damaged; get it again from where it came.", file=reader.file, part=name
                )
            )
    return {name: member for name, member in seen.items() if not name.endswith("/")}


def _hold(reader: _Reader, member: Member, total: int, assets: int) -> None:
    limits, file = reader.limits, reader.file
    limits.hold("max_bytes", total, "the size of its members, unpacked,", file=file)
    limits.hold("max_asset_bytes", assets, "the size of its assets", file=file)
    if member.name in _JSON:
        limits.hold("max_config_bytes", member.size, "its length in bytes", file=file, part=member.name)
    if member.method == STORED and member.packed != member.size:
        reader.corrupt(f"a stored member of {member.size:,} bytes takes {member.packed:,}", member.name)
    if member.size > _SMALL:
        limits.hold(
            "max_ratio", member.size // max(member.packed, 1), "how many times it grows when unpacked", file=file, part=member.name
        )


def _fault(member: Member) -> tuple[type[FileError], str] | None:
    """What is wrong with a member's name, if anything."""
    name, parts = member.name, member.name.split("/")
    if name in (*_JSON, WEIGHTS):
        return None
    if name == "model.weights.npz":
        return (
            FormatError,
            'weights in NumPy\'s format, which Keras no longer writes; save the model again with model.save("model.keras")',
        )
    folder = name.endswith("/")
    parts = parts[:-1] if folder else parts
    odd = any(each in ("", ".", "..") or each != each.strip(" .") for each in parts)
    if odd or any(ord(sign) < 32 or sign in '\\:*?"<>|\x7f' for sign in name) or any(len(each) > 255 for each in parts):
        return UnsafeFileError, f"the name {name[:100]!r} leads out of the archive, or means different things on different systems"
    if parts[0] != "assets" or (len(parts) == 1 and not folder) or (folder and member.size):
        return UnsafeFileError, f"nobody expects a member {name[:100]!r}; a model has {', '.join((*_JSON, WEIGHTS))} and assets/"
    return None


def _head(reader: _Reader, member: Member, table: int) -> tuple[Member, int]:
    """The member with the place of its bytes, and where they end; its head says what the table says."""
    data = reader.bytes(member.head, 30, "a member's head")
    signature, _, flags, method, _, _, crc, packed, size, named, extra = struct.unpack("<4s5H3I2H", data)
    rest = reader.bytes(member.head + 30, named + extra, "a member's head")
    if signature != b"PK\3\4":
        reader.corrupt("a member's head is not where it should be", member.name)
    fields = _extra(reader, rest[named:], member.name)
    if _LARGE in (packed, size):
        size, packed = _wide(reader, fields.get(_ZIP64, b""), (size, packed), member.name)
    described = bool(flags & _DESCRIBED)
    same = (0, 0, 0) if described and (crc, packed, size) == (0, 0, 0) else (member.crc, member.packed, member.size)
    if (flags, method) != (member.flags, member.method) or _name(reader, rest[:named], flags) != member.name:
        reader.fail(UnsafeFileError, "its head has another name or form than the table of members says", member.name)
    if (crc, packed, size) != same:
        reader.fail(UnsafeFileError, "its head has other sizes or sums than the table of members says", member.name)
    offset = member.head + 30 + named + extra
    end = offset + member.packed
    if end > table:
        reader.corrupt("the member's bytes reach beyond the last of them", member.name)
    moved = Member(member.name, member.method, member.crc, member.packed, member.size, member.head, offset, flags)
    return moved, end + (_descriptor(reader, moved, end, table) if described else 0)


def _descriptor(reader: _Reader, member: Member, at: int, table: int) -> int:
    data = reader.bytes(at, min(24, table - at), "a member's sums")
    for mark in (b"PK\7\x08", b""):
        for form in ("<III", "<IQQ"):
            expected = mark + struct.pack(
                form, member.crc, *(min(n, 2**32 - 1) if form == "<III" else n for n in (member.packed, member.size))
            )
            if data.startswith(expected):
                return len(expected)
    reader.corrupt("the sums behind the member are missing", member.name)


def local(name: str, crc: int, size: int) -> bytes:
    """The head of a stored member."""
    encoded = name.encode("utf-8")
    flags = 0 if name.isascii() else _UTF8
    extra, small = b"", size
    if size >= _LARGE:
        extra, small = struct.pack("<HHQQ", _ZIP64, 16, size, size), _LARGE
    needs = 45 if extra else 20
    head = struct.pack("<4s5H3I2H", b"PK\3\4", needs, flags, STORED, 0, _DATE, crc, small, small, len(encoded), len(extra))
    return head + encoded + extra


def end(members: list[Member], start: int) -> bytes:
    """The table of stored members, which begins at `start`, and the end of the archive."""
    lines = []
    for member in members:
        encoded = member.name.encode("utf-8")
        flags = 0 if member.name.isascii() else _UTF8
        wide = [value for value in (member.size, member.packed, member.head) if value >= _LARGE]
        extra = struct.pack(f"<HH{len(wide)}Q", _ZIP64, 8 * len(wide), *wide) if wide else b""
        small = [min(value, _LARGE) for value in (member.packed, member.size, member.head)]
        needs = 45 if extra else 20
        # Made on Unix, by everybody to be read.
        mode = (stat.S_IFREG | 0o644) << 16
        line = struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", (3 << 8) | needs, needs, flags, STORED, 0, _DATE, member.crc, *small[:2], len(encoded),
            len(extra), 0, 0, 0, mode, small[2],
        )  # fmt: skip
        lines.append(line + encoded + extra)
    table = b"".join(lines)
    count, length = len(members), len(table)
    tail = b""
    if count >= _MANY or start >= _LARGE or length >= _LARGE:
        tail = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, (3 << 8) | 45, 45, 0, 0, count, count, length, start)
        tail += struct.pack("<4sIQI", b"PK\6\7", 0, start + length, 1)
    small = [min(count, _MANY)] * 2 + [min(length, _LARGE), min(start, _LARGE)]
    return table + tail + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *small, 0)
