"""Family N, numbers: what a part gives at the ends of its domain, beside thresholds, and in low precision."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kustom.checking import calls
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.rules import rule
from kustom.checking.subjects import Subject

# Of float32: where a square, a sum of a million or an exponential of what is halfway are still finite.
_LARGE = (30.0, 100.0, 1e4)


@rule(
    "N301",
    kinds=("activation",),
    asserts="It is finite at large and small inputs that are legal.",
    why="One value that is infinite or NaN makes the loss, and after one step every weight, NaN.",
    example="""
        def my_softplus(z):
            return ops.log(ops.exp(z) + 1)
    """,
    mend="Write it so that nothing on the way overflows: ops.logaddexp(z, 0.0), ops.logsumexp, ops.log1p, ops.expm1.",
    needs=("B601",),
)
def finite_at_extremes(subject: Subject) -> Iterator[Measured | Undecided]:
    """Along large positive and negative numbers, the result is finite."""
    part = subject.instance()
    for x in (0.0, *(sign * size for size in _LARGE for sign in (1.0, -1.0))):
        got = calls.outputs_of(subject, part, np.full((2, 4), x, "float32"))
        if not all(np.all(np.isfinite(y)) for y in got):
            yield Measured(
                f"the result is {shown(got[0].flat[0])} at x = {shown(x)}",
                input=shown(x),
                got=shown(got[0].flat[0]),
                expected="a finite number",
                reproducer=subject.reproducer(f"print(part(keras.ops.convert_to_tensor([{x}])))"),
            )
            return
