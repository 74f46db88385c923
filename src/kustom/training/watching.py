"""The Python state of a step: what it reaches, and what of it is noticed when it changes.

A trace is of what Python held when it was made. What is noticed afterwards is a finite set, compared at each call:

- what the closure cells and the globals that the step names hold: numbers, text, None and tuples of them by their value,
  everything else by its identity;
- numbers, text, None and tuples of them in the `__dict__` of the Keras objects that it reaches;
- of other objects those attributes whose names the reached code mentions;
- which Keras objects stand in lists and dicts of them;
- `trainable` of the variables that it touches, `keras.config.floatx()` and the global dtype policy.

What stands in a list or a dict is followed. Where that is nothing but Keras objects, another one in their place, or one more,
is noticed; that a list of something else has grown is not. An attribute that the trace itself
changes, such as a count of the calls, is left out: it would never be the same twice.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from kustom.backends import keras as private

__all__ = ["Guards", "Reached", "plain_values"]

_PLAIN = (int, float, str, bytes, bool, complex, type(None))
# Attributes of Keras's that change while a run goes on, and of which no computation depends.
_VOLATILE = frozenset(["stop_training", "_called", "_kustom_draws"])
# Of what Keras keeps in each layer and metric for itself, those that a computation depends on.
_TELLING = frozenset(["trainable", "_trainable", "autocast", "activity_regularizer", "_supports_masking", "name", "built", "dtype"])
# Where Keras keeps the graph of a functional model, and what it tracks a second time.
_UNFOLLOWED = frozenset(
    ["_functional", "_inbound_nodes", "_outbound_nodes", "_tracker", "_nodes", "_nodes_by_depth", "_operations_by_depth"]
)
_CONTAINERS = (list, tuple, dict, set, frozenset)


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _is_keras(value: Any) -> bool:
    return isinstance(value, _KERAS)


_KERAS = (
    keras.layers.Layer,
    keras.metrics.Metric,
    keras.losses.Loss,
    keras.optimizers.Optimizer,
    keras.optimizers.schedules.LearningRateSchedule,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.initializers.Initializer,
    keras.random.SeedGenerator,
)


class Reached:
    """Everything that a function reaches: through its cells, the globals that it names, its instance, its defaults.

    Args:
        roots: The function, method, partial or callable object, and whatever else is to be followed.
    """

    def __init__(self, *roots: Any) -> None:
        self.cells: list[tuple[Any, str]] = []
        self.globals: list[tuple[dict[str, Any], str]] = []
        self.objects: list[Any] = []
        self.others: list[Any] = []
        # Lists, dicts and sets, with the name that leads to each, and whose attribute that is.
        self.containers: list[tuple[Any, str, Any]] = []
        self.names: set[str] = set()
        self._seen: set[int] = set()
        todo: list[tuple[Any, str, Any]] = [(root, "", None) for root in roots]
        while todo:
            value, name, owner = todo.pop()
            if id(value) not in self._seen and not isinstance(value, (*_PLAIN, types.ModuleType)):
                self._seen.add(id(value))
                # Not by +=, which asks a tuple of TensorFlow's first.
                todo.extend(self._inside(value, name, owner))

    def _inside(self, value: Any, name: str, owner: Any) -> Iterable[tuple[Any, str, Any]]:
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        if isinstance(value, types.MethodType):
            return _unnamed([value.__func__, value.__self__])
        if isinstance(value, functools.partial):
            return _unnamed([value.func, *value.args, *value.keywords.values()])
        if isinstance(value, _CONTAINERS):
            if not isinstance(value, tuple | frozenset):
                self.containers.append((value, name, owner))
            return [(each, name, owner) for each in (value.values() if isinstance(value, dict) else value)]
        if _is_keras(value):
            self.objects.append(value)
            code = () if private.is_of_library(value) else _code(value)
            attributes = vars(value).items()
            return [*_unnamed(code), *((v, n, value) for n, v in attributes if n not in _UNFOLLOWED and _leads_on(v))]
        if not _is_users(value):
            # What is our own says by itself what of the user's it stands for; a compiled function does.
            if isinstance(value, type):
                return ()
            wrapped = [w] if (w := getattr(value, "__dict__", {}).get("__wrapped__")) is not None else []
            return _unnamed([*getattr(value, "_kustom_reaches", ()), *wrapped])
        self.others.append(value)
        return [*((v, n, value) for n, v in vars(value).items()), *_unnamed(_code(value))]

    def _of_function(self, f: types.FunctionType) -> Iterable[tuple[Any, str, Any]]:
        inside = _unnamed([*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()])
        if hasattr(f, "__wrapped__"):
            inside += _unnamed([vars(f)["__wrapped__"]])
        # Keras wraps methods of each layer in functions of its own, which always lead to the same.
        is_users = not private.is_library(f.__globals__.get("__name__"))
        for cell, name in zip(f.__closure__ or (), f.__code__.co_freevars, strict=True):
            if is_users:
                self.cells.append((cell, name))
            inside.append((_held(cell), name, None))
        names = set(_names(f.__code__))
        self.names |= names
        if private.is_library(f.__module__):
            return inside
        for name in names & f.__globals__.keys():
            self.globals.append((f.__globals__, name))
            inside.append((f.__globals__[name], name, None))
        return inside

    def all(self, kind: type) -> list[Any]:
        """The objects of a class of Keras's that are reached."""
        return [obj for obj in self.objects if isinstance(obj, kind)]


def _unnamed(values: Iterable[Any]) -> list[tuple[Any, str, Any]]:
    return [(value, "", None) for value in values]


def _code(obj: Any) -> list[Any]:
    """The functions in the body of an object's class."""
    return [f for f in vars(type(obj)).values() if isinstance(f, types.FunctionType)]


def _leads_on(value: Any) -> bool:
    plain = (*_CONTAINERS, types.FunctionType, types.MethodType, functools.partial)
    return isinstance(value, plain) or _is_keras(value) or _is_users(value)


def _is_users(value: Any) -> bool:
    if isinstance(value, types.SimpleNamespace):
        return True
    return hasattr(value, "__dict__") and not isinstance(value, type) and not private.is_of_library(value)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        # The name is not bound yet.
        return None


class Guards:
    """What Python held when a trace was made.

    Args:
        roots: The function, and the objects among its arguments.
        before: What they reached before the trace, and the plain values there.
        variables: Those that it touches.
    """

    def __init__(self, roots: Iterable[Any], before: dict[int, dict[str, Any]], variables: Iterable[keras.Variable]) -> None:
        self.reached = reached = Reached(*roots)
        self._cells = [cell for cell, _ in reached.cells]
        self._held = list(map(_held, self._cells))
        self._globals = reached.globals
        self._named = list(map(_of_global, *zip(*self._globals, strict=True))) if self._globals else []
        self._names = list(zip(*self._globals, strict=True)) if self._globals else []
        self._containers = [(c, _ids(c)) for c, _, owner in reached.containers if _is_of_user(owner) and _holds_keras(c)]
        self._spaces: list[dict[str, Any]] = []
        self._gets: list[Any] = []
        self._kept: list[Any] = []
        # Names that may not get into a space, since they would hide what the class has.
        self._shadowed: list[tuple[frozenset[str], dict[str, Any]]] = []
        for obj in reached.objects + reached.others:
            space = vars(obj)
            was = before.get(id(obj))
            names = [
                name
                for name, value in space.items()
                if _is_plain(value)
                and name not in _VOLATILE
                and (name in _TELLING or not private.is_internal(obj, name))
                and (_is_keras(obj) or name in reached.names)
                and (was is None or name not in was or was[name] == value)
            ]
            if names:
                get = operator.itemgetter(*names)
                self._spaces.append(space)
                self._gets.append(get)
                self._kept.append(get(space))
                if shadowed := _of_class(obj) - space.keys():
                    self._shadowed.append((shadowed, space))
        self._variables = list(variables)
        self._seed = private.seed_of_all(self._variables)
        self._trainable = list(map(private.trainable, self._variables))
        self._config = _config()

    def adopt_seed(self) -> None:
        """Go on with the random numbers that Keras draws for all: `set_random_seed` has it make another generator."""
        if self._seed is not None:
            private.set_seed_of_all(self._seed)

    def hold(self) -> bool:
        """Whether all of it is as it was."""
        # Asked at each call, so that what is asked of many is one call of Python.
        try:
            if list(map(_call, self._gets, self._spaces)) != self._kept:
                return False
        except KeyError:
            return False
        for shadowed, space in self._shadowed:
            if not shadowed.isdisjoint(space):
                return False
        try:
            held = list(map(_content, self._cells))
        except ValueError:
            # One is not bound.
            held = list(map(_held, self._cells))
        if not _all_same(held, self._held):
            return False
        if self._names and not _all_same(list(map(_of_global, *self._names)), self._named):
            return False
        for container, kept in self._containers:
            if _ids(container) != kept:
                return False
        return list(map(private.trainable, self._variables)) == self._trainable and _config() == self._config


# In the shape that `map` takes them.
_call: Any = operator.call
_content: Any = operator.attrgetter("cell_contents")
_of_global: Any = dict.get


def _is_of_user(owner: Any) -> bool:
    return owner is None or isinstance(owner, types.SimpleNamespace) or not private.is_of_library(owner)


def _holds_keras(container: Any) -> bool:
    values = container.values() if isinstance(container, dict) else container
    return bool(container) and all(isinstance(value, _CONTAINERS) or _is_keras(value) for value in values)


def _ids(container: Any) -> list[int]:
    return list(map(id, container.values() if isinstance(container, dict) else container))


def _of_class(obj: Any) -> frozenset[str]:
    """The plain attributes that the user's classes of an object have."""
    classes = [cls for cls in type(obj).__mro__ if not private.is_library(cls.__module__)]
    return frozenset(name for cls in classes for name, value in vars(cls).items() if _is_plain(value) and not name.startswith("__"))


def _all_same(values: list[Any], kept: list[Any]) -> bool:
    return all(map(operator.is_, values, kept)) or all(v is k or _same(v, k) for v, k in zip(values, kept, strict=True))


def _same(value: Any, kept: Any) -> bool:
    return _is_plain(kept) and type(value) is type(kept) and value == kept


def _config() -> tuple[Any, ...]:
    return keras.config.floatx(), keras.config.dtype_policy()


def plain_values(reached: Reached) -> dict[int, dict[str, Any]]:
    """The plain values in the `__dict__` of everything that is reached, by the object's id."""
    return {id(obj): {k: v for k, v in vars(obj).items() if _is_plain(v)} for obj in reached.objects + reached.others}
