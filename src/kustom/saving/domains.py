"""An input for a model of which nobody gave an example: of its shapes and dtypes, and with values that its layers take.

What an `Embedding` looks up are ids below its size, a lookup takes words that it knows and one that it does not. An axis
whose size is free gets one that a network of convolutions does not use up. Every input is a rule, not an array.
"""

from __future__ import annotations

from typing import Any

import keras

from kustom.backends import keras as private

__all__ = ["inputs_of"]

_ROWS = 2
# The sizes to try for a free axis.
FREE = (8, 32, 64)


def inputs_of(model: Any, free: int) -> Any | None:
    """Rules for the inputs of a model, in their structure; None where nothing tells what it takes.

    Args:
        model: A built model.
        free: The size of an axis whose size is free.
    """
    symbolic = _symbolic_inputs(model)
    if symbolic is not None:
        counter = iter(range(1_000_000))
        takers = _takers(model)
        return keras.tree.map_structure(
            lambda tensor: _rule(tensor.shape, tensor.dtype, takers.get(id(tensor), []), free, next(counter)), symbolic
        )
    config = model.get_build_config() or {}
    shapes = config.get("input_shape")
    if shapes is None:
        named = {name.removesuffix("_shape"): shape for name, shape in config.get("shapes_dict", {}).items()}
        # Only what the model's first argument takes can be given here.
        shapes = next(iter(named.values())) if len(named) == 1 else None
    if shapes is None:
        return None
    descendants = private.descendants(model)
    counter = iter(range(1_000_000))
    return _of_shapes(shapes, lambda shape: _rule(shape, None, descendants, free, next(counter)))


def _symbolic_inputs(model: Any) -> Any | None:
    model = private.functional_of(model) or model
    if not private.is_functional(model) or isinstance(model, keras.Sequential):
        return None
    return private.input_structure(model)


def _of_shapes(shapes: Any, rule: Any) -> Any:
    if isinstance(shapes, dict):
        return {key: _of_shapes(item, rule) for key, item in shapes.items()}
    if isinstance(shapes, list | tuple) and any(isinstance(item, list | tuple | dict) for item in shapes):
        return type(shapes)(_of_shapes(item, rule) for item in shapes)
    return rule(shapes)


def _takers(model: Any) -> dict[int, list[Any]]:
    """From the id of each symbolic input the layers that take it, those inside of a model that takes it included."""
    found: dict[int, list[Any]] = {}
    for tensor, operation in private.takers_in(private.functional_of(model) or model):
        found.setdefault(id(tensor), []).extend(_first_layers(operation))
    return found


def _first_layers(operation: Any) -> list[Any]:
    """The layers in an operation that may be the first to see what it is given."""
    if isinstance(operation, keras.layers.Layer):
        return [operation, *private.descendants(operation)]
    return [operation]


def _rule(shape: Any, dtype: str | None, takers: list[Any], free: int, seed: int) -> dict[str, Any]:
    sizes = [
        _ROWS if position == 0 and size is None else free if size is None else int(size) for position, size in enumerate(shape)
    ]
    words = next(filter(None, map(_words, takers)), None)
    if dtype == "string" or (dtype is None and words is not None):
        return {"shape": sizes, "dtype": "string", "words": words or ["a", "b c"]}
    ids = [size for size in map(_ids_below, takers) if size is not None]
    kind = private.kind_of(dtype or keras.config.floatx())
    if ids:
        return {"shape": sizes, "dtype": dtype or "int32", "low": 0, "high": min(ids), "seed": seed, "whole": True}
    known = next(filter(None, map(_numbers, takers)), None)
    if known is not None:
        return {"shape": sizes, "dtype": dtype or "int64", "low": min(known), "high": max(known) + 2, "seed": seed, "whole": True}
    if kind == "bool":
        return {"shape": sizes, "dtype": "bool", "low": 0, "high": 1, "seed": seed}
    if kind != "float":
        return {"shape": sizes, "dtype": dtype, "low": 0, "high": 2, "seed": seed}
    return {"shape": sizes, "dtype": dtype or keras.config.floatx(), "low": -1, "high": 1, "seed": seed}


def _ids_below(layer: Any) -> int | None:
    if isinstance(layer, keras.layers.Embedding):
        return layer.input_dim
    if isinstance(layer, keras.layers.CategoryEncoding):
        return layer.num_tokens
    return None


def _words(layer: Any) -> list[str] | None:
    if isinstance(layer, keras.layers.StringLookup | keras.layers.TextVectorization):
        return [*[str(word) for word in layer.get_vocabulary()[2:6]], "unheard-of"]
    return None


def _numbers(layer: Any) -> list[int] | None:
    if isinstance(layer, keras.layers.IntegerLookup):
        return [int(number) for number in layer.get_vocabulary()[1:]]
    return None
