"""Family T, compiled: what a part computes and remembers is the same when its call is traced once and run many times."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import keras as private
from kustom.checking import calls, doubles, holding, steadiness, stepping
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.processes import POOL
from kustom.checking.rules import rule
from kustom.checking.rules.backends import failed, unanswered
from kustom.checking.subjects import CALL, Subject
from kustom.errors import EagerWarning, SubjectError, TracerWarning
from kustom.training.function import function

# Before a step of an optimizer.
_WEIGHT = ("w = keras.Variable(np.ones((3, 2)))", "part.build([w])")


@rule(
    "T404",
    kinds=("loss", "metric", "layer", "model", "activation", "regularizer", "constraint", "optimizer"),
    asserts="Compiled it gives what it gives eagerly.",
    why="fit compiles: what needs a tensor's value to go on fails there, or is frozen at the first batch's.",
    example="""
        def call(self, x):
            if keras.ops.max(x) > 1:
                return x / keras.ops.max(x)
            return x
    """,
    mend="Choose by keras.ops.where or keras.ops.cond; make no NumPy array of a tensor on the way.",
    needs=("B601",),
    variants=("compiled",),
)
def compiled_is_eager(subject: Subject, variant: str) -> Iterator[Measured | Undecided]:
    """By `kustom.function`, twice: once traced, and once for other numbers."""
    if subject.kind not in ("layer", "model") and not subject.is_function:
        # Of layers and models T405 asks.
        written = _written(subject)
        if written is not None:
            yield written
            return
    if subject.kind == "optimizer":
        yield from _steps_compiled(subject)
        return
    if subject.kind == "metric" and not subject.is_function:
        yield from _updates_compiled(subject)
        return
    if steadiness.draws(subject):
        yield Undecided("it draws random numbers, or changes from call to call, and otherwise when it is compiled")
        return
    part = subject.instance()
    compiled = function(lambda *args: calls.call_on_tensors(subject, part, args), compiler=_compiler(part))
    rng = subject.rng("T404")
    for _ in range(2):
        args = subject.inputs.arguments(rng=rng)
        expected, allowed = steadiness.outputs_and_noise(subject, args)
        made = _run(subject, compiled, args)
        if isinstance(made, Measured):
            yield made
            return
        got = [np.asarray(y) for y in calls.flat(calls.arrays(made))]
        for y, right, noise in zip(got, expected, allowed, strict=True):
            if y.shape != right.shape or (y.dtype.kind in "fiu" and not np.all(calls.apart(y, right) <= noise)):
                _, a, b = calls.worst(right, y)
                message = f"compiled it gives {shown(b)}, eagerly {shown(a)}"
                yield Measured(message, got=shown(b), expected=shown(a), reproducer=_compile(subject))
                return


def _run(subject: Subject, compiled: Any, args: tuple[Any, ...], shows: tuple[str, ...] = ()) -> Any:
    """What a compiled function gives; the finding, where there is no program of it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            made = compiled(*calls.tensors(args))
        except Exception as error:
            # Whatever it raises while it is traced.
            shows = shows or ("import kustom", f"kustom.function(lambda: {CALL})()")
            return failed(subject, error, "it cannot be compiled", shows=shows)
    refused = [w for w in said if issubclass(w.category, EagerWarning | TracerWarning)]
    if not refused:
        return made
    text = " ".join(str(refused[0].message).split())
    # What was compiled is of this file; what refuses stands in the user's.
    text = text.partition("runs without being compiled: ")[2] or text
    return Measured(
        f"it cannot be compiled: {text[:200]}", got=text[:300], expected="a program", reproducer=_compile(subject, shows)
    )


def _written(subject: Subject) -> Measured | None:
    """An attribute, no variable, into which each call writes."""
    try:
        part = subject.make()
        call = _updater(subject, part)
        seen = []
        for _ in range(3):
            call()
            seen.append(_held(part))
    except Exception:
        # Whatever it raises for a second call: what it raises for one is B601's, and of its config C102's.
        return None
    before, after = seen[1:]
    changed = [name for name, value in after.items() if name not in before or not alike(before[name], value)]
    if not changed:
        return None
    name = changed[0]
    return Measured(
        f"each call writes its attribute {name}, which is no variable: compiled, it is written once",
        got=f"{shown(before.get(name))}, then {shown(after[name])}",
        expected="a variable, or nothing",
        mend=f"Keep {name} in a variable, and assign that.",
        reproducer=subject.reproducer(
            *(_WEIGHT if subject.kind == "optimizer" else ()), f"{CALL}; print(part.{name}); {CALL}; print(part.{name})"
        ),
    )


def _updater(subject: Subject, part: Any) -> Any:
    """What calls a part once more, with what it has from before."""
    if subject.kind == "optimizer":
        variables = [keras.Variable(np.ones((3, 2), "float32"))]
        part.build(variables)
        step = stepping.stepper(part, variables)
        return lambda: step([np.full((3, 2), 0.5, "float32")])
    args = calls.tensors(subject.inputs.arguments())
    return (lambda: calls.update(part, *args)) if subject.kind == "metric" else lambda: calls.call(subject, part, *args)


def _held(part: Any) -> dict[str, Any]:
    """Numbers, text and tensors in the attributes of a part that is no layer, and how long its lists and dicts are."""
    found = {}
    for name, value in list(vars(part).items()):
        if private.is_internal(part, name) or isinstance(value, keras.Variable):
            continue
        found |= _state(name, value)
        if isinstance(value, dict):
            found |= {f"{name}[{k!r}]": calls.arrays(each) for k, each in value.items() if ops.is_tensor(each)}
    return found


def _updates_compiled(subject: Subject) -> Iterator[Measured | Undecided]:
    """Two updates of a metric, each a program, beside two that are not."""
    eager, other = (doubles.copy_or_itself(subject) for _ in range(2))
    if eager is other:
        yield Undecided("no second one could be made")
        return
    rng = subject.rng("T404")
    compiled = function(lambda y_true, y_pred: calls.update(other, y_true, y_pred))
    for _ in range(2):
        args = subject.inputs.arguments(rng=rng)
        calls.update(eager, *calls.tensors(args))
        made = _run(subject, compiled, args)
        if isinstance(made, Measured):
            yield made
            return
    ours, theirs = (calls.arrays(each.result()) for each in (eager, other))
    if not calls.same(ours, theirs, units=512.0):
        _, a, b = calls.worst(ours, theirs)
        yield Measured(
            f"after two compiled updates it gives {shown(b)}, after eager ones {shown(a)}", got=shown(b), expected=shown(a)
        )


def _steps_compiled(subject: Subject) -> Iterator[Measured | Undecided]:
    """Four steps of an optimizer, each a program, beside four that are not."""
    if steadiness.draws(subject):
        yield Undecided("it draws random numbers, or changes from call to call, and otherwise when it is compiled")
        return
    optimizer, (first, slopes) = subject.instance(), subject.inputs.arguments()
    expected = stepping.trained_by(optimizer, first, slopes)
    other, variables = stepping.copied(optimizer), [keras.Variable(value) for value in first]
    other.build(variables)
    compiled = function(lambda *gradients: other.apply(list(gradients), variables))
    shows = (*_WEIGHT, "import kustom", "kustom.function(lambda: part.apply([keras.ops.full((3, 2), 0.5)], [w]))()")
    for gradients in slopes:
        made = _run(subject, compiled, tuple(gradients), shows)
        if isinstance(made, Measured):
            yield made
            return
    got = [calls.arrays(v) for v in variables]
    if not calls.same(expected, got, units=512.0):
        _, a, b = calls.worst(expected, got)
        message = f"after {len(slopes)} compiled steps a weight is {shown(b)}, after eager ones {shown(a)}"
        yield Measured(message, got=shown(b), expected=shown(a), reproducer=subject.reproducer(*shows, "print(w.value)"))


def _compiler(part: Any) -> str | None:
    """A graph alone where a layer says that XLA has not its operations, as fit does; else what is usual."""
    layers = [part, *private.descendants(part)] if isinstance(part, keras.layers.Layer) else []
    on_graph = keras.backend.backend() == "tensorflow" and not all(layer.supports_jit for layer in layers)
    return "graph" if on_graph else None


def _compile(subject: Subject, shows: tuple[str, ...] = ()) -> str:
    if shows:
        return subject.reproducer(*shows)
    return subject.reproducer("import kustom", f"print(kustom.function(lambda: {CALL})(), {CALL})")


@rule(
    "T405",
    kinds=("layer", "model"),
    asserts="State that its call writes survives compilation.",
    why="A Python attribute is written when the step is traced, once; after that the program runs without it.",
    example="""
        def call(self, x):
            self.calls += 1                       # 1, after a thousand steps
            return x
    """,
    mend="Keep state in a variable: self.calls = self.add_weight(shape=(), trainable=False), and self.calls.assign_add(1).",
    needs=("B601", "T402"),
)
def state_survives_compilation(subject: Subject) -> Iterator[Measured | Undecided]:
    """What a third call writes into attributes that are no variables; and variables, eager beside compiled."""
    args = subject.inputs.arguments()
    part = doubles.copy_or_itself(subject)
    mode = {"training": True} if private.takes_training(part) else {}
    for _ in range(2):
        part(*calls.tensors(args), **mode)
    before = attributes(part)
    part(*calls.tensors(args), **mode)
    after = attributes(part)
    for name, value in after.items():
        if name not in before or not alike(before[name], value):
            yield Measured(
                f"its call writes the attribute {name}, which is no variable",
                got=f"{shown(before.get(name))}, then {shown(value)}",
                expected="a variable",
                reproducer=subject.reproducer(f"part(x); print(part.{name}); part(x); print(part.{name})"),
            )
            return
    if steadiness.draws(subject) or not part.non_trainable_variables:
        return
    other = doubles.copy_or_itself(subject)
    if other is part:
        return
    calls.call(subject, other, *args)
    state, others = ([v for v in each.variables if calls.is_floating(v)] for each in (part, other))
    for mine, theirs in zip(state, others, strict=True):
        theirs.assign(mine)
    step = function(lambda *given: other(*given, **mode), compiler=_compiler(other))
    for _ in range(2):
        part(*calls.tensors(args), **mode)
        step(*calls.tensors(args))
    ours, theirs = ([calls.arrays(v) for v in each] for each in (state, others))
    if not calls.same(ours, theirs, units=4096.0):
        _, a, b = calls.worst(ours, theirs)
        message = f"after two compiled calls its state is {shown(b)}, after eager ones {shown(a)}"
        yield Measured(message, got=shown(b), expected=shown(a))


def attributes(part: Any) -> dict[str, Any]:
    """Numbers, text, lists of them and tensors in the attributes of a layer and those below it."""
    found = {}
    for layer in [part, *private.descendants(part)]:
        for name, value in list(vars(layer).items()):
            if private.is_internal(layer, name) or name.startswith("_"):
                continue
            # TensorFlow counts a Variable among its tensors.
            if isinstance(value, keras.Variable):
                continue
            where = name if layer is part else f"{layer.name}.{name}"
            found |= _state(where, value)
    return found


def _state(where: str, value: Any) -> dict[str, Any]:
    """What an attribute's value is compared by, under its place; nothing where it is no state."""
    if ops.is_tensor(value):
        return {where: np.array(ops.convert_to_numpy(value))}
    if isinstance(value, int | float | str | bool):
        return {where: value}
    if isinstance(value, list) and not any(_is_tracked(each) for each in value):
        return {where: len(value)}
    return {}


def _is_tracked(each: Any) -> bool:
    return hasattr(each, "variables") or isinstance(each, keras.Variable)


def alike(a: Any, b: Any) -> bool:
    """Whether an attribute is what it was."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and np.array_equal(a, b)
    return type(a) is type(b) and a == b


@rule(
    "M508",
    kinds=("layer", "model"),
    asserts="A metric that it updates inside call works in fit, on every backend.",
    why="On JAX Keras does not hand a layer's metrics to its compiled step: fit fails, or the metric stays where it was.",
    example="""
        def call(self, x):
            self.seen.update_state(keras.ops.mean(x))
            return x
    """,
    mend="Keep a non-trainable weight instead, or update the metric in compute_metrics; a layer made with kustom.part may do it.",
    needs=("B601",),
)
def metrics_in_call_work(subject: Subject) -> Iterator[Measured | Undecided]:
    """Trained for two batches, here and elsewhere, if a call changes the variables of a metric."""
    args = subject.inputs.arguments()
    part = doubles.copy_or_itself(subject)
    calls.call(subject, part, *args)
    metrics = [m for layer in [part, *private.descendants(part)] for m in private.metrics_of(layer)]
    before = [calls.arrays(v) for m in metrics for v in m.variables]
    calls.call(subject, part, *args)
    if calls.same(before, [calls.arrays(v) for m in metrics for v in m.variables], units=0.0):
        return
    try:
        got = holding.trained(subject, doubles.copy_or_itself(subject), args)
    except Exception as error:
        # Whatever fit raises.
        yield failed(subject, error, f"fit fails on {keras.backend.backend()} where call updates a metric")
        return
    if not got["metrics"]:
        yield Measured("the metric that call updates is not changed by fit", got="unchanged", expected="updated")
        return
    try:
        recipe = subject.making.recipe()
    except SubjectError as error:
        yield Undecided(str(error))
        return
    for name in POOL.backends[1:]:
        answer = POOL.ask(name, "trained", recipe, args=args)
        yield from unanswered(answer, f"fit fails on {name} where call updates a metric", expected="the metric, updated")
