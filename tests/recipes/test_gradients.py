"""The worked examples of gradients, run small: what each of them says of its result is so."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import typer
from keras import ops
from typer.testing import CliRunner

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PICTURES = {"gradient_penalty": "critic.png", "grad_cam": "maps.png", "physics_informed": "solution.png"}
SMALL = {
    "gradient_penalty": ["--steps", "2", "--batch-size", "16"],
    "grad_cam": ["--epochs", "1", "--pictures", "3"],
    "physics_informed": ["--steps", "3"],
}


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recipe's module, by name."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module


@pytest.fixture
def invoke(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(name: str, *options: str) -> Any:
        app = typer.Typer()
        app.command()(recipe(name).main)
        return CliRunner().invoke(app, options, env={"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"})

    return run


@pytest.mark.parametrize("name", PICTURES)
def test_a_run_leaves_a_picture_and_says_how_it_went(name: str, invoke: Any) -> None:
    result = invoke(name, *SMALL[name], "--out", "run")
    assert result.exit_code == 0, result.output
    assert [path.name for path in Path("run").iterdir()] == [PICTURES[name]]
    assert (Path("run") / PICTURES[name]).read_bytes().startswith(b"\x89PNG")
    assert result.stdout.splitlines()[-1] == "run folder: run"
    assert "loss" in result.stdout


@pytest.mark.parametrize("name", PICTURES)
def test_a_run_is_not_written_over_another(name: str, invoke: Any) -> None:
    Path("run").mkdir()
    (Path("run") / "file").touch()
    result = invoke(name, "--out", "run")
    assert result.exit_code == 2
    assert result.stderr == "error: no run folder: run is not empty\n"


@pytest.mark.parametrize("name", PICTURES)
def test_the_help_says_what_can_be_chosen(name: str, invoke: Any) -> None:
    shown = invoke(name, "--help").stdout
    assert "--seed" in shown
    assert "--out" in shown


def test_the_slope_of_the_critic_comes_near_1(recipe: Any) -> None:
    _, losses, norms = recipe("gradient_penalty").train(20, 64, 10.0, 0, quiet=True)
    assert len(losses) == len(norms) == 60
    assert abs(norms[0] - 1) > 0.5
    assert abs(np.mean(norms[-15:]) - 1) < 0.2


def test_the_same_seed_gives_the_same_run(recipe: Any) -> None:
    once, twice = (recipe("gradient_penalty").train(2, 16, 10.0, 3, quiet=True)[1] for _ in range(2))
    assert np.allclose(once, twice, rtol=1e-4)


def test_the_maps_lie_on_the_digit_that_was_asked_for(recipe: Any, tmp_path: Path) -> None:
    assert recipe("grad_cam").run(8, 2, 0, tmp_path, quiet=True) > 0.8


def test_the_maps_are_those_of_the_formula(recipe: Any) -> None:
    """Where the scores are weighted means of the maps, the gradient is known: the weights, divided by the places."""
    module = recipe("grad_cam")
    keras.utils.set_random_seed(1)
    seeing = module.network()
    images, digits = np.random.default_rng(0).random((4, 8, 8, 1)).astype("float32"), np.array([3, 1, 4, 1])
    maps = ops.convert_to_numpy(seeing(images)["maps"])
    kernel = ops.convert_to_numpy(seeing.layers[-1].kernel)
    expected = np.maximum(np.einsum("nhwc,cn->nhw", maps, kernel[:, digits]), 0) / 64
    assert np.allclose(module.grad_cam(seeing, images, digits), expected, atol=1e-6)


def test_the_network_finds_the_solution_from_the_equation(recipe: Any) -> None:
    module = recipe("physics_informed")
    oscillator, losses = module.train(0.25, 60, 0, quiet=True)
    assert losses[-1] < 0.05 * losses[0]
    assert oscillator.error() < 0.3
    assert np.isclose(oscillator.found()[0, 0], 1)


@pytest.mark.parametrize("damping", [0.0, 0.25, 0.9])
def test_the_known_solution_solves_the_equation(recipe: Any, damping: float) -> None:
    h = 1e-3
    before, u, after = (recipe("physics_informed").exact(np.linspace(0, 8, 9) + d, damping) for d in (-h, 0.0, h))
    left = (after - 2 * u + before) / h**2 + damping * (after - before) / h + u
    assert np.allclose(left, 0, atol=1e-5)
    assert np.isclose(u[0], 1)
    assert np.isclose(after[0], before[0], atol=1e-7)
