"""Recording on JAX: each operation is differentiated as it is recorded, and its pullback kept.

JAX hands every primitive to the trace that is current. Ours is current inside the block: where an argument descends from
something that is watched, the primitive runs under `jax.vjp`, and everything else just runs, so that values stay concrete.
In a traced function the pullbacks are traced too, and the compiled program is that of `jax.value_and_grad`. Eagerly both
halves are compiled once a primitive, its parameters and shapes, with only those residuals handed over that are neither
arguments nor results.

What descends is told by identity. A value is held weakly, so that a recording holds the residuals and nothing else; what
counts in a recording are the tokens that it gave out.

The interface of JAX's traces moves between minor versions: `SUPPORTED` says with which this one works, and
`tests/backends/test_tapes.py` fails by name when it has moved.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import core
from jax.extend import core as extend
from jax.interpreters import ad, batching, mlir

from kustom.backends import keras as private
from kustom.backends.tapes.pullbacks import Call, linearize, linked
from kustom.errors import TapeError

__all__ = [
    "Recording",
    "attached",
    "detached",
    "fresh",
    "is_differentiable",
    "is_differentiated",
    "noticed",
    "pulled",
    "refuse_unsupported",
]

# The minor versions of JAX whose traces have the interface that is used here.
SUPPORTED = ((0, 10),)


def refuse_unsupported() -> None:
    """Say what to do where JAX's traces are not known to be as this file takes them to be.

    Raises:
        TapeError: JAX has another minor version than those supported, or lacks what the tape rests on.
    """
    version = tuple(int(number) for number in jax.__version__.split(".")[:2])
    needed = {"process_primitive", "process_call", "process_custom_jvp_call", "process_custom_vjp_call", "stage_value"}
    missing = sorted(name for name in needed if not hasattr(core.Trace, name))
    missing += [name for name in ("set_current_trace", "take_current_trace") if not hasattr(extend, name)]
    if version in SUPPORTED and not missing:
        return
    known = ", ".join(f"{major}.{minor}" for major, minor in SUPPORTED)
    reason = (
        f"JAX's trace interface lacks {', '.join(missing)}" if missing else f"the traces of JAX {jax.__version__} are not known"
    )
    raise TapeError(
        f"kustom.GradientTape rests on the traces of JAX {known}, and {reason}. Install jax of one of these versions, or use "
        "the functional form, which does not need them: kustom.value_and_grad(f, variables=model.trainable_variables)."
    )


def is_differentiable(x: Any) -> bool:
    """Whether a gradient can flow through a value of this dtype."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


class Recording:
    """What one tape has seen."""

    def __init__(self, *, persistent: bool, accessed: bool) -> None:
        self.persistent = persistent
        self.paused = 0
        self._open: list[Any] = []
        # The stateless scope in which the recording began.
        self._around: Any = None
        self._tokens = itertools.count()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._alive: dict[int, tuple[Any, int]] = {}
        self._operations: list[_Operation] = []
        # By token: what is to be called where a gradient flows through.
        self._noticed: dict[int, list[Callable[[], None]]] = {}
        # id: (the variable, the tokens of its values as they were read)
        self._variables: dict[int, tuple[Any, list[int]]] = {}
        # What variables that are not watched were read as. One that was made of another's value shares its array with it.
        self._passed: dict[int, Any] = {}

    def start(self) -> None:
        """Record what this thread computes from now on."""
        self._around = self._around or private.open_scope()
        recorder = _Recorder(self, _current_trace())
        recorder.scope.__enter__()
        self._open.append(recorder)

    def stop(self) -> None:
        """Record nothing more. Where another recording was begun inside and goes on, its trace stays, and ours is passed by."""
        self._open.pop().active = False
        while isinstance(trace := _current_trace(), _Recorder) and not trace.active:
            trace.scope.__exit__(None, None, None)

    def release(self) -> None:
        """The one gradient has been given."""
        self.reset()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Record nothing inside."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1

    def watch(self, x: Any) -> None:
        """Watch a tensor."""
        if is_differentiable(x) and self._token(x) is None:
            self._mark(x)

    def read(self, variable: Any, value: Any) -> Any:
        """Watch a variable whose `value`, before any cast, is being read; returns what the reader gets.

        A value that this recording has seen computed was assigned to the variable since. An assignment is no operation:
        the reader gets a copy, which descends from nothing but the variable. Where a scope gives the variable such a value,
        it is that value which is read.
        """
        if self.paused or not is_differentiable(value):
            return value
        _, tokens = self._variables.setdefault(id(variable), (variable, []))
        token = self._token(value)
        if token is not None and token not in tokens:
            if self._is_given():
                return value
            with self._outside():
                value = jnp.copy(value)
            token = None
        if token is None:
            if self._passed and self._is_given() and (passed := self._passed.get(id(value))) is not None and passed() is value:
                return value
            tokens.append(self._mark(value))
        return value

    def watched(self) -> list[Any]:
        """The variables that are watched, in the order in which they were read."""
        return [variable for variable, _ in self._variables.values()]

    def pass_by(self, value: Any) -> Any:
        """What the reader of a variable gets that is not watched: nothing flows through an assignment to it."""
        if self.paused or self._is_given():
            return value
        if self._token(value) is None:
            self._passed[id(value)] = weakref.ref(value)
            return value
        with self._outside():
            return jnp.copy(value)

    def _is_given(self) -> bool:
        """Whether variables have their values from a stateless scope that was opened since the recording began."""
        scope = private.open_scope()
        # Kustom's own, which derive from it, stand for the variables themselves.
        return type(scope) is keras.StatelessScope and scope is not self._around

    def _mark(self, x: Any) -> int:
        token = next(self._tokens)
        self._alive[id(x)] = (weakref.ref(x), token)
        return token

    def _token(self, x: Any) -> int | None:
        entry = self._alive.get(id(x))
        return entry[1] if entry is not None and entry[0]() is x else None

    @contextlib.contextmanager
    def _outside(self) -> Iterator[None]:
        """Compute where this recording does not see it, but those around it do."""
        trace = _current_trace()
        while isinstance(trace, _Recorder) and trace.recording is not self:
            trace = trace.parent
        if isinstance(trace, _Recorder):
            with extend.set_current_trace(trace.parent):
                yield
        else:
            yield

    def run(self, parent: Any, eager: bool, call: Call, args: Sequence[Any]) -> Any:
        """Run an operation, and keep its pullback where it descends from something watched."""
        tokens = [self._token(a) for a in args] if not self.paused and self._alive else ()
        live = tuple(i for i, token in enumerate(tokens) if token is not None)
        with extend.set_current_trace(parent):
            if not live:
                return call.bind(*args)
            out, pull, links = linearize(call, tuple(args), live, eager)
        outs = list(out) if isinstance(out, list | tuple) else [out]
        given = {id(args[i]) for i in live}
        # What an operation hands on as it is stays what it was.
        new = [o if by and is_differentiable(o) and id(o) not in given else None for o, by in zip(outs, links, strict=True)]
        if any(o is not None for o in new):
            marks = [None if o is None else self._mark(o) for o in new]
            again = (call, tuple(args), live) if self.persistent else None
            self._operations.append(_Operation([tokens[i] for i in live], marks, outs, links, pull, again))
        return out

    def notice(self, parent: Any, x: Any, note: Callable[[], None]) -> Any:
        """Call `note` where a gradient flows through `x`; returns the same value."""
        with extend.set_current_trace(parent):
            out = _notice.bind(x, note=note)
        token = None if self.paused else self._token(x)
        if token is not None:
            self._noticed.setdefault(token, []).append(note)
            if out is not x:
                self._alive[id(out)] = (weakref.ref(out), token)
        return out

    def gradient(self, targets: list[Any], sources: list[Any], seeds: list[Any], *, recorded: bool) -> list[Any]:
        """The gradient of the sum of `targets`, each weighed by its seed, for each source; None where there is no way.

        Args:
            targets: Tensors.
            sources: Tensors and variables.
            seeds: For each target a tensor, or None for ones.
            recorded: A recording sees how the gradient is computed. Where it is this one, residuals must be seen, too.
        """
        recorded = recorded and bool(self._open)
        tokens = [self._tokens_of(source) for source in sources]
        wanted = {token for each in tokens for token in each}
        operations = self._leading_to(wanted)
        gradients: dict[int, Any] = {}
        for target, seed in zip(targets, seeds, strict=True):
            _add(gradients, self._token(target), jnp.ones_like(target) if seed is None else _turned(seed))
        for operation, wants in reversed(operations):
            cotangents = [None if token is None else gradients.get(token) for token in operation.results]
            linked = operation.linked(cotangents, wants)
            if any(linked):
                if self._noticed:
                    self._tell(operation, cotangents)
                for token, gradient in zip(operation.arguments, operation.pull(cotangents, linked, recorded=recorded), strict=True):
                    _add(gradients, token, gradient)
            for token in operation.results:
                if token not in wanted:
                    gradients.pop(token, None)  # type: ignore[arg-type]
        found = []
        for each in tokens:
            parts = [gradients[token] for token in each if token in gradients]
            found.append(_turned(functools.reduce(jnp.add, parts)) if parts else None)
        return found

    def _tell(self, operation: _Operation, cotangents: list[Any]) -> None:
        for token, cotangent in zip(operation.results, cotangents, strict=True):
            for note in self._noticed.get(token, ()) if token is not None and cotangent is not None else ():
                note()

    def _leading_to(self, wanted: set[int]) -> list[tuple[_Operation, tuple[bool, ...]]]:
        """The operations on a way from the wanted values, and which of their arguments are."""
        needed, found = set(wanted), []
        for operation in self._operations:
            wants = tuple(token in needed for token in operation.arguments)
            if any(wants):
                found.append((operation, wants))
                needed.update(token for token in operation.results if token is not None)
        return found

    def _tokens_of(self, source: Any) -> list[int]:
        if id(source) in self._variables:
            return self._variables[id(source)][1]
        token = self._token(source)
        return [] if token is None else [token]

    def jacobian(self, target: Any, sources: list[Any], *, recorded: bool) -> list[Any]:
        """For each source the derivatives of each entry of `target`: shape `(target.size, *source.shape)`, or None."""
        return _jacobian(lambda seed: self.gradient([target], sources, [seed], recorded=recorded), target)

    def batch_jacobian(self, target: Any, source: Any, *, recorded: bool) -> Any:
        """The derivatives of each sample's entries by the same sample's: shape `(batch, entries, *source.shape[1:])`, or None."""
        entries = int(np.prod(target.shape[1:]))
        basis = jnp.eye(entries, dtype=target.dtype).reshape(entries, 1, *target.shape[1:])
        seeds = jnp.broadcast_to(basis, (entries, *target.shape))
        [rows] = _rows(lambda seed: self.gradient([target], [source], [seed], recorded=recorded), seeds)
        return None if rows is None else jnp.moveaxis(rows, 0, 1)


def _turned(x: Any) -> Any:
    """JAX's gradient by complex numbers is the conjugate of TensorFlow's and torch's, and of what is asked for here."""
    return jnp.conj(x) if jnp.issubdtype(x.dtype, jnp.complexfloating) else x


def _current_trace() -> Any:
    with extend.take_current_trace() as trace:
        return trace


def _jacobian(gradient: Callable[[Any], list[Any]], target: Any) -> list[Any]:
    basis = jnp.eye(target.size, dtype=target.dtype).reshape(target.size, *target.shape)
    return _rows(gradient, basis)


def _rows(gradient: Callable[[Any], list[Any]], seeds: Any) -> list[Any]:
    """What `gradient` gives for each of the seeds, at once."""
    linked: list[bool] = []

    def row(seed: Any) -> list[Any]:
        found = gradient(seed)
        linked[:] = [each is not None for each in found]
        return [each for each in found if each is not None]

    rows = iter(jax.vmap(row)(seeds))
    return [next(rows) if each else None for each in linked]


def _add(gradients: dict[int, Any], token: int | None, gradient: Any) -> None:
    if token is not None and gradient is not None:
        gradients[token] = gradients[token] + gradient if token in gradients else gradient


class _Operation:
    """One operation: the tokens of its arguments that are watched and of its results, and its pullback."""

    __slots__ = ("_again", "_avals", "_pull", "arguments", "links", "results")

    def __init__(
        self, arguments: list[Any], results: list[int | None], outs: list[Any], links: list[set[int]], pull: Any, again: Any
    ) -> None:
        self.arguments = arguments
        self.results = results
        self._avals = [jax.typeof(o) for o in outs]
        self.links = links
        self._pull = pull
        self._again = again

    def linked(self, cotangents: list[Any], wants: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which of the wanted arguments matter for the results that have a gradient."""
        by = set().union(*(links for links, ct in zip(self.links, cotangents, strict=True) if ct is not None))
        return tuple(want and i in by for i, want in enumerate(wants))

    def pull(self, cotangents: list[Any], wants: tuple[bool, ...], *, recorded: bool) -> Sequence[Any]:
        """The gradients for the wanted arguments. Where they are recorded, so are the residuals that they come from."""
        pull = self._pull
        if recorded and self._again is not None:
            call, args, live = self._again
            _, pull, _ = linearize(call, args, live, False)
        return pull(cotangents, wants, self._avals)


class _Recorder(core.Trace):
    """The trace that is current inside a tape's block."""

    __slots__ = ("active", "eager", "parent", "recording", "scope")

    def __init__(self, recording: Recording, parent: Any) -> None:
        super().__init__()
        self.recording = recording
        self.parent = parent
        self.active = True
        self.scope: Any = extend.set_current_trace(self)
        self.eager = parent.eager if isinstance(parent, _Recorder) else type(parent).__name__ == "EvalTrace"
        self.requires_low = getattr(parent, "requires_low", True)

    def stage_value(self, val: Any) -> Any:
        return self.parent.stage_value(val)

    def cur_qdd(self, x: Any) -> Any:
        return self.parent.cur_qdd(x)

    def _run(self, call: Call, args: Any) -> Any:
        if self.active:
            return self.recording.run(self.parent, self.eager, call, args)
        with extend.set_current_trace(self.parent):
            return call.bind(*args)

    def process_primitive(self, primitive: Any, args: Any, params: Any, /) -> Any:
        if primitive is _notice and self.active:
            return self.recording.notice(self.parent, *args, **params)
        closed = params.get("jaxpr")
        if primitive.name == "jit" and any(self.recording._token(const) is not None for const in closed.consts):
            # A compiled function that closes over something watched: JAX keeps it in the program, not among the arguments.
            with extend.set_current_trace(self):
                return core.eval_jaxpr(closed.jaxpr, closed.consts, *args)
        # A loop comes with a program of its own each time: to compile it here would keep each.
        key = None if primitive.name in ("scan", "while", "cond") else (primitive, tuple(params.items()))
        call = Call(lambda *a: primitive.bind(*a, **params), key)
        return self._run(call, args)

    def process_call(self, primitive: Any, f: Any, args: Any, params: Any, /) -> Any:
        return self._run(Call(lambda *a: primitive.bind(*a, subfuns=(f,), **params)), args)

    def process_custom_jvp_call(self, primitive: Any, fun: Any, jvp: Any, args: Any, /, **params: Any) -> Any:
        call = Call(lambda *a: primitive.bind(*a, subfuns=(fun, jvp), **params))
        return self._run(call, args)

    def process_custom_vjp_call(self, primitive: Any, fun: Any, fwd: Any, bwd: Any, args: Any, /, **params: Any) -> Any:
        call = Call(lambda *a: primitive.bind(*a, subfuns=(fun, fwd, bwd), **params))
        return self._run(call, args)


class _Scope(keras.StatelessScope):
    """The state of a function that is being differentiated: what it reads is given, what it writes is kept."""

    def __init__(self, state: list[tuple[keras.Variable, Any]]) -> None:
        super().__init__(collect_losses=True)
        self._outer = private.open_scope()
        self._own = {id(variable): value for variable, value in state}
        self.updates: dict[int, tuple[keras.Variable, Any]] = {}
        # Losses of the layers around the function are added where they always were.
        if self._outer is not None:
            self.losses = self._outer.losses
            self.collect_losses = self._outer.collect_losses

    def add_update(self, update: Any) -> None:
        variable, value = update
        self.updates[id(variable)] = (variable, value)

    def get_current_value(self, variable: keras.Variable) -> Any:
        own = self._own.get(id(variable))
        if id(variable) in self.updates:
            # An assignment is not differentiated; a read after it is one of the variable all the same.
            assigned = jax.lax.stop_gradient(self.updates[id(variable)][1])
            return assigned if own is None or not is_differentiable(own) else assigned + (own - jax.lax.stop_gradient(own))
        if own is not None:
            return own
        return None if self._outer is None else self._outer.get_current_value(variable)


class _Pulled:
    """What a function has computed, and its gradients."""

    def __init__(self, targets: list[Any], aux: Any, pull: Callable[..., Any]) -> None:
        self.targets = targets
        self.aux = aux
        self._pull = pull

    def gradient(self, seeds: list[Any]) -> list[Any]:
        """The gradient of the sum of the targets, each weighed by its seed, by each input and then by each variable."""
        return self._gradient({i: seed for i, seed in enumerate(seeds) if is_differentiable(self.targets[i])})

    def _gradient(self, seeds: dict[int, Any]) -> list[Any]:
        """The same for some of the targets, by their positions."""
        cotangents: list[Any] = []
        for i, target in enumerate(self.targets):
            if i in seeds:
                cotangents.append(jnp.ones_like(target) if seeds[i] is None else _turned(seeds[i]))
            elif is_differentiable(target):
                cotangents.append(jnp.zeros_like(target))
            else:
                cotangents.append(np.zeros(target.shape, jax.dtypes.float0))
        inputs, variables = self._pull(cotangents)
        links = linked(self._pull)
        by = set().union(*(links[i] for i in seeds))
        return [_turned(each) if i in by else None for i, each in enumerate((*inputs, *variables))]

    def jacobian(self, index: int) -> list[Any]:
        """The derivatives of each entry of one target: shapes `(target.size, *source.shape)`, or None."""
        return _jacobian(lambda seed: self._gradient({index: seed}), self.targets[index])


def pulled(f: Callable[[list[Any]], tuple[list[Any], Any]], inputs: list[Any], variables: list[keras.Variable]) -> _Pulled:
    """Call `f(inputs)`, which returns targets and something else, so that it can be differentiated.

    It is traced by `jax.vjp`, with the variables' values as further arguments. What it assigns to variables arrives there
    when it has ended, once. Where it makes variables, it is run once more: made while JAX traces, they would hold no value.
    """

    def pure(inputs: list[Any], values: list[Any]) -> Any:
        before = len(private.uninitialized())
        with _Scope(list(zip(variables, values, strict=True))) as scope:
            targets, aux = f(inputs)
            made.append(len(private.uninitialized()) - before)
        return targets, (aux, scope.updates)

    values = [private.told(variable) for variable in variables]
    inputs = [jnp.asarray(x) for x in inputs]
    made: list[int] = []
    targets, pull, (aux, updates) = jax.vjp(pure, inputs, values, has_aux=True)
    if made.pop():
        targets, pull, (aux, updates) = jax.vjp(pure, inputs, values, has_aux=True)
    for variable, value in updates.values():
        if private.open_scope() is None and isinstance(value, core.Tracer):
            raise TapeError(
                f"the function that is differentiated assigns to {variable.path}, inside a jax.jit or jax.vmap that does not know: "
                "the variable would keep a tracer. Call the model with training=False there, or hand its state through a "
                "keras.StatelessScope."
            )
        variable.assign(value)
    return _Pulled(targets, aux, pull)


def fresh(x: Any) -> Any:
    """`x`: a functional form has arguments of its own here."""
    return x


def attached(outputs: list[Any], inputs: list[Any], pullback: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """`outputs` whose gradient by `inputs` is what `pullback` makes of their gradients, and by nothing else.

    What `pullback` closes over becomes an argument, so that a second derivative finds its way through it.
    """
    linked: list[bool] = []

    def pull(cotangents: list[Any]) -> list[Any]:
        found = pullback(cotangents)
        linked[:] = [each is not None for each in found]
        return [each for each in found if each is not None]

    floating = [is_differentiable(y) for y in outputs]
    examples = [jax.ShapeDtypeStruct(jnp.shape(y), y.dtype) for y in outputs]
    closed = jax.make_jaxpr(pull)(examples)
    # Alone: the functions below refer to each other, and are to keep no value alive.
    program = closed.jaxpr

    @jax.custom_vjp
    def attach(outputs: list[Any], inputs: list[Any], consts: list[Any]) -> list[Any]:
        return list(outputs)

    def forward(outputs: list[Any], inputs: list[Any], consts: list[Any]) -> Any:
        # Attached again: where what is differentiated here is itself differentiated, the value's way is not that of `consts`.
        return attach(outputs, inputs, consts), consts

    def backward(consts: list[Any], cotangents: list[Any]) -> Any:
        filled = [ct if f else jnp.zeros(e.shape, e.dtype) for ct, f, e in zip(cotangents, floating, examples, strict=True)]
        return None, core.eval_jaxpr(program, consts, *filled), None

    attach.defvjp(forward, backward)
    # To an input without a gradient there is no way at all.
    given = [x for x, each in zip(inputs, linked, strict=True) if each]
    # What the gradient closes over is an argument to JAX, but no way to it.
    backward.kustom_active = len(outputs) + len(given)  # type: ignore[attr-defined]
    return attach([jax.lax.stop_gradient(y) for y in outputs], given, list(closed.consts))


def _notice_jvp(primals: Any, tangents: Any, *, note: Callable[[], None]) -> Any:
    if not isinstance(tangents[0], ad.Zero):
        note()
    return _notice.bind(*primals, note=note), tangents[0]


# The identity. Compiled it is nothing; where it is differentiated, it says so.
_notice = extend.Primitive("kustom_notice")
_notice.def_impl(lambda x, *, note: x)
_notice.def_abstract_eval(lambda x, *, note: x)
mlir.register_lowering(_notice, lambda context, x, *, note: [x])
ad.primitive_jvps[_notice] = _notice_jvp
batching.primitive_batchers[_notice] = lambda args, axes, *, note: (_notice.bind(*args, note=note), axes[0])


def noticed(x: Any, note: Callable[[], None]) -> Any:
    """`x`, which calls `note` where it is differentiated; numbers and derivatives stay as they are."""
    return _notice.bind(x, note=note)


def is_differentiated() -> bool:
    """Whether anything may be differentiated here: not where nothing is traced or recorded."""
    return type(_current_trace()).__name__ != "EvalTrace"


def detached(x: Any) -> Any:
    """`x`: no value keeps what computed it, here."""
    return x
