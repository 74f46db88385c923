"""Sources that give batches, and those of them that can be iterated anew.

What must hold: each batch that a source gives is taken exactly once, and no more is drawn than the epoch has batches. The
first batch of an epoch is drawn where `take` is called, so that a source that takes its order from a random state does so at
the same point of each run.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kustom.backends import current
from kustom.errors import DataError, DataWarning, warn
from kustom.training.ahead import PATIENCE, Ahead, Batch, Chunk
from kustom.training.leaves import as_array, cast
from kustom.training.rows import Weights, weigh, weighted
from kustom.training.source import Block, Source, flatten

__all__ = ["Back", "Passes", "Stream", "batch_of"]

Back = Callable[[Any], None]


def batch_of(given: Any, where: str) -> Batch:
    """What a source gave as one batch: `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`, as in Keras.

    Raises:
        DataError: It is none of them, holds something other than numbers, or its arrays differ in their number of samples.
    """
    args = tuple(given) if isinstance(given, list | tuple) else (given,)
    if len(args) > 3:
        raise DataError(
            f"{where} has {len(args)} items; expected (x,), (x, y) or (x, y, sample_weight). Put several inputs into x."
        )
    while args and args[-1] is None:
        args = args[:-1]
    leaves: list[Any] = []
    structure = flatten(args, leaves)
    arrays = [cast(as_array(leaf, f"an array of {where}")) for leaf in leaves]
    sizes = {array.shape[0] for array in arrays if array.ndim}
    if len(sizes) > 1 or 0 in sizes:
        raise DataError(
            f"{where} has arrays of shapes {', '.join(str(array.shape) for array in arrays)}; expected the same number of samples, "
            "at least 1, on the first axis of each."
        )
    return Batch(structure, arrays, sizes.pop() if sizes else 1)


class Stream(Source):
    """Batches that a source makes, drawn ahead on a thread.

    Args:
        what: What was given, for messages.
        steps: Batches an epoch; None, until the source ends.
        class_weight: From classes to weights, or None.
        budget: How many bytes a chunk may have.
        most: How many batches a chunk may have.
    """

    def __init__(self, what: str, *, steps: int | None, class_weight: Mapping[Any, Any] | None, budget: int, most: int) -> None:
        self._what, self._steps, self._class_weight = what, steps, class_weight
        self._budget, self._most = budget, most
        self.batches = steps
        # What is drawn, by one thread at a time.
        self._lock = threading.Lock()
        self._draws: Iterator[tuple[Any, Back | None]] = iter(())
        self._ahead: Ahead | None = None
        # The chunk that is being taken, and its arrays with the class weights.
        self._chunk: Chunk | None = None
        self._arrays: list[Any] = []
        self._weights: Weights | None = None
        self._raw_structure: Any = None
        self._widest: Batch | None = None
        # How many of the epoch have been taken, and whether it is over.
        self._given, self._over = 0, True
        # Whether the thread may draw while the loop computes; None until that was seen.
        self._apart: bool | None = True if current().random_state() is None else None

    def _opened(self, epoch: int, at: int) -> Iterator[tuple[Any, Back | None]]:
        """The batches from there on, without end or to the end of the source, and how to give each back, if that is needed."""
        raise NotImplementedError

    def _kept(self, batches: list[Batch]) -> None:
        """Batches that were drawn and that nobody took."""

    def _ran_out(self) -> None:
        """The source ended before the epoch had its batches, or the epoch is until then."""
        raise NotImplementedError

    def _ended(self) -> None:
        """All batches of the epoch have been taken."""

    def begin(self, epoch: int, at: int = 0) -> None:
        self._halt()
        opened = self._opened(epoch, at)
        self._draws = opened if self._steps is None else itertools.islice(opened, self._steps - at)
        self._given, self._over = at, False

    def take(self, most: int) -> Block | None:
        if self._chunk is None and not self._next_chunk(most):
            return None
        chunk = self._chunk
        assert chunk is not None
        batches = min(chunk.batches - chunk.used, most)
        block = Block(batches, chunk.size, self._given, chunk.used, arrays=self._arrays)
        chunk.used += batches
        self._given += batches
        if chunk.used == chunk.batches:
            self._chunk = None
        return block

    def close(self) -> None:
        self._halt()
        self._draws, self._over = iter(()), True

    def _next_chunk(self, most: int) -> bool:
        if self._over:
            return False
        full = self._steps is not None and self._given >= self._steps
        chunk = None if full else self._drawn(most)
        if chunk is None:
            self._over = True
            self._halt()
            if not full:
                self._ran_out()
            self._ended()
            return False
        if self._raw_structure is None:
            self._know(chunk.structure, len(chunk.arrays))
        elif chunk.structure != self._raw_structure:
            raise DataError(
                f"{self._what} gave batches of different structures: {self._raw_structure} and {chunk.structure}, where numbers "
                "stand for arrays. Give one structure in all batches."
            )
        self._chunk, self._arrays = chunk, list(chunk.arrays)
        if self._weights is not None:
            weigh(self._arrays, self._weights, chunk.batches, axes=2)
        return True

    def _know(self, structure: Any, leaves: int) -> None:
        self._raw_structure = self.structure = structure
        if self._class_weight is not None:
            self.structure, self._weights = weighted(structure, leaves, self._class_weight)

    def _drawn(self, most: int) -> Chunk | None:
        if self._ahead is None:
            self._ahead = ahead = Ahead(self._capacity)
            self._draw(ahead)
            if self._apart is None:
                # A backend may have one generator of random numbers for all threads. A source that draws from it beside a step
                # that does, too, would make each run another.
                before = current().random_state()
                if self._draw(ahead):
                    self._apart = before == current().random_state()
            if self._apart:
                ahead.start(self._draw)
        if self._apart:
            return self._ahead.get()
        until = time.monotonic() + PATIENCE
        for _ in range(most):
            if self._ahead.holds or not self._draw(self._ahead) or time.monotonic() > until:
                break
        return self._ahead.get(at_once=True)

    def _draw(self, ahead: Ahead) -> bool:
        """Draw one batch; False if there is none, or it came too late."""
        with self._lock:
            if ahead.stopped:
                return False
            try:
                raw, back = next(self._draws)
                batch = batch_of(raw, f"a batch of {self._what}")
            except StopIteration:
                ahead.finish()
                return False
            except Exception as error:  # the user's own, which `get` raises after the batches before it
                ahead.finish(error)
                return False
            if ahead.add(batch):
                return True
            if back is not None:
                back(raw)
            return False

    def _halt(self) -> None:
        """Be at rest: no thread draws, and what it had drawn is kept."""
        rest = [] if self._chunk is None else self._chunk.rest()
        if self._ahead is not None:
            rest += self._ahead.stop()
            if self._ahead.error is not None:
                self._failed(self._ahead.error)
        self._ahead = self._chunk = None
        if rest:
            self._kept(rest)

    def _failed(self, error: BaseException) -> None:
        """The source has raised `error`, and nobody has seen it."""

    def _capacity(self, batch: Batch) -> int:
        widest = self._widest
        if widest is not None and batch.size < widest.size and batch.kind == widest.kind:
            # The smaller one at the end.
            return 1
        self._widest = batch
        return max(
            1, min(self._budget // max(sum(leaf.nbytes for leaf in batch.leaves), 1), self._most, self.batches or self._most)
        )


class Passes(Stream):
    """A source that can be iterated anew: each epoch is a pass, or epochs of `steps` are cut one after another from passes.

    Args:
        make: The batches of a pass, from its number and that of the first batch.
        length: How many batches a pass has; None where unknown.
        begun: Called when an epoch begins.
        ended: Called when an epoch has ended.
        once: Whether there is one pass, which may have fewer batches than `steps`.
    """

    def __init__(
        self,
        what: str,
        make: Callable[[int, int], Iterator[Any]],
        length: int | None,
        *,
        begun: Callable[[], Any] | None = None,
        ended: Callable[[], Any] | None = None,
        apart: bool | None = None,
        once: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(what, **options)
        self._once = once
        self._make, self._length = make, length
        self._on_begin, self._on_end = begun, ended
        self.batches = self._steps or length
        self._apart = self._apart if apart is None else apart
        # The batches of all passes, and the number of the next of them; None where that is not known.
        self._endless: Iterator[Any] = iter(())
        self._next_number: int | None = None
        self._until = 0

    def _opened(self, epoch: int, at: int) -> Iterator[tuple[Any, None]]:
        if self._on_begin is not None:
            self._on_begin()
        if self._steps is None:
            self._endless = self._make(epoch, at)
        else:
            number = epoch * self._steps + at
            if number != self._next_number:
                self._endless = self._passes(number)
            self._next_number, self._until = None, (epoch + 1) * self._steps
        return ((raw, None) for raw in self._endless)

    def _passes(self, number: int) -> Iterator[Any]:
        first, skip = (0, number) if self._length is None else divmod(number, self._length)
        at = 0 if self._length is None else skip
        for number in itertools.count(first) if not self._once else range(first, first + 1):
            empty = True
            for raw in self._make(number, at):
                empty = False
                if self._length is None and skip:
                    skip -= 1
                else:
                    yield raw
            if empty and not at:
                raise DataError(f"{self._what} gave no batch at all in a pass over it; expected at least one.")
            at = 0

    def _ended(self) -> None:
        if self._steps is not None and self._given == self._steps:
            self._next_number = self._until
        if self._on_end is not None:
            self._on_end()

    def _ran_out(self) -> None:
        if not self._given:
            raise DataError(f"{self._what} gave no batch at all; expected at least one.")
        if self._steps is not None:
            warn(f"{self._what} ended after {self._given} of {self._steps} batches; each is measured once.", DataWarning)

    def close(self) -> None:
        super().close()
        self._endless, self._next_number = iter(()), None
