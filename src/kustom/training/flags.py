"""Flags of Python's that a step sets itself: what it does on its first call alone, or every other time.

`if not self.started: …; self.started = True` is of its first call. A trace of it is, too: it is right where the flag is not
set. So whatever is True, False, None or text before a trace and another of these after it is a condition of the program: it
stands again as it was each time that the function is traced, so that every look at it sees the same; the program is taken
where it stands so; and after each run it is set as the function would have.

A number is not: one that a trace changes is taken for a count, which would make a program for each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kustom.backends import keras as private
from kustom.training.reached import Reached, is_keras
from kustom.training.spaces import stored_in
from kustom.training.watching import NOTHING

__all__ = ["Flags"]

# A place: what tells it from others, and how its value is read and set.
_Place = tuple[tuple[int, Any], Callable[[], Any], Callable[[Any], None]]


class Flags:
    """The flags in everything that a function reaches, as they stand now.

    Args:
        reached: What it reaches.
    """

    def __init__(self, reached: Reached) -> None:
        self._reached = reached
        self._before = [(place, place[1]()) for place in _places(reached)]
        self._after: list[Any] = []
        # Whether they are put back before each trace.
        self.stand = True
        # Whether one was put back that may say what is made already.
        self.are_doubted = False

    def put_back(self) -> None:
        """Set them as they stood."""
        for (_, get, put), before in self._before if self.stand else ():
            if _differs(get(), before):
                put(before)
                self.are_doubted = bool(self._after)

    def say_what_is_made(self) -> None:
        """A trace has made variables: it may be that a flag now says so."""
        self._after = self._after or [get() for (_, get, _), _ in self._before]

    def give_up(self) -> None:
        """A flag says what is made already: leave them as the trace left them that has made it."""
        for ((_, get, put), before), after in zip(self._before, self._after, strict=True):
            if _differs(after, before) and get() != after:
                put(after)
        self.stand = False

    def settle(self) -> dict[tuple[int, Any], tuple[Any, Any, Callable[[Any], None]]]:
        """Set them as they stood.

        Returns:
            Of those that the function sets, from their place: the value before, the one after, and what sets it.
        """
        stored: frozenset[str] | None = None
        changed: dict[tuple[int, Any], Any] = {}
        kept = []
        for (key, get, put), before in self._before if self.stand else ():
            after = get()
            if not _differs(after, before):
                continue
            if key[1] is not None:
                stored = stored_in(self._reached.codes) if stored is None else stored
                if key[1] not in stored:
                    continue
            put(before)
            changed[key] = before, after, put
            kept.append(((key, get, put), before))
        # A program may be traced once more, later: by then others may have changed.
        self._before = kept
        return changed


def _places(reached: Reached) -> Iterator[_Place]:
    for cell, _ in reached.cells:
        yield (id(cell), None), lambda cell=cell: _content(cell), lambda value, cell=cell: setattr(cell, "cell_contents", value)
    for space, name in reached.globals:
        yield _in_space(space, name)
    for obj in reached.objects + reached.others:
        if is_keras(obj) and private.is_of_library(obj):
            continue
        space = vars(obj)
        for name in reached.names:
            if name != "built" and not private.is_internal(obj, name) and _is_flag(space.get(name, NOTHING)):
                yield _in_space(space, name)
    for held, name in reached.mentioned:
        if _is_flag(vars(held)[name]):
            yield _in_class(held, name) if isinstance(held, type) else _in_space(vars(held), name)


def _in_class(cls: type, name: str) -> _Place:
    def put(value: Any) -> None:
        if value is NOTHING:
            delattr(cls, name)
        else:
            setattr(cls, name, value)

    return (id(cls), name), lambda: vars(cls).get(name, NOTHING), put


def _in_space(space: dict[str, Any], name: str) -> _Place:
    def put(value: Any) -> None:
        if value is NOTHING:
            space.pop(name, None)
        else:
            space[name] = value

    return (id(space), name), lambda: space.get(name, NOTHING), put


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        # The name is not bound yet; it is not to be unbound.
        return 0


def _is_flag(value: Any) -> bool:
    return value is NOTHING or value is None or isinstance(value, bool | str)


def _differs(after: Any, before: Any) -> bool:
    return after is not before and _is_flag(after) and _is_flag(before) and after is not NOTHING and after != before
