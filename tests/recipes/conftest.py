"""What the tests of the recipes share."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The recipes' modules, by name."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module


@pytest.fixture
def invoke(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recipe run in this process, in an empty folder: quicker where a process of its own is not the point."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *options: str) -> Any:
        app = typer.Typer()
        app.command()(module(name).main)
        return CliRunner().invoke(app, options, env={"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"})

    return run
