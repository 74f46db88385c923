"""What may be expected of a part's numbers: whether it draws them, and how far rounding alone moves them.

A tolerance here is measured, not chosen: the inputs and weights are moved by a rounding of the precision in question, and
what the outputs do then is what that precision allows them. An ill-conditioned formula is allowed more, a plain one little.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kustom.checking import calls, stepping
from kustom.gradients.differences import EPSILON

__all__ = ["draws", "outputs_and_noise", "rounded"]

TRIALS = 6


def draws(subject: Any) -> bool:
    """Whether two calls on the same inputs differ, or differ under another seed of Keras's own."""
    return subject.tagged("nondeterministic") or subject.once("draws", lambda: _draws(subject))


def _draws(subject: Any) -> bool:
    try:
        args = subject.inputs.arguments()
        instance = subject.instance()
        keras.utils.set_random_seed(1)
        first = calls.outputs_of(subject, instance, *args)
        second = calls.outputs_of(subject, instance, *args)
        keras.utils.set_random_seed(2)
        third = calls.outputs_of(subject, instance, *args)
        drawn = not (calls.equal(first, second) and calls.equal(first, third))
        if subject.kind == "optimizer" and not drawn:
            # One with a seed of its own repeats itself on one backend, and does otherwise on the next.
            drawn = any(stepping.generators_in(instance))
        if subject.kind == "initializer" and not drawn:
            # One that repeats itself by its own seed draws all the same: a constant has the same values everywhere.
            drawn = _looks_drawn(subject, instance)
        return drawn
    finally:
        keras.utils.set_random_seed(int(subject.rng("draws").integers(0, 2**31)))


def _looks_drawn(subject: Any, instance: Any) -> bool:
    try:
        other = calls.outputs_of(subject, instance, (7, 5), "float32")
    except Exception:
        # One of values that are given is of one shape alone.
        return False
    return any(np.unique(x).size > 0.5 * x.size for x in other)


def outputs_and_noise(subject: Any, args: tuple[Any, ...], dtype: str = "float32") -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A part's outputs, and how far each entry of them may be off in a precision."""
    rng = subject.rng("steadiness")
    instance = subject.instance()
    outputs = calls.outputs_of(subject, instance, *args)
    epsilon = EPSILON[dtype]
    seen = [np.zeros(x.shape) for x in outputs]
    variables = (
        [v for v in getattr(instance, "variables", []) if calls.is_floating(v)] if subject.kind in ("layer", "model") else []
    )
    held = [np.asarray(calls.arrays(v)) for v in variables]
    for _ in range(TRIALS):
        for variable, value in zip(variables, held, strict=True):
            variable.assign((value * (1 + epsilon * rng.choice([-1.0, 1.0], value.shape))).astype(value.dtype))
        other = calls.outputs_of(subject, instance, *calls.mapped(lambda x: rounded(x, epsilon, rng), args))
        for sofar, x, y in zip(seen, outputs, other, strict=True):
            if x.dtype.kind == "f" and x.shape == y.shape:
                with np.errstate(invalid="ignore"):
                    apart = np.abs(x.astype("float64") - y.astype("float64"))
                np.maximum(sofar, np.where(np.isfinite(apart), apart, 0.0), out=sofar)
    for variable, value in zip(variables, held, strict=True):
        variable.assign(value)
    _add_of_integers(subject, args, outputs, seen, epsilon)
    allowed = []
    for sofar, x in zip(seen, outputs, strict=True):
        size = np.abs(x.astype("float64")) if x.dtype.kind == "f" else np.zeros(x.shape)
        # Two of them that are not finite are the same, or are not.
        size = np.where(np.isfinite(size), size, 0.0)
        typical = float(np.sqrt(np.mean(size**2))) if x.size else 0.0
        largest = float(np.max(sofar, initial=0.0))
        # What cancels is lost in proportion to what was summed, of which the outputs' common size is the trace.
        allowed.append(8 * sofar + 2 * largest + 16 * epsilon * (size + typical) + 1e-30)
    return outputs, allowed


def _add_of_integers(subject: Any, args: tuple[Any, ...], outputs: Any, seen: list[np.ndarray], epsilon: float) -> None:
    """Whole numbers that a part computes with (the sine of a time step) move by a rounding, too, where it takes them so.

    Up, so that one that is cut to a whole number again is what it was.
    """
    if not any(_is_whole(x) for x in calls.flat(args)):
        return
    moved = calls.mapped(lambda x: (x * (1 + epsilon)).astype("float32") if _is_whole(x) else x, args)
    try:
        other = calls.outputs_of(subject, subject.instance(), *moved)
    except Exception:
        # Whatever it raises for what is no index.
        return
    for sofar, x, y in zip(seen, outputs, other, strict=True):
        if x.dtype.kind == "f" and x.shape == y.shape:
            apart = calls.apart(x, y)
            # More than that is no rounding: it does something else with what is not whole.
            np.maximum(sofar, np.where(apart <= 4096 * epsilon, apart, 0.0), out=sofar)


def _is_whole(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind in "iu"


def rounded(x: Any, epsilon: float, rng: np.random.Generator) -> Any:
    """Floating numbers, each moved by a rounding up or down."""
    x = np.asarray(x) if not isinstance(x, str | int | type(None)) else x
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        return x
    return (x * (1 + epsilon * rng.choice([-1.0, 1.0], x.shape))).astype(x.dtype)
