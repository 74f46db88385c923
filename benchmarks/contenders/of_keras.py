"""Keras's own ways: `fit`, and the textbook's loop run operation by operation; and kustom's loop, which is Keras to its user."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from contenders.contender import Contender, Run, Trained, by_epoch
from contenders.workloads import Parts, Workload

# So few, as a step takes about ten milliseconds.
EAGER_STEPS = 20


def clock() -> Any:
    """A callback that notes when epochs end."""
    import keras

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.ends = [time.perf_counter()]

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.ends.append(time.perf_counter())

    return Clock()


def called(fit: Callable[..., Any], workload: Workload) -> Run:
    """A run by something that is called as `fit` is."""

    def run(X: np.ndarray, y: np.ndarray, epochs: int) -> Trained:
        timed = clock()
        options = {"batch_size": workload.batch, "epochs": epochs, "shuffle": False, "verbose": 0}
        history = fit(X, y, callbacks=[timed], **options).history
        return Trained(timed.ends, float(history["loss"][-1]), float(history[workload.metric][-1]))

    return run


def fit(steps_per_execution: int = 1) -> Callable[[Workload], Run]:
    """Keras's `fit`."""

    def make(workload: Workload) -> Run:
        parts = Parts(workload)
        parts.model.compile(
            optimizer=parts.optimizer(),
            loss=parts.loss_fn,
            metrics=[parts.metric],
            steps_per_execution=steps_per_execution,
        )
        return called(parts.model.fit, workload)

    return make


def loop(execution: str = "auto") -> Callable[[Workload], Run]:
    """kustom's loop over the textbook's step."""

    def make(workload: Workload) -> Run:
        from kustom import GradientTape, Loop  # ImportError, and so a missing contender, where there is none

        parts = Parts(workload)
        model, loss_fn, mean_loss, metric = parts.model, parts.loss_fn, parts.mean_loss, parts.metric

        def step(x: Any, y: Any) -> None:
            with GradientTape() as tape:
                y_pred = model(x, training=True)
                loss = sum(model.losses, loss_fn(y, y_pred))
            parts.apply(tape.gradient(loss, parts.variables))
            mean_loss.update_state(loss)
            metric.update_state(y, y_pred)

        trained = Loop(step, metrics={"loss": mean_loss, workload.metric: metric})
        return called(lambda *args, **options: trained.fit(*args, **options, execution=execution), workload)

    return make


def supervised(workload: Workload) -> Run:
    """kustom's loop over kustom's usual step."""
    from kustom import Loop, Supervised

    parts = Parts(workload)
    step = Supervised(parts.model, optimizer=parts.optimizer(), loss=parts.loss_fn, metrics=[parts.metric])
    return called(Loop(step).fit, workload)


def eager(gradients: Callable[[Parts, Any, Any], tuple[Any, Any, list[Any]]], *, few: bool) -> Callable[[Workload], Run]:
    """The textbook's loop; `gradients` gives the loss, the predictions and the gradients in the backend's own way."""

    def make(workload: Workload) -> Run:
        from keras import ops

        parts = Parts(workload)
        rng = np.random.default_rng(2)
        data: list[Any] = []

        def step(x: Any, y: Any) -> None:
            x, y = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
            loss, y_pred, found = gradients(parts, x, y)
            parts.apply(found)
            parts.update(loss, y, y_pred)

        def begin(X: np.ndarray, y: np.ndarray) -> None:
            data[:] = X, y

        def epoch() -> tuple[float, float]:
            X, y = data
            for start in range(0, len(X), workload.batch):
                rows: Any = slice(start, start + workload.batch)
                if few:
                    rows = rng.integers(0, len(X), workload.batch)
                step(X[rows], y[rows])
            return parts.results()

        return by_epoch(begin, epoch)

    return make


def of_every_backend(*, steps_per_execution: bool = True) -> list[Contender]:
    """What takes part on every backend; torch's trainer refuses `steps_per_execution`."""
    return [
        Contender("fit", fit()),
        *([Contender("fit, 32 steps a call", fit(32))] if steps_per_execution else []),
        Contender("kustom.Loop", loop()),
        Contender("kustom.Loop of Supervised", supervised),
    ]
