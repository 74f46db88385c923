"""A part in float64, for differences: made anew with float64 weights, or, where it has none, the part itself.

What is compared is a function of the floating arguments and of the trainable weights together, so that one report says
which of them is wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private
from kustom.checking import calls
from kustom.checking.subjects import policy
from kustom.errors import SubjectError

__all__ = ["Along", "copy_or_itself", "part", "retyped"]

# Every entry of the inputs up to so many, so many directions beyond; so many for the weights.
ENTRIES, DIRECTIONS, WEIGHT_DIRECTIONS = 16, 6, 4
# Every output up to so many, so many random sums of them beyond.
OUTPUTS, SUMS = 48, 6


def copy_or_itself(subject: Any) -> Any:
    """A new part; where none can be made, the one that was given."""
    try:
        return subject.make()
    except SubjectError:
        return subject.instance()


@contextlib.contextmanager
def part(subject: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The part and its arguments, in float64, inside a scope in which that is kept.

    Raises:
        SubjectError: The part does not compute in float64.
    """
    args = tuple(calls.mapped(_double, x) for x in subject.inputs.arguments(batch=2))
    with current().double_precision(), private.wide_floats():
        if subject.kind not in ("layer", "model"):
            made = _loss_in_doubles(subject)
            _refuse_single(subject, made, args)
            yield made, args
            return
        with policy("float64"), retyped(subject, "float64") as made:
            _refuse_single(subject, made, args)
            if made is not subject.instance():
                calls.moved(made, subject.rng("weights"))
            yield made, args


def _refuse_single(subject: Any, made: Any, args: tuple[Any, ...]) -> None:
    try:
        calls.call(subject, made, *args)
    except Exception as error:
        # Whatever a part raises that runs in float32: a backend without a kernel, two dtypes in one sum.
        text = " ".join(str(error).split())
        raise SubjectError(f"it does not compute in float64: {type(error).__name__}: {text[:160]}") from error


@contextlib.contextmanager
def retyped(subject: Any, name: str) -> Iterator[Any]:
    """A new layer under a dtype policy, those of its sublayers with it that have the policy of its own making.

    Where no new one can be made it is the layer that was given, which has its own policy back in the end.
    """
    made = copy_or_itself(subject)
    before = [(layer, layer.dtype_policy) for layer in [made, *private.descendants(made)]]
    plain = [(layer, own) for layer, own in before if getattr(own, "name", "") == "float32"]
    for layer, _ in plain:
        layer.dtype_policy = name
    try:
        yield made
    finally:
        if made is subject.instance():
            for layer, own in plain:
                layer.dtype_policy = own


def _loss_in_doubles(subject: Any) -> Any:
    """A loss computes in a dtype of its own: one made with float64, where it takes that."""
    if subject.kind != "loss" or subject.is_function:
        return subject.instance()
    try:
        return subject.make(dtype="float64")
    except Exception:
        # A constructor that takes no dtype; what it then computes in is seen by the differences.
        return subject.instance()


def _double(x: Any) -> Any:
    array = np.asarray(x)
    return array.astype("float64") if array.dtype.kind == "f" else array


class Along:
    """A part as a function of a few numbers: of every entry of its inputs where these are few, else along random directions.

    Many outputs become a few random sums of them. A wrong entry shows in almost every direction; what a comparison of all
    would say more precisely it would say too late.

    Args:
        subject: What is checked.
        made: The part, in double precision.
        args: What it is called with.
        rng: Of the directions.
        most: How many directions there are at most, all random; None, as above.

    Attributes:
        starts: The arguments at which the function is the part at its inputs: one for the inputs, one for the weights.
        names: What each argument stands for.
    """

    def __init__(self, subject: Any, made: Any, args: tuple[Any, ...], rng: np.random.Generator, most: int | None = None) -> None:
        self._subject, self._made, self._args = subject, made, args
        self._places = [
            i
            for i, x in enumerate(calls.flat(args))
            if isinstance(x, np.ndarray) and x.dtype.kind == "f" and not (subject.kind == "loss" and i == 0)
        ]
        flat = [calls.flat(args)[i] for i in self._places]
        weights = list(made.trainable_variables) if subject.kind in ("layer", "model") else []
        self._weights = [v for v in weights if calls.is_floating(v)]
        few = most or (3 if subject.kind == "model" else None)
        self._directions = [_directions([x.shape for x in flat], rng, most=few)] if flat else []
        self.names = ["inputs"] * bool(flat)
        if self._weights:
            self._directions.append(_directions([tuple(v.shape) for v in self._weights], rng, most=few or WEIGHT_DIRECTIONS))
            self.names.append("weights")
        self.starts = [np.zeros(len(each)) for each in self._directions]
        self._mixing: list[np.ndarray] = []
        self._rng = rng
        self.__name__ = subject.name

    def __call__(self, *numbers: Any) -> Any:
        given = dict(zip(self.names, zip(numbers, self._directions, strict=True), strict=True))
        flat = list(calls.flat(self._args))
        filled = [ops.convert_to_tensor(x) for x in flat]
        if "inputs" in given:
            steps, directions = given["inputs"]
            for k, place in enumerate(self._places):
                filled[place] = _moved(flat[place], steps, [d[k] for d in directions])
        arguments = keras.tree.pack_sequence_as(self._args, filled)
        if "weights" not in given:
            outputs = calls.call_on_tensors(self._subject, self._made, arguments)
        else:
            steps, directions = given["weights"]
            values = [private.stored(v) for v in self._weights]
            changed = [_moved(x, steps, [d[k] for d in directions]) for k, x in enumerate(values)]
            with keras.StatelessScope(state_mapping=list(zip(self._weights, changed, strict=True))):
                outputs = calls.call_on_tensors(self._subject, self._made, arguments)
        return self._mixed([y for y in calls.flat(outputs) if ops.is_tensor(y) and calls.is_floating(y)])

    def _mixed(self, outputs: list[Any]) -> Any:
        flat = [ops.reshape(y, (-1,)) for y in outputs]
        if not flat:
            raise SubjectError("its outputs are not floating numbers")
        whole = ops.concatenate(flat) if len(flat) > 1 else flat[0]
        count = int(whole.shape[0])
        if count <= OUTPUTS:
            return whole
        if not self._mixing:
            self._mixing.append(self._rng.normal(size=(count, SUMS)))
        return ops.matmul(ops.reshape(whole, (1, count)), ops.convert_to_tensor(self._mixing[0], dtype=whole.dtype))[0]


def _directions(shapes: list[tuple[int, ...]], rng: np.random.Generator, most: int | None = None) -> list[list[np.ndarray]]:
    """Directions in the arrays of these shapes: along each entry where they are few, else random ones."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    if most is None and sum(sizes) <= ENTRIES:
        rows = np.eye(sum(sizes))
    else:
        rows = rng.normal(size=(min(most or DIRECTIONS, sum(sizes)), sum(sizes)))
    cuts = np.cumsum(sizes)[:-1]
    return [[part.reshape(shape) for part, shape in zip(np.split(row, cuts), shapes, strict=True)] for row in rows]


def _moved(x: Any, steps: Any, directions: list[np.ndarray]) -> Any:
    x = ops.convert_to_tensor(x)
    stacked = ops.convert_to_tensor(np.stack(directions, axis=-1).reshape(-1, len(directions)), dtype=x.dtype)
    moved = ops.matmul(stacked, ops.reshape(ops.cast(steps, x.dtype), (-1, 1)))
    return x + ops.reshape(moved, tuple(x.shape))
