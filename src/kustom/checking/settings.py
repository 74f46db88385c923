"""What `[tool.kustom]` in pyproject.toml says of checking; the command line goes before it."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from kustom.errors import UsageError, did_you_mean

__all__ = ["Settings", "read_settings"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to check.

    Attributes:
        select: Codes to run, or how they begin; all where it is empty.
        ignore: Codes to leave out.
        exclude: Patterns of paths to leave out of folders.
        backend: A backend, or "all"; the one that Keras takes where it is empty.
        seed: Of the checks' random numbers, or "random".
        baseline: The file of findings of old, from where pyproject.toml stands.
        preview: Whether new codes run, too.
        timeout: Seconds for a cell of a notebook.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    backend: str = ""
    seed: int | str = 0
    baseline: str = ""
    preview: bool = False
    timeout: float = 60.0


def read_settings(folder: str | Path = ".") -> Settings:
    """The settings of the nearest pyproject.toml, from a folder upwards, that has a table `[tool.kustom]`.

    Args:
        folder: Where to begin.

    Raises:
        UsageError: The table has an entry that there is not, or one of another type; or the file is no TOML.
    """
    here = Path(folder).resolve()
    for place in (here, *here.parents):
        file = place / "pyproject.toml"
        if file.is_file():
            try:
                table = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("kustom")
            except tomllib.TOMLDecodeError as error:
                raise UsageError(f"{file} is no TOML: {error}.") from error
            if table is not None:
                return _settings(table, file)
    return Settings()


def _settings(table: dict[str, Any], file: Path) -> Settings:
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    given: dict[str, Any] = {}
    for name, value in table.items():
        if name not in fields:
            entries = ", ".join(fields)
            raise UsageError(f"[tool.kustom] in {file} has {name!r}; its entries are {entries}.{did_you_mean(name, fields)}")
        given[name] = _converted(name, value, fields[name].default, file)
    if given.get("baseline"):
        given["baseline"] = str(file.parent / given["baseline"])
    return Settings(**given)


def _converted(name: str, value: Any, default: Any, file: Path) -> Any:
    if isinstance(default, tuple):
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return tuple(value)
        expected = "a list of texts"
    elif name == "seed":
        if (isinstance(value, int) and not isinstance(value, bool)) or value == "random":
            return value
        expected = 'a whole number, or "random"'
    elif isinstance(default, bool | str):
        if isinstance(value, type(default)):
            return value
        expected = "true or false" if isinstance(default, bool) else "a text"
    else:
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
        expected = "a positive number"
    raise UsageError(f"[tool.kustom] in {file}: {name} is {expected}, not {value!r}.")
