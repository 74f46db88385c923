"""The batches of a `keras.utils.PyDataset`, by their numbers, with as many workers as it asks for."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np

__all__ = ["items", "passes"]


def passes(dataset: Any, shuffle: bool, seed: int) -> Callable[[int, int], Iterator[Any]]:
    """What makes a pass over a PyDataset, from its number and that of the first batch.

    Its batches come in another order each pass where `shuffle` is given, as in Keras, but for one without an end.
    """

    def make(number: int, at: int) -> Iterator[Any]:
        length = dataset.num_batches
        if length is None:
            return items(dataset, itertools.count(at))
        order = np.random.default_rng([seed, number]).permutation(length) if shuffle else np.arange(length)
        return items(dataset, order[at:].tolist())

    return make


def items(dataset: Any, numbers: Iterable[int]) -> Iterator[Any]:
    """`dataset[i]` for each number in turn, made beforehand by the workers that it asks for."""
    workers, processes = dataset.workers, dataset.use_multiprocessing
    if workers < 1 or (workers == 1 and not processes):
        yield from (dataset[number] for number in numbers)
        return
    # As in Keras, processes are forked where that is the system's way, so that the dataset need not be pickled.
    executor: Executor = (
        ProcessPoolExecutor(workers, initializer=_hold, initargs=(dataset,)) if processes else ThreadPoolExecutor(workers)
    )
    get = _held_item if processes else dataset.__getitem__
    waiting: deque[Future[Any]] = deque()
    try:
        for number in numbers:
            waiting.append(executor.submit(get, number))
            if len(waiting) >= max(dataset.max_queue_size, workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


_in_worker: list[Any] = []


def _hold(dataset: Any) -> None:
    _in_worker[:] = [dataset]


def _held_item(number: int) -> Any:
    return _in_worker[0][number]
