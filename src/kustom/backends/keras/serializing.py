"""Configs: what Keras makes of an object in writing, and of a config in reading, with every object known by its id.

Reading is in safe mode always, and whoever reads says first which class or function a name stands for.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.models import functional
from keras.src.saving import serialization_lib
from keras.src.saving.serialization_lib import ObjectSharingScope, SafeModeScope

from kustom.backends.keras.exchanging import Exchange
from kustom.backends.keras.variables import forget_uninitialized
from kustom.backends.keras.watching import makes, values_wait

__all__ = ["compile_again", "deserialized", "found_by", "serialized", "share"]


def share(obj: Any, config: Any) -> None:
    """Mark the config of `obj`, so that an object which stands in a file twice comes back as one.

    Keras marks the first config only when it meets the object again; by then the first has been copied. Nothing is
    marked outside of `save`, where configs are compared.
    """
    if global_state.get_global_attribute("shared_objects/id_to_config_map") is not None and isinstance(config, dict):
        config["shared_object_id"] = id(obj)


class _Noted(threading.local):
    def __init__(self) -> None:
        self.all: list[list[tuple[Any, dict[str, Any]]]] = []


_noted = _Noted()


def _noted_record(plain: Callable[[Any, dict[str, Any]], None]) -> Callable[[Any, dict[str, Any]], None]:
    noted = _noted

    @functools.wraps(plain)
    def record_object_after_serialization(obj: Any, config: dict[str, Any]) -> None:
        plain(obj, config)
        for each in noted.all:
            # Kept, so that no other object comes to have its id.
            each.append((obj, config))
            config["shared_object_id"] = id(obj)

    return record_object_after_serialization


_recording = Exchange(serialization_lib, "record_object_after_serialization", _noted_record)


def serialized(obj: Any) -> tuple[dict[str, Any], list[tuple[Any, dict[str, Any]]]]:
    """The config of `obj` as Keras writes it, and every object that stands in it beside its own config.

    Each config has its object's id as `shared_object_id`: Keras marks an object only when it meets it again, by which time
    the first config has been copied, so that a layer given to two custom layers came back as two.
    """
    noted: list[tuple[Any, dict[str, Any]]] = []
    _noted.all.append(noted)
    try:
        with _recording, ObjectSharingScope():
            config: Any = serialization_lib.serialize_keras_object(obj)
    finally:
        _noted.all.remove(noted)
    return config, noted


class _Finders(threading.local):
    def __init__(self) -> None:
        self.all: list[Callable[[dict[str, Any], str], Any]] = []


_finders = _Finders()


def _found(plain: Callable[..., Any]) -> Callable[..., Any]:
    finders = _finders

    @functools.wraps(plain)
    def _retrieve_class_or_fn(name: Any, registered_name: Any, module: Any, obj_type: Any, full_config: Any, *args: Any, **kw: Any):
        for finder in finders.all[-1:]:
            found = finder(full_config, name)
            if found is not None:
                return found
        return plain(name, registered_name, module, obj_type, full_config, *args, **kw)

    return _retrieve_class_or_fn


_finding = Exchange(serialization_lib, "_retrieve_class_or_fn", _found)


@contextlib.contextmanager
def found_by(finder: Callable[[dict[str, Any], str], Any]) -> Iterator[None]:
    """A scope, in safe mode, in which `finder` is asked first for the class or function of a config."""
    _finders.all.append(finder)
    try:
        with _finding, SafeModeScope(True):
            yield
    finally:
        _finders.all.pop()


class _Graph:
    """A functional model that is being made.

    Args:
        ends: Its inputs and outputs in its config, which are counted on with the calls.
    """

    def __init__(self, ends: dict[str, Any]) -> None:
        self.ends = ends
        self._elsewhere: dict[str, int] | None = None

    def elsewhere(self, layers: dict[str, Any]) -> dict[str, int]:
        """How often each layer was called before this model's first call."""
        if self._elsewhere is None:
            self._elsewhere = {name: _calls_elsewhere(layer) for name, layer in layers.items()}
            for end in self.ends.values():
                _count_ends(end, self._elsewhere)
        return self._elsewhere


class _Graphs(threading.local):
    def __init__(self) -> None:
        # Outermost first.
        self.all: list[_Graph] = []


_graphs = _Graphs()


def _graph_noted(plain: Callable[..., Any]) -> Callable[..., Any]:
    graphs = _graphs

    @functools.wraps(plain)
    def functional_from_config(cls: Any, config: dict[str, Any], *args: Any, **named: Any) -> Any:
        # Keras takes these two out of the config, and reads them when all calls are made.
        ends = {key: copy.deepcopy(config[key]) for key in ("input_layers", "output_layers")}
        graphs.all.append(_Graph(ends))
        try:
            return plain(cls, {**config, **ends}, *args, **named)
        finally:
            graphs.all.pop()

    return functional_from_config


def _calls_counted(plain: Callable[..., Any]) -> Callable[..., Any]:
    graphs = _graphs

    @functools.wraps(plain)
    def deserialize_node(node_data: Any, created_layers: dict[str, Any]) -> Any:
        if not (graphs.all and isinstance(node_data, dict)):
            return plain(node_data, created_layers)
        counted = graphs.all[-1].elsewhere(created_layers)
        return plain(_calls_moved(node_data, counted) if any(counted.values()) else node_data, created_layers)

    return deserialize_node


def _calls_elsewhere(layer: Any) -> int:
    return len(layer._inbound_nodes) - isinstance(layer, keras.layers.InputLayer)


def _count_ends(value: Any, counted: dict[str, int]) -> None:
    """Add to the calls that the ends of a graph are of those that were made before, in place."""
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        value[1] += counted.get(value[0], 0)
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            _count_ends(item, counted)


def _calls_moved(value: Any, counted: dict[str, int]) -> Any:
    """The config of a call, whose inputs are outputs of calls that are numbered within the model."""
    if isinstance(value, dict):
        moved = {key: _calls_moved(item, counted) for key, item in value.items()}
        history = moved.get("keras_history") if isinstance(moved.get("keras_history"), list | tuple) else None
        if history:
            moved["keras_history"] = [history[0], history[1] + counted.get(history[0], 0), *history[2:]]
        return moved
    return type(value)(_calls_moved(item, counted) for item in value) if type(value) in (list, tuple) else value


_graphs_noted = Exchange(functional, "functional_from_config", _graph_noted)
_numbering = Exchange(functional, "deserialize_node", _calls_counted)


def deserialized(
    config: Any, finder: Callable[[dict[str, Any], str], Any], known: dict[int, Any] | None = None
) -> tuple[Any, dict[int, Any]]:
    """What a config stands for, in safe mode, and its objects by their `shared_object_id`.

    Keras numbers the calls of a layer within each model. A layer that stands in two models has been called by the first when
    the second is made, which then counts on from there, instead of taking the first's calls for its own.

    Args:
        config: A config; what stands in it as an array, or another object, is handed on as it is.
        finder: Asked first for the class or function of a config, given it and the name; None where it knows none.
        known: Objects that were made before, by their `shared_object_id`.
    """
    with found_by(finder), ObjectSharingScope(), _graphs_noted, _numbering:
        objects: Any = global_state.get_global_attribute("shared_objects/id_to_obj_map")
        objects.update(known or {})
        return serialization_lib.deserialize_keras_object(config, safe_mode=True), objects


def compile_again(
    model: Any,
    config: dict[str, Any],
    finder: Callable[[dict[str, Any], str], Any],
    known: dict[int, Any],
    initialize: Callable[[list[keras.Variable]], None],
    account: Callable[[list[keras.Variable]], None],
) -> dict[int, Any]:
    """Compile a loaded model as it was; returns the objects that were made for it, by their `shared_object_id`.

    Args:
        model: The model, with its weights.
        config: Its compile config.
        finder: See `deserialized`.
        known: Objects that were made before.
        initialize: Gives the variables of losses, metrics and optimizers their first values.
        account: Told what was made with values already: an optimizer's state, and what a `compile` of one's own makes.
    """
    own = type(model).compile is not keras.Model.compile
    if own or type(model).compile_from_config is not keras.Model.compile_from_config:
        with found_by(finder), makes() as made:
            model.compile_from_config(config)
        account(made)
        return {}
    with keras.StatelessScope(initialize_variables=False), values_wait(), makes() as made:
        arguments, objects = deserialized(config, finder, known)
    forget_uninitialized(made)
    initialize(made)
    model.compile(**arguments)
    if model.built and model.optimizer is not None:
        with makes() as state:
            model.optimizer.build(model.trainable_variables)
        account(state)
    model.compiled = True
    return objects
