"""A function that reads and writes Keras variables, recorded on torch as one flat list of operations.

`recorder` writes down what the function does (as a `recording`), with `branches` for Keras's own branches and draws; `graph`
and `layout` make that fewer operations, `lowering` something that runs; `program` stands in front of them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import torch

from kustom.backends.lifting.state import bits_of
from kustom.backends.lifting.torch.program import Program

__all__ = ["COMPILERS", "LIGHT", "LOOPS_HEAVY", "LOOP_IS_A_CHOICE", "TRACES_CHEAPLY", "Program", "decided", "number"]

# What can be asked of `Program` beside its default.
COMPILERS = ("inductor",)
# The compiler for small functions that run now and then, and whether to trace those pays.
LIGHT = None
TRACES_CHEAPLY = False
# Whether a loop over convolutions is as fast as a call for each.
LOOPS_HEAVY = True
# Whether a call for each step can be faster than a loop over many where neither is heavy.
LOOP_IS_A_CHOICE = False


def number(value: float | complex) -> Any:
    """A Python number as an argument that is no constant of the trace: torch takes a tensor without axes for one."""
    if isinstance(value, int):
        bits_of(value)
    kinds: dict[type, Any] = {int: torch.int64, float: getattr(torch, keras.config.floatx())}
    return torch.tensor(value, dtype=kinds.get(type(value)))


def decided() -> contextlib.AbstractContextManager[None]:
    """A scope for a step that runs as plain Python; nothing is to be done here."""
    return contextlib.nullcontext()
