"""The messages of object headers: of each, the forms that Keras's files have."""

from __future__ import annotations

from dataclasses import dataclass

from kustom.saving.hdf5.space import Space

__all__ = ["OPAQUE", "TEXT", "Layout", "attribute", "dataspace", "datatype", "filters", "layout"]

TEXT = "text"
# h5py knows no bfloat16; Keras says in an attribute that these two bytes are one.
OPAQUE = "opaque"
_INTEGERS = {(size, signed): f"{'' if signed else 'u'}int{8 * size}" for size in (1, 2, 4, 8) for signed in (True, False)}
# Bit fields and properties of IEEE 754 numbers: the sign's place; offset, precision, exponent's place and size, mantissa's, bias.
_FLOATS = {
    (2, 15, (0, 16, 10, 5, 0, 10, 15)): "float16",
    (4, 31, (0, 32, 23, 8, 0, 23, 127)): "float32",
    (8, 63, (0, 64, 52, 11, 0, 52, 1023)): "float64",
}


@dataclass(frozen=True)
class Layout:
    """Where an array's values are: in one row at `offset`, or in chunks under a B-tree there."""

    offset: int
    size: int
    chunk_shape: tuple[int, ...] | None


def dataspace(space: Space, data: bytes, place: str) -> tuple[int, ...]:
    """A shape."""
    version, rank, flags = space.unpack("BBB", data, 0, place)
    if version != 1:
        space.foreign(place, f"a dataspace of version {version}")
    if flags & ~1 or rank > 32:
        space.foreign(place, f"a dataspace of rank {rank} with the flags {flags}")
    shape = space.unpack(f"{rank}Q", data, 8, place)
    if flags & 1 and space.unpack(f"{rank}Q", data, 8 + 8 * rank, place) != shape:
        space.foreign(place, "an array that may grow")
    if any(length > 2**48 for length in shape):
        space.corrupt(place, f"the shape {shape} is larger than any file")
    return shape


def datatype(space: Space, data: bytes, place: str) -> tuple[str, int]:
    """A dtype's name, and the bytes an entry."""
    head, b0, b1, b2, size = space.unpack("BBBBI", data, 0, place)
    kind, version = head & 15, head >> 4
    if version != 1:
        space.foreign(place, f"a datatype of version {version}")
    if kind == 0:
        offset, precision = space.unpack("HH", data, 8, place)
        name = _INTEGERS.get((size, bool(b0 & 8)))
        if name is not None and not b0 & ~8 and not b1 and not b2 and (offset, precision) == (0, 8 * size):
            return name, size
    elif kind == 1:
        offset, precision, *bits, bias = space.unpack("HHBBBBI", data, 8, place)
        name = _FLOATS.get((size, b1, (offset, precision, *bits, bias)))
        if name is not None and b0 == 0x20 and not b2:
            return name, size
    elif kind == 5 and size == 2 and not (b0 or b1 or b2):
        return OPAQUE, size
    elif kind == 8 and size == 1 and (b0, b1) == (2, 0):
        return _boolean(space, data, place), 1
    elif kind == 9 and size == 16 and b0 & 15 == 1:
        return TEXT, size
    if kind in (3, 9):
        space.foreign(place, "text in the place of numbers")
    if kind == 7:
        space.unsafe(place, "references to other objects")
    space.foreign(place, f"values of the kind {kind} with {size} bytes each")


def _boolean(space: Space, data: bytes, place: str) -> str:
    # h5py's form of bool: an enumeration of int8 with the members FALSE and TRUE, names padded to 8 bytes.
    base, _ = datatype(space, data[8:20], place)
    if base == "int8" and data[20:38] == b"FALSE\0\0\0TRUE\0\0\0\0\0\1":
        return "bool"
    space.foreign(place, "an enumeration")


def layout(space: Space, data: bytes, place: str) -> Layout:
    """Where values are."""
    version, kind = space.unpack("BB", data, 0, place)
    if kind == 3:
        space.unsafe(place, "a virtual dataset, whose values are in other files")
    if version != 3:
        space.foreign(place, f"a layout of version {version}")
    if kind == 1:
        offset, size = space.unpack("QQ", data, 2, place)
        return Layout(offset, size, None)
    if kind == 2:
        (rank,) = space.unpack("B", data, 2, place)
        (offset,) = space.unpack("Q", data, 3, place)
        *shape, size = space.unpack(f"{rank}I", data, 11, place) if rank else (0,)
        if rank > 33 or 0 in shape:
            space.corrupt(place, f"chunks of the shape {tuple(shape)}")
        return Layout(offset, size, tuple(shape))
    space.foreign(place, f"a layout of the kind {kind}")


def filters(space: Space, data: bytes, place: str) -> None:
    """Only gzip, and once."""
    version, count = space.unpack("BB", data, 0, place)
    if version != 1 or count != 1:
        space.foreign(place, f"{count} filters, in a list of version {version}")
    code, length, _, values = space.unpack("HHHH", data, 8, place)
    if code != 1 or length % 8 or length > 64 or values != 1:
        space.unsafe(place, f"the filter {code}, where only gzip (1) is read")


def attribute(space: Space, data: bytes, place: str) -> tuple[str, bytes]:
    """An attribute's name, and its value: a reference to text in a global heap."""
    version, flags, name_size, type_size, space_size = space.unpack("BBHHH", data, 0, place)
    if version not in (1, 3) or flags:
        space.foreign(place, f"an attribute of version {version} with the flags {flags}")
    at, step = (8, 8) if version == 1 else (9, 1)

    def next_piece(size: int) -> bytes:
        nonlocal at
        piece, at = data[at : at + size], at + -(-size // step) * step
        if len(piece) != size:
            space.corrupt(place, "an attribute ends too early")
        return piece

    try:
        name = next_piece(name_size).rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError:
        space.corrupt(place, "an attribute's name is no text")
    kind, size = datatype(space, next_piece(type_size), place)
    if kind != TEXT or dataspace(space, next_piece(space_size), place):
        space.foreign(place, f"the attribute {name!r} is no single text")
    return name, next_piece(size)
