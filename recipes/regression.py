"""Regression on the rows of a table, with a loss, a metric, layers and more that are made with kustom.

    python recipes/regression.py
    python recipes/regression.py --data houses.csv --target price

It trains, saves, loads what was saved in a new process and compares, measures itself against a linear regression on rows
that neither has seen, and leaves a run folder. The files beside it belong to it: `regression_parts.py` (what is custom),
`regression_check.py` (the new process), `tables.py`, `terminal.py` and `run_folder.py`.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

# TensorFlow, which Keras loads beside any backend where it is installed, has much to say at its start.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import kustom  # before keras: it picks the backend that is installed

# isort: split
import joblib
import keras
import numpy as np
import pandas as pd
import sklearn
import typer
from regression_parts import SMALL_TABLE, huber, network_for, rmse
from run_folder import new_folder, whole, write_history, write_json, write_learning_curve
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from tables import Prepared, Table, TableError, default_table, prepare, read_table
from terminal import Interruption, readable

FAILED, USAGE, INTERRUPTED = 1, 2, 130
PREDICT_BATCH = 1024
PATIENCE = 20


@dataclass(frozen=True)
class Options:
    """What was asked for; it goes to `config.json`."""

    epochs: int
    batch_size: int
    threshold: float
    seed: int
    quiet: bool

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)


@dataclass(frozen=True)
class Training:
    """A trained model, with the weights of its best epoch, and how it came about."""

    model: keras.Model
    history: dict[str, list[float]]
    execution: dict[str, Any]
    best_epoch: int
    seconds: float
    ended_by: str


def train(data: Prepared, options: Options, interruption: Interruption) -> Training:
    """Fit until the validation rows gain nothing more, and go back to the best epoch."""
    keras.utils.set_random_seed(options.seed)
    rows = len(data.train)
    model = network_for(rows, data.numeric)
    loss = huber(threshold=options.threshold)
    optimizer = keras.optimizers.Nadam(5e-3 if rows < SMALL_TABLE else 2e-3)
    step = kustom.Supervised(model, optimizer=optimizer, loss=loss, metrics=[rmse(scale=data.target_scale)])
    # The metric, not the loss: the loss also falls because the penalties of the weights do.
    best = keras.callbacks.EarlyStopping("val_rmse", mode="min", patience=PATIENCE, restore_best_weights=True)
    slower = keras.callbacks.ReduceLROnPlateau("val_rmse", mode="min", factor=0.4, patience=PATIENCE // 3, min_lr=1e-5)
    started = time.perf_counter()
    history = kustom.Loop(step).fit(
        data.train.inputs,
        data.train.targets,
        validation_data=(data.validation.inputs, data.validation.targets),
        validation_batch_size=PREDICT_BATCH,
        epochs=options.epochs,
        batch_size=options.batch_size,
        callbacks=[best, slower, interruption],
        seed=options.seed,
        verbose=0 if options.quiet else "auto",
    )
    seconds = time.perf_counter() - started
    # So that the file holds the loss, too.
    model.compile(optimizer, loss)
    ended_by = "Ctrl-C" if interruption.asked else "early stopping" if best.stopped_epoch else "the last epoch"
    return Training(model, history.history, history.execution, best.best_epoch + 1, seconds, ended_by)


def compare(data: Prepared, predictions: np.ndarray) -> dict[str, Any]:
    """The errors of the network and of a linear regression on the held-out rows, in the target's units.

    The linear regression learns from all rows that are not held out: it needs none for early stopping.
    """
    inputs = np.concatenate([data.train.inputs, data.validation.inputs]).astype("float64")
    targets = np.concatenate([data.train.raw_targets, data.validation.raw_targets])
    linear = LinearRegression().fit(inputs, targets).predict(data.held_out.inputs.astype("float64"))
    known = data.held_out.raw_targets
    errors: dict[str, Any] = {
        name: {"rmse": float(root_mean_squared_error(known, ours)), "mae": float(mean_absolute_error(known, ours))}
        for name, ours in (("network", data.in_target_units(predictions)), ("linear_regression", linear))
    }
    for kind in ("rmse", "mae"):
        errors[f"{kind}_lower_by_percent"] = 100 * (1 - errors["network"][kind] / errors["linear_regression"][kind])
    return errors


def save(training: Training, data: Prepared, folder: Path) -> np.ndarray:
    """Write the model, what it makes of the held-out rows, and the preparation that new rows need; return predictions."""
    rows = data.held_out
    predictions = training.model.predict(rows.inputs, batch_size=PREDICT_BATCH, verbose=0)
    report = training.model.evaluate(
        rows.inputs,
        rows.targets,
        batch_size=PREDICT_BATCH,
        verbose=0,
        return_dict=True,
    )
    kustom.save(training.model, folder / "model.keras")
    with whole(folder / "held_out.npz") as partial:
        np.savez(partial, inputs=rows.inputs, targets=rows.targets, predictions=predictions, loss=report["loss"])
    with whole(folder / "preparation.joblib") as partial:
        joblib.dump(data.preparation, partial)
    return predictions


def loaded_agrees(folder: Path, options: Options) -> bool:
    """Whether a new process that loads the model gets the same loss and predictions; it says both."""
    script = Path(__file__).with_name("regression_check.py")
    environment = os.environ | {"KERAS_BACKEND": keras.config.backend()}
    # A session of its own: Ctrl-C in the terminal is this process's to handle.
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, capture_output=True, text=True, start_new_session=True
    )
    options.say(done.stdout.strip())
    if done.returncode:
        print(f"error: {script.name} failed:\n{done.stdout}{done.stderr}", file=sys.stderr)
    return done.returncode == 0


def configuration(table: Table, data: Prepared, options: Options, training: Training, results: dict[str, Any]) -> dict[str, Any]:
    """All that it takes to do the run again, and what came of it."""
    backend = keras.config.backend()
    modules = {m.__name__: m for m in (kustom, keras, np, pd, sklearn, sys.modules[backend])}
    return {
        "options": {k: v for k, v in asdict(options).items() if k != "quiet"},
        "backend": backend,
        "versions": {"python": platform.python_version()} | {name: m.__version__ for name, m in sorted(modules.items())},
        "data": table.facts
        | {"inputs": data.train.inputs.shape[1], "numeric_inputs": data.numeric}
        | {f"{name}_rows": len(getattr(data, name)) for name in ("train", "validation", "held_out")}
        | {"target_mean": data.target_mean, "target_scale": data.target_scale},
        "results": {
            "ended_by": training.ended_by,
            "epochs": len(training.history["loss"]),
            "best_epoch": training.best_epoch,
            "seconds": round(training.seconds, 2),
            "execution": training.execution,
        }
        | results,
    }


def describe(errors: dict[str, Any], target: str, rows: int) -> str:
    """A table of both models' errors and the verdict."""
    lines = [f"\nerrors on {rows} held-out rows, in units of {target}", f"{'':20}{'RMSE':>12}{'MAE':>12}"]
    for name in ("linear_regression", "network"):
        lines.append(f"{name.replace('_', ' '):20}{readable(errors[name]['rmse']):>12}{readable(errors[name]['mae']):>12}")
    by = errors["rmse_lower_by_percent"]
    verb = "beats" if by > 0 else "does not beat"
    return "\n".join([*lines, f"The network {verb} the linear regression: RMSE {abs(by):.1f} % {'lower' if by > 0 else 'higher'}."])


def run(table: Table, data: Prepared, folder: Path, options: Options) -> int:
    """Train, save, load again, compare and leave everything in the folder; return the exit status."""
    options.say(
        f"{table.name}: {len(data.train)} rows to train, {len(data.validation)} to validate, {len(data.held_out)} held out; "
        f"{data.train.inputs.shape[1]} inputs; Keras {keras.__version__} on {keras.config.backend()}"
    )
    for note in table.notes:
        options.say(note)
    with Interruption() as interruption:
        training = train(data, options, interruption)
        predictions = save(training, data, folder)
        options.say(f"ended by {training.ended_by} after {training.seconds:.1f} s; kept the weights of epoch {training.best_epoch}")
        write_history(folder / "history.csv", training.history)
        agrees = loaded_agrees(folder, options)
        errors = compare(data, predictions)
        verdict = describe(errors, table.target_name, len(data.held_out))
        write_learning_curve(
            folder / "learning_curve.png",
            training.history,
            best_epoch=training.best_epoch,
            title=f"{table.name}: {table.target_name}",
            subtitle=verdict.splitlines()[-1],
        )
        results = errors | {"loaded_agrees": agrees}
        write_json(folder / "config.json", configuration(table, data, options, training, results))
        options.say(f"{verdict}\nrun folder: {folder}")
    if not agrees:
        return FAILED
    return INTERRUPTED if interruption.asked else 0


def main(
    data: Annotated[Path | None, typer.Option(help="A CSV file with a header line. Default: scikit-learn's diabetes.")] = None,
    target: Annotated[str | None, typer.Option(help="The column to predict.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="At most; early stopping mostly comes first.")] = 200,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows a step. Default: 256, or 32 for a small table.")] = None,
    threshold: Annotated[float, typer.Option(help="Of the Huber loss, in standard deviations of the target.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the weights and the shuffling.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run folder, new or empty. Default: runs/<name>-<time>.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a network of custom parts on a table and compare it with a linear regression.

    The run folder gets model.keras, held_out.npz, preparation.joblib, history.csv, learning_curve.png and config.json.
    Ctrl-C ends the training after the epoch; what was reached is saved, and the exit status is 130.
    Exit status 1: the model loaded in a new process differs. 2: the options or the table are wrong.
    """
    if (data is None) != (target is None):
        _refuse("--data and --target go together: a table, and the column to predict")
    if not 0 < threshold < float("inf"):
        _refuse(f"--threshold must be a number above 0, not {threshold}")
    try:
        table = default_table() if data is None or target is None else read_table(data, target)
        prepared = prepare(table, seed)
        folder = new_folder(out, table.name)
    except TableError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"no run folder: {error}")
    size = batch_size or (32 if len(prepared.train) < SMALL_TABLE else 256)
    raise typer.Exit(run(table, prepared, folder, Options(epochs, size, threshold, seed, quiet)))


def _refuse(text: str) -> NoReturn:
    print(f"error: {text}", file=sys.stderr)
    raise typer.Exit(USAGE)


if __name__ == "__main__":
    typer.run(main)
