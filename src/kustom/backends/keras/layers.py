"""What layers and models are made of: what they track, how they are called, the graph of a functional model.

Keras tells of most of it by attributes whose names begin with an underscore. Each is asked for here, by a function.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.models.functional import Functional
from keras.src.models.model import functional_init_arguments as are_functional
from keras.src.utils.python_utils import default as mark_default
from keras.src.utils.python_utils import is_default

__all__ = [
    "Functional",
    "add_state",
    "are_functional",
    "descendants",
    "functional_of",
    "holders_of",
    "in_call",
    "in_layer_call",
    "input_structure",
    "is_default",
    "is_functional",
    "keeps_states",
    "layers_of",
    "mark_default",
    "metrics_of",
    "sublayers",
    "sublayers_by_place",
    "takers_in",
    "takes_training",
    "track",
    "tracked",
    "training_default",
]


def in_call(layer: keras.layers.Layer) -> bool:
    """Whether `layer` has been called, so that building it is Keras's doing and the call itself will go on."""
    return bool(layer._called)


def sublayers(layer: keras.layers.Layer) -> list[Any]:
    """The layers that `layer` tracks itself, in the order of their making."""
    return layer._layers


def sublayers_by_place(layer: keras.layers.Layer) -> dict[str, Any]:
    """The layers that `layer` tracks itself, by the attribute that each stands in, and where in it."""
    if is_functional(layer):
        return {f"layers/{number}": each for number, each in enumerate(layer.layers)}
    known = {id(each) for each in layer._layers}
    # PyTorch keeps modules apart from other attributes.
    attributes = {**vars(layer).get("_modules", {}), **vars(layer)}
    found: dict[str, Any] = {}
    waiting = [(name, attributes[name]) for name in attributes if name not in ("_layers", "_functional", "_modules")]
    # Last in, first out: TensorFlow keeps all again under names of its own.
    waiting.sort(key=lambda each: each[0].startswith("_"), reverse=True)
    while waiting and known:
        place, value = waiting.pop()
        if id(value) in known:
            known.remove(id(value))
            found[place] = value
        elif isinstance(value, dict):
            waiting += [(f"{place}/{key}", item) for key, item in value.items()]
        elif isinstance(value, list | tuple) and len(place) < 1000:
            waiting += [(f"{place}/{number}", item) for number, item in enumerate(value)]
    return found


def descendants(layer: keras.layers.Layer) -> list[Any]:
    """The layers below `layer`, at any depth."""
    return list(layer._flatten_layers(include_self=False))


def keeps_states(layer: keras.layers.Layer) -> bool:
    """Whether a layer in it writes the states of one batch where it reads those of the next: a stateful recurrence.

    On torch the gradient then needs a copy of what was read, which a tape has that is persistent.
    """
    return any(getattr(each, "stateful", False) for each in layer._flatten_layers())


def functional_of(model: keras.Model) -> Any:
    """The functional model that a `Sequential` keeps and runs, which is no layer of it; None in others."""
    return getattr(model, "_functional", None)


def metrics_of(layer: keras.layers.Layer) -> list[Any]:
    """The metrics that `layer` tracks itself, without those of its sublayers."""
    return layer._metrics


def takes_training(layer: keras.layers.Layer) -> bool:
    """Whether the `call` of `layer` has an argument `training`."""
    return layer._call_has_training_arg


def training_default(layer: keras.layers.Layer) -> Any:
    """The default of `training` in the `call` of `layer`; None where there is none."""
    parameter = inspect.signature(layer.call).parameters.get("training")
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def add_state(layer: keras.layers.Layer, state: Any) -> None:
    """Count `state.state`, a variable, among the layer's own, as that of a seed generator."""
    layer._seed_generators.append(state)


def tracked(owner: Any) -> set[int]:
    """The ids of the layers, metrics, variables and seed generators that `owner` tracks."""
    return set().union(*owner._tracker.stored_ids.values())


def track(owner: Any, obj: Any) -> None:
    """Have `owner` track `obj`, whether or not its state is locked; nothing else about `owner` changes."""
    locked = owner._tracker.locked
    owner._tracker.unlock()
    try:
        owner._tracker.track(obj)
    finally:
        if locked:
            owner._tracker.lock()


def is_functional(layer: keras.layers.Layer) -> bool:
    """Whether a model was made of symbolic inputs and outputs, so that Keras tracks its layers by their graph."""
    return isinstance(layer, keras.Model) and layer._obj_type() in ("Functional", "Sequential")


def in_layer_call() -> bool:
    """Whether this thread is inside the call of a layer."""
    return global_state.get_global_attribute("current_call_ctx") is not None


def input_structure(model: Any) -> Any:
    """The symbolic inputs of a functional model, in the structure in which it takes its data."""
    return model._inputs_struct


def takers_in(model: Any) -> list[tuple[Any, Any]]:
    """In a functional model: each symbolic tensor beside an operation that takes it."""
    return [(tensor, node.operation) for node in _nodes_of(model) for tensor in node.input_tensors]


def _nodes_of(model: Any) -> list[Any]:
    return [node for nodes in model._nodes_by_depth.values() for node in nodes]


def layers_of(model: Any) -> list[Any]:
    """A model and the layers below it, at any depth."""
    return list(model._flatten_layers())


def holders_of(model: Any, layer: Any) -> list[Any]:
    """Those of a model and the layers below it that are `layer`, or have it below them."""
    return [each for each in model._flatten_layers() if each is layer or any(below is layer for below in each._flatten_layers())]
