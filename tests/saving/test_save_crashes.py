"""A process that is killed while it saves leaves the old file or the new one, whole.

To start a process with Keras in it takes seconds, so that most of those that are killed only write: the members of two files
that were saved before, one after the other, by the code by which every file is written.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import kustom

WRITES = """
import sys, zipfile
from kustom.saving import archive
files = []
for path in sys.argv[2:]:
    with zipfile.ZipFile(path) as file:
        files.append([(name, file.read(name)) for name in file.namelist()])
while True:
    for members in files:
        archive.write(sys.argv[1], members)
        print("written", flush=True)
"""
SAVES = """
import sys, keras, kustom
model = keras.saving.load_model(sys.argv[2])
while True:
    for number in (0.0, 1.0):
        for layer in model.layers[-2:]:
            layer.bias.assign(keras.ops.full((512,), number))
        kustom.save(model, sys.argv[1])
        print("written", flush=True)
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A model with biases of 0, and one with biases of 1."""
    (tmp_path / "from").mkdir()
    model = keras.Sequential([keras.Input((512,)), keras.layers.Dense(512), keras.layers.Dense(512)])
    paths = [tmp_path / "from" / f"{number}.keras" for number in (0, 1)]
    for number, path in enumerate(paths):
        for layer in model.layers:
            layer.bias.assign(ops.full((512,), float(number)))
        kustom.save(model, path)
    return paths


def killed(code: str, files: list[Path], path: Path, seconds: float) -> None:
    """Start a process that saves again and again, kill it, and look at what it left."""
    command = [sys.executable, "-W", "ignore", "-c", code, str(path), *map(str, files)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            os.sched_yield()
        os.kill(process.pid, signal.SIGKILL)
    model = kustom.load(path)
    biases = [ops.convert_to_numpy(layer.bias) for layer in model.layers]
    assert len(np.unique(biases)) == 1
    left = {each.name for each in path.parent.iterdir()} - {path.name, "from"}
    assert all(name.startswith(f".{path.name}.") and name.endswith(".part") for name in left)


def moments(count: int) -> Any:
    """Anywhere in the next few saves."""
    return np.random.default_rng(count).uniform(0, 0.1, count)


def test_killed_while_it_writes(tmp_path, files):
    for seconds in moments(5):
        killed(WRITES, files, tmp_path / "model.keras", seconds)


@pytest.mark.slow
def test_killed_many_times_while_it_writes(tmp_path, files):
    for seconds in moments(180):
        killed(WRITES, files, tmp_path / "model.keras", seconds)


@pytest.mark.slow
def test_killed_while_it_saves(tmp_path, files):
    for seconds in moments(20):
        killed(SAVES, files, tmp_path / "model.keras", seconds)


def test_members_are_the_same_by_whichever_process(files):
    with zipfile.ZipFile(files[0]) as one, zipfile.ZipFile(files[1]) as other:
        assert one.namelist() == other.namelist()
        assert one.read("config.json") == other.read("config.json")
