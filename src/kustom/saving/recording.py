"""What a model does, recorded with it: a small input and its output, and values of its losses and metrics.

A setting that is lost seldom makes a file unreadable; it makes another model of it. So `load` computes again what stands
here and holds it against it. Nothing changes while it is recorded: variables are read in a stateless scope, which keeps
what is assigned to them, and losses and metrics are copies. It is computed twice, with other seeds and other draws;
an output that differs then is random, and says so. A recurrent layer that is stateful starts anew, as it does in a loaded
model: Keras keeps its state in variables that are in no file.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np

from kustom.backends import current
from kustom.backends import keras as private
from kustom.errors import RecordingError
from kustom.saving import arrays, domains

__all__ = ["as_array", "compare", "input_of", "inputs_from", "outputs", "record_outputs", "tolerance", "values"]

_ROWS = 4
_PYTHON = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
# What a made-up input may be answered with by code that is not ours: whatever it checks, or fails at.
_REFUSALS: tuple[type[Exception], ...] = (*_PYTHON, *current().ERRORS)
_TOLERANCES = {"float64": 1e-9, "float32": 2e-5, "bfloat16": 5e-2, "float16": 5e-3}


def input_of(model: Any, example: Any) -> tuple[Any, str | None]:
    """A small input for a model, as JSON, or None and why there is none.

    Args:
        model: The model.
        example: An input that it takes, of which the first rows are kept; or None.

    Raises:
        RecordingError: The example is not what the model takes, or one row of it is too large.
    """
    if example is not None:
        entry = arrays.structured(example, lambda leaf: arrays.encoded(_first_rows(leaf)))
        try:
            outputs(model, inputs_from(entry))
        except _REFUSALS as error:
            raise RecordingError(
                f"the model refuses example=: {_first_line(error)} Give one batch, as model(x) takes it."
            ) from error
        return entry, None
    if not model.built:
        return None, "the model is not built"
    why = "nothing tells what it takes"
    possible = None
    for free in domains.FREE:
        rules = domains.inputs_of(model, free)
        if rules is None:
            return None, why
        entry = _of_rules(rules)
        try:
            given, _ = outputs(model, inputs_from(entry))
        except _REFUSALS as error:
            why = f"it refuses an input that was made up: {_first_line(error)}"
            continue
        if not any(_says_something(array) for _, array in given):
            why = "of an input that was made up it makes nothing, or no numbers"
            continue
        if rules == domains.inputs_of(model, free + 1) or _leaves_something(model, entry):
            return entry, None
        possible = possible or entry
    return possible, None if possible else why


def _leaves_something(model: Any, entry: Any) -> bool:
    """Whether each layer has something left of an input.

    Some backends let convolutions use up an input, and compute with memory that nobody wrote; Keras's shapes tell.
    """
    try:
        model.compute_output_spec(arrays.unstructured(entry, lambda rule: keras.KerasTensor(rule["shape"], rule["dtype"])))
    except _REFUSALS:
        return False
    return True


def _says_something(array: np.ndarray) -> bool:
    """Whether there is anything in an output; the largest of nothing is infinite, or the lowest of all numbers."""
    return array.size > 0 and (array.dtype.kind not in "fV" or bool((np.abs(array.astype("float64")) < 1e38).any()))


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def _first_rows(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf) if isinstance(leaf, str | bytes | np.ndarray) else keras.ops.convert_to_numpy(leaf)
    array = array[:_ROWS] if array.ndim else array
    if array.nbytes > arrays.LARGEST:
        array = array[:1]
    if array.nbytes > arrays.LARGEST:
        raise RecordingError(
            f"one row of example= has {array.nbytes:,} bytes; a file keeps {arrays.LARGEST:,}. Give a smaller one: fewer time "
            "steps, a smaller image."
        )
    return array


def _of_rules(rules: Any) -> Any:
    if isinstance(rules, dict) and "shape" in rules and "dtype" in rules:
        return {"leaf": rules}
    if isinstance(rules, dict):
        return {"dict": {key: _of_rules(item) for key, item in rules.items()}}
    return {"tuple" if isinstance(rules, tuple) else "list": [_of_rules(item) for item in rules]}


def inputs_from(entry: Any, model: Any = None) -> Any:
    """The input that an entry stands for, as tensors (text as an array of text).

    Args:
        entry: The entry.
        model: What it comes with a file of: the entry is held against its inputs before an array is made, since what a
            model needs to compute follows from its input, and a rule of a few bytes may stand for any size.

    Raises:
        ValueError: It stands for none, or for one that `input_of` does not give.
        KeyError: Likewise.
        TypeError: Likewise.
    """
    leaves: list[dict[str, Any]] = []
    arrays.unstructured(entry, leaves.append)
    rules = [leaf for leaf in leaves if not _is_given(leaf)]
    entries = sum(arrays.weight(rule) for rule in rules)
    if entries > arrays.MOST:
        raise ValueError(f"arrays of {entries:,} entries together, where {arrays.MOST:,} are the most")
    if model is not None:
        _refuse_shapes(leaves, rules, model)
    return arrays.unstructured(entry, _leaf)


def _is_given(leaf: dict[str, Any]) -> bool:
    return "data" in leaf or "text" in leaf


def _refuse_shapes(leaves: list[dict[str, Any]], rules: list[dict[str, Any]], model: Any) -> None:
    for leaf in leaves:
        if _is_given(leaf) and leaf["shape"] and leaf["shape"][0] > _ROWS:
            raise ValueError(f"an input of {leaf['shape'][0]:,} rows, where {_ROWS} are the most")
    free = -1
    known = domains.inputs_of(model, free) if rules else None
    if known is None:
        if any(math.prod(rule["shape"]) > arrays.LARGEST for rule in rules):
            raise ValueError(f"an array of more than {arrays.LARGEST:,} entries, and nothing tells what the model takes")
        return
    wanted: list[dict[str, Any]] = []
    arrays.unstructured(_of_rules(known), wanted.append)
    for rule, taken in zip(rules, wanted, strict=True):
        if len(rule["shape"]) != len(taken["shape"]) or not all(
            0 <= size <= max(domains.FREE) if most == free else size <= max(most, _ROWS)
            for size, most in zip(rule["shape"], taken["shape"], strict=True)
        ):
            raise ValueError(f"an array of the shape {rule['shape']}, which the model does not take")


def _leaf(leaf: dict[str, Any]) -> Any:
    array = arrays.decoded(leaf) if _is_given(leaf) else arrays.made(leaf)
    if array.dtype == object:
        return current().text(array)
    return keras.ops.convert_to_tensor(array, dtype=leaf["dtype"])


def outputs(
    model: Any, x: Any, scope: Callable[[], AbstractContextManager[Any]] | None = None, seeds: int = 0
) -> tuple[list[tuple[str, np.ndarray]], float]:
    """The leaves of what a model gives for `x`, each with its place, and the sum of its losses; nothing about it changes.

    Args:
        model: The model.
        x: Its input.
        scope: Opens the scope in which it is called; one of its own where it is None.
        seeds: Added to the states of all seed generators.
    """
    mapping = [(state, keras.ops.add(state, seeds)) for state in private.seeds_of(model)] if seeds else []
    mapping += _fresh_states(model)
    # Keras gives regularizers what the scope says, which of other weights is nothing.
    mapping += [(weight, weight.value) for weight in model.trainable_weights if scope is None and weight.regularizer is not None]
    opened = scope() if scope is not None else keras.StatelessScope(mapping, collect_losses=True)
    with warnings.catch_warnings(), opened:
        warnings.simplefilter("ignore")
        given = private.forward(model, x, training=False)
        losses = math.fsum(float(keras.ops.convert_to_numpy(loss)) for loss in model.losses)
        return [(place, keras.ops.convert_to_numpy(leaf)) for place, leaf in arrays.flatten(given)], losses


def _fresh_states(model: Any) -> list[tuple[keras.Variable, Any]]:
    """The states of the stateful recurrent layers of a model, each with what it is in a copy that was never called."""
    found = []
    for layer in private.layers_of(model):
        if isinstance(layer, keras.layers.RNN) and layer.stateful and layer.states is not None:
            states = keras.tree.flatten(layer.states)
            # What `reset_state` gives, zeros, need not be what a cell begins with.
            found += zip(states, keras.tree.flatten(layer.get_initial_state(states[0].shape[0])), strict=True)
    return found


def record_outputs(model: Any, entry: Any) -> tuple[list[dict[str, Any]], float | None]:
    """What a model gives for the input of an entry, as JSON, and the sum of its losses; None where that is random."""
    x = inputs_from(entry)
    (first, losses), (second, again) = outputs(model, x), outputs(model, x, seeds=1)
    recorded = []
    for (place, one), (_, other) in zip(first, second, strict=True):
        leaf = {"place": place, "shape": list(one.shape), "dtype": private.standardize_dtype(one.dtype)}
        if _differs(one, other, 0.0):
            leaf["random"] = True
        else:
            leaf["values"] = arrays.encoded(arrays.sample(one))
        recorded.append(leaf)
    return recorded, losses if losses == again and math.isfinite(losses) else None


def compare(
    recorded: list[dict[str, Any]], given: list[tuple[str, np.ndarray]], allowed: float, losses: tuple[float | None, float]
) -> str | None:
    """How outputs differ from those that were recorded, in a sentence; None where they do not.

    Args:
        recorded: What was recorded.
        given: What there is now.
        allowed: By how much of its size an output may differ.
        losses: The sum of the model's losses that was recorded, if it was, and that which there is now.
    """
    if [leaf["place"] for leaf in recorded] != [place for place, _ in given]:
        return f"it gives {len(given)} outputs, recorded were {len(recorded)}"
    for leaf, (place, array) in zip(recorded, given, strict=True):
        name = f"output{place}"
        if list(array.shape) != leaf["shape"]:
            return f"{name} has the shape {list(array.shape)}, recorded was {leaf['shape']}"
        if leaf.get("random"):
            continue
        before, now = arrays.decoded(leaf["values"]), arrays.sample(array)
        now = now if now.dtype.kind not in "fV" else now.astype(before.dtype)
        if _differs(before, now, allowed):
            at = _worst(before, now)
            return f"{name} was {before[at]!s} and is {now[at]!s} (of entries that differ, the one that does most)"
    if losses[0] is not None and _differs(np.array(losses[0]), np.array(losses[1]), max(allowed, 1e-5)):
        return f"the sum of its losses, of add_loss() and regularizers, was {losses[0]:g} and is {losses[1]:g}"
    return None


def _differs(one: np.ndarray, other: np.ndarray, allowed: float) -> bool:
    if one.shape != other.shape:
        return True
    if one.dtype.kind not in "fV":
        return not np.array_equal(one, other)
    one, other = one.astype("float64"), other.astype("float64")
    finite = np.abs(one[np.isfinite(one)])
    scale = min(1.0, float(finite.max())) if finite.size else 0.0
    return not np.allclose(other, one, rtol=allowed, atol=allowed * scale, equal_nan=True)


def _worst(one: np.ndarray, other: np.ndarray) -> int:
    if one.dtype.kind not in "fV":
        return int(np.argmax(one != other))
    distance = np.abs(one.astype("float64") - other.astype("float64"))
    return int(np.argmax(np.where(np.isnan(distance), np.inf, distance)))


def tolerance(model: Any, alike: bool) -> float:
    """By how much of its size an output may differ.

    Args:
        model: The model: it is computed in the coarsest dtype of its layers.
        alike: Whether it is computed on the same backend and the same kind of device.
    """
    kinds = {layer.compute_dtype for layer in private.layers_of(model)}
    allowed = max((_TOLERANCES[kind] for kind in kinds if kind in _TOLERANCES), default=_TOLERANCES["float32"])
    return allowed if alike else allowed * 10


_PROBES: dict[str, Callable[[tuple[int, ...]], tuple[Any, Any]]] = {
    # Truth values and probabilities; numbers of any size; the number of a class and a distribution.
    "unit": lambda shape: (np.floor(arrays.spread(shape, 0, 2, 1)), arrays.spread(shape, 0.05, 0.95)),
    "wide": lambda shape: (arrays.spread(shape, -5, 5, 1), arrays.spread(shape, -5, 5)),
    "classes": lambda shape: (
        np.floor(arrays.spread(shape[:-1], 0, shape[-1], 1)).astype("int32"),
        _normalized(arrays.spread(shape, 0.05, 0.95)),
    ),
}


def _normalized(array: np.ndarray) -> np.ndarray:
    return array / array.sum(axis=-1, keepdims=True)


def values(measure: Any, shape: tuple[int, ...]) -> dict[str, list[float]]:
    """What a loss or metric gives for targets and predictions that are made up, for each that it takes.

    Args:
        measure: A loss, a metric, or a function that is one; it is not changed.
        shape: The shape of predictions; where it is large, or there is none, another is taken.
    """
    found = {}
    shape = _with_few(shape)
    for name, probe in _PROBES.items():
        # A number a sample is of no class.
        if len(shape) < (2 if name == "classes" else 1):
            continue
        y_true, y_pred = (
            keras.ops.convert_to_tensor(np.asarray(a, "int32" if a.dtype == "int32" else "float32")) for a in probe(shape)
        )
        try:
            with warnings.catch_warnings(), keras.StatelessScope(collect_losses=True):
                warnings.simplefilter("ignore")
                found[name] = _measured(measure, y_true, y_pred)
        except _REFUSALS:
            continue
    return found


def _with_few(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of as many axes, in which nothing takes long to compute: the longest are halved. One of its own for none."""
    sizes = list(shape) or [4, 1]
    while math.prod(sizes) > 1 << 16:
        longest = sizes.index(max(sizes))
        sizes[longest] //= 2
    return tuple(sizes)


def _measured(measure: Any, y_true: Any, y_pred: Any) -> list[float]:
    if isinstance(measure, keras.metrics.Metric):
        measure = copy.deepcopy(measure) if private.is_of_keras(type(measure)) else private.alone(measure)
        measure.reset_state()
        measure.update_state(y_true, y_pred)
        given = measure.result()
    else:
        given = keras.ops.mean(keras.ops.cast(measure(y_true, y_pred), "float32"))
    flat = [keras.ops.convert_to_numpy(leaf).astype("float64").reshape(-1) for _, leaf in arrays.flatten(given)]
    return [float(number) for number in np.concatenate(flat)[:64]]


def as_array(numbers: list[float]) -> np.ndarray:
    """Values of a loss or metric as they are recorded: some of them may be no numbers, of which JSON has none."""
    return np.array(numbers, dtype="float64")
