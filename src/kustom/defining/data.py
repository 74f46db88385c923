"""Data: what a part's function is handed, and what must hold of shapes before and after.

A function gets backend tensors, never Variables (JAX cannot trace them through `ops.where`), arrays or lists. Floating
data has the part's dtype; integers and booleans keep their own, so that a label is exact. Targets are aligned with
predictions as Keras's own losses align them; entries that are masked or weigh nothing are replaced by an entry that
counts, before the function sees them, so that no NaN in them reaches a value or a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private
from kustom.errors import DtypeMixError, KustomError, ReturnError, ShapeError

__all__ = [
    "Pair",
    "align",
    "call",
    "expand",
    "kind_of",
    "pair",
    "pass_mask",
    "refuse_broadcast",
    "refused_for_shapes",
    "returned",
    "setting_tensors",
    "shape_fits",
    "tensor",
    "weigh",
]

Shape = tuple[int | None, ...]


def tensor(x: Any, dtype: str | None = None) -> Any:
    """`x` as a backend tensor.

    Args:
        x: A tensor, Variable, array, number or nested list of numbers; a symbolic tensor passes as it is.
        dtype: What floating data is cast to. None: a tensor keeps its own, all else gets Keras's `floatx`.
    """
    if isinstance(x, keras.Variable):
        x = x.value
    if not (ops.is_tensor(x) or isinstance(x, keras.KerasTensor)):
        array = np.asarray(x)
        floating = array.dtype.kind == "f" or not array.size
        x = ops.convert_to_tensor(x, dtype=(dtype or keras.config.floatx()) if floating else None)
    if dtype is not None and is_floating(x) and private.standardize_dtype(x.dtype) != dtype:
        x = ops.cast(x, dtype)
    return x


def is_floating(x: Any) -> bool:
    return private.is_float_dtype(private.standardize_dtype(x.dtype))


def kind_of(x: Any) -> str:
    """A tensor as an error message shows it."""
    return f"{private.standardize_dtype(x.dtype)}{tuple(x.shape)}"


def setting_tensors(settings: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Settings as a function gets them: arrays as tensors (floating ones in its data's dtype), all else as it is."""
    return {
        name: tensor(value, dtype) if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else value
        for name, value in settings.items()
    }


def call(function: Callable[..., Any], owner: str, data: dict[str, Any], named: dict[str, Any]) -> Any:
    """Call a part's function with `data` by position.

    Raises:
        DtypeMixError: The backend refuses to mix integers or booleans with floats.
        ShapeError: The backend refuses to combine two shapes.
    """
    try:
        return function(*data.values(), **named)
    except KustomError:
        raise
    except Exception as error:
        tensors = {name: x for name, x in data.items() if hasattr(x, "dtype")}
        if len(tensors) > 1 and current().refuses_shapes(error):
            shapes = " and ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
            raise ShapeError(
                f"{owner} was given {shapes}, and combines shapes that do not fit each other ({str(error).splitlines()[0]}). "
                f"Give it shapes that fit, or bring them together in {owner} itself, by ops.expand_dims or ops.reshape."
            ) from error
        exact = [name for name, x in tensors.items() if not is_floating(x)]
        if not exact or not current().refuses_mixed_dtypes(error):
            raise
        got = ", ".join(f"{name} is {kind_of(x)}" for name, x in tensors.items())
        raise DtypeMixError(
            f"{owner} mixes dtypes by an operator, which this backend refuses: {got}. Integers and booleans arrive as they "
            f"are; write ops.subtract(a, b) for a - b (and ops.multiply, ops.greater, ...), or first ops.cast({exact[0]}, ...)."
        ) from error


def refused_for_shapes(error: Exception) -> bool:
    """Whether `error` is the backend's refusal to combine two shapes, as it came or as `call` has said it."""
    cause = error.__cause__ if isinstance(error, ShapeError) else error
    return isinstance(cause, Exception) and current().refuses_shapes(cause)


def returned(value: Any, owner: str) -> Any:
    """What a part's function returned.

    Raises:
        ReturnError: It is nothing.
    """
    if value is None:
        raise ReturnError(f"{owner} returned None, where a tensor was expected; is a return missing?")
    return value


def align(y_true: Any, y_pred: Any, owner: str) -> tuple[Any, Any]:
    """Give `y_true` and `y_pred` the same rank where one of them lacks, or has, a last axis of length 1.

    Raises:
        ShapeError: Their numbers of samples differ, or `y_true` has more axes.
    """
    true, pred = tuple(y_true.shape), tuple(y_pred.shape)
    if len(true) == len(pred) - 1 and pred[-1] == 1:
        y_true = ops.expand_dims(y_true, -1)
    elif len(true) == len(pred) + 1 and true[-1] == 1:
        if len(pred) == 1:
            y_pred = ops.expand_dims(y_pred, -1)
        else:
            y_true = ops.squeeze(y_true, -1)
    if len(y_true.shape) > len(y_pred.shape):
        raise ShapeError(
            f"{owner} was given y_true {true} and y_pred {pred}: targets with more axes than the predictions, which would be "
            f"repeated to meet them all. Give targets of the shape {pred}, or predictions of the shape {true}."
        )
    if true and pred and None not in (true[0], pred[0]) and true[0] != pred[0]:
        raise ShapeError(
            f"{owner} was given y_true {true} and y_pred {pred}: {true[0]} samples beside {pred[0]}. Give one target a sample."
        )
    return y_true, y_pred


@dataclass
class Pair:
    """Targets and predictions as the function gets them, and the weights that their values get.

    `weights` has the shape of the values, or None. `entrywise`: there is a weight for each entry of the last axis, too,
    so that it is not averaged.
    """

    y_true: Any
    y_pred: Any
    sample_weight: Any
    mask: Any
    entrywise: bool


def pair(y_true: Any, y_pred: Any, sample_weight: Any, dtype: str, owner: str) -> Pair:
    """Make ready what a loss or metric was given.

    Raises:
        ShapeError: Shapes do not fit each other.
    """
    mask = private.get_keras_mask(y_pred)
    for name, given in (("y_true", y_true), ("y_pred", y_pred)):
        if isinstance(given, dict):
            raise ShapeError(f"{owner} takes one tensor as {name}, not a dict; give a part to each output in `compile`.")
    y_true, y_pred = align(tensor(y_true, dtype), tensor(y_pred, dtype), owner)
    if sample_weight is not None:
        sample_weight = ops.cast(tensor(sample_weight, dtype), dtype)
    if mask is not None:
        mask = ops.cast(tensor(mask), "bool")
    shape = tuple(y_pred.shape)
    weights = {"sample_weight": sample_weight, "the mask": mask}
    for name, weight in weights.items():
        if weight is not None:
            weights[name] = _fit_weight(weight, shape, name, owner)
    sample_weight, mask = weights["sample_weight"], weights["the mask"]
    keep = None if sample_weight is None else ops.not_equal(sample_weight, 0)
    if mask is not None:
        keep = mask if keep is None else ops.logical_and(expand(keep, len(mask.shape)), expand(mask, len(keep.shape)))
    entrywise = any(w is not None and len(w.shape) == len(shape) and len(shape) > 1 for w in (sample_weight, mask))
    if keep is not None:
        y_true, y_pred = _replace(y_true, keep), _replace(y_pred, keep)
    return Pair(y_true, y_pred, sample_weight, mask, entrywise)


def shape_fits(got: Any, expected: tuple[Any, ...]) -> bool:
    """Whether a shape is the expected one; a length that is not known fits any."""
    got = tuple(got)
    return len(got) == len(expected) and all(None in (g, e) or g == e for g, e in zip(got, expected, strict=True))


def pass_mask(inputs: Any, outputs: Any, given: Any = None) -> None:
    """Pass a mask on to the outputs that keep its axes: the one given to the call, or that of the inputs."""
    masks = [*keras.tree.flatten(given), *map(private.get_keras_mask, keras.tree.flatten(inputs))]
    mask = next((mask for mask in masks if mask is not None), None)
    if mask is None:
        return
    for output in keras.tree.flatten(outputs):
        fits = shape_fits(tuple(output.shape)[: len(mask.shape)], tuple(mask.shape))
        if fits and private.get_keras_mask(output) is None:
            private.set_keras_mask(output, mask)


def weigh(values: Any, weights: Pair, owner: str) -> Any:
    """The weights of `values`, in their shape; what is masked weighs 0. None where nothing has a weight.

    Raises:
        ShapeError: The values do not begin with the axes that have weights.
    """
    result = None
    for weight in (weights.sample_weight, weights.mask):
        if weight is None:
            continue
        if not shape_fits(weight.shape, tuple(values.shape)[: len(weight.shape)]):
            raise ShapeError(
                f"{owner} made values of the shape {tuple(values.shape)}, which weights of the shape {tuple(weight.shape)} "
                "cannot pick from. Return one value for each entry that has a weight, and do not sum over them."
            )
        weight = ops.broadcast_to(expand(ops.cast(weight, values.dtype), len(values.shape)), ops.shape(values))
        result = weight if result is None else ops.multiply(result, weight)
    return result


def expand(x: Any, rank: int) -> Any:
    """`x` with axes of length 1 behind, up to `rank`."""
    missing = rank - len(x.shape)
    return x if missing <= 0 else ops.reshape(x, (*ops.shape(x), *[1] * missing))


def _fit_weight(weight: Any, shape: Shape, name: str, owner: str) -> Any:
    """A weight a sample, a time step or an entry, its axes the first axes of `shape`."""
    got = tuple(weight.shape)
    rank, entries = len(got), len(shape)
    # A last axis of length 1 is only there for the form, unless the predictions have it, too, and more follows.
    for_form = rank > 1 and got[-1] == 1 and (rank in (entries, entries + 1) or (rank < entries and shape[rank - 1] != 1))
    if for_form:
        weight = ops.squeeze(weight, -1)
    if not shape_fits(weight.shape, shape[: len(weight.shape)]) or len(weight.shape) > len(shape):
        raise ShapeError(
            f"{owner}: {name} has the shape {got} beside predictions of the shape {shape}. Give one weight a sample "
            f"{shape[:1]}, a time step {shape[:-1]} or an entry {shape}."
        )
    return weight


def _replace(x: Any, keep: Any) -> Any:
    """`x` with its first kept entry in the place of each that is not kept.

    An entry that counts is inside the function's domain, as zeros need not be. No gradient flows into the copies, and
    none into what they replace, so that the gradient there is exactly 0.
    """
    rank = len(keep.shape)
    if len(x.shape) < rank:
        # One target for several predictions: it is kept where any of them is.
        keep = ops.any(keep, axis=tuple(range(len(x.shape), rank)))
        rank = len(x.shape)
    if 0 in tuple(x.shape)[:rank]:
        return x
    shape = ops.shape(x)
    rows, kept = ops.reshape(x, (-1, *shape[rank:])), ops.reshape(keep, (-1,))
    if None in tuple(x.shape)[:rank]:
        # There may be no row at all, of which TensorFlow finds no first one.
        rows = ops.concatenate([rows, ops.ones((1, *shape[rank:]), dtype=rows.dtype)])
        kept = ops.concatenate([kept, ops.ones((1,), dtype="bool")])
    first = ops.argmax(ops.cast(kept, "int32"))
    row = ops.take(ops.stop_gradient(rows) if is_floating(x) else rows, first, axis=0)
    # Where nothing counts there is no such entry.
    row = ops.where(ops.any(keep), row, ops.ones_like(row))
    return ops.where(expand(keep, len(x.shape)), x, row)


def refuse_broadcast(function: Callable[..., Any], y_true: Any, y_pred: Any, owner: str) -> None:
    """Refuse what looks right for one number of samples alone: targets that meet the wrong axis, a mean over samples.

    Targets `(n,)` beside predictions `(n, k)` are broadcast to `(n, n)` in silence where `n` equals `k`, or is not known;
    but labels of classes have those shapes, too. So the function itself is asked, symbolically, what it does with
    another number of samples.

    Raises:
        ShapeError: It combines targets with the wrong axis, or its values are not of the samples.
    """
    true, pred = tuple(y_true.shape), tuple(y_pred.shape)
    if 0 < len(true) < len(pred) - 1:
        raise ShapeError(f"{owner} was given y_true {true} and y_pred {pred}; give targets of the shape {pred} or {pred[:-1]}.")
    if len(pred) < 2 or not all(isinstance(size, int) for size in pred[1:]):
        return
    if pred[0] is not None and (pred[0] not in pred[1:] or pred[0] == 1):
        return
    other = math.prod(pred[1:]) + 1
    arguments = [
        keras.KerasTensor((other, *shape[1:]), dtype=private.standardize_dtype(x.dtype)) if shape else x
        for shape, x in ((true, y_true), (pred, y_pred))
    ]
    try:
        made = private.compute_output_spec(function, *arguments)
    except Exception as error:
        if len(true) >= len(pred) or not refused_for_shapes(error):
            # Whatever it is, the call itself will say it of the data, if it is true of these.
            return
        raise ShapeError(
            f"{owner} was given y_true {true} and y_pred {pred}, and combines them by broadcasting: each target meets every "
            f"prediction. Give targets of the shape {pred}, or class labels to a loss that takes them."
        ) from error
    for values in keras.tree.flatten(made):
        shape = tuple(getattr(values, "shape", (other,)))
        if not shape or shape[0] not in (other, None):
            raise ShapeError(
                f"{owner} returned the shape {shape} for {other} samples: expected one value a sample or an entry of y_pred "
                f"{pred}. Do not average over samples; Keras does that, with their weights."
            )
