"""PyTorch: what it does otherwise than the other backends.

It promotes integers beside floats, and refuses booleans in subtraction. A value is unknown on the device `meta`, which
Keras uses to infer shapes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from keras import ops

# Whether a layer's metrics have their values while Keras's compiled step calls it.
HANDS_METRICS_TO_CALL = True

_REFUSALS = (
    "with a bool tensor",  # "Subtraction, the `-` operator, with a bool tensor is not supported."
    "with two bool tensors",
    "not implemented for 'bool'",
    "negation, the `-` operator, on a bool tensor",
)


def refuses_mixed_dtypes(error: Exception) -> bool:
    """Whether `error` is torch's refusal to compute with booleans as numbers."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(refusal in text for refusal in _REFUSALS)


_UNFIT_SHAPES = (
    "must match",  # "The size of tensor a (5) must match the size of tensor b (3) at non-singleton dimension 1"
    "same shape",
    "cannot be multiplied",
    "to be equal size",  # stacking
    "does not broadcast",  # einsum
)


def refuses_shapes(error: Exception) -> bool:
    """Whether `error` is torch's refusal to compute with two shapes that do not fit each other."""
    text = str(error).lower()
    return isinstance(error, RuntimeError | ValueError) and any(refusal in text for refusal in _UNFIT_SHAPES)


def is_concrete(x: Any) -> bool:
    """Whether the value of the tensor `x` is known now (it is not on the device `meta`)."""
    return not isinstance(x, torch.Tensor) or x.device.type != "meta"


def in_trace() -> bool:
    """Whether what is computed now is traced."""
    return torch.compiler.is_compiling()


def double_precision() -> contextlib.AbstractContextManager[Any]:
    """A scope in which float64 is float64: always, here."""
    return contextlib.nullcontext()


def execution(jit_compile: bool) -> str:
    """The execution that Keras's `jit_compile` stands for."""
    return "auto+inductor" if jit_compile else "auto"


def set_mode(model: Any, *, training: bool) -> None:
    """Tell the modules of a model whether it is trained: those of torch itself are told by no argument."""
    model.train(training)


# What its operations raise where what they are given does not fit, beside Python's own errors.
ERRORS: tuple[type[Exception], ...] = ()


@contextlib.contextmanager
def random_kept() -> Iterator[None]:
    """A scope after which the generators that torch keeps for all are as they were."""
    # CUDA is not started for this.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()):
        yield


def random_state() -> bytes | None:
    """The state of the generator that torch keeps for all threads."""
    return torch.get_rng_state().numpy().tobytes()


def text(array: Any) -> Any:
    """An array of text as a model takes it: there are no tensors of text."""
    return array.astype(str)


def device_kind() -> str:
    """What Keras computes on."""
    return "gpu" if torch.cuda.is_available() else "cpu"


def own(array: Any) -> Any:
    """An array of a file as one that a tensor may keep, and write into: a tensor is made of an array without a copy."""
    return array.copy()


def integers(dtype: np.dtype) -> np.dtype | None:
    """The integers of a tensor that is made of an array of integers; None where Keras makes none of it."""
    return None if dtype == np.uint64 else dtype


def shared(array: Any) -> Any:
    """An array as a tensor that is only read: on a CPU the array's own memory, since data may be most of what there is."""
    if array.flags.writeable and array.flags.c_contiguous:
        like, tensor = ops.convert_to_tensor(array[:0]), torch.from_numpy(array)
        if like.device.type == "cpu" and like.dtype == tensor.dtype:
            return tensor
    return ops.convert_to_tensor(array)


def seen(value: Any) -> Any:
    """A variable's value as an array that is only read: on a CPU the value's own memory, of which a copy takes long."""
    return value.detach().cpu().numpy()


def free_programs() -> None:
    """JAX's programs fill a process's memory; those of PyTorch end with the functions that they were compiled for."""
