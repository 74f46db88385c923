"""What a backend has compiled can be freed, so that a process which checks many parts does not end of them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from kustom.backends import current


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone keeps what it has compiled")
def test_programs_are_counted_and_freed(monkeypatch):
    import jax

    current().free_programs()
    before = current()._compiled[0]
    double = jax.jit(lambda x: ops.sin(x) * 2.0)
    double(np.ones(7, "float32"))
    assert current()._compiled[0] > before
    monkeypatch.setattr(current(), "_PROGRAMS", 0)
    assert double._cache_size() == 1
    current().free_programs()
    assert double._cache_size() == 0
    assert current()._compiled == [0]


def test_what_was_compiled_before_runs_on():
    double = ops.ones((3,)) * 2.0
    current().free_programs()
    assert np.array_equal(ops.convert_to_numpy(double), [2.0, 2.0, 2.0])


def test_a_step_that_keeps_its_state_and_one_that_does_not_are_one_program():
    variable = keras.Variable(np.zeros(3, "float32"))

    def step(tensors):
        variable.assign_add(tensors[0])
        return []

    data = ops.convert_to_tensor(np.arange(12, dtype="float32").reshape(4, 3))
    program = current("lifting").Program(step, [data[0]])
    kept = program.keep()
    program.pick([data], None, 1, keep=True)
    np.testing.assert_array_equal(ops.convert_to_numpy(variable), [3, 4, 5])
    # Of what is compiled JAX alone tells.
    compiled = list(getattr(current(), "_compiled", []))
    program.pick([data], None, 2)
    assert list(getattr(current(), "_compiled", [])) == compiled
    np.testing.assert_array_equal(ops.convert_to_numpy(variable), [9, 11, 13])
    program.restore(kept)
    np.testing.assert_array_equal(ops.convert_to_numpy(variable), [0, 0, 0])
