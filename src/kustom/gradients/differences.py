"""Differences of a function, at a ladder of steps, and how far from the derivative they may be.

A central difference has two errors. Its own falls with the square of the step; rounding grows as the step falls. The bound
here: Richardson extrapolation of two neighbouring steps, with their difference as its error (Press et al., Numerical
Recipes, 5.7), plus the rounding of the function's values, divided by the step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private
from kustom.defining.data import is_floating
from kustom.errors import GradientError
from kustom.gradients.tape import GradientTape

__all__ = ["Difference", "Function"]

# Each a quarter of the one before.
STEPS = 8

# What a function may return, from the most precise on.
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


class Function:
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
        # What a call changes is put back after each: a second one is then of the same function, and the user's state stays.
        self._moving: list[tuple[keras.Variable, np.ndarray]] = []
        outputs = self._first_call()
        self.dtypes = [private.standardize_dtype(y.dtype) for y in outputs]
        if not all(private.is_float_dtype(dtype) for dtype in self.dtypes):
            raise GradientError(f"{self.name} returned {', '.join(self.dtypes)}; a gradient is that of floating numbers.")
        self.value = [_array(y) for y in outputs]
        again = self(self.inputs)
        self.deterministic = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(self.value, again, strict=True))
        self.shapes = [y.shape for y in self.value]
        self.size = sum(y.size for y in self.value)
        # Of each result: what its values are off by, where more is lost inside than in the last step.
        self.noise = [10 * noise for noise in self._noise()]
        self.epsilon = max(EPSILON[dtype] for dtype in self.dtypes)

    def _first_call(self) -> list[Any]:
        started: dict[int, tuple[keras.Variable, np.ndarray]] = {}

        def note(variable: keras.Variable, value: Any) -> Any:
            if id(variable) not in started and current().is_concrete(value):
                started[id(variable)] = (variable, np.array(ops.convert_to_numpy(value)))
            return value

        private.listen(note)
        try:
            outputs = self.tensors(self._tensor_inputs(self.inputs))
        finally:
            private.unlisten(note)
        self._moving = [
            (v, x) for v, x in started.values() if not np.array_equal(ops.convert_to_numpy(v), x, equal_nan=x.dtype.kind == "f")
        ]
        self._restore()
        return outputs

    def _restore(self) -> None:
        for variable, value in self._moving:
            variable.assign(value)

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
        try:
            made = self.f(*keras.tree.pack_sequence_as(self._args, flat))
        except Exception as error:
            if not current().refuses_mixed_dtypes(error):
                raise
            raise GradientError(
                f"{self.name} mixes its arguments, float64 here, with numbers of another dtype, which this backend refuses. "
                "Give these the arguments' dtype: ops.cast(c, x.dtype)."
            ) from error
        outputs = [x.value if isinstance(x, keras.Variable) else x for x in keras.tree.flatten(made)]
        for x in outputs:
            if not ops.is_tensor(x):
                raise GradientError(f"{self.name} returned {type(x).__name__} {str(x)[:40]!r}, where a tensor was expected.")
        return outputs

    def __call__(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        values = [_array(y) for y in self.tensors(self._tensor_inputs(inputs))]
        self._restore()
        return values

    def along(self, index: int, entry: int) -> list[np.ndarray]:
        """The direction along one entry of one input."""
        direction = [np.zeros_like(x) for x in self.inputs]
        direction[index].flat[entry] = 1.0
        return direction

    def gradient(self, weights: list[np.ndarray]) -> list[np.ndarray]:
        """The gradient of the results' weighted sum by each input, as the backend computes it; zeros where there is none."""
        inputs = self._tensor_inputs(self.inputs)
        # Persistent, since the function may assign to what it has read.
        with GradientTape(persistent=True) as tape:
            tape.watch(inputs)
            outputs = self.tensors(inputs)
        seeds = [ops.convert_to_tensor(w, dtype=dtype) for w, dtype in zip(weights, self.dtypes, strict=True)]
        found = tape.gradient(outputs, inputs, output_gradients=seeds, unconnected_gradients="zero")
        self._restore()
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
        self._restore()
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

    def _noise(self) -> list[float]:
        """By how much each result jumps where it should be smooth.

        Something inside may compute in less than float64, whatever dtype it returns, or with larger numbers. Between five
        close points fourth differences see nothing of a smooth function, and of one that rounds they see that (More and
        Wild, Estimating Computational Noise, 2011). The median of three places: one may be a kink.
        """
        rng = np.random.default_rng(0)
        seen, relative = [], []
        for _ in range(3):
            # A 0 has no size of its own; differences take 1 there, too. By less, what computes in float32 would not move.
            sizes = [np.where(x == 0, 1.0, np.maximum(np.abs(x), 1e-3)) for x in self.inputs]
            base = [x + 1e-4 * rng.normal(size=x.shape) * size for x, size in zip(self.inputs, sizes, strict=True)]
            direction = [1e-6 * rng.normal(size=x.shape) * size for x, size in zip(self.inputs, sizes, strict=True)]
            values = [self([b + k * d for b, d in zip(base, direction, strict=True)]) for k in range(5)]
            fourth = [c[0] - 4 * c[1] + 6 * c[2] - 4 * c[3] + c[4] for c in zip(*values, strict=True)]
            seen.append([float(np.max(np.abs(each), initial=0.0)) / math.sqrt(70) for each in fourth])
            largest = [max(float(np.max(np.abs(c[2]), initial=0.0)), 1e-300) for c in zip(*values, strict=True)]
            relative.append(max((n / y for n, y in zip(seen[-1], largest, strict=True)), default=0.0))
        self._relative_noise = 10 * float(np.median(relative))
        noise = np.median(seen, axis=0)
        return [float(each) if math.isfinite(each) else 0.0 for each in noise]

    def precision(self) -> str:
        """The dtype as which the function computes, whatever it returns."""
        worst = max(self.epsilon, self._relative_noise)
        return "float64" if worst < 1e-10 else "float32" if worst < 1e-4 else "float16"


class Difference:
    """The differences of a function along one direction, at a ladder of steps."""

    def __init__(self, function: Function, direction: list[np.ndarray]) -> None:
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
        function = self._function
        last = max(
            sum(float(np.sum(np.abs(v * w))) for v, w in zip(values, weights, strict=True) if np.any(w))
            for values in (function.value, *self._ahead)
        )
        inside = sum(noise * float(np.linalg.norm(w)) for noise, w in zip(function.noise, weights, strict=True) if np.any(w))
        return max(function.epsilon * last, inside, 1e-300)

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


def _doubles(arg: Any) -> Any:
    """An argument with arrays for its tensors: a list of numbers is one of them, a list of tensors several."""
    structured = any(hasattr(leaf, "shape") for leaf in keras.tree.flatten(arg))
    return keras.tree.map_structure(_double, arg) if structured else _double(arg)


def _double(x: Any) -> np.ndarray:
    array = _array(x) if isinstance(x, keras.Variable) or ops.is_tensor(x) else np.asarray(x)
    return array.astype("float64") if array.dtype.kind in "fV" else array


def _array(x: Any) -> np.ndarray:
    array = ops.convert_to_numpy(x)
    return array.astype("float64") if is_floating(x) else array
