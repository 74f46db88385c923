"""`kustom.function`: a function that reads and writes Keras variables, compiled on every backend.

What is the same everywhere is here: which program fits a call, what is done where a function cannot be traced. `arguments`
tells which arguments are tensors and which are part of the program. What a backend does to compile stands in
`backends/lifting`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

import keras

from kustom.backends import current
from kustom.backends import keras as private
from kustom.backends.lifting.branches.many import one_value_each
from kustom.backends.lifting.eager import Eager
from kustom.backends.lifting.state import BranchOnValue
from kustom.errors import EagerWarning, FunctionError, RetraceWarning, TracerWarning, hide_frames, warn
from kustom.gradients.applying import Passed, applying, unseen
from kustom.gradients.tape import is_recorded
from kustom.training.arguments import Arguments, Result, tensor_types
from kustom.training.draws import Draws
from kustom.training.flags import Flags
from kustom.training.reached import Reached, is_keras
from kustom.training.tracers import tracers_put_back
from kustom.training.watching import Guards, values_of

__all__ = ["Compiled", "function"]

P = ParamSpec("P")
R = TypeVar("R")

# How many programs there are for arguments of one kind: those taken last.
_KEPT = 8
# From how many programs on a function is said to be traced often.
_OFTEN = 10


@overload
def function(
    f: None = None, /, *, static_argnames: str | Sequence[str] = (), run_eagerly: bool = False, compiler: str | None = None
) -> Callable[[Callable[P, R]], Compiled[P, R]]: ...


@overload
def function(
    f: Callable[P, R], /, *, static_argnames: str | Sequence[str] = (), run_eagerly: bool = False, compiler: str | None = None
) -> Compiled[P, R]: ...


def function(
    f: Any = None, /, *, static_argnames: str | Sequence[str] = (), run_eagerly: bool = False, compiler: str | None = None
) -> Any:
    """Compile a function that reads and writes Keras variables: models, optimizers, metrics, seeds.

    The variables are found, not passed: between two calls they are the truth, whoever assigned to them. Models and
    optimizers that are not built yet are built by the first call. An exception leaves every variable as it was.

    Arguments and results may have any structure. Tensors, arrays and numbers are arguments of the program, so that another
    number is no new trace; text, booleans, None and objects are part of it, and so is what `static_argnames` names. There
    is a program for each combination of shapes, dtypes and such parts, and a new one when Python state has changed that the
    function reads: numbers, text, None and tuples of them in its closure, in the globals that it names, in the `__dict__` of the
    Keras objects that it reaches, in the attributes of other objects, modules and classes that it mentions, and in the small
    dicts, lists and arrays of NumPy's that these hold; `trainable` of its variables; the object that a name stands for.

    Where the function needs a value to go on (`if loss > 1:`, `float(loss)`), it cannot be traced: it then runs without
    being compiled, and a warning names the line. So does one that draws from NumPy's or Python's generators, which would give
    the same numbers each time. Inside a gradient tape of ours, and inside another compiled function, it
    runs as part of what is around it.

    Args:
        f: The function, or a method in a class's body.
        static_argnames: The names of arguments whose numbers are part of the program: an axis, a count of layers.
        run_eagerly: Run it as plain Python, for a debugger.
        compiler: What compiles, in place of the default: on TensorFlow `"xla"` or `"graph"` (by default XLA, unless there
            is a convolution or recurrence in the graph), on torch `"inductor"`, which takes many seconds.

    Returns:
        A callable with the signature of `f` and the attribute `traces`, how many programs it has made.

    Raises:
        FunctionError: `f` is not callable, a generator or an async function; or an argument of this call is nothing that it
            knows, such as a whole number that the backend has no integer for.

    Example:
        >>> import keras, kustom
        >>> count = keras.Variable(0.0)
        >>> @kustom.function
        ... def add(x):
        ...     count.assign_add(x)
        ...     return count * 2
        >>> [float(add(x)) for x in (1.0, 2.0, 3.0)]
        [2.0, 6.0, 12.0]
        >>> float(keras.ops.convert_to_numpy(count)), add.traces
        (6.0, 1)
    """
    names = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)
    if f is None:
        return lambda f: Compiled(f, names, run_eagerly, compiler)
    return Compiled(f, names, run_eagerly, compiler)


class Compiled(Generic[P, R]):
    """What `kustom.function` returns."""

    def __init__(
        self,
        f: Callable[P, R],
        static_argnames: Iterable[str],
        run_eagerly: bool,
        compiler: str | None,
        *,
        quiet: bool = False,
        about: tuple[Any, ...] = (),
    ) -> None:
        if not callable(f):
            raise FunctionError(f"kustom.function was given {type(f).__name__}; give it a function: kustom.function(step).")
        if kind := _kind_of_no_return(f):
            raise FunctionError(
                f"kustom.function was given {_name(f)}, {kind}: what it computes is computed after the call, and no program is of "
                "that. Compile a function that returns, and call it in the loop that yields or awaits."
            )
        known = current("lifting").COMPILERS
        if compiler is not None and compiler not in known:
            choice = " or ".join(map(repr, known)) or "none"
            raise FunctionError(f"compiler={compiler!r} is not known on {keras.backend.backend()}; there it is {choice}.")
        self._f = f
        # What `f` stands for, where it is the library's own.
        self._about = about or (f,)
        # What messages are about.
        ours = isinstance(self._about[0], types.FunctionType) and private.is_library(self._about[0].__module__)
        self._subject: Any = f if ours else self._about[0]
        self._static = tuple(static_argnames)
        self._signature = inspect.signature(f) if self._static else None
        if self._signature is not None and (unknown := set(self._static) - set(self._signature.parameters)):
            raise FunctionError(f"static_argnames names {sorted(unknown)}, which {_name(f)} has no arguments for.")
        self.run_eagerly = run_eagerly
        self.compiler = compiler
        self.traces = 0
        self._entries: dict[Any, list[Entry]] = {}
        # Those of calls with nothing but tensors, by their shapes and dtypes.
        self._of_tensors: dict[Any, list[Entry]] = {}
        # Whether nothing is said of what cannot be compiled.
        self._quiet = self._warned = quiet
        functools.update_wrapper(self, f, updated=())

    def __repr__(self) -> str:
        return f"<kustom.function {_name(self._subject)}, {self.traces} traces>"

    def __get__(self, owner: Any, cls: type | None = None) -> Any:
        if owner is None:
            return self
        if isinstance(owner, type):
            # Of a `classmethod`, as of Python 3.13 by itself: the class is an argument.
            return types.MethodType(self, owner)
        # With the owner, so that they go together. Around its `__setattr__`: this is nothing that Keras should track.
        held = vars(owner).get(_METHODS)
        if held is None or held.owner is not owner:
            held = vars(owner)[_METHODS] = _Methods(owner)
        methods = held.by_function
        if self not in methods:
            # It binds the instance as a function would.
            method: Any = types.MethodType(self._f, owner)
            methods[self] = Compiled(method, self._static, self.run_eagerly, self.compiler)
        return methods[self]

    @hide_frames
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if is_recorded() or _is_traced():
            return self._f(*args, **kwargs)
        plain = not kwargs and self._signature is None and tensor_types.issuperset(map(type, args))
        kinds = tuple(map(_kind_of_tensor, args)) if plain else ()
        if plain and (known := self._of_tensors.get(kinds)) and (entry := self._known(known)):
            tensors: list[Any] = list(args)
        else:
            call = self.arguments(args, kwargs)
            entry = self.entry(call)
            tensors = entry.tensors(call)
            if plain:
                # Without an object there is no owner.
                self._of_tensors[kinds] = self._entries[call.key]
        # It may be called by a step that runs as plain Python, and fails later.
        private.may_be_written(entry.program.written)
        unseen()
        outs = entry.program.run(tensors)
        if entry.is_of_one_call:
            entry.leave()
        return entry.result.unpack(outs)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The arguments of a call, told apart."""
        return Arguments(args, kwargs, self._static_places(args, kwargs))

    def entry(self, call: Arguments) -> Entry:
        """The program for such a call; traced where there is none yet, or none that still fits."""
        entries = self._of(call).setdefault(call.key, [])
        entry = self._known(entries)
        if entry is None:
            entry = self._traced(call)
            entries.insert(0, entry)
            # Each keeps what it was made of, such as a model that has another in its place now.
            del entries[_KEPT:]
            entry.guards.adopt_seed()
        return entry

    def _of(self, call: Arguments) -> dict[Any, list[Entry]]:
        """The programs among which that for a call is: those of a Keras object that is handed over die with it."""
        owner: Any = next((obj for obj in call.form.objects if is_keras(obj) or isinstance(obj, keras.Variable)), None)
        if owner is None:
            return self._entries
        # As for methods: with the owner, and nothing that Keras should track.
        held = vars(owner).get(_PROGRAMS)
        if held is None or held.owner() is not owner:
            held = vars(owner)[_PROGRAMS] = _Programs(owner)
        return held.by_function.setdefault(self, {})

    def _known(self, entries: list[Entry]) -> Entry | None:
        """The program that still fits."""
        for i, entry in enumerate(entries):
            if entry.guards.hold():
                if i:
                    # The one that was taken last is asked first.
                    entries.insert(0, entries.pop(i))
                entry.guards.adopt_seed()
                return entry
        return None

    def _static_places(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[Any]:
        if self._signature is None:
            return set()
        names = list(self._signature.parameters)[: len(args)]
        return {(0, i) for i, name in enumerate(names) if name in self._static} | {(1, k) for k in kwargs if k in self._static}

    def _traced(self, call: Arguments) -> Entry:
        self.traces += 1
        if self.traces > _OFTEN and not self._warned:
            self._warned = True
            warn(
                f"{self._place()} has been traced {self.traces} times: for new shapes, other text or objects as arguments, or "
                "changed Python state. Batches of one shape, and tensors or numbers as arguments, need one trace. (Said once.)",
                RetraceWarning,
            )
        form, result = call.form, Result()
        call_f: Callable[..., Any] = self._f
        passed = Passed()

        def flat(leaves: list[Any]) -> list[Any]:
            args, kwargs = form.rebuilt(leaves)
            with applying(passed):
                return result.pack(call_f(*args, **kwargs))

        if self.run_eagerly:
            return Entry(Eager(flat), result, Guards((), {}, ()), reached=Reached(*self._about, *form.objects))
        gained: list[tuple[str, Any]] = []
        roots = (*self._about, *form.objects)
        widened = False
        with tracers_put_back(roots, lambda name, owner: gained.append((name, owner))) as reached:
            before, flags, draws = values_of(reached), Flags(reached), Draws(reached)
            looked_at = _looked_at_alike(flat, flags, draws)
            try:
                program, widened = self._program(looked_at, call, flags)
                if draws.drawn and draws.while_made:
                    # Perhaps for what was made.
                    program, widened = self._program(looked_at, call, flags)
                if draws.drawn:
                    raise _DrawnFrom(draws.drawn[0])
                settled = flags.settle()
            except (BranchOnValue, _DrawnFrom) as refusal:
                flags.put_back()
                draws.put_back()
                if not self._quiet:
                    self._warn_of(refusal)
                # It sets its flags itself.
                program, settled = Eager(flat), {}
            except Exception:
                flags.put_back()
                raise
        for name, owner in gained:
            warn(
                f"{f'the attribute {name!r} of {owner!r}' if owner is not None else repr(name)} was given a tensor while a step "
                "was traced, which has no value afterwards; it holds again what it did. Keep it in a variable (self.add_weight, "
                "assign), or return it.",
                TracerWarning,
            )
        guards = Guards(roots, before, program.variables, settled, entries=not isinstance(program, Eager))
        return Entry(program, result, guards, widened, settled)

    def _warn_of(self, refusal: BranchOnValue | _DrawnFrom) -> None:
        if isinstance(refusal, _DrawnFrom):
            warn(
                f"{self._place()} runs without being compiled: it draws from {refusal}, and compiled it would have the same "
                "numbers in each call. Draw by keras.random with a keras.random.SeedGenerator, or give the numbers as an argument.",
                EagerWarning,
            )
            return
        warn(
            f"{self._place()} runs without being compiled: {refusal.line} needs a value ({refusal.reason}). Choose by ops.where "
            "or ops.cond, or name the argument in static_argnames; a number to print, return.",
            EagerWarning,
        )

    def _place(self) -> str:
        """What the user calls it, and where that is written."""
        f = self._subject
        code = getattr(inspect.unwrap(getattr(f, "func", f)), "__code__", None)
        return _name(f) + (f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else "")

    def _program(self, flat: Callable[[list[Any]], list[Any]], call: Arguments, flags: Flags) -> tuple[Any, bool]:
        lifting = current("lifting")
        with _traced_here(), one_value_each():
            try:
                return lifting.Program(flat, call.leaves, compiler=self.compiler), False
            except Exception as error:
                if flags.stand and flags.are_doubted:
                    flags.give_up()
                    return self._program(flat, call, flags)
                # A whole number beside floats: TensorFlow computes with one kind at a time.
                if not (call.whole_numbers and current().refuses_mixed_dtypes(error)):
                    raise
                return lifting.Program(flat, call.widened(), compiler=self.compiler), True


def _kind_of_no_return(f: Callable[..., Any]) -> str:
    """How a function is called whose call computes nothing; empty for others."""
    call: Any = f if inspect.isroutine(f) or isinstance(f, functools.partial) else type(f).__call__
    if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
        return "a generator function"
    return "an async function" if inspect.iscoroutinefunction(call) else ""


class _DrawnFrom(Exception):
    """A function draws from a generator that no program draws from."""


def _looked_at_alike(flat: Callable[[list[Any]], list[Any]], flags: Flags, draws: Draws) -> Callable[[list[Any]], list[Any]]:
    """`flat`, which finds its flags each time as they stood the first time, and whose draws are looked at."""

    def alike(leaves: list[Any]) -> list[Any]:
        flags.put_back()
        draws.look()
        with private.makes() as made:
            outs = flat(leaves)
        draws.looked(made=bool(made))
        if made:
            flags.say_what_is_made()
        return outs

    return alike


class _Methods:
    """The compiled methods of one instance; a copy of the instance makes its own."""

    def __init__(self, owner: Any = None) -> None:
        self.owner = owner
        self.by_function: dict[Compiled[..., Any], Compiled[..., Any]] = {}

    def __reduce__(self) -> Any:
        return _Methods, ()


class _Programs:
    """The programs for one Keras object as an argument, by the function; a copy of the object makes its own."""

    def __init__(self, owner: Any) -> None:
        self.owner = weakref.ref(owner)
        self.by_function: weakref.WeakKeyDictionary[Compiled[..., Any], dict[Any, list[Entry]]] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> Any:
        return _no_programs, ()


def _no_programs() -> None:
    """What stands in a copy."""


# Where they stand in its `__dict__`.
_METHODS = "_kustom_functions"
_PROGRAMS = "_kustom_programs"


def _name(f: Callable[..., Any]) -> str:
    f = getattr(f, "func", f)
    return getattr(f, "__qualname__", type(f).__name__)


class _Tracing(threading.local):
    depth = 0


_tracing = _Tracing()


@contextlib.contextmanager
def _traced_here() -> Iterator[None]:
    _tracing.depth += 1
    try:
        yield
    finally:
        _tracing.depth -= 1


def _is_traced() -> bool:
    """Whether a step is being traced around this call."""
    return _tracing.depth > 0 or _in_trace()()


@functools.cache
def _in_trace() -> Callable[[], bool]:
    return current().in_trace


class Entry:
    """A program, what it returns, what Python held when it was made, and whether it takes whole numbers as floats.

    Where it is of one call, since it sets flags that it depends on, `is_of_one_call` says so, and `leave` is called after it.
    """

    def __init__(
        self,
        program: Any,
        result: Result,
        guards: Guards,
        widened: bool = False,
        flags: dict[Any, tuple[Any, Any, Callable[[Any], None]]] | None = None,
        reached: Reached | None = None,
    ) -> None:
        self.program = program
        self.result = result
        self.guards = guards
        self.reached = reached or guards.reached
        self.widened = widened
        self._flags = flags

    @property
    def is_of_one_call(self) -> bool:
        """Whether the next call is for another program."""
        return bool(self._flags)

    def leave(self) -> None:
        """Set the flags that the function would have set."""
        for _, after, put in self._flags.values() if self._flags else ():
            put(after)

    def tensors(self, call: Arguments) -> list[Any]:
        """What the program is to be given for a call."""
        return call.widened() if self.widened else call.leaves


_kind_of_tensor = operator.attrgetter("shape", "dtype")
