"""The verdict on a file: what its config asks for, place by place, before anything of it is imported or made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kustom.errors import FileError
from kustom.saving.archive import Archive
from kustom.saving.limits import DEFAULT, Limits

__all__ = ["Custom", "Verdict", "judge"]

Trust = str | Iterable[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Custom:
    """A part of a file that is not Keras's own.

    Args:
        registered_name: As in the config, such as `my_package.parts>Gate`.
        module: Where it was defined.
        name: The class's or function's own name.
        slot: What is expected in its place: `layer`, `loss`, ...
        place: Where it stands, such as `config.layers[3]`.
        settings: Its config.
        source: `"registered"`, `"trusted"` (by `trust=`; its module is to be imported) or None: nobody vouches for it.
    """

    registered_name: str
    module: str | None
    name: str
    slot: str
    place: str
    settings: Any
    source: str | None


@dataclass(frozen=True)
class Verdict:
    """What was found in a config.

    Args:
        customs: The parts that are not Keras's own, in the order of the config.
        imports: The modules to import, all of them trusted, before anything is made.
        anomalies: Why the file is refused, all reasons; empty where it is not.
    """

    customs: tuple[Custom, ...]
    imports: tuple[str, ...]
    anomalies: tuple[FileError, ...]

    def hold(self) -> None:
        """Raise the first and worst of the anomalies, where there is one.

        Raises:
            FileError: The file is refused.
        """
        raise NotImplementedError


def judge(
    subject: Archive | dict[str, Any],
    *,
    trust: Trust = (),
    limits: Limits = DEFAULT,
    registered: Mapping[str, Any] | None = None,
    file: str | None = None,
) -> Verdict:
    """Judge an archive, or a config alone. Nothing is imported, not even Keras.

    Args:
        subject: What `archive.read` gave, or the config of a model or another part.
        trust: Modules that may be imported, exactly or as packages; or registered names with their classes.
        limits: How much the file may ask for.
        registered: Keras's registry: registered names with what is registered; None where Keras is not running.
        file: How messages name the file, where `subject` is a config.
    """
    raise NotImplementedError
