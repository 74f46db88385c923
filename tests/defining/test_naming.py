"""Names: under what a part is registered, and that no two parts share one."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap

import keras
import pytest
from keras import ops

import kustom
from kustom import errors
from kustom.defining.naming import package_of
from kustom.typing import ActivationLike, InitializerLike, LossLike


def _run(*command, cwd):
    done = subprocess.run([sys.executable, "-W", "ignore", *command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


PART = """
import keras, kustom
@kustom.loss
def mine(y_true, y_pred):
    return y_pred
print(keras.saving.get_registered_name(mine))
"""


@kustom.loss
def shared_name(y_true, y_pred):
    return ops.square(y_pred)


def test_the_registered_name_is_the_modules_path_and_the_name():
    assert keras.saving.get_registered_name(shared_name) == f"{__name__}>shared_name"
    assert keras.saving.get_registered_object(f"{__name__}>shared_name") is shared_name


def test_a_loss_and_a_metric_of_one_name_live_in_two_modules():
    @kustom.metric(package="elsewhere")
    def shared_name(y_true, y_pred):
        return y_pred

    assert keras.saving.get_registered_name(shared_name) == "elsewhere>shared_name"


def test_a_script_counts_under_its_files_stem(tmp_path):
    (tmp_path / "train_it.py").write_text(PART)
    assert _run("train_it.py", cwd=tmp_path) == "train_it>mine"


def test_a_module_run_by_name_counts_under_its_name(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "train_it.py").write_text(PART)
    assert _run("-m", "pack.train_it", cwd=tmp_path) == "pack.train_it>mine"


def test_a_notebook_counts_under_main(tmp_path):
    assert _run("-c", PART, cwd=tmp_path) == "__main__>mine"
    assert package_of("some.module") == "some.module"


def test_another_part_under_a_taken_name_is_refused_with_both_places():
    @kustom.loss(package="clash")
    def taken(y_true, y_pred):
        return y_pred

    def elsewhere():
        @kustom.metric(package="clash")
        def taken(y_true, y_pred):
            return y_pred

    with pytest.raises(errors.NameClashError, match=r"'clash>taken' is taken: .*elsewhere.*test_naming.py:\d+.*replace") as caught:
        elsewhere()
    assert str(caught.value).count("test_naming.py:") == 2
    assert keras.saving.get_registered_object("clash>taken") is taken


def test_the_same_definition_again_replaces():
    def cell():
        @kustom.loss(package="again")
        def edited(y_true, y_pred):
            return y_pred

        return edited

    first, second = cell(), cell()
    assert keras.saving.get_registered_object("again>edited") is second
    assert first is not second


def test_a_reloaded_module_replaces(tmp_path, monkeypatch):
    (tmp_path / "reloaded_parts.py").write_text("import kustom\n@kustom.regularizer\ndef r(w, *, a=1.0):\n    return a * w.sum()\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("reloaded_parts")
    first = module.r
    importlib.reload(module)
    assert keras.saving.get_registered_object("reloaded_parts>r") is module.r is not first


def test_a_class_registered_by_hand_is_not_replaced():
    @keras.saving.register_keras_serializable("byhand")
    class Gate(keras.layers.Layer):
        pass

    def mine():
        @kustom.part(package="byhand")
        class Gate(keras.layers.Layer):
            pass

    with pytest.raises(errors.NameClashError, match="byhand>Gate"):
        mine()


def test_formerly_lets_older_files_load():
    # What Keras wrote of a class that was registered as "Older>Doubling".
    config = {
        "module": "older.layers",
        "class_name": "Doubling",
        "config": {"name": "doubling", "trainable": True, "dtype": "float32", "factor": 3.0},
        "registered_name": "Older>Doubling",
    }

    @kustom.part(package="newer", formerly="Older>Doubling")
    class Times(keras.layers.Layer):
        factor: float = 2.0

        def call(self, x):
            return x * self.factor

    assert isinstance(keras.saving.deserialize_keras_object(config), Times)
    assert keras.saving.deserialize_keras_object(config).factor == 3.0

    with pytest.raises(errors.NameClashError, match="Older>Doubling"):

        @kustom.part(package="newer", formerly=("Older>Doubling",))
        class Other(keras.layers.Layer):
            pass


def test_a_function_saved_by_keras_loads_as_the_part():
    name = "Older>absolute"
    config = {"module": "older.losses", "class_name": "function", "config": name, "registered_name": name}

    @kustom.loss(package="newer", formerly="Older>absolute")
    def distance(y_true, y_pred):
        return ops.abs(ops.subtract(y_true, y_pred))

    assert isinstance(keras.losses.get(keras.saving.deserialize_keras_object(config)), distance)


def test_names_must_be_text():
    with pytest.raises(errors.DefinitionError, match="must be text"):
        kustom.loss(package="")(shared_name.fn)
    with pytest.raises(errors.DefinitionError, match="must be text"):
        kustom.loss(package="names", formerly=(3,))(shared_name.fn)  # pyright: ignore


TWO = {
    "class": """
        @kustom.part
        class Gate(keras.layers.Layer):
            def call(self, x):
                return x * 2.0

        First = Gate

        @kustom.part
        class Gate(keras.layers.Layer):
            def call(self, x):
                return x * -7.0
    """,
    "class of fields": """
        @kustom.part
        class Gate(keras.layers.Layer):
            factor: float = 2.0

        @kustom.part
        class Gate(keras.layers.Layer):
            factor: float = -7.0
    """,
    "loss and metric": """
        @kustom.loss
        def error(y_true, y_pred):
            return ops.abs(ops.subtract(y_true, y_pred))

        @kustom.metric
        def error(y_true, y_pred):
            return ops.abs(ops.subtract(y_true, y_pred))
    """,
    "one function twice": """
        def error(y_true, y_pred):
            return ops.abs(ops.subtract(y_true, y_pred))

        kustom.loss(error)
        kustom.metric(error)
    """,
    "branches": """
        def make(positive):
            if positive:
                @kustom.layer
                def gate(x):
                    return x * 2.0
            else:
                @kustom.layer
                def gate(x):
                    return x * -7.0
            return gate

        make(True)
        make(False)
    """,
    "two functions": """
        def error(y_true, y_pred):
            return ops.abs(ops.subtract(y_true, y_pred))

        def as_loss():
            return kustom.loss(error)

        def as_metric():
            return kustom.metric(error)

        as_loss()
        as_metric()
    """,
}


@pytest.mark.parametrize("text", TWO.values(), ids=TWO)
def test_two_parts_of_one_name_in_one_module_are_refused_with_both_lines(text, tmp_path, monkeypatch):
    name = f"two_parts_{len(list(tmp_path.parent.iterdir()))}"
    (tmp_path / f"{name}.py").write_text("import keras, kustom\nfrom keras import ops\n" + textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(errors.NameClashError, match=rf"{name}\.py:\d+ was about to replace the \w+ at .*{name}\.py:\d+") as caught:
        importlib.import_module(name)
    assert "load as the other" in str(caught.value)


def test_an_edited_cell_and_a_reloaded_module_replace_whatever_they_were():
    cells = [
        "@kustom.loss\ndef cell(y_true, y_pred):\n    return y_pred\n",
        "# edited\n\n@kustom.loss\ndef cell(y_true, y_pred):\n    return 2 * y_pred\n",
        "@kustom.metric\ndef cell(y_true, y_pred):\n    return y_pred\n",
    ]
    names = {"__name__": "a_notebook", "kustom": kustom}
    for cell in cells:
        exec(compile(cell, "<cell>", "exec"), names)
        assert keras.saving.get_registered_object("a_notebook>cell") is names["cell"]


def test_a_loop_and_a_decorator_of_ones_own_define_a_part_again():
    def named(function):
        return kustom.activation(package="loops")(function)

    for _ in range(2):

        @named
        def looped(x):
            return x

    assert keras.saving.get_registered_object("loops>looped") is type(looped)


# --- closures


def test_a_value_from_the_function_around_is_refused():
    def make(q):
        @kustom.loss
        def pinball(y_true, y_pred):
            return q * y_pred

        return pinball

    with pytest.raises(errors.ClosureError, match="pinball takes q from the function around it"):
        make(0.9)


def test_a_value_in_a_class_or_a_helper_is_refused():
    def in_class(k):
        @kustom.part
        class Scaled(keras.layers.Layer):
            def call(self, x):
                return x * k

    def in_property(k):
        @kustom.part
        class Scaled(keras.layers.Layer):
            @property
            def factor(self):
                return k

    def in_helper(k):
        def scale(x):
            return x * k

        @kustom.activation
        def scaled(x):
            return scale(x)

    def in_formula(k):
        @kustom.metric(result=lambda total: total * k)
        def scaled(y_true, y_pred):
            return kustom.Sums(total=y_pred)

    for make in (in_class, in_property, in_helper, in_formula):
        with pytest.raises(errors.ClosureError, match="takes k from"):
            make(2.0)


def test_code_from_the_function_around_is_fine():
    import numpy

    def helper(x):
        return numpy.size(x) * x

    class Base(keras.layers.Layer):
        def call(self, x):
            return helper(x)

    @kustom.part(package="closures")
    class Fine(Base):
        def call(self, x):
            return super().call(helper(x))

    @kustom.activation(package="closures")
    def inner(x):
        return helper(x)

    @kustom.activation(package="closures")
    def outer(x):
        return inner(x)

    assert Fine()
    assert outer


def test_a_value_as_the_default_of_a_setting_is_fine():
    def make(q):
        @kustom.loss(package="closures")
        def pinball(y_true, y_pred, *, q: float = q):
            return q * y_pred

        return pinball

    first, second = make(0.9)(), make(0.1)()
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(first)).q == 0.9
    assert second.q == 0.1


@pytest.mark.parametrize("what", ["attribute", "base"])
def test_one_function_that_makes_different_classes_is_refused(what):
    def make(k, base):
        @kustom.part(package=f"factory_{what}")
        class Gate(base):
            factor = k

            def call(self, x):
                return x * self.factor

        return Gate

    make(2.0, keras.layers.Layer)
    make(2.0, keras.layers.Layer)
    with pytest.raises(errors.NameClashError, match="two different parts under one name"):
        make(-7.0 if what == "attribute" else 2.0, keras.layers.Layer if what == "attribute" else keras.layers.Dense)


# --- text


@kustom.activation
def named_activation(x):
    return x


@kustom.initializer
def named_initializer(shape, dtype):
    return ops.zeros(shape, dtype)


@kustom.part
class ByName(keras.layers.Layer):
    activation: ActivationLike = None
    initializer: InitializerLike = "zeros"
    loss: LossLike = None


@pytest.mark.parametrize("name", ["named_activation", f"{__name__}>named_activation"])
def test_fields_take_names_of_parts(name):
    assert ByName(activation=name).activation is named_activation
    assert isinstance(ByName(initializer="named_initializer").initializer, named_initializer)
    assert isinstance(ByName(loss="shared_name").loss, shared_name)
    assert ByName(loss="mse").loss is keras.losses.mean_squared_error


def test_a_name_of_two_parts_is_refused():
    @kustom.activation(package="one")
    def twice_there(x):
        return x

    def other():
        @kustom.activation(package="two")
        def twice_there(x):
            return x

    other()
    with pytest.raises(errors.NameClashError, match="write one of one>twice_there, two>twice_there"):
        ByName(activation="twice_there")


def test_text_that_names_nothing_is_refused():
    with pytest.raises(errors.SettingError, match="an activation: a name"):
        ByName(activation="nowhere>nothing")


def test_parts_of_a_function_pickle_where_they_are_registered(tmp_path):
    script = textwrap.dedent("""
        import copy, pickle, keras, kustom
        def make():
            @kustom.activation
            def local(x, *, a=1.0):
                return a * x
            return local(a=2.0)
        part = make()
        print(pickle.loads(pickle.dumps(part)).get_config(), copy.deepcopy(part).a)
    """)
    (tmp_path / "locally.py").write_text(script)
    assert _run("locally.py", cwd=tmp_path) == "{'a': 2.0} 2.0"
