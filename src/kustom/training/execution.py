"""How the steps of a loop are run: many in one compiled loop, or a call each; and what is done when a loss is not finite.

No way is the fastest everywhere. Where the graph has a convolution or a recurrence, a compiled loop on a CPU can take a
hundred times as long, so the step is called by itself there, by rule. Elsewhere the loop is taken; on a run that is long
enough to pay for one more compile the other way is tried in passing, since both give the same numbers, and the faster one
stays. What gives other numbers (XLA or not, inductor) is never chosen by timing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import current
from kustom.errors import ExecutionError, NonFiniteError
from kustom.training.arguments import Arguments
from kustom.training.function import Compiled, Entry
from kustom.training.history import History
from kustom.training.source import Block, Source

__all__ = ["ON_NONFINITE", "Pace", "Place", "Runner", "parse"]

ON_NONFINITE = ("raise", "skip", "ignore")
# Seconds between two looks at a run.
GLANCE = 0.1
# From how many seconds on that a run will take another way is tried.
LONG = 20.0
# How many times longer the next chunk may be than the last.
GROWTH = 16


def parse(execution: str) -> tuple[str, str | None]:
    """The way and the compiler of an `execution`, such as `"loop"`, `"step+xla"`, `"auto"`.

    Raises:
        ExecutionError: It is none of those that this backend has.
    """
    compilers = current("lifting").COMPILERS
    ways = ["auto", "loop", "step", "eager"]
    known = [*ways, *(f"{way}+{compiler}" for way in ways[:3] for compiler in compilers)]
    if execution not in known:
        raise ExecutionError(f"execution={execution!r} is not one of {', '.join(map(repr, known))}.")
    way, _, compiler = execution.partition("+")
    return way, compiler or None


class Pace:
    """What is known of how fast the programs of a step run, kept from one run to the next."""

    def __init__(self) -> None:
        # By program and way: seconds a step, of what has run more than the once that compiles it.
        self.seconds: dict[tuple[Any, str], float] = {}
        self.ran: set[tuple[Any, str]] = set()

    def chunk(self, program: Any, way: str) -> int:
        """How many batches a call should have."""
        seconds = self.seconds.get((program, way))
        return 1 if seconds is None else max(1, int(GLANCE / max(seconds, 1e-7)))


class Runner:
    """Runs the blocks of a source through a step.

    Args:
        step: The compiled step: it returns a dict of scalars.
        pace: How fast it is known to be.
        source: Where the blocks come from.
        way: `"auto"`, `"loop"`, `"step"` or `"eager"`.
        protect: Whether the state at the start of a chunk is kept in any case.
        on_nonfinite: `"raise"`, `"skip"` or `"ignore"`.
        is_finite: Whether what has been computed is, from the sums of what the step returned.
        measured: What the metrics say, for a message about a step that returned nothing.
    """

    def __init__(
        self,
        step: Compiled[..., Any],
        pace: Pace,
        source: Source,
        *,
        way: str,
        protect: bool,
        on_nonfinite: str,
        is_finite: Callable[[dict[str, float]], bool],
        measured: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._step = step
        self._pace = pace
        self._source = source
        self._way = way
        self._protect = protect
        self._on_nonfinite = on_nonfinite
        self._is_finite = is_finite
        self._measured_values = measured
        self.reason = "asked for" if way != "auto" else ""
        self.compile_seconds = 0.0
        self.step_seconds: dict[str, float] = {}
        self._arguments: dict[Any, Arguments] = {}
        self._moved: dict[str, tuple[Any, Any]] = {}
        self._trial = 0
        # How many batches the next block should have.
        self.most = 1

    def entry(self, block: Block) -> Entry:
        """The program for batches of a block's shape; traced where there is none."""
        data, _ = self._on_device(block)
        key = (block.size, *((tuple(a.shape[1:]), a.dtype) for a in data))
        if key not in self._arguments:
            # Rows are taken on the host: on a device that would be one more program to compile.
            example = [ops.convert_to_tensor(a) for a in self._batch(block, block.offset)]
            self._arguments[key] = self._step.arguments(self._source.unflatten(example), {})
        return self._step.entry(self._arguments[key])

    def _on_device(self, block: Block) -> tuple[list[Any], Any]:
        if block.rows is None:
            arrays = block.arrays or []
            return self._once("arrays", arrays, lambda: [ops.convert_to_tensor(a) for a in arrays]), None
        resident = self._source.resident or []
        data = self._once("resident", resident, lambda: [current().shared(a) for a in resident])
        return data, self._once("rows", block.rows, lambda: ops.convert_to_tensor(block.rows))

    def _once(self, what: str, key: Any, make: Callable[[], Any]) -> Any:
        if what not in self._moved or self._moved[what][0] is not key:
            # What was there is let go first.
            self._moved.pop(what, None)
            self._moved[what] = (key, make())
        return self._moved[what][1]

    def run(self, block: Block, at: Place, left: int | None) -> tuple[dict[str, float], int]:
        """Run a block; returns for each name the sum of its values over the batches, and how many batches count.

        Args:
            block: The batches.
            at: Where in the run the block begins.
            left: How many steps the run has from there; None where unknown.

        Raises:
            NonFiniteError: A loss is not finite, and that is not to be passed over.
        """
        entry = self.entry(block)
        if entry.is_of_one_call and block.batches > 1:
            first = replace(block, batches=1)
            others = replace(block, batches=block.batches - 1, start=block.start + 1, offset=block.offset + 1)
            values, counted = self.run(first, at, left)
            more, number = self.run(others, replace(at, step=at.step + 1), None if left is None else left - 1)
            return {name: values.get(name, 0.0) + more.get(name, 0.0) for name in values | more}, counted + number
        program = entry.program
        data, rows = self._on_device(block)
        way = self._chosen(program)
        looks = self._on_nonfinite != "ignore"
        keep = self._protect or looks or program.can_raise
        kept = program.keep() if keep else None
        began = time.perf_counter()
        try:
            values = self._chunk(entry, way, data, rows, block, keep)
        except Exception:
            if keep:
                program.restore(kept)
            raise
        entry.leave()
        program.wait()
        self._measured(program, way, (time.perf_counter() - began) / block.batches, block.batches, left)
        if not looks or self._is_finite(values):
            return values, block.batches
        program.restore(kept)
        return self._slowly(entry, data, rows, block, at)

    def _chunk(self, entry: Entry, way: str, data: Any, rows: Any, block: Block, keep: bool) -> dict[str, float]:
        program = entry.program
        if way == "loop":
            return _numbers(entry, [program.loop(data, rows, block.offset, block.batches, keep=keep)])
        steps = range(block.offset, block.offset + block.batches)
        return _numbers(entry, [program.pick(data, rows, i, keep=keep and i == block.offset) for i in steps])

    def _slowly(self, entry: Entry, data: Any, rows: Any, block: Block, at: Place) -> tuple[dict[str, float], int]:
        """Step by step through a block in which something is not finite: the same numbers, so that it is found."""
        program = entry.program
        sums: dict[str, float] = {}
        fine = 0
        for i in range(block.batches):
            kept = program.keep()
            values = _numbers(entry, [program.pick(data, rows, block.offset + i, keep=True)])
            if self._is_finite(values):
                sums = {name: value + sums.get(name, 0.0) for name, value in values.items()}
                fine += 1
                continue
            if self._on_nonfinite == "raise":
                values = values or self._measured_values()
            program.restore(kept)
            if self._on_nonfinite == "skip":
                at.history.skipped.append(at.step + i)
                continue
            number = block.offset + i
            raise NonFiniteError(
                f"the loss is not finite in step {at.step + i} (epoch {at.epoch + 1}, batch {block.start + i}): {values}. "
                "The variables are as they were before that step. error.batch is what it was given, error.rows which rows. "
                "Look for a logarithm or division at 0, or lower the learning rate; on_nonfinite='skip' leaves such steps out.",
                step=at.step + i,
                epoch=at.epoch,
                rows=None if block.rows is None else block.rows[number].copy(),
                batch=self._source.unflatten([np.array(a) for a in self._batch(block, number)]),
            )
        return sums, fine

    def _batch(self, block: Block, number: int) -> list[Any]:
        if block.rows is None:
            return [a[number] for a in block.arrays or ()]
        return [a[block.rows[number]] for a in self._source.resident or ()]

    def _chosen(self, program: Any) -> str:
        if self._way != "auto":
            return "step" if self._way == "eager" else self._way
        if program.heavy and not current("lifting").LOOPS_HEAVY:
            self.reason = "a convolution or recurrence is slow in a compiled loop here"
            return "step"
        if self._trial == _TRYING:
            return "step"
        if not self.reason:
            self.reason = "many steps a call"
        return "loop"

    def _measured(self, program: Any, way: str, seconds: float, batches: int, left: int | None) -> None:
        pace, key = self._pace, (program, way)
        if key not in pace.ran:
            # It was compiled.
            pace.ran.add(key)
            self.compile_seconds += seconds * batches
            self.most = pace.chunk(program, way)
            return
        self.step_seconds[way] = min(seconds, self.step_seconds.get(way, seconds))
        known = pace.seconds.get(key)
        # The first calls tell little; a slow one by itself may be another process's doing.
        pace.seconds[key] = seconds if known is None else min(known * 1.25, seconds)
        self.most = min(pace.chunk(program, way), batches * GROWTH)
        if known is not None:
            self.most = pace.chunk(program, way)
        if self._trial == _TRYING:
            self._trial = _TRIED
            if self.step_seconds["step"] < self.step_seconds["loop"]:
                self._way = "step"
            self.reason = "the faster of the two, tried in passing"
        elif way == "loop" and seconds * batches > GLANCE / 4 and self._is_worth_a_trial(pace.seconds[key], left):
            self._trial = _TRYING
            self.most = max(1, self.most // 4)

    def _is_worth_a_trial(self, seconds: float, left: int | None) -> bool:
        if self._way != "auto" or self._trial or not current("lifting").LOOP_IS_A_CHOICE:
            return False
        return left is not None and left * seconds > LONG

    def report(self) -> dict[str, Any]:
        """How it was run."""
        way = "eager" if self._way == "eager" else min(self.step_seconds, key=self.step_seconds.__getitem__, default=self._way)
        return {
            "way": way,
            "reason": self.reason,
            "backend": keras.backend.backend(),
            "compiler": self._step.compiler,
            "traces": self._step.traces,
            "first_calls_seconds": round(self.compile_seconds, 3),
            "microseconds_a_step": {name: round(seconds * 1e6, 1) for name, seconds in self.step_seconds.items()},
        }


_TRYING, _TRIED = 1, 2


@dataclass(frozen=True)
class Place:
    """Where in a run something stands: the step's number from 0 over the whole run, and the epoch's."""

    step: int
    epoch: int
    history: History


def _numbers(entry: Entry, calls: list[list[Any]]) -> dict[str, float]:
    """The scalars of several calls, added up, under their names."""
    values = [[float(out) for out in outs] for outs in calls]
    return entry.result.unpack([math.fsum(column) for column in zip(*values, strict=True)])
