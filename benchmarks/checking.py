"""How long the checks take: the whole battery on one simple part, and on a package of fifty on every installed backend.

The processes of the other backends start once; what is timed first is a part after that.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import keras

from kustom import textbook
from kustom.checking.processes import POOL
from kustom.checking.runner import run
from kustom.checking.subjects import Subject


def package(count: int) -> list[Any]:
    """Parts of the textbook, each with settings of its own, until there are enough."""
    made: list[Any] = []
    while len(made) < count:
        n = len(made) + 1
        made += [
            textbook.huber_fn(threshold=n / 4),
            textbook.HuberLoss(threshold=n / 4),
            textbook.MyDense(n),
            textbook.my_l1_regularizer(),
            textbook.my_positive_weights(),
            textbook.my_glorot_initializer(),
            textbook.my_softplus,
            textbook.MyGaussianNoise(n / 10),
            textbook.HuberMetric(),
        ]
    return made[:count]


def timed(part: Any, backends: list[str]) -> tuple[float, str]:
    """Seconds for one part, and what was found."""
    report = run(Subject(part), backends=backends)
    return report.seconds, report.summary()


def main() -> None:
    """Time one part here, then the package everywhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=50)
    options = parser.parse_args()
    here = keras.backend.backend()
    POOL.start(POOL.backends)
    started = time.perf_counter()
    timed(textbook.huber_fn(), POOL.backends[1:])
    print(f"start-up, with the processes of {', '.join(POOL.backends)}: {time.perf_counter() - started:.1f} s")
    for part in (textbook.huber_fn(threshold=2.0), textbook.MyDense(3), textbook.my_softplus):
        seconds, summary = timed(part, [])
        print(f"{seconds:6.2f} s on {here} alone: {summary}")
    started = time.perf_counter()
    for number, part in enumerate(package(options.parts), 1):
        seconds, summary = timed(part, POOL.backends[1:])
        print(f"\r{number}/{options.parts} {summary[:90]:<90}", end="", file=sys.stderr)
    print(file=sys.stderr)
    print(f"{time.perf_counter() - started:6.1f} s for {options.parts} parts on {', '.join(POOL.backends)}")


if __name__ == "__main__":
    main()
