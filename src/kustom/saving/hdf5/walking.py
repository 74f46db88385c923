"""From the superblock down to the last array: every structure is read once, checked, and left."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

from kustom.errors import FileError
from kustom.saving.hdf5 import messages
from kustom.saving.hdf5.space import UNDEFINED, Space, Take
from kustom.saving.hdf5.tree import Chunk, Dataset, Group
from kustom.saving.limits import Limits

__all__ = ["read"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ENTRY = 40
# Messages that say nothing about where or what values are: nothing at all, the value of entries never written, the hour.
_IDLE = {0x0000, 0x0004, 0x0005, 0x0012}
_NAMED = {
    0x0002: "a group in the newer form",
    0x0006: "links in the newer form, as those to other files are",
    0x0007: "external storage, whose values are in another file",
    0x000D: "a comment",
    0x000F: "a shared table of messages",
    0x0013: "a B-tree's settings",
    0x0015: "attributes in the newer form",
    0x0016: "a counter of links",
}
_REACHES_OUT = {0x0006, 0x0007}
_READ = {0x0001, 0x0003, 0x0008, 0x000B, 0x000C, 0x0011}


@dataclass(frozen=True)
class _Entry:
    """A line of a group: a name, and what it leads to."""

    name: str
    header: int
    kind: int
    tables: tuple[int, int]


def read(
    take: Take,
    size: int,
    limits: Limits,
    *,
    file: str | None = None,
    member: str = "model.weights.h5",
    found: list[FileError] | None = None,
) -> Group:
    """Walk through a whole HDF5 file, and say what is in it.

    Args:
        take: `take(offset, size)` gives bytes of the file.
        size: How many it has.
        limits: How many arrays and groups there may be.
        file: The archive's name, for messages.
        member: The member that it is.
        found: Where faults are noted, so that reading goes on with the next array; None: the first is raised.

    Raises:
        FileError: It is not as Keras writes it, and `found` is None.
    """
    space = Space(take, size, file, member)
    return _Walk(space, limits, found).file()


class _Walk:
    def __init__(self, space: Space, limits: Limits, found: list[FileError] | None) -> None:
        self.space = space
        self.limits = limits
        self.found = found
        self.objects = 0
        self.heaps: dict[int, dict[int, bytes]] = {}

    def file(self) -> Group:
        root = Group("")
        try:
            self._root(root)
            self.space.settle()
        except FileError as error:
            if self.found is None:
                raise
            self.found.append(error)
        return root

    def _root(self, root: Group) -> None:
        space, place = self.space, "superblock"
        data = space.read(0, 96, "the superblock", place)
        if data[:8] != _SIGNATURE:
            space.corrupt(place, "this is no HDF5 file")
        if data[8] != 0:
            space.foreign(place, f"a superblock of version {data[8]}")
        if data[9:16] != bytes([0, 0, 0, 0, 8, 8, 0]):
            space.foreign(place, "other versions or sizes than 0 and 8 bytes")
        self.leaf, self.internal = space.unpack("HH", data, 16, place)
        flags, base, free, end, driver = space.unpack("IQQQQ", data, 20, place)
        if not 0 < self.leaf <= 1024 or not 0 < self.internal <= 1024:
            space.corrupt(place, f"B-trees of {self.leaf} and {self.internal} entries")
        if flags or base or (free, driver) != (UNDEFINED, UNDEFINED):
            space.foreign(place, "a base address, free space or a driver")
        if end != space.size:
            space.corrupt(place, f"the weights should have {end:,} bytes, and have {space.size:,}")
        # The space before the root's header, if any, is the superblock's.
        _, header, kind, _ = space.unpack("QQII", data, 56, place)
        tables = space.unpack("QQ", data, 80, place)
        waiting = [(root, _Entry("", header, kind, tables))]
        while waiting:
            group, entry = waiting.pop()
            try:
                waiting += self._group(group, entry)
            except FileError as error:
                if self.found is None:
                    raise
                self.found.append(error)

    def _group(self, group: Group, entry: _Entry) -> list[tuple[Group, _Entry]]:
        """Fill a group; the groups in it are returned, to be filled later, so that no depth is too deep."""
        place = f"/{group.path}"
        header = self._header(entry.header, place)
        tables = self.space.unpack("QQ", header[0x0011][0], 0, place) if 0x0011 in header else None
        if tables is None:
            self.space.corrupt(place, "a group without a table of names")
        if header.keys() - {0x0011, 0x000C}:
            self.space.corrupt(place, "a group that is an array, too")
        if entry.kind == 1 and entry.tables != tables:
            self.space.corrupt(place, "the place of its names is given twice, and differs")
        group.attributes.update(self._attributes(header.get(0x000C, ()), place))
        below = []
        for each in self._entries(tables[0], tables[1], place):
            self.objects += 1
            path = f"{group.path}/{each.name}" if group.path else each.name
            self.limits.hold(
                "max_arrays", self.objects, "the number of arrays and groups", file=self.space.file, part=self.space.member
            )
            try:
                if each.kind == 2:
                    self.space.unsafe(f"/{path}", "a symbolic link")
                if each.kind not in (0, 1):
                    self.space.corrupt(f"/{path}", f"an entry of the kind {each.kind}")
                if each.kind == 1:
                    group.groups[each.name] = Group(path)
                    below.append((group.groups[each.name], each))
                else:
                    group.datasets[each.name] = self._dataset(each, path)
            except FileError as error:
                if self.found is None:
                    raise
                self.found.append(error)
        return below

    def _header(self, at: int, place: str) -> dict[int, list[bytes]]:
        """The messages of an object, by kind, without those that say nothing."""
        space = self.space
        version, _, count, links, size = space.unpack("BBHII", space.read(at, 16, "an object's header", place), 0, place)
        if version != 1:
            space.foreign(place, f"an object header of version {version}")
        if links != 1:
            space.unsafe(place, f"an object with {links} names (hard links)")
        found: dict[int, list[bytes]] = {}
        strange: list[int] = []
        blocks, read = [(at + 16, size)], 0
        for start, length in blocks:
            data = space.read(start, length, "messages", place)
            here = 0
            while here < length:
                kind, body, flags = space.unpack("HHB", data, here, place)
                if here + 8 + body > length or body % 8 or flags & ~1:
                    space.corrupt(place, f"a message of {body} bytes with the flags {flags}")
                message, here, read = data[here + 8 : here + 8 + body], here + 8 + body, read + 1
                if kind == 0x0010:
                    blocks.append(space.unpack("QQ", message, 0, place))
                elif kind not in _IDLE:
                    strange += [kind] if kind not in _READ else []
                    found.setdefault(kind, []).append(message)
                    if kind != 0x000C and len(found[kind]) > 1:
                        space.corrupt(place, f"two messages of the kind {kind}")
            if read > count:
                space.corrupt(place, f"more than the {count} messages that it should have")
        if read != count:
            space.corrupt(place, f"{read} messages, where {count} should be")
        self._refuse(strange, place)
        return found

    def _refuse(self, strange: list[int], place: str) -> None:
        for kind in strange:
            if kind in _REACHES_OUT:
                self.space.unsafe(place, _NAMED[kind])
        for kind in strange:
            self.space.foreign(place, _NAMED.get(kind, f"a message of the kind {kind}"))

    def _entries(self, tree: int, heap: int, place: str) -> list[_Entry]:
        """The lines of a group, in the order of their names."""
        space = self.space
        head = space.read(heap, 32, "a local heap", place)
        size, _, start = space.unpack("QQQ", head, 8, place)
        if head[:8] != b"HEAP\0\0\0\0":
            space.corrupt(place, "a group's names are no local heap")
        names = space.read(start, size, "a group's names", place)
        entries: list[_Entry] = []
        for leaf in self._leaves(tree, 0, 8, place):
            data = space.read(leaf[1], 8 + 2 * self.leaf * _ENTRY, "a symbol table", place)
            signature, version, _, count = space.unpack("4sBBH", data, 0, place)
            if signature != b"SNOD" or version != 1 or not 0 < count <= 2 * self.leaf:
                space.corrupt(place, "a group's table of names is none")
            for number in range(count):
                name, header, kind, _, one, other = space.unpack("QQIIQQ", data, 8 + number * _ENTRY, place)
                entries.append(_Entry(self._name(names, name, place), header, kind, (one, other)))
        for one, other in itertools.pairwise(entries):
            if one.name.encode() >= other.name.encode():
                space.corrupt(place, f"the names {one.name!r} and {other.name!r} are the same or out of order")
        return entries

    def _name(self, names: bytes, at: int, place: str) -> str:
        end = names.find(b"\0", at)
        try:
            name = names[at:end].decode("utf-8") if end > at else ""
        except UnicodeDecodeError:
            self.space.corrupt(place, f"a name is no text: {names[at:end]!r}")
        if name in ("", ".", "..") or "/" in name:
            self.space.unsafe(place, f"the name {name!r}, which is a path")
        return name

    def _leaves(self, root: int, kind: int, key: int, place: str) -> list[tuple[bytes, int]]:
        """The lowest entries of a B-tree: each one's key, and where it leads."""
        space = self.space
        width = 2 * (self.internal if kind == 0 else _CHUNKS)
        size = 24 + width * 8 + (width + 1) * key
        leaves: list[tuple[bytes, int]] = []
        level, nodes = None, [root]
        while nodes:
            below: list[int] = []
            for number, node in enumerate(nodes):
                data = space.read(node, size, "a B-tree", place)
                signature, what, depth, count, left, right = space.unpack("4sBBHQQ", data, 0, place)
                if (signature, what) != (b"TREE", kind) or count > width:
                    space.corrupt(place, "a B-tree that is none")
                if (depth != level and level is not None) or (not count and len(nodes) > 1):
                    space.corrupt(place, "a B-tree whose branches are not equally long")
                neighbours = (nodes[number - 1] if number else UNDEFINED, (*nodes[number + 1 :][:1], UNDEFINED)[0])
                if (left, right) != neighbours:
                    space.corrupt(place, "a B-tree whose nodes are not in a row")
                level = depth
                for entry in range(count):
                    at = 24 + entry * (key + 8)
                    (child,) = space.unpack("Q", data, at + key, place)
                    if depth:
                        below.append(child)
                    else:
                        leaves.append((data[at : at + key], child))
            level, nodes = (level or 0) - 1, below
        return leaves

    def _attributes(self, found: Any, place: str) -> dict[str, str]:
        values: dict[str, str] = {}
        for data in found:
            name, reference = messages.attribute(self.space, data, place)
            if name in values:
                self.space.corrupt(place, f"the attribute {name!r} is there twice")
            length, heap, number = self.space.unpack("IQI", reference, 0, place)
            values[name] = self._text(heap, number, length, place)
        return values

    def _text(self, at: int, number: int, length: int, place: str) -> str:
        if at not in self.heaps:
            self.heaps[at] = self._heap(at, place)
        data = self.heaps[at].pop(number, None)
        if data is None or len(data) != length:
            self.space.corrupt(place, "an attribute's text is not where it should be")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.space.corrupt(place, f"an attribute is no text: {data[:40]!r}")

    def _heap(self, at: int, place: str) -> dict[int, bytes]:
        """The objects of a global heap."""
        space = self.space
        (size,) = space.unpack("Q", bytes(space.take(at + 8, 8)) if at + 16 <= space.size else b"", 0, place)
        data = space.read(at, size, "a global heap", place)
        if data[:8] != b"GCOL\1\0\0\0" or size < 16:
            space.corrupt(place, "a global heap that is none")
        objects: dict[int, bytes] = {}
        here = 16
        while here + 16 <= size:
            number, _, _, length = space.unpack("HHIQ", data, here, place)
            if not number:
                break
            if number in objects or here + 16 + length > size:
                space.corrupt(place, "a global heap whose texts do not fit")
            objects[number] = data[here + 16 : here + 16 + length]
            here += 16 + -(-length // 8) * 8
        return objects

    def _dataset(self, entry: _Entry, path: str) -> Dataset:
        """An array."""
        space, place = self.space, f"/{path}"
        header = self._header(entry.header, place)
        if 0x0011 in header:
            space.corrupt(place, "a group whose entry does not say so")
        if not {0x0001, 0x0003, 0x0008} <= header.keys():
            space.corrupt(place, "an array without shape, dtype or layout")
        shape = messages.dataspace(space, header[0x0001][0], place)
        dtype, itemsize = messages.datatype(space, header[0x0003][0], place)
        attributes = self._attributes(header.get(0x000C, ()), place)
        if dtype == messages.TEXT:
            space.foreign(place, "text in the place of numbers")
        if dtype == messages.OPAQUE:
            if attributes.get("dtype") != "bfloat16":
                space.foreign(place, "values of two bytes that are no bfloat16")
            dtype = "bfloat16"
        elif "dtype" in attributes:
            space.corrupt(place, f"values of {dtype} that an attribute calls {attributes['dtype']!r}")
        layout = messages.layout(space, header[0x0008][0], place)
        dataset = Dataset(path, shape, dtype, itemsize, layout.offset, None, (), space)
        if layout.chunk_shape is not None:
            return self._chunked(dataset, layout, header, place)
        if 0x000B in header:
            space.corrupt(place, "a filter of an array that is not in chunks")
        if layout.size != dataset.nbytes or (layout.offset == UNDEFINED and dataset.nbytes):
            space.unsafe(place, f"an array {dtype}{list(shape)} of {dataset.nbytes:,} bytes that stores {_stored(layout):,}")
        if dataset.nbytes:
            space.claim(layout.offset, layout.size, "an array", place)
        return dataset

    def _chunked(self, dataset: Dataset, layout: messages.Layout, header: dict[int, list[bytes]], place: str) -> Dataset:
        """An array in compressed pieces: all of them are there, and none unpacks to more than it should."""
        space, shape = self.space, layout.chunk_shape
        assert shape is not None
        if 0x000B not in header:
            space.foreign(place, "an array in chunks that are not compressed")
        messages.filters(space, header[0x000B][0], place)
        if layout.size != dataset.itemsize or len(shape) != len(dataset.shape):
            space.corrupt(place, f"chunks of the shape {shape} for an array of the shape {dataset.shape}")
        wanted = math.prod(-(-length // size) for length, size in zip(dataset.shape, shape, strict=True))
        size = math.prod(shape) * dataset.itemsize
        form = f"II{len(shape) + 1}Q"
        chunks: list[Chunk] = []
        leaves = [] if layout.offset == UNDEFINED else self._leaves(layout.offset, 1, 16 + 8 * len(shape), place)
        if len(leaves) != wanted:
            space.unsafe(place, f"an array {dataset.dtype}{list(dataset.shape)} of {wanted} chunks that stores {len(leaves)}")
        for key, offset in leaves:
            stored, mask, *start, last = space.unpack(form, key, 0, place)
            inside = all(s % n == 0 and s < end for s, n, end in zip(start, shape, dataset.shape, strict=True))
            if mask or last or not inside:
                space.corrupt(place, f"a chunk at {tuple(start)}, with the filter mask {mask}")
            if size > _SMALL:
                ratio = size // max(stored, 1)
                self.limits.hold(
                    "max_ratio", ratio, "how many times a chunk grows", file=space.file, part=f"{space.member}: {place}"
                )
            space.claim(offset, stored, "a chunk", place)
            chunks.append(Chunk(tuple(start), offset, stored))
        if len({chunk.start for chunk in chunks}) != wanted:
            space.corrupt(place, "a chunk is there twice")
        return replace(dataset, chunks=tuple(chunks), chunk_shape=shape)


# Half the entries of a B-tree's node over chunks: fixed in superblock 0.
_CHUNKS = 32
# Below this, no chunk is so large that its ratio would matter.
_SMALL = 2**20


def _stored(layout: messages.Layout) -> int:
    return 0 if layout.offset == UNDEFINED else layout.size
