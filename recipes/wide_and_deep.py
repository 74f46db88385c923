"""Wide and deep: a linear model and a network learn a table together, each by an optimizer of its own, in one step.

    python recipes/wide_and_deep.py
    python recipes/wide_and_deep.py --data houses.csv --target price

The wide part is a weight for each input, under Ftrl; the deep part is a network, under Nadam. Their
outputs are added, and one loss teaches both. `fit` takes one optimizer; here the step applies two.

The run folder gets `model.keras`, `history.csv` and `errors.json`: the errors on rows that nothing has learned from, beside
those of a linear regression.

Cheng et al., Wide & Deep Learning for Recommender Systems, 2016, arXiv:1606.07792.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import kustom  # before keras: it picks the backend that is installed

# isort: split
import keras
import numpy as np
import typer
from keras import ops
from run_folder import new_folder, whole, write_json
from sklearn.linear_model import LinearRegression
from sklearn.metrics import root_mean_squared_error
from tables import Prepared, TableError, default_table, prepare, read_table
from terminal import readable

PATIENCE = 15
SMALL_TABLE = 2000
FIELDS = "inputs", "raw_targets"


class WideAndDeep:
    """The model, its two optimizers, and the steps of training and validation."""

    def __init__(self, inputs: int, rows: int) -> None:
        small = rows < SMALL_TABLE
        units, dropout, penalty = (16, 0.3, keras.regularizers.L2(0.02)) if small else (64, 0.1, None)
        features = keras.Input((inputs,))
        wide = keras.layers.Dense(1, kernel_initializer="zeros")
        hidden: Any = features
        for _ in range(2):
            hidden = keras.layers.Dense(units, "elu", kernel_initializer="he_normal", kernel_regularizer=penalty)(hidden)
            hidden = keras.layers.Dropout(dropout)(hidden)
        deep = keras.layers.Dense(1, kernel_initializer="zeros", use_bias=False)(hidden)
        self.model = keras.Model(features, wide(features) + deep)
        self.wide = wide.trainable_variables
        self.deep = [v for layer in self.model.layers if layer is not wide for v in layer.trainable_variables]
        self.wide_optimizer = keras.optimizers.Ftrl(0.1, l1_regularization_strength=1e-3)
        self.deep_optimizer = keras.optimizers.Nadam(2e-3)
        self.error = keras.metrics.RootMeanSquaredError(name="rmse")

    def step(self, x: Any, y: Any) -> dict[str, Any]:
        """Learn from a batch."""
        with kustom.GradientTape() as tape:
            y_pred = self.model(x, training=True)
            loss = ops.mean(ops.square(y - y_pred)) + sum(self.model.losses)
        of_wide, of_deep = tape.gradient(loss, [self.wide, self.deep])
        self.wide_optimizer.apply(of_wide, self.wide)
        self.deep_optimizer.apply(of_deep, self.deep)
        self.error.update_state(y, y_pred)
        return {"loss": loss}

    def eval_step(self, x: Any, y: Any) -> None:
        """Measure a batch."""
        self.error.update_state(y, self.model(x, training=False))


def train(data: Prepared, epochs: int, batch_size: int | None, seed: int, quiet: bool) -> tuple[keras.Model, kustom.Loop]:
    """Train until the validation rows gain nothing more, and go back to the best epoch."""
    keras.utils.set_random_seed(seed)
    rows = len(data.train)
    both = WideAndDeep(data.train.inputs.shape[1], rows)
    loop = kustom.Loop(both.step, metrics=[both.error], eval_step=both.eval_step, model=both.model)
    loop.fit(
        data.train.inputs,
        data.train.targets,
        validation_data=(data.validation.inputs, data.validation.targets),
        validation_batch_size=1024,
        epochs=epochs,
        batch_size=batch_size or (32 if rows < SMALL_TABLE else 128),
        callbacks=[keras.callbacks.EarlyStopping("val_rmse", mode="min", patience=PATIENCE, restore_best_weights=True)],
        seed=seed,
        verbose=0 if quiet else "auto",
    )
    return both.model, loop


def errors(model: keras.Model, data: Prepared) -> dict[str, float]:
    """The errors on the held-out rows, in the target's units."""
    rows = data.held_out
    inputs, targets = (np.concatenate([getattr(each, name) for each in (data.train, data.validation)]) for name in FIELDS)
    linear = LinearRegression().fit(inputs.astype("float64"), targets).predict(rows.inputs.astype("float64"))
    ours = data.in_target_units(model.predict(rows.inputs, batch_size=1024, verbose=0))
    return {
        name: float(root_mean_squared_error(rows.raw_targets, predicted))
        for name, predicted in (("wide_and_deep", ours), ("linear_regression", linear))
    }


def run(data: Prepared, epochs: int, batch_size: int | None, seed: int, folder: Path, quiet: bool) -> dict[str, float]:
    """Train, and leave model, history and errors in the folder."""
    model, loop = train(data, epochs, batch_size, seed, quiet)
    if loop.history is not None:
        loop.history.to_csv(folder / "history.csv")
    with whole(folder / "model.keras") as partial:
        model.save(partial)
    found = errors(model, data)
    write_json(folder / "errors.json", found)
    return found


def main(
    data: Annotated[Path | None, typer.Option(help="A CSV file with a header line. Default: scikit-learn's diabetes.")] = None,
    target: Annotated[str | None, typer.Option(help="The column to predict.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="At most; early stopping mostly comes first.")] = 100,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows a step. Default: 128, or 32 for a small table.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the weights and the shuffling.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run folder, new or empty. Default: runs/<name>-<time>.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a linear model and a network on a table, with an optimizer each."""
    if (data is None) != (target is None):
        _refuse("--data and --target go together: a table, and the column to predict")
    try:
        table = default_table() if data is None or target is None else read_table(data, target)
        prepared = prepare(table, seed)
        folder = new_folder(out, "wide_and_deep")
    except TableError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"no run folder: {error}")
    found = run(prepared, epochs, batch_size, seed, folder, quiet)
    if not quiet:
        print(
            f"error on {len(prepared.held_out)} held-out rows: {readable(found['wide_and_deep'])}; of a linear regression "
            f"{readable(found['linear_regression'])} (in units of {table.target_name})"
        )
        print(f"run folder: {folder}")


def _refuse(text: str) -> NoReturn:
    print(f"error: {text}", file=sys.stderr)
    raise typer.Exit(2)


if __name__ == "__main__":
    typer.run(main)
