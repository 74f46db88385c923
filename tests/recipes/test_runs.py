"""Every recipe run small: it leaves what it says in a folder of its own, whole, and says how it went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

SMALL = {
    "gan": ["--epochs", "2"],
    "grad_cam": ["--epochs", "1", "--pictures", "3"],
    "gradient_penalty": ["--epochs", "1", "--batch-size", "16"],
    "physics_informed": ["--epochs", "1"],
    "reconstruction": ["--epochs", "2"],
    "wide_and_deep": ["--epochs", "2"],
}
LEAVES = {
    "gan": {"history.csv", "samples-0001.png", "samples-0002.png"},
    "grad_cam": {"maps.png"},
    "gradient_penalty": {"critic.png"},
    "physics_informed": {"solution.png"},
    "reconstruction": {"curves.png", "errors.json", "history.csv", "model.keras"},
    "wide_and_deep": {"errors.json", "history.csv", "model.keras"},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_run_leaves_a_folder_and_says_how_it_went(name: str, invoke: Any) -> None:
    result = invoke(name, *SMALL[name], "--out", "run")
    assert result.exit_code == 0, result.output
    assert {path.name for path in Path("run").iterdir()} == LEAVES[name]
    for path in Path("run").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    lines = result.stdout.splitlines()
    assert lines[-1] == "run folder: run"
    assert lines[0].startswith(f"Epoch 1/{SMALL[name][1]}  ")
    assert "loss" in result.stdout


@pytest.mark.parametrize("name", SMALL)
def test_a_run_is_not_written_over_another(name: str, invoke: Any) -> None:
    Path("run").mkdir()
    (Path("run") / "file").touch()
    result = invoke(name, "--out", "run")
    assert result.exit_code == 2
    assert result.stderr == "error: no run folder: run is not empty\n"


@pytest.mark.parametrize("name", SMALL)
def test_the_help_says_what_can_be_chosen(name: str, invoke: Any) -> None:
    shown = invoke(name, "--help").stdout
    for option in ("--epochs", "--seed", "--out", "--quiet"):
        assert option in shown


@pytest.mark.parametrize("name", ["reconstruction", "wide_and_deep"])
def test_what_is_wrong_with_a_table_is_one_line(name: str, invoke: Any) -> None:
    for options, line in (
        (["--target", "price"], "error: --data and --target go together: a table, and the column to predict\n"),
        (["--data", "none.csv", "--target", "price"], "error: there is no file none.csv\n"),
    ):
        result = invoke(name, *options)
        assert result.exit_code == 2
        assert result.stderr == line
