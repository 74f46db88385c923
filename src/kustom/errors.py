"""Every exception and warning of kustom: public, one class an error, the docstring the explanation.

A message says what was given, what was expected and the one thing to do next. Each class derives from `KustomError` and
from the built-in exception that plain Python would have used, so that `except ValueError` keeps working. What can be
raised while a file is read is no `TypeError`: Keras replaces a `TypeError` from `from_config` by one of its own.
"""

from __future__ import annotations

import functools
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = [
    "BackendError",
    "BranchError",
    "BuildError",
    "CallbackError",
    "ClosureError",
    "ConfigError",
    "ConformanceError",
    "CorruptFileError",
    "DataError",
    "DataWarning",
    "DefinitionError",
    "DtypeMixError",
    "EagerWarning",
    "ExecutionError",
    "FileError",
    "FormatError",
    "FunctionError",
    "GradientCheckError",
    "GradientError",
    "GradientWarning",
    "KustomError",
    "LimitError",
    "LossScaleError",
    "MetricWarning",
    "MissingLibraryError",
    "MissingPartError",
    "MissingSettingError",
    "NameClashError",
    "NonFiniteError",
    "OptimizerError",
    "OtherModelError",
    "RebuildError",
    "RecordingError",
    "RecordingWarning",
    "ReservedNameError",
    "RetraceWarning",
    "ReturnError",
    "SettingError",
    "ShapeError",
    "SourceWarning",
    "StepError",
    "SubjectError",
    "TapeError",
    "TfKerasError",
    "TracerWarning",
    "TrackingError",
    "UnknownSettingError",
    "UnsafeFileError",
    "UnsavableError",
    "UnsavableSettingError",
    "UntrustedError",
    "UsageError",
    "VersionError",
    "WeightsError",
]

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_F = TypeVar("_F", bound=Callable[..., Any])


class KustomError(Exception):
    """The base of every error that kustom raises."""


class BackendError(KustomError, ImportError):
    """There is no backend to compute with, or the one that was chosen is not installed.

    Wrong: `pip install kustom` into an empty environment, then `import kustom`.
    Right: `pip install "kustom[jax]"` (or `[tensorflow]`, `[torch]`).
    """


class DefinitionError(KustomError, TypeError):
    """A function or class cannot become a part as it is written.

    Wrong, since a setting must be keyword-only::

        @kustom.loss
        def huber(y_true, y_pred, threshold=1.0): ...

    Right::

        @kustom.loss
        def huber(y_true, y_pred, *, threshold=1.0): ...
    """


class ReservedNameError(DefinitionError):
    """A setting has a name that the Keras base class needs for itself.

    Wrong: a field `losses` in a layer, since `Layer.losses` is where Keras keeps the added losses.
    Right: any other name, such as `auxiliary_losses`.
    """


class ClosureError(DefinitionError):
    """A part takes a value from the function around it, where no file would find it again.

    Wrong, since the file would not hold `q`::

        def make_pinball(q):
            @kustom.loss
            def pinball(y_true, y_pred):
                error = y_true - y_pred
                return ops.maximum(q * error, (q - 1) * error)

    Right, `q` a setting::

        @kustom.loss
        def pinball(y_true, y_pred, *, q=0.5): ...
    """


class NameClashError(KustomError, ValueError):
    """Another part is registered under this name already; a file of the one would load as the other.

    Wrong: two different classes `Gate` under `@kustom.part(package="mine")`.
    Right: another name, or another `package=`. (A cell run again, or a module reloaded, replaces its own part.)
    """


class UnknownSettingError(KustomError, TypeError):
    """A part was given a setting that it does not have.

    Wrong: `huber(treshold=2.0)`. Right: `huber(threshold=2.0)`.
    """


class MissingSettingError(KustomError, TypeError):
    """A setting without a default was not given.

    Wrong: `MyDense()`. Right: `MyDense(units=4)`.
    """


class SettingError(KustomError, ValueError):
    """A setting has a value of the wrong kind.

    Wrong: `huber(threshold="two")`. Right: `huber(threshold=2.0)`.
    """


class UnsavableSettingError(SettingError):
    """A setting has a value that no config can hold: a lambda, an unregistered function, an object of a foreign class.

    Wrong: `MyDense(4, activation=lambda x: x)`.
    Right: a decorated function (`@kustom.activation`), a Keras object, numbers, text, arrays, lists, tuples, dicts.
    """


class ShapeError(KustomError, ValueError):
    """Targets, predictions, weights or a result do not have the shapes they must have together.

    Wrong: a loss that returns one number for a batch, so that `sample_weight` could not pick samples.
    Right: one value a sample, or one an entry of `y_pred` (kustom averages the last axis).
    """


class DtypeMixError(KustomError, TypeError):
    """A function mixes integers or booleans with floats by an operator, and the backend refuses.

    Wrong, with integer targets on TensorFlow: `y_true - y_pred`.
    Right: `ops.subtract(y_true, y_pred)`, or `ops.cast(y_true, y_pred.dtype) - y_pred`.
    """


class ReturnError(KustomError, TypeError):
    """A part's function returned something of another kind than its decorator stands for.

    Wrong: a metric that returns a Python list. Right: a tensor, `kustom.Ratio` or `kustom.Sums`.
    """


class BranchError(KustomError, RuntimeError):
    """A compiled step does inside a branch or a body what cannot be carried out of it.

    Wrong: `ops.vectorized_map(f, x)` where `f` assigns to a variable, which would then have one value an entry.
    Right: assign outside, from what it returns; or `ops.map`, which goes from one entry to the next.
    """


class BuildError(KustomError, ValueError):
    """A layer or model was built, but some of its weights were not; they would come back from a file as fresh ones.

    Wrong: a `build` over `keras.layers.Dense` that never calls `super().build(input_shape)`.
    Right: call it, and build in `build` every sublayer that the symbolic call cannot reach.
    """


class TrackingError(KustomError, ValueError):
    """A sublayer stands where Keras neither tracks nor saves it: in a set, in an object that is no layer, in `call` itself.

    Wrong: `self.tools = Tools(dense=Dense(3))`. Right: `self.dense = Dense(3)`, or a list or dict of layers.
    Wrong: `return Dense(3)(x)` in `call`. Right: `self.dense = Dense(3)` in `setup`, and `return self.dense(x)` in `call`.
    """


class ConfigError(KustomError, ValueError):
    """A config does not fit the part that it is read by: an unknown entry, a missing one.

    Wrong: a file written before the field `rate` was renamed to `factor`.
    Right: `@kustom.part(version=2, migrate=...)`, which turns the older settings into the newer.
    """


class VersionError(ConfigError):
    """A config was written by a newer version of a part than the one that reads it.

    Wrong: reading with `@kustom.part` (version 1) what `@kustom.part(version=2, migrate=...)` wrote.
    Right: install the package version that the file was written with.
    """


class TapeError(KustomError, RuntimeError):
    """A tape was asked for what it cannot give, or can no longer give.

    Wrong, since a tape gives one gradient and forgets::

        with kustom.GradientTape() as tape:
            loss = f(w)
        tape.gradient(loss, w)
        tape.gradient(loss, w)

    Right: `kustom.GradientTape(persistent=True)`, or both in one call: `tape.gradient(loss, [w, v])`.
    """


class GradientError(KustomError, ValueError):
    """A gradient was asked by, of or with something that it cannot be taken by, of or with.

    Wrong: `tape.gradient(loss, "kernel")`, `kustom.grad(f, argnums=2)(x, y)`.
    Right: `tape.gradient(loss, layer.kernel)`, `kustom.grad(f, argnums=1)(x, y)`.
    """


class GradientCheckError(KustomError, AssertionError):
    """A gradient does not agree with differences of the function; the text is a table of what was measured.

    Wrong: `@kustom.custom_gradient` over `y = x**3` with `lambda upstream: upstream * 2 * x**2`.
    Right: `lambda upstream: upstream * 3 * x**2`.
    """


class GradientWarning(KustomError, UserWarning):
    """A gradient is probably not the one that was meant.

    Wrong: `tape.gradient(loss_fn(y, y_pred), variables)` where the loss function gives a value a sample: it is the
    gradient of their sum, and with a batch of 32 it is 32 times that of their mean.
    Right: `tape.gradient(ops.mean(loss_fn(y, y_pred)), variables)`.
    """


class LossScaleError(KustomError, ValueError):
    """An optimizer that scales the loss is applied to gradients of a loss that it has not scaled.

    It divides the gradients by the scale, so the update would be too small by it: 32,768 times, say.

    Wrong: `tape.gradient(loss, variables)` for a `keras.optimizers.LossScaleOptimizer`.
    Right: `tape.gradient(optimizer.scale_loss(loss), variables)`, `scale_loss` called inside the tape's block.
    """


class OptimizerError(KustomError, ValueError):
    """An optimizer is applied to variables that it was not built for, or a `MultiOptimizer` to some of its own.

    Wrong, since the first call builds it for the generator's variables alone::

        optimizer.apply(gradients, generator.trainable_variables)
        optimizer.apply(other_gradients, critic.trainable_variables)

    Right: an optimizer for each; or `optimizer.build(generator.trainable_variables + critic.trainable_variables)` before.
    """


class FunctionError(KustomError, TypeError):
    """A function was given to be compiled, or was called, in a way that cannot be.

    Wrong: `kustom.function(model.fit(x, y))`. Right: `kustom.function(step)`.
    """


class StepError(KustomError, TypeError):
    """A step does not fit the loop: what it takes is not what the data gives, or what it returns is no dict of scalars.

    Wrong: `def step(x): ...` beside `loop.fit(x, y)`; `return y_pred`.
    Right: `def step(x, y): ...`; `return {"loss": loss}`.
    """


class ExecutionError(KustomError, ValueError):
    """A way to execute was asked for that there is not.

    Wrong: `loop.fit(x, y, execution="fast")`. Right: `execution="auto"`, `"loop"`, `"step"`, `"eager"`.
    """


class BusyError(KustomError, RuntimeError):
    """A loop was called while it runs in another thread.

    Wrong: `loop.fit(...)` in two threads. Right: in each thread a loop of its own, with its own model and optimizer.
    """


class NonFiniteError(KustomError, ArithmeticError):
    """A loss became NaN or infinite; the variables are as they were before that step.

    Wrong: a learning rate of 10. Right: a smaller one; or `loop.fit(..., on_nonfinite="skip")`.

    Attributes:
        step: The number of the step in the run, from 0.
        epoch: The number of the epoch, from 0.
        rows: Which rows of the arrays made the batch, int32; None where the data gives batches.
        batch: What the step was given, as NumPy arrays in the step's structure.
    """

    def __init__(self, message: str, *, step: int, epoch: int, rows: Any, batch: Any) -> None:
        super().__init__(message)
        self.step = step
        self.epoch = epoch
        self.rows = rows
        self.batch = batch


class CallbackError(KustomError, ValueError):
    """A callback does not fit the loop.

    Wrong: `loop.fit(x, y, callbacks=[ModelCheckpoint(path)])` where the step trains two models.
    Right: `kustom.Loop(step, model=generator)`, which says of which model a callback is.
    """


class MetricWarning(KustomError, UserWarning):
    """A step updates a metric that the loop was not told of; it is reset and reported all the same.

    Wrong: `Loop(step, metrics=[mean_loss])` where the step updates `mae`, too. Right: `metrics=[mean_loss, mae]`.
    """


class EagerWarning(KustomError, UserWarning):
    """A step needs a value to go on, so that it runs as plain Python, many times slower.

    Wrong: `if loss > 1: weight.assign(0.5)`.
    Right: `weight.assign(ops.where(loss > 1, 0.5, weight))`, or `ops.cond`.
    """


class RetraceWarning(KustomError, UserWarning):
    """A function is traced again and again, which costs more than it saves.

    Wrong: batches of many sizes; text that counts up as an argument; a Python attribute that changes with each call.
    Right: batches of one size, numbers and tensors as arguments, state in variables.
    """


class TracerWarning(KustomError, UserWarning):
    """A tensor was kept in an attribute while a step was traced, when it has no value; the attribute was put back.

    Wrong: `self.last_loss = loss` in a compiled step. Right: `self.last_loss.assign(loss)`, a variable; or return it.
    """


class DataError(KustomError, ValueError):
    """Data cannot be trained on as it was given: its kind, shapes or dtypes, or an argument that does not fit it.

    Wrong: `loop.fit(dataset, y)`, where the batches of `dataset` must hold their targets themselves.
    Right: `loop.fit(dataset)` with a dataset of pairs `(x, y)`.
    """


class DataWarning(KustomError, UserWarning):
    """A source has fewer batches than it was asked for, and training or the evaluation ends there.

    Wrong: `loop.fit(generator(), epochs=5)`, where the first epoch takes all that the generator has.
    Right: `steps_per_epoch=` with a generator that lasts for all epochs, or a source that can be begun anew, such as a list
    of batches or a `keras.utils.PyDataset`.
    """


class ConformanceError(KustomError, AssertionError):
    """A part does not keep what Keras and its users rely on; the text is the report of `kustom.check`.

    Wrong: `kustom.check(my_softplus)` where it is `ops.log(ops.exp(z) + 1)`, whose gradient is NaN at 100.
    Right: `ops.logaddexp(z, 0.0)`.

    Attributes:
        report: The report, of which the findings can be read one by one.
    """

    def __init__(self, report: Any) -> None:
        super().__init__(str(report))
        self.report = report


class MissingLibraryError(KustomError, ImportError):
    """Something was asked for that needs a library which kustom is installed without.

    Wrong: `kustom.plot(part)` after `pip install "kustom[jax]"`. Right: `pip install "kustom[jax,plot]"`.
    """


class SubjectError(KustomError, TypeError):
    """What was given to be checked is no Keras part, or does not say how it is made.

    Wrong: `kustom.check(MyDense)` where `MyDense` has no default for `units`.
    Right: `kustom.check(MyDense(4))`; or `__kustom__ = {"examples": [{"settings": {"units": 4}}]}` in the class.
    """


class UsageError(KustomError, ValueError):
    """A check, a command or an option of one is called in a way that there is not.

    Wrong: `kustom.check(part, only="G999")`. Right: `kustom.check(part, only="G201")`; `kustom rules` lists the codes.
    """


class TfKerasError(KustomError, TypeError):
    """An object of `tf_keras` (Keras 2) was given; kustom makes parts of Keras 3, and the two do not mix.

    Wrong: `class MyDense(tf_keras.layers.Layer)`. Right: `class MyDense(keras.layers.Layer)`.
    """


class FileError(KustomError, ValueError):
    """A model's file cannot be read, or must not be; the base of all that is said about files.

    Wrong: `kustom.load("notes.txt")`. Right: the path of a `.keras` file, as `kustom.save` and `model.save` write it.

    Attributes:
        file: The file, as it was given; None where it is not known.
        part: The member of the file, and the place in it, such as `config.json: config.layers[3]`.
    """

    def __init__(self, message: str, *, file: str | None = None, part: str | None = None) -> None:
        super().__init__(": ".join(filter(None, [file, part, message])))
        self.file = file
        self.part = part


class FormatError(FileError):
    """A file is of another kind than can be read here, or of a newer version of it.

    Wrong: `kustom.load("model.h5")`, Keras's older format, which keeps no promise about what it runs.
    Right: load it with the program that wrote it, `kustom.save(model, "model.keras")`, and load that.
    """


class CorruptFileError(FileError):
    """A file is damaged: cut off, with bits flipped, a member missing, text that is no JSON, sums that do not agree.

    Wrong: a download that stopped half-way. Right: the file again, from where it came.
    """


class UnsafeFileError(FileError):
    """A file holds what no model needs and what could be misused: nothing of it was run, and no `trust=` allows it.

    Wrong: a `Lambda` layer, whose Python code stands in the file; weights that are a link to another file.
    Right: a layer of your own, `@kustom.layer`, whose code stands in a module that you trust.
    """


class UntrustedError(FileError):
    """A file wants parts that the running program neither has registered nor was told to trust; nothing was imported.

    Wrong: `kustom.load("model.keras")` where the model has a layer of `my_package`.
    Right: `kustom.load("model.keras", trust="my_package")`, or `import my_package` before.

    Attributes:
        wants: What the file wants, as registered names, or as `module.name` where it has none.
    """

    def __init__(self, message: str, *, file: str | None = None, part: str | None = None, wants: tuple[str, ...] = ()) -> None:
        super().__init__(message, file=file, part=part)
        self.wants = wants


class LimitError(FileError):
    """A file is larger, deeper or asks for more than the limits allow; the message says which to raise.

    Wrong: `kustom.load("huge.keras", max_bytes=10**6)`.
    Right: `kustom.load("huge.keras", max_bytes=10**9)`, for a file of which you know that it is as large as that.
    """


class MissingPartError(FileError):
    """A file wants a part whose module cannot be imported, or whose module no longer has it.

    Wrong: a file of `my_package.parts>Gate`, loaded where `my_package` is not installed, or has renamed `Gate`.
    Right: install the version that the manifest names (`kustom.inspect(path)` shows it), or say where the part is now:
    `kustom.load(path, trust={"my_package.parts>Gate": my_package.Door})`; for good, `@kustom.part(formerly=...)`.
    """


class RebuildError(FileError):
    """A part of a file cannot be made of the settings that stand there, or the model not of its parts.

    Wrong: a file that holds `rate` for a part whose field is now called `factor`.
    Right: `@kustom.part(version=2, migrate=...)`, which turns the older settings into the newer.
    """


class WeightsError(FileError):
    """The weights in a file do not fit the model that its config makes.

    Wrong: a layer that was given one weight more since the file was written.
    Right: the version of the code that the file was written with; or a new layer beside it, of another name.
    """


class OtherModelError(FileError):
    """A model was loaded and is not the one that was saved: it gives another output, or one of its losses another value.

    Wrong: a function in the model was edited since, so that it computes something else.
    Right: the code that the file was written with; or, where the change is meant, `kustom.load(path, verify=False)`.
    """


class UnsavableError(KustomError, ValueError):
    """A model could not be loaded again as it is; nothing was written. The message names the part and the reason.

    Wrong: `layer.rate = 0.9` on a layer whose config still says 0.5.
    Right: the setting told to the constructor, or a part by `@kustom.part`, whose config says what it holds.
    """


class RecordingError(KustomError, ValueError):
    """An example was given to be recorded with a model, and the model refuses it, or it is too large for a file.

    Wrong: `kustom.save(model, path, example=x[0])`, a sample without the axis of the batch.
    Right: `kustom.save(model, path, example=x[:1])`.
    """


class RecordingWarning(KustomError, UserWarning):
    """A file was written without an output, so that nothing shows when it loads as another model.

    Wrong: `kustom.save(model, path)` where the model takes something that cannot be made up.
    Right: `kustom.save(model, path, example=x[:2])`.
    """


class SourceWarning(KustomError, UserWarning):
    """The source of a part is another than when the file was written; what the model gives is the same, as far as was recorded.

    Wrong: a helper added to the class, or a comment, which a fingerprint cannot tell from a change of what it computes.
    Right: save the model again, with the code of now, once its output has been looked at.
    """


def refuse_tf_keras(*objects: Any) -> None:
    """Raise `TfKerasError` if one of `objects` is, or derives from, something of Keras 2."""
    for obj in objects:
        for cls in (obj if isinstance(obj, type) else type(obj)).__mro__:
            if cls.__module__.split(".")[0] == "tf_keras":
                raise TfKerasError(f"{cls.__module__}.{cls.__name__} is of tf_keras (Keras 2); use its twin in `keras`.")


def did_you_mean(name: str, names: Iterable[Any]) -> str:
    """The name that is most like another, as a hint at the end of a message; empty where none is."""
    import difflib

    found = difflib.get_close_matches(name, [str(each) for each in names], n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def warn(message: str, category: type[Warning]) -> None:
    """Warn, with the line of the caller outside of kustom."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def hide_frames(function: _F) -> _F:
    """Take kustom's own frames out of the tracebacks that leave `function`, as Keras does with its own.

    `keras.config.disable_traceback_filtering()` shows both.
    """

    @functools.wraps(function)
    def outermost(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            keras = sys.modules.get("keras")
            if keras is None or not keras.config.is_traceback_filtering_enabled():
                raise
            raise error.with_traceback(_without_ours(error.__traceback__))  # noqa: B904  (the same error)

    return outermost  # type: ignore[return-value]


def _without_ours(trace: types.TracebackType | None) -> types.TracebackType | None:
    frames = []
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(_HERE):
            frames.append(trace)
        trace = trace.tb_next
    kept = None
    for frame in reversed(frames):
        kept = types.TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return kept
