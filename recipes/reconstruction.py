"""A regressor that must also reconstruct its inputs: a loss and a metric from inside the model, in a loop.

    python recipes/reconstruction.py
    python recipes/reconstruction.py --data houses.csv --target price

The chapter's `ReconstructingRegressor`, trained by `kustom.Loop` and `kustom.Supervised`. What the model adds to the loss
by `add_loss` counts, and the metric that it updates in `call` is found, reset each epoch, and reported beside the others, in
training and validation. The part of the inputs that the last hidden layer has kept is what the error of the reconstruction
says: the inputs are standardised, so that knowing nothing of them costs about 1.

The run folder gets `model.keras`, `history.csv`, `curves.png` and `errors.json`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import kustom  # before keras: it picks the backend that is installed

# isort: split
import keras
import numpy as np
import typer
from run_folder import new_folder, whole, write_json
from tables import Prepared, TableError, default_table, prepare, read_table
from terminal import readable

from kustom.textbook import ReconstructingRegressor

PATIENCE = 10


def train(data: Prepared, epochs: int, seed: int, quiet: bool) -> tuple[keras.Model, kustom.Loop]:
    """Train until the validation rows gain nothing more, and go back to the best epoch."""
    keras.utils.set_random_seed(seed)
    model = ReconstructingRegressor(1)
    model.build(data.train.inputs.shape)
    optimizer = keras.optimizers.Nadam(1e-3)
    loop = kustom.Loop(kustom.Supervised(model, optimizer=optimizer, loss="mse", metrics=["mae"]))
    loop.fit(
        data.train.inputs,
        data.train.targets,
        validation_data=(data.validation.inputs, data.validation.targets),
        validation_batch_size=1024,
        epochs=epochs,
        batch_size=32,
        callbacks=[keras.callbacks.EarlyStopping("val_loss", patience=PATIENCE, restore_best_weights=True)],
        seed=seed,
        verbose=0 if quiet else "auto",
    )
    # So that the file holds the loss, too.
    model.compile(optimizer, "mse")
    return model, loop


def run(data: Prepared, epochs: int, seed: int, folder: Path, quiet: bool) -> dict[str, float]:
    """Train, leave everything in the folder, and return what is measured on the held-out rows."""
    model, loop = train(data, epochs, seed, quiet)
    rows = data.held_out
    measured = loop.evaluate(rows.inputs, rows.targets, batch_size=1024)
    predicted = data.in_target_units(model.predict(rows.inputs, batch_size=1024, verbose=0))
    found = {
        "rmse": float(np.sqrt(np.mean((predicted - rows.raw_targets) ** 2))),
        "rmse_of_the_mean": float(np.sqrt(np.mean((data.target_mean - rows.raw_targets) ** 2))),
        "reconstruction_error": measured["reconstruction_error"],
        "variance_of_inputs": float(np.mean(np.var(rows.inputs, axis=0))),
    }
    if loop.history is not None:
        loop.history.to_csv(folder / "history.csv")
        with whole(folder / "curves.png") as partial:
            loop.history.plot().savefig(partial, dpi=120)
    with whole(folder / "model.keras") as partial:
        model.save(partial)
    write_json(folder / "errors.json", found)
    return found


def main(
    data: Annotated[Path | None, typer.Option(help="A CSV file with a header line. Default: scikit-learn's diabetes.")] = None,
    target: Annotated[str | None, typer.Option(help="The column to predict.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="At most; early stopping mostly comes first.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the weights and the shuffling.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run folder, new or empty. Default: runs/<name>-<time>.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a regressor that must also reconstruct its inputs."""
    if (data is None) != (target is None):
        _refuse("--data and --target go together: a table, and the column to predict")
    try:
        table = default_table() if data is None or target is None else read_table(data, target)
        prepared = prepare(table, seed)
        folder = new_folder(out, "reconstruction")
    except TableError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"no run folder: {error}")
    found = run(prepared, epochs, seed, folder, quiet)
    if not quiet:
        print(
            f"error on {len(prepared.held_out)} held-out rows: {readable(found['rmse'])}; of the mean alone "
            f"{readable(found['rmse_of_the_mean'])} (in units of {table.target_name})"
        )
        kept = 1 - found["reconstruction_error"] / found["variance_of_inputs"]
        print(f"of the inputs' variance {100 * kept:.0f} % is reconstructed")
        print(f"run folder: {folder}")


def _refuse(text: str) -> NoReturn:
    print(f"error: {text}", file=sys.stderr)
    raise typer.Exit(2)


if __name__ == "__main__":
    typer.run(main)
