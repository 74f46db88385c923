"""The seeds of a model, and the generator that Keras keeps for all that draws without one.

That generator is a global of Keras's, and so it is no part of any model; a compiled step and a file need its state all
the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.random import seed_generator
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

from kustom.backends.keras.exchanging import Exchange

__all__ = ["everyones_seed", "seed_of_all", "seeds_of", "set_seed_of_all"]


def _seed_of_all(plain: Callable[[], Any]) -> Callable[[], Any]:
    def global_seed_generator() -> Any:
        if not _seeding.here:
            return plain()
        return _seed_now()

    return global_seed_generator


def _seed_now() -> Any:
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    if generator is None:
        generator = keras.random.SeedGenerator()
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, generator)
    return generator


def seed_of_all(variables: list[keras.Variable]) -> Any:
    """The generator that Keras keeps for all, if its state is among `variables`."""
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    return generator if generator is not None and any(v is generator.state for v in variables) else None


def set_seed_of_all(generator: Any) -> None:
    """Make `generator` the one that Keras keeps for all, with the state of the one that it has now."""
    now = _seed_now()
    if now is not generator:
        generator.state.assign(now.state.value)
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, generator)


_seeding = Exchange(seed_generator, "global_seed_generator", _seed_of_all)


@contextlib.contextmanager
def everyones_seed() -> Iterator[None]:
    """Inside, in this thread, what draws without a seed may do so in a trace: Keras refuses it on JAX.

    The state of the seed that Keras keeps for all is a variable, which is lifted as any other.
    """
    with _seeding:
        yield


def seeds_of(model: Any) -> list[keras.Variable]:
    """The states of the seed generators of a model, and of the one that Keras keeps for all."""
    layers = model._flatten_layers()
    everyones = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    generators = [g for layer in layers for g in layer._seed_generators] + ([everyones] if everyones is not None else [])
    return [generator.state for generator in generators]
