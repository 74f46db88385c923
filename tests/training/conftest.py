"""What of these tests `make test` leaves to `make test-all`, so that it stays within its minutes.

On JAX and TensorFlow each model is compiled anew, and these files make hundreds; torch runs all of them each time.
"""

from __future__ import annotations

import keras
import pytest

LONG = ("test_model.py", "test_accumulation.py", "test_function_state.py", "test_branches.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if keras.backend.backend() == "torch":
        return
    for item in items:
        if item.path.name in LONG and item.path.parent.name == "training":
            item.add_marker(pytest.mark.slow)
