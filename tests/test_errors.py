"""Every error is raised by a test, explains itself, and hides kustom's own frames."""

from __future__ import annotations

import traceback
from pathlib import Path

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
    assert f"pytest.raises(errors.{error.__name__}" in written


@pytest.mark.parametrize("error", [e for e in CLASSES if e is not errors.KustomError], ids=lambda e: e.__name__)
def test_its_docstring_shows_a_wrong_and_a_right_example(error):
    assert "Wrong" in error.__doc__
    assert "Right" in error.__doc__
    assert any(issubclass(error, plain) for plain in (ValueError, TypeError, ImportError))


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
