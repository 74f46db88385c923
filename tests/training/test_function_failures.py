"""`kustom.function`: what holds after an exception or Ctrl-C, and that between two calls the variables are the truth."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom
from kustom.errors import TracerWarning

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def number(x):
    return float(array(x))


class TestFailures:
    def test_an_error_while_tracing_changes_nothing(self):
        count, fails = keras.Variable(0.0), [True]

        def step(x):
            count.assign_add(1.0)
            if fails:
                raise ValueError("no such thing")
            return count * x

        f = kustom.function(step)
        for _ in range(2):
            with pytest.raises(ValueError, match="no such thing"):
                f(1.0)
        assert number(count.value) == 0
        fails.clear()
        assert number(f(2.0)) == 2

    def test_an_error_while_running_changes_nothing(self):
        """The user's own error comes through, or the backend's that says it."""
        count = keras.Variable(0.0)

        def check(x):
            if x < 0:
                raise ValueError("negative")
            return x

        if BACKEND == "jax":
            import jax

            def checked(x):
                return jax.pure_callback(lambda v: check(np.asarray(v)), jax.ShapeDtypeStruct((), "float32"), x)
        elif BACKEND == "tensorflow":
            import tensorflow as tf

            def checked(x):
                tf.debugging.assert_non_negative(x, "negative")
                return tf.ensure_shape(tf.numpy_function(check, [x], tf.float32), ())
        else:
            pytest.skip("torch: what Python computes of values is no part of a program")

        @kustom.function
        def step(x):
            count.assign_add(1.0)
            y = checked(x)
            count.assign_add(y)
            return y

        step(np.float32(1))
        assert number(count.value) == 2
        with pytest.raises(Exception, match="negative"):
            step(np.float32(-1))
        assert number(count.value) == 2
        step(np.float32(2))
        assert number(count.value) == 5

    def test_an_error_in_an_eager_step_changes_nothing(self):
        count = keras.Variable(0.0)

        @kustom.function(run_eagerly=True)
        def step(x):
            count.assign_add(1.0)
            if x < 0:
                raise ValueError("negative")

        step(1.0)
        with pytest.raises(ValueError, match="negative"):
            step(-1.0)
        assert number(count.value) == 1

    def test_an_eager_step_undoes_what_functions_in_it_did(self):
        count = keras.Variable(0.0)

        @kustom.function
        def inner(x):
            count.assign_add(x)

        @kustom.function(run_eagerly=True)
        def step(x):
            inner(x)
            raise ValueError("no")

        inner(1.0)
        with pytest.raises(ValueError, match="no"):
            step(1.0)
        assert number(count.value) == 1
        assert inner.traces == 1

    def test_no_attribute_keeps_a_tracer(self):
        class Keeper(layers.Layer):
            def __init__(self):
                super().__init__()
                self.seen = []
                self.table = {"last": None}
                self.last = None

            def call(self, x):
                self.last = ops.mean(x)
                self.seen.append(self.last)
                self.table["last"] = self.last
                self.new = self.last
                return x * 2

        keeper, kept = Keeper(), []
        last = None

        def step(x):
            nonlocal last
            last = ops.sum(x)
            kept.append(last)
            return keeper(x)

        f = kustom.function(step)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out = f(X)
        np.testing.assert_allclose(array(out), 2 * X)
        if BACKEND == "torch":
            # What is recorded there is computed as it is recorded.
            return
        assert keeper.last is None
        assert last is None
        assert kept == list(keeper.seen) == []
        assert keeper.table["last"] is None
        assert not hasattr(keeper, "new")
        named = " ".join(str(w.message) for w in caught if w.category is TracerWarning)
        assert all(f"'{name}'" in named for name in ("last", "seen", "table", "new", "kept"))

    def test_a_tracer_is_put_back_after_an_error_too(self):
        class Keeper:
            last = None

        keeper = Keeper()

        def step(x):
            keeper.last = x * 2
            raise ValueError("no")

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match="no"):
                kustom.function(step)(X)
        assert keeper.last is None or BACKEND == "torch"

    @pytest.mark.parametrize("repeat", range(3))
    def test_ctrl_c_leaves_the_variables_consistent(self, repeat):
        first, second = keras.Variable(np.zeros(1000, "float32")), keras.Variable(np.zeros(1000, "float32"))

        @kustom.function
        def step(x):
            first.assign_add(x)
            second.assign_add(x)

        step(np.ones(1000, "float32"))
        timer = threading.Timer(0.02 + 0.013 * repeat, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        until = time.monotonic() + 20

        def train():
            while time.monotonic() < until:
                step(np.ones(1000, "float32"))

        # Python passes over what is raised while it collects garbage, and JAX has a callback there.
        gc.disable()
        try:
            with pytest.raises(KeyboardInterrupt):
                train()
        finally:
            gc.enable()
        timer.join()
        np.testing.assert_array_equal(array(first.value), array(second.value))
        before = number(first.value[0])
        step(np.ones(1000, "float32"))
        assert number(first.value[0]) == before + 1


class TestTruth:
    """Between two calls the variables are the truth."""

    def test_what_is_assigned_is_used_and_what_is_read_is_fresh(self, tmp_path):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(1, use_bias=False)])
        kernel = model.layers[0].kernel

        @kustom.function
        def step():
            kernel.assign(kernel * 2)

        kernel.assign(np.ones((3, 1)))
        step()
        np.testing.assert_array_equal(array(kernel.value), np.full((3, 1), 2))
        kernel.assign(np.full((3, 1), 5))
        step()
        np.testing.assert_array_equal(array(kernel.value), np.full((3, 1), 10))
        model.save_weights(tmp_path / "w.weights.h5")
        model.set_weights([np.full((3, 1), 7)])
        step()
        np.testing.assert_array_equal(model.get_weights()[0], np.full((3, 1), 14))
        model.load_weights(tmp_path / "w.weights.h5")
        step()
        np.testing.assert_array_equal(model.get_weights()[0], np.full((3, 1), 20))
        assert step.traces == 1

    def test_two_variables_that_share_a_buffer(self):
        one, two = keras.Variable(np.arange(4.0, dtype="float32")), keras.Variable(np.zeros(4, "float32"))

        @kustom.function
        def step():
            one.assign_add(ops.ones(4))
            two.assign(two * 2)

        for _ in range(3):
            two.assign(one)
            step()
        np.testing.assert_array_equal(array(one.value), np.arange(4) + 3)
        np.testing.assert_array_equal(array(two.value), (np.arange(4) + 2) * 2)

    def test_what_was_read_before_stays_readable(self):
        count = keras.Variable(np.zeros(4, "float32"))

        @kustom.function
        def step():
            count.assign_add(ops.ones(4))

        step()
        kept, copied = [], []
        for _ in range(3):
            kept.append((count.value, np.asarray(array(count.value))))
            copied.append(np.array(array(count.value)))
            step()
        for (value, view), before in zip(kept, copied, strict=True):
            if BACKEND != "torch":
                # There a variable's value is the tensor itself, which changes in eager Keras too.
                np.testing.assert_array_equal(array(value) if BACKEND == "jax" else view, before)
            assert np.isfinite(array(value)).all()
        np.testing.assert_array_equal(array(count.value), [4] * 4)

    def test_results_are_no_state(self):
        count = keras.Variable(np.zeros(4, "float32"))

        @kustom.function
        def step():
            count.assign_add(ops.ones(4))
            return count.value, count * 1

        outs = [step() for _ in range(3)]
        np.testing.assert_array_equal([array(out[1])[0] for out in outs], [1, 2, 3])
        if BACKEND != "torch":
            np.testing.assert_array_equal([array(out[0])[0] for out in outs], [1, 2, 3])
