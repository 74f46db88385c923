"""Family T, fitting: a model learns, and a training step of one's own forgets nothing that Keras's remembers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import keras as private
from kustom.checking import calls, reaching, watching
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.rules import rule
from kustom.checking.rules.backends import failed
from kustom.checking.subjects import Subject
from kustom.errors import SubjectError

STEPS = 40

# A model is fitted to targets of its own making.
_FITS = ("y = keras.ops.ones_like(part(x))", "part.compile('adam', 'mse'); part.fit(x, y, epochs=40)")


@rule(
    "T406",
    kinds=("model",),
    asserts="It trains: the loss falls on a toy problem that it can learn.",
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
    if subject.tagged("no_gradient"):
        yield Undecided("it is declared not to be differentiated")
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


def _mse(model: Any, x: Any, y: Any) -> float:
    outputs = calls.flat(calls.arrays(model(*calls.tensors((x,)), training=False)))
    return float(sum(np.mean((a.astype("float64") - b) ** 2) for a, b in zip(outputs, calls.flat(y), strict=True)))


def _model_and_data(subject: Subject) -> tuple[Any, Any, Any] | Undecided:
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
    if not _has_a_step(type(subject.instance())):
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
    yield from _probed(weights, plain, again, lambda: fit()[0])
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


def _has_a_step(cls: type) -> bool:
    """Whether a class below Keras's own writes train_step, or what stands for it."""
    return any("train_step" in vars(base) for base in cls.__mro__ if not private.is_library(base.__module__) and not _is_ours(base))


def _is_ours(base: type) -> bool:
    return base.__module__.startswith("kustom.training")


def _probed(weights: Any, plain: Any, again: Any, step: Any) -> Iterator[Measured | Undecided]:
    if not calls.same(plain, again):
        yield Undecided("two equal steps differ, so that nothing shows what a regularizer would do")
        return
    for variable in weights:
        variable.regularizer = keras.regularizers.L2(10.0)
    regularized = step()
    for variable in weights:
        variable.regularizer = None
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


def _stays(variable: Any, step: Any, args: Any) -> bool:
    before = np.asarray(calls.arrays(variable))
    step(*args)
    return np.array_equal(before, np.asarray(calls.arrays(variable)))
