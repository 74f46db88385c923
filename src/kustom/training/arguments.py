"""What a compiled function is given and what it gives, as tensors and everything else.

A program takes tensors and gives tensors. What stands around them is taken off before and put back afterwards: structure,
text, objects. It is part of the program, and so it has to be comparable: of it and of the shapes is the key made under which
a program is found again.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import optree
from keras import ops

from kustom.backends import current
from kustom.errors import FunctionError
from kustom.training.leaves import unheld

__all__ = ["Arguments", "Result", "tensor_types"]


class Result:
    """The structure of what a function returns: tensors, and whatever else stands between them."""

    def pack(self, returned: Any) -> list[Any]:
        leaves, self._tree = optree.tree_flatten(returned, none_is_leaf=True)
        self._others: list[Any] = [None if ops.is_tensor(leaf) else (leaf,) for leaf in leaves]
        # It is a single one by itself.
        self._bare = self._tree.is_leaf()
        return [leaf for leaf in leaves if ops.is_tensor(leaf)]

    def unpack(self, outs: list[Any]) -> Any:
        if self._bare:
            return outs[0] if outs else self._others[0][0]
        found = iter(outs)
        return optree.tree_unflatten(self._tree, [next(found) if other is None else other[0] for other in self._others])


class _Form:
    """The structure of a call's arguments, and what stands in it that is no tensor."""

    def __init__(self, tree: Any, others: list[Any]) -> None:
        self._tree = tree
        self._others = others

    @property
    def objects(self) -> list[Any]:
        """What is part of the program."""
        return [other[0] for other in self._others if other is not None]

    def rebuilt(self, leaves: list[Any]) -> Any:
        """The arguments, `(args, kwargs)`, with these tensors."""
        found = iter(leaves)
        return optree.tree_unflatten(self._tree, [next(found) if other is None else other[0] for other in self._others])


class Arguments:
    """The arguments of one call: the tensors among them, and a key of everything else."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], static: set[Any]) -> None:
        given: Any = (args, kwargs)
        leaves, tree = optree.tree_flatten(given, none_is_leaf=True)
        places = [path[:2] for path in optree.tree_paths(given, none_is_leaf=True)] if static else [None] * len(leaves)
        others: list[Any] = []
        key: list[Any] = []
        self.leaves: list[Any] = []
        self.whole_numbers: list[int] = []
        for place, leaf in zip(places, leaves, strict=True):
            tensor = leaf
            if type(leaf) not in tensor_types or place in static:
                if place in static or _is_static(leaf):
                    others.append((leaf,))
                    key.append(_key(leaf))
                    continue
                if type(leaf) is int:
                    self.whole_numbers.append(len(self.leaves))
                tensor = _number(leaf) if isinstance(leaf, int | float | complex) else _tensor(leaf)
                if ops.is_tensor(tensor):
                    tensor_types.add(type(tensor))
            others.append(None)
            self.leaves.append(tensor)
            key.append((tuple(tensor.shape), tensor.dtype) if hasattr(tensor, "shape") else type(tensor))
        self.form = _Form(tree, others)
        self.key = (tree, tuple(key))

    def widened(self) -> list[Any]:
        """The tensors, whole numbers as floats."""
        floats = {i: ops.cast(self.leaves[i], keras.config.floatx()) for i in self.whole_numbers}
        return [floats.get(i, leaf) for i, leaf in enumerate(self.leaves)]


def _number(value: float | complex) -> Any:
    return current("lifting").number(value)


def _tensor(array: Any) -> Any:
    """An array of NumPy's, or a number of its, as a tensor."""
    if not isinstance(array, np.ndarray | np.generic):
        return ops.convert_to_tensor(array)
    if reason := unheld(np.asarray(array)):
        raise FunctionError(f"a compiled function was given {reason}")
    try:
        return ops.convert_to_tensor(array)
    except (TypeError, ValueError):
        raise FunctionError(
            f"a compiled function was given an array of {array.dtype}, of which {keras.backend.backend()} has no tensors. Give "
            "numbers; text and objects by themselves, not in an array, are part of the program."
        ) from None


# The backend's own types of tensors, as they are met: to ask Keras costs more than the rest of an argument.
tensor_types: set[type] = set()


def _is_static(leaf: Any) -> bool:
    if isinstance(leaf, bool | keras.Variable):
        return True
    return not (isinstance(leaf, int | float | complex | np.ndarray | np.generic) or ops.is_tensor(leaf))


def _key(leaf: Any) -> Any:
    if isinstance(leaf, int | float | str | bytes | bool | complex | type(None)):
        return type(leaf), leaf
    return _Same(leaf)


class _Same:
    """Equal to itself alone; it keeps its object, so that no other gets its id."""

    def __init__(self, obj: Any) -> None:
        self.obj = obj

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Same) and other.obj is self.obj

    def __hash__(self) -> int:
        return id(self.obj)
