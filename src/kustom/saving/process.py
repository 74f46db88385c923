"""The process around a save or a load: what it draws, where it looks, what it is told; all of it is put back.

A model that is rebuilt runs constructors, which draw seeds, set policies, number names. None of that is anybody's wish.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
from collections.abc import Iterator

import numpy as np

from kustom.backends import current
from kustom.backends import keras as private

__all__ = ["kept"]


@contextlib.contextmanager
def kept(*, names: bool) -> Iterator[None]:
    """Inside, the process may change; afterwards it is as it was, whatever happened.

    Args:
        names: Whether the numbers in the names that Keras gives are put back, too: not where a model stays that has some.
    """
    drawn, of_numpy = random.getstate(), np.random.get_state()
    folder, path = os.getcwd(), list(sys.path)
    levels = {logger: logger.level for logger in [logging.getLogger(), *_loggers()]}
    disabled = logging.root.manager.disable
    try:
        with private.kept(names=names), current().random_kept():
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(of_numpy)
        sys.path[:] = path
        if os.getcwd() != folder:
            os.chdir(folder)
        for logger, level in levels.items():
            logger.setLevel(level)
        logging.disable(disabled)


def _loggers() -> list[logging.Logger]:
    return [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
