"""The notebook's loop is the same file on three backends, and reaches the same loss."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import textbook_loop

BACKEND = keras.backend.backend()
NEXT = {"jax": "tensorflow", "tensorflow": "torch", "torch": "jax"}[BACKEND]


@pytest.fixture(scope="module")
def here() -> dict[str, Any]:
    return textbook_loop.trained()


def agree(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Sums of float32 differ in the last digits, and 80 steps carry that on."""
    assert one["history"].keys() == other["history"].keys() == {"loss", "mae"}
    for name, values in one["history"].items():
        np.testing.assert_allclose(values, other["history"][name], rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(one["predictions"], other["predictions"], atol=1e-3)
    assert one["iterations"] == other["iterations"] == 5 * 16


def test_the_next_backend_reaches_the_same_loss(here: dict[str, Any], tmp_path: Path) -> None:
    # Each backend is compared with the next one: all three are equal where the suites of all three pass.
    if importlib.util.find_spec(NEXT) is None:
        pytest.skip(f"{NEXT} is not installed")
    environment = {**os.environ, "KERAS_BACKEND": NEXT, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, textbook_loop.__file__, str(tmp_path / "out.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    agree(here, json.loads((tmp_path / "out.json").read_text()))


@pytest.mark.parametrize("execution", ["step", pytest.param("eager", marks=pytest.mark.slow)])
def test_the_way_it_is_run_changes_nothing(here: dict[str, Any], execution: str) -> None:
    agree(here, textbook_loop.trained(execution=execution))


def test_it_learns(here: dict[str, Any]) -> None:
    losses = here["history"]["loss"]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.6 * losses[0]
    assert np.corrcoef(here["predictions"], textbook_loop.y_valid[:, 0])[0, 1] > 0.9
