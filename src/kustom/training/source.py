"""What a loop asks of its data: blocks of batches, all of one shape, from an epoch that can be begun anywhere.

A loop knows no kinds of data. It begins an epoch, takes blocks until there are none, and reads in each either rows of arrays
that are resident or the batches themselves, stacked. What a batch looks like to the step is the source's `unflatten`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Block", "Source", "flatten", "unflatten"]


@dataclass(frozen=True)
class Block:
    """A run of batches, all of one shape.

    Exactly one of `rows` and `arrays` is given, and the block is the part `[offset : offset + batches]` of its first axis.
    The length of that axis, the capacity, is the same in all blocks of a shape, so that nothing is compiled anew for another
    number of batches; entries outside of the block may belong to another one or hold anything. The same object comes again
    while it lasts, so that it need be moved to a device only once.

    Attributes:
        batches: How many batches it has; at least 1.
        size: Samples a batch; 1 where the batches have no samples.
        start: The number of the first of them in the epoch, from 0.
        offset: Where in `rows` or `arrays` the block begins.
        rows: int32 `(capacity, size)`: for each batch the rows of the resident arrays.
        arrays: The leaves of the batches, each `(capacity, *shape)` with the shape of the leaf of one batch.
    """

    batches: int
    size: int
    start: int
    offset: int = 0
    rows: np.ndarray | None = None
    arrays: list[np.ndarray] | None = None


class Source:
    """Batches, an epoch at a time.

    Attributes:
        structure: What `step(*args)` gets, with the number of a leaf in the place of the leaf. A source that must be drawn
            from to know it has None before its first `take`.
        resident: The whole arrays, leaf by leaf, where the data is arrays that fit into memory; else None.
        batches: Batches an epoch; None where unknown.
        samples: Samples in the data; None where unknown.
        seed: What the order is made from; the same seed gives the same order again.
        ended: Whether nothing more can come, in this epoch or another.
    """

    structure: Any = None
    resident: list[np.ndarray] | None = None
    batches: int | None = None
    samples: int | None = None
    seed: int = 0
    ended: bool = False

    def begin(self, epoch: int, at: int = 0) -> None:
        """Begin epoch number `epoch` at its batch number `at`, both from 0.

        A source whose order can be known gives what the uninterrupted run would have been given from there on: the order is
        a function of the seed and these numbers. A one-pass iterator goes on from where it is, and drops `at` batches.
        """
        raise NotImplementedError

    def take(self, most: int) -> Block | None:
        """Up to `most` batches of one shape, at least one; None at the end of the epoch."""
        raise NotImplementedError

    def unflatten(self, leaves: list[Any]) -> tuple[Any, ...]:
        """The arguments of a step, `(x,)`, `(x, y)` or `(x, y, sample_weight)`, from the leaves of one batch."""
        return unflatten(self.structure, leaves)

    def close(self) -> None:
        """Stop drawing. What a one-pass iterator has given and nobody took is kept for the next source over it."""


def flatten(nest: Any, leaves: list[Any]) -> Any:
    """Append the leaves of nested dicts, lists and tuples to `leaves`; the nest with their numbers in their places.

    Keras's own tree orders a dict's leaves by the library it finds installed, and takes None for a leaf; here None stays
    where it is, so that a step gets it as the source gave it.
    """
    if nest is None:
        return None
    if isinstance(nest, Mapping):
        numbered = {key: flatten(nest[key], leaves) for key in sorted(nest, key=str)}
        return {key: numbered[key] for key in nest}
    if isinstance(nest, list | tuple):
        inner = [flatten(item, leaves) for item in nest]
        if isinstance(nest, list):
            return inner
        return type(nest)(*inner) if hasattr(nest, "_fields") else tuple(inner)
    leaves.append(nest)
    return len(leaves) - 1


def unflatten(structure: Any, leaves: list[Any]) -> Any:
    """Undo `flatten`."""
    if structure is None:
        return None
    if isinstance(structure, dict):
        return {key: unflatten(item, leaves) for key, item in structure.items()}
    if isinstance(structure, list):
        return [unflatten(item, leaves) for item in structure]
    if isinstance(structure, tuple):
        inner = [unflatten(item, leaves) for item in structure]
        return type(structure)(*inner) if hasattr(structure, "_fields") else tuple(inner)
    return leaves[structure]
