"""Iterators: what they give comes once, so that none of it may be lost.

After an epoch of `steps_per_epoch` a user's own `next(iterator)` goes on where training stopped. What was drawn ahead of a
loop that broke off, an exception among it, is kept beside the iterator, and the next source over it begins with that.
"""

from __future__ import annotations

import itertools
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

from kustom.errors import DataError, DataWarning
from kustom.training.ahead import Batch
from kustom.training.source import Block, unflatten
from kustom.training.streams import Back, Stream

__all__ = ["OnePass"]


class OnePass(Stream):
    """An iterator: an epoch goes on where the last one, or the last source over it, has ended.

    Args:
        trains: Whether it is what is trained on, and not measured by.
    """

    def __init__(self, what: str, iterator: Iterator[Any], *, trains: bool = True, **options: Any) -> None:
        super().__init__(what, **options)
        self._trains = trains
        self._iterator = iterator
        self._tap = _Tap.of(iterator)
        self._lock = self._tap.lock
        self._started = False

    def _opened(self, epoch: int, at: int) -> Iterator[tuple[Any, Back]]:
        for number in itertools.count():
            try:
                drawn = self._tap.draw(self._iterator)
            except StopIteration:
                return
            if number >= at:
                yield drawn

    def _kept(self, batches: list[Batch]) -> None:
        self._tap.kept.extendleft(unflatten(batch.structure, batch.leaves) for batch in reversed(batches))

    def _failed(self, error: BaseException) -> None:
        self._tap.error = error

    def take(self, most: int) -> Block | None:
        block = super().take(most)
        self._started = self._started or block is not None
        return block

    def _ran_out(self) -> None:
        if not self._started:
            raise DataError(
                f"{self._what} gave no batch: it was used up before. Make a new one, or give what can be iterated anew."
            )
        if self._steps is not None or not self._given:
            self.ended = True
            where = "training ends here" if self._trains else "what they measure is reported"
            of = "this epoch" if self._trains else "this evaluation"
            wanted = f"{self._given} of {self._steps} batches in {of}" if self._steps else "nothing for another epoch"
            warnings.warn(
                f"{self._what} ended, with {wanted}; {where}. Give one that lasts for all epochs, or what can be iterated anew.",
                DataWarning,
                stacklevel=2,
            )

    def close(self) -> None:
        super().close()
        self._tap.release(self._iterator)


class _Tap:
    """Where a one-pass iterator is drawn from, by whichever source; it keeps what was drawn and given to nobody."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: deque[Any] = deque()
        self.error: BaseException | None = None

    @staticmethod
    def of(iterator: Any) -> _Tap:
        """The one of this iterator."""
        key = id(iterator)
        if key in _taps:
            return _taps[key][0]
        try:
            holder = weakref.ref(iterator, lambda _: _taps.pop(key, None))
        except TypeError:
            # `zip` and `map` know no weak references; such a one is held while something of it is kept.
            holder = iterator
        tap = _Tap()
        _taps[key] = tap, holder
        return tap

    def release(self, iterator: Any) -> None:
        """No source uses it now: forget what is held, if there is nothing to keep."""
        if not self.kept and self.error is None and not self.lock.locked() and _taps.get(id(iterator), (None, None))[1] is iterator:
            del _taps[id(iterator)]

    def draw(self, iterator: Iterator[Any]) -> tuple[Any, Back]:
        """The next batch, and how to give it back."""
        if self.kept:
            return self.kept.popleft(), self.kept.appendleft
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return next(iterator), self.kept.append


_taps: dict[int, tuple[_Tap, Any]] = {}
