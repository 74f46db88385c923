"""Lifting on JAX: what a function does to variables becomes arguments and results of a compiled one.

The function is traced twice. The first time nothing is known of its state: a scope sees every variable that is read or
written, and those that are made get their values when it closes. The second time the values are arguments, and what comes
of it is kept as a jaxpr, from which the single step and the loop over many are both compiled: bitwise the same numbers.

Buffers are donated, so that a step needs the memory of one state. A buffer that somebody else holds, or that stands in
two variables, is copied before; where the program can raise while it runs, nothing is donated, and the variables stand as
they were until all results are there.
"""

from __future__ import annotations

import contextlib
import operator
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.extend import core as extend

from kustom.backends import keras as private
from kustom.backends.lifting.branches.jax import carried, decided
from kustom.backends.lifting.state import Scope, bits_of, made_each_time, refusing, whole

__all__ = ["COMPILERS", "LIGHT", "LOOPS_HEAVY", "LOOP_IS_A_CHOICE", "TRACES_CHEAPLY", "Program", "decided", "number"]

# What can be asked of `Program` beside its default.
COMPILERS = ()
# The compiler for small functions that run now and then, and whether to trace those pays.
LIGHT = None
TRACES_CHEAPLY = True
# Whether a loop over convolutions is as fast as a call for each.
LOOPS_HEAVY = False
# Whether a call for each step can be faster than a loop over many where neither is heavy.
LOOP_IS_A_CHOICE = True

# What JAX raises where a value is asked for that is not known.
_UNKNOWN = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
_SAID = (
    ("Shapes must be 1D sequences of concrete values", "static_argnums"),
    ("Slice entries must be static integers", "Tracer"),
)
# How often a function may find new variables: the first look builds what the next one reads.
_LOOKS = 4


def number(value: float | complex) -> Any:
    """A Python number as an argument that is no constant of the trace: JAX keeps it weak, as it is beside a tensor."""
    if isinstance(value, int):
        bits_of(value, 64 if jax.config.read("jax_enable_x64") else 32)
    return value


class Program:
    """A function of tensors that reads and writes variables, compiled for tensors of one kind.

    Args:
        f: Takes a list of tensors and returns one.
        examples: Tensors of the shapes and dtypes that it will be called with.
        compiler: Nothing can be chosen here.

    Raises:
        BranchOnValue: `f` needs a value while it is traced.
        Exception: Whatever `f` raises; no variable has changed.
    """

    def __init__(self, f: Callable[[list[Any]], list[Any]], examples: Sequence[Any], *, compiler: str | None = None) -> None:
        known = self._look(f, examples)
        looks = 0
        while True:
            closed, count, scope = self._trace(f, examples, list(known.values()))
            new = scope.seen.keys() - known.keys()
            if not new:
                break
            looks += 1
            if looks == _LOOKS:
                raise made_each_time(scope.seen[min(new)])
            known |= {key: scope.seen[key] for key in new}
        self.variables = list(known.values())
        self.written = [v for v in self.variables if id(v) in scope.written]
        self._read = [v for v in self.variables if id(v) not in scope.written]
        names = _primitives(closed.jaxpr)
        self.heavy = bool(names & _HEAVY) and jax.default_backend() == "cpu"
        self.can_raise = bool(names & _CALLBACKS)
        self._flat = extend.jaxpr_as_fun(closed)
        self._count = count
        self._gave = _Gave()
        self._are_placed = private.are_placed(self.written)
        # What is donated is lost where the program raises.
        donated = () if self.can_raise else (0,)
        self._step = jax.jit(self._pure, donate_argnums=donated)
        self._loops = {keep: jax.jit(self._repeated, donate_argnums=() if keep else donated) for keep in (False, True)}
        self._pick = jax.jit(self._picked, donate_argnums=donated)
        self._copy = jax.jit(lambda values: list(map(jnp.copy, values)))

    @staticmethod
    def _look(f: Callable[[list[Any]], list[Any]], examples: Sequence[Any]) -> dict[int, keras.Variable]:
        """The variables that `f` touches; those that it makes have their values afterwards."""
        with _tracing(), Scope(placeholder=_placeholder) as scope, refusing(_asks_a_value):
            # A new function each time: JAX remembers what it has traced, and a second look would find nothing.
            jax.eval_shape(lambda *tensors: f(list(tensors)), *examples)
        return scope.seen

    @staticmethod
    def _trace(f: Callable[[list[Any]], list[Any]], examples: Sequence[Any], variables: list[keras.Variable]) -> Any:
        """The jaxpr of `f`, with the values of the written variables, those of the others and the tensors as arguments."""
        kept: list[Any] = []

        def pure(values: list[Any], tensors: list[Any]) -> Any:
            with Scope(variables, values) as scope:
                outs = f(list(tensors))
            written = [v for v in scope.seen.values() if id(v) in scope.written]
            kept[:] = [scope, len(outs)]
            return [*outs, *(jax.lax.convert_element_type(scope.get_current_value(v), v._dtype) for v in written)]

        # The scope around is there so that nothing is initialized inside of the trace.
        with _tracing(), Scope(placeholder=_placeholder), refusing(_asks_a_value):
            closed = jax.make_jaxpr(pure)(_own_values(variables), list(examples))
        return closed, kept[1], kept[0]

    def _pure(self, written: list[Any], read: list[Any], tensors: list[Any]) -> tuple[list[Any], list[Any]]:
        values, others = iter(written), iter(read)
        changes = {id(v) for v in self.written}
        given = [next(values) if id(v) in changes else next(others) for v in self.variables]
        out = self._flat(*given, *tensors)
        return out[: self._count], out[self._count :]

    def _picked(self, written: list[Any], read: list[Any], data: list[Any], rows: Any, i: Any) -> Any:
        chosen = i if rows is None else jax.lax.dynamic_index_in_dim(rows, i, keepdims=False)
        # The mode is right for what is in range, and spares the tests.
        return self._pure(written, read, [a.at[chosen].get(mode="promise_in_bounds") for a in data])

    def _repeated(self, written: list[Any], read: list[Any], data: list[Any], rows: Any, start: Any, count: Any) -> Any:
        def once(i: Any, state: Any) -> Any:
            sums, values = state
            outs, values = self._picked(values, read, data, rows, start + i)
            return [_added(total, lost, out.astype("float32")) for (total, lost), out in zip(sums, outs, strict=True)], values

        # The trip count is an argument: another length is no other program.
        zero = jnp.zeros((), "float32")
        return jax.lax.fori_loop(0, count, once, ([(zero, zero)] * self._count, written))

    def run(self, tensors: Sequence[Any]) -> list[Any]:
        """Call the function once."""
        return self._called(self._step, self._donated(), list(tensors))

    def pick(self, data: Sequence[Any], rows: Any, index: int, *, keep: bool = False) -> list[Any]:
        """Call the function with one batch of those that `loop` takes: with the number `index`.

        Args:
            data: As for `loop`.
            rows: As for `loop`.
            index: Which batch.
            keep: As for `loop`. Here what is donated is copies: a step that keeps and one that does not are one program, since
                what is run in this way takes long to compile.
        """
        values = self._donated() if not keep or self.can_raise else self._copy(_own_values(self.written))
        return self._called(self._pick, values, list(data), rows, index)

    def loop(self, data: Sequence[Any], rows: Any, start: int, count: int, *, keep: bool = False) -> list[Any]:
        """Call the function with `count` batches, one after the other; returns the sum of each of its scalar results.

        Args:
            data: Tensors whose first axis is that of the samples, or where `rows` is None of the batches.
            rows: Integers `(batches, samples)`: which rows make a batch.
            start: The first batch.
            count: How many.
            keep: Whether the values before, which `keep` gave, will be asked for: then their buffers are not donated.
        """
        values = _own_values(self.written) if keep else self._donated()
        sums = self._called(self._loops[keep], values, list(data), rows, start, count)
        return [np.float64(total) + np.float64(lost) for total, lost in jax.device_get(sums)]

    def _called(self, compiled: Any, written: list[Any], *args: Any) -> list[Any]:
        with whole():
            outs, values = compiled(written, _own_values(self._read), *args)
            if self.can_raise:
                jax.block_until_ready(values)
            if self._are_placed:
                for variable, value in zip(self.written, values, strict=True):
                    private.put(variable, value)
                # They may be others.
                values = list(map(private.own, self.written))
            else:
                private.put_all(self.written, values)
            self._gave.last = values
            if _latest[0]() is not self._gave:
                _release_latest()
                _latest[0] = weakref.ref(self._gave)
        return outs

    def _donated(self) -> list[Any]:
        """The values of the variables to be written, of which nobody else holds a buffer."""
        values = list(map(private.own, self.written))
        if _latest[0]() is self._gave:
            # One holder more: what the last call gave.
            if all(map(operator.is_, self._gave.last, values)) and max(map(sys.getrefcount, values), default=0) <= _HOLDERS + 1:
                return values
        else:
            _release_latest()
        self._gave.release()
        values = _own_values(self.written)
        if self.can_raise:
            return values
        for i in range(len(values)):
            if max(map(sys.getrefcount, values[i : i + 1])) > _HOLDERS + 1 or not _is_given(values[i]):
                values[i] = jnp.copy(values[i])
        return values

    def wait(self) -> None:
        """Until what was called last has been computed."""
        jax.block_until_ready([private.own_value(v) for v in self.written])

    def keep(self) -> Any:
        """The state as it is, for `restore`."""
        return [private.own_value(v) for v in self.written]

    def restore(self, kept: Any) -> None:
        """Give every variable the value that it had at `keep`."""
        for variable, value in zip(self.written, kept, strict=True):
            private.put(variable, value)


def _asks_a_value(error: BaseException) -> bool:
    # Of a shape and of a slice JAX says so by other errors, and only there that a tracer stands in it.
    said = str(error) if isinstance(error, TypeError | IndexError) else ""
    return isinstance(error, _UNKNOWN) or any(start in said and tracer in said for start, tracer in _SAID)


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    """What Keras does otherwise while a function is traced here."""
    with private.builds_at_once(jax.ensure_compile_time_eval), private.values_wait(), private.everyones_seed(), carried():
        yield


# The primitives that run many times slower inside a compiled loop than outside, on a CPU.
_HEAVY = frozenset(["conv_general_dilated", "scan", "while"])
# Those that can raise.
_CALLBACKS = frozenset(["pure_callback", "io_callback", "debug_callback", "check"])


class _Given(weakref.ref[Any]):
    """Marks a value that a program gave: of no other is it known that it shares its buffer with nobody.

    It has no callback, in which a Ctrl-C would be lost.
    """

    __slots__ = ()


class _Gave:
    """The values that a program gave last.

    Those of the program that ran last of all are kept, so that the next call need not look further. Those of another are
    marked, and held by their variables alone.
    """

    __slots__ = ("__weakref__", "_marks", "last")

    def __init__(self) -> None:
        self.last: list[Any] = []
        self._marks: list[_Given] = []

    def release(self) -> None:
        """Mark the values, and let go of them."""
        self._marks = list(map(_Given, self.last)) or self._marks
        self.last = []


# What the program gave that ran last, which may be gone.
_latest: list[Callable[[], _Gave | None]] = [lambda: None]


def _release_latest() -> None:
    if (gave := _latest[0]()) is not None:
        gave.release()


def _is_given(value: Any) -> bool:
    return any(type(ref) is _Given for ref in weakref.getweakrefs(value))


def _count_holders() -> int:
    class Holder:
        pass

    holder = Holder()
    holder.value = object()  # type: ignore[attr-defined]
    values = [holder.value]  # type: ignore[attr-defined]
    # Counted in the way that it is asked.
    return max(map(sys.getrefcount, values))


_HOLDERS = _count_holders()
_is_weak = operator.attrgetter("aval.weak_type")


def _own_values(variables: list[keras.Variable]) -> list[Any]:
    """The variables' values, whose dtypes are their own: with a weak one, as a number gives, the program would be another."""
    values = list(map(private.own, variables))
    if any(map(_is_weak, values)):
        for i, value in enumerate(values):
            if value.aval.weak_type:
                values[i] = jax.lax.convert_element_type(value, value.dtype)
                private.put(variables[i], values[i])
    return values


def _added(total: Any, lost: Any, value: Any) -> tuple[Any, Any]:
    """A sum of float32 and what rounding has taken from it, with a value more (Knuth's TwoSum): there is no float64 here.

    In float32 alone, the sum over a chunk would depend on the chunk's length, which follows from timing.
    """
    new = total + value
    seen = new - total
    error = (total - (new - seen)) + (value - seen)
    # Of what is not finite nothing is lost.
    return new, lost + jnp.where(jnp.isfinite(new), error, 0.0)


def _placeholder(variable: keras.Variable) -> Any:
    return jnp.zeros(variable.shape, variable._dtype)


def _primitives(jaxpr: Any) -> set[str]:
    """The names of all primitives in a jaxpr, those inside of others included."""
    names: set[str] = set()
    todo = [jaxpr]
    while todo:
        for equation in todo.pop().eqns:
            names.add(equation.primitive.name)
            todo += [j.jaxpr if hasattr(j, "jaxpr") else j for j in _inner(equation.params)]
    return names


def _inner(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, extend.ClosedJaxpr | extend.Jaxpr):
                found.append(each)
    return found
