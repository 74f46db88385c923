"""What a variable holds, past its casts and past stateless scopes, and what is put there.

The public `value` and `assign` are what a layer sees. A program, a tape and a file are about what is kept underneath.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import get_stateless_scope

__all__ = [
    "are_placed",
    "forget_uninitialized",
    "has_value",
    "initialize",
    "is_assigned",
    "is_given_another",
    "open_scope",
    "own",
    "own_value",
    "put",
    "put_all",
    "set_path",
    "stored",
    "trainable",
    "uninitialized",
]


def is_assigned(variable: keras.Variable) -> bool:
    """Whether the stateless scope that is open now holds a value assigned to `variable`."""
    scope = get_stateless_scope()
    return scope is not None and scope.get_current_value(variable) is not None


def has_value(variable: keras.Variable) -> bool:
    """Whether `variable` can be read here: it has a value of its own, or the open stateless scope has one for it.

    While Keras's JAX step runs, its variables have given theirs away.
    """
    return variable._value is not None or is_assigned(variable)


def stored(variable: keras.Variable) -> Any:
    """What `variable` holds here, before any cast: the open stateless scope's value, else its own; None if it has none."""
    scope = get_stateless_scope()
    value = scope.get_current_value(variable) if scope is not None else None
    return variable._value if value is None else value


def own_value(variable: keras.Variable) -> Any:
    """The value that `variable` has outside of every stateless scope, before any cast; None before it is initialized."""
    return variable._value


def put(variable: keras.Variable, value: Any) -> None:
    """Give `variable` a value of its own dtype and shape outside of every stateless scope."""
    variable._direct_assign(value)


# What `own_value` gives, and whether a variable is trainable: for what is asked of many variables at each call of a program,
# by `map`, so that it costs no frame of Python for each.
own = operator.attrgetter("_value")
trainable = operator.attrgetter("_trainable")


def are_placed(variables: Iterable[keras.Variable]) -> bool:
    """Whether one of the variables has a layout over devices, which `put` sees to."""
    return any(variable._layout is not None for variable in variables)


def put_all(variables: list[keras.Variable], values: list[Any]) -> None:
    """What `put` does, for each of variables that have no layout; no `undone` is told."""
    for variable, value in zip(variables, values, strict=True):
        variable._value = value


def open_scope() -> keras.StatelessScope | None:
    """The stateless scope that is open now."""
    return get_stateless_scope()


def is_given_another(variable: keras.Variable, around: keras.StatelessScope | None) -> bool:
    """Whether `variable` has another value here than it has in the scope `around`: from one that was opened inside of that.

    So `stateless_call` and a `keras.StatelessScope` hand a layer weights that are not its own. Scopes of kustom's own, which
    derive from that class, stand for the variables themselves.
    """
    scope = get_stateless_scope()
    if scope is None or scope is around or type(scope) is not keras.StatelessScope:
        return False
    given = scope.get_current_value(variable)
    if given is None:
        return False
    outer = scope.original_scope
    own = None if outer is None else outer.get_current_value(variable)
    return given is not (variable._value if own is None else own)


def uninitialized() -> list[keras.Variable]:
    """The variables that were made in a stateless scope and have no value yet."""
    return list(global_state.get_global_attribute("uninitialized_variables") or ())


def forget_uninitialized(variables: Iterable[keras.Variable]) -> None:
    """Have Keras not initialize these at the end of the next stateless scope, which it does with all that were made in one."""
    known = {id(variable) for variable in variables}
    waiting = [variable for variable in uninitialized() if id(variable) not in known]
    global_state.set_global_attribute("uninitialized_variables", waiting)


def initialize(variables: Iterable[keras.Variable]) -> None:
    """Give those variables that have no value yet the one of their initializer."""
    for variable in variables:
        if variable._value is None:
            variable._deferred_initialize()


def set_path(variable: keras.Variable, path: str) -> None:
    """Give a variable the path that it had in the model that was saved."""
    variable._path = path
