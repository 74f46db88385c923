"""What a run did: its operations, their values, and the memory behind these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras

__all__ = ["Call", "Node", "Recording", "Storage", "Value", "values_in"]


class Storage:
    """The memory behind one tensor or several.

    Attributes:
        varying: What it holds depends on state, on the inputs or on chance.
        state: It was there before the run.
        writes: The positions of the operations that write into it.
        tensors: How many tensors of the run lie in it.
    """

    __slots__ = ("state", "tensors", "varying", "writes")

    def __init__(self, *, state: bool, varying: bool) -> None:
        self.state = state
        self.varying = varying
        self.writes: list[int] = []
        self.tensors = 0


class Value:
    """A tensor of the run, or a number read from one.

    Attributes:
        kind: `input`, `state`, `constant` or `made`.
        tensor: The tensor itself; None when the run is over, but for state and constants.
        like: A tensor on the device `meta` that has its shape, strides and dtype.
        kept: The tensor of a value that is the same in every run.
    """

    __slots__ = ("kept", "kind", "like", "storage", "tensor")

    def __init__(self, kind: str, tensor: Any, storage: Storage) -> None:
        self.kind = kind
        self.tensor = tensor
        self.storage = storage
        self.like: Any = None
        self.kept: Any = None


class Call:
    """A Python function of a list of tensors that stands for an operation; it gives a list of new tensors."""

    def __init__(self, f: Callable[[list[Any]], list[Any]]) -> None:
        self.f = f


class Node:
    """One operation: what is called, with what, and what it gives.

    Attributes:
        func: An overload of torch's, or a `Call`.
        args: With a `Value` for each tensor.
        seed: The value that the generator among the arguments is seeded with before, where there is one.
        outputs: The values that it gives; None for what is no tensor, or an argument itself.
        written: The values that it writes into.
        random: It draws from a generator whose state goes on.
    """

    __slots__ = ("args", "func", "kwargs", "outputs", "random", "seed", "single", "written")

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.seed: Value | None = None
        self.outputs: list[Value | None] = []
        self.single = True
        self.written: list[Value] = []
        self.random = False

    def values(self) -> Iterator[Value]:
        """The values among the arguments."""
        yield from values_in((self.args, tuple(self.kwargs.values()), self.seed))


def values_in(structure: Any) -> Iterator[Value]:
    """The values in nested lists and tuples."""
    if isinstance(structure, Value):
        yield structure
    elif isinstance(structure, list | tuple):
        for each in structure:
            yield from values_in(each)


class Recording:
    """What one run did.

    Attributes:
        nodes: The operations, in their order.
        inputs: The values of the tensors that the function was given.
        outputs: Those that it returned.
        state: What it read that it had not made.
        variables: The Keras variables that it read or wrote, by the `id` of their tensors, in the order of their use.
        made: The variables that were made in the run.
        gradients: For each leaf whose `.grad` is another after the run: the leaf, that before, the value after, and
            whether the one before matters.
        generators: The generators that it drew from, other than torch's own.
        on_host: All its tensors are in the host's memory.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.state: list[Value] = []
        self.variables: dict[int, keras.Variable] = {}
        self.made: list[keras.Variable] = []
        self.gradients: list[tuple[Any, Any, Value | None, bool]] = []
        self.generators: list[Any] = []
        self.on_host = True
