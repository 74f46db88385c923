"""Train, save, load in a new process: with Keras, which must have imported the parts, and with kustom, which is told them.

`make test` has the backend it runs on and one other, three pairs in all; `make test-all` has all nine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import kustom
from kustom import textbook
from roundtrip import models, parts
from roundtrip.reload import report

HERE = Path(__file__).parent
BACKEND = keras.backend.backend()
NEXT = {"jax": "tensorflow", "tensorflow": "torch", "torch": "jax"}
LAST = {other: backend for backend, other in NEXT.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a folder for each way, in which is a file for each model; and what each does."""
    folder, reports = tmp_path_factory.mktemp("saved"), {}
    for how in ("keras", "kustom"):
        (folder / how).mkdir()
    for name in models.MODELS:
        model, y = models.trained(name), models.targets_of(name)
        model.save(folder / "keras" / f"{name}.keras")
        kustom.save(model, folder / "kustom" / f"{name}.keras")
        for how in ("keras", "kustom"):
            np.savez(folder / how / f"{name}.npz", x=models.X, **(y if isinstance(y, dict) else {"y": y}))
        reports[name] = report(model, models.X, y)
    return folder, reports


def _reloaded(folder: Path, out: Path, backend: str, how: str) -> dict[str, Any]:
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-W", "ignore", str(HERE / "reload.py"), str(folder / how), str(out), how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return {file.stem: json.loads(file.read_text()) for file in out.glob("*.json")}


def _compare(reports: dict[str, Any], again: dict[str, Any], tolerance: float) -> None:
    assert again.keys() == reports.keys() == models.MODELS.keys()
    for name, before in reports.items():
        after = again[name]
        np.testing.assert_allclose(after["outputs"], before["outputs"], rtol=tolerance, atol=tolerance, err_msg=name)
        assert after["values"] == pytest.approx(before["values"], rel=tolerance * 10), name
        assert _settings(after["config"]) == _settings(before["config"]), name
        for kind in ("weights", "optimizer"):
            for one, other in zip(before[kind], after[kind], strict=True):
                np.testing.assert_array_equal(other, one, err_msg=f"{name}: {kind}")


def _settings(config: Any) -> Any:
    """A config without what is not of the part: the numbers of shared objects, and what differs by backend in Keras."""
    if isinstance(config, dict):
        of_process = {"shared_object_id", "jit_compile"} | (
            {"module", "registered_name"} if str(config.get("module")).startswith("keras") else set()
        )
        return {key: _settings(value) for key, value in config.items() if key not in of_process}
    return [_settings(value) for value in config] if isinstance(config, list) else config


def test_every_part_of_the_chapter_is_in_a_file(saved):
    # `create_huber` makes a `huber_fn`; the helpers of a training loop are no parts.
    text = "".join(json.dumps(each["config"]) for each in saved[1].values())
    chapter = {*textbook.__all__} - {"create_huber", "print_status_bar", "random_batch"}
    for name in chapter | {*vars(parts)} & {"pinball", "leaky", "Gated", "Lazy", "Twice", "Slow"}:
        assert f'>{name}"' in text, name


@pytest.mark.parametrize("how", ["keras", "kustom"])
def test_a_new_process_on_the_same_backend(saved, tmp_path, how):
    _compare(saved[1], _reloaded(saved[0], tmp_path, BACKEND, how), 1e-6)


@pytest.mark.parametrize("how", ["keras", "kustom"])
def test_a_new_process_on_another_backend(saved, tmp_path, how):
    _compare(saved[1], _reloaded(saved[0], tmp_path, NEXT[BACKEND], how), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["keras", "kustom"])
def test_a_new_process_on_the_third_backend(saved, tmp_path, how):
    _compare(saved[1], _reloaded(saved[0], tmp_path, LAST[BACKEND], how), 1e-5)


def test_keras_reads_what_kustom_wrote(saved, tmp_path):
    for path in (saved[0] / "kustom").glob("*.keras"):
        model, before = keras.saving.load_model(path), saved[1][path.stem]
        for one, other in zip(model.get_weights(), before["weights"], strict=True):
            np.testing.assert_array_equal(one, np.asarray(other, one.dtype))
