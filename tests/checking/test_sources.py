"""The U rules: names and calls are judged by reading, with the mend, and nothing right is called wrong."""

from __future__ import annotations

import ast
import sys
import textwrap
from pathlib import Path

import keras
import pytest

import kustom
from kustom.checking import keras_names
from kustom.checking.sources import read

HEAD = "import keras\nimport numpy as np\nfrom keras import ops\n"


def problems(code: str, head: str = HEAD) -> list[tuple[str, str, str]]:
    source = read(head + textwrap.dedent(code), "parts.py")
    assert not source.undecided
    return [(problem.code, problem.got, problem.expected) for problem in source.problems]


def mended(code: str) -> str:
    code = textwrap.dedent(code)
    return read(HEAD + code, "parts.py").mended.removeprefix(HEAD)


FAULTS = {
    "U001 a variable under a near name": (
        """
        def pinball(y_true, y_pred):
            scaled_error = ops.abs(y_true - y_pred)
            return ops.mean(scaled_eror, axis=-1)
        """,
        ("U001", "scaled_eror", "scaled_error"),
    ),
    "U001 in a method": (
        """
        class Scale(keras.layers.Layer):
            def call(self, inputs):
                return inputs * factor_of_all
        """,
        ("U001", "factor_of_all", ""),
    ),
    "U001 in a closure": (
        """
        def make(limit):
            def clip(x):
                return ops.clip(x, -limt, limit)
            return clip
        """,
        ("U001", "limt", "limit"),
    ),
    "U002 lr": ("optimizer = keras.optimizers.SGD(lr=0.1)", ("U002", "lr=", "learning_rate=")),
    "U002 a misspelt argument of a function": (
        "model = keras.saving.load_model('m.keras', custom_object={})",
        ("U002", "custom_object=", "custom" + "_objects="),
    ),
    "U002 a misspelt argument of a layer": (
        "layer = keras.layers.Dense(4, kernel_initialiser='zeros')",
        ("U002", "kernel_initialiser=", "kernel_initializer="),
    ),
    "U002 a misspelt argument handed to the base": (
        """
        class Scale(keras.layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(trainabel=False, **kwargs)
        """,
        ("U002", "trainabel=", "trainable="),
    ),
    "U002 a weight's name by position": (
        """
        class Scale(keras.layers.Layer):
            def build(self, input_shape):
                self.scale = self.add_weight("scale", (1,))
        """,
        ("U002", 'add_weight("scale")', 'add_weight(name="scale")'),
    ),
    "U002 a metric's weight's name by position": (
        """
        class Sum(keras.metrics.Metric):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.sum = self.add_weight("sum", initializer="zeros")
        """,
        ("U002", 'add_weight("sum")', 'add_weight(name="sum")'),
    ),
    "U002 reset_states": ("mean = keras.metrics.Mean()\nmean.reset_states()", ("U002", "reset_states", "reset_state")),
    "U002 reset_states of whatever it is": (
        "def begin(metrics):\n    for m in metrics:\n        m.reset_states()",
        ("U002", "reset_states", "reset_state"),
    ),
    "U002 a shape's as_list": (
        """
        class Flat(keras.layers.Layer):
            def compute_output_shape(self, input_shape):
                return input_shape.as_list()[:1]
        """,
        ("U002", "input_shape.as_list()", "list(input_shape)"),
    ),
    "U002 keras.model": ("model = keras.model.load_model('m.keras')", ("U002", "keras.model", "keras.models")),
    "U002 add_metric": (
        """
        class Watched(keras.Model):
            def call(self, inputs):
                self.add_metric(ops.mean(inputs), name="mean")
                return inputs
        """,
        ("U002", "add_metric", ""),
    ),
    "U002 compiled_loss": (
        """
        class Stepping(keras.Model):
            def train_step(self, data):
                x, y = data
                return {"loss": self.compiled_loss(y, self(x))}
        """,
        ("U002", "compiled_loss", ""),
    ),
    "U002 an optimizer in text": (
        "model = keras.Sequential()\nmodel.compile(optimizer='namdam', loss='mse')",
        ("U002", "'namdam'", "'nadam'"),
    ),
    "U002 a loss in text": (
        "model = keras.Sequential()\nmodel.compile('adam', loss='mean_squarred_error')",
        ("U002", "'mean_squarred_error'", "'mean_squared_error'"),
    ),
    "U002 an activation in text": ("layer = keras.layers.Dense(3, activation='rleu')", ("U002", "'rleu'", "'relu'")),
    "U002 an initializer in text": (
        """
        class Scale(keras.layers.Layer):
            def build(self, input_shape):
                self.scale = self.add_weight(shape=(1,), initializer="glorot_unifrom")
        """,
        ("U002", "'glorot_unifrom'", "'glorot_uniform'"),
    ),
    "U003 of ops": ("def f(x):\n    return ops.zeors_like(x)", ("U003", "ops.zeors_like", "ops.zeros_like")),
    "U003 of np": ("def f(x):\n    return np.meen(x)", ("U003", "np.meen", "np.mean")),
    "U003 of a submodule": ("def f(x):\n    return np.linalg.nrom(x)", ("U003", "np.linalg.nrom", "np.linalg.norm")),
    "U003 of keras": ("layer = keras.layers.Dnese(3)", ("U003", "keras.layers.Dnese", "keras.layers.Dense")),
    "U003 in an import": ("from keras.layers import Dropuot", ("U003", "keras.layers.Dropuot", "keras.layers.Dropout")),
    "U003 of self": (
        """
        class Scale(keras.layers.Layer):
            def build(self, input_shape):
                self.scale = self.add_wieght(shape=(1,))
        """,
        ("U003", "add_wieght", "add_weight"),
    ),
    "U004 training": (
        """
        class Noise(keras.layers.Layer):
            def call(self, inputs, trianing=None):
                return inputs if trianing else -inputs
        """,
        ("U004", "trianing", "training"),
    ),
    "U004 mask": (
        """
        class Masked(keras.layers.Layer):
            def call(self, inputs, maks=None):
                return inputs
        """,
        ("U004", "maks", "mask"),
    ),
    "U004 sample_weight": (
        """
        class Sum(keras.metrics.Metric):
            def update_state(self, y_true, y_pred, sample_weights=None):
                pass
        """,
        ("U004", "sample_weights", "sample_weight"),
    ),
    "U004 dtype": (
        """
        class Ones(keras.initializers.Initializer):
            def __call__(self, shape, dtyp=None):
                return ops.ones(shape)
        """,
        ("U004", "dtyp", "dtype"),
    ),
    "U004 in a call": (
        """
        class Block(keras.layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.drop = keras.layers.Dropout(0.5)

            def call(self, inputs, training=None):
                return self.drop(inputs, trainnig=training)
        """,
        ("U004", "trainnig=", "training="),
    ),
}


@pytest.mark.parametrize(("code", "expected"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found_once_and_named(code, expected):
    assert problems(code) == [expected]


@pytest.mark.parametrize(
    "code", [code for code, (_, _, expected) in FAULTS.values() if expected], ids=[n for n, (_, e) in FAULTS.items() if e[2]]
)
def test_what_is_mended_has_no_fault_left(code):
    again = mended(code)
    assert again.count("\n") == textwrap.dedent(code).count("\n")
    assert problems(again) == []


RIGHT = {
    "a name that a handler looks for": "try:\n    ops.new_operation\nexcept AttributeError:\n    pass",
    "a name that is asked for first": "def f(x):\n    return ops.grad(x) if hasattr(ops, 'grad') else x",
    "a name of the other Python": "import sys\nif sys.version_info[0] == 2:\n    text = unicode",
    "a library by another name": "import numpy\nops = object()\n\ndef f(x):\n    return ops.anything(x)",
    "a parameter under the name of a library": "def f(np):\n    return np.meen()",
    "a name made by exec": "",
    "annotations in text": "def f(x: 'Float[batch, features]'):\n    return x",
    "an attribute that the class defines": """
        class Watched(keras.Model):
            def add_metric(self, value):
                return value

            def call(self, inputs):
                return self.add_metric(inputs)
        """,
    "an attribute that is a field": """
        import kustom

        @kustom.part
        class Named(keras.layers.Layer):
            names: list

            def call(self, inputs):
                return self.names[0] + inputs
        """,
    "a base that is not known": """
        from somewhere import Base

        class Mine(Base):
            def call(self, inputs, trianing=None):
                return self.add_wieght(inputs)
        """,
    "as_list of what may be a TensorShape": """
        class Flat(keras.layers.Layer):
            def compute_output_shape(self, input_shape):
                if hasattr(input_shape, "as_list"):
                    input_shape = input_shape.as_list()
                return input_shape
        """,
    "as_list of something else": "def f(table):\n    return table.as_list()",
    "an argument that a layer takes from its keywords": "layer = keras.layers.Dense(3, input_shape=(2,), name='a')",
    "a functional model": "x = keras.Input((2,))\nmodel = keras.Model(inputs=x, outputs=x, name='m')\nmodel.inputs",
    "a name that is registered": """
        @keras.saving.register_keras_serializable()
        def my_relu(x):
            return ops.relu(x)

        layer = keras.layers.Dense(3, activation="my_relu")
        """,
    "names that compile chooses by": "model = keras.Sequential()\nmodel.compile('adam', loss='ce', metrics=['acc'])",
    "compile of something else": "import re\nre.compile('namdam')",
    "a near name that is another word": """
        class Masked(keras.layers.Layer):
            def call(self, inputs, task=None, masks=None):
                return inputs
        """,
    "what is deleted and made anew": "x = 1\ndel x\nfor x in range(3):\n    print(x)",
    "a lambda's parameter": "f = lambda tf: tf.anything",
    "an error that a test expects": "import pytest\nwith pytest.raises(ValueError):\n    keras.losses.get('typo')",
}


@pytest.mark.parametrize("code", RIGHT.values(), ids=RIGHT)
def test_what_is_right_or_unknown_is_not_called_wrong(code):
    assert problems(code) == []


@pytest.mark.skipif(sys.platform == "darwin" or keras.backend.backend() != "tensorflow", reason="imports TensorFlow")
@pytest.mark.parametrize(
    "head", ["import tensorflow as tf\nfrom tensorflow import keras\n", "import tensorflow as tf\nkeras = tf.keras\n"]
)
def test_names_of_tensorflow_and_its_keras_are_known(head):
    assert problems("tf.zeors_like(1)\nkeras.optimizers.Adam(lr=1)\ntf.math.log(1.0)\nkeras.layers.Dense(3)", head) == [
        ("U003", "tf.zeors_like", "tf.zeros_like"),
        ("U002", "lr=", "learning_rate="),
    ]


def test_what_is_made_at_run_time_is_not_checked():
    source = read("exec('y = 1')\nprint(y)\n")
    assert source.problems == []
    assert source.undecided == {"U001": "names may be made by exec()"}


def test_places_count_characters_and_edits_bytes():
    code = 'text = "열"; layer = keras.layers.Dnese(3)  # 층\n'
    source = read(HEAD + code)
    assert [(p.line, p.column) for p in source.problems] == [(4, code.index("keras.layers.Dnese") + 1)]
    assert source.mended == HEAD + code.replace("Dnese", "Dense")


def test_what_refuses_unknown_arguments_does_so():
    for make in (lambda: keras.layers.Dense(1, no_such_argument=1), lambda: keras.optimizers.Adam(no_such_argument=1)):
        with pytest.raises((TypeError, ValueError), match="no_such_argument"):
            make()
    assert {keras.layers.Layer, keras.optimizers.Optimizer} == {*keras_names.REFUSING}


def test_keras_knows_its_own_arguments_and_attributes():
    accepted = keras_names.accepted(keras.layers.LSTM)
    assert accepted is not None
    assert {"units", "return_sequences", "name", "trainable", "input_shape"} <= accepted
    attributes = keras_names.attributes(keras.metrics.Precision)
    assert attributes is not None
    assert {"true_positives", "reset_state", "variables"} <= attributes
    assert "reset_states" not in attributes


def test_a_class_that_keeps_its_keywords_takes_any():
    assert keras_names.accepted(keras.callbacks.CallbackList) is None


KERAS = Path(keras.__file__).parent / "src"
PART = [KERAS / "layers" / "attention", KERAS / "losses", KERAS / "metrics", KERAS / "callbacks", KERAS / "models"]
OWN = Path(kustom.__file__).parent


def alarms(folders: list[Path]) -> list[str]:
    found = []
    for path in (path for folder in folders for path in sorted(folder.rglob("*.py"))):
        text = path.read_text(encoding="utf-8")
        ast.parse(text)
        found += [f"{path}:{p.line} {p.code} {p.message}" for p in read(text, str(path)).problems]
    return found


def test_no_false_alarm_on_a_part_of_keras_and_of_kustom():
    assert alarms([*PART, OWN / "defining", OWN / "textbook"]) == []


@pytest.mark.slow
def test_no_false_alarm_on_keras_and_kustom():
    assert alarms([KERAS, OWN]) == []


def test_a_part_is_checked_by_its_own_lines():
    misspelt = kustom.check(_misspelt, only="U", on_fail=None)
    assert [finding.code for finding in misspelt.findings] == ["U003"]
    assert kustom.check(_right, only="U", on_fail=None).ok


def _misspelt(x):
    return keras.ops.reul(x)


def _right(x):
    return keras.ops.relu(x)
