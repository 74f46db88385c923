"""A history's table, file and picture have each value in the row of the epoch in which it was measured."""

from __future__ import annotations

import csv

import keras
import numpy as np
import pytest

import kustom

X = np.ones((8, 1), "float32")


def fitted(epochs, validation_freq, **options):
    """A run whose validation loss is the number of the epoch, from 1."""
    number = keras.Variable(0.0, trainable=False)

    class Number(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            number.assign(epoch + 1.0)

    loop = kustom.Loop(lambda x: {"loss": x[0, 0]}, eval_step=lambda x: {"loss": x[0, 0] * number})
    options |= {"validation_freq": validation_freq, "callbacks": [Number()], "verbose": 0}
    return loop.fit(X, epochs=epochs, validation_data=(X,), **options)


@pytest.mark.parametrize(
    ("epochs", "validation_freq", "measured"),
    [(3, 1, [1, 2, 3]), (3, 2, [2]), (5, 2, [2, 4]), (6, [1, 5], [1, 5]), (3, [3], [3]), (4, [2, 3], [2, 3]), (2, [7], [])],
)
def test_validation_stands_in_the_row_of_its_epoch(epochs, validation_freq, measured, tmp_path):
    history = fitted(epochs, validation_freq)
    assert history.history.get("val_loss", []) == measured
    expected = [number if number in measured else None for number in range(1, epochs + 1)]
    history.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(epochs))
    if measured:
        assert [float(row["val_loss"]) if row["val_loss"] else None for row in rows] == expected
        column = history.to_frame()["val_loss"]
        assert [None if np.isnan(value) else value for value in column.astype("float64")] == expected
    lines = {line.get_label(): line.get_xydata() for line in history.plot().axes[0].lines}
    assert [x for x, _ in lines.get("val_loss", [])] == [y for _, y in lines.get("val_loss", [])] == measured


def test_the_epochs_of_a_run_that_begins_later_keep_their_numbers():
    history = fitted(5, 2, initial_epoch=2)
    assert history.epoch == [2, 3, 4]
    assert history.to_frame()["val_loss"].dropna().to_dict() == {3: 4.0}


def test_what_somebody_else_writes_into_a_history_is_one_value_an_epoch():
    history = fitted(3, 2)
    history.history["note"] = [10.0, 20.0, 30.0]
    assert list(history.to_frame()["note"]) == [10.0, 20.0, 30.0]
