"""Every error is raised by a test, explains itself, and hides kustom's own frames."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import kustom
from kustom import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]


@kustom.loss
def failing(y_true, y_pred):
    return y_pred.no_such_method()


@pytest.mark.parametrize("error", CLASSES, ids=lambda e: e.__name__)
def test_a_test_raises_it(error):
    if error is errors.KustomError:
        assert all(issubclass(e, errors.KustomError) for e in CLASSES)
        return
    written = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    how = "warns" if issubclass(error, Warning) else "raises"
    assert re.search(rf"pytest\.{how}\((errors\.)?{error.__name__}\b", written)


@pytest.mark.parametrize("error", [e for e in CLASSES if e is not errors.KustomError], ids=lambda e: e.__name__)
def test_its_docstring_shows_a_wrong_and_a_right_example(error):
    assert "Wrong" in error.__doc__
    assert "Right" in error.__doc__
    plain = (ValueError, TypeError, ImportError, RuntimeError, AssertionError, ArithmeticError, UserWarning)
    assert issubclass(error, plain)


def test_objects_of_keras_2_are_refused_in_one_line():
    layer = type("Layer", (keras.layers.Layer,), {"__module__": "tf_keras.src.engine.base_layer"})
    with pytest.raises(errors.TfKerasError, match=r"^tf_keras[^\n]*is of tf_keras \(Keras 2\); use its twin in `keras`.$"):

        @kustom.part
        class Mine(layer):
            pass

    @kustom.part(package="tfkeras")
    class Holder(keras.layers.Layer):
        inner: object

    with pytest.raises(errors.TfKerasError):
        Holder(layer())

    @kustom.part(package="tfkeras")
    class ByHand(keras.layers.Layer):
        def __init__(self, inner, **kwargs):
            super().__init__(**kwargs)

    with pytest.raises(errors.TfKerasError):
        ByHand(layer())


def test_kustoms_frames_are_hidden_and_one_switch_shows_them():
    package = str(Path(kustom.__file__).parent)

    def frames():
        with pytest.raises(AttributeError) as caught:
            failing()(np.zeros((2, 1)), np.zeros((2, 1)))
        return [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__) if frame.filename.startswith(package)]

    assert keras.config.is_traceback_filtering_enabled()
    hidden = len(frames())
    keras.config.disable_traceback_filtering()
    try:
        shown = len(frames())
    finally:
        keras.config.enable_traceback_filtering()
    assert hidden == 1
    assert shown > 3


@kustom.part
class Unbuilt(keras.layers.Dense):
    def build(self, input_shape):
        pass


@kustom.loss
def given(y_true, y_pred, *, factor=1.0):
    return factor * y_pred


@kustom.metric
def measured(y_true, y_pred):
    return y_pred


@kustom.part
class Given(keras.layers.Layer):
    factor: Any = 1.0


def _late(part):
    part.factor = lambda value: value
    return part


def _sublayer_late():
    layer = Given()
    layer.build((None, 1))
    object.__setattr__(layer, "late", keras.layers.Dense(1))
    layer.save_own_variables({})


CALLS = {
    "a decorator": lambda: kustom.loss(lambda y_true, y_pred, factor=1.0: y_pred),
    "a decorator with arguments": lambda: kustom.loss(package="")(given.fn),
    "part": lambda: kustom.part(int),
    "part with arguments": lambda: kustom.part(package="mine")(int),
    "build": lambda: Unbuilt(2).build((None, 3)),
    "save": _sublayer_late,
    "merge_state": lambda: measured().merge_state([3]),
    "from_config of a function": lambda: given.from_config({"unknown": 1}),
    "from_config of a class": lambda: Given.from_config({"unknown": 1}),
    "get_config of a function": lambda: _late(given()).get_config(),
    "get_config of a class": lambda: _late(Given()).get_config(),
    "get_config of a bare class": lambda: Given.get_config(),
    "field": lambda: kustom.field(default=1, default_factory=list),
    "Sums": lambda: kustom.Sums(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_one_frame_at_most_stands_between_the_users_line_and_the_error(call):
    with pytest.raises(errors.KustomError) as caught:
        call()
    package = str(Path(kustom.__file__).parent)
    ours = [f for f in traceback.extract_tb(caught.value.__traceback__) if f.filename.startswith(package)]
    assert [frame.name for frame in ours] == ["outermost"]
