"""The main job, run as a user runs it: `python recipes/regression.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes" / "regression.py"
FILES = {"model.keras", "history.csv", "config.json", "learning_curve.png"}
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "MPLBACKEND": "Agg"}

pytest.importorskip("sklearn")
pytest.importorskip("typer")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with numbers, text categories and missing values."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "houses.csv"
    rows = ["size,town,rooms,price"]
    for index in range(200):
        size, town, rooms = rng.uniform(20, 200), rng.choice(["Oslo", "Bergen"]), rng.integers(1, 6)
        price = 1000 * size + 50_000 * (town == "Oslo") + 10_000 * rooms + rng.normal() * 1000
        shown = "" if index % 20 == 0 else f"{size:.1f}"
        rows.append(f"{shown},{'' if index % 33 == 0 else town},{rooms},{price:.0f}")
    path.write_text("\n".join(rows))
    return path


def _run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_a_table_of_ones_own_leaves_a_whole_run_folder(table, tmp_path):
    done = _run("--data", table, "--target", "price", "--epochs", 3, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} >= FILES
    assert "loaded in a new process" in done.stdout
    assert "linear regression" in done.stdout
    json.loads((tmp_path / "run" / "config.json").read_text())
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) >= 2
    assert (tmp_path / "run" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in (tmp_path / "run").iterdir() if "tmp" in path.name]


@pytest.mark.parametrize("wrong", ["no such file", "no such column", "text for a target"])
def test_bad_input_is_one_clear_line(wrong, table, tmp_path):
    arguments = {
        "no such file": ("--data", tmp_path / "none.csv", "--target", "price"),
        "no such column": ("--data", table, "--target", "prize"),
        "text for a target": ("--data", table, "--target", "town"),
    }[wrong]
    done = _run(*arguments, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_help(tmp_path):
    done = _run("--help", cwd=tmp_path)
    assert done.returncode == 0
    for option in ("--data", "--target", "--epochs", "--seed", "--out"):
        assert option in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="a console's Ctrl-C is sent otherwise there")
def test_ctrl_c_saves_what_was_reached(table, tmp_path):
    command = [sys.executable, "-u", "-W", "ignore", str(SCRIPT), "--data", str(table), "--target", "price"]
    command += ["--epochs", "100000", "--out", str(tmp_path / "run")]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if line.lstrip().startswith("epoch"):
                os.killpg(process.pid, signal.SIGINT)
                break
        rest = process.stdout.read()
        process.wait(timeout=120)
    assert "Traceback" not in rest, "".join(seen) + rest
    assert {path.name for path in (tmp_path / "run").iterdir()} >= FILES, "".join(seen) + rest
    assert "loaded in a new process" in rest


@pytest.mark.slow
def test_the_default_table_is_no_worse_than_a_linear_regression(tmp_path):
    done = _run("--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "beats the linear regression" in done.stdout or keras.backend.backend() != "jax"
