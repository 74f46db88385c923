"""What a trace leaves in Python: tensors that have no value afterwards, in attributes, names, lists and dicts.

Whatever held something else before gets it back, and the user is told. Only tracers are taken out: what a step builds on its
first call stays.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any

from keras import ops

from kustom.backends import current
from kustom.training.reached import Reached, content_of

__all__ = ["tracers_put_back"]

# Where Keras keeps the losses of the last call; the next call of a layer clears it.
_LOSSES = "_losses"
_NOTHING = object()


@contextlib.contextmanager
def tracers_put_back(roots: Iterable[Any], report: Callable[[str, Any], None]) -> Iterator[Reached]:
    """What gains a tracer inside gets back what it held, or loses it, and is reported.

    Args:
        roots: What is traced inside, and the objects among its arguments.
        report: Is told a name and the object whose attribute it is, None for a variable of Python.
    """
    reached = Reached(*roots)
    cells = [(cell, name, content_of(cell)) for cell, name in reached.cells]
    names = [(space, name, space[name]) for space, name in reached.globals]
    spaces = {id(obj): dict(vars(obj)) for obj in reached.objects + reached.others + reached.spaces}
    containers = {id(container): _copy(container) for container, _, _ in reached.containers}
    try:
        yield reached
    finally:
        after = Reached(*roots)
        for cell, name, held in cells:
            if _is_tracer(content_of(cell)):
                cell.cell_contents = held
                report(name, None)
        for space, name, held in names:
            if _is_tracer(space.get(name)):
                space[name] = held
                report(name, None)
        for container, name, owner in after.containers:
            if _cleared(container, containers.get(id(container), ())) and name != _LOSSES:
                report(name, owner)
        every = [obj for each in (after, reached) for obj in each.objects + each.others + each.spaces]
        for obj in {id(obj): obj for obj in every}.values():
            space = _Attributes(obj) if isinstance(obj, type) else vars(obj)
            for name in _cleared_names(space, spaces.get(id(obj), {})):
                report(name, obj)


def _copy(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def _cleared(container: Any, held: Any) -> bool:
    """Take the tracers out of a list, dict or set; whether there were any."""
    if isinstance(container, dict):
        return bool(_cleared_names(container, held or {}))
    if isinstance(container, list):
        found = [i for i, value in enumerate(container) if _has_tracer(value)]
        for i in reversed(found):
            if i < len(held):
                container[i] = held[i]
            else:
                del container[i]
        return bool(found)
    found = [value for value in container if _is_tracer(value)]
    container.difference_update(found)
    return bool(found)


class _Attributes(collections.UserDict[str, Any]):
    """What stands in a class, which only the class itself can change."""

    def __init__(self, cls: type) -> None:
        super().__init__(vars(cls))
        self._cls = cls

    def __setitem__(self, name: str, value: Any) -> None:
        if hasattr(self, "_cls"):
            setattr(self._cls, name, value)
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        delattr(self._cls, name)
        super().__delitem__(name)


def _cleared_names(space: MutableMapping[Any, Any], held: dict[Any, Any]) -> list[Any]:
    found = [name for name, value in space.items() if _has_tracer(value)]
    for name in found:
        before = held.get(name, _NOTHING)
        if before is _NOTHING:
            del space[name]
        else:
            space[name] = before
    return found


def _has_tracer(value: Any) -> bool:
    return any(map(_is_tracer, value)) if isinstance(value, tuple) else _is_tracer(value)


def _is_tracer(x: Any) -> bool:
    return ops.is_tensor(x) and not current().is_concrete(x)
