"""What `fit` and a loop of one's own show while they run, and how Ctrl-C ends `fit`.

A terminal gets one line that is written over; anything else, a log file or a pipe, about twenty lines for the whole run.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

__all__ = ["Interruption", "StatusLine", "Steps", "readable"]

LINES = 20


def readable(value: float) -> str:
    """Four digits, or all that stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Interruption:
    """While it is entered, Ctrl-C is only noted, so that the run can finish what it has begun; a second one breaks off.

    An exception would arrive anywhere in the middle of a step, where on JAX the weights are in nobody's hands.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interruption:
        self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._previous)
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping; what was reached is saved first (Ctrl-C again: at once, unsaved)\n")


class StatusLine(keras.callbacks.Callback):
    """Shows epoch, progress, rows a second, loss, metric and time left; ends the training at a step where Ctrl-C was noted.

    The time left is that to the last epoch; early stopping may come before.
    """

    def __init__(self, interruption: Interruption, rows: int, metric: str, *, quiet: bool) -> None:
        super().__init__()
        self.interruption = interruption
        self.rows = rows
        self.metric = metric
        self.quiet = quiet
        self.on_terminal = sys.stdout.isatty() and not quiet
        self.bar = Progress(
            BarColumn(10), TextColumn("{task.description}"), console=Console(highlight=False), disable=not self.on_terminal
        )

    def on_train_begin(self, logs: Any = None) -> None:
        params: Any = self.params
        self.epochs, self.steps = params["epochs"], params["steps"]
        self.started, self.before, self.shown = 0.0, 0, 0.0
        self.validation = ""
        self.task = self.bar.add_task("compiling", total=self.epochs * self.steps)
        self.bar.start()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.interruption.asked:
            model: Any = self.model
            model.stop_training = True
        self.done = self.epoch * self.steps + batch + 1
        now = time.perf_counter()
        if not self.started:
            # The first step compiles, and tells nothing of the rate.
            self.started, self.before = now, 1
        if self.on_terminal and now - self.shown > 0.1:
            self.shown = now
            self._show(now, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.validation = f" val {readable(logs[f'val_{self.metric}'])}"
        now = time.perf_counter()
        self.line = self._show(now, logs)
        if epoch == 0:
            # So does the first epoch's end, where the validation compiles.
            self.started, self.before = now, self.done
        every = -(-self.epochs // LINES)
        self.pending = epoch > 0 and (epoch + 1) % every != 0
        if not self.pending:
            self._print()

    def on_train_end(self, logs: Any = None) -> None:
        if self.pending:
            self._print()
        self.bar.stop()

    def _show(self, now: float, logs: Any) -> str:
        # Steps a second since the clock was set. Right after that none have been made, and nothing is known of the pace.
        rate = (self.done - self.before) / max(now - self.started, 1e-9)
        left = int((self.epochs * self.steps - self.done) / rate) if rate else 0
        line = (
            f"epoch {self.epoch + 1}/{self.epochs}"
            + (f" {rate * self.rows / self.steps:,.0f} rows/s" if rate else "")
            + f" loss {float(logs['loss']):.4f} {self.metric} {readable(float(logs[self.metric]))}{self.validation}"
            + (f" {left // 60}:{left % 60:02} left" if rate else "")
        )
        self.bar.update(self.task, completed=self.done, description=line)
        return line

    def _print(self) -> None:
        if not (self.quiet or self.on_terminal):
            print(self.line, flush=True)


class Steps:
    """The steps of a training loop, counted from 1; `show(loss=...)` in each says how it stands."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self.total = total
        self.on_terminal = sys.stdout.isatty() and not quiet
        self.every = total + 1 if quiet or self.on_terminal else -(-total // LINES)
        self.bar = Progress(
            BarColumn(10), TextColumn("{task.description}"), console=Console(highlight=False), disable=not self.on_terminal
        )

    def __iter__(self) -> Iterator[int]:
        with self.bar:
            self.task = self.bar.add_task("", total=self.total)
            for step in range(1, self.total + 1):
                self.step = step
                yield step

    def show(self, **values: float) -> None:
        """Show these beside the number of the step."""
        line = f"step {self.step}/{self.total} " + " ".join(f"{name} {readable(value)}" for name, value in values.items())
        self.bar.update(self.task, completed=self.step, description=line)
        if self.step % self.every == 0 or (self.step in (1, self.total) and self.every <= self.total):
            print(line, flush=True)
