"""Family S, losses and metrics: one value a sample, weights and masks that count, targets that are aligned or refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import keras as private
from kustom.checking import calls
from kustom.checking.domains import INTEGERS, draw
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.rules import rule
from kustom.checking.rules.backends import failed, of_the_part, one_line
from kustom.checking.subjects import Subject
from kustom.gradients.tape import GradientTape


@rule(
    "S204",
    kinds=("loss",),
    asserts="It gives one value a sample or time step, so that reduction, sample_weight and mask are honoured.",
    why="One number for a batch cannot be weighted: sample_weight, class_weight and masks then scale the whole, silently.",
    example="""
        class MeanSquares(keras.losses.Loss):
            def call(self, y_true, y_pred):
                return ops.mean(ops.square(y_true - y_pred))
    """,
    mend="Average over the last axis alone: ops.mean(..., axis=-1).",
    needs=("B601",),
)
def values_are_one_a_sample(subject: Subject) -> Iterator[Measured | Undecided]:
    """The shape of what it computes, and what weights and masks do to it."""
    y_true, y_pred = subject.inputs.arguments(batch=6)
    loss = as_loss(subject)
    values = _unreduced(loss, y_true, y_pred)
    # A value an entry cannot be weighted by the sample where there are several entries; of one entry, Keras drops the axis.
    is_whole = values.shape == y_pred.shape and y_pred.ndim > 1 and y_pred.shape[-1] > 1
    if not values.shape or is_whole or values.shape != y_pred.shape[: values.ndim]:
        yield Measured(
            f"for y_pred of the shape {y_pred.shape} it gives values of the shape {values.shape}",
            input=f"{y_true.shape}, {y_pred.shape}",
            got=str(values.shape),
            expected=f"{y_pred.shape[:-1]}",
            reproducer=subject.reproducer(
                "print((part.call if isinstance(part, keras.losses.Loss) else part)(y_true, y_pred).shape)",
                inputs={"y_true": y_true, "y_pred": y_pred},
            ),
        )
        return
    weight = np.array([1, 0, 2, 0, 1, 1], "float32")
    kept = weight != 0
    rows = np.roll(y_pred, 1, axis=0)
    other = np.where(kept.reshape(-1, *[1] * (y_pred.ndim - 1)), y_pred, rows)
    if subject.tagged("couples_batch") or _couples(subject, y_true, y_pred):
        yield Undecided("the value of a sample depends on the others, so that leaving one out is another question")
    else:
        yield from _ignored(subject, loss, "a sample whose weight is 0", y_true, y_pred, other, weight, None)
        yield from _ignored(subject, loss, "a sample that is masked", y_true, y_pred, other, None, kept)
    if type(loss).__call__ is not keras.losses.Loss.__call__ and not subject.is_function:
        # Keras's own way multiplies by the weight, and 0 times NaN is NaN: that is no part's fault.
        broken = np.where(kept.reshape(-1, *[1] * (y_pred.ndim - 1)), y_pred, np.nan).astype("float32")
        yield from _ignored(subject, loss, "a NaN whose weight is 0", y_true, y_pred, broken, weight, None)
        yield from _ignored(subject, loss, "a NaN that is masked", y_true, y_pred, broken, None, kept)


def _unreduced(loss: Any, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """What reaches the reduction: a `__call__` of a loss's own may take a mean of what its `call` gives."""
    reduction = loss.reduction
    loss.reduction = None
    try:
        return calls.arrays(loss(*calls.tensors((y_true, y_pred))))
    finally:
        loss.reduction = reduction


def _couples(subject: Subject, y_true: np.ndarray, y_pred: np.ndarray) -> bool:
    """Whether the first sample's value changes with the others."""
    other = np.concatenate([y_pred[:1], y_pred[:0:-1]])
    ours, theirs = (calls.outputs_of(subject, subject.instance(), y_true, x)[0] for x in (y_pred, other))
    return not calls.same(ours[:1], theirs[:1])


def as_loss(subject: Subject) -> Any:
    """The part as a loss object: a function as `compile` makes one of it."""
    return private.as_loss(subject.part) if subject.is_function else subject.instance()


def _ignored(
    subject: Subject, loss: Any, what: str, y_true: Any, y_pred: Any, other: Any, weight: Any, mask: Any
) -> Iterator[Measured | Undecided]:
    try:
        (value, slope), (changed, other_slope) = (_weighted(loss, y_true, x, weight, mask) for x in (y_pred, other))
    except Exception as error:
        # It has given values without weights and without a gradient: of its gradient G201 speaks.
        yield Undecided(f"with weights, or differentiated, it fails: {one_line(error)}")
        return
    if not calls.same(value, changed):
        yield Measured(
            f"{what} has an effect: {shown(float(np.mean(changed)))} instead of {shown(float(np.mean(value)))}",
            got=shown(float(np.mean(changed))),
            expected=shown(float(np.mean(value))),
            reproducer=subject.reproducer(
                "print(part(y_true, y_pred, sample_weight=keras.ops.zeros(y_pred.shape[:1])))  # 0, whatever the rows are"
            ),
        )
    elif slope is not None and other_slope is not None and not np.all(np.isfinite(other_slope)):
        yield Measured(f"{what} makes the gradient NaN", got="nan", expected="0")


def _weighted(loss: Any, y_true: Any, y_pred: Any, weight: Any, mask: Any) -> tuple[np.ndarray, np.ndarray | None]:
    pred = ops.convert_to_tensor(y_pred)
    if mask is not None:
        private.set_keras_mask(pred, ops.convert_to_tensor(mask))
    with GradientTape() as tape:
        tape.watch(pred)
        value = loss(ops.convert_to_tensor(y_true), pred, sample_weight=None if weight is None else ops.convert_to_tensor(weight))
        total = ops.sum(value)
    slope = tape.gradient(total, pred)
    return calls.arrays(value), None if slope is None else calls.arrays(slope)


@rule(
    "S208",
    kinds=("loss", "metric"),
    asserts="Targets (n,) beside predictions (n, 1) are aligned or refused, and integer targets count as their numbers.",
    why="Broadcast to (n, n) they give another number, silently: each prediction is compared with every target.",
    example="""
        class MeanSquares(keras.losses.Loss):
            def call(self, y_true, y_pred):
                return ops.mean(ops.square(y_true - y_pred), axis=-1)
    """,
    mend="Bring them to one shape first: y_true = ops.reshape(y_true, ops.shape(y_pred)) where the sizes agree; cast integers by "
    "ops.cast(y_true, y_pred.dtype). kustom's decorators do both.",
    needs=("B601",),
)
def targets_are_aligned(subject: Subject) -> Iterator[Measured | Undecided]:
    """The value for flat targets is that for aligned ones, or there is an error; likewise of integer targets."""
    instance = as_loss(subject) if subject.kind == "loss" else subject.instance()
    if subject.kind == "metric" and (subject.is_function or calls.takes_values(instance)):
        return
    true_domain, pred_domain, sparse = subject.inputs.pair_domain() if not subject.inputs.user_given else ("reals", "reals", False)
    if sparse or true_domain in INTEGERS:
        return
    rng = subject.rng("S208")
    y_pred = draw(pred_domain, rng, (6, 1))
    y_true = draw(true_domain, rng, (6, 1))
    try:
        aligned = _given(subject, instance, y_true, y_pred)
    except Exception:
        # One that takes several columns says nothing of one.
        return
    try:
        flat = _given(subject, instance, y_true[:, 0], y_pred)
    except Exception:
        # Refused, which is right.
        flat = aligned
    if not calls.same(aligned, flat):
        _, a, b = calls.worst(aligned, flat)
        yield Measured(
            f"targets of the shape (6,) beside predictions (6, 1) give {shown(b)}; aligned they give {shown(a)}",
            input="y_true (6,), y_pred (6, 1)",
            got=shown(b),
            expected=f"{shown(a)}, or an error",
            reproducer=subject.reproducer(
                "print(part(y_true[:, 0], y_pred), part(y_true, y_pred))"
                if subject.kind == "loss"
                else "part.update_state(y_true[:, 0], y_pred); print(part.result())",
                inputs={"y_true": y_true, "y_pred": y_pred},
            ),
        )
        return
    numbers = rng.integers(0, 2, (6, 1))
    if isinstance(true_domain, str) and true_domain in ("positive", "signs"):
        numbers = np.ones((6, 1), int)
    try:
        floating = _given(subject, instance, numbers.astype("float32"), y_pred)
    except Exception:
        # As above.
        return
    try:
        integer = _given(subject, instance, numbers.astype("int32"), y_pred)
    except Exception as error:
        # Whatever it raises; a clear refusal of its own is right.
        if not _is_own_refusal(error):
            yield failed(subject, error, "integer targets make it fail", (numbers.astype("int32"), y_pred))
        return
    if not calls.same(floating, integer):
        _, a, b = calls.worst(floating, integer)
        yield Measured(
            f"integer targets give {shown(b)}, the same numbers as floats {shown(a)}",
            got=shown(b),
            expected=shown(a),
            reproducer=subject.reproducer("print(part(keras.ops.cast(y_true, 'int32'), y_pred))"),
        )


def _is_own_refusal(error: Exception) -> bool:
    return isinstance(error, ValueError) and not of_the_part(error)


def _given(subject: Subject, instance: Any, y_true: np.ndarray, y_pred: np.ndarray) -> Any:
    given = calls.tensors((y_true, y_pred))
    if subject.kind == "loss":
        return calls.arrays(instance(*given))
    with calls.left_as_it_was(instance):
        instance.reset_state()
        instance.update_state(*given)
        return calls.arrays(instance.result())
