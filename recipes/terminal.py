"""How a run ends by Ctrl-C, and how numbers are shown."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import keras

__all__ = ["Interruption", "readable"]


def readable(value: float) -> str:
    """Four digits, or all that stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Interruption(keras.callbacks.Callback):
    """While it is entered, Ctrl-C is only noted, and ends the training after the epoch; a second one breaks off.

    An exception would arrive anywhere, in the middle of a callback or of a file, too.
    """

    def __init__(self) -> None:
        super().__init__()
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
        os.write(2, b"\nstopping after this epoch; what was reached is saved first (Ctrl-C again: at once, unsaved)\n")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.asked:
            model: Any = self.model
            model.stop_training = True
