"""A model from its config, before it has a single weight: what `save` holds its own config against, and `load` begins with.

Nothing is allocated: variables are made in a stateless scope, where they have a shape and a dtype and no value. An
optimizer allocates when it is built, so that what a model was compiled with comes after its weights.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kustom.backends import keras as private
from kustom.defining.config import decode

__all__ = [
    "ARRAY",
    "Rebuilt",
    "causes",
    "definition_of",
    "is_object",
    "last_said",
    "nodes",
    "public",
    "rebuild",
    "retype",
    "said",
    "types_of",
    "written_of",
]

ARRAY = "__numpy__"
Finder = Callable[[dict[str, Any], str], Any]
# The objects that a config is given where it has no `shared_object_id`, beyond every one that it has.
_OWN_IDS = 1 << 62
_COMMANDS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


@dataclass
class Rebuilt:
    """A model without values.

    Attributes:
        model: The model.
        objects: What was made, by its `shared_object_id`.
        compiles: The ids of the models that were compiled, innermost first, with what they were compiled with.
        made: The variables, none of which has a value yet.
    """

    model: Any
    objects: dict[int, Any]
    compiles: list[tuple[int, dict[str, Any]]]
    made: list[keras.Variable]


def rebuild(config: dict[str, Any], finder: Finder) -> Rebuilt:
    """Make the model of a config, without values, and without what it was compiled with.

    Args:
        config: As Keras serializes it; tuples and arrays may stand in it where they did.
        finder: Gives the class or function for a part's config and its name, or None for one of Keras's own.
    """
    compiles: list[tuple[int, dict[str, Any]]] = []
    bare = _without_compile(config, compiles)
    with (
        without_values(),
        private.values_wait(),
        private.makes() as made,
    ):
        model, objects = private.deserialized(bare, finder)
    private.forget_uninitialized(made)
    # A part that makes a model itself, of the settings alone, makes one that is not compiled.
    return Rebuilt(model, objects, [each for each in compiles if each[0] in objects], made)


def _without_compile(value: Any, compiles: list[tuple[int, dict[str, Any]]]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_without_compile(item, compiles) for item in value)
    if not isinstance(value, dict):
        return value
    kept = {key: _without_compile(item, compiles) for key, item in value.items() if key != "compile_config"}
    if value.get("compile_config") and is_object(value):
        number = kept.setdefault("shared_object_id", _OWN_IDS + len(compiles))
        compiles.append((number, value["compile_config"]))
    elif "compile_config" in value and not is_object(value):
        kept["compile_config"] = value["compile_config"]
    return kept


def causes(error: BaseException) -> list[BaseException]:
    """An error and those behind it, outermost first; where memory was lacking, that is raised: it says nothing of a file.

    Raises:
        MemoryError: It is among them.
    """
    found, inner = [], error
    while inner is not None:
        found.append(inner)
        if isinstance(inner, MemoryError):
            raise inner
        inner = inner.__cause__ or inner.__context__
    return found


def said(error: BaseException) -> str:
    """What an error says, in one line, as it can be shown: Keras writes in bold, and a file's own words may stand in it.

    Raises:
        MemoryError: Memory was lacking, whatever Keras made of that.
    """
    causes(error)
    line = " ".join(_COMMANDS.sub("", str(error)).split())
    return "".join(sign if sign.isprintable() else f"\\x{ord(sign):02x}" for sign in line)


def last_said(error: BaseException, most: int) -> str:
    """What the part says that failed when Keras made it, without the config that Keras quotes before it; at most so many signs.

    Raises:
        MemoryError: Memory was lacking, whatever Keras made of that.
    """
    text = said(error)
    for mark in ("Exception encountered: ", "Error encountered during deserialization: "):
        text = text.rpartition(mark)[2]
    return text if len(text) <= most else f"…{text[-most:]}"


def definition_of(obj: Any) -> Any:
    """The class of an object; a function is its own definition, and so is a class that stands for its default part."""
    return obj if isinstance(obj, type | types.FunctionType) else type(obj)


def written_of(definition: Any) -> Any:
    """What somebody wrote of a definition: the function, where kustom has made a class of one."""
    function = getattr(definition, "fn", None)
    return function if isinstance(function, types.FunctionType) else definition


def is_object(value: Any) -> bool:
    """Whether a part of a config stands for an object: a layer, a loss, a function."""
    return isinstance(value, dict) and "class_name" in value and "config" in value


def public(value: dict[str, Any]) -> dict[str, Any]:
    """The config of an object, an optimizer by its public name: on PyTorch Keras writes the one under which its code is."""
    if is_object(value) and str(value.get("module")).startswith("keras.src.") and hasattr(keras.optimizers, value["class_name"]):
        return {**value, "module": "keras.optimizers", "registered_name": None}
    return value


def nodes(value: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in a config, outermost first, each with its place, a JSON pointer."""
    if is_object(value):
        yield place, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from nodes(item, f"{place}/{_escaped(key)}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from nodes(item, f"{place}/{number}")


def _escaped(key: str) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


def types_of(config: Any, owner_of: Callable[[dict[str, Any]], str], place: str = "", owner: str = "") -> dict[str, list[str]]:
    """Where in the settings of custom parts JSON loses a type: the tuples, and the arrays that are handed on unread.

    Args:
        config: As Keras serializes it, before it is made text.
        owner_of: For the config of an object: `"raw"` where its class takes its settings as they are, so that nobody would
            read the mark of an array; `"custom"` where another custom part has them, and nothing where Keras has.
        place: The place of `config` itself.
        owner: Whose setting it is.
    """
    found: dict[str, list[str]] = {"tuples": [], "arrays": []}
    if is_object(config) and config["class_name"] == ARRAY:
        if owner == "raw" and "shape" not in config["config"]:
            found["arrays"].append(place)
        return found
    items: list[tuple[Any, Any]] = []
    if isinstance(config, dict):
        items = list(config.items())
    elif isinstance(config, list | tuple):
        items = list(enumerate(config))
    for key, item in items:
        of_item = owner
        if isinstance(config, dict) and is_object(config):
            of_item = owner_of(config) if key in ("config", "build_config") else ""
        inner = types_of(item, owner_of, f"{place}/{_escaped(key)}", of_item)
        for kind, places in inner.items():
            found[kind] += places
    if isinstance(config, tuple) and owner:
        found["tuples"].append(place)
    return found


def retype(config: Any, types: dict[str, list[str]]) -> Any:
    """A copy of a config that was text, with the tuples and arrays that it had; `build` gets its shapes as tuples always.

    Raises:
        KeyError: There is nothing in such a place, or nothing of that kind; the message is the place.
    """
    tuples, arrays = set(types.get("tuples", ())), set(types.get("arrays", ()))
    done: set[str] = set()
    copy = _retyped(config, "", tuples, arrays, done, built=False)
    missing = sorted((tuples | arrays) - done)
    if missing:
        raise KeyError(missing[0])
    return copy


def _retyped(value: Any, place: str, tuples: set[str], arrays: set[str], done: set[str], built: bool) -> Any:
    if isinstance(value, list):
        items = [_retyped(item, f"{place}/{n}", tuples, arrays, done, built) for n, item in enumerate(value)]
        if place in tuples:
            done.add(place)
            return tuple(items)
        return tuple(items) if built and all(item is None or isinstance(item, int) for item in items) else items
    if not isinstance(value, dict):
        return value
    if place in arrays and is_object(value) and value["class_name"] == ARRAY and _is_numeric(value["config"]):
        done.add(place)
        return decode(value)
    return {
        key: _retyped(item, f"{place}/{_escaped(key)}", tuples, arrays, done, built or key == "build_config")
        for key, item in value.items()
    }


def _is_numeric(config: Any) -> bool:
    try:
        return isinstance(config, dict) and np.dtype(str(config.get("dtype"))).kind in "biufcV"
    except TypeError:
        return False


def without_values() -> keras.StatelessScope:
    """A scope in which a rebuilt model computes with values that are not its own."""
    return keras.StatelessScope(collect_losses=True, initialize_variables=False)
