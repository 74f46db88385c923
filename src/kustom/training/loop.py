"""`Loop`: a training loop around a step of one's own, in Keras's words.

The step is any function of a batch that reads and writes variables. The loop compiles it, draws the data ahead, runs many
steps a call, resets and reports the metrics, and calls the callbacks. What an epoch's values are: of what the step returns
the mean over the samples, of each metric its result.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from kustom.errors import BusyError, SettingError, StepError, hide_frames
from kustom.training.data import open_source, split_validation
from kustom.training.execution import ON_NONFINITE, parse
from kustom.training.history import History
from kustom.training.phase import Phase
from kustom.training.runs import Fit, Validation, evaluated, whole_number

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
        self._phases: dict[Any, Phase] = {}
        # The thread in which it runs.
        self._thread: int | None = None
        self._entering = threading.Lock()
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
            shuffle: True, a fresh order each epoch; False, the order of the data; `"batch"`, the samples of each batch among
                themselves; `"replacement"`, each batch drawn anew from all samples.
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
            BusyError: The loop runs in another thread.
        """
        if on_nonfinite not in ON_NONFINITE:
            raise SettingError(f"on_nonfinite={on_nonfinite!r}; expected one of {', '.join(map(repr, ON_NONFINITE))}.")
        whole_number(epochs, "epochs", 0)
        whole_number(initial_epoch, "initial_epoch", 0)
        if seed is not None:
            whole_number(seed, "seed", 0)
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
        try:
            with self._alone():
                history = self.history = History()
                run = Fit(self, source, history, epochs, initial_epoch, way, compiler, protect, on_nonfinite, callbacks, verbose)
                if validation_data is not None:
                    size = validation_batch_size or batch_size
                    run.validate = Validation(self, validation_data, size, validation_steps, validation_freq, way, compiler)
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
            BusyError: The loop runs in another thread.
        """
        if self._eval_step is None:
            raise StepError("the loop has no eval_step: kustom.Loop(step, eval_step=...), a function of a batch.")
        way, compiler = parse("eager" if run_eagerly else execution)
        source = open_source(x, y, sample_weight, batch_size=batch_size, steps_per_epoch=steps, shuffle=False, what="evaluate")
        try:
            with self._alone():
                values = evaluated(self, source, way, compiler, callbacks, verbose)
        finally:
            source.close()
        if return_dict:
            return values
        return next(iter(values.values())) if len(values) == 1 else list(values.values())

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse a second thread, whose steps would write to the same variables; what a callback calls is of the first."""
        with self._entering:
            before, mine = self._thread, threading.get_ident()
            if before not in (None, mine):
                raise BusyError(
                    "this loop is running in another thread, and both would write to the same variables. Wait until it has ended, "
                    "or give each thread a loop, a model and an optimizer of its own."
                )
            self._thread = mine
        try:
            yield
        finally:
            self._thread = before

    def _phase(self, kind: str, way: str, compiler: str | None) -> Phase:
        """The compiled step of a kind, kept so that another `fit` traces nothing."""
        key = (kind, way == "eager", compiler)
        if key not in self._phases:
            step: Any = self._step if kind == "train" else self._eval_step
            self._phases[key] = Phase(step, self._listed, self._were_listed, eager=way == "eager", compiler=compiler)
        return self._phases[key]


def _named(metrics: Any) -> dict[str, keras.metrics.Metric]:
    if metrics is None:
        return {}
    if not isinstance(metrics, list | tuple | Mapping):
        raise SettingError(f"metrics is {type(metrics).__name__}; give a list of metrics, or a dict that names them.")
    pairs: list[Any] = list(metrics.items()) if isinstance(metrics, Mapping) else [(getattr(m, "name", None), m) for m in metrics]
    for name, metric in pairs:
        if not isinstance(metric, keras.metrics.Metric):
            raise SettingError(f"metrics holds {type(metric).__name__} {str(metric)[:40]!r}; give keras.metrics.Metric objects.")
        if not isinstance(name, str):
            raise SettingError(f"metrics names {metric.name!r} {name!r}; give text: {{{metric.name!r}: ...}}.")
        if [n for n, _ in pairs].count(name) > 1:
            raise SettingError(f"two metrics are called {name!r}; name them: metrics={{'train': ..., 'other': ...}}.")
    return dict(pairs)
