"""Arrays, tensors and settings in attributes: that others stand there, or other numbers in them, is noticed."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

import kustom

TABLE = np.ones(3, "float32")
ONES = np.ones(3, "float32")


class Holder:
    """An object of the user's, which holds what a function reads."""

    weights = None
    log = ()


class Weighting(keras.layers.Layer):
    """A layer with a setting that is no variable."""

    def __init__(self):
        super().__init__()
        self.weights_of_inputs = np.ones(3, "float32")
        self.options = {"power": 1}
        self.log = []

    def call(self, inputs):
        return inputs * ops.convert_to_tensor(self.weights_of_inputs) ** self.options["power"]


def number(x):
    return float(ops.convert_to_numpy(x))


MADE = {
    "array": (lambda: np.ones(3, "float32"), lambda: np.full(3, 5.0, "float32")),
    "tensor": (lambda: ops.ones(3), lambda: ops.ones(3) * 5.0),
    "number of NumPy's": (lambda: np.float32(1), lambda: np.float32(5)),
}


@pytest.mark.parametrize("kind", MADE)
def test_another_one_in_an_attribute(kind):
    first, second = MADE[kind]
    holder = Holder()
    holder.weights = first()
    f = kustom.function(lambda x: ops.sum(x * ops.convert_to_tensor(holder.weights)))
    assert number(f(ONES)) == 3
    holder.weights = second()
    assert number(f(ONES)) == 15


@pytest.mark.parametrize("kind", MADE)
def test_another_one_in_an_attribute_of_a_layer(kind):
    layer = Weighting()
    f = kustom.function(lambda x: ops.sum(layer(x)))
    assert number(f(ONES)) == 3
    layer.weights_of_inputs = MADE[kind][1]()
    assert number(f(ONES)) == 15


@pytest.mark.parametrize("kind", MADE)
def test_another_one_in_a_dict(kind):
    first, second = MADE[kind]
    held = {"weights": first()}
    f = kustom.function(lambda x: ops.sum(x * ops.convert_to_tensor(held["weights"])))
    assert number(f(ONES)) == 3
    held["weights"] = second()
    assert number(f(ONES)) == 15


def test_other_numbers_in_an_array(monkeypatch):
    monkeypatch.setitem(globals(), "TABLE", np.ones(3, "float32"))
    holder, layer, cell = Holder(), Weighting(), np.ones(3, "float32")
    holder.weights = np.ones(3, "float32")

    def f(x):
        return ops.sum(layer(x) * ops.convert_to_tensor(holder.weights * TABLE * cell))

    compiled = kustom.function(f)
    assert number(compiled(ONES)) == 3
    for array in (holder.weights, layer.weights_of_inputs, TABLE, cell):
        array *= 2
        assert number(compiled(ONES)) == number(f(ONES))
    assert number(f(ONES)) == 3 * 16


@pytest.mark.parametrize("made", [Holder, Weighting])
def test_entries_of_a_dict_in_an_attribute(made):
    owner = made()
    owner.options = {"power": 1, "deep": {"shift": 0.0}}
    f = kustom.function(lambda x: ops.sum((2 * x) ** owner.options["power"] + owner.options["deep"]["shift"]))
    assert number(f(ONES)) == 6
    owner.options["power"] = 2
    assert number(f(ONES)) == 12
    owner.options["deep"]["shift"] = 1.0
    assert number(f(ONES)) == 15
    owner.options["deep"]["shift"] = 0.0
    assert number(f(ONES)) == 12
    assert f.traces == 3
    owner.options = {"power": 3, "deep": {"shift": 0.0}}
    assert number(f(ONES)) == 24


def test_what_a_step_leaves_and_logs_that_grow_make_no_new_trace():
    holder, layer = Holder(), Weighting()
    holder.log, counts = [], np.zeros(2)

    @kustom.function
    def f(x):
        holder.log.append(1)
        layer.log.append(0.5)
        holder.last = np.zeros(2)
        counts[0] += 1
        return ops.sum(layer(x)) + len(holder.log) * 0 + len(layer.log) * 0

    for _ in range(4):
        f(ONES)
        holder.log.append("outside")
        layer.log.append(1.0)
    assert f.traces == 1


def test_a_large_array_is_known_by_which_it_is():
    holder = Holder()
    holder.weights = np.ones(1000, "float32")
    f = kustom.function(lambda x: ops.sum(x * ops.convert_to_tensor(holder.weights)))
    x = np.ones(1000, "float32")
    assert number(f(x)) == 1000
    holder.weights = holder.weights * 2
    assert number(f(x)) == 2000
    f(x)
    assert f.traces == 2


def test_a_layer_that_is_adapted_again():
    x = np.arange(8, dtype="float32").reshape(4, 2)
    layer = keras.layers.Normalization()
    layer.adapt(x)
    f = kustom.function(lambda x: layer(x))
    array = ops.convert_to_numpy(f(x))
    layer.adapt(10 * x)
    np.testing.assert_allclose(ops.convert_to_numpy(f(10 * x)), array, rtol=1e-5)
    assert f.traces == 2


@pytest.mark.parametrize("scales", [([2.0, 3.0], [2.0, 5.0]), (np.array([2.0, 3.0]), np.array([2.0, 5.0]))])
def test_lists_and_arrays_in_a_layer_of_keras(scales):
    layer = keras.layers.Rescaling(scales[0])
    f = kustom.function(lambda x: layer(x))
    assert ops.convert_to_numpy(f(ONES[:2])).tolist() == [2, 3]
    layer.scale = scales[1]
    assert ops.convert_to_numpy(f(ONES[:2])).tolist() == [2, 5]


def test_arguments_of_a_lambda():
    layer = keras.layers.Lambda(lambda x, factor: x * factor, arguments={"factor": 2.0})
    f = kustom.function(lambda x: layer(x))
    assert number(ops.sum(f(ONES))) == 6
    layer.arguments["factor"] = 3.0
    assert number(ops.sum(f(ONES))) == 9
