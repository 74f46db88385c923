"""Layers and optimizers that are built at once, although a trace goes on around them.

Keras builds when it first calls, which may be in the middle of a compiled step. Variables of the trace would be the outcome.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state

from kustom.backends.keras.exchanging import Exchange
from kustom.backends.keras.variables import open_scope
from kustom.backends.keras.watching import readers_here

__all__ = ["builds_at_once", "built_at_once"]


@contextlib.contextmanager
def builds_at_once(outside: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """Inside, in this thread, layers and optimizers are built as by an eager call, whatever is being traced around.

    What `build` assigns is assigned once. As a part of a trace it would be assigned at each call, or never.

    Args:
        outside: Makes the backend's scope in which nothing is traced.
    """
    _builders.all.append(outside)
    classes = list(keras.optimizers.Optimizer.__mro__)
    for cls in classes:
        # Every optimizer has a `build` of its own, which calls its base's first.
        classes += cls.__subclasses__() if issubclass(cls, keras.optimizers.Optimizer) else []
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_building)
            for cls in classes:
                if "build" in vars(cls):
                    stack.enter_context(_building_of(cls))
            yield
    finally:
        _builders.all.pop()


class _Builders(threading.local):
    def __init__(self) -> None:
        self.all: list[Callable[[], contextlib.AbstractContextManager[Any]]] = []


_builders = _Builders()


def built_at_once(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A `build` that is done at once where `builds_at_once` is around it."""
    builders = _builders

    @functools.wraps(plain)
    def build(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not builders.all or self.built:
            return plain(self, *args, **kwargs)
        outside, scope = builders.all[-1], open_scope()
        told, readers_here.all = readers_here.all, []
        # What is built inside is built as ever: a model that Keras builds by a symbolic call has a scope of Keras's around
        # its layers, without which torch would leave their weights on the device "meta".
        around, builders.all = builders.all, []
        global_state.set_global_attribute("stateless_scope", None)
        try:
            with outside():
                return plain(self, *args, **kwargs)
        finally:
            global_state.set_global_attribute("stateless_scope", scope)
            readers_here.all, builders.all = told, around

    return build


_building = Exchange(keras.layers.Layer, "_maybe_build", built_at_once)


@functools.cache
def _building_of(cls: type) -> Exchange:
    return Exchange(cls, "build", built_at_once)
