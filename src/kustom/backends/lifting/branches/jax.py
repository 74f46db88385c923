"""Variables inside `ops.cond`, `switch`, `while_loop`, `fori_loop`, `scan` and `map` on JAX, while a step is lifted.

JAX traces a branch or a body by itself, and what is assigned to a variable inside would be a tracer that has left its
trace. So what is to be traced is looked at once to find the variables that it touches; these go in as operands and come
out as results. `LossScaleOptimizer`, accumulation, an average that overwrites, a seed that is drawn in a branch need it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras

from kustom.backends import keras as private
from kustom.backends.jax import in_trace
from kustom.backends.lifting.state import Scope
from kustom.errors import BranchError

__all__ = ["carried", "decided"]

_core = private.backend_module("core")


@contextlib.contextmanager
def carried() -> Iterator[None]:
    """Inside, in this thread, the branches and bodies of Keras's control flow carry the variables that they touch."""
    with contextlib.ExitStack() as stack:
        for exchange in _exchanges:
            stack.enter_context(exchange)
        yield


class _Deciding(threading.local):
    depth = 0


_deciding = _Deciding()


@contextlib.contextmanager
def decided() -> Iterator[None]:
    """Inside, in this thread, a branch whose condition is known is simply taken, and a loop gone round.

    Eager Keras has JAX trace the branches of `ops.cond`, and fails where they assign to variables.
    """
    _deciding.depth += 1
    try:
        with carried():
            yield
    finally:
        _deciding.depth -= 1


class _Carry:
    """The variables that some functions touch, and the functions with those variables as operands and results."""

    def __init__(self, look: Callable[[], Any]) -> None:
        # A new function each time: JAX remembers what it has traced, and a second look would find nothing.
        with Scope(placeholder=lambda v: jnp.zeros(v.shape, _dtype(v))) as found:
            jax.eval_shape(lambda: look())
        self.written = [v for v in found.seen.values() if id(v) in found.written]
        self.read = [v for v in found.seen.values() if id(v) not in found.written]
        # As a tape sees them read.
        self.values = [_stripped(private.told(v), v) for v in self.written]
        self.constants = [private.told(v) for v in self.read]

    def run(self, values: Sequence[Any], constants: Sequence[Any], f: Callable[[], Any]) -> tuple[Any, list[Any]]:
        """What `f` returns where the variables have these values, and the values that it leaves."""
        with Scope([*self.written, *self.read], [*values, *constants]) as scope:
            out = f()
        if scope.losses:
            raise BranchError(
                "add_loss was called inside ops.cond, switch, while_loop, fori_loop, scan or map, where the loss is known to that "
                "branch alone. Return the loss from it, and add it outside."
            )
        return out, [_stripped(scope.get_current_value(v), v) for v in self.written]

    def assign(self, values: Sequence[Any]) -> None:
        """Give the variables the values that came out."""
        for variable, value in zip(self.written, values, strict=True):
            variable.assign(value)


def _dtype(variable: keras.Variable) -> str:
    # Without an autocast, which is of the reader.
    return variable._dtype


def _stripped(value: Any, variable: keras.Variable) -> Any:
    """A value in its variable's own dtype, and no longer weak: what comes out of a loop must be of the kind that went in."""
    return jax.lax.convert_element_type(value, _dtype(variable))


def _lifting() -> bool:
    return isinstance(private.open_scope(), Scope)


def _cond(pred: Any, true_fn: Callable[[], Any], false_fn: Callable[[], Any]) -> Any:
    carry = _Carry(lambda: (true_fn(), false_fn()))

    def branch(f: Callable[[], Any]) -> Callable[..., Any]:
        return lambda values, constants: carry.run(values, constants, f)

    out, values = jax.lax.cond(_truth(pred), branch(true_fn), branch(false_fn), carry.values, carry.constants)
    carry.assign(values)
    return out


def _truth(pred: Any) -> Any:
    return jnp.asarray(pred.value if isinstance(pred, keras.Variable) else pred, "bool")


def _switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    carry = _Carry(lambda: [f(*operands) for f in branches])

    def branch(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda values, constants, *given: carry.run(values, constants, lambda: f(*given))

    out, values = jax.lax.switch(index, [branch(f) for f in branches], carry.values, carry.constants, *operands)
    carry.assign(values)
    return out


def _while_loop(cond: Any, body: Any, loop_vars: Any, maximum_iterations: Any = None) -> Any:
    several = isinstance(loop_vars, tuple | list)
    start = tuple(loop_vars) if several else (loop_vars,)
    carry = _Carry(lambda: (cond(*start), body(*start)))

    def goes_on(state: Any) -> Any:
        loop, values, done = state
        on, _ = carry.run(values, carry.constants, lambda: cond(*loop))
        return on if maximum_iterations is None else on & (done < maximum_iterations)

    def once(state: Any) -> Any:
        loop, values, done = state
        out, values = carry.run(values, carry.constants, lambda: body(*loop))
        return tuple(out) if several else (out,), values, done + 1

    loop, values, _ = jax.lax.while_loop(goes_on, once, (start, carry.values, 0))
    carry.assign(values)
    return loop if several else loop[0]


def _fori_loop(lower: Any, upper: Any, body_fun: Any, init_val: Any) -> Any:
    carry = _Carry(lambda: body_fun(lower, init_val))

    def once(i: Any, state: Any) -> Any:
        return carry.run(state[1], carry.constants, lambda: body_fun(i, state[0]))

    out, values = jax.lax.fori_loop(lower, upper, once, (init_val, carry.values))
    carry.assign(values)
    return out


def _scan(f: Any, init: Any, xs: Any = None, length: Any = None, reverse: bool = False, unroll: Any = 1) -> Any:
    first = None if xs is None else jax.tree.map(lambda x: jnp.asarray(x)[0], xs)
    carry = _Carry(lambda: f(init, first))

    def once(state: Any, x: Any) -> Any:
        (loop, out), values = carry.run(state[1], carry.constants, lambda: f(state[0], x))
        return (loop, values), out

    (loop, values), outs = jax.lax.scan(once, (init, carry.values), xs, length=length, reverse=reverse, unroll=unroll)
    carry.assign(values)
    return loop, outs


def _map(f: Any, xs: Any) -> Any:
    return _scan(lambda state, x: (state, f(x)), (), xs)[1]


def _plain_while(cond: Any, body: Any, loop_vars: Any, maximum_iterations: Any = None) -> Any:
    several = isinstance(loop_vars, tuple | list)
    state = tuple(loop_vars) if several else (loop_vars,)
    done = 0
    while (maximum_iterations is None or done < maximum_iterations) and bool(cond(*state)):
        out = body(*state)
        state = tuple(out) if several else (out,)
        done += 1
    return state if several else state[0]


def _plain_fori(lower: Any, upper: Any, body_fun: Any, init_val: Any) -> Any:
    for i in range(int(lower), int(upper)):
        init_val = body_fun(i, init_val)
    return init_val


def _plain_scan(f: Any, init: Any, xs: Any = None, length: Any = None, reverse: bool = False, unroll: Any = 1) -> Any:
    leaves = jax.tree.leaves(xs)
    many = len(leaves[0]) if leaves else int(length)
    outs: list[Any] = [None] * many
    for i in reversed(range(many)) if reverse else range(many):
        init, outs[i] = f(init, jax.tree.map(lambda x, i=i: x[i], xs))
    return init, jax.tree.map(lambda *each: jnp.stack(each), *outs)


# What is done where the values are known.
_PLAIN: dict[str, Callable[..., Any]] = {
    "cond": lambda pred, true_fn, false_fn: true_fn() if bool(_truth(pred)) else false_fn(),
    "switch": lambda index, branches, *operands: branches[min(max(int(index), 0), len(branches) - 1)](*operands),
    "while_loop": _plain_while,
    "fori_loop": _plain_fori,
    "scan": _plain_scan,
    "map": lambda f, xs: _plain_scan(lambda state, x: (state, f(x)), (), xs)[1],
}


def _exchange(name: str, other: Callable[..., Any]) -> private.Exchange:
    def chosen(plain: Callable[..., Any]) -> Callable[..., Any]:
        def lifted(*args: Any, **kwargs: Any) -> Any:
            if exchange.here and _lifting():
                return other(*args, **kwargs)
            if exchange.here and _deciding.depth and name in _PLAIN and not in_trace():
                return _PLAIN[name](*args, **kwargs)
            return plain(*args, **kwargs)

        return lifted

    exchange = private.Exchange(_core, name, chosen)
    return exchange


_exchanges = [
    _exchange("cond", _cond),
    _exchange("switch", _switch),
    _exchange("while_loop", _while_loop),
    _exchange("fori_loop", _fori_loop),
    _exchange("scan", _scan),
    _exchange("map", _map),
]
