"""What of Keras's is another for a while: for one thread, while others go on with Keras's own.

Keras has no hooks where kustom needs them, so a method or a function of its own is put in front of Keras's, and only for
as long as somebody wants it. All threads share what stands there, so that one lock guards every exchange.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Exchange", "lock"]

lock = threading.Lock()


class Exchange:
    """An attribute of Keras's that is another for as long as anybody, in whatever thread, has this context open.

    Code that has no use for it runs Keras's own. What stands there meanwhile is asked by every thread, and looks at `here`.

    Args:
        owner: The class or module that has the attribute.
        name: The attribute.
        other: Makes what is to stand there from what does.
    """

    def __init__(self, owner: Any, name: str, other: Callable[[Any], Any]) -> None:
        self._owner, self._name, self._other = owner, name, other
        self._thread = threading.local()
        # How many have it open in all threads, and what stood there of the owner's own.
        self._open = 0
        self._kept: Any = None

    @property
    def here(self) -> bool:
        """Whether this thread has it open."""
        return bool(getattr(self._thread, "depth", 0))

    def __enter__(self) -> None:
        self._thread.depth = getattr(self._thread, "depth", 0) + 1
        with lock:
            self._open += 1
            if self._open == 1:
                self._kept = vars(self._owner).get(self._name)
                setattr(self._owner, self._name, self._other(getattr(self._owner, self._name)))

    def __exit__(self, *error: object) -> None:
        self._thread.depth -= 1
        with lock:
            self._open -= 1
            if self._open:
                return
            if self._kept is None:
                # It was inherited.
                delattr(self._owner, self._name)
            else:
                setattr(self._owner, self._name, self._kept)
