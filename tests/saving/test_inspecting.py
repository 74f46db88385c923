"""`kustom.inspect`: everything that can be known of a file without running it."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import kustom
from kustom import errors
from kustom.saving import archive


@kustom.part(package="inspected")
class Shifted(keras.layers.Layer):
    by: float = 1.0

    def call(self, x):
        return x + self.by


@pytest.fixture
def path(tmp_path):
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="relu", name="small")], name="inner")
    inputs = keras.Input((3,), name="x")
    model = keras.Model(inputs, Shifted(0.5, name="shifted")(inner(inputs)) * 2)
    model.compile("sgd", "mse")
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


def test_it_says_what_is_in_a_file(path):
    found = kustom.inspect(path)
    assert (found.file, found.size) == (str(path), path.stat().st_size)
    assert found.model == "keras.src.models.functional.Functional"
    assert found.written["keras_version"] == keras.__version__
    names = [(each.name, each.part.rpartition(".")[2], each.depth) for each in found.layers]
    assert ("inner", "Sequential", 0) in names
    assert ("small", "Dense", 1) in names
    assert ("shifted", "Shifted", 0) in names
    kernel = next(each for each in found.arrays if each[1] == (3, 2))
    assert kernel[2:] == ("float32", 24)
    assert found.parameters == sum(int(np.prod(shape)) for _, shape, _, _ in found.arrays)
    (custom,) = found.customs
    assert (custom.registered_name, custom.settings["by"], custom.source) == ("inspected>Shifted", 0.5, "registered")
    assert found.needs == ()
    assert found.anomalies == ()
    with archive.read(path) as read:
        assert found.sums == {name: read.digest(name) for name in read.members}


def test_it_prints_as_tables_and_as_html(path):
    found = kustom.inspect(path)
    for text in (repr(found), found.text(width=80), found._repr_html_()):
        for word in ("model.keras", "Dense", "inspected", "float32", "Architecture", "Members", "nothing against it"):
            assert word in text
    assert max(map(len, found.text(width=80).splitlines())) <= 80
    assert "\x1b[" in found.text(color=True)
    assert "\x1b[" not in repr(found)


def test_it_is_json(path):
    told = json.loads(json.dumps(kustom.inspect(path).to_dict()))
    assert told["parameters"] > 0
    assert told["members"]["config.json"]["sha256"]
    assert told["customs"][0]["place"].startswith("config.layers[")
    assert told["anomalies"] == []


def test_it_starts_neither_keras_nor_numpy_nor_the_hdf5_library(path):
    code = (
        "import sys, kustom; found = kustom.inspect(sys.argv[1]); repr(found); found._repr_html_();"
        "print(found.needs, [m for m in ('keras', 'numpy', 'h5py', 'tensorflow', 'jax', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    # What this process has registered, that one has not.
    assert done.stdout.strip() == f"({Shifted.__module__!r},) []"


def test_what_it_would_need_is_no_anomaly(path):
    with archive.read(path) as read:
        members = {name: bytes(read.data(name)) for name in read.members}
    config = json.loads(members["config.json"])
    layer = next(each for each in config["config"]["layers"] if each["name"] == "shifted")
    layer |= {"module": "pack.parts", "registered_name": "pack.parts>Shifted"}
    file = io.BytesIO()
    manifest = {"format": 1, "parts": [{"registered_name": "pack.parts>Shifted", "distribution": "pack", "version": "1.2"}]}

    def text(sums):
        return json.dumps({**manifest, "sums": dict(sums), "versions": {"kustom": "9.9"}}).encode()

    archive.write(file, [*{**members, "config.json": json.dumps(config).encode()}.items(), ("kustom.json", text)])
    found = kustom.inspect(file)
    assert found.needs == ("pack.parts",)
    assert found.anomalies == ()
    assert found.written["kustom"] == "9.9"
    assert "pack 1.2" in found._repr_html_()
    assert kustom.inspect(file, trust="pack").customs[0].source == "trusted"


def test_every_anomaly_is_shown_not_only_the_first(path):
    with archive.read(path) as read:
        members = {name: bytes(read.data(name)) for name in read.members}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1]["config"]["layers"][1]["config"]["units"] = 10**12
    config["compile_config"]["loss"] = {"module": "keras.layers", "class_name": "Lambda", "config": {}, "registered_name": None}
    file = io.BytesIO()
    bad = {**members, "config.json": json.dumps(config).encode(), "metadata.json": b"{", "model.weights.h5": b"none", "more": b""}
    archive.write(file, bad.items())
    found = kustom.inspect(file)
    kinds = sorted(type(error).__name__ for error in found.anomalies)
    assert kinds == ["CorruptFileError", "CorruptFileError", "LimitError", "UnsafeFileError", "UnsafeFileError"]
    assert "refused" in repr(found)
    assert "Lambda" in repr(found)


def test_what_is_no_archive_has_nothing_to_show(tmp_path):
    (tmp_path / "notes.txt").write_text("notes", encoding="utf-8")
    with pytest.raises(errors.FormatError, match="no zip archive"):
        kustom.inspect(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError):
        kustom.inspect(tmp_path / "nothing.keras")


def test_limits_are_shown_as_anomalies(path):
    (error,) = kustom.inspect(path, max_layers=2).anomalies
    assert isinstance(error, errors.LimitError)
    with pytest.raises(errors.LimitError, match="max_bytes=") as caught:
        kustom.inspect(path, max_bytes=10)
    with pytest.raises(errors.LimitError) as loading:
        kustom.load(path, max_bytes=10)
    assert str(caught.value) == str(loading.value)
    with pytest.raises(errors.LimitError, match="there is no limit 'max_byte'; there are max_bytes"):
        kustom.inspect(path, max_byte=10)


@pytest.mark.parametrize("change", [{"format": 99}, {"format": None}, {"recorded": []}, {"parts": [5]}])
def test_what_a_manifest_says_speaks_against_a_file_as_it_does_when_it_is_loaded(path, tmp_path, change):
    with archive.read(path) as read:
        members = {name: bytes(read.data(name)) for name in read.members}
    file = io.BytesIO()
    archive.write(
        file, [*members.items(), ("kustom.json", lambda sums: json.dumps({"format": 1, "sums": dict(sums), **change}).encode())]
    )
    (anomaly,) = kustom.inspect(file).anomalies
    with pytest.raises(errors.FormatError) as caught:
        kustom.load(file)
    assert str(caught.value) == str(anomaly)


def test_names_command_no_terminal_and_no_page(path):
    with archive.read(path) as read:
        members = {name: bytes(read.data(name)) for name in read.members}
    config = json.loads(members["config.json"])
    config["config"]["layers"][0]["name"] = "\x1b[31m<script>[bold]"
    config["module"] = "\x1b]0;title\x07"
    file = io.BytesIO()
    archive.write(file, {**members, "config.json": json.dumps(config).encode()}.items())
    found = kustom.inspect(file)
    assert "\x1b" not in repr(found)
    assert "\\x1b[31m" in repr(found)
    assert "<script>" not in found._repr_html_()
