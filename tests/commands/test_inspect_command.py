"""`kustom inspect FILE`."""

from __future__ import annotations

import json
import zipfile

import keras
import pytest

from kustom.commands import main


@pytest.fixture
def path(tmp_path):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


def test_a_file_is_shown(path, capsys):
    assert main(["inspect", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "Dense" in out
    assert err == ""


def test_a_file_is_shown_as_json(path, capsys):
    assert main(["inspect", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 8


def test_what_speaks_against_a_file_is_the_exit_status(path, capsys):
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("run.sh", "echo")
    assert main(["inspect", str(path)]) == 1
    assert "nobody expects a member 'run.sh'" in " ".join(capsys.readouterr().out.split())


def test_what_cannot_be_read_is_one_line(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "nothing.keras")]) == 2
    (tmp_path / "notes.txt").write_text("notes", encoding="utf-8")
    assert main(["inspect", str(tmp_path / "notes.txt")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("kustom: ") for line in lines)


def test_a_module_can_be_trusted(path, capsys):
    assert main(["inspect", "--trust", "my_package", "--trust", "other", str(path)]) == 0
    assert main(["inspect", "--trust", "a-b", str(path)]) == 2
    assert "trust=" in capsys.readouterr().err


def test_limits_are_those_of_loading(path, capsys):
    assert main(["inspect", "--limit", "max_layers=1", "--limit", "max_size=1_000", str(path)]) == 1
    assert "max_layers" in capsys.readouterr().out
    for limit in ("max_layer=1", "max_layers=0", "max_layers=few", "max_layers"):
        assert main(["inspect", "--limit", limit, str(path)]) == 2
        assert "max_layer" in capsys.readouterr().err
