"""Text in a file that Keras takes for a name: what it would put in its place is judged; what names nothing stays text."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import kustom
from kustom import errors
from kustom.backends import keras as private
from kustom.saving.verdict import judge


def part(module: str | None, name: str, config: Any, registered_name: str) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config, "registered_name": registered_name}


@keras.saving.register_keras_serializable("looked_up")
def doubled(x):
    return 2 * x


@keras.saving.register_keras_serializable("looked_up")
class Told(keras.layers.Layer):
    def call(self, x, words=None):
        self.heard = words
        return x


@pytest.mark.parametrize("words", ["same", "Dense", "looked_up>Nobody", "os.mkdir", {"a": ["keras>Dense", None]}, ["relu"]])
def test_text_that_names_nothing_registered_is_text_in_a_call(tmp_path, words):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Told()(inputs, words=words))
    kustom.save(model, tmp_path / "model.keras")
    assert kustom.load(tmp_path / "model.keras").layers[-1].heard == words


def test_text_that_names_what_is_registered_is_saved_in_no_call(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Told()(inputs, words="looked_up>doubled"))
    with pytest.raises(
        errors.UnsavableError, match=r"'looked_up>doubled' stands where plain data was expected.*doubled in its place"
    ):
        kustom.save(model, tmp_path / "model.keras")


def test_settings_of_compile_that_are_text_are_judged_as_what_they_name(tmp_path):
    def compiled(**settings: Any) -> Any:
        inputs = keras.Input((3,))
        model = keras.Model(inputs, keras.layers.Dense(1, name="out")(inputs))
        model.compile(**settings)
        return model

    for settings in (
        {"optimizer": "SGD", "loss": {"out": "mse"}, "metrics": {"out": ["mae", "accuracy"]}, "weighted_metrics": ["acc"]},
        {"optimizer": "adam", "loss": "mean_squared_error", "metrics": ["MeanAbsoluteError"]},
        {"optimizer": "adam", "loss": "looked_up>far", "metrics": {"out": "looked_up>far"}, "jit_compile": "auto"},
    ):
        kustom.save(compiled(**settings), tmp_path / "model.keras")
        loaded = kustom.load(tmp_path / "model.keras")
        loaded.evaluate(np.ones((2, 3)), np.ones((2, 1)), verbose=0)
        assert loaded.get_compile_config()["optimizer"]["class_name"].lower() == settings["optimizer"].lower()


@keras.saving.register_keras_serializable("looked_up")
def far(y_true, y_pred):
    return keras.ops.abs(y_true - y_pred)


@keras.saving.register_keras_serializable("looked_up")
class Notes:
    """Registered, and nothing that can be called."""

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        raise AssertionError("a file had it made")


@pytest.mark.parametrize("slot", ["loss", "metric", "activation", "initializer", "regularizer", "constraint", "optimizer", "layer"])
def test_a_class_of_nothing_of_keras_whose_instances_cannot_be_called_stands_nowhere(slot):
    with pytest.raises(errors.UnsafeFileError, match=r"registered as .*Notes, where"):
        judge(part(__name__, "Notes", {}, "looked_up>Notes"), slot=slot, registered=private.registry()).hold()


def test_what_a_scope_names_is_registered_for_as_long_as_it_is_open(tmp_path):
    class Here(keras.layers.Dense):
        def call(self, x):
            return 0 * super().call(x)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.save(tmp_path / "model.keras")
    with (
        keras.saving.custom_object_scope({"Dense": Here}),
        pytest.raises(errors.UnsafeFileError, match=r"registered .*Here as 'Dense'"),
    ):
        kustom.load(tmp_path / "model.keras")
    own = part(None, "Here", {"name": "own", "units": 2}, "Here")
    with pytest.raises(errors.UntrustedError):
        judge(own, registered=private.registry()).hold()
    with keras.saving.custom_object_scope({"Here": Here}):
        assert not judge(own, registered=private.registry()).anomalies
