"""The status line: one line that is rewritten while an epoch runs.

`Epoch 2/5  214/362  loss 0.5631  mae 0.4102  41,000 steps/s  0:00:03`

A terminal gets it rewritten in place, as wide as it is and whole at the end; a notebook likewise, in an output of its own; a
file or a pipe gets one line an epoch, as it would keep every rewriting. The rate does not count what came before the first
update, since that was compiled.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal, TextIO

import numpy as np

from kustom.errors import SettingError

__all__ = ["StatusLine"]

# How often a line is rewritten: more often, and a terminal costs more than the training.
PAUSE = 0.1


class StatusLine:
    """One line of status for a run.

    Args:
        epochs: The number of epochs to be run, counted from 1.
        steps: Batches an epoch; None where unknown.
        verbose: 0: nothing; 1: rewritten; 2: one line an epoch; "auto": 1 in a terminal or a notebook, else 2.
        out: Where it is written to; None, to `sys.stdout`.
    """

    def __init__(
        self, epochs: int, steps: int | None, verbose: Literal["auto", 0, 1, 2] | bool = "auto", out: TextIO | None = None
    ) -> None:
        self.epochs, self.steps = epochs, steps
        if verbose not in ("auto", 0, 1, 2):
            raise SettingError(f"verbose={verbose!r}; expected 'auto', 0 for nothing, 1 for a status line, 2 for a line an epoch.")
        self._out = sys.stdout if out is None else out
        self._notebook = _notebook() if out is None else None
        live = self._notebook is not None or _is_terminal(self._out)
        self.verbose = (1 if live else 2) if verbose == "auto" else int(verbose)
        self._live = live
        # What stands in the line, and what the display of a notebook is held by.
        self._shown = ""
        self._handle: Any = None
        self._epoch = 0
        self._values: dict[str, float] = {}
        self._done = 0
        self._begun = self._written = time.perf_counter()
        # From when and from which step of the epoch the rate counts, and whether anything has been compiled.
        self._since: tuple[float, int] | None = None
        self._warm = False
        self._rate: float | None = None

    def epoch(self, number: int) -> None:
        """Epoch `number` begins, from 1."""
        self._epoch, self._values, self._done = number, {}, 0
        self._begun = time.perf_counter()
        self._since, self._rate = ((self._begun, 0) if self._warm else None), None
        self._write(force=True)

    def wants(self) -> bool:
        """Whether an update would be shown, so that its values are worth computing."""
        return self.verbose == 1 and time.perf_counter() - self._written >= PAUSE

    def update(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """So many steps of the epoch are done, with these values so far; None: as they were."""
        now = time.perf_counter()
        self._done = done
        if values is not None:
            self._values = dict(values)
        self._warm = True
        if self._since is None:
            self._since = now, done
        elif done > self._since[1] and now > self._since[0]:
            self._rate = (done - self._since[1]) / (now - self._since[0])
        self._write()

    def end_epoch(self, values: Mapping[str, float]) -> None:
        """The epoch is over, with these values in all, those of the validation (`val_loss`) among them."""
        self._values |= values
        if not self.verbose:
            return
        if self.verbose == 1:
            self._show(self._text())
            self._finish()
        else:
            self._print(self._text())

    def say(self, text: str) -> None:
        """A message, above the line."""
        if not self.verbose:
            return
        shown = self._shown
        self._erase()
        self._print(text)
        if shown:
            self._show(shown)

    def close(self) -> None:
        """Leave the line as it is, and begin no text of others in it."""
        self._finish()

    def _text(self, width: float = math.inf) -> str:
        seconds = time.perf_counter() - self._begun
        head = [f"Epoch {self._epoch}/{self.epochs}", f"{self._done}/{'?' if self.steps is None else self.steps}"]
        values = [f"{name} {_number(value)}" for name, value in self._values.items()]
        tail = [*([] if self._rate is None else [_rate(self._rate)]), _clock(seconds)]
        text, shown = "  ".join([*head, *values, *tail]), len(values)
        while len(text) > width and shown:
            shown -= 1
            text = "  ".join([*head, *values[:shown], "…", *tail])
        return text

    def _write(self, *, force: bool = False) -> None:
        now = time.perf_counter()
        if self.verbose != 1 or (not force and now - self._written < PAUSE):
            return
        self._written = now
        # One column less, or some terminals go on to the next line; and a line of two cannot be rewritten.
        self._show(self._text(shutil.get_terminal_size().columns - 1 if self._live and self._notebook is None else math.inf))

    def _show(self, text: str) -> None:
        if self._notebook is not None:
            plain = {"text/plain": text}
            if self._handle is None:
                self._handle = self._notebook(plain, raw=True, display_id=True)
            else:
                self._handle.update(plain, raw=True)
        elif self._live:
            self._out.write("\r" + text.ljust(len(self._shown)))
            self._out.flush()
        # Where nothing can be rewritten, what stands last is written when the line is finished.
        self._shown = text

    def _erase(self) -> None:
        if self._shown and self._live and self._notebook is None:
            self._out.write("\r" + " " * len(self._shown) + "\r")
        self._shown = ""

    def _finish(self) -> None:
        """The next line is another one."""
        if self._shown and self._notebook is None:
            self._print("" if self._live else self._shown)
        self._shown, self._handle = "", None

    def _print(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


def _is_terminal(out: Any) -> bool:
    return bool(getattr(out, "isatty", lambda: False)())


def _notebook() -> Any:
    """IPython's `display`, where this runs in the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None or "ipykernel" not in sys.modules else ipython.get_ipython()
    return sys.modules["IPython.display"].display if getattr(shell, "kernel", None) is not None else None


def _number(value: Any) -> str:
    """Four digits that tell something, whatever the size; the first few of several values."""
    if np.ndim(value):
        several = np.ravel(value)
        return f"[{' '.join(_number(v) for v in several[:4])}{' …' if len(several) > 4 else ''}]"
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.1f}"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4f}" if abs(value) < 1e3 else f"{value:,.1f}"
    return f"{value:.4g}" if abs(value) >= 1e5 else f"{value:.3e}"


def _rate(rate: float) -> str:
    if rate >= 100:
        # Two digits: the rest is noise.
        unit = 10 ** max(0, math.floor(math.log10(rate)) - 1)
        return f"{round(rate / unit) * unit:,} steps/s"
    return f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
