"""How much a file may ask for before anything is allocated for it. The defaults are far above what ordinary models need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from kustom.errors import LimitError

__all__ = ["DEFAULT", "Limits"]

_KIB, _MIB, _TIB = 2**10, 2**20, 2**40


@dataclass(frozen=True)
class Limits:
    """What a file may hold and ask for.

    Args:
        max_bytes: The whole file, and all its members together as they are when unpacked.
        max_config_bytes: Each of the JSON members.
        max_members: The members of the archive.
        max_depth: How deep lists and objects of a JSON member may be nested.
        max_values: The values in a JSON member: numbers, texts, lists, objects, their entries.
        max_layers: The layers and operations of all models in the config.
        max_arrays: The arrays in the weights, and the groups that hold them.
        max_size: A shape in the config, all axes multiplied; a number of units, filters, bins and the like.
        max_asset_bytes: All assets (vocabularies and the like) together.
        max_ratio: How many times larger a compressed member, or a compressed array, may become.
    """

    max_bytes: int = _TIB
    max_config_bytes: int = 64 * _MIB
    max_members: int = 10_000
    max_depth: int = 128
    max_values: int = 4_000_000
    max_layers: int = 100_000
    max_arrays: int = 1_000_000
    max_size: int = 2**28
    max_asset_bytes: int = 1024 * _MIB
    max_ratio: int = 100

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise LimitError(f"{each.name}= is a whole number from 1 on, not {value!r}.")

    @classmethod
    def named(cls, limits: Mapping[str, int]) -> Limits:
        """The limits that a call was given by their names, the others by default.

        Raises:
            LimitError: There is none of such a name, or it is given something else than a whole number from 1 on.
        """
        known = cls.__dataclass_fields__
        for name in limits:
            if name not in known:
                raise LimitError(f"there is no limit {name!r}; there are {', '.join(known)}.")
        return cls(**limits)

    def hold(self, name: str, value: int, what: str, *, file: str | None = None, part: str | None = None) -> None:
        """Refuse `value` where it is above the limit `name`.

        Raises:
            LimitError: It is; the message says what to raise.
        """
        limit = getattr(self, name)
        if value > limit:
            raise LimitError(
                f"{what} is {value:,}, and {name} allows {limit:,}. If you know the file, raise it: {name}={value:_}.",
                file=file,
                part=part,
            )


DEFAULT = Limits()
