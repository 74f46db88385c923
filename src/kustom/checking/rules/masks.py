"""Family S, masks: what a layer does with the mask that its input carries."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import ops

from kustom.backends import keras as private
from kustom.checking import calls, doubles, steadiness
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.rules import rule
from kustom.checking.subjects import Subject


@rule(
    "S207",
    kinds=("layer",),
    asserts="It handles the mask of its input, passes it on, or gives it another shape by compute_mask.",
    why="Padding that is no longer marked counts in every layer, loss and metric that follows.",
    example="""
        class Scale(keras.layers.Layer):
            def call(self, x):                  # each step by itself, and the mask ends here
                return x * self.scale
    """,
    mend="Set self.supports_masking = True where each step is computed by itself; take mask= in call where steps are mixed; "
    "write compute_mask where the steps become others.",
    needs=("B601",),
)
def mask_is_handled(subject: Subject) -> Iterator[Measured | Undecided]:
    """Of a sequence with padding."""
    args = subject.inputs.arguments()
    if len(args) != 1 or not isinstance(args[0], np.ndarray):
        return
    if args[0].ndim != 3 or args[0].dtype.kind != "f":
        return
    x = args[0]
    part = doubles.copy_or_itself(subject)
    try:
        plain = calls.call(subject, part, x)
    except Exception:
        # It takes no sequences.
        return
    if not ops.is_tensor(plain) or steadiness.draws(subject):
        return
    mask = np.ones(x.shape[:2], bool)
    mask[:, 3:] = False
    y, out = _masked(part, x, mask)
    takes_mask = any(name == "mask" or name.endswith("_mask") for name in inspect.signature(part.call).parameters)
    if out is not None and len(out.shape) <= y.ndim and tuple(out.shape) != y.shape[: len(out.shape)]:
        yield Measured(
            f"it passes on a mask of the shape {tuple(out.shape)} beside an output of the shape {y.shape}",
            got=str(tuple(out.shape)),
            expected=f"a mask of the shape {y.shape[:2]}, or none",
            reproducer=_reproducer(subject),
        )
        return
    other = x.copy()
    other[:, 3:] += _shift(x)
    if takes_mask:
        changed, _ = _masked(part, other, mask)
        kept = mask if y.ndim == 3 and y.shape[:2] == mask.shape else np.ones(y.shape, bool)
        if not calls.same(y[kept], changed[kept]):
            _, a, b = calls.worst(y[kept], changed[kept])
            yield Measured(
                f"it takes a mask, and what is masked still has an effect: {shown(b)} instead of {shown(a)}",
                got=shown(b),
                expected=shown(a),
                reproducer=_reproducer(subject),
            )
        return
    if (
        y.ndim == 3
        and y.shape[:2] == mask.shape
        and _is_stepwise(subject, part, x, y)
        and out is None
        and not part.supports_masking
    ):
        yield Measured(
            "it computes each step by itself, and the mask of its input ends in it",
            got="no mask",
            expected=f"the mask of the input, {mask.shape}",
            reproducer=_reproducer(subject),
        )


def _is_stepwise(subject: Subject, part: Any, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether each step comes of itself: neither from those after it nor, as a causal layer's, from those before."""
    for steps in (slice(3, None), slice(None, 3)):
        other = x.copy()
        other[:, steps] += _shift(x)
        kept = np.ones(x.shape[1], bool)
        kept[steps] = False
        if not calls.same(y[:, kept], calls.arrays(calls.call(subject, part, other))[:, kept]):
            return False
    return True


def _shift(x: np.ndarray) -> np.ndarray:
    """What a step is changed by: not the same for each feature, which a normalization would take away again."""
    return np.linspace(0.5, 2.0, x.shape[-1], dtype=x.dtype) ** 2


def _masked(part: Any, x: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, Any]:
    given = ops.convert_to_tensor(x)
    private.set_keras_mask(given, ops.convert_to_tensor(mask))
    outputs = part(given)
    first = calls.flat(outputs)[0]
    return np.asarray(calls.arrays(first)), private.get_keras_mask(first)


def _reproducer(subject: Subject) -> str:
    return subject.reproducer(
        "masked = keras.layers.Masking()(np.pad(np.ones((2, 3, 4), 'float32'), ((0, 0), (0, 2), (0, 0))))",
        "print(getattr(part(masked), '_keras_mask', None))",
    )
