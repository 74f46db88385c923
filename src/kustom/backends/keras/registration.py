"""Keras's registry of classes and functions, by the name under which a file knows them.

Keras's decorator registers a class under one name; a part has its former names, too, and stands for what was made of it.
"""

from __future__ import annotations

from typing import Any

from keras.src import api_export
from keras.src.saving import object_registration

__all__ = ["is_known_function", "register", "registered", "registered_as", "registered_names", "registry"]


def register(name: str, cls: type, *, bare: type | None = None, formerly: tuple[str, ...] = ()) -> None:
    """Put `cls` into Keras's registry under `name`, and `bare` (what `type(cls)` is) where a config of `cls` is asked."""
    object_registration.GLOBAL_CUSTOM_OBJECTS[name] = cls
    object_registration.GLOBAL_CUSTOM_NAMES[cls] = name
    if bare is not None:
        object_registration.GLOBAL_CUSTOM_NAMES[bare] = name
    for older in formerly:
        object_registration.GLOBAL_CUSTOM_OBJECTS[older] = cls


def registered(name: str) -> Any:
    """What Keras has registered under exactly `name`, or None."""
    return object_registration.GLOBAL_CUSTOM_OBJECTS.get(name)


def registered_as(name: str) -> list[Any]:
    """Every class and function that was ever registered under exactly `name`, in the order of their registration."""
    return [obj for obj, known in object_registration.GLOBAL_CUSTOM_NAMES.items() if known == name]


def registered_names() -> list[str]:
    """Every name in Keras's registry."""
    return list(object_registration.GLOBAL_CUSTOM_OBJECTS)


def is_known_function(function: Any) -> bool:
    """Whether a file can name `function`: Keras exports it, or it is registered."""
    return bool(api_export.get_name_from_symbol(function)) or function in object_registration.GLOBAL_CUSTOM_NAMES


def registry() -> dict[str, Any]:
    """Registered names with what Keras finds under them here: in the open scopes, and behind them in its registry."""
    # A scope that is opened keeps what it replaces.
    with object_registration.CustomObjectScope({}) as scope:
        opened: Any = scope.backup
    return {**object_registration.GLOBAL_CUSTOM_OBJECTS, **opened}
