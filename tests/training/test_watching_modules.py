"""Attributes of modules and of classes are noticed where a compiled function's code mentions them."""

from __future__ import annotations

import sys
import types
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom
from kustom.training.reached import Reached
from kustom.training.watching import Guards, values_of

settings = types.ModuleType("settings_of_a_user")


class Config:
    beta = 1.0


class Derived(Config):
    pass


def number(x):
    return float(ops.convert_to_numpy(x))


@pytest.fixture(autouse=True)
def as_at_first(monkeypatch):
    inner = types.ModuleType("settings_of_a_user.inner")
    inner.RATE = 1.0
    vars(settings).update(BETA=1.0, RATES=(1.0, 2.0), UNUSED=0, Config=Config, inner=inner, wide=lambda x: x * inner.RATE)
    monkeypatch.setitem(sys.modules, "settings_of_a_user", settings)
    monkeypatch.setattr(Config, "beta", 1.0)
    yield
    if "beta" in vars(Derived):
        del Derived.beta


def set_in_class(value):
    Config.beta = value


def set_in_module(value):
    settings.BETA = value


def set_in_tuple(value):
    settings.RATES = (value, 2.0)


def set_in_inner(value):
    settings.inner.RATE = value


def set_by_hiding(value):
    Derived.beta = value


def by_alias(x):
    kept = Config
    return x * kept.beta


def by_import(x):
    from settings_of_a_user import BETA

    return x * BETA


class Kept:
    def __init__(self):
        self.config = Config
        self.settings = settings

    def scaled(self, x):
        return x * self.config.beta * self.settings.BETA


class Scaling(layers.Layer):
    factor = Config

    def call(self, x):
        return x * self.factor.beta


class Nested:
    class Rates:
        low = 1.0

    def __init__(self):
        self.other = 0


@pytest.mark.parametrize(
    ("f", "change"),
    [
        (lambda x: x * settings.BETA, set_in_module),
        (lambda x: x * settings.RATES[0], set_in_tuple),
        (lambda x: x * settings.inner.RATE, set_in_inner),
        (lambda x: settings.wide(x), set_in_inner),
        (lambda x: x * settings.Config.beta, set_in_class),
        (lambda x: x * Config.beta, set_in_class),
        (lambda x: x * Derived.beta, set_in_class),
        (lambda x: x * Derived.beta, set_by_hiding),
        (by_alias, set_in_class),
        (by_import, set_in_module),
        (Kept().scaled, set_in_class),
        (Kept().scaled, set_in_module),
        (Scaling(), set_in_class),
        ((lambda derived: lambda x: x * derived.beta)(Derived()), set_in_class),
        ((lambda derived: lambda x: x * derived.beta)(Derived()), set_by_hiding),
        (lambda x: x * Derived().beta, set_in_class),
    ],
)
def test_a_change_is_noticed(f, change):
    compiled = kustom.function(lambda x: f(x))
    assert [number(compiled(2.0)) for _ in range(2)] == [2, 2]
    change(5.0)
    assert [number(compiled(2.0)) for _ in range(2)] == [10, 10]
    change(5.0)
    settings.UNUSED += 1
    assert number(compiled(2.0)) == 10
    assert compiled.traces == 2


def test_a_class_in_a_class_and_a_type():
    nested = Nested()
    compiled = kustom.function(lambda x: x * nested.Rates.low * type(nested).Rates.low)
    assert number(compiled(2.0)) == 2
    Nested.Rates.low = 3.0
    try:
        assert number(compiled(2.0)) == 18
        # It is told by its value, not by the object.
        Nested.Rates.low = float("3.0")
        assert number(compiled(2.0)) == 18
    finally:
        Nested.Rates.low = 1.0
    assert number(compiled(2.0)) == 2
    assert compiled.traces == 2


def test_objects_by_identity():
    settings.layer = layers.Dense(1, kernel_initializer="ones")
    compiled = kustom.function(lambda x: settings.layer(x))
    x = np.ones((1, 3), "float32")
    assert number(compiled(x)[0, 0]) == 3
    settings.layer = layers.Dense(1, kernel_initializer="zeros")
    assert number(compiled(x)[0, 0]) == 0
    settings.layer.trainable = False
    compiled(x)
    compiled(x)
    assert compiled.traces == 3


def test_what_a_helper_of_a_module_reads():
    class Helper:
        gain = 1.0

        @staticmethod
        def gained(x):
            return x * Helper.gain

    compiled = kustom.function(lambda x: Helper.gained(x))
    assert number(compiled(2.0)) == 2
    Helper.gain = 4.0
    assert number(compiled(2.0)) == 8


def test_a_loop_notices():
    x = np.ones((8, 1), "float32")
    loop = kustom.Loop(lambda x: ops.mean(x) * Config.beta + settings.BETA)
    assert loop.fit(x, verbose=0).history == {"loss": [2.0]}
    Config.beta, settings.BETA = 7.0, 2.0
    assert loop.fit(x, verbose=0).history == {"loss": [9.0]}


def test_a_count_that_the_step_keeps_makes_no_new_trace():
    class Counts:
        calls = 0

    def f(x):
        Counts.calls += 1
        settings.UNUSED += 1
        return x * 1.0

    compiled = kustom.function(f)
    for _ in range(3):
        compiled(2.0)
    assert compiled.traces == 1


def test_a_flag_that_the_step_sets_is_a_condition():
    class State:
        started = False

    settings.started = False

    def f(x):
        if State.started and settings.started:
            return x * 1.0
        State.started = True
        settings.started = True
        return x * 100.0

    compiled = kustom.function(f)
    assert [number(compiled(2.0)) for _ in range(3)] == [200, 2, 2]
    State.started = False
    assert [number(compiled(2.0)) for _ in range(2)] == [200, 2]


def test_a_tensor_that_is_left_in_a_class_or_module_is_taken_out():
    class Last:
        value = None

    def f(x):
        Last.value = x * 2.0
        settings.last = x * 3.0
        return x + (0.0 if Last.value is None else 1.0) + (0.0 if settings.last is None else 1.0)

    settings.last = None
    if keras.backend.backend() == "torch":
        # What is recorded there is a value.
        compiled = kustom.function(f)
        assert [number(compiled(2.0)) for _ in range(3)] == [4, 4, 4]
        assert compiled.traces == 1
        return
    with pytest.warns(kustom.errors.TracerWarning) as seen:
        assert number(kustom.function(f)(2.0)) == 4
    assert len(seen) == 2
    assert Last.value is None
    assert settings.last is None


def test_a_tensor_that_a_step_without_a_program_keeps_makes_no_new_trace():
    class Last:
        value = None

    def f(x):
        Last.value = x * 2.0
        return float(x) + float(Last.value)

    compiled = kustom.function(f)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert [compiled(x) for x in (1.0, 2.0, 3.0)] == [3, 6, 9]
    assert kustom.errors.EagerWarning in {each.category for each in seen}
    assert compiled.traces == 1


def test_modules_of_libraries_are_left_alone():
    import math

    reached = Reached(lambda x: (ops.mean(x) * np.pi * math.pi, keras.backend.floatx, sys.path, types.ModuleType))
    assert reached.spaces == []


def test_nothing_is_followed_through_an_installed_package():
    installed = types.ModuleType("package")
    installed.__file__ = "/usr/lib/python3/site-packages/package.py"
    installed.layer, installed.version = layers.Dense(1), "1"
    reached = Reached(lambda: (installed.layer, installed.version))
    assert reached.objects == []
    guards = Guards([lambda: installed.version], values_of(reached), [])
    assert guards.hold()
    installed.version = "2"
    assert not guards.hold()
