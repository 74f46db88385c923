"""What of Python a compiled function notices when it changes, and what does not make it trace again."""

from __future__ import annotations

import functools
import types
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom
from kustom.training.reached import Reached
from kustom.training.watching import Guards, values_of

SCALE = 2.0
SHIFTS = (1.0, 2.0)
MODEL = None


def array(x):
    return ops.convert_to_numpy(x)


def number(x):
    return float(array(x))


def test_a_closure_cell():
    scale = 2.0

    @kustom.function
    def f(x):
        return x * scale

    assert number(f(3.0)) == 6
    scale = 5.0
    assert number(f(3.0)) == 15
    scale = 2.0
    assert number(f(3.0)) == 6
    assert f.traces == 2


def test_globals_that_the_function_names(monkeypatch):
    @kustom.function
    def f(x):
        return x * SCALE + SHIFTS[0]

    assert number(f(3.0)) == 7
    monkeypatch.setitem(globals(), "SCALE", 4.0)
    assert number(f(3.0)) == 13
    monkeypatch.setitem(globals(), "SHIFTS", (5.0, 2.0))
    assert number(f(3.0)) == 17
    monkeypatch.setitem(globals(), "SHIFTS", (5.0, 2.0))
    f(3.0)
    assert f.traces == 3


def test_globals_of_what_it_calls(monkeypatch):
    def inner(x):
        return x * SCALE

    f = kustom.function(lambda x: inner(x))
    assert number(f(3.0)) == 6
    monkeypatch.setitem(globals(), "SCALE", 4.0)
    assert number(f(3.0)) == 12


def test_another_model_under_the_same_name(monkeypatch):
    one, two = layers.Dense(1, kernel_initializer="ones"), layers.Dense(1, kernel_initializer="zeros")

    @kustom.function
    def f(x):
        return MODEL(x)

    x = np.ones((1, 3), "float32")
    monkeypatch.setitem(globals(), "MODEL", one)
    assert number(f(x)[0, 0]) == 3
    monkeypatch.setitem(globals(), "MODEL", two)
    assert number(f(x)[0, 0]) == 0
    monkeypatch.setitem(globals(), "MODEL", one)
    assert number(f(x)[0, 0]) == 3
    assert f.traces == 2


def test_lists_and_dicts_of_keras_objects():
    one, two = layers.Dense(1, kernel_initializer="ones"), layers.Dense(1, kernel_initializer="zeros")
    listed, table, seen = [one], {"a": one}, []

    @kustom.function
    def f(x):
        return sum(ops.sum(layer(x)) for layer in listed), table["a"](x)

    x = np.ones((1, 3), "float32")
    assert number(f(x)[0]) == 3
    listed.append(one)
    assert number(f(x)[0]) == 6
    table["a"] = two
    assert number(f(x)[1][0, 0]) == 0
    assert f.traces == 3

    @kustom.function
    def g(x):
        len(seen)
        return x

    for _ in range(3):
        g(x)
        seen.append(0.0)
    assert g.traces == 1


TABLE = {"beta": 1.0, "nested": {"rates": [1.0, 2.0]}, "name": "a"}


def test_numbers_in_dicts_and_lists_that_a_name_stands_for(monkeypatch):
    config, rates = {"beta": 1.0, "layer": Scaled(1.0)}, [1.0, 3.0]

    @kustom.function
    def f(x):
        return x * config["beta"] * rates[0] * TABLE["beta"] * TABLE["nested"]["rates"][1]

    assert [number(f(1.0)) for _ in range(2)] == [2, 2]
    config["beta"] = 5.0
    assert number(f(1.0)) == 10
    rates[0] = 2.0
    assert number(f(1.0)) == 20
    monkeypatch.setitem(TABLE["nested"], "rates", [1.0, 4.0])
    assert number(f(1.0)) == 40
    TABLE["nested"]["rates"][1] = 8.0
    assert number(f(1.0)) == 80
    monkeypatch.setitem(TABLE, "beta", 3.0)
    assert number(f(1.0)) == 240
    config["beta"], config["other"] = float("5"), 1.0
    assert number(f(1.0)) == 240
    assert f.traces == 6


def test_entries_that_a_step_sets_and_logs_that_grow_make_no_new_trace():
    counts, log, lasting = {"calls": 0, "last": None}, [0.0], {"last": 0.0}

    @kustom.function
    def f(x):
        counts["calls"] += 1
        return x * 2.0, len(log)

    for value in range(4):
        f(1.0)
        log.append(float(value))
    assert f.traces == 1

    @kustom.function
    def plain(x):
        lasting["last"] = float(x) + lasting["last"]
        return lasting["last"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kustom.errors.EagerWarning)
        assert [plain(x) for x in (1.0, 2.0, 3.0)] == [1, 3, 6]
    assert plain.traces == 1


def test_a_list_in_which_arrays_have_come():
    held = [1.0]
    f = kustom.function(lambda x: x * ops.sum(ops.convert_to_tensor(held[0], "float32")))
    assert number(f(2.0)) == 2
    held[0] = np.ones(3, "float32")
    assert number(f(2.0)) == 6


class Scaled(layers.Layer):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.calls = 0
        self.options = types.SimpleNamespace(shift=1.0)

    def call(self, x):
        self.calls += 1
        return x * self.scale + self.options.shift


def test_attributes_of_keras_objects_and_of_others():
    layer = Scaled(2.0)
    f = kustom.function(lambda x: layer(x))
    assert number(f(3.0)) == 7
    layer.scale = 3.0
    assert number(f(3.0)) == 10
    layer.options.shift = 2.0
    assert number(f(3.0)) == 11
    layer.scale, layer.options.shift = 2.0, 1.0
    assert number(f(3.0)) == 7
    assert f.traces == 3


def test_a_counter_that_the_trace_changes_makes_no_new_trace():
    layer, table = Scaled(2.0), types.SimpleNamespace(calls=0)

    @kustom.function
    def f(x):
        table.calls += 1
        return layer(x)

    for _ in range(4):
        f(3.0)
    assert f.traces == 1


def test_a_sublayers_rate():
    layer = keras.Sequential([keras.Input((2,)), layers.Dropout(1e-9)])
    f = kustom.function(lambda x: layer(x, training=True))
    x = np.ones((4, 2), "float32")
    np.testing.assert_allclose(array(f(x)), x)
    layer.layers[0].rate = 0.999999
    assert array(f(x)).sum() == 0


def test_trainable_is_flipped_and_flipped_back():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    x = np.ones((4, 3), "float32")

    @kustom.function
    def step(x):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(model(x) - 1))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    def changed():
        before = model.get_weights()
        step(x)
        return [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]

    for _ in range(2):
        model.layers[0].trainable = True
        assert changed() == [True] * 4
        model.layers[0].trainable = False
        assert changed() == [False, False, True, True]
    assert step.traces == 2


def test_trainable_of_a_model_and_of_a_variable():
    layer = layers.Dense(1)
    layer.build((None, 3))
    f = kustom.function(lambda x: ops.ones(()) * len(layer.trainable_variables))
    x = np.ones((1, 3), "float32")
    assert number(f(x)) == 2
    layer.kernel.trainable = False
    g = kustom.function(lambda x: (layer(x), ops.ones(()) * len(layer.trainable_variables)))
    assert number(g(x)[1]) == 1
    layer.kernel.trainable = True
    assert number(g(x)[1]) == 2
    layer.trainable = False
    assert number(g(x)[1]) == 0
    assert number(f(x)) == 0


def test_floatx():
    f = kustom.function(lambda x: ops.cast(x, keras.config.floatx()) + ops.zeros(()))
    assert keras.backend.standardize_dtype(f(1).dtype) == "float32"
    keras.config.set_floatx("float16")
    try:
        assert keras.backend.standardize_dtype(f(1).dtype) == "float16"
    finally:
        keras.config.set_floatx("float32")
    assert keras.backend.standardize_dtype(f(1).dtype) == "float32"
    assert f.traces == 2


def test_the_global_policy():
    f = kustom.function(lambda x: ops.ones(()) * (keras.config.dtype_policy().name == "mixed_bfloat16") + x)
    assert number(f(0.0)) == 0
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert number(f(0.0)) == 1
    finally:
        keras.config.set_dtype_policy("float32")


def test_the_instance_of_a_method():
    class Trainer:
        def __init__(self):
            self.scale = 2.0

        @kustom.function
        def step(self, x):
            return x * self.scale

    trainer = Trainer()
    assert number(trainer.step(3.0)) == 6
    trainer.scale = 4.0
    assert number(trainer.step(3.0)) == 12
    # No code that is reached names it.
    trainer.never_named = 1
    trainer.step(3.0)
    assert trainer.step.traces == 2


def test_an_attribute_that_hides_the_classes():
    class Options:
        scale = 2.0

        def __init__(self):
            self.shift = 0.0

    options = Options()
    f = kustom.function(lambda x: x * options.scale + options.shift)
    assert number(f(3.0)) == 6
    options.scale = 4.0
    assert number(f(3.0)) == 12


def test_defaults_of_arguments():
    def f(x, *, scale=2.0):
        return x * scale

    g = kustom.function(f)
    assert number(g(3.0)) == 6
    assert number(g(3.0, scale=4.0)) == 12


class TestReached:
    def test_what_is_followed(self):
        one, two, three, four, five = (layers.Dense(1) for _ in range(5))
        table = {"a": [two], "b": (three,)}
        keeper = types.SimpleNamespace(layer=four)

        def inner(x):
            return one(x)

        def f(extra, x):
            return inner(x), table, keeper

        reached = Reached(functools.partial(f, five))
        assert {id(layer) for layer in reached.all(layers.Layer)} >= {id(layer) for layer in (one, two, three, four, five)}
        assert reached.all(keras.optimizers.Optimizer) == []

    def test_every_kind_of_keras_object(self):
        model = keras.Sequential([layers.Dense(1, kernel_regularizer="l2", kernel_constraint="max_norm")])
        optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 10))
        metric, loss, seeds = keras.metrics.Mean(), keras.losses.Huber(), keras.random.SeedGenerator(1)
        reached = Reached(lambda: (model, optimizer, metric, loss, seeds))
        for kind in (
            keras.Model,
            keras.optimizers.Optimizer,
            keras.optimizers.schedules.LearningRateSchedule,
            keras.metrics.Metric,
            keras.losses.Loss,
            keras.random.SeedGenerator,
            keras.regularizers.Regularizer,
            keras.constraints.Constraint,
        ):
            assert reached.all(kind), kind

    def test_a_circle(self):
        a, b = types.SimpleNamespace(), types.SimpleNamespace()
        a.other, b.other = b, a
        assert len(Reached(a).others) == 2

    def test_what_a_compiled_function_stands_for(self):
        layer = layers.Dense(1)
        inner = kustom.function(lambda x: layer(x))
        assert Reached(lambda x: inner(x)).all(layers.Layer) == [layer]

    @pytest.mark.parametrize("name", ["rate", "seed"])
    def test_guards_by_themselves(self, name):
        layer = layers.Dropout(0.5, seed=1)
        guards = Guards((layer,), values_of(Reached(layer)), [])
        assert guards.hold()
        setattr(layer, name, 0.25)
        assert not guards.hold()
