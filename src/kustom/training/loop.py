"""`Loop`: a training loop around a step of one's own, in Keras's words.

The step is any function of a batch that reads and writes variables. The loop compiles it, draws the data ahead, runs many
steps a call, resets and reports the metrics, and calls the callbacks. What an epoch's values are: of what the step returns
the mean over the samples, of each metric its result.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private
from kustom.errors import MetricWarning, SettingError, StepError, hide_frames, warn
from kustom.training.data import open_source, split_validation
from kustom.training.execution import ON_NONFINITE, Pace, Place, Runner, parse
from kustom.training.function import Compiled, Entry
from kustom.training.history import History
from kustom.training.hooks import Hooks
from kustom.training.progress import StatusLine
from kustom.training.source import Block, Source

__all__ = ["Loop"]


class Loop:
    """Trains by a step of one's own, compiled, many steps a call.

    Args:
        step: A function of a batch: of `x`, of `x, y` or of `x, y, sample_weight`, as the data gives them. It reads and writes
            variables as it likes, and may return a dict of scalars, which are averaged over an epoch by the number of samples,
            or of metrics. A `kustom.Supervised` is a step, too.
        metrics: The metrics that the step updates: a list, or a dict that names them. They are reset before each epoch and
            reported after it. One that the step updates and that is not listed is found, reset and reported as well.
        eval_step: The step of `evaluate` and of the validation, which updates the same metrics.
        model: The model that callbacks are told of; by default the one that the step trains, if it is one.

    Raises:
        StepError: `step` or `eval_step` cannot be called.
        SettingError: `metrics` holds something else, or two of one name.

    Example:
        >>> import keras, kustom, numpy as np
        >>> from keras import ops
        >>> model = keras.Sequential([keras.layers.Dense(1)])
        >>> optimizer, mean_loss = keras.optimizers.Nadam(0.01), keras.metrics.Mean(name="loss")
        >>> def step(x, y):
        ...     with kustom.GradientTape() as tape:
        ...         loss = ops.mean(ops.square(y - model(x, training=True)))
        ...     gradients = tape.gradient(loss, model.trainable_variables)
        ...     optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        ...     mean_loss(loss)
        >>> x = np.linspace(-1, 1, 64, dtype="float32")[:, None]
        >>> history = kustom.Loop(step, metrics=[mean_loss]).fit(x, 3 * x, epochs=3, verbose=0)
        >>> losses = history.history["loss"]
        >>> len(losses), losses[2] < losses[0]
        (3, True)
    """

    def __init__(
        self,
        step: Callable[..., Any],
        *,
        metrics: Sequence[keras.metrics.Metric] | Mapping[str, keras.metrics.Metric] | None = None,
        eval_step: Callable[..., Any] | None = None,
        model: keras.Model | None = None,
    ) -> None:
        for name, given in (("step", step), ("eval_step", eval_step)):
            if given is not None and not callable(given):
                raise StepError(f"{name} is {type(given).__name__}; give the function itself, Loop(step).")
        if model is not None and not isinstance(model, keras.Model):
            raise SettingError(f"model is {type(model).__name__}; give a keras.Model, or leave it out.")
        self._step = step
        self._eval_step = eval_step if eval_step is not None else getattr(step, "eval_step", None)
        self._model = model if model is not None else getattr(step, "model", None)
        self._listed = _named(metrics if metrics is not None else getattr(step, "metrics", None))
        self._were_listed = metrics is not None
        self._phases: dict[Any, _Phase] = {}
        self.history: History | None = None

    # How many batches go by between two calls of hooks by batch.
    _group = 1

    def __repr__(self) -> str:
        return f"<kustom.Loop of {getattr(self._step, '__qualname__', type(self._step).__name__)}>"

    @hide_frames
    def fit(
        self,
        x: Any = None,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: int | None = None,
        epochs: int = 1,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        shuffle: Any = True,
        validation_data: Any = None,
        validation_split: float = 0.0,
        validation_batch_size: int | None = None,
        validation_steps: int | None = None,
        validation_freq: int | Sequence[int] = 1,
        class_weight: Mapping[int, float] | None = None,
        callbacks: Any = None,
        verbose: Any = "auto",
        seed: int | None = None,
        execution: str = "auto",
        protect: bool = False,
        on_nonfinite: str = "raise",
        run_eagerly: bool = False,
    ) -> History:
        """Train for `epochs - initial_epoch` epochs.

        Args:
            x: The data: arrays, tensors, tables or memory maps in any structure; or what gives batches: a `tf.data.Dataset`,
                a `DataLoader`, a `PyDataset`, a generator, a list of batches.
            y: The targets, where `x` is arrays.
            sample_weight: A weight for each sample, where `x` is arrays.
            batch_size: Samples a batch, where `x` is arrays; 32 by default.
            epochs: The number of the last epoch, counted from 1.
            initial_epoch: The number of epochs that count as done.
            steps_per_epoch: Batches an epoch; by default all that the data has.
            shuffle: True, a fresh order each epoch; False; `"replacement"`, each batch drawn anew from all samples.
            validation_data: `(x, y)`, `(x, y, sample_weight)` or what gives such batches; `eval_step` is called with them.
            validation_split: The part of the arrays, at their end, that is kept for validation.
            validation_batch_size: Samples a batch of the validation; by default `batch_size`.
            validation_steps: Batches of a validation.
            validation_freq: After how many epochs to validate, or the numbers of the epochs, counted from 1.
            class_weight: From class numbers to weights, which multiply the sample weights.
            callbacks: Keras callbacks. Where one looks at each batch, each is a call of its own.
            verbose: `"auto"` or 1, a status line; 2, a line an epoch; 0, nothing.
            seed: Of the order of the data; None: drawn from NumPy's, which `keras.utils.set_random_seed` sets.
            execution: `"auto"`, `"loop"` (many steps a call), `"step"` (a call each) or `"eager"`; the first three also with a
                compiler of the backend, such as `"loop+xla"`. `history.execution` says what was done.
            protect: Keep the state at the start of each call, so that whatever fails on the device, the variables are those.
            on_nonfinite: What is done where a loss is NaN or infinite: `"raise"`, `"skip"` the step, or `"ignore"`.
            run_eagerly: As `execution="eager"`.

        Returns:
            Keras's `History`, with `plot()`, `to_frame()`, `to_csv()` and `execution`.

        Raises:
            DataError: The data does not fit together.
            StepError: The step does not take what the data gives, or returns something else than scalars.
            NonFiniteError: A loss is not finite.
            CallbackError: A callback needs a model, and there is none.
            ExecutionError: There is no such way to execute here.
        """
        if on_nonfinite not in ON_NONFINITE:
            raise SettingError(f"on_nonfinite={on_nonfinite!r}; expected one of {', '.join(map(repr, ON_NONFINITE))}.")
        _whole(epochs, "epochs", 0)
        _whole(initial_epoch, "initial_epoch", 0)
        way, compiler = parse("eager" if run_eagerly else execution)
        if validation_split:
            if validation_data is not None:
                raise SettingError("validation_split and validation_data were both given; give one.")
            (x, y, sample_weight), validation_data = split_validation(x, y, sample_weight, validation_split)
        if validation_data is not None and self._eval_step is None:
            raise StepError("there is data to validate on, and no eval_step: kustom.Loop(step, eval_step=...), which takes (x, y).")
        source = open_source(
            x,
            y,
            sample_weight,
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            shuffle=shuffle,
            seed=seed,
            class_weight=class_weight,
        )
        history = self.history = History()
        try:
            run = _Fit(self, source, history, epochs, initial_epoch, way, compiler, protect, on_nonfinite, callbacks, verbose)
            if validation_data is not None:
                size = validation_batch_size or batch_size
                run.validate = _Validation(self, validation_data, size, validation_steps, validation_freq, way, compiler)
            run.all()
        finally:
            source.close()
        return history

    @hide_frames
    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        callbacks: Any = None,
        verbose: Any = 0,
        return_dict: bool = True,
        execution: str = "auto",
        run_eagerly: bool = False,
    ) -> Any:
        """Call `eval_step` with each batch, and return what it measures; the metrics are left as they were.

        Args:
            x: As in `fit`.
            y: As in `fit`.
            sample_weight: As in `fit`.
            batch_size: Samples a batch, where `x` is arrays; 32 by default.
            steps: Batches; by default all.
            callbacks: Keras callbacks.
            verbose: As in `fit`.
            return_dict: False: a list of the values, a single one by itself, as Keras.
            execution: As in `fit`.
            run_eagerly: As in `fit`.

        Returns:
            The values under their names.

        Raises:
            StepError: The loop has no `eval_step`.
            DataError: The data does not fit together.
        """
        if self._eval_step is None:
            raise StepError("the loop has no eval_step: kustom.Loop(step, eval_step=...), a function of a batch.")
        way, compiler = parse("eager" if run_eagerly else execution)
        source = open_source(x, y, sample_weight, batch_size=batch_size, steps_per_epoch=steps, shuffle=False, what="evaluate")
        try:
            values = _evaluated(self, source, way, compiler, callbacks, verbose)
        finally:
            source.close()
        if return_dict:
            return values
        return next(iter(values.values())) if len(values) == 1 else list(values.values())

    def _phase(self, kind: str, way: str, compiler: str | None) -> _Phase:
        """The compiled step of a kind, kept so that another `fit` traces nothing."""
        key = (kind, way == "eager", compiler)
        if key not in self._phases:
            step: Any = self._step if kind == "train" else self._eval_step
            self._phases[key] = _Phase(step, self._listed, self._were_listed, eager=way == "eager", compiler=compiler)
        return self._phases[key]


class _Phase:
    """A step, compiled so that it returns scalars, and the metrics that it updates."""

    def __init__(self, step: Callable[..., Any], listed: dict[str, Any], told: bool, *, eager: bool, compiler: str | None) -> None:
        self._plain = step
        self._told = told
        self.metrics = dict(listed)
        self.returned: dict[str, keras.metrics.Metric] = {}
        self.compiled: Compiled[..., Any] = Compiled(self._scalars, (), eager, compiler, about=(step,))
        self.pace = Pace()
        lifting = current("lifting")
        small = eager or not lifting.TRACES_CHEAPLY
        self._reset = Compiled(self._reset_all, (), small, lifting.LIGHT, quiet=True)
        self._results = Compiled(self._result_all, (), small, lifting.LIGHT, quiet=True)
        end = getattr(step, "epoch_end", None)
        self.epoch_end = None if end is None else Compiled(end, (), eager, compiler, quiet=True)

    def _scalars(self, *batch: Any) -> dict[str, Any]:
        returned = self._plain(*batch)
        if returned is None:
            return {}
        if ops.is_tensor(returned) and not tuple(returned.shape):
            returned = {"loss": returned}
        if not isinstance(returned, Mapping):
            raise StepError(
                f"the step returned {_described(returned)}; return None, a scalar, which is the loss, or a dict of scalars."
            )
        scalars = {}
        for name, value in returned.items():
            if isinstance(value, keras.metrics.Metric):
                self.returned[name] = value
                continue
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
        new = [m for m in entry.reached.all(keras.metrics.Metric) if _updated(m, touched) and not _updated(m, covered)]
        # A metric that holds others stands for them.
        outer = [m for m in new if not any(o is not m and _within(m, o) for o in new)]
        for metric in outer:
            name = _free(metric.name, self.metrics)
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
            # A metric may have a dict of results.
            found |= {k: _number(v) for k, v in value.items()} if isinstance(value, Mapping) else {name: _number(value)}
        return found

    def variables(self) -> list[keras.Variable]:
        """The variables of the metrics."""
        return [v for metric in self.all_metrics().values() for v in metric.variables]


class _Means:
    """The means of what a step returns, weighted by samples."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._samples = 0

    def add(self, sums: dict[str, float], batches: int, size: int) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * size
        self._samples += batches * size

    def values(self) -> dict[str, float]:
        return {name: value / self._samples for name, value in self._sums.items()} if self._samples else {}


class _Pass:
    """One pass of a phase over an epoch's blocks."""

    def __init__(self, phase: _Phase, source: Source, runner: Runner) -> None:
        self.phase = phase
        self.source = source
        self.runner = runner
        self.means = _Means()
        self.steps = 0

    def begin(self) -> None:
        self.phase.reset()
        self.means = _Means()
        self.steps = 0

    def take(self, at_most: int) -> Block | None:
        return self.source.take(at_most)

    def prepare(self, block: Block) -> Entry:
        entry = self.runner.entry(block)
        before = len(self.phase.metrics)
        self.phase.found(entry)
        if len(self.phase.metrics) > before:
            # The first batches were not to be counted from what it held.
            self.phase.reset()
        return entry

    def run(self, block: Block, at: Place, left: int | None) -> None:
        sums, counted = self.runner.run(block, at, left)
        self.means.add(sums, counted, block.size)
        self.steps += block.batches

    def values(self) -> dict[str, Any]:
        return self.means.values() | self.phase.results()


class _Fit:
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
            is_finite=lambda sums: _finite(phase, sums),
        )
        self._pass = _Pass(phase, source, runner)
        self.validate: _Validation | None = None
        self._steps = 0

    def all(self) -> None:
        """Train all epochs."""
        hooks: Hooks | None = None
        line = StatusLine(self._epochs.stop, self._source.batches, self._verbose)
        first = self._epochs.start
        try:
            for epoch in self._epochs:
                if epoch < first:
                    continue
                self._source.begin(epoch)
                # The first is the one to compile for.
                block = self._pass.take(self._loop._group) if hooks is None else self._take(hooks.by_batch("train"))
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
            line.close()
            self._history.execution = self._pass.runner.report()

    def _last(self) -> dict[str, Any]:
        return {name: values[-1] for name, values in self._history.history.items()}

    def _prepared(self, block: Block) -> Hooks:
        self._pass.phase.fits(self._source.unflatten(list(range(_leaves(block, self._source)))))
        entry = self._pass.prepare(block)
        model = self._loop._model or _trained(entry)
        params = {"verbose": self._verbose, "epochs": self._epochs.stop, "steps": self._source.batches}
        hooks = Hooks(self._callbacks, model, params)
        if model is not None:
            self._history.set_model(model)
            model.history = self._history  # pyright: ignore[reportAttributeAccessIssue]  (Keras sets it in fit, too)
            hooks.lend_optimizer(entry.reached.all(keras.optimizers.Optimizer))
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
                hooks.call("on_train_batch_end", block.start + block.batches - 1, now.values())
            line.update(now.steps, now.values() if line.wants() else None)
            block = None if hooks.stop else self._take(by_batch)
        if now.phase.epoch_end is not None:
            now.phase.epoch_end()
        values = now.values()
        if self.validate is not None and self.validate.is_due(epoch):
            values |= {f"val_{name}": value for name, value in self.validate.run(hooks).items()}
        # Callbacks write into it, such as the learning rate.
        try:
            hooks.call("on_epoch_end", epoch, values)
        finally:
            self._history.add(epoch, values)
        line.end_epoch(values)

    def _take(self, by_batch: bool) -> Block | None:
        return self._pass.take(self._loop._group if by_batch else max(self._loop._group, self._pass.runner.most))

    def _left(self, epoch: int, block: Block) -> int | None:
        batches = self._source.batches
        return None if batches is None else batches * (self._epochs.stop - epoch) - block.start


class _Validation:
    """What is measured after some of the epochs."""

    def __init__(
        self,
        loop: Loop,
        data: Any,
        batch_size: int | None,
        steps: int | None,
        frequency: int | Sequence[int],
        way: str,
        compiler: str | None,
    ) -> None:
        given = data if isinstance(data, tuple) and not isinstance(data[0], tuple) else (data,)
        if len(given) > 3:
            raise SettingError(f"validation_data is a tuple of {len(given)}; expected (x, y) or (x, y, sample_weight).")
        if isinstance(frequency, int):
            _whole(frequency, "validation_freq", 1)
        self._frequency = frequency
        self._loop = loop
        self._way = way
        self._compiler = compiler
        self._data = given
        self._options: dict[str, Any] = {"batch_size": batch_size, "steps_per_epoch": steps, "shuffle": False, "what": "validation"}
        # Refused now, not after the first epoch.
        self._source: Source | None = open_source(*given, **self._options)

    def is_due(self, epoch: int) -> bool:
        frequency = self._frequency
        return (epoch + 1) % frequency == 0 if isinstance(frequency, int) else epoch + 1 in frequency

    def run(self, hooks: Hooks) -> dict[str, Any]:
        source = self._source or open_source(*self._data, **self._options)
        try:
            return _evaluated(self._loop, source, self._way, self._compiler, hooks, 0)
        finally:
            if source.resident is None:
                source.close()
                source = None
            self._source = source


def _evaluated(loop: Loop, source: Source, way: str, compiler: str | None, callbacks: Any, verbose: Any) -> dict[str, Any]:
    """Call the step of the evaluation with all batches; the metrics hold afterwards what they did before."""
    phase = loop._phase("evaluate", way, compiler)
    runner = Runner(phase.compiled, phase.pace, source, way=way, protect=False, on_nonfinite="ignore", is_finite=lambda sums: True)
    now = _Pass(phase, source, runner)
    source.begin(0)
    block = now.take(loop._group)
    if block is None:
        return {}
    phase.fits(source.unflatten(list(range(_leaves(block, source)))))
    entry = runner.entry(block)
    phase.found(entry)
    hooks = (
        callbacks if isinstance(callbacks, Hooks) else Hooks(callbacks, loop._model or _trained(entry), {"steps": source.batches})
    )
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
            block = now.take(loop._group if by_batch else max(loop._group, runner.most))
        values = now.values()
        line.end_epoch(values)
        hooks.call("on_test_end", values)
        return values
    finally:
        line.close()
        for variable, value in kept:
            private.put(variable, value)


def _finite(phase: _Phase, sums: dict[str, float]) -> bool:
    """Whether the losses are finite: what is called so, else everything that the step returned, else the metrics."""
    values: dict[str, Any] = sums or phase.results()
    losses = {name: value for name, value in values.items() if "loss" in name} or values
    return all(np.all(np.isfinite(value)) for value in losses.values())


def _leaves(block: Block, source: Source) -> int:
    return len(source.resident or ()) if block.rows is not None else len(block.arrays or ())


def _trained(entry: Entry) -> keras.Model | None:
    """The model that a step trains, if it is one: the outermost of those whose trainable variables it touches."""
    touched = {id(v) for v in entry.program.variables}
    models = [m for m in entry.reached.all(keras.Model) if any(id(v) in touched for v in m.trainable_variables)]
    inner = {id(layer) for m in models for layer in (*private.descendants(m), private.functional_of(m))}
    outer = [m for m in models if id(m) not in inner]
    return outer[0] if len(outer) == 1 else None


def _updated(metric: keras.metrics.Metric, touched: set[int]) -> bool:
    return any(id(v) in touched for v in metric.variables)


def _within(metric: keras.metrics.Metric, other: keras.metrics.Metric) -> bool:
    mine, others = ({id(v) for v in m.variables} for m in (metric, other))
    return mine < others


def _named(metrics: Any) -> dict[str, keras.metrics.Metric]:
    if metrics is None:
        return {}
    pairs: list[Any] = list(metrics.items()) if isinstance(metrics, Mapping) else [(getattr(m, "name", None), m) for m in metrics]
    for name, metric in pairs:
        if not isinstance(metric, keras.metrics.Metric):
            raise SettingError(f"metrics holds {type(metric).__name__} {str(metric)[:40]!r}; give keras.metrics.Metric objects.")
        if [n for n, _ in pairs].count(name) > 1:
            raise SettingError(f"two metrics are called {name!r}; name them: metrics={{'train': ..., 'other': ...}}.")
    return dict(pairs)


def _free(name: str, taken: Mapping[str, Any]) -> str:
    number, free = 1, name
    while free in taken:
        free = f"{name}_{number}"
        number += 1
    return free


def _number(value: Any) -> Any:
    if not np.ndim(value):
        return float(ops.stop_gradient(value) if ops.is_tensor(value) else value)
    return np.asarray(ops.convert_to_numpy(value)).tolist()


def _described(value: Any) -> str:
    if ops.is_tensor(value):
        return f"a tensor of the shape {tuple(value.shape)}"
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _whole(value: Any, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise SettingError(f"{name}={value!r}; expected a whole number, {least} or more.")
