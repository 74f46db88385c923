"""A process that is killed while it saves leaves the old file or the new one, whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras import ops

import kustom

CODE = """
import sys, keras, kustom
inputs = keras.Input((512,))
x = keras.layers.Dense(512)(inputs)
model = keras.Model(inputs, keras.layers.Dense(512)(x))
number = 0
while True:
    model.layers[-1].bias.assign(keras.ops.full((512,), float(number)))
    model.layers[-2].bias.assign(keras.ops.full((512,), float(number)))
    kustom.save(model, sys.argv[1])
    print(number, flush=True)
    number += 1
"""


def _killed(path: Path, kills: int, generator: Any) -> None:
    for _ in range(kills):
        command = [sys.executable, "-W", "ignore", "-c", CODE, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            saved = int(process.stdout.readline())
            # One save takes some tens of milliseconds: anywhere in one of the next.
            select_for(float(generator.uniform(0, 0.3)))
            os.kill(process.pid, signal.SIGKILL)
            saved = max([saved, *map(int, process.stdout.read().split())])
        model = kustom.load(path)
        biases = [ops.convert_to_numpy(layer.bias) for layer in model.layers[-2:]]
        numbers = {float(number) for bias in biases for number in np.unique(bias)}
        assert len(numbers) == 1
        assert numbers.pop() in (saved, saved + 1)


def select_for(seconds: float) -> None:
    """Let the other process run on."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        os.sched_yield()


def test_killed_while_it_saves(tmp_path):
    _killed(tmp_path / "model.keras", 5, np.random.default_rng(0))
    left = {each.name for each in tmp_path.iterdir()} - {"model.keras"}
    assert all(name.startswith(".model.keras.") and name.endswith(".part") for name in left)


@pytest.mark.slow
def test_killed_many_times_while_it_saves(tmp_path):
    _killed(tmp_path / "model.keras", 200, np.random.default_rng(1))
