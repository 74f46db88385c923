"""How the `call` of a layer or model is watched the first time, and what it does with a mask.

What `call` makes, or takes from the module around it, has weights that nobody counts, trains or saves, and Keras says
nothing of it. So the first call in each mode is watched: what it has made must be found in the part's attributes then, and
what it names in the module must have no state.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kustom.backends import keras as private
from kustom.defining import data
from kustom.defining.settings import leaves
from kustom.defining.tracking import held_variables, state_of
from kustom.errors import TrackingError, hide_frames

__all__ = ["install", "watched"]

# Where a part keeps the modes (`training`) in which its call has been watched.
_WATCHED = "_kustom_watched"


def install(cls: Any) -> None:
    """Wrap the `call` that the author of a part's class wrote."""
    written = vars(cls).get("call")
    if written is None:
        return
    takes_mask = "mask" in inspect.signature(written).parameters
    if takes_mask and private.is_default(cls.compute_mask):
        # Keras takes a layer with a `compute_mask` for one that knows of masks; one without loses them, with a warning.
        cls.compute_mask = _compute_mask

    @hide_frames
    @functools.wraps(written)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        mode = kwargs.get("training")
        outputs = watched(
            self, mode, lambda: written(self, *args, **kwargs), written, lambda: held_variables(self), f"{cls.__name__}.call"
        )
        if takes_mask and self.supports_masking and getattr(self.compute_mask, "__func__", None) is _compute_mask:
            data.pass_mask([*args, *kwargs.values()][:1], outputs, kwargs.get("mask"))
        return outputs

    cls.call = call


def _compute_mask(self: Any, inputs: Any, previous_mask: Any) -> None:
    """None: `call` has passed the mask on, where it fits; here the output is not known."""


def watched(
    part: Any,
    mode: Any,
    run: Callable[[], Any],
    source: Callable[..., Any],
    held: Callable[[], set[int]],
    owner: str,
    *,
    of_function: bool = False,
) -> Any:
    """What `run` returns; the first time in this mode, look at what it makes and uses.

    Args:
        part: Keeps the modes that have been watched.
        mode: What the call was told of `training`.
        run: Calls what the author wrote.
        source: What the author wrote.
        held: The ids of the variables that the part holds, asked afterwards.
        owner: Who calls, for an error message.
        of_function: The part is made from a function, and so holds no weights at all.

    Raises:
        TrackingError: It makes variables that the part does not hold, or uses those of the module around it.
    """
    mode = mode if isinstance(mode, bool) else None
    seen = vars(part).get(_WATCHED, ())
    if mode in seen:
        return run()
    with private.makes() as made:
        outputs = run()
    where = "in setup() or build(), as an attribute of self"
    advice = f"Write a class with @kustom.part instead, and make it {where}" if of_function else f"Make it {where}"
    for name, obj in _of_module(source, set()):
        is_layer = isinstance(obj, keras.layers.Layer)
        field = f"; or take it as a field, {name}: keras.layers.Layer = kustom.field()" if is_layer else ""
        raise TrackingError(
            f"{owner} uses {name}, a {type(obj).__name__} of the module around it, which is neither counted, trained nor saved "
            f"with the part. {advice}{field}."
        )
    known = held() if made else set()
    for variable in made:
        if id(variable) not in known:
            raise TrackingError(
                f"{owner} makes {variable.path} anew in each call: it is neither counted, trained nor saved. {advice}."
            )
    object.__setattr__(part, _WATCHED, (*seen, mode))
    return outputs


def _of_module(function: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """What has state among the global names that a function reads, or a function of the user's that it calls by name."""
    function = inspect.unwrap(function)
    if not isinstance(function, types.FunctionType) or id(function) in seen or private.is_library(function.__module__):
        return
    seen.add(id(function))
    for name in _globals_of(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, types.FunctionType):
            yield from _of_module(value, seen)
        else:
            yield from ((name, leaf) for leaf in leaves(value) if state_of(leaf))


def _globals_of(code: types.CodeType) -> dict[str, None]:
    """The global names that a piece of code reads, each once."""
    # `co_names` has the attributes, too: `self.dense` is no global of that name.
    names = {step.argval: None for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals_of(constant)
    return names
