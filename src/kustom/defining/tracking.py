"""Tracking: every sublayer, metric, variable and seed that the attributes of a part reach is Keras's to save, or refused."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any

import keras
import numpy as np

from kustom.backends import keras as private
from kustom.errors import TrackingError

__all__ = ["BUILT", "check_tracking", "held_variables", "state_of"]

# Where a built part keeps the ids of the sublayers that it had then.
BUILT = "_kustom_built"


def check_tracking(part: Any, *, late: bool = False) -> None:
    """Track every sublayer, metric, variable and seed that the attributes of a part reach.

    Args:
        part: A layer, model or metric; nothing is done for another.
        late: The part is being saved: what is not tracked by now was not trained.

    Raises:
        TrackingError: One stands where Keras does not save it, or came too late.
    """
    if not isinstance(part, keras.layers.Layer | keras.metrics.Metric):
        return
    if late and isinstance(part, keras.layers.Layer) and BUILT in vars(part) and not private.is_functional(part):
        for layer in private.sublayers(part):
            if id(layer) not in vars(part)[BUILT]:
                raise TrackingError(
                    f"{type(part).__name__} got the sublayer {layer.name} after it was built, where no file can bring it back. "
                    "Make it in setup(), __init__() or build()."
                )
    known = private.tracked(part)
    for path, obj in _of_class(part):
        raise TrackingError(
            f"{type(part).__name__}.{path} is a {type(obj).__name__} in the body of the class, where Keras neither tracks nor "
            "saves it and all instances share it. Make it in setup() or __init__(), as an attribute of self."
        )
    for path, obj, saved in _reachable(part):
        if not saved:
            raise TrackingError(
                f"{type(part).__name__}.{path} is a {type(obj).__name__} that Keras neither tracks nor saves there. Keep it in an "
                "attribute of its own, or in a list, tuple or dict."
            )
        if id(obj) not in known:
            if late:
                raise TrackingError(
                    f"{type(part).__name__}.{path} is a {type(obj).__name__} that came after the part was built: its weights were "
                    "neither counted nor trained. Make it in setup(), __init__() or build()."
                )
            private.track(part, obj)
            known.add(id(obj))
    private.name_nested(part)


def state_of(obj: Any) -> list[keras.Variable]:
    """The variables of a layer, metric or seed generator, or the variable itself; none of anything else."""
    if isinstance(obj, keras.layers.Layer):
        return [*obj.variables, *obj.metrics_variables]
    if isinstance(obj, keras.metrics.Metric):
        return list(obj.variables)
    if isinstance(obj, keras.random.SeedGenerator):
        return [obj.state]
    return [obj] if isinstance(obj, keras.Variable) else []


def held_variables(part: Any) -> set[int]:
    """The ids of all variables that the attributes of a part reach, whether or not Keras saves them there."""
    return {id(variable) for obj in (part, *(obj for _, obj, _ in _reachable(part))) for variable in state_of(obj)}


_STATE = (keras.layers.Layer, keras.metrics.Metric, keras.Variable, keras.random.SeedGenerator)


# What holds variables of its own, or none, and is saved, or made anew, as a whole.
_SAVED_BY_THEMSELVES = (
    keras.optimizers.Optimizer,
    keras.losses.Loss,
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.callbacks.Callback,
)


def _reachable(part: Any) -> Iterator[tuple[str, Any, bool]]:
    """Each object with state in the attributes of a part, the way to it, and whether Keras saves it there."""
    functional = not isinstance(part, keras.metrics.Metric) and private.is_functional(part)
    seen: set[int] = {id(part)}
    for name, value in list(vars(part).items()):
        if not private.is_internal(part, name) and not (functional and name.startswith("_")):
            yield from _inside(value, name, True, seen)


def _of_class(part: Any) -> Iterator[tuple[str, Any]]:
    """Each object with state in the bodies of the part's own classes, and the way to it."""
    for cls in type(part).__mro__:
        if cls.__module__.split(".")[0] in ("builtins", "keras", "kustom", "tensorflow", "torch"):
            continue
        for name, value in list(vars(cls).items()):
            if (
                name.startswith(("__", "_kustom", "_abc"))
                or name == "versions"
                or (callable(value) and not isinstance(value, _STATE))
            ):
                continue
            if name not in vars(part):
                yield from ((path, obj) for path, obj, _ in _inside(value, name, False, set()))


def _inside(value: Any, path: str, saved: bool, seen: set[int]) -> Iterator[tuple[str, Any, bool]]:
    if isinstance(value, _STATE):
        yield path, value, saved
        return
    if isinstance(value, (str, bytes, int, float, type, *_SAVED_BY_THEMSELVES)) or value is None or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(item, f"{path}[{key!r}]", saved, seen)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _inside(item, f"{path}[{index}]", saved, seen)
    elif isinstance(value, types.MappingProxyType):
        for key, item in value.items():
            yield from _inside(item, f"{path}[{key!r}]", False, seen)
    elif isinstance(value, np.ndarray):
        for item in value.flat if value.dtype == object else ():
            yield from _inside(item, f"{path}[...]", False, seen)
    elif isinstance(value, set | frozenset | KeysView | ValuesView | ItemsView) or type(value).__module__ == "collections":
        for item in value:
            yield from _inside(item, f"{path}{{...}}", False, seen)
    elif isinstance(value, functools.partial):
        for item in (*value.args, *value.keywords.values()):
            yield from _inside(item, f"{path}(...)", False, seen)
    elif inspect.isfunction(value):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            if name != "self":
                yield from _inside(_content(cell), f"{path}(... {name})", False, seen)
        for item in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            yield from _inside(item, f"{path}(... a default)", False, seen)
    elif inspect.ismethod(value):
        if id(value.__self__) not in seen:
            yield from _inside(value.__self__, f"{path}.__self__", False, seen)
    elif isinstance(value, types.SimpleNamespace) or not private.is_of_library(value):
        for name, item in _attributes(value):
            yield from _inside(item, f"{path}.{name}", False, seen)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object keeps under names, in a dict or in slots."""
    yield from getattr(value, "__dict__", {}).items()
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            # One that begins with two underscores is kept under the class's name, too.
            name = f"_{cls.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
