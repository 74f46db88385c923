"""`vectorized_map` and `associative_scan`, which run a function on many entries at once: an assignment there is refused.

The variable would have a value for each entry. Keras on TensorFlow and torch assigns in some order, or a tensor that has left
its trace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kustom.backends import keras as private
from kustom.errors import BranchError

__all__ = ["one_value_each"]


@contextlib.contextmanager
def one_value_each() -> Iterator[None]:
    """Inside, in this thread, what is mapped over many entries may read variables and not assign to them."""
    with contextlib.ExitStack() as stack:
        for exchange in _exchanges:
            stack.enter_context(exchange)
        yield


def _exchange(name: str) -> private.Exchange:
    def refuse(variable: keras.Variable) -> BranchError:
        return BranchError(
            f"{variable.path!r} was assigned to inside ops.{name}, which computes all entries at once, so that the variable would "
            "have many values. Assign outside, from what it returns, or use ops.map, which goes from one to the next."
        )

    def chosen(plain: Callable[..., Any]) -> Callable[..., Any]:
        def on_many(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if not exchange.here:
                return plain(f, *args, **kwargs)
            with private.assignments_refused(refuse):
                return plain(f, *args, **kwargs)

        return on_many

    exchange = private.Exchange(private.backend_module("core"), name, chosen)
    return exchange


_exchanges = [_exchange("vectorized_map"), _exchange("associative_scan")]
