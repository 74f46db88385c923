"""Gradients by differences, and whether a gradient agrees with them.

Which of the two errors of a difference is seen says whether a gradient is right. Where it is, the differences come to it
with the order of their own error, down to what rounding allows; where it is wrong they come to another number. No tolerance
is scaled with the size of an array.

A kink, such as that of a ReLU at 0, is told by differences to either side that do not come together: there any number
between the two is a subgradient, and the place says nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kustom.backends import current
from kustom.backends import keras as private
from kustom.errors import GradientCheckError, GradientError, hide_frames
from kustom.gradients.differences import Difference, Function

__all__ = ["GradientReport", "check_gradient", "numerical_gradient"]

# Whole Jacobians are compared up to this many entries, directions beyond.
ENTRIES = 10_000
DIRECTIONS = 8


@hide_frames
def numerical_gradient(f: Callable[..., Any], *args: Any) -> Any:
    """The gradient of a function by central differences, in float64.

    Args:
        f: Returns a scalar.
        *args: Its arguments: numbers, arrays, tensors or variables, or structures of them. Those of integers are handed on
            as they are, and have None.

    Returns:
        NumPy arrays of dtype float64 in the structure of the argument; a tuple for several arguments.

    Raises:
        GradientError: `f` returned no scalar.

    Example:
        >>> import kustom
        >>> f = lambda w1, w2: 3 * w1**2 + 2 * w1 * w2
        >>> [round(float(gradient), 6) for gradient in kustom.numerical_gradient(f, 5.0, 3.0)]
        [36.0, 10.0]
    """
    with current().double_precision(), private.wide_floats():
        function = Function(f, args)
        if function.shapes != [()]:
            raise GradientError(f"{function.name} returned {_shown(function.shapes)}, where a scalar was expected; sum it.")
        gradients = []
        for index, x in enumerate(function.inputs):
            entries = [Difference(function, function.along(index, entry)) for entry in range(x.size)]
            # No weights but one: the function is a scalar.
            gradients.append(np.array([d.best([np.ones(())])[0] for d in entries]).reshape(x.shape))
        return function.packed(gradients)


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: along `where` the gradient says `gradient`, the differences `difference`, give or take `allowed`."""

    where: str
    gradient: float
    difference: float
    allowed: float
    verdict: str


@dataclasses.dataclass
class GradientReport:
    """What `check_gradient` measured.

    Attributes:
        name: The function's.
        rows: The comparisons, those that failed first.
        compared: How many were made.
        kinks: How many of them met a kink, and say nothing.
        precision: The dtype in which the function computes, as far as its values show.
        notes: What else was seen: a backward pass that is not twice the same, one that is not 0 where it must be.
    """

    name: str
    rows: list[Row]
    compared: int
    kinks: int
    precision: str
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def failures(self) -> list[Row]:
        """The comparisons that failed."""
        return [row for row in self.rows if row.verdict == "wrong"]

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong, and something was compared."""
        return not self.failures and not self.notes

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        right = self.compared - self.kinks - len(self.failures)
        one = self.compared == 1
        head = f"{self.name}: {self.compared} derivative{'' if one else 's'} compared with differences in {self.precision}: "
        head += f"{right} agree{'s' if right == 1 else ''}"
        head += f", {len(self.failures)} do{'es' if len(self.failures) == 1 else ''} not" if self.failures else ""
        head += f", {self.kinks} at a kink" if self.kinks else ""
        lines = [head + ".", *self.notes]
        shown = self.failures[:10] or self.rows[:3]
        if shown:
            width = max(len(row.where) for row in shown)
            lines.append(f"{'':<{width}}  {'gradient':>14}  {'differences':>14}  {'give or take':>12}")
            lines += [
                f"{row.where:<{width}}  {row.gradient:>14.7g}  {row.difference:>14.7g}  {row.allowed:>12.1e}  {row.verdict}"
                for row in shown
            ]
        if len(self.failures) > len(shown):
            lines.append(f"and {len(self.failures) - len(shown)} more")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{row.where}</td><td>{row.gradient:.7g}</td><td>{row.difference:.7g}</td><td>{row.allowed:.1e}</td>"
            f"<td>{row.verdict}</td></tr>"
            for row in self.rows[:20]
        )
        head = str(self).split("\n")[0]
        return (
            f"<p>{head} {' '.join(self.notes)}</p><table><tr><th></th><th>gradient</th><th>differences</th>"
            f"<th>give or take</th><th></th></tr>{cells}</table>"
        )


@hide_frames
def check_gradient(f: Callable[..., Any], *args: Any, on_fail: str | None = "raise", seed: int = 0) -> GradientReport:
    """Compare a function's gradient with differences of the function, in float64.

    Up to 10,000 entries the whole Jacobian is compared, beyond that eight random directions an argument. A backward pass is
    also run twice, and with a zero upstream.

    Args:
        f: Returns a tensor, or a structure of them.
        *args: Its arguments: numbers, arrays, tensors or variables, or structures of them. Those of integers are handed on.
        on_fail: `"raise"`, or None to return the report whatever it says.
        seed: Of the random directions and weights.

    Returns:
        The report.

    Raises:
        GradientCheckError: The gradient does not agree; the text is the report. Or nothing could be compared.
        GradientError: `f` returned no tensor, or there is nothing to differentiate by.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> kustom.check_gradient(lambda x: ops.sin(x) * x, [1.0, 2.0]).ok
        True
        >>> @kustom.custom_gradient
        ... def cube(x):
        ...     return x**3, lambda upstream: upstream * 2 * x**2
        >>> print(str(kustom.check_gradient(cube, 2.0, on_fail=None)).splitlines()[0])
        cube: 1 derivative compared with differences in float64: 0 agree, 1 does not.
    """
    if on_fail not in ("raise", None):
        raise GradientError(f"on_fail is 'raise' or None, not {on_fail!r}.")
    with current().double_precision(), private.wide_floats():
        report = _Check(Function(f, args), np.random.default_rng(seed)).report()
    if on_fail == "raise" and not report.ok:
        raise GradientCheckError(str(report))
    return report


class _Check:
    """The comparisons of one function."""

    def __init__(self, function: Function, rng: np.random.Generator) -> None:
        self.function = function
        self.rng = rng
        self.rows: list[Row] = []
        self.kinks = 0

    def report(self) -> GradientReport:
        """Compare, and say what was seen."""
        function = self.function
        if not function.size or not any(x.size for x in function.inputs):
            raise GradientError(f"{function.name} was given, or returned, no numbers at all; there is nothing to compare.")
        for row in self._whole() if function.size * sum(x.size for x in function.inputs) <= ENTRIES else self._directions():
            self.rows.append(row)
            self.kinks += row.verdict == "kink"
        order = {"wrong": 0, "kink": 1, "agrees": 2}
        rows = sorted(self.rows, key=lambda row: (order[row.verdict], -_distance(row)))
        report = GradientReport(function.name, rows, len(rows), self.kinks, function.precision(), self._passes())
        if self.kinks == len(rows):
            report.notes.append("Nothing was compared: every place is a kink. Give arguments where the function is smooth.")
        return report

    def _whole(self) -> Iterator[Row]:
        function = self.function
        jacobian = function.jacobian()
        for index, (x, name) in enumerate(zip(function.inputs, function.names(), strict=True)):
            for entry in range(x.size):
                difference = Difference(function, function.along(index, entry))
                for which, shape in enumerate(function.shapes):
                    for result in range(math.prod(shape)):
                        weights = [np.zeros(s) for s in function.shapes]
                        weights[which].flat[result] = 1.0
                        y = "y" + (f"[{which}]" if len(function.shapes) > 1 else "") + _place(shape, result)
                        where = f"d {y} / d {name}{_place(x.shape, entry)}"
                        yield self._row(where, float(jacobian[which][index][result, entry]), difference, weights)

    def _directions(self) -> Iterator[Row]:
        function = self.function
        for index, (x, name) in enumerate(zip(function.inputs, function.names(), strict=True)):
            for number in range(DIRECTIONS):
                weights = [self.rng.normal(size=shape) for shape in function.shapes]
                direction = [np.zeros_like(other) for other in function.inputs]
                direction[index] = self.rng.normal(size=x.shape) / math.sqrt(max(x.size, 1))
                gradient = float(np.sum(function.gradient(weights)[index] * direction[index]))
                yield self._row(f"{name}, direction {number}", gradient, Difference(function, direction), weights)

    def _row(self, where: str, gradient: float, difference: Difference, weights: list[np.ndarray]) -> Row:
        value, bound = difference.best(weights)
        # What the backward pass itself rounds.
        allowed = bound + 8 * self.function.epsilon * max(abs(gradient), abs(value))
        if math.isfinite(gradient) and difference.kink(weights, gradient):
            return Row(where, gradient, value, allowed, "kink")
        if abs(gradient - value) <= allowed:
            return Row(where, gradient, value, allowed, "agrees")
        crossed = math.isfinite(gradient) and difference.crossed(weights)
        return Row(where, gradient, value, allowed, "kink" if crossed else "wrong")

    def _passes(self) -> list[str]:
        """A backward pass is the same twice, and zero of a zero."""
        function = self.function
        weights = [self.rng.normal(size=shape) for shape in function.shapes]
        once, twice = function.gradient(weights), function.gradient(weights)
        notes = []
        if not function.deterministic or not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(once, twice, strict=True)):
            notes.append("The function is not the same twice: differences say nothing of its gradient. Give it a seed.")
        turned = function.gradient([-2 * w for w in weights])
        for a, b in zip(once, turned, strict=True):
            # Where a gradient is not finite, the table says so.
            finite = np.isfinite(a) & np.isfinite(b)
            off = np.max(np.abs(b[finite] + 2 * a[finite]), initial=0.0)
            if off > 100 * function.epsilon * max(1.0, float(np.max(np.abs(b[finite]), initial=0.0))):
                notes.append("The gradient for -2 times an upstream is not -2 times the gradient: it is not linear in it.")
                break
        zero = function.gradient([np.zeros(shape) for shape in function.shapes])
        if any(np.any(g != 0) for g in zero):
            notes.append("The gradient is not 0 for an upstream of 0: it is not linear in it.")
        return notes


def _distance(row: Row) -> float:
    distance = abs(row.gradient - row.difference)
    return distance if math.isfinite(distance) else math.inf


def _place(shape: tuple[int, ...], index: int) -> str:
    return "" if not shape else f"[{', '.join(map(str, np.unravel_index(index, shape)))}]"


def _shown(shapes: list[tuple[int, ...]]) -> str:
    return f"the shape {shapes[0]}" if len(shapes) == 1 else f"{len(shapes)} tensors"
