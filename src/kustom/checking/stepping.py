"""What an optimizer does: steps of a copy of it on two small variables, so that the one that was given stays as it was.

The copy is of the object and not by its config, since what a config loses is what some checks look for; only one that is built,
and so bound to the variables of a model, is made again from its config.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

__all__ = ["copied", "generators_in", "stepper", "steps_for", "trained_by"]


def steps_for(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What an optimizer is tried with: the first values of two variables, and their gradients in four steps."""
    return rng.normal(size=(2, 3, 2)).astype("float32"), rng.normal(size=(4, 2, 3, 2)).astype("float32")


def copied(optimizer: Any) -> Any:
    """Another optimizer, not built, that does what this one would have done."""
    if optimizer.built:
        return type(optimizer).from_config(optimizer.get_config())
    # Not by `copy.deepcopy`, which asks the config.
    other = object.__new__(type(optimizer))
    memo: dict[int, Any] = {id(optimizer): other}
    for name, value in vars(optimizer).items():
        try:
            vars(other)[name] = copy.deepcopy(value, memo)
        except (TypeError, RuntimeError):
            # A lock, TensorFlow's strategy: what there can be one of alone is no state of an optimizer.
            vars(other)[name] = value
    return other


def stepper(optimizer: Any, variables: list[Any], by_pairs: bool = False) -> Callable[[Any], None]:
    """What makes a step of an optimizer that is built for the variables, by their gradients, as fit does.

    `by_pairs`: by `apply_gradients`, as on TensorFlow.
    """

    def in_pairs(gradients: Any) -> None:
        optimizer.apply_gradients(list(zip(map(ops.convert_to_tensor, gradients), variables, strict=True)))

    def eagerly(gradients: Any) -> None:
        optimizer.apply([ops.convert_to_tensor(slope) for slope in gradients], variables)

    def without_state(gradients: Any) -> None:
        # One that decides by its gradients' values cannot assign on JAX.
        now = [v.value for v in optimizer.variables], [v.value for v in variables]
        slopes = [ops.convert_to_tensor(slope) for slope in gradients]
        for held, values in zip((variables, optimizer.variables), optimizer.stateless_apply(now[0], slopes, now[1]), strict=True):
            for variable, value in zip(held, values, strict=True):
                variable.assign(value)

    if by_pairs:
        return in_pairs
    return without_state if keras.backend.backend() == "jax" else eagerly


def trained_by(
    optimizer: Any, first: np.ndarray | None = None, slopes: np.ndarray | None = None, *, by_pairs: bool = False
) -> list[np.ndarray]:
    """Variables after some steps of a copy of an optimizer, on gradients that are always the same where none are given."""
    other = copied(optimizer)
    if first is None or slopes is None:
        first, slopes = steps_for(np.random.default_rng(0))
    variables = [keras.Variable(value) for value in first]
    other.build(variables)
    step = stepper(other, variables, by_pairs)
    for gradients in slopes:
        step(gradients)
    return [np.asarray(ops.convert_to_numpy(v)) for v in variables]


def generators_in(optimizer: Any) -> Iterator[keras.random.SeedGenerator]:
    """The generators of random numbers in an optimizer's attributes."""
    for value in vars(optimizer).values():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, keras.random.SeedGenerator):
                yield each
