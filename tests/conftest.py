"""What the tests share: a trip through a file, and tensors with a mask."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Many tests compile the same small programs, and most of their time is XLA's: each is compiled once a run, for the
# processes that tests start, too. Read by JAX when it is imported.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.mkdtemp(prefix="kustom-tests-")
    atexit.register(shutil.rmtree, _programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import keras
import numpy as np
import pytest

from kustom.backends.keras import set_keras_mask


@pytest.fixture
def trip(tmp_path: Path) -> Callable[[Any], Any]:
    """Save a model with Keras, load it with Keras."""

    def go(model: Any) -> Any:
        path = tmp_path / "model.keras"
        model.save(path)
        return keras.saving.load_model(path)

    return go


@pytest.fixture
def masked() -> Callable[[Any, Any], Any]:
    """A tensor that carries a mask, as a layer's output does."""

    def go(x: Any, mask: Any) -> Any:
        x = keras.ops.convert_to_tensor(np.asarray(x, "float32"))
        set_keras_mask(x, keras.ops.convert_to_tensor(np.asarray(mask)))
        return x

    return go


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(0)
