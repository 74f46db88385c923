"""Another object in the place of one that a compiled function reaches, and code that the class inherits."""

from __future__ import annotations

import functools
import gc
import weakref

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom

X = np.ones((1, 3), "float32")
HEAD = None


def number(x):
    return float(ops.convert_to_numpy(x)) if not np.ndim(x) else float(ops.convert_to_numpy(x)[0, 0])


def dense(kernel):
    return layers.Dense(1, kernel_initializer="ones" if kernel else "zeros")


class Headed(layers.Layer):
    def __init__(self):
        super().__init__()
        # Keras takes no new ones once it is built.
        self.both = [dense(1), dense(0)]
        self.head = self.both[0]

    def build(self, shape):
        for layer in self.both:
            layer.build(shape)

    def call(self, x):
        return self.head(x)


class Plain:
    """No object of Keras's."""

    def __init__(self):
        self.head = dense(1)
        self.heads = [dense(1), 2.0]
        self.table = {"a": dense(1), "b": "text"}

    def attribute(self, x):
        return self.head(x)

    def listed(self, x):
        return self.heads[0](x) * self.heads[1]

    def tabled(self, x):
        return self.table["a"](x)


def test_a_layer_in_an_attribute_of_a_layer():
    layer = Headed()
    f = kustom.function(lambda x: layer(x))
    assert number(f(X)) == 3
    layer.head = layer.both[1]
    assert number(f(X)) == 0
    layer.head = layer.both[0]
    assert number(f(X)) == 3
    assert f.traces == 2


def test_a_layer_in_an_attribute_of_another_object():
    keeper = Plain()
    f = kustom.function(keeper.attribute)
    assert number(f(X)) == 3
    keeper.head = dense(0)
    assert number(f(X)) == 0


def test_a_layer_in_a_closure_cell():
    head = dense(1)
    f = kustom.function(lambda x: head(x))
    assert number(f(X)) == 3
    head = dense(0)
    assert number(f(X)) == 0


def test_a_layer_in_a_global(monkeypatch):
    monkeypatch.setitem(globals(), "HEAD", dense(1))
    f = kustom.function(lambda x: HEAD(x))
    assert number(f(X)) == 3
    monkeypatch.setitem(globals(), "HEAD", dense(0))
    assert number(f(X)) == 0


@pytest.mark.parametrize("where", ["a list among numbers", "a dict among text", "a list within a dict", "a tuple"])
def test_a_layer_in_a_container(where):
    keeper = Plain()
    nested = {"heads": [dense(1)]}
    pair = (dense(1), 1.0)
    f = {
        "a list among numbers": keeper.listed,
        "a dict among text": keeper.tabled,
        "a list within a dict": lambda x: nested["heads"][0](x),
        "a tuple": lambda x: pair[0](x),
    }[where]
    f = kustom.function(f)
    assert number(f(X)) == (6 if "numbers" in where else 3)
    keeper.heads[0] = keeper.table["a"] = nested["heads"][0] = dense(0)
    pair = (dense(0), 1.0)
    assert number(f(X)) == 0
    f(X)
    assert f.traces == 2


def test_a_list_of_numbers_that_grows_is_no_new_trace():
    keeper = Plain()
    f = kustom.function(keeper.listed)
    for _ in range(3):
        f(X)
        keeper.heads.append(1.0)
    assert f.traces == 1


def test_a_layer_of_keras_gets_another_activation_and_an_optimizer_another_rate():
    layer, optimizer, variable = dense(1), keras.optimizers.SGD(0.5), keras.Variable(0.0)
    optimizer.build([variable])

    @kustom.function
    def f(x):
        optimizer.apply([ops.ones(())], [variable])
        return layer(x)

    assert number(f(X)) == 3
    layer.activation = keras.activations.softplus
    assert number(f(X)) > 3.04
    f(X)
    assert f.traces == 2
    assert number(variable.value) == -1.5
    optimizer.learning_rate = keras.optimizers.schedules.PiecewiseConstantDecay([100], [0.25, 0.25])
    f(X)
    assert number(variable.value) == -1.75


def test_a_model_that_gains_a_layer():
    model = keras.Sequential([keras.Input((3,)), dense(1)])
    f = kustom.function(lambda x: model(x))
    assert number(f(X)) == 3
    model.add(layers.Dense(1, kernel_initializer="zeros"))
    assert number(f(X)) == 0


def test_a_variable_and_a_function_in_attributes():
    class Scaled(layers.Layer):
        def __init__(self):
            super().__init__()
            self.one, self.other = keras.Variable(2.0), keras.Variable(-3.0)
            self.scale = self.one
            self.then = ops.abs

        def call(self, x):
            return self.then(x * self.scale)

    layer = Scaled()
    f = kustom.function(lambda x: layer(x))
    assert number(f(X)) == 2
    layer.scale = layer.other
    assert number(f(X)) == 3
    layer.then = ops.negative
    assert number(f(X)) == 3
    layer.scale.assign(4.0)
    assert number(f(X)) == -4
    assert f.traces == 3


SHIFT = 1.0


class Base(layers.Layer):
    def __init__(self):
        super().__init__()
        self.options = Plain()
        self.options.scale = 2.0

    @property
    def scale(self):
        return self.options.scale

    @staticmethod
    def shifted(x):
        return x + SHIFT

    @functools.cached_property
    def factor(self):
        return SHIFT

    def call(self, x):
        return self.shifted(x * self.scale)


class Derived(Base):
    pass


def test_the_code_of_a_base_is_followed(monkeypatch):
    layer = Derived()
    f = kustom.function(lambda x: layer(x))
    assert number(f(X)) == 3
    layer.options.scale = 3.0
    assert number(f(X)) == 4
    monkeypatch.setitem(globals(), "SHIFT", 10.0)
    assert number(f(X)) == 13
    layer.options = Plain()
    layer.options.scale = 5.0
    assert number(f(X)) == 15
    assert f.traces == 4


def test_the_inherited_step_of_a_model_and_of_a_plain_class(monkeypatch):
    class Trainer:
        def step(self, x):
            return x * SHIFT

    class Mine(Trainer):
        pass

    trainer = Mine()
    f = kustom.function(trainer.step)
    g = kustom.function(lambda x: trainer.step(x))
    assert [number(f(X)), number(g(X))] == [1, 1]
    monkeypatch.setitem(globals(), "SHIFT", 7.0)
    assert [number(f(X)), number(g(X))] == [7, 7]


@pytest.mark.filterwarnings("ignore:.*has been traced:kustom.errors.RetraceWarning")
def test_models_in_a_row_under_one_name_are_not_all_kept():
    keeper, gone = Plain(), []
    f = kustom.function(keeper.attribute)
    for _ in range(16):
        keeper.head = dense(1)
        gone.append(weakref.ref(keeper.head))
        f(X)
    gc.collect()
    assert sum(ref() is not None for ref in gone) <= 8


def test_no_more_traces_than_before(monkeypatch):
    """What the trace itself makes, and what callbacks and compile set, is no change."""
    model = keras.Sequential([layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.1), layers.LSTM(2)])
    model.layers[0].kernel_regularizer = keras.regularizers.L2(0.1)
    optimizer, mean = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 10)), keras.metrics.Mean()

    @kustom.function
    def step(x):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(model(x, training=True))) + sum(model.losses)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        mean(loss)
        return loss

    x = np.ones((2, 5, 3), "float32")
    for _ in range(3):
        step(x)
    model.stop_training = True
    model.get_weights()
    mean.reset_state()
    step(x)
    assert step.traces == 1
