"""Family T, fitting: a model learns, and a training step of one's own forgets nothing that Keras's remembers."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import keras as private
from kustom.checking import calls, holding, reaching, steadiness, stepping, watching
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.rules import compiled, rule
from kustom.checking.rules.backends import failed
from kustom.checking.subjects import CALL, Subject
from kustom.errors import GradientWarning, SubjectError
from kustom.gradients.tape import GradientTape, warning_again

STEPS = 40

# A model is fitted to targets of its own making.
_FITS = ("y = keras.ops.ones_like(part(x))", "part.compile('adam', 'mse'); part.fit(x, y, epochs=40)")


@rule(
    "T406",
    kinds=("model", "optimizer"),
    asserts="It trains: the loss falls on a toy problem; an optimizer steps down, by the learning rate that it has.",
    why="A model whose gradient is cut off somewhere compiles, fits, reports a loss, and learns nothing.",
    example="""
        def call(self, x):
            return ops.round(self.dense(x))
    """,
    mend="Look where the gradient ends (G203 names the variables), and whether train_step applies it.",
    needs=("B601", "T402"),
)
def loss_falls(subject: Subject) -> Iterator[Measured | Undecided]:
    """Its targets are what another of it with other weights gives, so that it can learn them."""
    if subject.kind == "optimizer":
        if steadiness.draws(subject):
            yield Undecided("it draws random numbers, or changes from call to call")
            return
        yield from _steps_down(subject)
        return
    if subject.tagged("no_gradient"):
        yield Undecided("it is declared not to be differentiated")
        return
    if steadiness.draws(subject):
        yield Undecided("its outputs are drawn, which no target can be learnt by")
        return
    made = _model_and_data(subject)
    if isinstance(made, Undecided):
        yield made
        return
    model, x, y = made
    if not model.trainable_variables:
        return
    # A large learning rate for few steps: what is asked is whether it learns at all.
    model.compile(optimizer=keras.optimizers.Adam(0.02), loss="mse", run_eagerly=True)
    before = _mse(model, x, y)
    if before == 0:
        return
    try:
        model.fit(x, y, batch_size=32, epochs=STEPS, verbose=0, shuffle=False)
    except Exception as error:
        # Whatever a training step of its own raises.
        yield failed(subject, error, "fit fails", shows=_FITS)
        return
    after = _mse(model, x, y)
    if not after < 0.95 * before:
        yield Measured(
            f"after {STEPS} steps the loss is {shown(after)}, and was {shown(before)}",
            got=shown(after),
            expected=f"less than {shown(0.95 * before)}",
            reproducer=subject.reproducer(*_FITS),
        )


def _steps_down(subject: Subject) -> Iterator[Measured | Undecided]:
    """A loss that is linear, so that no step is too long, falls; and otherwise where another learning rate is assigned."""
    optimizer = subject.instance()
    first, slopes = subject.inputs.arguments()
    slope = np.where(np.sum(first * slopes[0]) < 0, -1.0, 1.0).astype("float32") * slopes[0]
    # One that decays its weights goes down this way, too; one that adds gradients up has taken a step in the end.
    steps = np.stack([slope] * 4 * (getattr(optimizer, "gradient_accumulation_steps", None) or 1))
    last = np.stack(stepping.trained_by(optimizer, first, steps))
    fallen = float(np.sum((last - first) * slope))
    show = ("w = keras.Variable(np.ones((3, 2)))", f"part.build([w]); {CALL}", "print(w.value)")
    if not fallen < 0:
        what = "moves nothing" if fallen == 0 else "goes up the gradient"
        yield Measured(
            f"in {len(steps)} steps it {what}",
            got=f"a loss that changes by {shown(fallen)}",
            expected="a loss that falls",
            mend="Assign in update_step: self.assign_sub(variable, learning_rate * gradient); what it returns is not used.",
            reproducer=subject.reproducer(*show),
        )
        return
    if not isinstance(optimizer.learning_rate, keras.Variable):
        return
    other = stepping.copied(optimizer)
    other.learning_rate = 0.5 * float(calls.arrays(optimizer.learning_rate))
    if calls.same(last, np.stack(stepping.trained_by(other, first, steps)), units=0.0):
        yield Measured(
            "another learning_rate that is assigned to it changes nothing",
            got="the same steps for half the learning rate",
            expected="other steps",
            mend="Step by the learning_rate that update_step is given: callbacks and users assign it, and a schedule moves it.",
            reproducer=subject.reproducer("part.learning_rate = 0.0", *show),
        )


def _mse(model: Any, x: Any, y: Any) -> float:
    outputs = calls.flat(calls.arrays(model(*calls.tensors((x,)), training=False)))
    return float(sum(np.mean((a.astype("float64") - b) ** 2) for a, b in zip(outputs, calls.flat(y), strict=True)))


def _model_and_data(subject: Subject) -> tuple[Any, Any, Any] | Undecided:
    try:
        inspect.signature(subject.instance().compile).bind(optimizer=None, loss=None, run_eagerly=None)
    except TypeError:
        return Undecided("its compile takes other things than an optimizer and a loss: check its step as a function")
    args = subject.inputs.arguments(batch=32)
    if len(args) != 1:
        return Undecided("it takes several arguments, which fit does not hand over")
    try:
        model, teacher = subject.make(), subject.make()
    except SubjectError as error:
        return Undecided(str(error))
    for each in (model, teacher):
        calls.call(subject, each, *args)
    rng = subject.rng("toy")
    for mine, other in zip(model.trainable_variables, teacher.trainable_variables, strict=True):
        value = np.asarray(calls.arrays(mine))
        other.assign(value + 0.3 * rng.normal(size=value.shape).astype("float32"))
    y = calls.arrays(teacher(*calls.tensors(args), training=False))
    if any(np.asarray(each).dtype.kind != "f" for each in calls.flat(y)):
        return Undecided("its outputs are no floating numbers")
    return model, args[0], y


@rule(
    "T407",
    kinds=("model", "train_step"),
    asserts="A training step of its own keeps added losses, constraints, training=True, metric resets, and a scalar loss.",
    why="Each of them is one line of Keras's own step, and nothing complains where it is missing.",
    example="""
        def train_step(self, data):
            x, y = data
            with kustom.GradientTape() as tape:
                loss = ops.mean(ops.square(y - self(x)))       # no sum(self.losses), no training=True
            ...
    """,
    mend="self.compute_loss(x, y, self(x, training=True)) adds the losses, self.optimizer.apply keeps constraints.",
    needs=("B601",),
)
def step_forgets_nothing(subject: Subject) -> Iterator[Measured | Undecided]:
    """One step with a regularizer, and with a constraint, on a weight of the model; and what its layers are told."""
    if subject.kind == "train_step":
        yield from _of_a_function(subject)
        return
    if not holding.has_own_step(type(subject.instance())):
        return
    made = _model_and_data(subject)
    if isinstance(made, Undecided):
        yield made
        return
    model, x, y = made
    weights = [v for v in model.trainable_variables if v.shape]
    if not weights:
        return
    start = [np.asarray(calls.arrays(v)) for v in model.variables]
    before = compiled.attributes(model)

    def fit() -> tuple[list[np.ndarray], dict[str, Any]]:
        for variable, value in zip(model.variables, start, strict=False):
            variable.assign(value)
        keras.utils.set_random_seed(3)
        model.compile(optimizer=keras.optimizers.SGD(0.01), loss="mse", run_eagerly=True)
        history = model.fit(x, y, batch_size=32, epochs=1, verbose=0, shuffle=False)
        return [np.asarray(calls.arrays(v)) for v in weights], history.history

    try:
        plain, history = fit()
        again, _ = fit()
    except Exception as error:
        # Whatever a training step raises.
        yield failed(subject, error, "one step of fit fails")
        return
    written = [
        name
        for name, value in compiled.attributes(model).items()
        if name not in private.RESERVED[keras.Model] and not compiled.alike(before.get(name), value)
    ]
    if not calls.same(plain, again) and written:
        yield Measured(
            f"each step writes the attribute {written[0]}, which is no variable: two equal steps differ",
            got=f"{shown(before.get(written[0]))}, then {shown(compiled.attributes(model)[written[0]])}",
            expected="a variable, or nothing",
            mend=f"Keep {written[0]} in a variable of the model or the optimizer, and clear it where it has been applied.",
        )
        return
    yield from _probed(weights, plain, again, lambda: fit()[0])
    yield from _unmoved(model, x, y, start)
    loss = history.get("loss")
    shape = np.asarray(loss[0]).shape if loss else ()
    if shape:
        yield Measured(f"the loss it reports has the shape {shape}", got=str(shape), expected="()")
    with watching.told(model) as noted:
        fit()
    untold = [layer for layer, was_told in noted if not was_told and layer.trainable]
    if untold and len(untold) == len(noted):
        yield Measured(
            f"in a training step its {type(untold[0]).__name__} is told training={next(t for _, t in noted)}",
            got="training is not True",
            expected="training=True",
            mend="Call self(x, training=True).",
        )
    yield from _unreset(model)


def _probed(weights: Any, plain: Any, again: Any, step: Any) -> Iterator[Measured | Undecided]:
    if not calls.same(plain, again):
        yield Undecided("two equal steps differ: it carries something over (gradients, on torch without zero_grad), or draws")
        return
    own = [variable.regularizer for variable in weights]
    for variable in weights:
        variable.regularizer = keras.regularizers.L2(10.0)
    regularized = step()
    for variable, regularizer in zip(weights, own, strict=True):
        variable.regularizer = regularizer
    if calls.same(plain, regularized):
        yield Measured(
            "a regularizer on its weights changes nothing: added losses are forgotten",
            got="the same weights after a step",
            expected="smaller weights",
            mend="Add sum(model.losses) to the loss, or call self.compute_loss, which does.",
        )
    held = [variable.constraint for variable in weights]
    for variable in weights:
        variable.constraint = _halve
    constrained = step()
    for variable, constraint in zip(weights, held, strict=True):
        variable.constraint = constraint
    if calls.same(plain, constrained):
        yield Measured(
            "a constraint on its weights is not applied",
            got="the same weights after a step",
            expected="weights that keep it",
            mend="Apply gradients by optimizer.apply or apply_gradients, which apply constraints; not by assign_sub.",
        )


def _unmoved(model: Any, x: Any, y: Any, start: list[np.ndarray]) -> Iterator[Measured]:
    """After a step the weights that stayed, of which the loss has a gradient."""
    stayed = [
        v
        for v, value in zip(model.variables, start, strict=False)
        if v.trainable and v.shape and np.array_equal(value, np.asarray(calls.arrays(v)))
    ]
    with GradientTape() as tape:
        outputs = calls.flat(model(*calls.tensors((x,)), training=True))
        loss = sum(ops.mean(ops.square(a - ops.convert_to_tensor(b))) for a, b in zip(outputs, calls.flat(y), strict=True))
    slopes = tape.gradient(loss, stayed) if stayed else []
    for variable, slope in zip(stayed, slopes, strict=True):
        if slope is not None and np.any(calls.arrays(slope) != 0):
            yield Measured(
                f"a step never moves its weight {variable.path}, of which the loss has a gradient",
                got="the same weight after a step",
                expected="another",
                mend="Apply the gradients of all of self.trainable_variables; make what is to stay trainable=False.",
            )
            return


def _halve(w: Any) -> Any:
    return ops.multiply(ops.convert_to_tensor(w), 0.5)


def _unreset(model: Any) -> Iterator[Measured]:
    known = {id(m) for m in model.metrics}
    nested = {id(inner) for m in model.metrics for inner in getattr(m, "metrics", [])}
    for path, metric in reaching.metrics_in(model):
        if id(metric) not in known | nested:
            yield Measured(
                f"the metric in its attribute {path} is never reset",
                got=f"metrics: {', '.join(m.name for m in model.metrics) or 'none'}",
                expected=f"{metric.name} among them",
                mend="Name it in the property metrics: return [*super().metrics, self.my_metric].",
            )
            return


def _of_a_function(subject: Subject) -> Iterator[Measured | Undecided]:
    """A step that is a function: the variables are those that it reads."""
    if not subject.inputs.user_given:
        yield Undecided("give the step's arguments: inputs=(x, y)")
        return
    step = subject.instance()
    args = calls.tensors(subject.inputs.arguments(batch=32))
    try:
        step(*args)
        with private.reads() as read:
            step(*args)
    except Exception as error:
        # Whatever a step raises.
        yield failed(subject, error, "it fails when called")
        return
    yield from _told(subject, step, args)
    yield from _of_many(step, args)
    weights = [v for v in read if v.trainable and v.shape]
    start = [(v, np.asarray(calls.arrays(v))) for v in read]
    moved = [v for v in weights if not _stays(v, step, args)]
    if not moved:
        yield Measured("no trainable variable changes in a step", got="no change", expected="a step")
        return

    def once() -> list[np.ndarray]:
        for variable, value in start:
            variable.assign(value)
        keras.utils.set_random_seed(3)
        step(*args)
        return [np.asarray(calls.arrays(v)) for v in moved]

    yield from _probed(moved, once(), once(), once)


def _told(subject: Subject, step: Any, args: Any) -> Iterator[Measured]:
    """What the layers are told that the step is given, or names."""
    named = inspect.getclosurevars(step) if inspect.isfunction(step) else None
    held = [*args, *(named.nonlocals.values() if named else ()), *(named.globals.values() if named else ())]
    models = {id(each): each for each in held if isinstance(each, keras.layers.Layer)}
    with contextlib.ExitStack() as stack:
        noted = [told for model in models.values() for told in [stack.enter_context(watching.told(model))]]
        step(*args)
    heard = [said for each in noted for said in each if said[0].trainable]
    if heard and not any(training for _, training in heard):
        layer, training = heard[0]
        yield Measured(
            f"in a training step its {type(layer).__name__} is told training={training}",
            got="training is not True",
            expected="training=True",
            mend="Call model(x, training=True).",
        )


def _of_many(step: Any, args: Any) -> Iterator[Measured]:
    """Whether what is differentiated is a number a sample, as the tape says, or what the step returns is."""
    with warnings.catch_warnings(record=True) as said, warning_again():
        warnings.simplefilter("always")
        made = step(*args)
    batch = {np.shape(x)[0] for x in args if isinstance(x, np.ndarray) or ops.is_tensor(x)}
    shapes = [tuple(y.shape) for y in calls.flat(made) if ops.is_tensor(y) and calls.is_floating(y)]
    vectors = [shape for shape in shapes if len(shape) == 1 and shape[0] in batch]
    if vectors or any(issubclass(w.category, GradientWarning) for w in said):
        yield Measured(
            "its loss is a number a sample, of which the gradient is the sum",
            got=f"a loss of the shape {vectors[0] if vectors else tuple(batch)}",
            expected="()",
            mend="Differentiate a scalar: ops.mean(loss).",
        )


def _stays(variable: Any, step: Any, args: Any) -> bool:
    before = np.asarray(calls.arrays(variable))
    step(*args)
    return np.array_equal(before, np.asarray(calls.arrays(variable)))
