"""The gradients of every layer are the same on this backend and on the next one, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from across import gradients
from layers import BACKEND, usable

NEXT = {"tensorflow": "jax", "jax": "torch", "torch": "tensorflow"}[BACKEND]
COMPARED = [id_ for id_, case in usable().items() if not case.draws and len(case.only) == 3]
# JAX compiles each layer four times: these stand for the rest, which `make test-all` compares.
QUICK = {"Dense", "Embedding", "Conv2D", "LayerNormalization", "BatchNormalization", "LSTM", "critic-layer-norm", "text"}
WITHIN = {"float32": 1e-5, "float64": 1e-10}


@pytest.fixture(scope="module")
def selected(request: pytest.FixtureRequest) -> list[str]:
    here = [item for item in request.session.items if item.path == request.path]
    return sorted({item.callspec.params["id_"] for item in here})  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def there(tmp_path_factory: Any, selected: list[str]) -> dict[str, np.ndarray]:
    if importlib.util.find_spec(NEXT) is None:
        pytest.skip(f"{NEXT} is not installed")
    out = tmp_path_factory.mktemp("across") / "gradients.npz"
    environment = {**os.environ, "KERAS_BACKEND": NEXT}
    command = [sys.executable, Path(__file__).with_name("across.py"), out, *selected]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(out) as saved:
        return dict(saved)


@pytest.fixture(scope="module")
def here(selected: list[str]) -> dict[str, dict[str, np.ndarray]]:
    return {dtype: gradients(dtype, selected) for dtype in WITHIN}


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("id_", [id_ if id_ in QUICK else pytest.param(id_, marks=pytest.mark.slow) for id_ in COMPARED])
def test_the_gradients_are_those_of_the_next_backend(id_, dtype, here, there):
    case = usable()[id_]
    within = WITHIN[dtype]
    if case.narrow:
        within = max(within, 1e-7 if set(case.narrow) == {"constants"} else WITHIN["float32"])
    mine = {key: value for key, value in here[dtype].items() if key.startswith(f"{id_}/")}
    assert mine
    largest: dict[str, float] = {}
    for key, value in mine.items():
        order = key.split("/")[2]
        largest[order] = max(largest.get(order, 0.0), float(abs(value).max(initial=0.0)))
    for key, value in mine.items():
        assert value.shape == there[key].shape, f"{key}: {value.shape} here, {there[key].shape} on {NEXT}"
        assert abs(value - there[key]).max(initial=0.0) <= within * largest[key.split("/")[2]], key
