"""What an optimizer was built for, and which take the steps where it wraps others, or hands on to several.

An optimizer that scales the loss and one of several answer for those inside of them only in part; here each is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from kustom.backends.keras.layers import layers_of

__all__ = [
    "MULTI",
    "averaged",
    "count_of",
    "is_multi",
    "names_of_own_optimizers",
    "optimizers_in",
    "own_optimizers",
    "steppers_of",
    "trained_by",
    "unknown_to",
]


def trained_by(optimizer: Any) -> list[keras.Variable]:
    """The variables that `optimizer` was built for, in the order of its building."""
    return list(getattr(optimizer, "inner_optimizer", optimizer)._trainable_variables)


def unknown_to(optimizer: Any, variables: Any) -> list[keras.Variable]:
    """Those of the variables that `optimizer`, which is built, was not built for."""
    known = getattr(optimizer, "inner_optimizer", optimizer)
    return [variable for variable in variables if known._var_key(variable) not in known._trainable_variables_indices]


# `MultiOptimizer`, which Keras 3.14 has not.
MULTI: tuple[type, ...] = tuple(filter(None, [getattr(keras.optimizers, "MultiOptimizer", None)]))


def is_multi(optimizer: Any) -> bool:
    """Whether an optimizer hands each variable to one of several."""
    return isinstance(getattr(optimizer, "inner_optimizer", optimizer), MULTI)


def steppers_of(optimizer: Any) -> list[Any]:
    """The optimizers that take the steps: those inside of one that scales the loss, or that hands on to several."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return [*inner.optimizers] if is_multi(inner) else [inner]


def averaged(optimizer: Any) -> list[keras.Variable]:
    """The variables of which `optimizer` keeps an average, which becomes their value now and then, or at the end."""
    return [v for part in steppers_of(optimizer) if part.built and part.use_ema for v in trained_by(part)]


def count_of(optimizer: Any) -> int:
    """How often `apply` of `optimizer` has been called."""
    return int(keras.ops.convert_to_numpy(optimizer._iterations))


def optimizers_in(values: Any) -> Iterator[Any]:
    """The optimizers among some values, in lists and dicts of them, and those that an optimizer hands on to."""
    for value in values:
        if isinstance(value, keras.optimizers.Optimizer):
            yield value
            yield from optimizers_in([getattr(value, "inner_optimizer", None), *getattr(value, "optimizers", ())])
        elif isinstance(value, list | tuple | dict):
            yield from optimizers_in(value.values() if isinstance(value, dict) else value)


def names_of_own_optimizers(model: Any) -> set[str]:
    """The attributes of a model and of its layers in which optimizers stand."""
    attributes = [item for layer in layers_of(model) for item in vars(layer).items()]
    return {name for name, value in attributes if isinstance(value, keras.optimizers.Optimizer)}


def own_optimizers(model: Any) -> list[Any]:
    """The optimizers in attributes of a model and of its layers."""
    held = [value for layer in layers_of(model) for value in [*vars(layer).values(), getattr(layer, "optimizer", None)]]
    return list(optimizers_in(held))
