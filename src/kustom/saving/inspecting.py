"""`kustom.inspect`: what a file is, without running or importing anything of it, not even Keras."""

from __future__ import annotations

import html
import importlib
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from kustom.errors import FileError, UntrustedError
from kustom.saving import archive, schema
from kustom.saving.archive import Archive
from kustom.saving.limits import Limits
from kustom.saving.verdict import Custom, judge

__all__ = ["Inspection", "Layer", "inspect"]


@dataclass(frozen=True)
class Layer:
    """A layer, or an operation, of a model's config.

    Args:
        name: Its name.
        part: What it is, as `module.name`.
        depth: How deep it stands in other models, from 0.
        settings: Its config.
    """

    name: str
    part: str
    depth: int
    settings: Any = field(repr=False)


@dataclass(frozen=True)
class Inspection:
    """What stands in a file.

    Args:
        file: The file.
        size: How many bytes it has.
        model: What the model is, as `module.name`.
        written: Who wrote it: versions and date, as the file says.
        layers: Its layers, models in it followed by theirs.
        arrays: The arrays of its weights: path, shape, dtype, bytes.
        customs: The parts that are not Keras's own.
        needs: The modules that it would have to import, and the registered names of what has none.
        sums: The SHA-256 of each member, in hexadecimal digits.
        sizes: The bytes of each member, unpacked.
        manifest: What `kustom.json` says; None in a file that plain Keras wrote.
        anomalies: Why it would be refused; empty where it would be loaded, given that `needs` are met.
    """

    file: str
    size: int
    model: str
    written: Mapping[str, Any]
    layers: tuple[Layer, ...]
    arrays: tuple[tuple[str, tuple[int, ...], str, int], ...]
    customs: tuple[Custom, ...]
    needs: tuple[str, ...]
    sums: Mapping[str, str]
    sizes: Mapping[str, int]
    manifest: Mapping[str, Any] | None
    anomalies: tuple[FileError, ...]

    @property
    def parameters(self) -> int:
        """The numbers in all arrays of the weights; those of the optimizer count, too."""
        return sum(math.prod(shape) for _, shape, _, _ in self.arrays)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, for JSON."""
        return {
            "file": self.file,
            "size": self.size,
            "model": self.model,
            "written": dict(self.written),
            "layers": [
                {"name": each.name, "part": each.part, "depth": each.depth, "settings": each.settings} for each in self.layers
            ],
            "arrays": [
                {"path": path, "shape": list(shape), "dtype": dtype, "bytes": size} for path, shape, dtype, size in self.arrays
            ],
            "parameters": self.parameters,
            "customs": [
                {
                    "registered_name": each.registered_name,
                    "module": each.module,
                    "slot": each.slot,
                    "place": each.place,
                    "settings": each.settings,
                    "source": each.source,
                }
                for each in self.customs
            ],
            "needs": list(self.needs),
            "members": {name: {"sha256": self.sums.get(name), "bytes": size} for name, size in self.sizes.items()},
            "manifest": self.manifest,
            "anomalies": [{"kind": type(each).__name__, "part": each.part, "message": str(each)} for each in self.anomalies],
        }

    def __repr__(self) -> str:
        return self.text(width=100)

    def text(self, *, width: int | None = None, color: bool = False) -> str:
        """It as tables.

        Args:
            width: Columns of text; those of the terminal where it is None.
            color: Whether it is written in colors.
        """
        from rich.console import Console

        console = Console(
            file=io.StringIO(), record=True, width=width, color_system="standard" if color else None, force_terminal=color
        )
        for table in self._tables():
            console.print(table)
        return console.export_text(styles=color).rstrip()

    def _repr_html_(self) -> str:
        tables = []
        for title, columns, rows in self._contents():
            head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
            body = "".join("<tr>" + "".join(f"<td>{html.escape(_shown(cell))}</td>" for cell in row) + "</tr>" for row in rows)
            tables.append(f"<table><caption>{html.escape(title)}</caption><tr>{head}</tr>{body}</table>")
        return "".join(tables)

    def _contents(self) -> list[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]]:
        """The tables: titles, columns, rows."""
        written = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in self.written.items())
        facts: list[tuple[Any, ...]] = [
            ("file", self.file),
            ("size", _bytes(self.size)),
            ("model", self.model),
            ("written by", written or "nobody says"),
            ("numbers in the weights", f"{self.parameters:,} in {len(self.arrays):,} arrays"),
            ("would need", ", ".join(self.needs) or "nothing besides Keras"),
            ("verdict", "refused" if self.anomalies else "nothing against it"),
        ]
        members = [(name, _bytes(size), self.sums.get(name, "")) for name, size in self.sizes.items()]
        layers = [(f"{'  ' * each.depth}{each.name}", each.part, _brief(each.settings)) for each in self.layers]
        homes = _distributions(self.manifest)
        customs = [
            (
                each.registered_name,
                each.slot,
                (each.module or "a script or notebook") + (f" ({home})" if (home := homes.get(each.registered_name)) else ""),
                each.source or "nobody vouches",
                _brief(each.settings),
            )
            for each in self.customs
        ]
        anomalies = [(type(each).__name__, each.part or "", _without(str(each), self.file, each.part)) for each in self.anomalies]
        arrays = [
            (path, "×".join(map(str, shape)) or "one number", dtype, _bytes(size)) for path, shape, dtype, size in self.arrays
        ]
        found: list[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]] = [
            (os.path.basename(self.file), ("", ""), facts),
            ("Members", ("name", "size", "SHA-256"), members),
            ("Architecture", ("layer", "part", "settings"), layers),
            ("Weights", ("path", "shape", "dtype", "size"), arrays),
            ("Custom parts", ("name", "as", "from", "known by", "settings"), customs),
            ("Anomalies", ("kind", "where", "what"), anomalies),
        ]
        return [(title, columns, rows) for title, columns, rows in found if rows]

    def _tables(self) -> Iterable[Any]:
        from rich.table import Table
        from rich.text import Text

        for title, columns, rows in self._contents():
            table = Table(title=Text(_shown(title)), title_justify="left", show_header=any(columns))
            for column in columns:
                table.add_column(column, overflow="fold")
            for row in rows:
                table.add_row(*(Text(_shown(cell), style="red" if title == "Anomalies" else "") for cell in row))
            yield table


def inspect(
    path: str | os.PathLike[str] | IO[bytes], trust: str | Iterable[str] | Mapping[str, Any] = (), **limits: int
) -> Inspection:
    """What a `.keras` file holds: nothing of it is run or imported, not even Keras; JSON and headers are read, no values.

    Args:
        path: The file, or a binary file object.
        trust: What `kustom.load` would be given as `trust=`.
        limits: How much the file may ask for, by name, as `kustom.load` takes it.

    Returns:
        Its architecture, sizes, custom parts and where they come from, what it would need, checksums, and everything that
        speaks against loading it, not only the first. It prints as tables.

    Raises:
        FileError: It is no archive at all, or larger than `max_bytes`, so that there is nothing to show.
        LimitError: There is no limit of such a name.
        OSError: It cannot be opened.

    Example:
        >>> import keras, kustom
        >>> keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save("model.keras")
        >>> inspection = kustom.inspect("model.keras")
        >>> inspection.model, inspection.parameters, inspection.needs, inspection.anomalies
        ('keras.Sequential', 8, (), ())
    """
    allowed = Limits.named(limits)
    with archive.read(path, allowed, hold=False, faults=True) as found:
        verdict = judge(found, trust=trust, limits=allowed, registered=_registry())
        wanted = [custom for custom in verdict.customs if custom.source != "registered"]
        needs = dict.fromkeys(custom.module or custom.registered_name for custom in wanted)
        anomalies = [
            *found.faults,
            *_of_manifest(found),
            *(error for error in verdict.anomalies if not isinstance(error, UntrustedError)),
        ]
        return Inspection(
            file=found.file,
            size=found.size,
            model=_part(found.config),
            written=_written(found),
            layers=tuple(_layers(found.config)),
            arrays=tuple((each.path, each.shape, each.dtype, each.nbytes) for each in found.weights.walk()),
            customs=verdict.customs,
            needs=tuple(needs),
            sums={name: found.digest(name) for name in found.members},
            sizes={name: member.size for name, member in found.members.items()},
            manifest=found.manifest,
            anomalies=tuple(anomalies),
        )


def _of_manifest(found: Archive) -> Iterable[FileError]:
    try:
        if found.manifest is not None:
            schema.check(found.manifest, found.file)
    except FileError as error:
        yield error


def _registry() -> Mapping[str, Any] | None:
    """What the running program has registered, if it runs Keras."""
    if "keras" not in sys.modules:
        return None
    return importlib.import_module("kustom.backends.keras").registry()


def _written(found: Archive) -> dict[str, Any]:
    """Who wrote a file, by what it says itself."""
    versions = (found.manifest or {}).get("versions")
    told = {**found.metadata, **(versions if isinstance(versions, dict) else {})}
    return {str(key): value for key, value in told.items() if isinstance(value, str | int | float)}


def _distributions(manifest: Any) -> dict[str, str]:
    """The distributions, with their versions, that a manifest says its parts to be of."""
    parts = manifest.get("parts") if isinstance(manifest, dict) else None
    found = {}
    for each in parts if isinstance(parts, list) else ():
        if isinstance(each, dict) and isinstance(each.get("registered_name"), str) and each.get("distribution"):
            found[each["registered_name"]] = f"{each['distribution']} {each.get('version') or ''}".strip()
    return found


def _part(config: Any) -> str:
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        return "unknown"
    module = config.get("module")
    return f"{module}.{config['class_name']}" if isinstance(module, str) else config["class_name"]


def _layers(config: Any, depth: int = 0) -> Iterable[Layer]:
    """The layers of a model's config; what is not one is passed over, the verdict speaks of it."""
    settings = config.get("config") if isinstance(config, dict) else None
    layers = settings.get("layers") if isinstance(settings, dict) else None
    for layer in layers if isinstance(layers, list) else ():
        if not isinstance(layer, dict):
            continue
        told = layer.get("config")
        inner = told if isinstance(told, dict) else {}
        name = layer.get("name", inner.get("name"))
        own = {key: value for key, value in inner.items() if key != "layers"}
        yield Layer(name if isinstance(name, str) else "unnamed", _part(layer), depth, own)
        yield from _layers(layer, depth + 1)


def _brief(settings: Any) -> str:
    """Settings in one line, without those that say nothing."""
    if not isinstance(settings, dict):
        return ""
    dull = {"name", "trainable", "dtype"}
    told = {key: value for key, value in settings.items() if key not in dull and value not in (None, False, [], {})}
    line = ", ".join(f"{key}={_value(value)}" for key, value in told.items())
    return line if len(line) <= 120 else f"{line[:119]}…"


def _value(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("class_name"), str):
        inner = value.get("config")
        if isinstance(inner, str):
            return inner
        return f"{value['class_name']}({_brief(inner)})"
    return json.dumps(value, ensure_ascii=False)


def _shown(cell: Any) -> str:
    """Text that a terminal only shows: what would command it is written out."""
    return "".join(sign if sign.isprintable() or sign == "\n" else f"\\x{ord(sign):02x}" for sign in str(cell))


def _without(message: str, *prefixes: str | None) -> str:
    for prefix in prefixes:
        if prefix is not None:
            message = message.removeprefix(f"{prefix}: ")
    return message


def _bytes(size: int) -> str:
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:,.0f} {unit}" if unit == "bytes" else f"{amount:,.1f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} TiB"
