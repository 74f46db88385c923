"""Rule 7: what a program gives away of its variables' buffers, and what it keeps for whoever holds them."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import kustom

BACKEND = keras.backend.backend()
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="nothing is donated there")


def array(x):
    return ops.convert_to_numpy(x)


def adding(variable, amount):
    return kustom.function(lambda: variable.assign_add(ops.ones(3) * amount))


@on_jax
def test_what_was_obtained_stays_readable_whichever_program_runs_next():
    variable = keras.Variable(np.zeros(3, "float32"))
    one, ten = adding(variable, 1), adding(variable, 10)
    held = []
    for f in (one, one, ten, one, ten, ten, one, one):
        f()
        held.append(variable.value)
    expected = np.cumsum([1, 1, 10, 1, 10, 10, 1, 1])
    np.testing.assert_array_equal([array(value)[0] for value in held], expected)


@on_jax
def test_an_array_that_views_a_value_keeps_its_numbers():
    variable = keras.Variable(np.zeros(3, "float32"))
    f = adding(variable, 1)
    views = []
    for _ in range(4):
        f()
        views.append(np.asarray(variable.value))
    np.testing.assert_array_equal([view[0] for view in views], [1, 2, 3, 4])


@on_jax
def test_one_value_in_two_variables_is_given_away_once():
    one, two = keras.Variable(np.zeros(3, "float32")), keras.Variable(np.zeros(3, "float32"))

    @kustom.function
    def f():
        one.assign_add(ops.ones(3))
        two.assign_add(ops.ones(3) * 10)

    f()
    f()
    two.assign(one)
    f()
    two.assign(one)
    f()
    np.testing.assert_array_equal([array(one.value)[0], array(two.value)[0]], [4, 13])


@on_jax
def test_programs_that_take_turns_copy_nothing(monkeypatch):
    variable = keras.Variable(np.zeros(3, "float32"))
    one, ten = adding(variable, 1), adding(variable, 10)
    for f in (one, ten):
        f()
    copied = []
    monkeypatch.setattr("jax.numpy.copy", lambda value: copied.append(value) or value + 0)
    for f in (one, one, ten, ten, one, ten):
        f()
    assert copied == []
    held = variable.value
    one()
    assert len(copied) == 1
    np.testing.assert_array_equal([array(held)[0], array(variable.value)[0]], [44, 45])


@on_jax
def test_a_program_lets_go_of_what_it_gave():
    variable, other = keras.Variable(np.zeros(3, "float32")), keras.Variable(np.zeros(3, "float32"))
    f, g = adding(variable, 1), adding(other, 1)
    f()
    given = weakref.ref(variable.value)
    variable.assign(np.ones(3, "float32"))
    g()
    assert given() is None
    given = weakref.ref(other.value)
    other.assign(np.ones(3, "float32"))
    del g
    gc.collect()
    assert given() is None


def test_variables_pickle_and_copy_after_a_call():
    variable = keras.Variable(np.zeros(3, "float32"))
    adding(variable, 1)()
    copies = [copy.deepcopy(variable)]
    if BACKEND == "jax":
        copies.append(pickle.loads(pickle.dumps(variable)))
    for other in copies:
        np.testing.assert_array_equal(array(other.value), [1, 1, 1])
        adding(other, 2)()
        np.testing.assert_array_equal(array(other.value), [3, 3, 3])
    np.testing.assert_array_equal(array(variable.value), [1, 1, 1])
