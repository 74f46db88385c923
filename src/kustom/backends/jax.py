"""JAX: what it does otherwise than the other backends.

It promotes integers beside floats, and refuses booleans in subtraction. A value is unknown while a function is traced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.core
import jax.monitoring
import numpy as np
from jax.extend import core as extend
from keras import ops

# Whether a layer's metrics have their values while Keras's compiled step calls it.
HANDS_METRICS_TO_CALL = False

_REFUSALS = ("does not accept dtype bool", "numpy boolean subtract")


def refuses_mixed_dtypes(error: Exception) -> bool:
    """Whether `error` is JAX's refusal to compute with booleans as numbers."""
    text = str(error).lower()
    return isinstance(error, TypeError) and any(refusal in text for refusal in _REFUSALS)


_UNFIT_SHAPES = (
    "incompatible shapes",  # "Incompatible shapes for broadcasting: shapes=[(5,), (5, 3)]"
    "incompatible types for broadcasting",
    "same shape",
    "shapes that differ",  # concatenation
    "different numbers of dimensions",  # stacking
    "does not match previous terms",  # einsum
)


def refuses_shapes(error: Exception) -> bool:
    """Whether `error` is JAX's refusal to compute with two shapes that do not fit each other."""
    text = str(error).lower()
    return isinstance(error, ValueError | TypeError) and any(refusal in text for refusal in _UNFIT_SHAPES)


def is_concrete(x: Any) -> bool:
    """Whether the value of the tensor `x` is known now (it is not while a function is traced)."""
    return not isinstance(x, jax.core.Tracer)


def in_trace() -> bool:
    """Whether what is computed now is traced."""
    with extend.take_current_trace() as trace:
        return type(trace).__name__ != "EvalTrace"


def double_precision() -> contextlib.AbstractContextManager[Any]:
    """A scope in which float64 is float64: JAX has a switch for it."""
    return jax.enable_x64(True)


def execution(jit_compile: bool) -> str:
    """The execution that Keras's `jit_compile` stands for."""
    return "auto" if jit_compile else "eager"


def set_mode(model: Any, *, training: bool) -> None:
    """Tell the modules of a model whether it is trained; nothing is to be done here."""


# What its operations raise where what they are given does not fit, beside Python's own errors.
ERRORS: tuple[type[Exception], ...] = ()


@contextlib.contextmanager
def random_kept() -> Iterator[None]:
    """A scope after which the generators that JAX keeps for all are as they were: there are none."""
    yield


def random_state() -> bytes | None:
    """The state of a generator that JAX keeps for all threads: there is none."""
    return None


def text(array: Any) -> Any:
    """An array of text as a model takes it: there are no tensors of text."""
    return array.astype(str)


def device_kind() -> str:
    """What Keras computes on."""
    return jax.default_backend()


def own(array: Any) -> Any:
    """An array of a file as one that a tensor may keep: its values are copied, or never written to."""
    return array


def integers(dtype: np.dtype) -> np.dtype | None:
    """The integers of a tensor that is made of an array of integers: by default of at most 32 bits, and the rest is cut off."""
    return dtype if dtype.itemsize < 8 or jax.config.read("jax_enable_x64") else np.dtype(f"{dtype.kind}4")


def shared(array: Any) -> Any:
    """An array as a tensor that is only read: a copy, here."""
    return ops.convert_to_tensor(array)


def seen(value: Any) -> Any:
    """A variable's value as an array that is only read: on a CPU the value's own memory, of which a copy takes long."""
    return np.asarray(value)


# Every program has pages of its own, and the system allows a process so many: one that compiles on and on ends without a word.
_PROGRAMS = 2000
_compiled: list[int] = []


def free_programs() -> None:
    """Have JAX forget what it has compiled since this was first asked, where that is much: it is kept for as long as it runs."""
    if not _compiled:
        _compiled.append(0)
        jax.monitoring.register_event_duration_secs_listener(_count)
    elif _compiled[0] > _PROGRAMS:
        jax.clear_caches()
        _compiled[0] = 0


def _count(event: str, duration_secs: float, **kwargs: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled[0] += 1
