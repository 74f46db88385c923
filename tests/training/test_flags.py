"""Flags of Python's that a step sets itself: it does on each call what it would do as plain Python."""

from __future__ import annotations

import types

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom

STARTED = False
X = np.ones((2, 3), "float32")


def number(x):
    return float(ops.convert_to_numpy(x))


def closure(value):
    started = False

    def step(x):
        nonlocal started
        if not started:
            value.assign(100.0)
            started = True
        value.assign_add(ops.sum(x))

    return step


def of_global(value):
    def step(x):
        global STARTED
        if not STARTED:
            value.assign(100.0)
            STARTED = True
        value.assign_add(ops.sum(x))

    return step


def attribute(value):
    state = types.SimpleNamespace(mode=None)

    def step(x):
        if state.mode is None:
            value.assign(100.0)
        state.mode = "running"
        value.assign_add(ops.sum(x))

    return step


def of_class(value):
    class Step:
        started = False

        def __call__(self, x):
            if not self.started:
                value.assign(100.0)
                self.started = True
            value.assign_add(ops.sum(x))

    return Step()


def missing(value):
    class Step(layers.Layer):
        def call(self, x):
            if not hasattr(self, "started"):
                value.assign(100.0)
                self.started = True
            value.assign_add(ops.sum(x))

    layer = Step()
    return lambda x: layer(x)


MAKERS = [closure, of_global, attribute, of_class, missing]


@pytest.fixture(autouse=True)
def _not_started(monkeypatch):
    monkeypatch.setitem(globals(), "STARTED", False)


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_of_the_first_call_alone(make):
    value = keras.Variable(1.0)
    step = kustom.function(make(value))
    seen = []
    for x in (1.0, 2.0, 3.0):
        step(x)
        seen.append(number(value.value))
    assert seen == [101, 103, 106]
    assert step.traces == 2


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("execution", ["auto", "step"])
def test_in_a_loop(make, execution):
    value = keras.Variable(1.0)
    kustom.Loop(make(value)).fit(np.ones(6, "float32"), batch_size=1, epochs=2, shuffle=False, verbose=0, execution=execution)
    assert number(ops.sum(value.value)) == 112


def test_a_loop_counts_every_step_once():
    state = types.SimpleNamespace(odd=False)
    value = keras.Variable(0.0)

    def step(x):
        state.odd = not state.odd
        value.assign_add(ops.sum(x) if state.odd else 10 * ops.sum(x))
        return {"seen": ops.sum(x)}

    history = kustom.Loop(step).fit(np.arange(7, dtype="float32"), batch_size=1, shuffle=False, verbose=0)
    assert number(value.value) == 0 + 10 + 2 + 30 + 4 + 50 + 6
    assert history.history["seen"] == [3.0]
    assert state.odd is True


def test_a_flag_that_turns_with_each_call():
    state = types.SimpleNamespace(odd=False)

    @kustom.function
    def step(x):
        state.odd = not state.odd
        return x if state.odd else -x

    assert [number(step(2.0)) for _ in range(5)] == [2, -2, 2, -2, 2]
    assert step.traces == 2
    assert state.odd is True


def test_a_flag_that_is_set_anew_from_outside():
    value, state = keras.Variable(0.0), types.SimpleNamespace(started=False)

    @kustom.function
    def step(x):
        if not state.started:
            value.assign(0.0)
            state.started = True
        value.assign_add(ops.sum(x))

    for _ in range(3):
        step(1.0)
    state.started = False
    for _ in range(2):
        step(1.0)
    assert number(value.value) == 2
    assert state.started is True
    assert step.traces == 2


def test_a_model_that_is_made_on_the_first_call():
    class Lazy:
        ready = False

        def __call__(self, x):
            if not self.ready:
                self.dense = layers.Dense(1)
                self.ready = True
            return self.dense(x)

    layer = Lazy()
    f = kustom.function(lambda x: layer(x))
    first = ops.convert_to_numpy(f(X))
    np.testing.assert_array_equal(ops.convert_to_numpy(f(X)), first)
    np.testing.assert_allclose(first, X @ layer.dense.get_weights()[0], rtol=1e-6)
    assert layer.ready is True
    assert f.traces <= 2


def test_a_model_is_built_and_a_flag_set_in_one_call():
    model, ema, state = keras.Sequential([layers.Dense(1, kernel_initializer="ones")]), keras.Variable(0.0), types.SimpleNamespace()
    state.started = False

    @kustom.function
    def f(x):
        y = ops.sum(model(x))
        if not state.started:
            ema.assign(y)
            state.started = True
        ema.assign(0.5 * ema + 0.5 * y)
        return y

    f(X)
    f(2 * X)
    assert number(ema.value) == 0.5 * 6 + 0.5 * 12


def test_a_failure_leaves_the_flag():
    state = types.SimpleNamespace(started=False, fails=True)
    value = keras.Variable(0.0)

    @kustom.function
    def f(x):
        if not state.started:
            value.assign(100.0)
            state.started = True
        if state.fails:
            raise ValueError("as asked")
        value.assign_add(ops.sum(x))

    with pytest.raises(ValueError, match="as asked"):
        f(1.0)
    assert (state.started, number(value.value)) == (False, 0)
    state.fails = False
    f(1.0)
    f(1.0)
    assert number(value.value) == 102


def test_in_a_model():
    class Mine(kustom.Model):
        started = False

        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)
            self.value = self.add_weight(name="value", shape=(), initializer="zeros")

        def train_step(self, data):
            if not self.started:
                self.value.assign(100.0)
                self.started = True
            self.value.assign_add(1.0)
            self.dense(data)
            return {"value": self.value + 0.0}

    model = Mine()
    model.compile(optimizer=None)
    history = model.fit(np.ones((6, 2), "float32"), batch_size=1, epochs=2, verbose=0)
    assert number(model.value.value) == 112
    assert history.history["value"] == [np.mean(range(101, 107)), np.mean(range(107, 113))]
    model.started = False
    assert model.train_on_batch(np.ones((1, 2), "float32"), return_dict=True)["value"] == 101
    assert model.train_on_batch(np.ones((1, 2), "float32"), return_dict=True)["value"] == 102
