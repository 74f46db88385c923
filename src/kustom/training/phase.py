"""A step as a loop runs it: compiled so that it returns scalars, with the metrics that it updates, over an epoch's blocks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private
from kustom.errors import MetricWarning, StepError, warn
from kustom.training.execution import Pace, Place, Runner
from kustom.training.function import Compiled, Entry
from kustom.training.reached import Reached
from kustom.training.source import Block, Source

__all__ = ["Pass", "Phase", "is_updated", "is_within", "number"]


class Phase:
    """A step, compiled so that it returns scalars, and the metrics that it updates."""

    # Whether it is an error that a value and a result of a metric have one name.
    names_are_of_one = True

    def __init__(self, step: Callable[..., Any], listed: dict[str, Any], told: bool, *, eager: bool, compiler: str | None) -> None:
        self._plain = step
        self._told = told
        self._listed = frozenset(listed)
        self._returns: frozenset[str] = frozenset()
        self.metrics = dict(listed)
        self.returned: dict[str, keras.metrics.Metric] = {}
        # Of a metric with several results the one that was returned, by the name under which it was.
        self._parts: dict[str, Any] = {}
        self._reached: set[type] | None = None
        # The results after the run of a moment ago.
        self.known: dict[str, Any] | None = None
        self.compiled: Compiled[..., Any] = Compiled(self._scalars, (), eager, compiler, about=(step,))
        self.pace = Pace()
        lifting = current("lifting")
        small = eager or not lifting.TRACES_CHEAPLY
        self._reset = Compiled(self._reset_all, (), small, lifting.LIGHT, quiet=True)
        self._results = Compiled(self._result_all, (), small, lifting.LIGHT, quiet=True)
        end = getattr(step, "epoch_end", None)
        self.epoch_end = None if end is None else Compiled(end, (), eager, compiler, quiet=True)

    def _scalars(self, *batch: Any) -> dict[str, Any]:
        with private.results(self._asked()) as noted:
            returned: Any = self._plain(*batch)
        self._returns = frozenset()
        if returned is None:
            return {}
        if _is_number(returned) or (ops.is_tensor(returned) and not tuple(returned.shape)):
            returned = {"loss": returned}
        if not isinstance(returned, Mapping):
            raise StepError(
                f"the step returned {_described(returned)}; return None, a scalar, which is the loss, or a dict of scalars."
            )
        self._returns = frozenset(returned)
        scalars = {}
        value: Any
        for name, value in returned.items():
            listed = self._of_name(name)
            if isinstance(value, keras.metrics.Metric) and listed in (None, value):
                self._is_returned(name, value)
                continue
            if id(value) in noted and listed is None:
                # The metric's, of all batches, and no value of this one.
                self._is_returned(name, *noted[id(value)][0])
                continue
            if listed is not None:
                if id(value) in noted and noted[id(value)][0][0] is listed:
                    # Reported as the metric's, of all batches.
                    continue
                raise StepError(
                    f"the step returned {_described(value)} under {name!r}, and the metric {listed.name!r} in metrics is reported "
                    f"as {name!r}, too. Return it under another name, or name the metric: metrics={{'mean_{name}': ...}}."
                )
            value = private.told(value) if isinstance(value, keras.Variable) else value
            if isinstance(value, int | float | np.number):
                value = ops.convert_to_tensor(value, "float32")
            if not isinstance(name, str) or not ops.is_tensor(value) or tuple(value.shape):
                raise StepError(
                    f"the step returned {_described(value)} under {name!r}; return scalars under text: ops.mean(loss), not a loss "
                    "for each sample. To keep more, update a metric."
                )
            scalars[name] = ops.cast(ops.stop_gradient(value), "float32")
        return scalars

    def _asked(self) -> set[type]:
        """The classes of the metrics that the step may ask for their result."""
        if self._reached is None:
            self._reached = {type(metric) for metric in Reached(self._plain).all(keras.metrics.Metric)}
        return self._reached | {type(metric) for metric in self.metrics.values()}

    def _is_returned(self, name: str, metric: keras.metrics.Metric, part: Any = None) -> None:
        """The step has returned a metric, or its result, which so has this name."""
        self.returned[name], self._parts[name] = metric, part
        for found in [n for n, m in self.metrics.items() if m is metric and n not in self._listed]:
            del self.metrics[found]

    def _of_name(self, name: str) -> keras.metrics.Metric | None:
        """The listed metric that is reported under a name; one that was found under it gives way."""
        if name in self._listed or name not in self.metrics:
            return self.metrics.get(name)
        found = self.metrics.pop(name)
        self.metrics[_free(name, [*self.metrics, *self._returns])] = found
        return None

    def fits(self, args: tuple[Any, ...]) -> None:
        """Refuse a batch that the step does not take."""
        try:
            signature = inspect.signature(self._plain)
        except (TypeError, ValueError):
            # Of what is written in C.
            return
        try:
            signature.bind(*args)
        except TypeError as error:
            given = ", ".join(["x", "y", "sample_weight"][: len(args)]) if len(args) < 4 else f"{len(args)} values"
            raise StepError(f"the data gives ({given}), and the step takes {signature}: {error}.") from None

    def found(self, entry: Entry) -> None:
        """Take note of the metrics that a program updates."""
        # What runs as plain Python has touched nothing yet.
        every = [v for m in entry.reached.all(keras.metrics.Metric) for v in m.variables]
        touched = {id(v) for v in entry.program.variables or every}
        known = [*self.metrics.values(), *self.returned.values()]
        covered = {id(v) for metric in known for v in metric.variables}
        new = [m for m in entry.reached.all(keras.metrics.Metric) if is_updated(m, touched) and not is_updated(m, covered)]
        # A metric that holds others stands for them.
        outer = [m for m in new if not any(o is not m and is_within(m, o) for o in new)]
        for metric in outer:
            name = _free(metric.name, [*self.metrics, *self._returns])
            self.metrics[name] = metric
            if self._told:
                warn(
                    f"the step updates the metric {metric.name!r}, which the loop was not told of; it is reset and reported as "
                    f"{name!r}. List it: Loop(step, metrics=[...]).",
                    MetricWarning,
                )

    def all_metrics(self) -> dict[str, Any]:
        """The metrics under the names that they are reported by."""
        return self.metrics | self.returned

    def _reset_all(self) -> None:
        for metric in self.all_metrics().values():
            metric.reset_state()

    def _result_all(self) -> dict[str, Any]:
        return {name: metric.result() for name, metric in self.all_metrics().items()}

    def reset(self) -> None:
        """Make the metrics new."""
        if self.all_metrics():
            self._reset()

    def results(self) -> dict[str, Any]:
        """What the metrics say."""
        found: dict[str, Any] = {}
        for name, value in (self._results() if self.all_metrics() else {}).items():
            if (part := self._parts.get(name)) is not None:
                found[name] = number(value[part])
                continue
            # A metric may have a dict of results.
            found |= {k: number(v) for k, v in value.items()} if isinstance(value, Mapping) else {name: number(value)}
        return found

    def variables(self) -> list[keras.Variable]:
        """The variables of the metrics."""
        return [v for metric in self.all_metrics().values() for v in metric.variables]


class _Means:
    """The means of what a step returns, weighted by samples."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        # Of each by itself: a step may return a value for batches of some shape only.
        self._samples: dict[str, int] = {}

    def add(self, sums: dict[str, float], batches: int, size: int) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * size
            self._samples[name] = self._samples.get(name, 0) + batches * size

    def values(self) -> dict[str, float]:
        return {name: value / self._samples[name] for name, value in self._sums.items() if self._samples[name]}


class Pass:
    """One pass of a phase over an epoch's blocks.

    Args:
        phase: The step, compiled.
        source: The data.
        runner: What calls the step.
        group: The batches of a block: at least so many, and no more where they are asked for one by one.
    """

    def __init__(self, phase: Phase, source: Source, runner: Runner, group: int) -> None:
        self.phase = phase
        self.source = source
        self.runner = runner
        self._group = group
        self.means = _Means()
        self.steps = 0

    def begin(self) -> None:
        self.phase.reset()
        self.means = _Means()
        self.steps = 0

    def take(self, *, by_batch: bool = False) -> Block | None:
        """The next block; one of the least length where there are callbacks by batch, or where it is compiled for."""
        return self.source.take(self._group if by_batch else max(self._group, self.runner.most))

    def refuse_misfit(self, block: Block) -> None:
        """Refuse data that the step does not take."""
        leaves = len((self.source.resident or ()) if block.rows is not None else (block.arrays or ()))
        self.phase.fits(self.source.unflatten(list(range(leaves))))

    def prepare(self, block: Block) -> Entry:
        entry = self.runner.entry(block)
        before = len(self.phase.metrics)
        self.phase.found(entry)
        if len(self.phase.metrics) > before:
            # The first batches were not to be counted from what it held.
            self.phase.reset()
        return entry

    def run(self, block: Block, at: Place, left: int | None) -> None:
        self.phase.known = None
        sums, counted = self.runner.run(block, at, left)
        self.means.add(sums, counted, block.size)
        self.steps += block.batches

    def values(self, *, at_once: bool = False) -> dict[str, Any]:
        # Right after a run they may have been asked for already, to see whether the loss is finite.
        known = self.phase.known if at_once else None
        results = self.phase.results() if known is None else known
        means = self.means.values()
        if self.phase.names_are_of_one and (twice := sorted(means.keys() & results.keys())):
            raise StepError(
                f"the step returned a value under {twice[0]!r}, and a metric of several results has one of that name. Return it "
                "under another name."
            )
        return means | results


def is_updated(metric: keras.metrics.Metric, touched: set[int]) -> bool:
    """Whether one of the metric's variables is among those of these ids."""
    return any(id(v) in touched for v in metric.variables)


def is_within(metric: keras.metrics.Metric, other: keras.metrics.Metric) -> bool:
    """Whether `metric` is a part of `other`."""
    mine, others = ({id(v) for v in m.variables} for m in (metric, other))
    return mine < others


def _free(name: str, taken: Collection[str]) -> str:
    number, free = 1, name
    while free in taken:
        free = f"{name}_{number}"
        number += 1
    return free


def number(value: Any) -> Any:
    """A result of a metric as Python has it: a float, or lists of them."""
    if not np.ndim(value):
        return float(ops.stop_gradient(value) if ops.is_tensor(value) else value)
    return np.asarray(ops.convert_to_numpy(value)).tolist()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _described(value: Any) -> str:
    if ops.is_tensor(value):
        return f"a tensor of the shape {tuple(value.shape)}"
    return f"{type(value).__name__} {str(value)[:40]!r}"
