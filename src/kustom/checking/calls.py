"""How each kind of part is called, with arrays in and arrays out, so that a check need not know.

What is compared is what a user sees: a loss's values before they are averaged, a metric's result, a layer's outputs.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import keras as private
from kustom.checking import stepping


def flat(x: Any) -> list[Any]:
    """The leaves of a structure."""
    return list(keras.tree.flatten(x))


def mapped(function: Callable[[Any], Any], x: Any) -> Any:
    """A structure with `function` applied to its leaves."""
    return keras.tree.map_structure(function, x)


def tensors(x: Any, dtype: str | None = None) -> Any:
    """Arrays as tensors, floating ones in `dtype` where that is given."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, str | type(None)) or is_object(leaf):
            return leaf
        array = np.asarray(leaf)
        named = dtype if dtype is not None and array.dtype.kind == "f" else None
        return ops.convert_to_tensor(array, dtype=named)

    return keras.tree.map_structure(one, x)


def is_object(x: Any) -> bool:
    """Whether an argument is a part itself, such as the model and the optimizer of a training step."""
    return callable(x) or (hasattr(x, "get_config") and not isinstance(x, keras.Variable))


def arrays(x: Any) -> Any:
    """Tensors and variables as arrays; low precisions as float32, which holds them exactly."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, keras.Variable) or ops.is_tensor(leaf):
            name = private.standardize_dtype(leaf.dtype)
            leaf = ops.cast(leaf, "float32") if name == "bfloat16" else leaf
            return np.array(ops.convert_to_numpy(leaf))
        return np.asarray(leaf)

    return keras.tree.map_structure(one, x)


def floats(x: Any) -> list[np.ndarray]:
    """The floating arrays of a structure, in float64; numbers of other kinds are left out."""
    flat = [np.asarray(leaf) for leaf in keras.tree.flatten(arrays(x))]
    return [leaf.astype("float64") for leaf in flat if leaf.dtype.kind in "fV"]


def call(subject: Any, instance: Any, *args: Any, **kwargs: Any) -> Any:
    """The part called as Keras calls its kind, tensors out."""
    kind = subject.kind
    if kind in ("layer", "model"):
        return instance(*tensors(args), **{**training_of(subject), **kwargs})
    if kind == "loss":
        return _values(instance, *tensors(args))
    if kind == "metric":
        return _result(instance, *tensors(args), **kwargs)
    if kind == "initializer":
        return instance(*args, **kwargs)
    if kind == "optimizer":
        return stepping.trained_by(instance, *args)
    return instance(*tensors(args), **kwargs)


def call_on_tensors(subject: Any, instance: Any, args: Any, **kwargs: Any) -> Any:
    """As `call`, with tensors as they are: those that a tape watches."""
    if subject.kind in ("layer", "model"):
        return instance(*args, **{**training_of(subject), **(kwargs if _takes_training(instance) else {})})
    if subject.kind == "loss":
        return _values(instance, *args)
    return instance(*args)


def _takes_training(layer: Any) -> bool:
    return private.takes_training(layer) or isinstance(layer, keras.Model)


def training_of(subject: Any) -> dict[str, Any]:
    """The keyword with which a part must be called that works in training alone."""
    return {"training": True} if subject.tagged("needs_training") else {}


def _values(loss: Any, y_true: Any, y_pred: Any) -> Any:
    return loss.call(y_true, y_pred) if isinstance(loss, keras.losses.Loss) else loss(y_true, y_pred)


def _result(metric: Any, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
    if isinstance(metric, types.FunctionType):
        return ops.mean(metric(y_true, y_pred))
    weight = {} if sample_weight is None else {"sample_weight": ops.convert_to_tensor(sample_weight)}
    with left_as_it_was(metric):
        metric.reset_state()
        update(metric, y_true, y_pred, **weight)
        # On torch a variable is written in place, and so is a result that is its value.
        return mapped(lambda x: ops.copy(x) if isinstance(x, keras.Variable) or ops.is_tensor(x) else x, metric.result())


@contextlib.contextmanager
def left_as_it_was(metric: Any) -> Iterator[None]:
    """A metric that does not reset all of its state would else give to one check what another has put into it."""
    held = [(v, arrays(v)) for v in metric.variables]
    own = {name: value for name, value in vars(metric).items() if not private.is_internal(metric, name)}
    contents = {name: copy.copy(value) for name, value in own.items() if isinstance(value, list | dict)}
    try:
        yield
    finally:
        for variable, value in held:
            variable.assign(value)
        for name, value in own.items():
            if name in contents:
                value.clear()
                value.extend(contents[name]) if isinstance(value, list) else value.update(contents[name])
            if isinstance(value, int | float | str | list | dict | None) and getattr(metric, name, None) is not value:
                setattr(metric, name, value)


def update(metric: Any, y_true: Any, y_pred: Any, **weight: Any) -> None:
    """Update a metric as Keras does; one that takes values alone (a mean) is given the predictions."""
    if takes_values(metric):
        metric.update_state(y_pred, **weight)
    else:
        metric.update_state(y_true, y_pred, **weight)


def takes_values(metric: Any) -> bool:
    """Whether a metric is updated by one tensor of values and not by targets and predictions."""
    names = [
        p.name
        for p in inspect.signature(metric.update_state).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "sample_weight"
    ]
    return len(names) == 1


def value_of(subject: Any, *args: Any) -> np.ndarray:
    """What a loss or metric gives, as one flat float64 array."""
    made = call(subject, subject.instance(), *args)
    return np.concatenate([np.asarray(x, "float64").ravel() for x in keras.tree.flatten(arrays(made))] or [np.zeros(0)])


def outputs_of(subject: Any, instance: Any, *args: Any, **kwargs: Any) -> list[np.ndarray]:
    """What a part gives, as arrays."""
    return [np.asarray(x) for x in keras.tree.flatten(arrays(call(subject, instance, *args, **kwargs)))]


def cloned_weights(source: Any, target: Any) -> bool:
    """Give `target` the variables of `source`; False where they are not of the same shapes."""
    ours, theirs = list(source.variables), list(target.variables)
    if [v.shape for v in ours] != [v.shape for v in theirs]:
        return False
    for mine, other in zip(ours, theirs, strict=True):
        other.assign(mine)
    return True


def moved(layer: Any, rng: np.random.Generator) -> None:
    """Change a layer's floating weights as training would; what is positive stays so."""
    for variable in layer.variables:
        if is_floating(variable):
            value = np.asarray(ops.convert_to_numpy(ops.cast(variable, "float32")))
            step = rng.uniform(0.05, 0.25, value.shape)
            variable.assign((value * (1 + step) + 0.1 * step).astype("float32"))


def is_floating(variable: Any) -> bool:
    """Whether a variable or tensor is of a floating dtype."""
    return private.is_float_dtype(private.standardize_dtype(variable.dtype))


def float_variables(layer: Any) -> list[Any]:
    """The floating variables of a layer, its state included; not those of its metrics, which a model leaves out on torch."""
    return [v for v in layer.weights if is_floating(v)]


def float_weights(layer: Any) -> list[np.ndarray]:
    """The values of `float_variables`."""
    return [np.asarray(arrays(v)) for v in float_variables(layer)]


def equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    """Whether the arrays are the same in each entry, NaN for NaN."""
    return all(x.shape == y.shape and np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in zip(a, b, strict=True))


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far each entry is from the other's; 0 for NaN and NaN, and for one infinity twice."""
    a, b = a.astype("float64"), b.astype("float64")
    with np.errstate(invalid="ignore"):
        return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))


def worst(a: Any, b: Any) -> tuple[float, float, float]:
    """Where two structures of arrays differ most, in units of the last place that float32 could keep; and both numbers.

    The scale is that of the array, since sums lose what cancels; it is not the array's size that counts.
    """
    found = (0.0, 0.0, 0.0)
    for x, y in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        if x.shape != y.shape:
            return float("inf"), float(x.size), float(y.size)
        if not x.size:
            continue
        if x.dtype.kind not in "fiub" or y.dtype.kind not in "fiub":
            if not np.array_equal(x, y):
                return float("inf"), 0.0, 0.0
            continue
        x, y = x.astype("float64"), y.astype("float64")
        scale = max(float(np.max(np.abs(x[np.isfinite(x)]), initial=0.0)), 1e-6)
        units = apart(x, y) / (scale * 2.0**-23)
        units = np.where(np.isnan(units), np.inf, units)
        at = int(np.argmax(units))
        if units.flat[at] > found[0]:
            found = (float(units.flat[at]), float(x.flat[at]), float(y.flat[at]))
    return found


def same(a: Any, b: Any, units: float = 64.0) -> bool:
    """Whether two structures of arrays are equal as far as float32 can tell after some operations in another order."""
    flat_a, flat_b = keras.tree.flatten(a), keras.tree.flatten(b)
    return len(flat_a) == len(flat_b) and worst(a, b)[0] <= units


def shape_of(x: Any, batch: int | None) -> Any:
    """The shape of an array, or of each in a structure, for a batch of that size."""
    return mapped(lambda leaf: (batch, *leaf.shape[1:]) if leaf.ndim else (), x)


def shapes_in(said: Any) -> list[tuple[Any, ...]]:
    """The shapes in what `compute_output_shape` returned, in their order."""
    if isinstance(said, tuple | list) and all(size is None or isinstance(size, int | np.integer) for size in said):
        return [tuple(said)]
    if not isinstance(said, dict | tuple | list):
        # Keras makes a tuple of what else it is given, such as TensorFlow's own shape.
        return [tuple(said)] if isinstance(said, Iterable) else []
    values = said.values() if isinstance(said, dict) else said
    return [shape for each in values for shape in shapes_in(each)]


def fits(symbolic: tuple[Any, ...], real: tuple[int, ...]) -> bool:
    """Whether a shape is the one that was said, of which some sizes may be unknown."""
    return len(symbolic) == len(real) and all(s is None or s == r for s, r in zip(symbolic, real, strict=True))
