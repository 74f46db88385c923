"""The verdict: who is trusted, what agrees with what, and what the refusal says."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
from typing import Any

import hostile
import keras
import numpy as np
import pytest

import kustom
from kustom import errors
from kustom.backends import keras as private
from kustom.saving import archive, graph
from kustom.saving.limits import Limits
from kustom.saving.verdict import judge


@kustom.part(package="verdict")
class Scaled(keras.layers.Layer):
    factor: float = 1.0
    activation: Any = None
    table: Any = None

    def call(self, x):
        return x * self.factor


@kustom.loss(package="verdict")
def distance(y_true, y_pred, *, power=2.0):
    return keras.ops.abs(y_true - y_pred) ** power


@keras.saving.register_keras_serializable("verdict")
def doubled(x):
    return 2 * x


@keras.saving.register_keras_serializable("verdict")
class Words(keras.layers.StringLookup):
    pass


@keras.saving.register_keras_serializable("verdict")
class Running(keras.layers.Lambda):
    pass


def written(obj: Any) -> dict[str, Any]:
    return json.loads(json.dumps(keras.saving.serialize_keras_object(obj)))


def part(module: str | None, name: str, config: Any = None, registered_name: str | None = None) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": {} if config is None else config, "registered_name": registered_name}


def dense(**settings: Any) -> dict[str, Any]:
    return part("keras.layers", "Dense", {"units": 2, **settings})


def reasons(config: Any, **arguments: Any) -> list[str]:
    return [str(error) for error in judge(config, **arguments).anomalies]


@pytest.fixture
def model():
    inputs = keras.Input((3,))
    x = Scaled(2.0, activation="relu", table=np.arange(3))(keras.layers.Dense(2, activation=doubled)(inputs))
    model = keras.Model(inputs, x)
    model.compile("sgd", distance(power=3.0), metrics=["mae"])
    return model


def test_what_the_program_has_registered_is_taken(model):
    verdict = judge(written(model), registered=private.registry())
    assert not verdict.anomalies
    assert [(each.registered_name, each.slot, each.source) for each in verdict.customs] == [
        ("verdict>doubled", "activation", "registered"),
        ("verdict>Scaled", "operation", "registered"),
        ("verdict>distance", "loss", "registered"),
    ]
    assert verdict.imports == ()
    assert verdict.parts["keras.layers.Dense"] == 1


def test_what_nobody_vouches_for_is_refused_with_the_line_to_add(model):
    with pytest.raises(errors.UntrustedError) as caught:
        judge(written(model), file="model.keras").hold()
    assert caught.value.wants == ("verdict>doubled", "verdict>Scaled", "verdict>distance")
    text = str(caught.value)
    assert "verdict>Scaled (operation, of" in text
    # The function's own module stands nowhere in the config, only the package under which it was registered.
    assert f"kustom.load('model.keras', trust=({__name__.split('.')[0]!r}, 'verdict'))" in text


def test_a_module_is_trusted_exactly_or_as_a_package():
    config = part("pack.parts", "Gate", {}, "pack.parts>Gate")
    for trust in ("pack", "pack.parts", ["other", "pack"], ("pack.parts",)):
        verdict = judge(config, trust=trust)
        assert not verdict.anomalies
        assert verdict.imports == ("pack.parts",)
    for trust in ("pac", "pack.part", "pack.parts.more", (), "packs"):
        assert judge(config, trust=trust).imports == ()
        assert judge(config, trust=trust).anomalies


@pytest.mark.parametrize("module", [None, "__main__"])
def test_what_a_script_defined_is_imported_from_where_it_was_registered(module):
    config = part(module, "Gate", {}, "parts>Gate")
    assert judge(config, trust="parts").imports == ("parts",)
    with pytest.raises(errors.UntrustedError, match=r"trust='parts'"):
        judge(config).hold()
    nameless = part(module, "Gate", {}, "my package>Gate")
    with pytest.raises(errors.UntrustedError, match=r"trust=\{'my package>Gate': Gate\}"):
        judge(nameless).hold()
    assert not judge(nameless, trust={"my package>Gate": Scaled}).anomalies


def test_the_manifest_says_where_a_function_is_from(tmp_path):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation=doubled)]).save(tmp_path / "model.keras")
    with archive.read(tmp_path / "model.keras") as found:
        found.manifest = {"parts": [{"registered_name": "verdict>doubled", "module": "pack.functions"}, 3, {"module": 4}]}
        assert judge(found, trust="pack").imports == ("pack.functions",)
        found.manifest = {"parts": 3}
        assert judge(found, trust="verdict").imports == ("verdict",)


@pytest.mark.parametrize("trust", ["", "a b", "a.b-c", [3], "../up", ["ok", ""]])
def test_trust_that_names_nothing_is_refused(trust):
    with pytest.raises(errors.UntrustedError, match="trust="):
        judge(dense(), trust=trust)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"registered_name": "verdict>distance"}, "Scaled is shown, and .*distance would be made"),
        ({"class_name": "Dense"}, "Dense is shown, and .*Scaled would be made"),
        ({"module": "somebody.else"}, "somebody.else.Scaled is shown, and .*Scaled would be made"),
        ({"module": "keras.layers"}, "keras.layers.Scaled is none of the parts"),
        ({"module": "keras.layers", "class_name": "Dense"}, "Dense is shown, and 'verdict>Scaled' would be made"),
    ],
)
def test_what_is_shown_is_what_would_be_made(change, message):
    config = {**written(Scaled(2.0)), **change}
    with pytest.raises(errors.UnsafeFileError, match=message):
        judge(config, registered=private.registry()).hold()


def test_a_name_of_keras_that_the_program_has_taken_is_refused():
    with pytest.raises(errors.UnsafeFileError, match=r"registered .*Scaled as 'Dense'"):
        judge(dense(), registered={"Dense": Scaled}).hold()


def test_a_registered_part_stands_in_its_own_place_alone():
    loss, layer = written(distance()), written(Scaled())
    for config, slot in ((loss, "layer"), (layer, "loss"), (loss, "optimizer"), (layer, "initializer"), (loss, "activation")):
        with pytest.raises(errors.UnsafeFileError, match=r"is registered as .*, where .* was expected"):
            judge(config, slot=slot, registered=private.registry()).hold()
    assert not judge(loss, slot="metric", registered=private.registry()).anomalies
    assert not judge(layer, slot="activation", registered=private.registry()).anomalies


def test_a_place_of_a_function_takes_no_class():
    config = part(Scaled.__module__, "function", "verdict>Scaled", "verdict>Scaled")
    with pytest.raises(errors.UnsafeFileError, match=r"where a loss was expected|where a function was expected"):
        judge(config, slot="loss", registered=private.registry()).hold()
    assert reasons(part("verdict", "function", "doubled", "verdict>Scaled"), slot="activation", registered=private.registry())


def test_text_names_keras_or_registered_parts():
    assert not reasons(dense(activation="relu", kernel_initializer="he_normal"))
    assert "Did you mean 'relu'?" in reasons(dense(activation="rellu"))[0]
    assert not reasons(dense(activation="verdict>doubled"), registered=private.registry())
    with pytest.raises(errors.UntrustedError):
        judge(dense(activation="verdict>doubled")).hold()


@keras.saving.register_keras_serializable("verdict")
class Ones(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.ops.ones(shape, dtype)


def test_text_names_what_fits_its_place():
    assert not reasons(dense(kernel_initializer="verdict>Ones"), registered=private.registry())
    for place in ("kernel_initializer", "bias_regularizer", "kernel_constraint"):
        for wrong in ("verdict>Scaled", "verdict>distance"):
            with pytest.raises(errors.UnsafeFileError, match=r"the text 'verdict>\w+' names .*, where an? \w+ was expected"):
                judge(dense(**{place: wrong}), registered=private.registry()).hold()
    with pytest.raises(errors.UnsafeFileError, match=r"the text 'verdict>Ones' names .*Ones, where an activation was expected"):
        judge(dense(activation="verdict>Ones"), registered=private.registry()).hold()


def test_a_class_of_the_program_is_loaded_by_its_name(tmp_path):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_initializer=Ones())]).save(tmp_path / "model.keras")
    members = hostile.unpacked(tmp_path / "model.keras")
    config = json.loads(members["config.json"])
    config["config"]["layers"][1]["config"]["kernel_initializer"] = "verdict>Ones"
    hostile.packed(tmp_path / "model.keras", {**members, "config.json": json.dumps(config).encode()})
    assert type(kustom.load(tmp_path / "model.keras").layers[0].kernel_initializer) is Ones


def test_what_derives_from_keras_keeps_its_dangers():
    lookup = part(__name__, "Words", {"vocabulary": "/etc/passwd"}, "verdict>Words")
    with pytest.raises(errors.UnsafeFileError, match="a file or an address that would be read"):
        judge(lookup, registered=private.registry()).hold()
    assert not judge({**lookup, "config": {"vocabulary": ["a", "b"]}}, registered=private.registry()).anomalies
    with pytest.raises(errors.UnsafeFileError, match="derives from a part of Keras's that is never loaded"):
        judge(part(__name__, "Running", {"function": None}, "verdict>Running"), registered=private.registry()).hold()


@keras.saving.register_keras_serializable("verdict")
class Tower(private.Functional):
    pass


def test_a_functional_model_of_ones_own_is_no_graph_of_a_file():
    inputs = keras.Input((3,))
    model = Tower(inputs, keras.layers.Dense(2)(inputs))
    assert not reasons(written(model), registered=private.registry())


@pytest.mark.parametrize(
    "value",
    [
        {"class_name": "__numpy__", "config": {"value": [[1.0, 2.0]], "dtype": "float32"}},
        {"class_name": "__numpy__", "config": {"value": ["ab", "c"], "dtype": "<U2", "shape": [2]}},
        {"class_name": "__numpy__", "config": {"value": ["nan", 1.0], "dtype": "float32", "shape": [2]}},
        {"class_name": "__numpy__", "config": {"value": 3, "dtype": "int32", "shape": []}},
        {"class_name": "__numpy__", "config": {"value": [], "dtype": "int32", "shape": [0, 3]}},
        {"class_name": "__tuple__", "config": {"value": [1, {"class_name": "__tuple__", "config": {"value": []}}]}},
        {"class_name": "__dict__", "config": {"value": [[1, "a"], [{"class_name": "__tuple__", "config": {"value": [1]}}, 2]]}},
        {"class_name": "__float__", "config": {"value": "-inf"}},
        {"class_name": "__hex__", "config": {"value": "00ff"}},
        {"class_name": "__bytes__", "config": {"value": "text"}},
        {"class_name": "__slice__", "config": {"start": None, "stop": 2, "step": None}},
        {"class_name": "__ellipsis__", "config": {}},
    ],
)
def test_marked_data_is_read_in_settings_of_ones_own_parts(value):
    config = written(Scaled())
    config["config"]["table"] = {"inner": [value]}
    assert not reasons(config, registered=private.registry())


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("__numpy__", {"value": [""], "dtype": "S1000000000"}, "an array of the dtype 'S1000000000'"),
        ("__numpy__", {"value": [1], "dtype": "object"}, "an array of the dtype 'object'"),
        ("__numpy__", {"value": [1], "dtype": {"names": ["a"]}}, "an array of the dtype"),
        ("__numpy__", {"value": [[1], [1, 2]], "dtype": "int32"}, "not equally long"),
        ("__numpy__", {"value": [1], "dtype": "int32", "shape": [2**40]}, "should have the shape"),
        ("__numpy__", {"value": ["a"], "dtype": "int32"}, "holds something else"),
        ("__numpy__", {"value": [2**70], "dtype": "int64"}, "does not fit"),
        ("__numpy__", {"value": [1], "dtype": "int32", "extra": 1}, "not written as it should be"),
        ("__tensor__", {"value": [{}], "dtype": "int32"}, "not equally long|holds something else"),
        ("__lambda__", {"value": ["", None, None]}, "a lambda, whose Python code"),
        ("__typespec__", [], "a type of TensorFlow's"),
        ("__keras_tensor__", {"shape": [1], "dtype": "int32", "keras_history": ["a", 0, 0]}, "where nobody reads it"),
        ("__float__", {"value": "1e5"}, "no number that is not finite"),
        ("__hex__", {"value": "0g"}, "no hexadecimal digits"),
        ("__tuple__", {"value": 3}, "no list of values"),
        ("__dict__", {"value": [[[1], 2]]}, "a key that cannot be one"),
        ("__slice__", {"start": "a", "stop": None, "step": None}, "something else than whole numbers"),
        ("__anything__", {}, "where nobody reads it"),
    ],
)
def test_marked_data_that_is_none_is_refused(name, config, message):
    settings = written(Scaled())
    settings["config"]["table"] = {"class_name": name, "config": config}
    with pytest.raises(errors.FileError, match=message):
        judge(settings, registered=private.registry()).hold()


def test_a_dtype_is_a_name_of_keras():
    for name in ("float32", "bfloat16", "mixed_float16", "int8_from_float32", "gptq/4/128_from_mixed_bfloat16", "string"):
        assert not reasons(dense(dtype=name)), name
    for name in ("S1000000000", "object", "float32 ", "mixed_S9", "<f4", "int8_from_int8"):
        assert "is no dtype of Keras's" in reasons(dense(dtype=name))[0], name


def test_shared_objects_are_one(tmp_path):
    inputs = keras.Input((3,))
    start = keras.initializers.HeNormal(seed=1)
    shared = keras.layers.Dense(3, kernel_initializer=start)
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer=start)(shared(shared(inputs))))
    model.save(tmp_path / "model.keras")
    with archive.read(tmp_path / "model.keras") as found:
        assert b"shared_object_id" in found.config_bytes
        assert not judge(found).anomalies
    first, other = dense(), dense()
    first["shared_object_id"] = other["shared_object_id"] = 5
    pair = part("keras", "Sequential", {"name": "s", "layers": [first, other]})
    assert not reasons(pair)
    other["config"]["units"] = 3
    assert "same object as one with other settings" in reasons(pair)[0]
    other["shared_object_id"] = "5"
    assert "a shared object has the number '5'" in reasons(pair)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("module"), "has no module, as in files of Keras 2"),
        (lambda c: c.update(module=3), "is no text"),
        (lambda c: c.update(class_name=None), "the name of a class is None"),
        (lambda c: c.update(config=[1]), "the settings of keras.layers.Dense are"),
        (lambda c: c.update(extra=1), "nobody expects 'extra' beside class_name"),
        (lambda c: c.update(compile_config=3), "settings of compile were expected"),
        (lambda c: c.update(build_config={"input_shape": [None, 2**40]}), "max_size"),
        (lambda c: c["config"].update(name="a/b"), "the layer name 'a/b'"),
        (lambda c: c["config"].update(name="a\nb"), "the layer name"),
        (lambda c: c["config"].update(name=3), "a layer's name is 3"),
        (lambda c: c["config"].update(units=10**10), "raise it: max_size=10_000_000_000"),
        (lambda c: c["config"].update(use_bias=dense()), "keras.layers.Dense stands where plain data was expected"),
        (lambda c: c["config"].update(activation=3), "3 stands where an activation was expected"),
        (lambda c: c["config"].update(kernel_initializer={"class_name": "Zeros"}), "Zeros stands without a config"),
    ],
)
def test_a_config_that_is_not_as_keras_writes_it_is_refused(change, message):
    config = dense()
    change(config)
    with pytest.raises(errors.FileError, match=message):
        judge(config).hold()


@pytest.mark.parametrize("config", [{}, {"class_name": "Dense"}, {"a": {}}, {"config": {}}])
def test_a_config_is_that_of_a_part(config):
    with pytest.raises(errors.CorruptFileError, match="the config of no model"):
        judge(config).hold()


def chain(order: list[int]) -> dict[str, Any]:
    """A functional model of layers in a row, listed in another order."""
    inputs = keras.Input((3,), name="x")
    x = inputs
    for number in range(len(order)):
        x = keras.layers.Dense(3, name=f"d{number}")(x)
    config = written(keras.Model(inputs, x))
    first, *layers = config["config"]["layers"]
    config["config"]["layers"] = [first, *(layers[number] for number in order)]
    return config


def test_a_graph_costs_what_its_order_costs():
    def cost(order):
        config = chain(order)["config"]["layers"]
        return graph.attempts(config, frozenset(["x"]))

    assert cost(list(range(6))) == 6
    assert cost(list(range(6))[::-1]) == 6 + 15
    assert not reasons(chain(list(range(6))[::-1]))


def shared_twice() -> dict[str, Any]:
    inputs = keras.Input((3,), name="x")
    a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(3, name="b")
    inner = keras.Model(inputs, keras.layers.Dense(3, name="c")(inputs), name="inner")
    return written(keras.Model(inputs, inner(inner(a(b(a(inputs)))))))


def test_layers_and_models_that_are_called_again_are_no_fault():
    config = shared_twice()
    assert not reasons(config)
    assert type(keras.saving.deserialize_keras_object(copy.deepcopy(config))).__name__ == "Functional"


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (["nobody", 0, 0], "needs the layer 'nobody'"),
        (["a", 5, 0], "the call 5 of 'a', which is never made"),
        (["b", 0, 0], "in a circle"),
        (["a", -1, 0], "a symbolic tensor from"),
        (["a", 0], "a symbolic tensor from"),
        (None, "a symbolic tensor from None"),
    ],
)
def test_a_graph_that_is_none_is_refused(history, message):
    config = shared_twice()
    layer = next(each for each in config["config"]["layers"] if each["name"] == "b")
    layer["inbound_nodes"][0]["args"][0]["config"]["keras_history"] = history
    with pytest.raises(errors.CorruptFileError, match=message):
        judge(config).hold()


def test_every_reason_is_given_and_the_worst_is_raised(model):
    config = written(model)
    config["config"]["layers"][1]["config"]["units"] = 10**10
    config["compile_config"]["optimizer"] = part("keras.layers", "Lambda")
    verdict = judge(config)
    assert [type(error) for error in verdict.anomalies] == [errors.LimitError, errors.UnsafeFileError, errors.UntrustedError]
    with pytest.raises(errors.UnsafeFileError, match="Lambda") as caught:
        verdict.hold()
    assert caught.value.__notes__ == ["There are 2 more reasons to refuse the file; kustom.inspect shows them all."]


def test_a_limit_on_layers_is_named():
    config = chain([0, 1, 2])
    assert not reasons(config, limits=Limits(max_layers=5))
    (reason,) = reasons(config, limits=Limits(max_layers=4))
    assert "it has 5 layers" in reason
    assert "give max_layers=5" in reason


def test_a_verdict_is_the_same_in_a_thread_and_again(model):
    config = written(model)
    found: list[Any] = []
    before = copy.deepcopy(config)
    threads = [threading.Thread(target=lambda: found.append(reasons(config))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert config == before
    assert len(found) == 4
    assert all(each == reasons(config) for each in found)


def test_a_verdict_imports_nothing():
    code = (
        "import sys; from kustom.saving.verdict import judge;"
        "config = {'module': 'keras_cv', 'class_name': 'A', 'config': {}, 'registered_name': 'keras_cv>A'};"
        "assert judge(config, trust='keras_cv').imports == ('keras_cv',);"
        "print([m for m in ('keras', 'numpy', 'h5py', 'tensorflow', 'jax', 'torch', 'keras_cv') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
