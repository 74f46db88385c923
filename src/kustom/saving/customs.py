"""The parts of a file that are not Keras's own, and what tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Custom", "Key", "key_of", "key_of_text"]

# See `key_of`.
Key = tuple[Any, Any, Any, Any]


@dataclass(frozen=True)
class Custom:
    """A part of a file that is not Keras's own.

    Args:
        registered_name: As in the config, such as `my_package.parts>Gate`.
        module: Where it is to be imported from; None for what was defined in a script or notebook, unless that is the one
            that runs and it is trusted.
        name: The class's or function's own name.
        slot: What is expected in its place: `layer`, `loss`, ...
        place: Where it stands, such as `config.layers[3]`.
        settings: Its config.
        source: `"registered"`, `"trusted"` (by `trust=`; its module is to be imported) or None: nobody vouches for it.
        key: By which it is found again when it is made; see `key_of`.
    """

    registered_name: str
    module: str | None
    name: str
    slot: str
    place: str
    settings: Any
    source: str | None
    key: Key = (None, None, None, None)


def key_of(node: Mapping[str, Any]) -> Key:
    """All that says which class or function the config of a part stands for.

    What was judged is found again by nothing less: two modules have classes of one bare name, and a function's name stands
    in its config, whatever it says to be registered as.
    """
    name = node.get("class_name")
    return node.get("module"), name, node.get("registered_name"), node.get("config") if name == "function" else None


def key_of_text(text: str) -> Key:
    """The key of what a file names by text alone, as Keras writes out what it is given so."""
    return key_of({"class_name": text})
