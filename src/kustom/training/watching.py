"""The Python state of a step: what it reaches, and what of it is noticed when it changes.

A trace is of what Python held when it was made. What is noticed afterwards is a finite set, compared at each call:

- what the closure cells and the globals that the step names hold: numbers, text, None and tuples of them by their value,
  everything else by its identity;
- in the `__dict__` of the Keras objects that it reaches numbers, text, None and tuples of them by their value, and other
  Keras objects, variables, functions and objects of the user's by their identity;
- of other objects, of modules and of classes of the user's those attributes whose names the reached code mentions: see `spaces`;
- which Keras objects, variables and functions stand in lists and dicts;
- tensors and arrays in those attributes that the code mentions and does not set itself, and in the public ones of Keras's own
  objects, by their identity;
- numbers, text, None, tuples of them, tensors and arrays in the small dicts and lists that globals, closure cells and such
  attributes name;
- the numbers in small arrays of NumPy's, wherever they stand in the above;
- `trainable` of the variables that it touches, `keras.config.floatx()` and the global dtype policy.

What stands in a list or a dict is followed; that there is more of something else is not noticed, so that a log may grow. A
number that the trace itself changes, such as a count of the calls, is left out: it would never be the same twice. So is an
object that it exchanges itself. What else it changes is a condition of the program: see `flags`.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import keras as private
from kustom.training.reached import CONTAINERS, Reached, content_of, is_keras, is_of_user, is_plain, is_users
from kustom.training.spaces import is_space, stored_in

__all__ = ["NOTHING", "Guards", "values_of"]

# Stands where there is no value.
NOTHING = object()

# Attributes of Keras's that change while a run goes on, and of which no computation depends.
_VOLATILE = frozenset(["stop_training", "_called", "_kustom_draws"])
# Of what Keras keeps in each layer and metric for itself, those that a computation depends on.
_TELLING = frozenset(["trainable", "_trainable", "autocast", "activity_regularizer", "_supports_masking", "name", "built", "dtype"])
# The objects among them.
_TELLING_OBJECTS = frozenset(["_functional", "_compile_loss", "_compile_metrics", "optimizer"])


class Guards:
    """What Python held when a trace was made.

    Args:
        roots: The function, and the objects among its arguments.
        before: What they reached before the trace: from `values_of`.
        variables: Those that it touches.
        flags: What the trace has set that is a condition of the program, by its place: from `Flags.settle`.
        entries: Whether tensors, arrays and entries of dicts and lists are compared. A step that runs as plain Python reads
            those of now, and may set them at each call.
    """

    def __init__(
        self,
        roots: Iterable[Any],
        before: dict[int, dict[Any, Any]],
        variables: Iterable[keras.Variable],
        flags: dict[tuple[int, Any], tuple[Any, ...]] | None = None,
        *,
        entries: bool = True,
    ) -> None:
        self.reached = reached = Reached(*roots)
        flags = flags or {}
        self._cells = [cell for cell, _ in reached.cells]
        self._held = [flags.get((id(cell), None), (content_of(cell),))[0] for cell in self._cells]
        # Names in spaces that are to hold the same object, or an equal number or text.
        named = [(space, name, flags.get((id(space), name), (space[name],))[0]) for space, name in reached.globals]
        lists = [container for container, name, owner in reached.containers if is_of_user(owner, name)]
        self._containers = [(each, _ids(each), _is_whole(each)) for each in lists if any(map(_leads_to_watched, _each(each)))]
        # Nothing else gets the id of what stood in one.
        self._stood = [list(_each(each)) for each, _, _ in self._containers]
        self._spaces: list[dict[str, Any]] = []
        self._gets: list[Any] = []
        self._kept: list[Any] = []
        # Names that may not get into a space, since they would hide what the class has.
        self._shadowed: list[tuple[frozenset[str], Mapping[str, Any]]] = []
        stored = stored_in(reached.codes)
        # What is mentioned, and set at most where an object is made.
        given = reached.names - stored_in(code for code in reached.codes if code.co_name not in _MAKING)
        settings = {id(each) for each in _settings(reached)}
        for obj in reached.objects + reached.others:
            space, was = vars(obj), before.get(id(obj))
            set_here = {key[1]: value[0] for key, value in flags.items() if key[0] == id(space)}
            names = [name for name in space if name not in set_here and _counts(obj, name, reached) and _stayed(name, space, was)]
            plain = {name: space[name] for name in names if is_plain(space[name])}
            plain |= {name: value for name, value in set_here.items() if value is not NOTHING}
            if plain:
                self._spaces.append(space)
                self._gets.append(operator.itemgetter(*plain))
                self._kept.append(tuple(plain.values()) if len(plain) > 1 else next(iter(plain.values())))
            # torch keeps the layers of a layer apart.
            for held in (space, space.get("_modules", {})):
                watched = names if held is space else [name for name in held if _counts(obj, name, reached)]
                named += [(held, name, held[name]) for name in watched if _is_watched_in(obj, name, held[name], reached)]
            if entries:
                shown = [n for n in names if _is_setting(obj, n) or (n in given and is_of_user(obj, n))]
                named += [(space, n, space[n]) for n in shown if _is_array(space[n]) or id(space[n]) in settings]
            absent = (_of_class(obj) - space.keys()) | {name for name, value in set_here.items() if value is NOTHING}
            if absent:
                self._shadowed.append((frozenset(absent), space))
        of_classes: list[tuple[Any, str, Any]] = []
        for space, name in reached.mentioned:
            held, key = vars(space), _key(space, name)
            # Where a step runs as plain Python, a tensor that it puts there is another after each call.
            is_put = name in stored and (held[name] is None or not is_plain(held[name]))
            if key not in flags and (is_put or not _stayed(name, held, before.get(id(space)))):
                continue
            # A class's `__dict__` is no dict.
            (of_classes if isinstance(space, type) else named).append((held, name, flags.get(key, (held.get(name),))[0]))
        self._shadowed += _hidden(reached)
        self._lists: list[tuple[list[Any], list[Any]]] = []
        for container in _settings(reached) if entries else ():
            held, was = _by_place(container), before.get(id(container))
            stayed = [place for place in held if _is_entry(held[place]) and _stayed(place, held, was)]
            if isinstance(container, dict):
                named += [(container, place, held[place]) for place in stayed]
            elif len(stayed) == len(container):
                self._lists.append((container, list(container)))
        # With a copy of the numbers in each.
        self._arrays = [(array, _bytes(array)) for array in _small_arrays(reached) if entries and _has_stayed(array, before)]
        self._of_classes = [[space for space, _, _ in of_classes], [name for _, name, _ in of_classes]]
        self._class_values = [value for _, _, value in of_classes]
        self._named = [value for _, _, value in named]
        self._names = [[space for space, _, _ in named], [name for _, name, _ in named]]
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
            held = list(map(content_of, self._cells))
        if not _all_same(held, self._held):
            return False
        if not _all_same(list(map(_of_space, *self._names)), self._named):
            return False
        if self._class_values and not _all_same(list(map(_of_class_space, *self._of_classes)), self._class_values):
            return False
        for container, kept in self._lists:
            if len(container) == len(kept) and not _all_same(container, kept):
                return False
        for container, kept, whole in self._containers:
            if (list(map(id, _each(container))) if whole else _ids(container)) != kept:
                return False
        for array, kept in self._arrays:
            if _bytes(array) != kept:
                return False
        return list(map(private.trainable, self._variables)) == self._trainable and _config() == self._config


# In the shape that `map` takes them.
_call: Any = operator.call
_content: Any = operator.attrgetter("cell_contents")
_of_space: Any = dict.get
_of_class_space: Any = types.MappingProxyType.get


def _each(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _is_watched(value: Any) -> bool:
    return is_keras(value) or isinstance(value, (keras.Variable, types.FunctionType))


def _is_whole(container: Any) -> bool:
    """Whether nothing but what is watched stands in a container."""
    return all(map(_is_watched, _each(container)))


def _leads_to_watched(value: Any, depth: int = 4) -> bool:
    """Whether a value is watched, or is a list or dict in which such a one stands."""
    inside = _each(value) if depth and isinstance(value, CONTAINERS) else ()
    return _is_watched(value) or any(_leads_to_watched(each, depth - 1) for each in inside)


def _ids(container: Any) -> list[int]:
    return [id(value) for value in _each(container) if _leads_to_watched(value)]


def _counts(obj: Any, name: str, reached: Reached) -> bool:
    """Whether an attribute is one that a computation may depend on."""
    if not is_keras(obj):
        return name in reached.names
    if name in _VOLATILE:
        return False
    return name in _TELLING or name in _TELLING_OBJECTS or not private.is_internal(obj, name)


def _stayed(name: Any, space: Mapping[Any, Any], was: dict[Any, Any] | None) -> bool:
    """Whether the trace has left an attribute alone, or has made it."""
    if was is None or name not in was:
        return True
    value, before = space[name], was[name]
    if is_plain(value):
        return not is_plain(before) or value == before
    return value is before or before is None


def _is_watched_in(obj: Any, name: str, value: Any, reached: Reached) -> bool:
    """Whether it is noticed that an attribute holds another object."""
    if name == "optimizer" and name not in reached.names:
        # It may have been lent for a while, to callbacks.
        return False
    if not is_keras(obj) or not private.is_of_library(obj):
        return _is_watched(value) or (is_users(value) and not isinstance(value, CONTAINERS)) or is_space(value)
    if isinstance(value, keras.Variable):
        return isinstance(obj, keras.optimizers.Optimizer) and name == "_learning_rate"
    return _is_watched(value) and not isinstance(value, _ONCE)


# What counts where a weight is made, and never after.
_ONCE = (keras.regularizers.Regularizer, keras.constraints.Constraint, keras.initializers.Initializer)


def _of_class(obj: Any) -> frozenset[str]:
    """The plain attributes that the user's classes of an object have."""
    classes = [cls for cls in type(obj).__mro__ if not private.is_library(cls.__module__)]
    return frozenset(name for cls in classes for name, value in vars(cls).items() if is_plain(value) and not name.startswith("__"))


# The methods that run before any step.
_MAKING = frozenset(["__init__", "__new__", "__setstate__", "__post_init__", "build"])
# How many entries a dict or list of settings has at most, and an array: each is compared at each call.
_MOST = 64


def _settings(reached: Reached) -> list[Any]:
    """The dicts and lists that cells, globals and mentioned attributes name, and those in them, in which settings may stand."""
    named = [each for each, name, owner in reached.containers if _is_named(owner, name, reached)]
    return [each for each in named if isinstance(each, dict | list) and 0 < len(each) <= _MOST]


def _is_named(owner: Any, name: str, reached: Reached) -> bool:
    """Whether a cell or global has the name, or it is that of an attribute which the code mentions."""
    return bool(name) and (owner is None or _is_setting(owner, name) or (name in reached.names and is_of_user(owner, name)))


def _is_setting(owner: Any, name: str) -> bool:
    """Whether an attribute is one of those that a layer of Keras's, or another part, shows: what `Normalization` was adapted to."""
    return is_keras(owner) and private.is_of_library(owner) and not name.startswith("_")


def _is_entry(value: Any) -> bool:
    # Of a dict or list inside it counts which it is; its own entries are compared by themselves.
    return is_plain(value) or isinstance(value, dict | list) or _is_array(value)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or ops.is_tensor(value)


def _small_arrays(reached: Reached) -> list[Any]:
    """The arrays of NumPy's whose numbers are compared."""
    named = [each for each, name, owner in reached.loose if _is_named(owner, name, reached)]
    arrays = {id(each): each for each in named if isinstance(each, np.ndarray) and not each.dtype.hasobject}
    return [array for array in arrays.values() if array.size <= _MOST]


def _bytes(array: Any) -> bytes:
    return array.tobytes()


def _has_stayed(array: Any, before: dict[int, dict[Any, Any]]) -> bool:
    """Whether the trace has left the numbers in an array alone."""
    was = before.get(id(array))
    return was is None or was[None] == _bytes(array)


def _by_place(container: Any) -> dict[Any, Any]:
    return dict(container) if isinstance(container, dict) else dict(enumerate(container))


def _hidden(reached: Reached) -> Iterator[tuple[frozenset[str], Mapping[str, Any]]]:
    """The mentioned plain attributes that a class has from another, which may not get into its own `__dict__`."""
    plain: dict[int, set[str]] = {}
    for space, name in reached.mentioned:
        if is_plain(vars(space).get(name)):
            plain.setdefault(id(space), set()).add(name)
    for cls in reached.spaces:
        if isinstance(cls, type):
            inherited = {name for base in cls.__mro__[1:] for name in plain.get(id(base), ())}
            if absent := inherited - vars(cls).keys():
                yield frozenset(absent), vars(cls)


def _key(space: Any, name: str) -> tuple[int, str]:
    """The place of an attribute of a module or class among flags: that of a module is a global as well."""
    return (id(space) if isinstance(space, type) else id(vars(space))), name


def _all_same(values: list[Any], kept: list[Any]) -> bool:
    return all(map(operator.is_, values, kept)) or all(v is k or _same(v, k) for v, k in zip(values, kept, strict=True))


def _same(value: Any, kept: Any) -> bool:
    return is_plain(kept) and type(value) is type(kept) and value == kept


def _config() -> tuple[Any, ...]:
    return keras.config.floatx(), keras.config.dtype_policy()


def values_of(reached: Reached) -> dict[int, dict[Any, Any]]:
    """What stands in the `__dict__` of everything that is reached, in dicts and lists of settings and in arrays, by the id."""
    spaces = {id(obj): dict(vars(obj)) for obj in reached.objects + reached.others + reached.spaces}
    arrays = {id(array): {None: _bytes(array)} for array in _small_arrays(reached)}
    return spaces | {id(each): _by_place(each) for each in _settings(reached)} | arrays
