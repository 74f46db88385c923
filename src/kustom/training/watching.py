"""The Python state of a step: what it reaches, and what of it is noticed when it changes.

A trace is of what Python held when it was made. What is noticed afterwards is a finite set, compared at each call:

- what the closure cells and the globals that the step names hold: numbers, text, None and tuples of them by their value,
  everything else by its identity;
- in the `__dict__` of the Keras objects that it reaches numbers, text, None and tuples of them by their value, and other
  Keras objects, variables, functions and objects of the user's by their identity;
- of other objects, of modules and of classes of the user's those attributes whose names the reached code mentions: see `spaces`;
- which Keras objects, variables and functions stand in lists and dicts;
- numbers, text, None and tuples of them in the small dicts and lists that globals and closure cells name;
- `trainable` of the variables that it touches, `keras.config.floatx()` and the global dtype policy.

What stands in a list or a dict is followed; that there is more of something else is not noticed, so that a log may grow. A
number that the trace itself changes, such as a count of the calls, is left out: it would never be the same twice. So is an
object that it exchanges itself. What else it changes is a condition of the program: see `flags`.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from kustom.backends import keras as private
from kustom.training.spaces import attributes_in, bases_of, imported_in, is_space, leads_out, stored_in

__all__ = ["NOTHING", "Guards", "Reached", "is_keras", "values_of"]

# Stands where there is no value.
NOTHING = object()

_PLAIN = (int, float, str, bytes, bool, complex, type(None))
# Attributes of Keras's that change while a run goes on, and of which no computation depends.
_VOLATILE = frozenset(["stop_training", "_called", "_kustom_draws"])
# Of what Keras keeps in each layer and metric for itself, those that a computation depends on.
_TELLING = frozenset(["trainable", "_trainable", "autocast", "activity_regularizer", "_supports_masking", "name", "built", "dtype"])
# The objects among them.
_TELLING_OBJECTS = frozenset(["_functional", "_compile_loss", "_compile_metrics", "optimizer"])
# Where Keras keeps the graph of a functional model, and what it tracks a second time.
_UNFOLLOWED = frozenset(
    ["_functional", "_inbound_nodes", "_outbound_nodes", "_tracker", "_nodes", "_nodes_by_depth", "_operations_by_depth"]
)
_CONTAINERS = (list, tuple, dict, set, frozenset)


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def is_keras(value: Any) -> bool:
    """Whether `value` is an object of Keras's, or of a class derived from one of Keras's."""
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
        # The code of the user's functions.
        self.codes: list[types.CodeType] = []
        # The user's modules and classes, and which of their attributes the code mentions.
        self.spaces: list[Any] = []
        self.mentioned: list[tuple[Any, str]] = []
        self._seen: set[int] = set()
        self._mentions: set[tuple[int, str]] = set()
        todo: list[tuple[Any, str, Any]] = [(root, "", None) for root in roots]
        while todo:
            value, name, owner = todo.pop()
            if id(value) not in self._seen and not isinstance(value, _PLAIN):
                self._seen.add(id(value))
                # Not by +=, which asks a tuple of TensorFlow's first.
                todo.extend(self._inside(value, name, owner))
            if not todo:
                # Which names are mentioned is known when all code has been seen; what they lead to may have more.
                todo = self._of_spaces()

    def _of_spaces(self) -> list[tuple[Any, str, Any]]:
        attributes = frozenset[str]().union(*map(attributes_in, self.codes))
        inside = []
        for space in self.spaces:
            held = vars(space)
            for name in sorted(attributes & held.keys()):
                if (id(space), name) not in self._mentions:
                    self._mentions.add((id(space), name))
                    self.mentioned.append((space, name))
                    if leads_out(space, held[name]):
                        # As if it were a global: it has no owner from whose class something follows.
                        inside += [(value, name, None) for value in [*_functions_in(held[name])] or [held[name]]]
        return inside

    def _inside(self, value: Any, name: str, owner: Any) -> Iterable[tuple[Any, str, Any]]:
        if isinstance(value, type | types.ModuleType):
            if not is_space(value):
                return ()
            self.spaces.append(value)
            if isinstance(value, types.ModuleType):
                return ()
            # What makes an instance, and what Python calls by itself, nobody mentions.
            implied = [f for name, held in vars(value).items() if name.startswith("__") for f in _functions_in(held)]
            return _unnamed([*bases_of(value)[1:], *implied])
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
        if is_keras(value):
            self.objects.append(value)
            code = () if private.is_of_library(value) else _code(value)
            attributes = vars(value).items()
            leading = ((v, n, value) for n, v in attributes if n not in _UNFOLLOWED and _leads_on(v))
            return [*_unnamed([*code, *bases_of(type(value))]), *leading]
        if not _is_users(value):
            # What is our own says by itself what of the user's it stands for; a compiled function does.
            wrapped = [w] if (w := getattr(value, "__dict__", {}).get("__wrapped__")) is not None else []
            return _unnamed([*getattr(value, "_kustom_reaches", ()), *wrapped])
        self.others.append(value)
        return [*((v, n, value) for n, v in vars(value).items()), *_unnamed([*_code(value), *bases_of(type(value))])]

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
        if is_users:
            self.codes.append(f.__code__)
            inside += _unnamed(imported_in(f.__code__))
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
    """The functions in the bodies of an object's class and of those that it derives from, as far as they are the user's."""
    classes = [cls for cls in type(obj).__mro__ if not private.is_library(cls.__module__)]
    return [f for cls in classes for value in vars(cls).values() for f in _functions_in(value)]


def _functions_in(value: Any) -> Iterable[Any]:
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, property | functools.cached_property):
        return (value.func,) if isinstance(value, functools.cached_property) else filter(None, (value.fget, value.fset))
    # One that is compiled, or decorated otherwise, leads to the function.
    return (value,) if isinstance(value, types.FunctionType) or _wraps(value) else ()


def _wraps(value: Any) -> bool:
    return not isinstance(value, type) and isinstance(getattr(value, "__dict__", {}).get("__wrapped__"), types.FunctionType)


def _leads_on(value: Any) -> bool:
    plain = (*_CONTAINERS, types.FunctionType, types.MethodType, functools.partial)
    return isinstance(value, plain) or is_keras(value) or _is_users(value) or is_space(value)


def _is_users(value: Any) -> bool:
    if isinstance(value, types.SimpleNamespace):
        return True
    return hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType) and not private.is_of_library(value)


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
        before: What they reached before the trace: from `values_of`.
        variables: Those that it touches.
        flags: What the trace has set that is a condition of the program, by its place: from `Flags.settle`.
        entries: Whether entries of dicts and lists are compared. A step that runs as plain Python reads those of now, and may
            set them at each call.
    """

    def __init__(
        self,
        roots: Iterable[Any],
        before: dict[int, dict[str, Any]],
        variables: Iterable[keras.Variable],
        flags: dict[tuple[int, Any], tuple[Any, ...]] | None = None,
        *,
        entries: bool = True,
    ) -> None:
        self.reached = reached = Reached(*roots)
        flags = flags or {}
        self._cells = [cell for cell, _ in reached.cells]
        self._held = [flags.get((id(cell), None), (_held(cell),))[0] for cell in self._cells]
        # Names in spaces that are to hold the same object, or an equal number or text.
        named = [(space, name, flags.get((id(space), name), (space[name],))[0]) for space, name in reached.globals]
        lists = [container for container, name, owner in reached.containers if _is_of_user(owner, name)]
        self._containers = [(each, _ids(each), _is_whole(each)) for each in lists if any(map(_leads_to_watched, _each(each)))]
        # Nothing else gets the id of what stood in one.
        self._stood = [list(_each(each)) for each, _, _ in self._containers]
        self._spaces: list[dict[str, Any]] = []
        self._gets: list[Any] = []
        self._kept: list[Any] = []
        # Names that may not get into a space, since they would hide what the class has.
        self._shadowed: list[tuple[frozenset[str], Mapping[str, Any]]] = []
        for obj in reached.objects + reached.others:
            space, was = vars(obj), before.get(id(obj))
            set_here = {key[1]: value[0] for key, value in flags.items() if key[0] == id(space)}
            names = [name for name in space if name not in set_here and _counts(obj, name, reached) and _stayed(name, space, was)]
            plain = {name: space[name] for name in names if _is_plain(space[name])}
            plain |= {name: value for name, value in set_here.items() if value is not NOTHING}
            if plain:
                self._spaces.append(space)
                self._gets.append(operator.itemgetter(*plain))
                self._kept.append(tuple(plain.values()) if len(plain) > 1 else next(iter(plain.values())))
            # torch keeps the layers of a layer apart.
            for held in (space, space.get("_modules", {})):
                watched = names if held is space else [name for name in held if _counts(obj, name, reached)]
                named += [(held, name, held[name]) for name in watched if _is_watched_in(obj, name, held[name], reached)]
            absent = (_of_class(obj) - space.keys()) | {name for name, value in set_here.items() if value is NOTHING}
            if absent:
                self._shadowed.append((frozenset(absent), space))
        of_classes, stored = [], stored_in(reached.codes)
        for space, name in reached.mentioned:
            held, key = vars(space), _key(space, name)
            # Where a step runs as plain Python, a tensor that it puts there is another after each call.
            is_put = name in stored and (held[name] is None or not _is_plain(held[name]))
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
            held = list(map(_held, self._cells))
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
        return list(map(private.trainable, self._variables)) == self._trainable and _config() == self._config


# In the shape that `map` takes them.
_call: Any = operator.call
_content: Any = operator.attrgetter("cell_contents")
_of_space: Any = dict.get
_of_class_space: Any = types.MappingProxyType.get


def _is_of_user(owner: Any, name: str) -> bool:
    """Whether a list or dict is the user's, and no register of Keras's or of a backend's; torch keeps layers in one."""
    if owner is None or isinstance(owner, types.SimpleNamespace):
        return True
    return not private.is_of_library(owner) and (name == "_modules" or not is_keras(owner) or not private.is_internal(owner, name))


def _each(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _is_watched(value: Any) -> bool:
    return is_keras(value) or isinstance(value, (keras.Variable, types.FunctionType))


def _is_whole(container: Any) -> bool:
    """Whether nothing but what is watched stands in a container."""
    return all(map(_is_watched, _each(container)))


def _leads_to_watched(value: Any, depth: int = 4) -> bool:
    """Whether a value is watched, or is a list or dict in which such a one stands."""
    inside = _each(value) if depth and isinstance(value, _CONTAINERS) else ()
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
    if _is_plain(value):
        return not _is_plain(before) or value == before
    return value is before or before is None


def _is_watched_in(obj: Any, name: str, value: Any, reached: Reached) -> bool:
    """Whether it is noticed that an attribute holds another object."""
    if name == "optimizer" and name not in reached.names:
        # It may have been lent for a while, to callbacks.
        return False
    if not is_keras(obj) or not private.is_of_library(obj):
        return _is_watched(value) or (_is_users(value) and not isinstance(value, _CONTAINERS)) or is_space(value)
    if isinstance(value, keras.Variable):
        return isinstance(obj, keras.optimizers.Optimizer) and name == "_learning_rate"
    return _is_watched(value) and not isinstance(value, _ONCE)


# What counts where a weight is made, and never after.
_ONCE = (keras.regularizers.Regularizer, keras.constraints.Constraint, keras.initializers.Initializer)


def _of_class(obj: Any) -> frozenset[str]:
    """The plain attributes that the user's classes of an object have."""
    classes = [cls for cls in type(obj).__mro__ if not private.is_library(cls.__module__)]
    return frozenset(name for cls in classes for name, value in vars(cls).items() if _is_plain(value) and not name.startswith("__"))


# How many entries a dict or list of settings has at most: each is compared at each call.
_MOST = 64


def _settings(reached: Reached) -> list[Any]:
    """The dicts and lists that globals and closure cells name, and those in them, in which numbers or text may stand."""
    named = [each for each, name, owner in reached.containers if name and owner is None]
    return [each for each in named if isinstance(each, dict | list) and 0 < len(each) <= _MOST]


def _is_entry(value: Any) -> bool:
    # Of a dict or list inside it counts which it is; its own entries are compared by themselves.
    return _is_plain(value) or isinstance(value, dict | list)


def _by_place(container: Any) -> dict[Any, Any]:
    return dict(container) if isinstance(container, dict) else dict(enumerate(container))


def _hidden(reached: Reached) -> Iterator[tuple[frozenset[str], Mapping[str, Any]]]:
    """The mentioned plain attributes that a class has from another, which may not get into its own `__dict__`."""
    plain: dict[int, set[str]] = {}
    for space, name in reached.mentioned:
        if _is_plain(vars(space).get(name)):
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
    return _is_plain(kept) and type(value) is type(kept) and value == kept


def _config() -> tuple[Any, ...]:
    return keras.config.floatx(), keras.config.dtype_policy()


def values_of(reached: Reached) -> dict[int, dict[str, Any]]:
    """What stands in the `__dict__` of everything that is reached, and in dicts and lists of settings, by the object's id."""
    spaces = {id(obj): dict(vars(obj)) for obj in reached.objects + reached.others + reached.spaces}
    return spaces | {id(each): _by_place(each) for each in _settings(reached)}
