"""The worked examples of training: what each of them reaches, and that it reaches it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from houses import houses


def test_pictures_of_noise_are_not_taken_for_digits(module: Any) -> None:
    gan = module("gan")
    real, digits = gan.load_digits(return_X_y=True)
    real = real / 16
    half = np.arange(len(real)) % 2 == 0
    rng = np.random.default_rng(0)
    verdict = gan.judged(real[half], real[~half], digits[~half])
    assert 0.9 < verdict.distance < 1.3
    assert verdict.evenness > 0.99
    assert gan.judged(rng.random((200, 64)), real, digits).distance > 2
    one = gan.judged(np.repeat(real[:1], 100, axis=0), real, digits)
    assert one.distance == one.evenness == 0


def test_both_networks_learn_and_each_optimizer_counts(module: Any, tmp_path: Path) -> None:
    gan, loop = module("gan").train(1, 0, tmp_path, quiet=True)
    assert [int(optimizer.iterations.value) for optimizer in gan.optimizers] == [29, 29]
    assert sorted(loop.history.history) == ["critic_loss", "generator_loss"]


def test_the_same_seed_draws_the_same_pictures(module: Any, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(5, 32)).astype("float32")
    once, twice = (module("gan").train(1, 4, tmp_path, quiet=True)[0].made(noise) for _ in range(2))
    np.testing.assert_array_equal(once, twice)


@pytest.mark.slow
def test_made_digits_are_like_real_ones(module: Any, tmp_path: Path) -> None:
    verdict = module("gan").run(60, 0, tmp_path, quiet=True)
    assert verdict.distance < 1.7
    assert verdict.evenness > 0.9
    assert len(list(tmp_path.glob("samples-*.png"))) == 60


@pytest.mark.slow
def test_wide_and_deep_learns_a_curve_that_a_line_does_not(invoke: Any, module: Any) -> None:
    houses(3000).to_csv("houses.csv", index=False)
    result = invoke("wide_and_deep", "--data", "houses.csv", "--target", "price", "--quiet", "--out", "run")
    assert result.exit_code == 0, result.output
    assert result.output == ""
    errors = json.loads(Path("run/errors.json").read_text())
    assert errors["wide_and_deep"] < 0.6 * errors["linear_regression"]
    # What is in the file is the best epoch.
    tables = module("tables")
    data = tables.prepare(tables.read_table(Path("houses.csv"), "price"), 0).validation
    model: Any = keras.saving.load_model("run/model.keras")
    error = model.predict(data.inputs, verbose=0) - data.targets
    assert np.sqrt(np.mean(error**2)) == pytest.approx(pd.read_csv("run/history.csv")["val_rmse"].min(), rel=1e-3)


@pytest.mark.slow
def test_wide_and_deep_learns_the_default_table_about_as_well_as_a_line(invoke: Any) -> None:
    assert invoke("wide_and_deep", "--quiet", "--out", "run").exit_code == 0
    errors = json.loads(Path("run/errors.json").read_text())
    assert errors["wide_and_deep"] < 1.1 * errors["linear_regression"]


@pytest.mark.slow
def test_the_inputs_are_reconstructed_beside_the_target(invoke: Any) -> None:
    houses(3000).to_csv("houses.csv", index=False)
    result = invoke("reconstruction", "--data", "houses.csv", "--target", "price", "--out", "run")
    assert result.exit_code == 0, result.output
    errors = json.loads(Path("run/errors.json").read_text())
    assert errors["reconstruction_error"] < 0.2 * errors["variance_of_inputs"]
    assert errors["rmse"] < 0.5 * errors["rmse_of_the_mean"]
    assert {"loss", "mae", "reconstruction_error", "val_reconstruction_error"} <= set(pd.read_csv("run/history.csv").columns)
