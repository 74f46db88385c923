"""A step that runs as plain Python: for a debugger, or because it cannot be traced.

It has the names of a `Program`. Where it raises, Ctrl-C included, every variable that it had touched gets back the value
that it had before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private

__all__ = ["Eager"]


class Eager:
    """A function of tensors that reads and writes variables, run as it is.

    Args:
        f: Takes a list of tensors and returns one.
    """

    heavy = False
    can_raise = True

    def __init__(self, f: Callable[[list[Any]], list[Any]]) -> None:
        self._f = f
        self._touched: dict[int, keras.Variable] = {}

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that it has touched so far."""
        return list(self._touched.values())

    written = variables

    def run(self, tensors: Sequence[Any]) -> list[Any]:
        """Call the function once."""
        with current("lifting").decided(), private.undone() as touched:
            outs = self._f(list(tensors))
        self._touched |= touched
        return outs

    def pick(self, data: Sequence[Any], rows: Any, index: int, *, keep: bool = False) -> list[Any]:
        """Call the function with one batch of those that `loop` takes: with the number `index`.

        Args:
            data: As for `loop`.
            rows: As for `loop`.
            index: Which batch.
            keep: As for `loop`.
        """
        return self.run([a[index] if rows is None else ops.take(a, rows[index], axis=0) for a in data])

    def loop(self, data: Sequence[Any], rows: Any, start: int, count: int, *, keep: bool = False) -> list[Any]:
        """Call the function with `count` batches, one after the other; returns the sum of each of its scalar results.

        Args:
            data: Tensors whose first axis is that of the samples, or where `rows` is None of the batches.
            rows: Integers `(batches, samples)`: which rows make a batch.
            start: The first batch.
            count: How many.
            keep: Whether the values before will be asked for: `keep` has copied them.
        """
        outs = [[ops.stop_gradient(out) for out in self.pick(data, rows, i)] for i in range(start, start + count)]
        # In Python's numbers: sums in float32 would depend on how many batches a call has.
        return [math.fsum(map(float, column)) for column in zip(*outs, strict=True)]

    def wait(self) -> None:
        """Until what was called last has been computed: it has been."""

    def keep(self) -> Any:
        """The state as it is, for `restore`."""
        return [(v, ops.copy(private.own_value(v))) for v in self.variables]

    def restore(self, kept: Any) -> None:
        """Give every variable the value that it had at `keep`."""
        for variable, value in kept:
            private.put(variable, value)
