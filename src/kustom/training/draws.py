"""Whether a step draws from generators of NumPy's or Python's, whose numbers would be the same in each run of its program.

`noise = np.random.normal(size=shape)` in a step is what people write who come from loops that are not compiled. Traced, it is
one noise for ever. So the state of each generator that the step can name is looked at before and after a trace. A draw that
fills what is made on the first call alone is none of the step's: it is traced once more, with all of it made.
"""

from __future__ import annotations

import pickle
import random
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kustom.training.reached import Reached, content_of
from kustom.training.spaces import attributes_in, imported_in

__all__ = ["Draws"]

# What a generator is called, how its state is read, and how it is set.
_Source = tuple[str, Callable[[], Any], Callable[[Any], None]]


class Draws:
    """The generators that a function may draw from, as they stand now.

    Args:
        reached: What the function reaches.
    """

    def __init__(self, reached: Reached) -> None:
        self._sources = list(_sources(reached))
        self._before = [get() for _, get, _ in self._sources]
        self._looked: list[bytes] = []
        self.drawn: list[str] = []
        self.while_made = False

    def look(self) -> None:
        """The function is about to be run."""
        self._looked = self._states()

    def looked(self, *, made: bool) -> None:
        """It has been run, and has made variables or not."""
        names = [name for name, _, _ in self._sources]
        self.drawn = [name for name, was, now in zip(names, self._looked, self._states(), strict=True) if was != now]
        self.while_made = made

    def put_back(self) -> None:
        """Let the generators stand as they stood."""
        for (_, _, put), before in zip(self._sources, self._before, strict=True):
            put(before)

    def _states(self) -> list[bytes]:
        return [pickle.dumps(get()) for _, get, _ in self._sources]


def _sources(reached: Reached) -> Iterator[_Source]:
    named = [content_of(cell) for cell, _ in reached.cells] + [space.get(name) for space, name in reached.globals]
    named += [module for code in reached.codes for module in imported_in(code)]
    # A method of the generator behind a module's functions: `from numpy.random import normal`.
    owners = [each.__self__ for each in named if isinstance(each, types.BuiltinMethodType | types.MethodType)]
    attributes = frozenset[str]().union(*map(attributes_in, reached.codes))
    modules = [each for each in named if isinstance(each, types.ModuleType)]
    if np.random in modules or (np in modules and "random" in attributes):
        owners.append(_NUMPY)
    if random in modules:
        owners.append(_PYTHON)
    loose = [value for value, name, owner in reached.loose if name and (owner is None or name in reached.names)]
    for generator in {id(each): each for each in [*owners, *loose]}.values():
        if isinstance(generator, np.random.Generator):
            bits: Any = generator.bit_generator
            yield "a generator of NumPy's", lambda bits=bits: bits.state, lambda state, bits=bits: setattr(bits, "state", state)
        elif isinstance(generator, np.random.RandomState):
            name = "np.random" if generator is _NUMPY else "a generator of NumPy's"
            yield name, lambda generator=generator: generator.get_state(legacy=False), generator.set_state
        elif isinstance(generator, random.Random):
            yield "Python's random", generator.getstate, generator.setstate


# What stands behind the functions of the two modules.
_NUMPY: Any = np.random.mtrand._rand  # pyright: ignore[reportAttributeAccessIssue]
_PYTHON: Any = random.random.__self__  # pyright: ignore[reportAttributeAccessIssue]
