"""The measuring: the contenders of one backend on one workload take turns in one process, so that noise meets all alike."""

from __future__ import annotations

import gc
import importlib
import resource
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contenders.contender import Contender, Run, Trained
from contenders.workloads import WORKLOADS, Workload


@dataclass
class Seen:
    """What was seen of one contender."""

    workload: str
    backend: str
    contender: str
    microseconds: float | None = None
    # What the first epoch took over a later one: tracing, compiling, moving.
    first_seconds: float | None = None
    loss: float | None = None
    metric: float | None = None
    peak_megabytes: float | None = None
    missing: str | None = None


@dataclass
class Turns:
    """One contender's part of the process."""

    contender: Contender
    run: Run
    first: float = float("nan")
    epochs: list[float] = field(default_factory=list)
    last: Trained | None = None

    def take(self, X: np.ndarray, y: np.ndarray, epochs: int, batch: int) -> None:
        steps = len(X) // batch
        if self.contender.steps is not None:
            steps = min(steps, self.contender.steps)
            X, y = X[: steps * batch], y[: steps * batch]
        gc.collect()
        self.last = self.run(X, y, epochs)
        took = [(end - begin) / steps for begin, end in zip(self.last.ends, self.last.ends[1:], strict=False)]
        if np.isnan(self.first):
            self.first = took.pop(0) * steps
        self.epochs += took

    def seen(self, workload: Workload, backend: str, steps: int) -> Seen:
        best = min(self.epochs)
        steps = min(steps, self.contender.steps or steps)
        result = Seen(workload.letter, backend, self.contender.name, best * 1e6, max(0.0, self.first - best * steps))
        if self.contender.steps is None and self.last is not None:
            result.loss, result.metric = self.last.loss, self.last.metric
        return result


def chosen(backend: str, letter: str, names: list[str], slow: bool) -> list[Contender]:
    """The contenders that take part; no names are all."""
    everyone: list[Contender] = importlib.import_module(f"contenders.of_{backend}").CONTENDERS
    return [one for one in everyone if (not names or one.name in names) and (slow or letter not in one.slow)]


def measure(backend: str, letter: str, options: Any) -> list[Seen]:
    """Let the chosen contenders take turns; each round has its own order of the rows, the same for all of them."""
    workload = WORKLOADS[letter]
    steps = workload.quick_steps if options.quick else workload.steps
    X, y = workload.rows(steps)
    found: list[Seen] = []
    turns: list[Turns] = []
    for contender in chosen(backend, letter, options.contenders, options.slow):
        try:
            turns.append(Turns(contender, contender.make(workload)))
        except ImportError as error:
            found.append(Seen(letter, backend, contender.name, missing=str(error)))
    for turn in range(options.rounds):
        order = np.random.default_rng(turn).permutation(len(X))
        rows, targets = X[order], y[order]
        # Who goes first changes, and with it who finds the caches cold.
        first = turn % max(1, len(turns))
        for one in turns[first:] + turns[:first]:
            one.take(rows, targets, options.epochs, workload.batch)
    found += [one.seen(workload, backend, steps) for one in turns]
    if options.memory and len(turns) == 1:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found[-1].peak_megabytes = peak / (1e6 if sys.platform == "darwin" else 1e3)
    return found
