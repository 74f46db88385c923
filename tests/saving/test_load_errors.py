"""What can go wrong with a file, and what is said: which file, which part, what was expected, what to do."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors
from kustom.saving import loading


def written(folder: Path, *layers: Any, loss: Any = None, size: int = 4) -> Path:
    model = keras.Sequential([keras.Input((size,)), *layers])
    if loss is not None:
        model.compile("sgd", loss=loss)
    kustom.save(model, folder / "model.keras")
    return folder / "model.keras"


def changed(path: Path, **changes: Callable[[Any], Any]) -> Path:
    """The file with members of JSON changed, and with sums that are right again."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for stem, change in changes.items():
        value = json.loads(members[f"{stem}.json"])
        members[f"{stem}.json"] = json.dumps(change(value) or value).encode()
    manifest = json.loads(members["kustom.json"])
    manifest["sums"] = {name: hashlib.sha256(data).hexdigest() for name, data in members.items() if name != "kustom.json"}
    members["kustom.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@kustom.part
class Scaled(keras.layers.Layer):
    factor: float = 1.0

    def call(self, x):
        return x * self.factor


@kustom.loss
def weighed(y_true, y_pred, *, weight=1.0):
    return ops.abs(ops.subtract(y_true, y_pred)) * weight


def test_a_setting_that_was_changed_in_the_file(tmp_path):
    path = written(tmp_path, Scaled(2.0))
    changed(path, config=lambda c: c["config"]["layers"][-1]["config"].update(factor=3.0))
    with pytest.raises(errors.OtherModelError, match=r"output was .* and is") as caught:
        kustom.load(path)
    assert caught.value.file == str(path)
    assert kustom.load(path, verify=False).layers[-1].factor == 3.0


def test_a_setting_of_the_loss_that_was_changed_in_the_file(tmp_path):
    path = written(tmp_path, keras.layers.Dense(1), loss=weighed(weight=2.0))
    changed(path, config=lambda c: c["compile_config"]["loss"]["config"].update(weight=3.0))
    with pytest.raises(errors.OtherModelError, match="weighed at /compile_config/loss was"):
        kustom.load(path)
    assert kustom.load(path, compile=False).built


def test_a_source_that_changed_since(tmp_path):
    path = written(tmp_path, Scaled(2.0))
    changed(path, kustom=lambda m: m["parts"][0].update(source="0" * 64))
    with pytest.warns(errors.SourceWarning, match=r"Scaled was 000000000000 when it was saved and is [0-9a-f]{12}"):
        kustom.load(path)


def test_an_output_that_is_other_since_the_source_changed(tmp_path):
    path = written(tmp_path, Scaled(2.0))
    changed(path, kustom=lambda m: m["parts"][0].update(source="0" * 64))
    changed(path, config=lambda c: c["config"]["layers"][-1]["config"].update(factor=3.0))
    with pytest.raises(errors.OtherModelError, match=r"The source of .*Scaled is another than when it was saved"):
        kustom.load(path)


def test_a_part_that_refuses_the_recorded_input(tmp_path):
    path = written(tmp_path, keras.layers.Dense(1))
    changed(path, kustom=lambda m: m["recorded"]["input"]["leaf"].update(shape=[2, 3]))
    with pytest.raises(errors.OtherModelError, match="refuses the recorded input"):
        kustom.load(path)


def test_a_newer_manifest(tmp_path):
    path = changed(written(tmp_path, Scaled()), kustom=lambda m: m.update(format=99))
    with pytest.raises(errors.FormatError, match=r"kustom.json: it is of format 99, and this kustom .* reads up to 1"):
        kustom.load(path)


@pytest.mark.parametrize("entry", ["types", "recorded", "parts"])
@pytest.mark.parametrize("value", [5, [7], {"tuples": ["/nowhere"], "outputs": [{}]}], ids=["number", "list", "dict"])
def test_a_manifest_that_says_something_else(tmp_path, entry, value):
    path = changed(written(tmp_path, Scaled()), kustom=lambda m: m.update({entry: value}))
    with pytest.raises(errors.FileError, match=r"kustom\.json"):
        kustom.load(path)


def in_leaf(**changes: Any) -> Callable[[Any], None]:
    return lambda manifest: manifest["recorded"]["input"]["leaf"].update(changes)


def in_recorded(**changes: Any) -> Callable[[Any], None]:
    return lambda manifest: manifest["recorded"].update(changes)


@pytest.mark.parametrize(
    ("entry", "change"),
    [
        ("recorded", in_leaf(words=[], dtype="string")),
        ("recorded", in_leaf(seed=1.7e308)),
        ("recorded", in_leaf(high=1e308)),
        ("recorded", in_leaf(shape=[2, True])),
        ("recorded", in_leaf(shape=[-1, 4])),
        ("recorded", in_leaf(dtype=["float32"])),
        ("recorded", in_leaf(data="AAAA")),
        ("recorded", in_leaf(text=["a"])),
        ("recorded", in_recorded(input={"list": 5})),
        ("recorded", in_recorded(input={"dict": []})),
        ("recorded", in_recorded(input={"list": [], "dict": {}})),
        ("recorded", in_recorded(tolerance="inf")),
        ("recorded", in_recorded(tolerance=1e300)),
        ("recorded", in_recorded(tolerance=-1)),
        ("recorded", in_recorded(device=7)),
        ("recorded", in_recorded(measures=[{"place": [], "probe": "unit"}])),
        (
            "recorded",
            in_recorded(measures=[{"place": "/", "probe": "unit", "values": {"shape": [], "dtype": "string", "text": ["a"]}}]),
        ),
        ("recorded", lambda m: m["recorded"].pop("input")),
        ("recorded", lambda m: m["recorded"]["outputs"][0].pop("values")),
        ("recorded", lambda m: m["recorded"]["outputs"][0].update(shape=5)),
        ("recorded", lambda m: m.pop("versions")),
        ("versions", lambda m: m.update(versions=[])),
        ("versions", lambda m: m.update(versions={"backend": 1})),
        ("types", lambda m: m.update(types={"tuples": [[]]})),
        ("paths", lambda m: m.update(paths=[7])),
        ("parts", lambda m: m.update(parts=[{"registered_name": 5}])),
        ("parts", lambda m: m["parts"][0].update(source=7)),
        ("parts", lambda m: m["parts"][0].update(uses=[{}])),
    ],
)
def test_an_entry_of_the_manifest_that_kustom_does_not_write(tmp_path, entry, change):
    path = changed(written(tmp_path, Scaled()), kustom=lambda m: change(m) and None)
    with pytest.raises(errors.FormatError, match=rf"kustom\.json: its entry '{entry}' is not what kustom writes"):
        kustom.load(path)


def test_a_newer_manifest_that_does_not_say_of_which_kustom(tmp_path):
    path = changed(written(tmp_path, Scaled()), kustom=lambda m: m.update(format=2, versions=[]))
    with pytest.raises(errors.FormatError, match="kustom of a newer version"):
        kustom.load(path)


def test_an_input_that_would_fill_the_memory(tmp_path):
    path = written(tmp_path, Scaled())
    changed(path, kustom=lambda m: m["recorded"]["input"]["leaf"].update(shape=[10**6, 10**6]))
    with pytest.raises(errors.FormatError, match=r"arrays of 1,000,000,000,000 entries together"):
        kustom.load(path)


def test_many_inputs_that_would_fill_the_memory_together(tmp_path):
    def many(manifest: Any) -> None:
        leaf = manifest["recorded"]["input"]
        manifest["recorded"]["input"] = {"list": [{"leaf": {**leaf["leaf"], "shape": [2**19, 4]}}] * 5}

    with pytest.raises(errors.FormatError, match=r"arrays of 10,485,760 entries together"):
        kustom.load(changed(written(tmp_path, Scaled()), kustom=many))


@pytest.mark.parametrize("shape", [[1, 2000], [5, 8], [2], [2, 8, 1]])
def test_an_input_of_a_shape_that_save_does_not_make(tmp_path, shape):
    model = keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(4, 2)])
    kustom.save(model, tmp_path / "model.keras")
    path = changed(tmp_path / "model.keras", kustom=in_leaf(shape=shape))
    with pytest.raises(errors.FormatError, match="which the model does not take"):
        kustom.load(path)


def test_an_input_that_was_given_of_more_rows_than_are_kept(tmp_path):
    given = {"shape": [5, 4], "dtype": "bool", "data": base64.b64encode(bytes(20)).decode()}
    path = changed(written(tmp_path, Scaled()), kustom=lambda m: in_recorded(input={"leaf": given})(m))
    with pytest.raises(errors.FormatError, match="an input of 5 rows, where 4 are the most"):
        kustom.load(path)


def test_an_input_of_the_size_that_the_model_says_is_made_up(tmp_path):
    model = keras.Sequential([keras.Input(batch_shape=(7, 300)), keras.layers.Dense(1)])
    kustom.save(model, tmp_path / "model.keras")
    assert kustom.load(tmp_path / "model.keras").layers[0].units == 1


def test_a_field_that_was_renamed(tmp_path):
    path = changed(written(tmp_path, Scaled(2.0)), config=lambda c: c["config"]["layers"][-1]["config"].update(facter=3.0))
    with pytest.raises(errors.RebuildError, match=r"config\.layers\[1\].*'facter'.*Did you mean 'factor'\?"):
        kustom.load(path)


@keras.saving.register_keras_serializable("load_errors")
class ByHand(keras.layers.Layer):
    def __init__(self, amount=1.0, **kwargs):
        super().__init__(**kwargs)
        self.amount = amount

    def call(self, x):
        return x * self.amount

    def get_config(self):
        return {**super().get_config(), "amount": self.amount}


def test_an_argument_that_was_renamed(tmp_path):
    path = written(tmp_path, ByHand(2.0))

    def rename(config: Any) -> None:
        inner = config["config"]["layers"][-1]["config"]
        inner["amounts"] = inner.pop("amount")

    changed(path, config=rename)
    with pytest.raises(errors.RebuildError, match=r"'amounts'.*Did 'amounts' become 'amount'\?"):
        kustom.load(path)


def test_weights_that_do_not_fit(tmp_path):
    path = written(tmp_path, keras.layers.Dense(3, name="dense"))
    changed(path, config=lambda c: c["config"]["layers"][-1]["config"].update(units=5))
    with pytest.raises(errors.FileError, match="shape"):
        kustom.load(path)


class OfTables(keras.layers.Layer):
    """Reads what it stored in ways of its own, as with the data sets of Keras."""

    def build(self, input_shape):
        self.table = self.add_weight(shape=(4,), name="table", initializer="ones")
        self.scale = self.add_weight(shape=(), name="scale", initializer="ones")

    def call(self, x):
        return x * self.table * self.scale

    def save_own_variables(self, store):
        store["table"] = np.float64(1) * ops.convert_to_numpy(self.table)
        store["scale"] = ops.convert_to_numpy(self.scale)

    def load_own_variables(self, store):
        table = store["table"]
        assert (len(table), table.shape, float(table[1:][0])) == (4, (4,), 5.0)
        assert np.array(table, dtype="float16").dtype == "float16"
        self.table.assign(np.array(table))
        self.scale.assign(ops.convert_to_tensor(store["scale"]))


keras.saving.register_keras_serializable("load_errors")(OfTables)


def test_a_layer_that_reads_what_it_stored_itself(tmp_path):
    layer = OfTables()
    layer.build((None, 4))
    layer.table.assign([4.0, 5.0, 6.0, 7.0])
    layer.scale.assign(3.0)
    loaded = kustom.load(written(tmp_path, layer)).layers[-1]
    assert [float(ops.convert_to_numpy(loaded.scale)), *ops.convert_to_numpy(loaded.table)] == [3.0, 4.0, 5.0, 6.0, 7.0]


def with_array(path: Path, end: str, array: np.ndarray) -> Path:
    """The file, as plain Keras would write it, with another array in its weights."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != "kustom.json"}
    data = io.BytesIO(members["model.weights.h5"])
    with h5py.File(data, "r+") as file:
        places: list[str] = []
        file.visit(places.append)
        (place,) = [place for place in places if place.endswith(end)]
        del file[place]
        file[place] = array
    members["model.weights.h5"] = data.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return path


@pytest.mark.parametrize(
    ("layer", "place"),
    [
        (lambda: keras.layers.Dense(2), "dense/vars/0"),
        (lambda: keras.layers.EinsumDense("ab,bc->ac", (2,)), "einsum_dense/vars/0"),
        (lambda: Grows(), "grows/vars/0"),
    ],
)
def test_weights_of_another_dtype(tmp_path, layer, place):
    path = written(tmp_path, layer())
    shape = kustom.load(path).layers[-1].weights[0].shape
    with pytest.raises(errors.WeightsError, match=r"has the dtype int8, and .* is float32"):
        kustom.load(with_array(path, place, np.ones(shape, "int8")))


@pytest.mark.parametrize(("array", "said"), [(np.ones((4, 1), "int8"), "dtype int8"), (np.ones((1, 4), "float32"), "shape")])
def test_a_state_of_an_optimizer_that_does_not_fit(tmp_path, array, said):
    model: Any = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(momentum=0.5), "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 1)), verbose=0)
    kustom.save(model, tmp_path / "model.keras")
    with pytest.raises(errors.WeightsError, match=f"optimizer/vars/2 has the {said}"):
        kustom.load(with_array(tmp_path / "model.keras", "optimizer/vars/2", array))


@kustom.part
class Grows(keras.layers.Layer):
    many = 1

    def build(self, input_shape):
        self.made = [self.add_weight(shape=(1,), name=f"w{n}") for n in range(type(self).many)]

    def call(self, x):
        return x + sum(self.made)


def test_a_layer_that_has_a_weight_more(tmp_path, monkeypatch):
    path = written(tmp_path, Grows())
    monkeypatch.setattr(Grows, "many", 2)
    with pytest.raises(errors.WeightsError, match="expected 2 variables, but received 1"):
        kustom.load(path)


def test_a_layer_that_has_no_weights_any_more(tmp_path, monkeypatch):
    path = written(tmp_path, Grows())
    monkeypatch.setattr(Grows, "many", 0)
    monkeypatch.setattr(Grows, "call", lambda self, x: x)
    with pytest.raises(errors.WeightsError):
        kustom.load(path)


def test_a_part_that_nobody_has(tmp_path):
    path = written(tmp_path, Scaled(2.0))
    changed(path, config=lambda c: c["config"]["layers"][-1].update(registered_name=f"{__name__}>Scalled", class_name="Scalled"))
    with pytest.raises(errors.UntrustedError, match="Scalled"):
        kustom.load(path)
    with pytest.raises(errors.MissingPartError, match=r"has no 'Scalled', as which it was saved. The nearest is .*Scaled"):
        kustom.load(path, trust=__name__)


def test_a_module_that_is_not_there(tmp_path):
    path = written(tmp_path, Scaled(2.0))
    layer = {"module": "no_such_package.parts", "registered_name": "no_such_package.parts>Scaled"}
    changed(path, config=lambda c: c["config"]["layers"][-1].update(layer))
    with pytest.raises(errors.MissingPartError, match="there is no module 'no_such_package'"):
        kustom.load(path, trust="no_such_package")


def test_a_class_that_is_given_by_hand(tmp_path):
    path = written(tmp_path, Scaled(2.0))
    changed(path, config=lambda c: c["config"]["layers"][-1].update(module="old", registered_name="old>Scaled"))
    assert kustom.load(path, trust={"old>Scaled": Scaled}).layers[-1].factor == 2.0


def test_limits(tmp_path):
    path = written(tmp_path, keras.layers.Dense(3))
    with pytest.raises(errors.LimitError, match="max_bytes"):
        kustom.load(path, max_bytes=100)
    with pytest.raises(errors.LimitError, match="there is no limit 'max_byte'; there are max_bytes"):
        kustom.load(path, max_byte=100)


def outcome(data: bytes) -> Any:
    try:
        return kustom.load(io.BytesIO(data))
    except errors.FileError:
        return None


def test_a_damaged_file(tmp_path):
    path = written(tmp_path, keras.layers.Dense(3))
    data = path.read_bytes()
    kernel = kustom.load(path).get_weights()[0]
    unnoticed = 0
    for at in range(0, len(data), len(data) // 60):
        model = outcome(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        if model is not None:
            # The date of a member, say.
            unnoticed += 1
            np.testing.assert_array_equal(model.get_weights()[0], kernel)
    assert unnoticed < 5
    for size in range(0, len(data), len(data) // 20):
        with pytest.raises(errors.FileError):
            kustom.load(io.BytesIO(data[:size]))


HEAD = "import kustom, keras\n"
FIRST = """
@kustom.part
class Leak(keras.layers.Layer):
    rate: float = 0.5

    def call(self, x):
        return x * (1 - self.rate)
"""
SECOND = """
def migrate(config, version):
    return {"kept": 1 - config.pop("rate"), **config}

@kustom.part(version=2, migrate=migrate)
class Leak(keras.layers.Layer):
    kept: float = 0.5

    def call(self, x):
        return x * self.kept
"""


def test_older_settings_are_migrated(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "leaking_parts.py"
    module.write_text(HEAD + FIRST)
    parts: Any = importlib.import_module("leaking_parts")
    path = written(tmp_path, parts.Leak(0.25))
    module.write_text(HEAD + SECOND + "\n")
    importlib.reload(parts)
    with pytest.warns(errors.SourceWarning, match="leaking_parts>Leak"):
        loaded = kustom.load(path)
    assert loaded.layers[-1].kept == 0.75


@kustom.part(formerly="old_place>Aged")
class Aged(Scaled):
    pass


def test_an_older_name(tmp_path):
    path = written(tmp_path, Aged(2.0))
    changed(path, config=lambda c: c["config"]["layers"][-1].update(module="old_place", registered_name="old_place>Aged"))
    assert kustom.load(path).layers[-1].factor == 2.0


def test_unregistered_parts_are_given_by_hand(tmp_path):
    class Local(keras.layers.Layer):
        def call(self, x):
            return x * 3

    model = keras.Sequential([keras.Input((4,)), Local()])
    with pytest.raises(errors.UnsavableError, match="defined inside a function and registered nowhere"):
        kustom.save(model, tmp_path / "model.keras")


class InModule(keras.layers.Layer):
    def call(self, x):
        return x * 3


def test_a_class_of_a_module_that_is_registered_nowhere(tmp_path):
    path = written(tmp_path, InModule())
    x = np.ones((2, 4), "float32")
    with pytest.raises(errors.UntrustedError, match="InModule"):
        kustom.load(path)
    for trust in (__name__, {"InModule": InModule}):
        np.testing.assert_array_equal(ops.convert_to_numpy(kustom.load(path, trust=trust)(x)), 3 * x)


def test_a_setting_that_is_no_json(tmp_path):
    model = keras.Sequential([keras.Input((4,)), ByHand(float("nan"))])
    with pytest.raises(errors.UnsavableError, match=r"layers/1 \(ByHand\): a setting is no JSON"):
        kustom.save(model, tmp_path / "model.keras")


def test_what_would_be_refused_when_it_is_loaded(tmp_path):
    def named(x):
        return x

    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(named)])
    with pytest.raises(errors.UnsavableError, match="lambda"):
        kustom.save(model, tmp_path / "model.keras")


@keras.saving.register_keras_serializable("load_errors")
class Failing(keras.layers.Layer):
    """A layer that fails where and as it is told to, once it was saved."""

    where = ""
    error: Exception = ValueError("fails")

    def fail(self, where):
        if type(self).where == where:
            raise type(self).error

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.fail("init")

    def build(self, input_shape):
        self.fail("build")

    def call(self, x):
        self.fail("call")
        return x


@pytest.mark.parametrize("where", ["init", "build", "call"])
def test_a_machine_without_memory_says_nothing_of_the_file(tmp_path, monkeypatch, where):
    path = written(tmp_path, Failing())
    model = kustom.load(path)
    monkeypatch.setattr(Failing, "where", where)
    monkeypatch.setattr(Failing, "error", MemoryError("none left"))
    with pytest.raises(MemoryError, match="none left"):
        kustom.load(path)
    with pytest.raises(MemoryError, match="none left"):
        kustom.save(model, path)


@pytest.mark.parametrize("where", ["init", "call"])
def test_what_an_error_says_commands_no_terminal(tmp_path, monkeypatch, where):
    path = written(tmp_path, Failing())
    monkeypatch.setattr(Failing, "where", where)
    monkeypatch.setattr(Failing, "error", ValueError("\x1b[1mbold\x1b[0m\n and \x07 \x1b]0;title"))
    with pytest.raises(errors.FileError) as caught:
        kustom.load(path)
    assert "bold and \\x07 \\x1b]0;title" in str(caught.value)
    assert str(caught.value).isprintable()


class CompiledByHand(keras.Sequential):
    """With a way of its own to be compiled again."""

    def compile_from_config(self, config: dict[str, Any]) -> None:
        super().compile_from_config(config)


keras.saving.register_keras_serializable("load_errors")(CompiledByHand)


@pytest.mark.parametrize("kind", [keras.Sequential, CompiledByHand])
def test_states_of_many_optimizers_are_counted_together(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(loading, "_SMALL", 1)
    dense = keras.layers.Dense(100)
    models = [kind([keras.Input((100,)), dense]) for _ in range(15)]
    path = tmp_path / "model.keras"
    for inner in models:
        inner.compile(keras.optimizers.SGD(), "mse")
    kustom.save(keras.Sequential([keras.Input((100,)), *models]), path)
    assert len(kustom.load(path).layers) == 15
    for inner in models:
        inner.compile(keras.optimizers.Adam(amsgrad=True, use_ema=True), "mse")
    kustom.save(keras.Sequential([keras.Input((100,)), *models]), path)
    with pytest.raises(errors.LimitError, match=r"bytes for which the file has no values.*compile=False"):
        kustom.load(path)
    assert len(kustom.load(path, compile=False).layers) == 15
