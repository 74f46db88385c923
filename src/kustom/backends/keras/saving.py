"""Weights: Keras's walk over a model, into stores of kustom's and out of them.

The order and the paths are Keras's, so that a file of either loads in the other. What is read is looked at before it
goes into a variable, and is read only then.
"""

from __future__ import annotations

import collections
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras.src.saving import saving_lib
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils.naming import to_snake_case

from kustom.backends.keras.exchanging import Exchange
from kustom.backends.keras.names import is_internal
from kustom.backends.keras.tensors import kind_of
from kustom.backends.keras.variables import open_scope

__all__ = ["Reading", "Stored", "Written", "assets_in", "load_state", "name_nested", "save_state"]

_SAVES_NESTED = "visited_containers" in inspect.signature(saving_lib._save_container_state).parameters


def name_nested(owner: Any) -> None:
    """Have Keras 3.14 save what stands in a container within a container, such as a list of lists of layers.

    It saves what `dir(owner)` names, and of a container there only what stands in it directly. So each container further
    in gets an attribute of its own, under the path that Keras 3.15 writes: a file of either loads in the other.
    """
    if _SAVES_NESTED:
        return
    attributes = vars(owner)
    for name in [name for name in attributes if "/container" in name]:
        del attributes[name]
    for name, value in list(attributes.items()):
        if isinstance(value, list | tuple | dict) and not is_internal(owner, name):
            attributes.update(_containers_in(value, name, {id(value)}))


def _containers_in(container: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    used: collections.Counter[str] = collections.Counter()
    for item in container.values() if isinstance(container, dict) else container:
        nested = isinstance(item, list | tuple | dict)
        if not nested and not isinstance(item, KerasSaveable):
            continue
        name = "container" if nested else to_snake_case(type(item).__name__)
        number = used[name]
        used[name] += 1
        if nested and id(item) not in seen:
            seen.add(id(item))
            inside = f"{path}/{name}_{number}" if number else f"{path}/{name}"
            yield inside, item
            yield from _containers_in(item, inside, seen)


class Written(saving_lib.H5IOStore):
    """A store that takes what Keras saves of a model, without writing it anywhere: a variable stays the variable.

    Attributes:
        entries: From each path the values of its object, by their keys.
    """

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Any]] = {}

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: Any = None) -> Any:
        return self.entries.setdefault(path, {})

    def close(self) -> None:
        pass


class Stored:
    """An array of a file that has not been read: a variable that is given it sees first whether it fits.

    To anything else it is what Keras hands out, a data set: it has a shape, and becomes an array where one is made of it.

    Attributes:
        variable: The variable that it was given to; None where there is none.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, read: Callable[[], Any], place: str) -> None:
        self.shape, self.kind, self.read, self.place = shape, dtype, read, place
        self.variable: keras.Variable | None = None

    @property
    def dtype(self) -> np.dtype:
        """As an array has it: JAX looks at it before it makes one."""
        return np.dtype(self.kind)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = keras.ops.convert_to_numpy(self.read())
        return array if dtype is None else array.astype(dtype)

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key]

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError(f"{self.place} is one number, which has no length")
        return self.shape[0]


class _Entry(Mapping[str, Stored]):
    """What is stored of one object; it knows whether any of it was taken."""

    def __init__(self, values: Mapping[str, Stored]) -> None:
        self._values = values
        self.taken = False

    def __getitem__(self, key: str) -> Stored:
        value = self._values[key]
        self.taken = True
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Reading(saving_lib.H5IOStore):
    """A store that Keras loads from, made of arrays that are read one by one when they are wanted."""

    def __init__(self, entries: Mapping[str, Mapping[str, Stored]]) -> None:
        self._entries = {path: _Entry(values) for path, values in entries.items()}
        # Each path, and those above it: Keras asks several times for each layer.
        self._paths = {path for each in entries for path in itertools.accumulate(each.split("/"), "{}/{}".format)}

    def untaken(self) -> list[str]:
        """The paths of which nothing was taken.

        That they were asked for says little: a layer that is not built yet looks at its path and leaves what is there.
        """
        return sorted(path for path, entry in self._entries.items() if entry and not entry.taken)

    def __bool__(self) -> bool:
        return True

    def get(self, path: str) -> Any:
        return self._entries.get(path) or _Entry({})

    def has_path(self, path: str) -> bool:
        return path in self._paths

    def close(self) -> None:
        pass


def save_state(model: Any, store: Any, assets: Any = None, skip: Iterable[Any] = ()) -> set[int]:
    """Save a model as Keras does, into stores; returns the ids of the objects that it came to."""
    visited = {id(obj) for obj in skip}
    saving_lib._save_state(model, weights_store=store, assets_store=assets, inner_path="", visited_saveables=visited)
    return visited


def load_state(
    model: Any, store: Any, assets: Any = None, skip_ids: Iterable[int] = ()
) -> tuple[set[int], list[tuple[Any, Exception]]]:
    """Load a model as Keras does; returns the ids of the objects that it came to, and those that failed with their errors."""
    visited, failed, errors = set(skip_ids), set(), {}
    with _filling:
        saving_lib._load_state(
            model,
            weights_store=store,
            assets_store=assets,
            inner_path="",
            visited_saveables=visited,
            failed_saveables=failed,
            error_msgs=errors,
        )
    return visited, list(errors.values()) if failed else []


def _filled_assign(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def assign(self: Any, value: Any) -> Any:
        if isinstance(value, Stored):
            if tuple(value.shape) != tuple(self.shape):
                raise ValueError(f"{value.place} has the shape {value.shape}, and {self.path} is {tuple(self.shape)}")
            if kind_of(value.kind) != kind_of(self._dtype):
                raise ValueError(f"{value.place} has the dtype {value.kind}, and {self.path} is {self._dtype}")
            value.variable = self
            value = value.read()
        if self._value is not None or open_scope() is not None:
            return plain(self, value)
        value = self._convert_to_tensor(value, dtype=self._dtype)
        if tuple(value.shape) != tuple(self.shape):
            raise ValueError(f"a value of the shape {tuple(value.shape)} was to be that of {self.path}, {tuple(self.shape)}")
        self._initialize(value)
        self._initializer = None
        return value

    return assign


_filling = Exchange(keras.Variable, "assign", _filled_assign)


def assets_in(folder: str) -> Any:
    """A store of assets in a folder, from which they are loaded, and into which they can be saved."""
    return saving_lib.DiskIOStore(folder, mode="r")
