"""The worked examples of gradients: what each of them says of its result is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops


def test_the_slope_of_the_critic_comes_near_1(module: Any) -> None:
    _, history = module("gradient_penalty").train(4, 64, 10.0, 0, quiet=True)
    norms = history["slope"]
    assert len(history["critic_loss"]) == len(norms) == 4
    assert abs(norms[0] - 1) > abs(norms[-1] - 1)
    assert abs(norms[-1] - 1) < 0.2


def test_the_same_seed_gives_the_same_run(module: Any) -> None:
    once, twice = (module("gradient_penalty").train(1, 16, 10.0, 3, quiet=True)[1] for _ in range(2))
    assert once == twice


def test_the_maps_lie_on_the_digit_that_was_asked_for(module: Any, tmp_path: Path) -> None:
    assert module("grad_cam").run(8, 2, 0, tmp_path, quiet=True) > 0.8


def test_the_maps_are_those_of_the_formula(module: Any) -> None:
    """Where the scores are weighted means of the maps, the gradient is known: the weights, divided by the places."""
    seen = module("grad_cam")
    keras.utils.set_random_seed(1)
    seeing = seen.network()
    images, digits = np.random.default_rng(0).random((4, 8, 8, 1)).astype("float32"), np.array([3, 1, 4, 1])
    maps = ops.convert_to_numpy(seeing(images)["maps"])
    kernel = ops.convert_to_numpy(seeing.layers[-1].kernel)
    expected = np.maximum(np.einsum("nhwc,cn->nhw", maps, kernel[:, digits]), 0) / 64
    assert np.allclose(seen.grad_cam(seeing, images, digits), expected, atol=1e-6)


def test_the_network_finds_the_solution_from_the_equation(module: Any) -> None:
    oscillator, losses = module("physics_informed").train(0.25, 5, 0, quiet=True)
    assert losses[-1] < 0.05 * losses[0]
    assert oscillator.error() < 0.3
    assert np.isclose(oscillator.found()[0, 0], 1)


@pytest.mark.parametrize("damping", [0.0, 0.25, 0.9])
def test_the_known_solution_solves_the_equation(module: Any, damping: float) -> None:
    h = 1e-3
    before, u, after = (module("physics_informed").exact(np.linspace(0, 8, 9) + d, damping) for d in (-h, 0.0, h))
    left = (after - 2 * u + before) / h**2 + damping * (after - before) / h + u
    assert np.allclose(left, 0, atol=1e-5)
    assert np.isclose(u[0], 1)
    assert np.isclose(after[0], before[0], atol=1e-7)
