"""Weights are written without a second copy of them, and the file is the one that Keras writes."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import kustom
from kustom.backends.keras import outline_of


def dense() -> keras.Model:
    layers = keras.layers
    wide = layers.Dense(1000, dtype="bfloat16")
    return keras.Sequential([keras.Input((700,)), layers.Dense(900), layers.BatchNormalization(), wide, layers.Dense(3)])


def recurrent() -> keras.Model:
    layers = keras.layers
    return keras.Sequential([keras.Input((9,), dtype="int32"), layers.Embedding(9000, 64), layers.LSTM(300), layers.Dense(5)])


def small() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])


def contents(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def note(name: str, each: Any) -> None:
        attributes = dict(each.attrs)
        if isinstance(each, h5py.Dataset):
            plist = each.id.get_create_plist()
            how = plist.get_layout(), plist.get_fill_time(), plist.get_alloc_time()
            found[name] = each.shape, str(each.dtype), each[()].tobytes(), how, attributes
        else:
            found[name] = attributes

    with h5py.File(io.BytesIO(data), "r") as file:
        file.visititems(note)
    return found


@pytest.mark.parametrize("make", [dense, recurrent, small])
def test_it_is_the_file_that_keras_writes(make, tmp_path):
    model = make()
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    outline = outline_of(model)
    data = b"".join(outline.blocks())
    assert len(data) == outline.size
    # Keras's own file, in its archive.
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        theirs = archive.read("model.weights.h5")
    assert contents(data) == contents(theirs)


def test_a_large_array_is_held_once():
    model = dense()
    outline = outline_of(model)
    large = 4 * 700 * 900
    assert outline.size > large
    held = sum(len(page) for page in outline._pages._pages.values())
    assert held < outline.size - large + 2**18


def test_what_is_written_is_what_was_summed_up_while_a_variable_changes():
    model = dense()
    file = io.BytesIO()
    put, times = file.write, []

    def write(data: Any) -> int:
        times.append(1)
        model.layers[0].kernel.assign(np.full((700, 900), len(times), "float32"))
        return put(data)

    file.write = write
    kustom.save(model, file)
    file.seek(0)
    # Its sums hold, whatever stands in it.
    kustom.load(file, verify=False)


def test_a_model_of_several_blocks_comes_back(tmp_path):
    model = keras.Sequential([keras.Input((1600,)), keras.layers.Dense(2000), keras.layers.Dense(1)])
    kustom.save(model, tmp_path / "model.keras")
    for loaded in (kustom.load(tmp_path / "model.keras"), keras.saving.load_model(tmp_path / "model.keras")):
        for mine, theirs in zip(model.weights, loaded.weights, strict=True):
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(theirs))
