"""The main job as its users run it: in a process of its own, on tables with gaps, text and mistakes, and ended by Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from houses import houses

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SCRIPT = RECIPES / "regression.py"
FILES = {"config.json", "held_out.npz", "history.csv", "learning_curve.png", "model.keras", "preparation.joblib"}
# A process that computes nothing of interest may still have to start a backend on a busy machine.
PATIENCE = 120


def recipe(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("trained")
    houses(300).to_csv(folder / "houses.csv", index=False)
    options = ["--data", "houses.csv", "--target", "price", "--epochs", 3, "--seed", 7, "--out", "out/run"]
    return recipe(*options, folder=folder), folder / "out" / "run"


@pytest.fixture
def refusal(invoke: Any) -> Any:
    """What the recipe says when it is run with these options and a table of these contents, and refuses."""

    def run(*options: str, table: pd.DataFrame | None = None) -> str:
        if table is not None:
            table.to_csv("table.csv", index=False)
            options = ("--data", "table.csv", *options)
        result = invoke("regression", *options)
        assert result.exit_code == 2, result.output
        assert not Path("runs").exists()
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr

    return run


def test_a_run_leaves_a_complete_folder(trained: Any) -> None:
    done, folder = trained
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    history = pd.read_csv(folder / "history.csv")
    assert list(history["epoch"]) == [1, 2, 3]
    assert {"loss", "rmse", "val_loss", "val_rmse"} <= set(history.columns)


def test_the_configuration_says_how_and_with_what(trained: Any) -> None:
    config = json.loads((trained[1] / "config.json").read_text())
    assert config["options"] == {"epochs": 3, "batch_size": 32, "threshold": 1.0, "seed": 7}
    assert config["backend"] == os.environ.get("KERAS_BACKEND", config["backend"])
    assert {"kustom", "keras", "numpy", "python", config["backend"]} <= set(config["versions"])
    data = config["data"]
    assert data["rows"] == 297
    assert data["rows_dropped"] == 3
    assert data["columns_dropped"] == ["empty"]
    assert data["train_rows"] + data["validation_rows"] + data["held_out_rows"] == 297
    assert config["results"]["loaded_agrees"]
    assert config["results"]["ended_by"] == "the last epoch"
    execution = config["results"]["execution"]
    assert execution["way"] == "loop"
    assert execution["backend"] == config["backend"]


def test_a_run_says_what_it_did(trained: Any) -> None:
    out = trained[0].stdout
    assert "dropped 3 rows without a value of 'price'" in out
    assert "Epoch 1/3 " in out
    assert "steps/s" in out
    assert "loaded in a new process: loss " in out
    assert "linear regression" in out
    assert "run folder: out/run" in out


def test_the_errors_reported_are_those_of_the_predictions_recorded(trained: Any) -> None:
    config = json.loads((trained[1] / "config.json").read_text())
    with np.load(trained[1] / "held_out.npz") as recorded:
        error = (recorded["predictions"] - recorded["targets"]) * config["data"]["target_scale"]
    assert config["results"]["network"]["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)
    assert config["results"]["network"]["mae"] == pytest.approx(np.mean(np.abs(error)), rel=1e-4)


def test_a_model_that_predicts_otherwise_does_not_pass(
    trained: Any, module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained[1], tmp_path, dirs_exist_ok=True)
    check = module("regression_check")
    assert check.agree(tmp_path)
    with np.load(tmp_path / "held_out.npz") as recorded:
        arrays = dict(recorded)
    np.savez(tmp_path / "held_out.npz", **arrays | {"predictions": arrays["predictions"] + 1e-3})
    assert not check.agree(tmp_path)
    assert "differ by at most 0.001" in capsys.readouterr().out


def test_quiet_prints_nothing_and_a_large_table_gets_the_large_network(invoke: Any) -> None:
    houses(3000).to_csv("large.csv", index=False)
    done = invoke("regression", "--data", "large.csv", "--target", "price", "--epochs", "1", "--quiet")
    assert done.exit_code == 0, done.stderr
    assert done.output == ""
    [folder] = Path("runs").iterdir()
    assert folder.name.startswith("large-")
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "config.json").read_text())["options"]["batch_size"] == 256


@pytest.mark.skipif(sys.platform == "win32", reason="a process group is signalled otherwise there")
def test_ctrl_c_saves_what_was_reached(tmp_path: Path) -> None:
    houses(300).to_csv(tmp_path / "houses.csv", index=False)
    # One row a step: far more epochs than the signal takes to arrive.
    options = ["--data", "houses.csv", "--target", "price", "--epochs", "100000", "--batch-size", "1", "--out", "run"]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *options],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    late = threading.Timer(PATIENCE, process.kill)
    late.start()
    try:
        assert process.stdout is not None
        assert any(line.startswith("Epoch 1/") for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    finally:
        late.cancel()
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "stopping" in err
    assert "Traceback" not in err
    assert "loaded in a new process" in out
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    results = json.loads((tmp_path / "run" / "config.json").read_text())["results"]
    assert results["ended_by"] == "Ctrl-C"
    assert results["loaded_agrees"]
    assert results["epochs"] == len(pd.read_csv(tmp_path / "run" / "history.csv"))


def test_help_names_the_options(invoke: Any) -> None:
    shown = invoke("regression", "--help").stdout
    for option in ("--data", "--target", "--epochs", "--batch-size", "--threshold", "--seed", "--out", "--quiet"):
        assert option in shown


def test_a_missing_file_is_refused(refusal: Any) -> None:
    assert refusal("--data", "none.csv", "--target", "price") == "error: there is no file none.csv\n"


def test_a_file_that_is_no_table_is_refused(refusal: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00")
    for name in ("empty.csv", "picture.csv", "."):
        assert "cannot be read" in refusal("--data", name, "--target", "price")


def test_a_missing_column_is_refused_with_the_one_that_was_meant(refusal: Any) -> None:
    assert "has no column 'prise'; did you mean 'price'?" in refusal("--target", "prise", table=houses(60))
    assert "it has area, town, garden, empty, price" in refusal("--target", "zz", table=houses(60))


def test_a_target_that_is_not_numeric_is_refused(refusal: Any) -> None:
    table = houses(60)
    table["price"] = table["price"].round(2).astype(object)
    table.loc[7, "price"] = "on request"
    assert "1 of its 57 values are text, such as 'on request' in row 8" in refusal("--target", "price", table=table)
    assert "it is true or false" in refusal("--target", "garden", table=table)


def test_too_little_to_learn_from_is_refused(refusal: Any) -> None:
    assert "has 37 rows with a value of 'price'; at least 50" in refusal("--target", "price", table=houses(40))
    assert "no column beside" in refusal("--target", "price", table=houses(60)[["price", "empty"]])
    assert "is 3 in every row" in refusal("--target", "price", table=houses(60).assign(price=3))


def test_options_that_do_not_fit_are_refused(refusal: Any, tmp_path: Path) -> None:
    assert "go together" in refusal("--target", "price")
    assert "go together" in refusal("--data", "table.csv")
    for threshold in ("0", "-1", "nan", "inf"):
        assert "--threshold must be a number above 0" in refusal("--threshold", threshold)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.keras").write_text("")
    assert "full is not empty" in refusal("--out", "full", "--target", "price", table=houses(60))


def test_a_table_is_prepared_by_its_training_rows_alone(module: Any, tmp_path: Path) -> None:
    tables = module("tables")
    houses(300).to_csv(tmp_path / "houses.csv", index=False)
    data = tables.prepare(tables.read_table(tmp_path / "houses.csv", "price"), seed=0)
    # Area; whether it was missing; the flag's two values; three towns and the missing one.
    assert data.numeric == 1
    assert data.train.inputs.shape[1] == 1 + 1 + 2 + 4
    assert data.train.inputs[:, 0].mean() == pytest.approx(0, abs=1e-5)
    assert data.train.inputs[:, 0].std() == pytest.approx(1, abs=1e-5)
    assert set(np.unique(data.train.inputs[:, 1:])) == {0, 1}
    assert data.held_out.inputs[:, 0].mean() != pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(data.in_target_units(data.held_out.targets), data.held_out.raw_targets, rtol=1e-4)


def test_a_category_never_seen_in_training_has_inputs_all_the_same(module: Any) -> None:
    tables = module("tables")
    table = houses(300).drop(columns="empty").dropna(subset="price")
    preparation = tables.prepare(tables.Table("t", "price", table.drop(columns="price"), table["price"].to_numpy(), {}), 0)
    stranger = table.drop(columns="price").head(1).assign(town="Elsewhere", area=np.inf).replace(np.inf, np.nan)
    assert np.isfinite(preparation.preparation.transform(stranger)).all()


def test_truth_values_are_categories_and_so_are_their_gaps(module: Any, tmp_path: Path) -> None:
    tables = module("tables")
    table = houses(300)[["area", "price"]]
    for gaps, inputs in ((False, 4), (True, 5)):
        table["garden"] = np.where(np.arange(300) % 3 == 0, "True", "False")
        if gaps:
            table.loc[::5, "garden"] = None
        table.to_csv(tmp_path / "gardens.csv", index=False)
        data = tables.prepare(tables.read_table(tmp_path / "gardens.csv", "price"), seed=0)
        # Area; whether it was missing; what the garden may be.
        assert data.train.inputs.shape[1] == inputs


def test_a_file_is_whole_or_not_there(module: Any, tmp_path: Path) -> None:
    write = module("run_folder").whole
    (tmp_path / "old.txt").write_text("old")

    def break_off() -> None:
        with write(tmp_path / "old.txt") as partial:
            partial.write_text("ne")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="full"):
        break_off()
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]
    assert (tmp_path / "old.txt").read_text() == "old"


@pytest.mark.slow
def test_a_curve_is_learned_better_than_by_a_line(tmp_path: Path) -> None:
    houses(3000).to_csv(tmp_path / "houses.csv", index=False)
    done = recipe("--data", "houses.csv", "--target", "price", "--epochs", 40, "--out", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "config.json").read_text())["results"]
    assert results["rmse_lower_by_percent"] > 20
    assert "The network beats the linear regression" in done.stdout


@pytest.mark.slow
def test_the_default_table_is_learned_about_as_well_as_by_a_line(tmp_path: Path) -> None:
    done = recipe("--out", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "config.json").read_text())["results"]
    # Of 89 rows; the diabetes data has little in it that is no line.
    assert results["rmse_lower_by_percent"] > -3
