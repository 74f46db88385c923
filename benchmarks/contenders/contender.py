"""What a contender is, and how its calls are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from contenders.workloads import Workload


@dataclass(frozen=True)
class Trained:
    """What a call gives: when it began and when each of its epochs ended, and the last epoch's two means."""

    ends: list[float]
    loss: float
    metric: float


# Rows in their order and a number of epochs in.
Run = Callable[[np.ndarray, np.ndarray, int], Trained]


@dataclass(frozen=True)
class Contender:
    """One way to train: `make` is called once and gives the function that trains on."""

    name: str
    make: Callable[[Workload], Run]
    # Where it takes part only when asked, as a step takes a second and more.
    slow: str = ""
    # So many steps an epoch and no more, on batches of its own: no loss to compare.
    steps: int | None = None


def by_epoch(begin: Callable[[np.ndarray, np.ndarray], None], epoch: Callable[[], tuple[Any, Any]]) -> Run:
    """A run of a loop by hand: `begin` puts the rows where they are used, `epoch` returns two means once they are there."""

    def run(X: np.ndarray, y: np.ndarray, epochs: int) -> Trained:
        ends = [time.perf_counter()]
        begin(X, y)
        loss = metric = float("nan")
        for _ in range(epochs):
            loss, metric = map(float, epoch())
            ends.append(time.perf_counter())
        return Trained(ends, loss, metric)

    return run
