"""What a thread does to variables, watched: which it reads, assigns and makes, with a say in what comes of it.

Tapes, programs and checks find their variables by this, so that nobody has to hand them over. Each thread has its own
watchers; the methods that ask them stand in Keras's class only while some thread watches.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.backend.common.variables import standardize_dtype
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

from kustom.backends.keras.exchanging import Exchange
from kustom.backends.keras.variables import open_scope, put, stored

__all__ = [
    "Reader",
    "assignments_refused",
    "listen",
    "makes",
    "may_be_written",
    "readers_here",
    "reads",
    "told",
    "undone",
    "unlisten",
    "values_wait",
]

Reader = Callable[[keras.Variable, Any], Any]


class _Readers(threading.local):
    def __init__(self) -> None:
        self.all: list[Reader] = []


readers_here = _Readers()


def listen(reader: Reader) -> None:
    """From now on `reader(variable, value)` says what a read of a variable in this thread gives, before any cast."""
    readers_here.all.append(reader)
    _reading.__enter__()


def unlisten(reader: Reader) -> None:
    """Undo one `listen` of this thread."""
    readers_here.all.remove(reader)
    _reading.__exit__()


def _told_value(plain: property) -> property:
    fget, readers = plain.fget, readers_here
    assert fget is not None

    def value(self: Any) -> Any:
        held = stored(self)
        if held is None or not readers.all:
            return fget(self)
        told = held
        for reader in readers.all:
            told = reader(self, told)
        return fget(self) if told is held else self._maybe_autocast(told)

    return property(value, doc=plain.__doc__)


_reading = Exchange(keras.Variable, "value", _told_value)


def told(variable: keras.Variable) -> Any:
    """What a read of `variable` gives, before any cast."""
    held = stored(variable)
    for reader in readers_here.all if held is not None else ():
        held = reader(variable, held)
    return held


@contextlib.contextmanager
def reads() -> Iterator[list[keras.Variable]]:
    """The variables that this thread reads inside, each once, in their order."""
    read: list[keras.Variable] = []

    def note(variable: keras.Variable, value: Any) -> Any:
        if not any(variable is other for other in read):
            read.append(variable)
        return value

    listen(note)
    try:
        yield read
    finally:
        unlisten(note)


class _Refusals(threading.local):
    def __init__(self) -> None:
        self.all: list[Callable[[keras.Variable], Exception]] = []


_refusals = _Refusals()


def _refused_assign(plain: Callable[..., Any]) -> Callable[..., Any]:
    refusals = _refusals

    @functools.wraps(plain)
    def assign(self: Any, value: Any) -> Any:
        if refusals.all:
            raise refusals.all[-1](self)
        return plain(self, value)

    return assign


_refusing = Exchange(keras.Variable, "assign", _refused_assign)


@contextlib.contextmanager
def assignments_refused(refusal: Callable[[keras.Variable], Exception]) -> Iterator[None]:
    """Inside, in this thread, an assignment to a variable raises what `refusal` makes of the variable."""
    _refusals.all.append(refusal)
    try:
        with _refusing:
            yield
    finally:
        _refusals.all.pop()


class _Journals(threading.local):
    def __init__(self) -> None:
        self.all: list[dict[int, tuple[keras.Variable, Any]]] = []


_journals = _Journals()


def _noted_assign(plain: Callable[..., None]) -> Callable[..., None]:
    journals = _journals

    @functools.wraps(plain)
    def _direct_assign(self: Any, value: Any) -> None:
        for journal in journals.all:
            _note(journal, self)
        plain(self, value)

    return _direct_assign


_assigning = Exchange(keras.Variable, "_direct_assign", _noted_assign)


def _note(journal: dict[int, tuple[keras.Variable, Any]], variable: Any) -> None:
    # While it is being made it has no value yet, and not even the attribute.
    value = vars(variable).get("_value") if open_scope() is None else None
    if value is not None and id(variable) not in journal:
        journal[id(variable)] = (variable, keras.ops.copy(value))


def may_be_written(variables: Iterable[keras.Variable]) -> None:
    """Tell the `undone` of this thread that these will be written by what it does not see."""
    for journal in _journals.all:
        for variable in variables:
            _note(journal, variable)


@contextlib.contextmanager
def undone() -> Iterator[dict[int, keras.Variable]]:
    """Where what is inside raises, the variables that it has touched get back what they held; gives them by their id."""
    journal: dict[int, tuple[keras.Variable, Any]] = {}
    touched: dict[int, keras.Variable] = {}

    def note(variable: keras.Variable, value: Any) -> Any:
        # Optimizers write into what they read.
        _note(journal, variable)
        return value

    _journals.all.append(journal)
    listen(note)
    try:
        with _assigning:
            yield touched
    except BaseException:
        _journals.all.remove(journal)
        for variable, value in journal.values():
            put(variable, value)
        raise
    else:
        _journals.all.remove(journal)
    finally:
        unlisten(note)
        touched |= {key: variable for key, (variable, _) in journal.items()}


class _Makers(threading.local):
    def __init__(self) -> None:
        self.all: list[list[keras.Variable]] = []
        self.late = 0


_makers = _Makers()


@contextlib.contextmanager
def makes() -> Iterator[list[keras.Variable]]:
    """The variables that this thread makes inside; not the state of the seed that Keras itself keeps for all."""
    made: list[keras.Variable] = []
    _makers.all.append(made)
    try:
        with _making:
            yield made
    finally:
        _makers.all.pop()
        everyones = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
        made[:] = [variable for variable in made if everyones is None or variable is not everyones.state]


def _noted_init(plain: Callable[..., None]) -> Callable[..., None]:
    makers = _makers

    @functools.wraps(plain)
    def __init__(self: Any, initializer: Any, shape: Any = None, dtype: Any = None, **kwargs: Any) -> None:
        if makers.late and open_scope() is not None and not callable(initializer) and not isinstance(initializer, str):
            value = keras.ops.convert_to_numpy(initializer)
            kind = getattr(initializer, "dtype", None) or {"i": "int32", "b": "bool"}.get(value.dtype.kind, keras.config.floatx())
            dtype = dtype or standardize_dtype(kind)
            initializer, shape = (lambda shape, dtype=None: keras.ops.convert_to_tensor(value, dtype=dtype)), value.shape
        plain(self, initializer, shape, dtype, **kwargs)
        for made in makers.all:
            made.append(self)

    return __init__


@contextlib.contextmanager
def values_wait() -> Iterator[None]:
    """Inside, a variable may be made of a value in a stateless scope, too; as of an initializer, it gets it afterwards."""
    _makers.late += 1
    try:
        with _making:
            yield
    finally:
        _makers.late -= 1


_making = Exchange(keras.Variable, "__init__", _noted_init)
