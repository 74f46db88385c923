"""Each published fault of loading a Keras model, and what Keras still accepts: refused, with nothing run, read or changed."""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import keras
import numpy as np
import pytest
from keras.src.saving import serialization_lib

import kustom
from kustom import errors
from kustom.backends import keras as private
from kustom.saving import archive, hdf5
from kustom.saving.verdict import judge


def read_and_judge(path: Path, **arguments: Any) -> None:
    with archive.read(path) as found:
        judge(found, registered=private.registry(), **arguments).hold()
        found.verify()


# `kustom.load` is asked, too, where there is one.
READERS: dict[str, Callable[..., Any]] = {"judge": read_and_judge}
if "load" in kustom.__all__:
    READERS["load"] = kustom.load


def state(folder: Path) -> dict[str, Any]:
    """What a load must leave as it was."""
    return {
        "floatx": keras.config.floatx(),
        "policy": keras.config.dtype_policy().name,
        "random": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "level": logging.getLogger().level,
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
        "probes": sorted(name for name in sys.modules if name.startswith(("keras_cv", "hostile_probe"))),
        "registered": sorted(private.registry()),
        "safe mode": serialization_lib.in_safe_mode(),
        "warnings": list(warnings.filters),
        "threads": sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("kustom")),
    }


def shown(path: Path) -> list[str]:
    """What `kustom.inspect` says against a file."""
    try:
        inspection = kustom.inspect(path)
    except errors.FileError as error:
        # There is nothing else to show.
        return [str(error)]
    assert repr(inspection)
    if inspection.needs:
        assert all(custom.source is None for custom in inspection.customs)
        with pytest.raises(errors.UntrustedError) as caught:
            read_and_judge(path)
        return [str(caught.value)]
    return [str(error) for error in inspection.anomalies]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return hostile.Workshop(tmp_path)


@pytest.mark.parametrize("make", [make for _, make in hostile.FILES], ids=[name for name, _ in hostile.FILES])
def test_a_hostile_file_is_refused_and_nothing_of_it_happens(make, shop, monkeypatch):
    path = make(shop)
    monkeypatch.syspath_prepend("")
    before = state(shop.folder)
    for read in READERS.values():
        # Twice: the verdict is the same.
        said = []
        for _ in range(2):
            with pytest.raises(errors.FileError) as caught:
                read(path)
            said.append(str(caught.value))
        assert said[0] == said[1]
        assert not isinstance(caught.value, errors.UntrustedError) or caught.value.wants
        assert "bad" in said[0]
        assert state(shop.folder) == before
    assert said[0] in shown(path)
    assert not shop.marker.exists()
    assert state(shop.folder) == before


@pytest.mark.parametrize("make", [hostile.lambda_layer, hostile.unsafe_mode_first, hostile.lambda_as_activation])
def test_a_safe_mode_that_is_off_changes_no_verdict(make, shop):
    path = make(shop)
    try:
        keras.config.enable_unsafe_deserialization()
        for read in READERS.values():
            with pytest.raises(errors.UnsafeFileError, match=r"Lambda|lambda|enable_unsafe"):
                read(path)
    finally:
        keras.src.backend.common.global_state.set_global_attribute("safe_mode_saving", None)
    assert not shop.marker.exists()


@pytest.mark.parametrize("shape", [(2**11, 2**6), (2, 3), (3, 2, 1)])
def test_a_weight_of_another_shape_is_refused_before_it_is_read(shop, monkeypatch, shape):
    def change(file):
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", data=np.ones(shape, "float32"))

    read: list[str] = []
    plain = hdf5.Dataset.read
    monkeypatch.setattr(hdf5.Dataset, "read", lambda self: read.append(self.path) or plain(self))
    kustom.load(shop.base)
    assert "layers/dense/vars/0" in read
    read.clear()
    with pytest.raises(errors.WeightsError, match="has the shape"):
        kustom.load(shop.with_weights(change))
    assert "layers/dense/vars/0" not in read


def test_trust_of_keras_and_of_everything_allows_none_of_it(shop):
    for _, make in hostile.FILES:
        path = make(shop)
        with pytest.raises(errors.FileError):
            read_and_judge(path, trust=("keras", "builtins", "__main__"))
        if path.is_dir():
            (path / "assets" / "words.txt").unlink()
            (path / "assets").rmdir()
            for each in path.iterdir():
                each.unlink()
            path.rmdir()
        else:
            path.unlink()
    assert not shop.marker.exists()


def test_a_trusted_module_gives_what_it_registers_and_nothing_else(shop):
    with archive.read(hostile.any_class(shop)) as found:
        assert judge(found, trust="pathlib").imports == ("pathlib",)
        # Once it is imported, nothing has to be trusted any more.
        with pytest.raises(errors.UntrustedError):
            judge(found, registered=private.registry()).hold()


def test_the_file_that_they_are_made_from_is_fine(shop):
    read_and_judge(shop.base)
    assert not kustom.inspect(shop.base).anomalies


def test_each_id_of_the_list_has_a_file():
    assert len(hostile.PUBLISHED) == 18
    assert all(hostile.PUBLISHED.values())
    assert all(hostile.ACCEPTED.values())
