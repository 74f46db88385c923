"""What Keras keeps for a thread and for the process, and how it is put back after what may change it.

A file that is loaded and a part that is tried run code that is not the caller's: none of it is to outlast them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

__all__ = ["kept", "settings_here"]


@contextlib.contextmanager
def kept(*, names: bool) -> Iterator[None]:
    """Inside, in this thread, Keras's own state may change; it is put back.

    Args:
        names: Whether the numbers in the names of layers to come are put back, too.
    """
    tracker = global_state.GLOBAL_STATE_TRACKER
    before = {name: value.copy() if isinstance(value, list | dict) else value for name, value in vars(tracker).items()}
    everyones: Any = before.get(GLOBAL_SEED_GENERATOR)
    state = keras.ops.copy(everyones.state._value) if everyones is not None and everyones.state._value is not None else None
    floats, fuzz, images = keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format()
    filtering = keras.config.is_traceback_filtering_enabled()
    interactive = keras.config.is_interactive_logging_enabled()
    try:
        yield
    finally:
        # Keras makes the counters itself, of a kind of its own, when it gives the first name in a thread.
        counters = "object_name_uids"
        if not names and counters in vars(tracker):
            before[counters] = vars(tracker)[counters]
        if everyones is not None and state is not None:
            everyones.state._direct_assign(state)
        keras.config.set_floatx(floats)
        keras.config.set_epsilon(fuzz)
        keras.config.set_image_data_format(images)
        (keras.config.enable_traceback_filtering if filtering else keras.config.disable_traceback_filtering)()
        (keras.config.enable_interactive_logging if interactive else keras.config.disable_interactive_logging)()
        # The last, since the two switches before stand there as well.
        vars(tracker).clear()
        vars(tracker).update(before)


def settings_here() -> dict[str, Any]:
    """What Keras keeps for this thread, by its own names."""
    return dict(vars(global_state.GLOBAL_STATE_TRACKER))
