"""TensorFlow: what it does otherwise than the other backends.

It refuses to mix dtypes in an operator (`int32 - float32`), eagerly with an `InvalidArgumentError` and while tracing
with a `TypeError` or `ValueError`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

# Whether a layer's metrics have their values while Keras's compiled step calls it.
HANDS_METRICS_TO_CALL = True

_REFUSALS = (
    "does not match type",  # tracing: "Input 'y' of 'Sub' Op has type float32 that does not match type int32"
    "expected to be a",  # eagerly: "cannot compute Sub as input #1(zero-based) was expected to be a int32 tensor"
    "passed to parameter",  # "Expected int32 passed to parameter 'y' of op 'Sub', got 1.0 of type 'float' instead"
    "list of allowed values",  # booleans in arithmetic
    "could not find device for node",  # booleans in arithmetic, eagerly
    "tensor conversion requested dtype",
    "cannot convert",  # a float constant beside an integer tensor: "Cannot convert 0.5 to EagerTensor of dtype int32"
)


def refuses_mixed_dtypes(error: Exception) -> bool:
    """Whether `error` is TensorFlow's refusal to compute with two dtypes, or with booleans as numbers."""
    if not isinstance(error, TypeError | ValueError | tf.errors.InvalidArgumentError | tf.errors.NotFoundError):
        return False
    text = str(error).lower()
    return any(refusal in text for refusal in _REFUSALS)


_UNFIT_SHAPES = (
    "must be equal",  # tracing: "Dimensions must be equal, but are 5 and 3 for '{{node sub}} = Sub[...]"
    "incompatible shapes",  # eagerly: "Incompatible shapes: [5] vs. [5,3]"
    "are incompatible",
    "broadcastable",
    "same rank",
    "same shape",
)


def refuses_shapes(error: Exception) -> bool:
    """Whether `error` is TensorFlow's refusal to compute with two shapes that do not fit each other."""
    text = str(error).lower()
    return isinstance(error, ValueError | tf.errors.InvalidArgumentError) and any(refusal in text for refusal in _UNFIT_SHAPES)


def is_concrete(x: Any) -> bool:
    """Whether the value of the tensor `x` is known now (it is not while a `tf.function` is traced)."""
    return not tf.is_symbolic_tensor(x)


def in_trace() -> bool:
    """Whether what is computed now is traced."""
    return tf.inside_function()


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """A scope in which numbers without a dtype are float64: TensorFlow mixes them with no others."""
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before)


def execution(jit_compile: bool) -> str:
    """The execution that Keras's `jit_compile` stands for."""
    return "auto+xla" if jit_compile else "auto+graph"


def set_mode(model: Any, *, training: bool) -> None:
    """Tell the modules of a model whether it is trained; nothing is to be done here."""


# What its operations raise where what they are given does not fit, beside Python's own errors.
ERRORS: tuple[type[Exception], ...] = (tf.errors.OpError,)


@contextlib.contextmanager
def random_kept() -> Iterator[None]:
    """A scope after which TensorFlow's generators are as they were: nothing but its unseeded operations draws from them."""
    yield


def random_state() -> bytes | None:
    """The state of a generator that TensorFlow keeps for all threads: what Keras computes draws from none."""
    return None


def text(array: Any) -> Any:
    """An array of text as a model takes it."""
    return tf.constant(array.astype(str))


def device_kind() -> str:
    """What Keras computes on."""
    return "gpu" if tf.config.list_logical_devices("GPU") else "cpu"


def own(array: Any) -> Any:
    """An array of a file as one that a tensor may keep: its values are copied, or never written to."""
    return array


def integers(dtype: np.dtype) -> np.dtype | None:
    """The integers of a tensor that is made of an array of integers: the same, here."""
    return dtype


def shared(array: Any) -> Any:
    """An array as a tensor that is only read: a copy, here."""
    return ops.convert_to_tensor(array)


def seen(value: Any) -> Any:
    """A variable's value as an array that is only read: on a CPU the value's own memory, of which a copy takes long."""
    return np.asarray(tf.convert_to_tensor(value))


def free_programs() -> None:
    """JAX's programs fill a process's memory; those of TensorFlow end with the functions that they were compiled for."""
