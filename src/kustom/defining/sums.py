"""What a metric may return beside plain values: a ratio, or several sums with a formula over them.

A mean of means is not the mean (the textbook's precision: 80 % and 0 % are not 40 %, but 4 of 8). What streams are sums:
any split into batches, and any number of replicas, adds up to the same.
"""

from __future__ import annotations

from typing import Any

from kustom.errors import DefinitionError, hide_frames

__all__ = ["Ratio", "Sums"]


class Ratio:
    """Two sums whose quotient is the metric: `sum(numerator) / sum(denominator)`, and 0 where the latter is 0.

    Args:
        numerator: One value a sample, a time step or an entry: shape `(batch, ...)`, any number or boolean dtype.
        denominator: The same.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> @kustom.metric(package="docs")
        ... def hit_rate(y_true, y_pred, *, threshold=0.5):
        ...     hit = ops.equal(ops.cast(y_true, "bool"), y_pred > threshold)
        ...     return kustom.Ratio(hit, ops.ones_like(y_pred))
        >>> metric = hit_rate()
        >>> metric.update_state([[1], [0], [1]], [[0.9], [0.2], [0.3]])
        >>> round(float(metric.result()), 4)
        0.6667
    """

    __slots__ = ("denominator", "numerator")

    def __init__(self, numerator: Any, denominator: Any) -> None:
        self.numerator = numerator
        self.denominator = denominator

    def __repr__(self) -> str:
        return f"Ratio({self.numerator!r}, {self.denominator!r})"


class Sums:
    """Named sums over which `@kustom.metric(result=...)` has a formula.

    Args:
        keep: How many of the last axes are kept. 0: each sum is a number. 1: a value a class. 2: a confusion matrix.
        **parts: One array a name, other than the settings': shape `(batch, ..., *kept)`. All other axes are summed, weighted
            by sample or time step.

    Sums of integers and booleans without weights are exact, also beyond 2**24 in float32: each is kept as a high and a low
    number, until the formula gets their sum, rounded to the metric's dtype. A formula that subtracts two large sums from
    each other loses what the rounding took; subtract entry by entry, before summing, or use `dtype="float64"`.

    Before the first batch no sum has a shape yet, so that the result is one number, 0, also where axes are kept.

    Raises:
        DefinitionError: There is no part, or `keep` is not a whole number from 0 on.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> @kustom.metric(result=lambda squares, count: ops.sqrt(squares / count), package="docs")
        ... def rmse(y_true, y_pred):
        ...     squares = ops.square(ops.subtract(y_true, y_pred))
        ...     return kustom.Sums(squares=squares, count=ops.ones_like(squares))
        >>> metric = rmse()
        >>> metric.update_state([[3.0], [0.0]], [[0.0], [4.0]])
        >>> round(float(metric.result()), 4)
        3.5355
    """

    __slots__ = ("keep", "parts")

    @hide_frames
    def __init__(self, *, keep: int = 0, **parts: Any) -> None:
        if not parts:
            raise DefinitionError("kustom.Sums was given no sum; name at least one, such as Sums(count=...).")
        if not isinstance(keep, int) or isinstance(keep, bool) or keep < 0:
            raise DefinitionError(f"kustom.Sums takes keep= as the number of axes to keep (0, 1, 2, ...), not {keep!r}.")
        self.keep = keep
        self.parts = parts

    def __repr__(self) -> str:
        return f"Sums({', '.join(f'{name}={value!r}' for name, value in self.parts.items())}, keep={self.keep})"
