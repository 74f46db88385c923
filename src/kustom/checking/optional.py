"""Libraries that only some of the checker needs, imported when they are."""

from __future__ import annotations

import importlib
from typing import Any

from kustom.errors import MissingLibraryError

__all__ = ["library"]

_EXTRAS = {"matplotlib": "pip install 'kustom[plot]'", "pytest": "pip install pytest"}


def library(name: str) -> Any:
    """The module of an optional library, such as `matplotlib.pyplot`.

    Raises:
        MissingLibraryError: It is not installed.
    """
    root = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != root:
            raise
        raise MissingLibraryError(f"this needs {root}, which is not installed: {_EXTRAS[root]}.") from error
