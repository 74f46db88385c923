"""The benchmark of scores: what counts as found, and that the others' tools are given a fair function."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import keras
import pytest
from keras import ops

import kustom
from kustom.checking.subjects import Subject

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BACKEND = keras.backend.backend()


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("checking_scores")


@kustom.custom_gradient
def _halved(x):
    return ops.sin(x), lambda upstream: upstream * ops.cos(x) / 2


@keras.saving.register_keras_serializable("scores")
class HalvedBesideAWeight(keras.layers.Layer):
    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return _halved(x * self.scale)


@keras.saving.register_keras_serializable("scores")
class WholeBesideAWeight(HalvedBesideAWeight):
    def call(self, x):
        return ops.sin(x * self.scale)


def test_the_table_tells_missed_from_refused_and_from_not_applicable(scores):
    seen = {
        "one": [{"code": "G201", "verdict": "found"}, {"code": "G201", "verdict": "refuses the twin"}],
        "other": [{"code": "G201", "verdict": "does not apply"}, {"code": "G201", "verdict": "missed"}],
        "third": [{"code": "G201", "verdict": "does not apply"}] * 2,
    }
    assert scores.table(seen).splitlines()[2:] == [
        "| G201 | 1 of 2 (1 twin refused) | 0 of 1 | does not apply |",
        "| all | 1 of 2 (1 twin refused) | 0 of 1 | does not apply |",
    ]


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has no checker of gradients that takes a function's weights")
def test_the_backends_own_checker_fails_a_wrong_gradient_and_passes_the_right_one(scores):
    way = scores.by_gradcheck if BACKEND == "torch" else scores.by_check_grads
    assert scores.fails(way, HalvedBesideAWeight, "G201", {})
    assert scores.fails(way, WholeBesideAWeight, "G201", {}) == ""


def test_the_function_is_of_inputs_and_weights(scores):
    subject = Subject(WholeBesideAWeight)
    made, args = subject.make(), subject.inputs.arguments()
    made(*args)
    function, values = scores.function_of(subject, made, args)
    assert [tuple(value.shape) for value in values] == [args[0].shape, ()]
    [doubled] = function(values[0], values[1] * 2)
    [expected] = function(values[0] * 2, values[1])
    assert ops.convert_to_numpy(doubled).tolist() == ops.convert_to_numpy(expected).tolist()


# What Keras warns of in its own test.
@pytest.mark.filterwarnings("ignore:.*shuffle=True.*:UserWarning")
def test_keras_own_test_of_layers_runs(scores):
    assert scores.fails(scores.by_run_layer_test, keras.layers.Dense(3), "C101", {}) == ""
