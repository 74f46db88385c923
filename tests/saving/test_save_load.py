"""What `kustom.save` and `kustom.load` promise: the same model, the same process, and a file of plain Keras."""

from __future__ import annotations

import concurrent.futures
import importlib
import io
import json
import logging
import operator
import os
import random
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors
from kustom import textbook as tb
from kustom.backends import keras as private

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = X[:, :1] * 2


@kustom.part
class Bias(keras.layers.Layer):
    shift: np.ndarray
    axes: tuple = (1, (2, 3))
    rate: float = 0.5

    def call(self, x):
        return x + ops.cast(self.shift, x.dtype) * self.rate


@kustom.loss
def capped(y_true, y_pred, *, cap=1.0):
    return ops.minimum(ops.abs(ops.subtract(y_true, y_pred)), cap)


def trained(*layers: Any, loss: Any = "mse", metrics: Any = None, optimizer: Any = "adam") -> Any:
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(1)])
    model.compile(optimizer, loss=loss, metrics=metrics)
    model.fit(X, Y, verbose=0)
    return model


def same_weights(one: Any, other: Any) -> None:
    ours, theirs = one.weights + one.optimizer.variables, other.weights + other.optimizer.variables
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))


def manifest_of(path: Any) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("kustom.json"))


def test_weights_settings_loss_and_metrics_come_back(tmp_path):
    model = trained(
        Bias(np.arange(4)), tb.MyDense(3, activation=tb.my_softplus), loss=capped(cap=0.5), metrics=[tb.HuberMetric(2.0)]
    )
    kustom.save(model, tmp_path / "model.keras")
    loaded = kustom.load(tmp_path / "model.keras")
    same_weights(model, loaded)
    bias = loaded.layers[0]
    assert (bias.axes, bias.rate, bias.shift.dtype) == ((1, (2, 3)), 0.5, np.arange(4).dtype)
    assert repr(loaded.loss) == "capped(cap=0.5)"
    assert loaded.evaluate(X, Y, verbose=0) == pytest.approx(model.evaluate(X, Y, verbose=0), rel=1e-6)
    loaded.fit(X, Y, verbose=0)


def test_keras_reads_the_file(tmp_path):
    model = trained(Bias(np.arange(4)), loss=capped(cap=0.5))
    kustom.save(model, tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    same_weights(model, loaded)
    assert loaded.loss.cap == 0.5


def test_a_file_that_keras_wrote(tmp_path):
    model = trained(Bias(np.arange(4)), loss=capped(cap=0.5))
    model.save(tmp_path / "model.keras")
    same_weights(model, kustom.load(tmp_path / "model.keras"))


def test_file_objects(tmp_path):
    model, buffer = trained(), io.BytesIO()
    kustom.save(model, buffer)
    buffer.seek(0)
    same_weights(model, kustom.load(buffer))


def test_not_compiled(tmp_path):
    model = trained(loss=capped(cap=0.5))
    kustom.save(model, tmp_path / "model.keras")
    loaded = kustom.load(tmp_path / "model.keras", compile=False)
    assert not loaded.compiled
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))


def test_a_compiled_model_inside_another(tmp_path):
    inner = trained(loss=capped(cap=0.5))
    inputs = keras.Input((4,))
    outer = keras.Model(inputs, inner(inputs))
    kustom.save(outer, tmp_path / "model.keras")
    loaded = kustom.load(tmp_path / "model.keras")
    same_weights(inner, next(layer for layer in loaded.layers if isinstance(layer, keras.Sequential)))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float16"])
def test_dtype_policies(tmp_path, policy):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype=policy), tb.MyDense(2, dtype=policy)])
    kustom.save(model, tmp_path / "model.keras")
    loaded = kustom.load(tmp_path / "model.keras")
    assert [layer.dtype_policy.name for layer in loaded.layers] == [policy] * 2
    for one, other in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))


@pytest.mark.skipif(not private.MULTI, reason="Keras 3.14 has no MultiOptimizer")
def test_several_optimizers(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="one"), keras.layers.Dense(1, name="two")])
    table = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.01), {"one/.*": keras.optimizers.SGD(0.1, momentum=0.5)})
    model.compile(keras.optimizers.MultiOptimizer(table), loss="mse")
    model.fit(X, Y, verbose=0)
    kustom.save(model, tmp_path / "model.keras")
    loaded = kustom.load(tmp_path / "model.keras")
    same_weights(model, loaded)
    # By their paths the optimizer knows which are whose; Keras gives those of a loaded model others.
    assert [v.path for v in loaded.weights] == [v.path for v in model.weights]
    assert [v.path for v in loaded.optimizer.variables] == [v.path for v in model.optimizer.variables]


def test_weights_that_come_back_in_another_order_keep_their_paths(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    # What Keras counts for it comes behind the kernel here, and before it in a loaded layer.
    model.quantize("float8")
    kustom.save(model, tmp_path / "model.keras")
    loaded = kustom.load(tmp_path / "model.keras")
    before, after = ({v.path: ops.convert_to_numpy(v) for v in each.weights} for each in (model, loaded))
    assert before.keys() == after.keys()
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)


def test_optimizers_that_scale_the_loss(tmp_path):
    model = trained(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()))
    kustom.save(model, tmp_path / "model.keras")
    same_weights(model, kustom.load(tmp_path / "model.keras"))


@kustom.part
class Stepper(kustom.Model):
    units: int = 3

    def setup(self):
        self.hidden = keras.layers.Dense(self.units)
        self.out = keras.layers.Dense(1)

    def call(self, x):
        return self.out(self.hidden(x))

    def train_step(self, data):
        x, y = data
        with kustom.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True))
        return {"loss": loss}


def test_a_model_with_a_step_of_its_own(tmp_path):
    model = Stepper(2)
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    kustom.save(model, tmp_path / "model.keras")
    loaded = kustom.load(tmp_path / "model.keras")
    same_weights(model, loaded)
    loaded.fit(X, Y, verbose=0)


def test_several_inputs_ids_masks_and_dicts(tmp_path):
    ids, table = keras.Input((5,), dtype="int32", name="ids"), keras.Input((4,), name="table")
    known = keras.Input((5,), dtype="bool", name="known")
    h = keras.layers.Embedding(7, 3)(ids)
    h = keras.layers.GlobalAveragePooling1D()(h, mask=known)
    out = {"a": keras.layers.Dense(2)(h), "b": [keras.layers.Dense(1)(keras.layers.Concatenate()([h, table]))]}
    model = keras.Model({"ids": ids, "table": table, "known": known}, out)
    kustom.save(model, tmp_path / "model.keras")
    recorded = manifest_of(tmp_path / "model.keras")["recorded"]
    assert recorded["input"]["dict"]["ids"]["leaf"]["high"] == 7
    assert [leaf["place"] for leaf in recorded["outputs"]] == ["['a']", "['b'][0]"]
    kustom.load(tmp_path / "model.keras")


def test_convolutions_of_a_free_size(tmp_path):
    conv = [keras.layers.Conv2D(2, 5, strides=2) for _ in range(3)]
    model = keras.Sequential([keras.Input((None, None, 1)), *conv, keras.layers.GlobalMaxPooling2D()])
    kustom.save(model, tmp_path / "model.keras")
    assert manifest_of(tmp_path / "model.keras")["recorded"]["input"]["leaf"]["shape"] == [2, 32, 32, 1]


def test_an_example(tmp_path):
    model = trained()
    kustom.save(model, tmp_path / "model.keras", example=X)
    leaf = manifest_of(tmp_path / "model.keras")["recorded"]["input"]["leaf"]
    assert leaf["shape"] == [4, 4]
    kustom.load(tmp_path / "model.keras")


def test_an_example_that_the_model_refuses(tmp_path):
    with pytest.raises(errors.RecordingError, match="refuses example="):
        kustom.save(trained(), tmp_path / "model.keras", example=X[:, :2])
    with pytest.raises(errors.RecordingError, match="has 4,000,000 bytes"):
        kustom.save(trained(), tmp_path / "model.keras", example=np.zeros((2, 500_000, 1)))


@kustom.part
class Picky(keras.layers.Layer):
    def call(self, x):
        if x.shape[0] != 3:
            raise ValueError("three rows, please")
        return x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def test_nothing_that_could_be_made_up(tmp_path):
    model = keras.Sequential([keras.Input((4,), batch_size=3), keras.layers.Dense(1)])
    kustom.save(model, tmp_path / "model.keras")
    strange = keras.Sequential([keras.Input((4,)), Picky()])
    with pytest.warns(errors.RecordingWarning, match="three rows, please"):
        kustom.save(strange, tmp_path / "model.keras")
    assert "three rows" in manifest_of(tmp_path / "model.keras")["recorded"]["nothing_since"]
    kustom.save(strange, tmp_path / "model.keras", example=X[:3])
    kustom.load(tmp_path / "model.keras")


@kustom.part
class Noise(keras.layers.Layer):
    def setup(self):
        self.seed = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seed)


def test_what_is_random_is_said_to_be_and_not_compared(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [Noise()(inputs), keras.layers.Dense(2)(inputs)])
    kustom.save(model, tmp_path / "model.keras")
    random_, plain = manifest_of(tmp_path / "model.keras")["recorded"]["outputs"]
    assert random_["random"] is True
    assert "random" not in plain
    kustom.load(tmp_path / "model.keras")


def test_the_manifest_says_what_a_part_is(tmp_path):
    kustom.save(trained(Bias(np.arange(4)), tb.MyDense(3)), tmp_path / "model.keras")
    manifest = manifest_of(tmp_path / "model.keras")
    mine, theirs = manifest["parts"]
    assert mine["registered_name"] == f"{__name__}>Bias"
    assert (mine["module"], mine["name"], mine["distribution"]) == (__name__, "Bias", None)
    assert (theirs["distribution"], theirs["version"]) == ("kustom", kustom.__version__)
    assert mine["uses"][0]["settings"]["rate"] == 0.5
    assert len(mine["source"]) == 64
    assert manifest["versions"]["backend"] == keras.backend.backend()
    assert set(manifest["sums"]) == {"metadata.json", "config.json", "model.weights.h5"}


def test_two_saves_of_one_model_have_one_config(tmp_path):
    model = trained(Bias(np.arange(4)))
    for name in ("one", "other"):
        kustom.save(model, tmp_path / f"{name}.keras")
    one, other = (zipfile.ZipFile(tmp_path / f"{name}.keras") for name in ("one", "other"))
    for member in ("config.json", "model.weights.h5"):
        assert one.read(member) == other.read(member)


def state_of(model: Any) -> list[np.ndarray]:
    variables = model.variables + model.metrics_variables + model.optimizer.variables
    return [ops.convert_to_numpy(variable).copy() for variable in variables]


# The counters of names, which go on, and what Keras remembers of the attributes of classes that it has saved.
KEPT_BY_KERAS = ("object_name_uids", "saving_attr_skipset_")


def process_state() -> list[Any]:
    return [
        random.getstate(),
        repr(np.random.get_state()),
        keras.config.floatx(),
        keras.config.epsilon(),
        keras.config.dtype_policy().name,
        keras.config.image_data_format(),
        os.getcwd(),
        list(sys.path),
        logging.getLogger().level,
        {name: value for name, value in private.settings_here().items() if not name.startswith(KEPT_BY_KERAS)},
    ]


@kustom.part
class Meddles(keras.layers.Layer):
    def setup(self):
        keras.config.set_floatx("float64")
        random.seed(0)
        np.random.seed(0)
        keras.utils.set_random_seed(3)
        logging.getLogger().setLevel(logging.CRITICAL)

    def call(self, x):
        return x


def test_saving_and_loading_change_nothing(tmp_path):
    model = trained(keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), Noise(), metrics=["mae"])
    before, around = state_of(model), process_state()
    kustom.save(model, tmp_path / "model.keras")
    kustom.load(tmp_path / "model.keras")
    assert repr(process_state()) == repr(around)
    for one, other in zip(before, state_of(model), strict=True):
        np.testing.assert_array_equal(one, other)
    names = keras.layers.Dense(1).name, keras.layers.Dense(1).name
    assert int(names[1].rpartition("_")[2]) == int(names[0].rpartition("_")[2]) + 1


def test_a_thread_in_which_a_file_was_refused_still_makes_layers():
    def refused() -> str:
        with pytest.raises(errors.FormatError):
            kustom.load(io.BytesIO(b"no archive"))
        return keras.layers.Dense(1).name

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        assert thread.submit(refused).result().startswith("dense")


def test_a_part_that_meddles_with_the_process(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Meddles()])
    keras.config.set_floatx("float32")
    logging.getLogger().setLevel(logging.WARNING)
    around = process_state()
    kustom.save(model, tmp_path / "model.keras")
    assert repr(process_state()) == repr(around)
    kustom.load(tmp_path / "model.keras")
    assert repr(process_state()) == repr(around)
    path = tmp_path / "model.keras"
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    with pytest.raises(errors.FileError):
        kustom.load(path)
    assert repr(process_state()) == repr(around)


def test_what_draws_after_a_save_draws_what_it_would_have(tmp_path):
    model = trained(keras.layers.Dropout(0.5))
    keras.utils.set_random_seed(1)
    before = ops.convert_to_numpy(keras.random.normal((3,)))
    keras.utils.set_random_seed(1)
    kustom.save(model, tmp_path / "model.keras")
    np.testing.assert_array_equal(ops.convert_to_numpy(keras.random.normal((3,))), before)


def test_from_a_callback_while_it_is_trained(tmp_path):
    path = tmp_path / "model.keras"
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    save = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kustom.save(model, path))
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[save])
    same_weights(model, kustom.load(path))


def test_a_path_that_is_none(tmp_path):
    model = trained()
    with pytest.raises(errors.UnsavableError, match=r"ends in \.keras"):
        kustom.save(model, tmp_path / "model.h5")
    with pytest.raises(errors.UnsavableError, match="remote address"):
        kustom.save(model, "gs://bucket/model.keras")
    with pytest.raises(errors.UnsavableError, match=r"takes a keras\.Model"):
        kustom.save(keras.layers.Dense(1), tmp_path / "model.keras")  # pyright: ignore
    with pytest.raises(errors.FormatError, match="address"):
        kustom.load("https://example.com/model.keras")


def test_a_place_that_is_none(tmp_path):
    model = trained()
    with pytest.raises(FileNotFoundError, match=r"no such folder.*nowhere'$"):
        kustom.save(model, tmp_path / "nowhere" / "model.keras")
    (tmp_path / "model.keras").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a folder.*model\.keras'$"):
        kustom.save(model, tmp_path / "model.keras")
    with pytest.raises(errors.UnsavableError, match="mode 'wb'"), (tmp_path / "model.txt").open("w") as file:
        kustom.save(model, file)  # pyright: ignore
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.keras", "model.txt"]


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.keras"
    kustom.save(trained(), path)
    before = path.read_bytes()
    layer = Bias(np.arange(4))
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.rate = lambda: 1
    with pytest.raises(errors.SettingError, match="'rate'"):
        kustom.save(model, path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["model.keras"]


SCRIPT = """
import sys, keras, kustom
model = kustom.load(sys.argv[1], trust=sys.argv[2])
print(type(model.layers[0]).__module__, model.loss)
"""


@pytest.mark.slow
def test_a_new_process_that_is_told_whom_to_trust(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_parts.py").write_text(
        "import keras, kustom\n"
        "@kustom.layer\n"
        "def doubled(x, *, times=2.0):\n    return x * times\n"
        "@kustom.loss\n"
        "def far(y_true, y_pred, *, cap=1.0):\n    return abs(y_true - y_pred) * cap\n"
    )
    write = (
        "import keras, kustom, my_parts, sys\n"
        "model = keras.Sequential([keras.Input((2,)), my_parts.doubled(times=3.0)])\n"
        "model.compile(loss=my_parts.far(cap=2.0)); kustom.save(model, sys.argv[1])\n"
    )
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "model.keras"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "code"), os.environ.get("PYTHONPATH", "")])}

    def run(code: str, *arguments: str, **options: Any) -> Any:
        command = [sys.executable, "-W", "ignore", "-c", code, str(path), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)

    done = run(write)
    assert done.returncode == 0, done.stderr
    done = run(SCRIPT, "my_parts")
    assert done.stdout.split() == ["my_parts", "far(cap=2.0)"], done.stderr
    done = run(SCRIPT, "other_parts")
    assert "UntrustedError" in done.stderr
    assert "my_parts" in done.stderr
    # A module of that name beside the file is not taken for it.
    (tmp_path / "files" / "my_parts.py").write_text("raise SystemExit('imported')")
    environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    done = run(SCRIPT, "my_parts", cwd=tmp_path / "files")
    assert "MissingPartError" in done.stderr
    assert "imported" not in done.stdout + done.stderr.replace("imported", "", 0).split("MissingPartError")[0]


def test_a_module_beside_the_file_is_not_taken_for_the_trusted_one(tmp_path, monkeypatch):
    code = "import keras, kustom\n@kustom.layer\ndef doubled(x, *, times=2.0):\n    return x * times\n"
    for folder in ("code", "files"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "beside_parts.py").write_text(code)
    path = tmp_path / "files" / "model.keras"
    monkeypatch.syspath_prepend(tmp_path / "code")
    module: Any = importlib.import_module("beside_parts")
    kustom.save(keras.Sequential([keras.Input((2,)), module.doubled(times=3.0)]), path)
    monkeypatch.delitem(sys.modules, "beside_parts")
    for name in [name for name in private.registry() if name.startswith("beside_parts>")]:
        monkeypatch.delitem(private.registration.object_registration.GLOBAL_CUSTOM_OBJECTS, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "files"), "", *sys.path[1:]])
    monkeypatch.chdir(tmp_path / "files")
    around = list(sys.path)
    with pytest.raises(errors.MissingPartError, match="there is no module 'beside_parts'"):
        kustom.load(path, trust="beside_parts")
    assert "beside_parts" not in sys.modules
    sys.path.insert(0, str(tmp_path / "code"))
    assert kustom.load(path, trust="beside_parts").layers[-1].times == 3.0
    assert sys.path == [str(tmp_path / "code"), *around]


def test_temporary_files_and_paths_of_bytes(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with tempfile.NamedTemporaryFile(dir=tmp_path) as file:
        kustom.save(model, file)
        same_weights(model, kustom.load(file))
        assert kustom.inspect(file).model == "keras.Sequential"
    path = os.fsencode(tmp_path / "model.keras")
    kustom.save(model, path)
    same_weights(model, kustom.load(path))
    assert kustom.inspect(path).model == "keras.Sequential"


@pytest.mark.parametrize("target", [None, 3])
def test_what_is_neither_a_path_nor_a_file_object(target):
    with pytest.raises(errors.UnsavableError, match="to a path or to a binary file object, not to a"):
        kustom.save(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]), target)


@keras.saving.register_keras_serializable("save_load")
class MakesItsModel(keras.layers.Layer):
    """A layer that makes the model in it from that model's settings, without what it was compiled with."""

    def __init__(self, inner=None, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner
        if inner is None:
            self.inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
            self.inner.compile("sgd", "mse")

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "inner": keras.Sequential.from_config(config["inner"]["config"])})


def test_a_compiled_model_that_a_part_makes_itself(tmp_path):
    model = keras.Sequential([keras.Input((4,)), MakesItsModel()])
    model.compile("sgd", "mse")
    kustom.save(model, tmp_path / "model.keras")
    loaded = kustom.load(tmp_path / "model.keras")
    np.testing.assert_array_equal(model.get_weights()[0], loaded.get_weights()[0])
    assert loaded.compiled
    assert not loaded.layers[0].inner.compiled


class Squared(keras.losses.Loss):
    """A loss whose setting stands in no attribute, and not in its config."""

    def __init__(self, power=2.0, name="squared"):
        super().__init__(name=name)
        self._raised = operator.methodcaller("__pow__", float(power))

    def call(self, y_true, y_pred):
        return self._raised(keras.ops.abs(y_true - y_pred))

    def get_config(self):
        return {"name": self.name}


keras.saving.register_keras_serializable("save_load")(Squared)


@pytest.mark.parametrize("shape", [(), (300,), (200, 300)], ids=["a number a sample", "a row", "more than is recorded"])
def test_a_setting_of_a_loss_that_is_lost_shows_whatever_the_output_is(shape):
    x = keras.Input((3,))
    size = int(np.prod(shape))
    y = keras.layers.Reshape(shape)(keras.layers.Dense(size)(x)) if shape else keras.ops.sum(x, axis=-1)
    model = keras.Model(x, y)
    model.compile("sgd", Squared(power=3.0))
    with pytest.raises(errors.UnsavableError, match="another value"):
        kustom.save(model, io.BytesIO())
    model.compile("sgd", Squared())
    kustom.save(model, io.BytesIO())


class BeginsAtOne(keras.layers.SimpleRNNCell):
    def get_initial_state(self, batch_size=None):
        return [ops.ones((batch_size, self.units), dtype=self.compute_dtype)]


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(lambda: keras.layers.LSTM(2, stateful=True), id="LSTM"),
        pytest.param(lambda: keras.layers.GRU(2, stateful=True), id="GRU"),
        pytest.param(lambda: keras.layers.SimpleRNN(2, stateful=True), id="SimpleRNN"),
        pytest.param(lambda: keras.layers.RNN([keras.layers.LSTMCell(3), keras.layers.GRUCell(2)], stateful=True), id="stacked"),
        pytest.param(lambda: keras.layers.Bidirectional(keras.layers.LSTM(2, stateful=True)), id="Bidirectional"),
        pytest.param(lambda: keras.layers.RNN(BeginsAtOne(2), stateful=True), id="another beginning"),
    ],
)
def test_a_stateful_layer_starts_anew(tmp_path, layer):
    model = keras.Sequential([keras.Input(batch_shape=(2, 3, 1)), layer()])
    x = np.ones((2, 3, 1), "float32")
    first = ops.convert_to_numpy(model(x))
    second = ops.convert_to_numpy(model(x))
    kustom.save(model, tmp_path / "m.keras")
    trust = {"BeginsAtOne": BeginsAtOne}
    again = ops.convert_to_numpy(kustom.load(tmp_path / "m.keras", trust=trust)(x))
    np.testing.assert_allclose(again, first, rtol=1e-4, atol=1e-6)
    # Nothing about the model that is saved changes: it goes on from where it was.
    assert not np.allclose(second, first)
    third = ops.convert_to_numpy(model(x))
    assert not np.allclose(third, first)
