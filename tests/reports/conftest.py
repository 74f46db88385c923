from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest


@pytest.fixture
def reloaded(tmp_path: Path) -> Callable[[Any], Any]:
    """The model that Keras reads from the file that Keras has written of a model."""

    def reload(model: Any) -> Any:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.keras"
        model.save(path)
        return keras.saving.load_model(path)

    return reload
