"""The benchmarks of loops: they run on what the tests have installed, all do the same work, and what goes wrong is said."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BACKEND = keras.backend.backend()
# Those that need no package beyond the backend, and no compiler.
CONTENDERS = {
    "tensorflow": ["textbook, eager", "by hand, tf.function a step", "by hand, loop in a graph", "by hand, loop in a graph, XLA"],
    "jax": ["textbook, eager"],
    "torch": ["textbook, eager", "by hand"],
}
FIT = ["fit", "fit, 32 steps a call"] if BACKEND != "torch" else ["fit"]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments), "--backends", BACKEND]
    return subprocess.run(command, env={**os.environ, "MPLBACKEND": "agg"}, capture_output=True, text=True, timeout=300)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("contenders.report")


@pytest.fixture
def seen(report: Any) -> Any:
    """What is seen of a contender; workload a on JAX unless said."""

    def make(contender: str, microseconds: float | None = None, loss: float | None = 1.0, backend: str = "jax", **more: Any) -> Any:
        return report.Seen("a", backend, contender, microseconds, 0.5, loss, 0.1, **more)

    return make


@pytest.mark.slow
def test_everyone_does_the_same_work_and_is_in_the_table(tmp_path):
    names = [*CONTENDERS[BACKEND], *FIT]
    done = run("loops.py", "--quick", "--workloads", "a", "d", "--out", tmp_path, "--contenders", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "loops.md").read_text(encoding="utf-8")
    assert table in done.stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith(f"| {BACKEND} ")]
    assert [row[1] for row in rows] == 2 * names
    assert len({round(float(row[6]), 2) for row in rows[: len(names)] if row[6] != "-"}) == 1
    assert (tmp_path / "loops.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_name_that_nobody_has_is_an_error(tmp_path):
    done = run("loops.py", "--quick", "--workloads", "a", "--out", tmp_path, "--contenders", "fit", "fitt")
    assert done.returncode == 1
    assert done.stderr == "nobody took part under the name of fitt\n"


@pytest.mark.slow
def test_a_map_is_trained_on_and_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sizes = ["--megabytes", 2, "--memory-rows", 256, "--limit", 4096]
    done = run("larger_than_memory.py", *sizes, "--contenders", "fit")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(BACKEND)
    assert "failed" not in done.stdout
    assert not [*tmp_path.rglob("*.npy")]


def test_a_missing_contender_and_one_that_did_other_work_are_errors(report, seen):
    missing = seen("Flax NNX", None, None, missing="No module named 'flax'")
    wrong = report.Results([seen("fit", 200.0), seen("by hand", 10.0), seen("lazy", 1.0, 1.5), missing]).wrong()
    assert wrong == [
        "a, jax: Flax NNX is missing: No module named 'flax'",
        "a, jax: lazy did other work, its loss is 1.5000, not 1.0000",
    ]


def test_a_loss_that_is_no_number_is_other_work(report, seen):
    assert len(report.Results([seen("fit", 200.0), seen("by hand", 10.0), seen("lost", 1.0, float("nan"))]).wrong()) == 1


def test_ratios_are_to_fit_and_to_the_best_by_hand_on_the_same_backend(report, seen):
    compiled = seen("by hand, torch.compile", 5.0, backend="torch")
    others = [seen("fit", 1000.0, backend="torch"), seen("by hand", 100.0, backend="torch"), compiled]
    table = report.Results([seen("fit", 200.0), seen("by hand, a", 20.0), seen("by hand, b", 40.0), *others]).table("a")
    ratios = [[cell.strip() for cell in line.split("|")[4:6]] for line in table.splitlines()[2:]]
    assert ratios == [["1.00", "10.00"], ["0.10", "1.00"], ["0.20", "2.00"], ["1.00", "10.00"], ["0.10", "1.00"], ["0.01", "0.05"]]


def test_what_was_asked_stands_beside_what_was_seen(report, seen):
    scan = seen("by hand, optax, a scan an epoch", 10.0)
    asked = report.Results([seen("fit", 100.0), scan, seen("kustom.Loop", 20.0)]).targets()
    assert [row[2:] for row in asked] == [
        ["kustom.Loop, to the scan by hand", "2.00 ×", "at most 1.05 ×", "misses"],
        ["kustom.Loop, faster than fit", "5.00 ×", "at least 6 ×", "misses"],
        ["kustom.Loop, before its first step, over fit's", "0.00 s", "at most 1 s", "holds"],
    ]
