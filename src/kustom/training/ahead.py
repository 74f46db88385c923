"""Chunks of batches, made on a thread while the loop computes.

The thread stacks batches of one shape into arrays of a fixed length. A chunk is handed over when it is full, when a batch of
another shape comes, or when somebody has waited a tenth of a second for it and it has a batch: so a fast source costs the
loop nothing, and a slow one is trained on as it comes. Nothing that was drawn is lost: who stops the thread gets what nobody
has taken. An exception of the source comes out where the chunk would have, the same object, after all batches before it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Ahead", "Batch", "Chunk"]

PATIENCE = 0.1
# How long a stop waits for a source that is in the middle of a batch, so that it is at rest afterwards.
STOPPING = 2.0


@dataclass(frozen=True)
class Batch:
    """One batch: where its leaves belong, the leaves, how many samples they have."""

    structure: Any
    leaves: list[np.ndarray]
    size: int

    @property
    def shape(self) -> tuple[Any, ...]:
        """Batches for which it is equal are stacked."""
        return self.structure, [(leaf.shape, leaf.dtype) for leaf in self.leaves]

    @property
    def kind(self) -> tuple[Any, ...]:
        """What is equal in batches that differ in their number of samples only."""
        return self.structure, [(leaf.shape[1:], leaf.dtype) for leaf in self.leaves]


@dataclass
class Chunk:
    """Batches of one shape, stacked: the first `batches` entries of each array, of which `used` have been taken."""

    structure: Any
    arrays: list[np.ndarray]
    size: int
    batches: int = 0
    used: int = 0
    shape: Any = None
    since: float = 0.0

    def rest(self) -> list[Batch]:
        """The batches that nobody has taken."""
        return [Batch(self.structure, [array[i] for array in self.arrays], self.size) for i in range(self.used, self.batches)]


class Ahead:
    """Chunks, and the daemon thread that makes them.

    Args:
        capacity: How many batches of its shape a chunk that begins with a batch has room for.
        depth: How many chunks may wait.
    """

    def __init__(self, capacity: Callable[[Batch], int], depth: int = 2) -> None:
        self._capacity, self._depth = capacity, depth
        self._changed = threading.Condition()
        self._ready: deque[Chunk] = deque()
        self._open: Chunk | None = None
        self._over = False
        self._thread: threading.Thread | None = None
        # Whether nobody wants any more, and what the source raised that nobody has seen.
        self.stopped = False
        self.error: BaseException | None = None

    def start(self, draw: Callable[[Ahead], bool]) -> None:
        """Let the thread call `draw` whenever there is room for a chunk, until it returns False."""
        self._thread = threading.Thread(target=self._run, args=(draw,), name="kustom data", daemon=True)
        self._thread.start()

    def _run(self, draw: Callable[[Ahead], bool]) -> None:
        try:
            while self._room() and draw(self):
                pass
        except BaseException as error:  # whatever it is, the consumer raises it
            self.finish(error)
        else:
            self.finish()

    def _room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or len(self._ready) < self._depth)
            return not self.stopped

    def finish(self, error: BaseException | None = None) -> None:
        """There is no more to come, but for an exception of the source."""
        with self._changed:
            self.error = self.error or error
            self._over = True
            self._changed.notify_all()

    def put(self, chunk: Chunk) -> None:
        """Hand over a whole chunk."""
        with self._changed:
            self._ready.append(chunk)
            self._changed.notify_all()

    def add(self, batch: Batch) -> bool:
        """Put a batch into the chunk that is being made; False, and nothing done, if it comes too late."""
        with self._changed:
            if self.stopped:
                return False
            chunk = self._open
            if chunk is None or chunk.shape != batch.shape:
                self._seal()
                room = self._capacity(batch)
                arrays = [np.empty((room, *leaf.shape), leaf.dtype) for leaf in batch.leaves]
                chunk = self._open = Chunk(batch.structure, arrays, batch.size, shape=batch.shape, since=time.monotonic())
            for array, leaf in zip(chunk.arrays, batch.leaves, strict=True):
                array[chunk.batches] = leaf
            chunk.batches += 1
            if not chunk.arrays or chunk.batches == len(chunk.arrays[0]):
                self._seal()
            self._changed.notify_all()
            return True

    def _seal(self) -> None:
        if self._open is not None:
            self._ready.append(self._open)
            self._open = None

    @property
    def holds(self) -> bool:
        """Whether a chunk waits."""
        return bool(self._ready)

    def get(self, *, at_once: bool = False) -> Chunk | None:
        """The next chunk; None when there are no more.

        Args:
            at_once: Whether a chunk that is not full is taken without waiting for more.

        Raises:
            BaseException: What the source raised, once, after all that it had given before.
        """
        with self._changed:
            while not self._ready:
                left = None if self._open is None else self._open.since + PATIENCE - time.monotonic()
                if left is not None and (at_once or self._over or left <= 0):
                    self._seal()
                elif self._over:
                    error, self.error = self.error, None
                    if error is not None:
                        raise error
                    return None
                else:
                    self._changed.wait(left)
            self._changed.notify_all()
            return self._ready.popleft()

    def stop(self) -> list[Batch]:
        """Draw no more; the batches that nobody has taken, in their order.

        A source that does not come back from its next batch is not waited for; that batch is not among them.
        """
        with self._changed:
            self.stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(STOPPING)
        with self._changed:
            self._seal()
            kept = [batch for chunk in self._ready for batch in chunk.rest()]
            self._ready.clear()
            return kept
