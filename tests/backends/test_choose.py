"""Which backend `import kustom` takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import keras
import pytest

from kustom import backends, errors


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As in a process where nothing is chosen; returns a way to say what is installed."""
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "keras")

    def installed(*names):
        monkeypatch.setattr(backends, "_installed", lambda name: name in names)

    return installed


def test_keras_default_is_left_alone(fresh, capsys):
    fresh("tensorflow", "jax")
    backends.choose()
    assert "KERAS_BACKEND" not in os.environ
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_the_one_that_is_installed_is_taken_and_said(fresh, name, capsys):
    fresh(name)
    backends.choose()
    assert os.environ["KERAS_BACKEND"] == name
    assert f"taking {name}" in capsys.readouterr().err


def test_none_is_one_clear_line(fresh):
    fresh()
    with pytest.raises(errors.BackendError, match=r"^kustom found none of tensorflow, jax and torch\. Install one[^\n]*$"):
        backends.choose()


def test_what_the_user_chose_is_kept(fresh, monkeypatch, tmp_path):
    fresh("jax")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    backends.choose()
    assert os.environ["KERAS_BACKEND"] == "torch"
    monkeypatch.delenv("KERAS_BACKEND")
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "jax"}))
    backends.choose()
    assert "KERAS_BACKEND" not in os.environ


def test_a_configured_backend_that_is_not_there_is_named(fresh, tmp_path):
    fresh("jax")
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "torch"}))
    with pytest.raises(errors.BackendError, match="chooses the backend 'torch', which is not installed"):
        backends.choose()


def test_the_default_that_keras_writes_itself_is_nobodys_choice(fresh, tmp_path):
    fresh("torch")
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "tensorflow"}))
    backends.choose()
    assert os.environ["KERAS_BACKEND"] == "torch"


def test_a_broken_configuration_file_counts_as_none(fresh, tmp_path):
    fresh("jax")
    (tmp_path / "keras.json").write_text("{")
    backends.choose()
    assert os.environ["KERAS_BACKEND"] == "jax"


def test_the_room_of_the_backend_in_use():
    assert backends.current().__name__ == f"kustom.backends.{keras.backend.backend()}"


def test_another_backend_of_keras_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "openvino")
    with pytest.raises(errors.BackendError, match="Keras runs on 'openvino'"):
        backends.current()


def test_only_one_backend_need_be_installed():
    code = """
import importlib.machinery as machinery
find = machinery.PathFinder.find_spec
def visible(name, path=None, target=None):
    return None if name.split(".")[0] in {hidden} else find(name, path, target)
machinery.PathFinder.find_spec = visible
import kustom, keras
@kustom.loss
def square(y_true, y_pred):
    return (y_true - y_pred) ** 2
print(float(square()([[1.0]], [[3.0]])), kustom.textbook.huber_fn(threshold=2.0))
"""
    hidden = {"tensorflow", "jax", "torch"} - {keras.backend.backend()}
    command = [sys.executable, "-W", "ignore", "-c", code.replace("{hidden}", repr(hidden))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "4.0 huber_fn(threshold=2.0)"
