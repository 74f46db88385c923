"""How the steps of a `Model` are run: as `Loop` runs one, with the names and the metrics of a Keras model.

What a step returns is told apart while it runs. What a metric's `result()` gave is a mean already, of all batches so far: it
is asked for again when it is to be reported. Everything else is the value of one batch, and is averaged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private
from kustom.errors import StepError
from kustom.training.ahead import Batch
from kustom.training.data import open_source
from kustom.training.execution import parse
from kustom.training.function import Compiled, Entry
from kustom.training.hooks import Hooks
from kustom.training.loop import Loop
from kustom.training.phase import Phase, is_updated, is_within, number
from kustom.training.progress import StatusLine
from kustom.training.reached import Reached
from kustom.training.source import unflatten
from kustom.training.streams import batch_of

__all__ = ["Steps"]

# A metric, and which of its results, if it has several.
_Result = tuple[keras.metrics.Metric, Any]


class Steps(Loop):
    """Runs the steps of one model.

    Args:
        model: The model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(_Train(model), eval_step=model.test_step, model=model)
        self._of: Any = model
        self._parts = private.attributes_of(model)
        self._predictors: dict[tuple[str, str | None], Compiled[..., Any]] = {}

    @property
    def _group(self) -> int:
        return int(self._of.steps_per_execution)

    def is_of_now(self) -> bool:
        """Whether the model still has the parts that it had: the programs are of those."""
        held = vars(self._of)
        return all(held.get(name) is part for name, part in self._parts.items())

    def _phase(self, kind: str, way: str, compiler: str | None) -> Phase:
        key = (kind, way == "eager", compiler)
        if key not in self._phases:
            method = "train_step" if kind == "train" else "test_step"
            self._phases[key] = _ModelPhase(self._of, method, eager=way == "eager", compiler=compiler)
        return self._phases[key]

    def on_batch(self, kind: str, batch: tuple[Any, ...], execution: str) -> dict[str, Any]:
        """One step on one batch; returns what `fit` would report of it."""
        phase = self._phase(kind, *parse(execution))
        call = phase.compiled.arguments(_arguments(batch), {})
        entry = phase.compiled.entry(call)
        phase.found(entry)
        phase.reset()
        scalars = _run(entry, entry.tensors(call))
        return {name: number(value) for name, value in scalars.items()} | phase.results()

    def predict(self, x: Any, *, batch_size: Any, verbose: Any, steps: Any, callbacks: Any, execution: str) -> Any:
        """The outputs of `predict_step` for all batches, joined."""
        source = open_source(x, batch_size=batch_size, steps_per_epoch=steps, shuffle=False, what="evaluate")
        hooks = Hooks(callbacks, self._of, {"steps": source.batches})
        line = StatusLine(1, source.batches, verbose)
        outputs: list[Any] = []
        done = 0
        try:
            source.begin(0)
            hooks.call("on_predict_begin")
            line.epoch(1)
            self._of.stop_predicting = False
            while not self._of.stop_predicting and (block := source.take(self._group)) is not None:
                hooks.call("on_predict_batch_begin", block.start)
                arrays = block.arrays if block.rows is None else source.resident
                index = range(block.offset, block.offset + block.batches)
                rows = index if block.rows is None else block.rows[index.start : index.stop]
                batches = [source.unflatten([a[i] for a in arrays or ()]) for i in rows]
                outputs += (now := [self._predicted(batch, execution) for batch in batches])
                done += block.batches
                hooks.call("on_predict_batch_end", done - 1, {"outputs": _joined(now)})
                line.update(done)
            hooks.call("on_predict_end", {})
            line.end_epoch({})
        finally:
            line.close()
            source.close()
        return _joined(outputs)

    def predicted_batch(self, batch: tuple[Any, ...], execution: str) -> Any:
        """The output of `predict_step` for one batch, as NumPy arrays."""
        return self._predicted(_arguments(batch), execution)

    def _predicted(self, batch: tuple[Any, ...], execution: str) -> Any:
        way, compiler = parse(execution)
        if (way, compiler) not in self._predictors:
            step = _step(self._of, "predict_step")
            self._predictors[way, compiler] = _Method(self._of, "predict_step", step, step, way == "eager", compiler)
        outputs = self._predictors[way, compiler](*batch)
        return keras.tree.map_structure(lambda out: ops.convert_to_numpy(ops.stop_gradient(out)), outputs)


class _Train:
    """The step of training, and what is done at the end of it."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, *batch: Any) -> Any:
        return self.model.train_step(_data(batch))

    def end(self) -> None:
        """Give the variables the values that the optimizer keeps for the end: averages."""
        optimizer = self.model.optimizer
        if isinstance(optimizer, keras.optimizers.Optimizer) and optimizer.built:
            optimizer.finalize_variable_values(self.model.trainable_variables)


class _ModelPhase(Phase):
    """A step of a model, compiled, and what is reported of it."""

    # In Keras what the step returns goes before.
    names_are_of_one = False

    def __init__(self, model: Any, method: str, *, eager: bool, compiler: str | None) -> None:
        step = _step(model, method, self)
        super().__init__(step, {}, False, eager=eager, compiler=compiler)
        self._of = model
        self.compiled = _Method(model, method, self._scalars, step, eager, compiler)
        self._small = eager or not current("lifting").TRACES_CHEAPLY
        self._told_of: dict[str, _Result] = {}
        # The metrics that the step updates and that are not the model's.
        self._others: list[keras.metrics.Metric] = []
        self._touched: set[int] = set()
        self._returns_nothing = False
        self._shown: tuple[Any, Compiled[..., Any]] | None = None
        self._kinds: set[type] | None = None

    def kinds(self) -> set[type]:
        """The classes of all metrics that the step may ask for their result."""
        if self._kinds is None:
            reached = Reached(self._plain).all(keras.metrics.Metric)
            self._kinds = {type(metric) for metric in [*self._of.metrics, *reached]}
        return self._kinds

    def scalars_of(self, returned: Any, noted: dict[int, tuple[_Result, Any]]) -> Any:
        """Of what the step returned that which is to be averaged."""
        self._returns_nothing = returned is None
        if not isinstance(returned, Mapping):
            return returned
        scalars: dict[Any, Any] = {}
        for name, value in returned.items():
            self._told_of.pop(name, None)
            if isinstance(value, Mapping):
                # What a metric of several results gives.
                scalars |= self.scalars_of(value, noted)
            elif isinstance(value, keras.metrics.Metric):
                self._told_of[name] = (value, None)
            elif id(value) in noted:
                self._told_of[name] = noted[id(value)][0]
            else:
                scalars[name] = value
        return scalars

    def found(self, entry: Entry) -> None:
        variables = entry.program.variables
        reached = entry.reached.all(keras.metrics.Metric)
        self._touched |= {id(v) for v in variables or [v for m in reached for v in m.variables]}
        known = {id(v) for m in [*self._of.metrics, *self._others] for v in m.variables}
        new = [m for m in reached if is_updated(m, self._touched) and not is_updated(m, known)]
        for metric in new:
            if not any(other is not metric and is_within(metric, other) for other in new):
                self._others.append(metric)
                metric.reset_state()

    def reset(self) -> None:
        self._of.reset_metrics()
        for metric in self._others:
            metric.reset_state()

    def results(self) -> dict[str, Any]:
        shown = self._reported()
        if not shown:
            return {}
        key = [(name, id(metric), part) for name, (metric, part) in shown.items()]
        if self._shown is None or self._shown[0] != key:
            ask = lambda: {name: metric.result() for name, (metric, _) in shown.items()}  # noqa: E731
            self._shown = key, Compiled(ask, (), self._small, current("lifting").LIGHT, quiet=True)
        found: dict[str, Any] = {}
        for name, value in self._shown[1]().items():
            part = shown[name][1]
            if part is not None:
                found[name] = number(value[part])
            elif isinstance(value, Mapping):
                found |= {k: number(v) for k, v in value.items()}
            else:
                found[name] = number(value)
        return found

    def _reported(self) -> dict[str, _Result]:
        if not self._returns_nothing:
            return self._told_of
        every = [m for m in [*self._of.metrics, *self._others] if m is not private.loss_tracker(self._of)]
        return {m.name: (m, None) for m in every if is_updated(m, self._touched)}

    def variables(self) -> list[keras.Variable]:
        return [v for metric in [*self._of.metrics, *self._others] for v in metric.variables]


class _Method(Compiled[..., Any]):
    """A function of a batch that stands for a method of a model, compiled; messages have the method's name."""

    def __init__(self, model: Any, method: str, f: Callable[..., Any], about: Any, eager: bool, compiler: str | None) -> None:
        def named(*batch: Any) -> Any:
            return f(*batch)

        named.__qualname__ = f"{type(model).__qualname__}.{method}"
        named.__wrapped__ = getattr(type(model), method)  # pyright: ignore[reportFunctionMemberAccess]
        super().__init__(named, (), eager, compiler, about=(about,))
        self._model = model
        self._training = method == "train_step"

    def entry(self, call: Any) -> Entry:
        # Before the program is looked for: it is of one mode.
        current().set_mode(self._model, training=self._training)
        return super().entry(call)


def _step(model: Any, method: str, phase: _ModelPhase | None = None) -> Callable[..., Any]:
    """A method of the model as a function of a batch; of its result a phase keeps what is of metrics."""
    _refuse_misfit(model, method)

    def step(*batch: Any) -> Any:
        with private.results(phase.kinds() if phase else ()) as noted:
            returned = getattr(model, method)(_data(batch))
        if not model.built and type(model).build is keras.Model.build and all(layer.built for layer in model.layers):
            # Nobody has called it, or will; all that it has is there, so that it can be saved.
            model.built = True
        return phase.scalars_of(returned, noted) if phase else returned

    return step


def _refuse_misfit(model: Any, method: str) -> None:
    """Refuse a step that does not take a batch as Keras gives it.

    Raises:
        StepError: It is so.
    """
    signature = inspect.signature(getattr(model, method))
    try:
        signature.bind(None)
    except TypeError:
        name = f"{type(model).__name__}.{method}"
        raise StepError(
            f"{name} takes {signature}, and is given one argument: x, (x, y) or (x, y, sample_weight). Write {method}(self, data), "
            "and x, y = data in it; on JAX, too, a step of a kustom.Model reads and writes the model's state itself."
        ) from None


def _data(batch: tuple[Any, ...]) -> Any:
    return keras.utils.pack_x_y_sample_weight(*batch) if batch else None


def _arguments(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    made: Batch = batch_of(batch, "the batch")
    return unflatten(made.structure, made.leaves)


def _run(entry: Entry, tensors: list[Any]) -> dict[str, Any]:
    program = entry.program
    kept = program.keep() if program.can_raise else None
    try:
        outs = program.run(tensors)
        entry.leave()
        return entry.result.unpack(outs)
    except Exception:
        if kept is not None:
            program.restore(kept)
        raise


def _joined(outputs: list[Any]) -> Any:
    if not outputs:
        raise StepError("predict was given no batches; expected at least one.")
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *outputs)
