"""One call of `fit` or `evaluate`: epochs, blocks, callbacks, validation, the status line, in the order that Keras has them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from kustom.backends import keras as private
from kustom.errors import SettingError
from kustom.training.data import gives_batches, open_source
from kustom.training.execution import Place, Runner
from kustom.training.function import Entry
from kustom.training.history import History
from kustom.training.hooks import Hooks
from kustom.training.phase import Pass, Phase
from kustom.training.progress import StatusLine
from kustom.training.source import Block, Source

if TYPE_CHECKING:
    from kustom.training.loop import Loop

__all__ = ["Fit", "Validation", "evaluated", "whole_number"]


class Fit:
    """One call of `fit`."""

    def __init__(
        self,
        loop: Loop,
        source: Source,
        history: History,
        epochs: int,
        initial_epoch: int,
        way: str,
        compiler: str | None,
        protect: bool,
        on_nonfinite: str,
        callbacks: Any,
        verbose: Any,
    ) -> None:
        self._loop = loop
        self._source = source
        self._history = history
        self._epochs = range(initial_epoch, epochs)
        self._callbacks = callbacks
        self._verbose = verbose
        phase = loop._phase("train", way, compiler)
        runner = Runner(
            phase.compiled,
            phase.pace,
            source,
            way=way,
            protect=protect,
            on_nonfinite=on_nonfinite,
            is_finite=lambda sums: finite(phase, sums),
            measured=phase.results,
        )
        self._pass = Pass(phase, source, runner, loop._group)
        self.validate: Validation | None = None
        self._steps = 0

    def all(self) -> None:
        """Train all epochs."""
        hooks: Hooks | None = None
        line = StatusLine(self._epochs.stop, self._source.batches, self._verbose)
        first = self._epochs.start
        begin = getattr(self._loop._step, "begin", None)
        if begin is not None:
            begin()
        try:
            for epoch in self._epochs:
                if epoch < first:
                    continue
                self._source.begin(epoch)
                # The first is the one to compile for.
                block = self._pass.take(by_batch=hooks is None or hooks.by_batch("train"))
                if block is None:
                    break
                if hooks is None:
                    hooks = self._prepared(block)
                    first = max(epoch, hooks.begin())
                    if epoch < first:
                        continue
                self._epoch(epoch, block, hooks, line)
                if hooks.stop or self._source.ended:
                    break
            if hooks is not None:
                end = getattr(self._loop._step, "end", None)
                if end is not None:
                    end()
                hooks.call("on_train_end", self._last())
        finally:
            if hooks is not None:
                hooks.give_back()
            line.close()
            self._history.execution = self._pass.runner.report()

    def _last(self) -> dict[str, Any]:
        return {name: values[-1] for name, values in self._history.history.items()}

    def _prepared(self, block: Block) -> Hooks:
        self._pass.refuse_misfit(block)
        entry = self._pass.prepare(block)
        model = self._loop._model or trained_model(entry)
        params = {"verbose": self._verbose, "epochs": self._epochs.stop, "steps": self._source.batches}
        hooks = Hooks(self._callbacks, model, params)
        if model is not None:
            self._history.set_model(model)
            model.history = self._history  # pyright: ignore[reportAttributeAccessIssue]  (Keras sets it in fit, too)
            hooks.lend_optimizer(entry.reached.all(keras.optimizers.Optimizer), entry.program.variables)
        return hooks

    def _epoch(self, epoch: int, block: Block | None, hooks: Hooks, line: StatusLine) -> None:
        now, by_batch = self._pass, hooks.by_batch("train")
        hooks.call("on_epoch_begin", epoch)
        now.begin()
        line.epoch(epoch + 1)
        while block is not None:
            now.prepare(block)
            place = Place(self._steps, epoch, self._history)
            if by_batch:
                hooks.call("on_train_batch_begin", block.start)
            now.run(block, place, self._left(epoch, block))
            self._steps += block.batches
            if by_batch:
                hooks.call("on_train_batch_end", block.start + block.batches - 1, now.values(at_once=True))
            line.update(now.steps, now.values() if line.wants() else None)
            block = None if hooks.stop else now.take(by_batch=by_batch)
        if now.phase.epoch_end is not None:
            now.phase.epoch_end()
        values = now.values()
        if self.validate is not None and self.validate.is_due(epoch):
            values |= {f"val_{name}": value for name, value in self.validate.run(hooks).items()}
        # Callbacks write into it, such as the learning rate.
        try:
            hooks.direct(now.phase.all_metrics())
            hooks.call("on_epoch_end", epoch, values)
        finally:
            self._history.add(epoch, values)
        line.end_epoch(values)

    def _left(self, epoch: int, block: Block) -> int | None:
        batches = self._source.batches
        return None if batches is None else batches * (self._epochs.stop - epoch) - block.start


class Validation:
    """What is measured after some of the epochs."""

    def __init__(
        self,
        loop: Loop,
        data: Any,
        batch_size: int | None,
        steps: int | None,
        frequency: Any,
        way: str,
        compiler: str | None,
    ) -> None:
        # A list is what Keras takes it for, unless it is one of batches.
        is_one = isinstance(data, tuple) or (isinstance(data, list) and not gives_batches(data))
        given = tuple(data) if is_one else (data,)
        if not 1 <= len(given) <= 3:
            raise SettingError(
                f"validation_data is a {type(data).__name__} of {len(given)}; expected (x,), (x, y) or (x, y, "
                "sample_weight), each of which may hold several arrays, or a list of batches."
            )
        self._epochs: Collection[int] = ()
        self._frequency = 0
        if isinstance(frequency, list | tuple | range | set):
            self._epochs = frequency
        else:
            whole_number(frequency, "validation_freq", 1)
            self._frequency = frequency
        self._loop = loop
        self._way = way
        self._compiler = compiler
        self._data = given
        self._options: dict[str, Any] = {"batch_size": batch_size, "steps_per_epoch": steps, "shuffle": False, "what": "validation"}
        # Refused now, not after the first epoch.
        self._source: Source | None = open_source(*given, **self._options)

    def is_due(self, epoch: int) -> bool:
        return (epoch + 1) % self._frequency == 0 if self._frequency else epoch + 1 in self._epochs

    def run(self, hooks: Hooks) -> dict[str, Any]:
        source = self._source or open_source(*self._data, **self._options)
        try:
            return evaluated(self._loop, source, self._way, self._compiler, hooks, 0)
        finally:
            if source.resident is None:
                source.close()
                source = None
            self._source = source


def evaluated(loop: Loop, source: Source, way: str, compiler: str | None, callbacks: Any, verbose: Any) -> dict[str, Any]:
    """Call the step of the evaluation with all batches; the metrics hold afterwards what they did before."""
    phase = loop._phase("evaluate", way, compiler)
    runner = Runner(phase.compiled, phase.pace, source, way=way, protect=False, on_nonfinite="ignore", is_finite=lambda sums: True)
    now = Pass(phase, source, runner, loop._group)
    source.begin(0)
    block = now.take(by_batch=True)
    if block is None:
        return {}
    now.refuse_misfit(block)
    entry = runner.entry(block)
    phase.found(entry)
    if isinstance(callbacks, Hooks):
        hooks = callbacks
    else:
        hooks = Hooks(callbacks, loop._model or trained_model(entry), {"steps": source.batches})
    line = StatusLine(1, source.batches, verbose)
    kept = [(v, ops.copy(private.own_value(v))) for v in phase.variables()]
    try:
        hooks.call("on_test_begin")
        by_batch = hooks.by_batch("test")
        now.begin()
        line.epoch(1)
        while block is not None:
            if by_batch:
                hooks.call("on_test_batch_begin", block.start)
            now.run(block, Place(now.steps, 0, History()), None)
            if by_batch:
                hooks.call("on_test_batch_end", block.start + block.batches - 1, now.values())
            line.update(now.steps, now.values() if line.wants() else None)
            block = now.take(by_batch=by_batch)
        values = now.values()
        line.end_epoch(values)
        hooks.call("on_test_end", values)
        return values
    finally:
        line.close()
        for variable, value in kept:
            private.put(variable, value)


def finite(phase: Phase, sums: dict[str, float]) -> bool:
    """Whether the losses are finite: what is called so, else everything that the step returned, else the metrics."""
    results = None if sums else phase.results()
    values: dict[str, Any] = sums or results or {}
    losses = {name: value for name, value in values.items() if "loss" in name} or values
    fine = all(np.all(np.isfinite(value)) for value in losses.values())
    # What is not finite is undone.
    phase.known = results if fine else None
    return fine


def trained_model(entry: Entry) -> keras.Model | None:
    """The model that a step trains, if it is one: the outermost of those whose trainable variables it touches."""
    touched = {id(v) for v in entry.program.variables}
    models = [m for m in entry.reached.all(keras.Model) if any(id(v) in touched for v in m.trainable_variables)]
    inner = {id(layer) for m in models for layer in (*private.descendants(m), private.functional_of(m))}
    outer = [m for m in models if id(m) not in inner]
    return outer[0] if len(outer) == 1 else None


def whole_number(value: Any, name: str, least: int) -> None:
    """Refuse the setting `name` where it is no whole number, or less than `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise SettingError(f"{name}={value!r}; expected a whole number, {least} or more.")
