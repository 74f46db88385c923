"""Gradients by differences, and whether a gradient agrees with them.

A difference has two errors, and which of them is seen says whether a gradient is right. The one of a central difference
falls with the square of the step; rounding grows as the step falls. So each derivative is taken at a ladder of steps. Where
the gradient is right the differences come to it with that order, down to what rounding allows; where it is wrong they come
to another number. No tolerance is scaled with the size of an array.

A kink, such as that of a ReLU at 0, is told by differences to either side that do not come together: there any number
between the two is a subgradient, and the place says nothing.

The bound: Richardson extrapolation of two neighbouring steps, with their difference as its error (Press et al., Numerical
Recipes, 5.7), plus the rounding of the function's values, divided by the step.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private
from kustom.errors import GradientCheckError, GradientError, hide_frames
from kustom.gradients.tape import GradientTape

__all__ = ["GradientReport", "check_gradient", "numerical_gradient"]

# Whole Jacobians are compared up to this many entries, directions beyond.
ENTRIES = 10_000
DIRECTIONS = 8
# Each a quarter of the one before.
STEPS = 5


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
        function = _Function(f, args)
        if function.shapes != [()]:
            raise GradientError(f"{function.name} returned {_shown(function.shapes)}, where a scalar was expected; sum it.")
        gradients = []
        for index, x in enumerate(function.inputs):
            entries = [_Difference(function, function.along(index, entry)) for entry in range(x.size)]
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
        head = f"{self.name}: {self.compared} derivatives compared with differences in {self.precision}: {right} agree"
        head += f", {len(self.failures)} do not" if self.failures else ""
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
        >>> kustom.check_gradient(cube, 2.0)
        Traceback (most recent call last):
          ...
        kustom.errors.GradientCheckError: cube: 1 derivatives compared with differences in float64: 0 agree, 1 do not.
                                gradient     differences  give or take
        d y / d argument 0             8              12       8.5e-12  wrong
    """
    if on_fail not in ("raise", None):
        raise GradientError(f"on_fail is 'raise' or None, not {on_fail!r}.")
    with current().double_precision(), private.wide_floats():
        report = _Check(_Function(f, args), np.random.default_rng(seed)).report()
    if on_fail == "raise" and not report.ok:
        raise GradientCheckError(str(report))
    return report


class _Function:
    """A function of float64 arrays that returns float64 arrays, however its arguments and results are structured."""

    def __init__(self, f: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.f = f
        self.name = getattr(f, "__name__", type(f).__name__)
        self._args: list[Any] = [_doubles(arg) for arg in args]
        self._flat: list[np.ndarray] = keras.tree.flatten(self._args)
        self._places = [i for i, x in enumerate(self._flat) if x.dtype == np.float64]
        self.inputs = [self._flat[i] for i in self._places]
        if not self.inputs:
            raise GradientError(f"{self.name} was given nothing to differentiate by: numbers, arrays or tensors of floats.")
        outputs = self.tensors(self._tensor_inputs(self.inputs))
        self.dtypes = [private.standardize_dtype(y.dtype) for y in outputs]
        if not all(private.is_float_dtype(dtype) for dtype in self.dtypes):
            raise GradientError(f"{self.name} returned {', '.join(self.dtypes)}; a gradient is that of floating numbers.")
        self.value = [_array(y) for y in outputs]
        self.shapes = [y.shape for y in self.value]
        self.size = sum(y.size for y in self.value)
        noise = self._noise()
        # Below that it is what float64 itself leaves.
        self.epsilon = max(*(_EPSILON[dtype] for dtype in self.dtypes), 4 * noise if noise > 1e-12 else 0.0)

    def names(self) -> list[str]:
        """What each input is called in a table."""
        names = []
        for position, arg in enumerate(self._args):
            count = len(keras.tree.flatten(arg))
            names += [f"argument {position}" + (f"[{i}]" if count > 1 else "") for i in range(count)]
        return [names[i] for i in self._places]

    def _tensor_inputs(self, inputs: list[np.ndarray]) -> list[Any]:
        return [ops.convert_to_tensor(x, dtype="float64") for x in inputs]

    def tensors(self, inputs: list[Any]) -> list[Any]:
        """The function's results for tensors in the places of its floating arguments."""
        flat = [ops.convert_to_tensor(x) for x in self._flat]
        for place, x in zip(self._places, inputs, strict=True):
            flat[place] = x
        made = self.f(*keras.tree.pack_sequence_as(self._args, flat))
        outputs = [x.value if isinstance(x, keras.Variable) else x for x in keras.tree.flatten(made)]
        for x in outputs:
            if not ops.is_tensor(x):
                raise GradientError(f"{self.name} returned {type(x).__name__} {str(x)[:40]!r}, where a tensor was expected.")
        return outputs

    def __call__(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return [_array(y) for y in self.tensors(self._tensor_inputs(inputs))]

    def along(self, index: int, entry: int) -> list[np.ndarray]:
        """The direction along one entry of one input."""
        direction = [np.zeros_like(x) for x in self.inputs]
        direction[index].flat[entry] = 1.0
        return direction

    def gradient(self, weights: list[np.ndarray]) -> list[np.ndarray]:
        """The gradient of the results' weighted sum by each input, as the backend computes it; zeros where there is none."""
        inputs = self._tensor_inputs(self.inputs)
        with GradientTape() as tape:
            tape.watch(inputs)
            outputs = self.tensors(inputs)
        seeds = [ops.convert_to_tensor(w, dtype=dtype) for w, dtype in zip(weights, self.dtypes, strict=True)]
        found = tape.gradient(outputs, inputs, output_gradients=seeds, unconnected_gradients="zero")
        return [_array(g) for g in found]

    def jacobian(self) -> list[list[np.ndarray]]:
        """For each result and input the derivatives, of the shape `(result.size, input.size)`."""
        inputs = self._tensor_inputs(self.inputs)
        with GradientTape(persistent=True) as tape:
            tape.watch(inputs)
            outputs = self.tensors(inputs)
        rows = []
        for y in outputs:
            found = tape.jacobian(y, inputs, unconnected_gradients="zero")
            rows.append([_array(j).reshape(math.prod(y.shape), x.size) for j, x in zip(found, self.inputs, strict=True)])
        return rows

    def packed(self, gradients: list[np.ndarray]) -> Any:
        """Gradients in the structure of the arguments."""
        found = dict(zip(self._places, gradients, strict=True))
        flat = [found.get(i) for i in range(len(self._flat))]
        packed = []
        for arg in self._args:
            count = len(keras.tree.flatten(arg))
            packed.append(flat[0] if isinstance(arg, np.ndarray) else keras.tree.pack_sequence_as(arg, flat[:count]))
            del flat[:count]
        return packed[0] if len(packed) == 1 else tuple(packed)

    def _noise(self) -> float:
        """By how much the function's values jump where it should be smooth, as a part of the values.

        Something inside may compute in less than float64, whatever dtype it returns. Between five close points fourth
        differences see nothing of a smooth function, and of one that rounds they see that (More and Wild, Estimating
        Computational Noise, 2011). The median of three places: one may be a kink.
        """
        rng = np.random.default_rng(0)
        seen = []
        for _ in range(3):
            base = [x + 1e-4 * rng.normal(size=x.shape) * np.maximum(np.abs(x), 1e-3) for x in self.inputs]
            direction = [1e-6 * rng.normal(size=x.shape) * np.maximum(np.abs(x), 1e-3) for x in self.inputs]
            values = [self([b + k * d for b, d in zip(base, direction, strict=True)]) for k in range(5)]
            jumps = []
            for column in zip(*values, strict=True):
                fourth = np.abs(column[0] - 4 * column[1] + 6 * column[2] - 4 * column[3] + column[4])
                jumps.append(np.max(fourth, initial=0.0) / max(float(np.max(np.abs(column[2]), initial=0.0)), 1e-30))
            seen.append(max(jumps, default=0.0) / math.sqrt(70))
        noise = float(np.median(seen))
        return noise if math.isfinite(noise) else 0.0

    def precision(self) -> str:
        """The dtype as which the function computes, whatever it returns."""
        return min((name for name in _EPSILON if self.epsilon <= 4 * _EPSILON[name]), key=_EPSILON.__getitem__, default="bfloat16")


class _Difference:
    """The differences of a function along one direction, at a ladder of steps."""

    def __init__(self, function: _Function, direction: list[np.ndarray]) -> None:
        scale = max(float(np.max(np.abs(x[d != 0]))) for x, d in zip(function.inputs, direction, strict=True) if np.any(d))
        self._scale = max(scale, 1.0)
        self._function = function
        self._direction = direction
        # From where the first error is small to where the second begins to count; nearer where the function ends.
        for nearer in range(4):
            first = function.epsilon**0.2 * self._scale * 64.0**-nearer
            self.steps = [first * 4.0**-k for k in range(STEPS)]
            self._ahead = [self._at(step) for step in self.steps]
            self._behind = [self._at(-step) for step in self.steps]
            if all(np.all(np.isfinite(y)) for values in (*self._ahead, *self._behind) for y in values):
                break

    def _at(self, step: float) -> list[np.ndarray]:
        return self._function([x + step * d for x, d in zip(self._function.inputs, self._direction, strict=True)])

    def _central(self, weights: list[np.ndarray]) -> list[float]:
        return [
            (self._weigh(a, weights) - self._weigh(b, weights)) / (2 * step)
            for a, b, step in zip(self._ahead, self._behind, self.steps, strict=True)
        ]

    def _weigh(self, values: list[np.ndarray], weights: list[np.ndarray]) -> float:
        return float(sum(np.sum(v * w) for v, w in zip(values, weights, strict=True) if np.any(w)))

    def best(self, weights: list[np.ndarray]) -> tuple[float, float]:
        """The derivative of the weighted sum of the results, and how far from it the true one may be."""
        found = []
        rounding = self._rounding(weights)
        central = self._central(weights)
        for coarse, fine, step in zip(central, central[1:], self.steps[1:], strict=False):
            # The error of the finer is a sixteenth of the coarser's.
            value = fine + (fine - coarse) / 15
            found.append((abs(fine - coarse) / 15 + 2 * rounding / step, value))
        found = [(bound, value) for bound, value in found if math.isfinite(value)]
        if not found:
            return math.nan, math.inf
        bound, value = min(found)
        return value, 4 * bound

    def _rounding(self, weights: list[np.ndarray]) -> float:
        largest = sum(np.sum(np.abs(v * w)) for v, w in zip(self._function.value, weights, strict=True) if np.any(w))
        ahead = max(
            sum(float(np.sum(np.abs(v * w))) for v, w in zip(values, weights, strict=True) if np.any(w)) for values in self._ahead
        )
        return self._function.epsilon * max(float(largest), ahead, 1e-30)

    def kink(self, weights: list[np.ndarray], gradient: float) -> bool:
        """Whether the derivatives to either side stay apart however small the step, with the gradient between them.

        Of a smooth function they differ by the step times the curvature, and so come together as it falls.
        """
        here = self._weigh(self._function.value, weights)
        rounding = self._rounding(weights)
        gaps = []
        for ahead, behind, step in zip(self._ahead, self._behind, self.steps, strict=True):
            right, left = (self._weigh(ahead, weights) - here) / step, (here - self._weigh(behind, weights)) / step
            gaps.append((abs(right - left), right, left, 4 * rounding / step))
        wide, narrow = gaps[0], gaps[-1]
        apart = narrow[0] > 10 * narrow[3] and narrow[0] > 0.3 * wide[0]
        low, high = min(narrow[1:3]), max(narrow[1:3])
        slack = narrow[3] + 1e-3 * (high - low)
        return apart and low - slack <= gradient <= high + slack

    def crossed(self, weights: list[np.ndarray]) -> bool:
        """Whether a kink lies within the largest step: the differences do not come together with their order."""
        central = self._central(weights)
        changes = [abs(a - b) for a, b in itertools.pairwise(central)]
        floor = 4 * self._rounding(weights) / self.steps[-1]
        return changes[-1] > floor and changes[-1] > changes[0] / 16


class _Check:
    """The comparisons of one function."""

    def __init__(self, function: _Function, rng: np.random.Generator) -> None:
        self.function = function
        self.rng = rng
        self.rows: list[Row] = []
        self.kinks = 0

    def report(self) -> GradientReport:
        """Compare, and say what was seen."""
        function = self.function
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
                difference = _Difference(function, function.along(index, entry))
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
                yield self._row(f"{name}, direction {number}", gradient, _Difference(function, direction), weights)

    def _row(self, where: str, gradient: float, difference: _Difference, weights: list[np.ndarray]) -> Row:
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
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(once, twice, strict=True)):
            notes.append(
                "The gradient is not the same twice: the function is not deterministic, and differences say nothing of it."
            )
        zero = function.gradient([np.zeros(shape) for shape in function.shapes])
        if any(np.any(g != 0) for g in zero):
            notes.append("The gradient is not 0 for an upstream of 0: it is not linear in it.")
        return notes


def _distance(row: Row) -> float:
    distance = abs(row.gradient - row.difference)
    return distance if math.isfinite(distance) else math.inf


def _place(shape: tuple[int, ...], index: int) -> str:
    return "" if not shape else f"[{', '.join(map(str, np.unravel_index(index, shape)))}]"


# What a function may return, from the most precise on.
_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def _doubles(arg: Any) -> Any:
    """An argument with arrays for its tensors: a list of numbers is one of them, a list of tensors several."""
    structured = any(hasattr(leaf, "shape") for leaf in keras.tree.flatten(arg))
    return keras.tree.map_structure(_double, arg) if structured else _double(arg)


def _double(x: Any) -> np.ndarray:
    array = _array(x) if isinstance(x, keras.Variable) or ops.is_tensor(x) else np.asarray(x)
    return array.astype("float64") if array.dtype.kind in "fV" else array


def _array(x: Any) -> np.ndarray:
    array = ops.convert_to_numpy(x)
    return array.astype("float64") if private.is_float_dtype(private.standardize_dtype(x.dtype)) else array


def _shown(shapes: list[tuple[int, ...]]) -> str:
    return f"the shape {shapes[0]}" if len(shapes) == 1 else f"{len(shapes)} tensors"
