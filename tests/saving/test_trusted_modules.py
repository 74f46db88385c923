"""What a file reaches in a module that is trusted: the classes and functions that it defines, each in its place."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import kustom
from kustom import errors
from kustom.backends import keras as private

FIRST = """
from os import getpid

import keras
from keras.utils import get_file

class Gate(keras.layers.Layer):
    def call(self, x):
        return 2 * x

class Words(keras.layers.StringLookup):
    pass

class Running(keras.layers.Lambda):
    pass

@keras.saving.register_keras_serializable("first_parts")
def halved(x):
    return x / 2

def plain(x):
    return 2 * x

class Helper:
    def __init__(self, **settings):
        raise AssertionError("a file had it made")

    def __call__(self, *given):
        return given[0]

    @classmethod
    def from_config(cls, config):
        return cls(**config)

other_name = halved
settings = Gate()
"""
SECOND = """
import keras

class Gate(keras.layers.Layer):
    def call(self, x):
        return 3 * x
"""
SCRIPT = """
raise SystemExit("it is run")
"""


@pytest.fixture
def modules(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder that Python finds modules in, with two packages that register nothing."""
    folder = tmp_path / "code"
    for name, source in (("first_parts", FIRST), ("second_parts", SECOND)):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(source)
    (folder / "first_parts" / "__main__.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [each for each in sys.modules if each.split(".")[0] in ("first_parts", "second_parts")]:
        del sys.modules[name]


def node(module: str, name: str, config: Any = None, registered_name: str | None = None) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": {} if config is None else config, "registered_name": registered_name}


def function(module: str, name: str, registered_name: str | None = None) -> dict[str, Any]:
    return node(module, "function", name, registered_name or name)


def packed(model: Any, change: Any) -> io.BytesIO:
    """A file as Keras writes it, without a manifest, and with another config."""
    plain, bad = io.BytesIO(), io.BytesIO()
    kustom.save(model, plain)
    with zipfile.ZipFile(plain) as before, zipfile.ZipFile(bad, "w") as after:
        for name in set(before.namelist()) - {"kustom.json"}:
            data = before.read(name)
            if name == "config.json":
                config = json.loads(data)
                change(config["config"]["layers"])
                data = json.dumps(config).encode()
            after.writestr(name, data)
    return bad


def with_activation(value: Any) -> io.BytesIO:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, activation="relu")])
    return packed(model, lambda layers: layers[1]["config"].update(activation=value))


def with_layer(*layers: dict[str, Any]) -> io.BytesIO:
    def change(before: list[Any]) -> None:
        before[1:] = layers

    return packed(keras.Sequential([keras.Input((2,)), keras.layers.Activation("relu")]), change)


def computed(model: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(np.ones((1, 2), "float32")))


def tempfile_of(path: Path) -> Any:
    """A temporary file with the bytes of another, in the same folder."""
    file = tempfile.NamedTemporaryFile(dir=path.parent)  # noqa: SIM115  (whoever asks for it closes it)
    file.write(path.read_bytes())
    return file


def test_a_module_gives_the_classes_and_functions_that_it_defines(modules):
    layers = [
        node("first_parts", "Gate", {"name": "gate"}, "Gate"),
        node("keras.layers", "Activation", {"name": "halved", "activation": function("first_parts", "halved")}),
    ]
    np.testing.assert_array_equal(computed(kustom.load(with_layer(*layers), trust="first_parts")), [[1.0, 1.0]])


@pytest.mark.parametrize(
    "name", ["os.getpid", "keras.utils.get_file", "getpid", "get_file", "os", "Gate", "other_name", "settings", "Helper"]
)
def test_a_function_of_somebody_else_is_not_reached_through_a_module(modules, name):
    # None of them is called: that they are found is too much.
    with pytest.raises((errors.UntrustedError, errors.MissingPartError), match=name):
        kustom.load(with_activation(function("first_parts", name)), trust="first_parts")


@pytest.mark.parametrize(
    "name", ["keras.layers.Lambda", "keras.layers.TFSMLayer", "keras.Model", "os", "halved", "settings", "plain", "Helper"]
)
def test_a_class_of_somebody_else_is_not_reached_through_a_module(modules, name):
    with pytest.raises((errors.UntrustedError, errors.MissingPartError), match=name):
        kustom.load(with_layer(node("first_parts", name, {"name": "x"}, name)), trust="first_parts")


@pytest.mark.parametrize("place", ["activation", "kernel_initializer", "kernel_regularizer", "bias_constraint"])
def test_a_class_that_is_no_part_is_not_reached_through_a_module(modules, place):
    # It would be made with whatever the file says.
    def change(layers: list[Any]) -> None:
        layers[1]["config"][place] = node("first_parts", "Helper", {}, "Helper")

    file = packed(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]), change)
    with pytest.raises(errors.UntrustedError, match=r"first_parts\.Helper is no part: a class .*registered nowhere") as caught:
        kustom.load(file, trust="first_parts")
    assert caught.value.wants == ("Helper",)
    assert "trust={'Helper': ...}" in str(caught.value)


def test_a_function_of_a_trusted_module_need_not_be_registered(modules):
    loaded = kustom.load(with_activation(function("first_parts", "plain")), trust="first_parts")
    assert loaded.layers[0].activation is sys.modules["first_parts"].plain


def test_the_module_of_a_function_that_is_registered_nowhere_is_the_line_to_add(modules):
    with pytest.raises(errors.UntrustedError, match=r"load it with kustom\.load\(.*, trust='first_parts'\)"):
        kustom.load(with_activation(function("first_parts", "plain")))


def test_what_a_module_does_not_have_is_given_by_hand(modules):
    by_hand = types.FunctionType(compile("lambda x: 2 * x", "", "eval").co_consts[0], {}, "elsewhere")
    loaded = kustom.load(with_activation(function("first_parts", "elsewhere")), trust={"elsewhere": by_hand})
    assert loaded.layers[0].activation is by_hand


def test_what_a_module_imported_of_another_is_named_with_its_home(modules):
    with pytest.raises(errors.UntrustedError, match=r"first_parts\.getpid is (posix|nt)\.getpid, and no function") as caught:
        kustom.load(with_activation(function("first_parts", "getpid")), trust="first_parts")
    assert caught.value.wants == ("getpid",)
    assert "trust={'getpid': ...}" in str(caught.value)


def test_a_class_that_is_registered_nowhere_keeps_the_dangers_of_its_base(modules, tmp_path):
    (tmp_path / "words.txt").write_text("secret\n")
    lookup = node("first_parts", "Words", {"name": "words", "vocabulary": str(tmp_path / "words.txt")}, "Words")
    with pytest.raises(errors.UnsafeFileError, match="a file or an address that would be read"):
        kustom.load(with_layer(lookup), trust="first_parts")
    running = node("first_parts", "Running", {"name": "x", "function": function("first_parts", "halved")}, "Running")
    with pytest.raises(errors.UnsafeFileError, match="derives from a part of Keras's that is never loaded"):
        kustom.load(with_layer(running), trust="first_parts")


def test_a_class_that_is_registered_nowhere_stands_in_its_own_place_alone(modules):
    def change(layers: list[Any]) -> None:
        layers[1]["config"]["kernel_initializer"] = node("first_parts", "Gate", {}, "Gate")

    file = packed(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]), change)
    with pytest.raises(errors.UnsafeFileError, match=r"first_parts\.Gate, where an initializer was expected"):
        kustom.load(file, trust="first_parts")


def test_two_classes_of_one_bare_name_are_two(modules):
    layers = [node(f"{module}_parts", "Gate", {"name": module}, "Gate") for module in ("first", "second", "first")]
    layers[2]["config"]["name"] = "third"
    for order in (layers, layers[::-1], [layers[1], layers[0]]):
        expected = np.prod([{"first_parts": 2.0, "second_parts": 3.0}[layer["module"]] for layer in order])
        model = kustom.load(with_layer(*order), trust=("first_parts", "second_parts"))
        np.testing.assert_array_equal(computed(model), [[expected, expected]])
        assert [type(layer).__module__ for layer in model.layers] == [layer["module"] for layer in order]


def test_two_classes_of_one_bare_name_are_not_saved(modules):
    gates = [importlib.import_module(f"{module}_parts").Gate for module in ("first", "second")]
    with pytest.raises(errors.UnsavableError, match=r"second_parts\.Gate and first_parts\.Gate are registered nowhere.* 'Gate'"):
        kustom.save(keras.Sequential([keras.Input((2,)), gates[0](), gates[1]()]), io.BytesIO())
    kustom.save(keras.Sequential([keras.Input((2,)), gates[0](), gates[0]()]), io.BytesIO())


def in_a_script(x):
    return 2 * x


@pytest.mark.parametrize("named", ["Custom>in_a_script", "in_a_script"])
def test_a_function_that_keras_would_look_for_in_the_current_folder_is_not(tmp_path, monkeypatch, named):
    monkeypatch.setattr(in_a_script, "__module__", "__main__")
    monkeypatch.setitem(private.registration.object_registration.GLOBAL_CUSTOM_OBJECTS, "Custom>in_a_script", in_a_script)
    (tmp_path / "keras_cv").mkdir()
    (tmp_path / "keras_cv" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    activation = node("keras_cv", "function", named, "Custom>in_a_script")
    for _ in range(2):
        with pytest.raises(errors.UnsafeFileError, match=r"keras_cv.in_a_script is shown, and __main__.in_a_script would be made"):
            kustom.load(with_activation(activation))
        assert "keras_cv" not in sys.modules
    script = types.ModuleType("__main__")
    script.__file__ = "folder/my_script.py"
    monkeypatch.setitem(sys.modules, "__main__", script)
    for home in ("__main__", "builtins", "my_script"):
        activation["module"] = home
        assert kustom.load(with_activation(activation)).layers[0].activation is in_a_script


@keras.saving.register_keras_serializable("trusted_modules")
class Asking(keras.layers.Layer):
    """A layer that has Keras make what stands in its settings as text, where no verdict sees it."""

    def __init__(self, text, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.saving.deserialize_keras_object(json.loads(text))


@pytest.mark.parametrize("module", ["keras_cv", "keras_hub.layers", "os", None])
def test_what_was_not_judged_is_not_looked_for(tmp_path, monkeypatch, module):
    (tmp_path / "keras_cv").mkdir()
    (tmp_path / "keras_cv" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    for wanted in (node(module, "Thing", {}, None), node(module, "function", "getpid", "getpid")):
        layer = node(__name__, "Asking", {"name": "asking", "text": json.dumps(wanted)}, "trusted_modules>Asking")
        with pytest.raises(errors.RebuildError, match="which was not judged"):
            kustom.load(with_layer(layer))
    assert "keras_cv" not in sys.modules


@pytest.mark.parametrize("opened", [Path.open, Path, os.fsencode, tempfile_of], ids=["file", "path", "bytes", "temporary"])
def test_a_module_beside_a_file_is_not_imported_however_the_file_is_opened(tmp_path, monkeypatch, opened):
    (tmp_path / "beside_parts.py").write_text(FIRST)
    (tmp_path / "model.keras").write_bytes(with_layer(node("beside_parts", "Gate", {"name": "gate"}, "Gate")).getvalue())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "beside_parts", raising=False)
    with contextlib.ExitStack() as stack:
        source = opened(tmp_path / "model.keras", *(["rb"] if opened is Path.open else []))
        if hasattr(source, "close"):
            stack.enter_context(source)
        with pytest.raises(errors.MissingPartError, match="there is no module 'beside_parts'"):
            kustom.load(source, trust="beside_parts")
    assert "beside_parts" not in sys.modules


def test_a_script_in_a_package_is_not_run(modules):
    with pytest.raises(errors.UntrustedError, match=r"trust=\{'Gate': Gate\}"):
        kustom.load(with_layer(node("first_parts.__main__", "Gate", {"name": "x"}, "Gate")), trust="first_parts")
    assert "first_parts.__main__" not in sys.modules


SCRIPT_OF_ITS_OWN = """
import sys
import keras, kustom
print("runs", __name__)

class Own(keras.layers.Layer):
    def call(self, x):
        return x * 2

@kustom.activation
def twice(x):
    return x * 2

if __name__ == "__main__":
    model = keras.Sequential([keras.Input((2,)), Own(), keras.layers.Dense(1, activation=twice)])
    kustom.save(model, sys.argv[1])
    loaded = kustom.load(sys.argv[1], trust=__name__)
    print(type(loaded.layers[0]) is Own, loaded.layers[1].activation)
    model.save(sys.argv[1])
    print(type(kustom.load(sys.argv[1], trust=__name__, compile=False).layers[0]) is Own)
    try:
        kustom.load(sys.argv[1])
    except kustom.errors.UntrustedError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_script.py", "own-script.py"])
def test_a_script_finds_its_own_parts_by_its_name(tmp_path, name):
    (tmp_path / name).write_text(SCRIPT_OF_ITS_OWN)
    command = [sys.executable, "-W", "ignore", str(tmp_path / name), str(tmp_path / "model.keras")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["runs __main__", "True twice()", "True"], done.stderr
    assert "trust={'Own': Own}" in lines[-1]


@pytest.mark.parametrize(("module", "found"), [("__main__", True), ("my_script", True), (None, True), ("other_script", False)])
def test_trust_of_main_is_trust_of_the_script_that_runs(monkeypatch, module, found):
    script: Any = types.ModuleType("__main__")
    script.__file__ = "folder/my_script.py"
    exec("import keras\nclass Own(keras.layers.Layer):\n    pass\nActivation = keras.layers.Activation", vars(script))
    monkeypatch.setitem(sys.modules, "__main__", script)
    file = with_layer(node(module, "Own", {"name": "own"}, "Own"))
    if not found:
        with pytest.raises(errors.UntrustedError, match=r"trust='other_script'.* trust=\{'Own': Own\}"):
            kustom.load(file, trust="__main__")
        return
    wanted = "trust=__name__" if module == "my_script" else "Define what has no module"
    with pytest.raises(errors.UntrustedError, match=rf"(?s){wanted}.* trust=\{{'Own': Own\}}"):
        kustom.load(file)
    assert type(kustom.load(file, trust="__main__").layers[0]) is script.Own
    # What the script has imported is none of its own.
    with pytest.raises(errors.UntrustedError, match="no class that is defined as such"):
        kustom.load(with_layer(node(module, "Activation", {"activation": "relu"}, "Activation")), trust="__main__")


@pytest.mark.parametrize("given", [None, 3, 0.5])
def test_what_is_no_trust_is_said(given):
    with pytest.raises(errors.UntrustedError, match=rf"trust= takes the name of a module.*, not {given!r}"):
        kustom.load(with_layer(node("keras.layers", "Dropout", {"rate": 0.5}, None)), trust=given)


@pytest.mark.parametrize("given", [None, 3, []])
@pytest.mark.parametrize("read", [kustom.load, kustom.inspect])
def test_what_is_no_file_is_said(read, given):
    with pytest.raises(errors.FormatError, match=rf"from a path or from a binary file object, not from {re.escape(repr(given))}"):
        read(given)
