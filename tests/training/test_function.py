"""`kustom.function`: arguments and results, traces, methods, what is around a function, failures, growth."""

from __future__ import annotations

import collections
import copy
import functools
import gc
import inspect
import os
import signal
import threading
import time
import warnings
import weakref
from dataclasses import dataclass

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom
from kustom.errors import EagerWarning, FunctionError, RetraceWarning, TracerWarning

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def number(x):
    return float(array(x))


Pair = collections.namedtuple("Pair", ["first", "second"])


@dataclass
class Options:
    scale: float


class TestArguments:
    def test_structures_go_in_and_come_out(self):
        @kustom.function
        def f(pair, table, *, more=None):
            assert more is None
            return {"pair": Pair(pair.second, pair.first), "list": [table["a"] + 1, None, "text", (table["b"], 3)]}

        out = f(Pair(X, 2.0), {"a": 1, "b": np.float32(4)})
        np.testing.assert_array_equal(array(out["pair"].second), X)
        assert isinstance(out["pair"], Pair)
        assert number(out["pair"].first) == 2
        first, nothing, text, (second, three) = out["list"]
        assert (number(first), nothing, text, number(second), three) == (2, None, "text", 4, 3)
        f(Pair(X + 1, 3.0), {"a": 5, "b": np.float32(1)})
        assert f.traces == 1

    def test_numbers_are_no_new_trace(self):
        f = kustom.function(lambda x, k: x * k)
        for k in (1, 2, 7):
            np.testing.assert_allclose(array(f(X, k)), X * k, rtol=1e-6)
        assert f.traces == 1
        for k in (0.5, 1.5, 2.5):
            np.testing.assert_allclose(array(f(X, k)), X * k, rtol=1e-6)
        assert f.traces == 2
        for k in (np.float32(0.5), np.float32(1.5)):
            np.testing.assert_allclose(array(f(X, k)), X * k, rtol=1e-6)
        assert f.traces <= 3

    def test_text_booleans_and_objects_are_part_of_the_program(self):
        def f(x, mode, flag, options, dtype):
            y = x * options.scale if mode == "scale" else x
            return ops.cast(-y if flag else y, dtype)

        f = kustom.function(f)
        options, other = Options(3.0), Options(5.0)
        np.testing.assert_allclose(array(f(X, "scale", True, options, "float32")), -3 * X, rtol=1e-6)
        np.testing.assert_allclose(array(f(X, "scale", False, other, "float32")), 5 * X, rtol=1e-6)
        np.testing.assert_allclose(array(f(X, "plain", False, other, "float32")), X)
        assert f.traces == 3
        f(X, "plain", False, other, "float32")
        assert f.traces == 3
        options.scale = 4.0
        np.testing.assert_allclose(array(f(X, "scale", True, options, "float32")), -4 * X, rtol=1e-6)

    def test_static_numbers(self):
        @kustom.function(static_argnames=("axis", "times"))
        def f(x, axis, times=1):
            for _ in range(times):
                x = x + 1
            return ops.sum(x, axis=axis)

        np.testing.assert_allclose(array(f(X, 0)), (X + 1).sum(0), rtol=1e-5)
        np.testing.assert_allclose(array(f(X, axis=1, times=3)), (X + 3).sum(1), rtol=1e-5)
        np.testing.assert_allclose(array(f(X, 1, 3)), (X + 3).sum(1), rtol=1e-5)
        assert f.traces <= 3
        with pytest.raises(FunctionError, match="axes"):
            kustom.function(static_argnames="axes")(lambda x, axis: x)

    def test_variables_and_models_are_arguments(self):
        @kustom.function
        def f(model, variable, x):
            variable.assign_add(1.0)
            return model(x) * variable

        dense, variable = layers.Dense(2), keras.Variable(1.0)
        out = f(dense, variable, X)
        np.testing.assert_allclose(array(out), array(dense(X)) * 2, rtol=1e-5, atol=1e-6)
        assert number(variable.value) == 2
        other, more = layers.Dense(2), keras.Variable(4.0)
        np.testing.assert_allclose(array(f(other, more, X)), array(other(X)) * 5, rtol=1e-5, atol=1e-6)
        f(dense, variable, X)
        assert f.traces == 2

    def test_what_is_no_function_is_refused(self):
        with pytest.raises(FunctionError, match="give it a function"):
            kustom.function(3)  # pyright: ignore
        with pytest.raises(FunctionError, match="not known"):
            kustom.function(lambda: 0, compiler="fast")

    def test_the_signature_and_the_name_are_the_functions(self):
        @kustom.function
        def f(x: int, *, scale: float = 2.0) -> float:
            """Scale."""
            return x * scale

        assert list(inspect.signature(f).parameters) == ["x", "scale"]
        assert f.__doc__ == "Scale."
        assert f.__name__ == "f"
        assert repr(f) == "<kustom.function TestArguments.test_the_signature_and_the_name_are_the_functions.<locals>.f, 0 traces>"

    def test_partials_callable_objects_and_bound_methods(self):
        class Scale:
            def __init__(self, scale):
                self.scale = scale

            def __call__(self, x):
                return x * self.scale

            def twice(self, x):
                return x * self.scale * 2

        scale = Scale(2.0)
        for f in (kustom.function(scale), kustom.function(functools.partial(lambda s, x: x * s, 2.0))):
            np.testing.assert_allclose(array(f(X)), 2 * X, rtol=1e-6)
        twice = kustom.function(scale.twice)
        np.testing.assert_allclose(array(twice(X)), 4 * X, rtol=1e-6)
        scale.scale = 3.0
        np.testing.assert_allclose(array(twice(X)), 6 * X, rtol=1e-6)

    def test_no_arguments_and_no_tensors_in_the_result(self):
        count = keras.Variable(0.0)

        @kustom.function
        def f():
            count.assign_add(1.0)

        assert f() is None
        f()
        assert number(count.value) == 2


class Trainer:
    def __init__(self, start):
        self.count = keras.Variable(start)

    @kustom.function
    def step(self, x):
        self.count.assign_add(x)
        return self.count * 1

    @kustom.function(static_argnames="times")
    def many(self, x, times):
        return x * times


class TestMethods:
    def test_each_instance_has_its_own(self):
        one, two = Trainer(0.0), Trainer(10.0)
        assert [number(t.step(1.0)) for t in (one, two, one)] == [1, 11, 2]
        assert one.step.traces == two.step.traces == 1
        assert one.step is one.step
        assert number(one.many(2.0, times=3)) == 6
        assert number(one.many(2.0, 3)) == 6
        assert isinstance(Trainer.step, type(one.step))

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
    def test_a_copy_of_the_instance_has_its_own(self, copied):
        trainer = Trainer(1.0)
        trainer.step(1.0)
        other = copied(trainer)
        other.count = keras.Variable(10.0)
        assert [number(other.step(1.0)), number(trainer.step(1.0))] == [11, 3]

    def test_an_instance_that_has_no_hash(self):
        @dataclass
        class Scale:
            scale: float

            @kustom.function
            def __call__(self, x):
                return x * self.scale

        assert number(Scale(2.0)(3.0)) == 6

    def test_a_method_that_calls_its_base(self):
        class Twice(Trainer):
            @kustom.function
            def step(self, x):
                return super().step(super().step(x))

        assert number(Twice(0.0).step(1.0)) == 2

    def test_methods_of_models(self, tmp_path):
        class Model(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = layers.Dense(1)

            def call(self, x):
                return self.dense(x)

            @kustom.function
            def twice(self, x):
                return self(x) * 2

        model = Model()
        np.testing.assert_allclose(array(model.twice(X)), 2 * array(model(X)), rtol=1e-5, atol=1e-6)
        model.save_weights(tmp_path / "m.weights.h5")
        model.dense.kernel.assign(model.dense.kernel * 0)
        model.load_weights(tmp_path / "m.weights.h5")
        np.testing.assert_allclose(array(model.twice(X)), 2 * array(model(X)), rtol=1e-5, atol=1e-6)
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None

    def test_it_does_not_keep_its_instance(self):
        trainer = Trainer(0.0)
        trainer.step(1.0)
        gone = weakref.ref(trainer)
        del trainer
        gc.collect()
        assert gone() is None


class TestTraces:
    def test_a_shape_a_trace(self):
        f = kustom.function(lambda x: ops.sum(x))
        for rows in (8, 4, 8, 4):
            f(X[:rows])
        assert f.traces == 2

    def test_many_traces_warn_once(self):
        f = kustom.function(lambda x: ops.sum(x))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for rows in range(1, 15):
                f(np.ones((rows,), "float32"))
        said = [w for w in caught if issubclass(w.category, RetraceWarning)]
        assert len(said) == 1
        assert "traced 11 times" in str(said[0].message)
        assert said[0].filename == __file__


class TestBranchesOnValues:
    def test_the_line_is_named_and_the_result_right(self):
        count = keras.Variable(0.0)

        def f(x):
            count.assign_add(1.0)
            if ops.sum(x) > 0:
                return x * 2
            return x * 3

        f = kustom.function(f)
        line = inspect.getsourcelines(f)[1] + 2
        with pytest.warns(EagerWarning, match=rf"test_function\.py:{line} needs a value") as said:
            out = f(np.ones(2, "float32"))
        assert said[0].filename == __file__
        np.testing.assert_array_equal(array(out), [2, 2])
        np.testing.assert_array_equal(array(f(-np.ones(2, "float32"))), [-3, -3])
        assert number(count.value) == 2

    def test_inside_a_layer(self):
        class Branching(layers.Layer):
            def call(self, x):
                return x * 2 if ops.max(x) > 0 else x

        layer = Branching()
        f = kustom.function(lambda x: layer(x))
        with pytest.warns(EagerWarning, match=r"test_function\.py:\d+ needs a value"):
            out = f(np.ones(2, "float32"))
        np.testing.assert_array_equal(array(out), [2, 2])

    @pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
    @pytest.mark.parametrize("ask", ["float", "int", "bool", "array", "range", "numpy"])
    def test_every_way_to_ask(self, ask):
        if ask == "numpy" and BACKEND == "jax":
            pytest.skip("JAX's arrays have no numpy()")
        asking = {
            "array": lambda x: np.asarray(array(x)),
            "range": lambda x: range(int(x)),
            "numpy": lambda x: (x.detach() if BACKEND == "torch" else x).numpy(),
        }.get(ask, {"float": float, "int": int, "bool": bool}.get(ask))

        def f(x):
            asking(ops.sum(x))
            return x * 2

        f = kustom.function(f)
        with pytest.warns(EagerWarning, match=r"test_function\.py:\d+ needs a value"):
            out = f(np.ones(2, "float32"))
        np.testing.assert_array_equal(array(out), [2, 2])

    def test_run_eagerly_says_nothing(self):
        seen = []

        @kustom.function(run_eagerly=True)
        def f(x):
            seen.append(number(ops.sum(x)))
            return x

        f(X)
        f(X)
        np.testing.assert_allclose(seen, [X.sum()] * 2, rtol=1e-5)


class TestAround:
    def model(self):
        return keras.Sequential([keras.Input((3,)), layers.Dense(2, use_bias=False)])

    def test_a_tape_inside(self):
        model = self.model()

        @kustom.function
        def f(x):
            with kustom.GradientTape(persistent=True) as outer:
                outer.watch(x)
                with kustom.GradientTape() as inner:
                    inner.watch(x)
                    y = ops.sum(ops.power(model(x), 3))
                slope = inner.gradient(y, x)
                norm = ops.sum(slope**2)
            return slope, outer.gradient(norm, model.trainable_variables)[0], outer.jacobian(slope, x)

        w = array(model.layers[0].kernel.value)
        slope, by_kernel, jacobian = map(array, f(X))
        z = X @ w
        np.testing.assert_allclose(slope, (3 * z**2) @ w.T, rtol=1e-4, atol=1e-5)
        expected = np.zeros((8, 3, 8, 3))
        for i in range(8):
            expected[i, :, i, :] = (w * (6 * z[i])) @ w.T
        np.testing.assert_allclose(jacobian, expected, rtol=1e-4, atol=1e-4)
        eps, direction = 1e-2, np.random.default_rng(1).normal(size=w.shape)

        def norm(w):
            return np.square((3 * (X @ w) ** 2) @ w.T).sum()

        slope_along = (norm(w + eps * direction) - norm(w - eps * direction)) / (2 * eps)
        np.testing.assert_allclose((by_kernel * direction).sum(), slope_along, rtol=2e-2)

    def test_transforms_inside(self):
        model, count = self.model(), keras.Variable(0.0, trainable=False)

        def loss(x):
            count.assign_add(1.0)
            return ops.sum(ops.square(model(x)))

        f = kustom.function(lambda x: kustom.value_and_grad(loss, variables=model.trainable_variables)(x))
        for _ in range(2):
            value, gradient = f(X)
        z = X @ array(model.layers[0].kernel.value)
        assert number(count.value) == 2
        np.testing.assert_allclose(number(value), np.square(z).sum(), rtol=1e-4)
        leaf = gradient[0] if isinstance(gradient, list | tuple) else gradient
        np.testing.assert_allclose(array(leaf), 2 * X.T @ z, rtol=1e-4, atol=1e-5)

    def test_custom_gradients_inside(self):
        @kustom.custom_gradient
        def reversed_(x):
            return x, lambda upstream: -upstream

        f = kustom.function(lambda x: kustom.grad(lambda x: ops.sum(reversed_(x) ** 2))(x))
        np.testing.assert_allclose(array(f(X)), -2 * X, rtol=1e-5)

    def test_inside_an_open_tape_it_runs_as_part_of_it(self):
        model = self.model()
        f = kustom.function(lambda x: ops.sum(ops.square(model(x))))
        with kustom.GradientTape() as tape:
            y = f(ops.convert_to_tensor(X))
        z = X @ array(model.layers[0].kernel.value)
        np.testing.assert_allclose(array(tape.gradient(y, model.trainable_variables)[0]), 2 * X.T @ z, rtol=1e-4, atol=1e-5)
        assert f.traces == 0

    def test_inside_another_function(self):
        count = keras.Variable(0.0)

        @kustom.function
        def inner(x):
            count.assign_add(1.0)
            return x * count

        outer = kustom.function(lambda x: inner(inner(x)))
        np.testing.assert_allclose(array(outer(X)), 2 * X, rtol=1e-6)
        assert number(count.value) == 2
        assert (inner.traces, outer.traces) == (0, 1)

    def test_inside_the_backends_own_compiler(self):
        f = kustom.function(lambda x: ops.sum(x) * 2)
        if BACKEND == "jax":
            import jax

            out = jax.jit(f)(X)
        elif BACKEND == "tensorflow":
            import tensorflow as tf

            out = tf.function(f)(tf.constant(X))
        else:
            pytest.skip("torch.compile takes long, and breaks the graph where it meets anything that it does not know")
        np.testing.assert_allclose(number(out), X.sum() * 2, rtol=1e-5)
        assert f.traces == 0

    def test_inside_a_layer_under_fit(self):
        class Scaled(layers.Layer):
            def build(self, shape):
                self.scale = self.add_weight(shape=(), initializer="ones")
                self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

            @kustom.function
            def scaled(self, x):
                self.count.assign_add(1.0)
                return x * self.scale

            def call(self, x):
                return self.scaled(x)

        layer = Scaled()
        model = keras.Sequential([keras.Input((3,)), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(X, 3 * X, epochs=2, batch_size=4, verbose=0)
        assert number(layer.scale.value) > 1.1
        assert number(layer.count.value) == 4

    def test_the_backends_own_gradients_inside(self):
        model = self.model()
        kernel = model.layers[0].kernel
        z = X @ array(kernel.value)
        if BACKEND == "tensorflow":
            import tensorflow as tf

            def step(x):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(model(x) ** 2)
                kernel.assign_sub(0.1 * tape.gradient(loss, kernel.value))
                return loss
        elif BACKEND == "jax":
            import jax

            def step(x):
                loss, gradient = jax.value_and_grad(lambda w: ops.sum((x @ w) ** 2))(kernel.value)
                kernel.assign_sub(0.1 * gradient)
                return loss
        else:
            import torch

            def step(x):
                loss = (model(x) ** 2).sum()
                (gradient,) = torch.autograd.grad(loss, [kernel.value])
                with torch.no_grad():
                    kernel.assign_sub(0.1 * gradient)
                return loss

        f = kustom.function(step)
        before = array(kernel.value).copy()
        np.testing.assert_allclose(number(f(X)), np.square(z).sum(), rtol=1e-4)
        np.testing.assert_allclose(array(kernel.value), before - 0.2 * X.T @ z, rtol=1e-4, atol=1e-5)
        assert f.traces == 1

    @pytest.mark.skipif(BACKEND != "torch", reason="torch's own way")
    def test_backward_inside(self):
        import torch

        model = self.model()
        optimizer = torch.optim.SGD([model.layers[0].kernel.value], lr=0.1)
        before = array(model.layers[0].kernel.value).copy()

        @kustom.function
        def step(x):
            optimizer.zero_grad()
            loss = (model(x) ** 2).sum()
            loss.backward()
            optimizer.step()
            return loss

        for _ in range(3):
            z = X @ before
            step(X)
            before = before - 0.2 * X.T @ z
            np.testing.assert_allclose(array(model.layers[0].kernel.value), before, rtol=1e-3, atol=1e-4)


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

        with pytest.raises(KeyboardInterrupt):
            train()
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


class TestGrowth:
    def test_a_function_dies_with_its_owner(self):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
        step = kustom.function(functools.partial(lambda model, x: model(x), model))
        step(X)
        gone = [weakref.ref(model), weakref.ref(step), weakref.ref(model.layers[0].kernel)]
        del model, step
        gc.collect()
        assert [ref() for ref in gone] == [None] * 3

    def test_many_models_need_the_memory_of_one(self):
        def train():
            model, optimizer = keras.Sequential([keras.Input((3,)), layers.Dense(2)]), keras.optimizers.Adam(0.1)

            @kustom.function
            def step(x):
                with kustom.GradientTape() as tape:
                    loss = ops.mean(model(x) ** 2)
                variables = model.trainable_variables
                optimizer.apply(tape.gradient(loss, variables), variables)
                return loss

            for _ in range(2):
                step(X)

        def alive():
            gc.collect()
            variables = [obj for obj in gc.get_objects() if issubclass(type(obj), keras.Variable)]
            return len(variables), _live_arrays()

        train()
        before = alive()
        for _ in range(3):
            train()
            keras.backend.clear_session(free_memory=False)
        after = alive()
        assert after[0] <= before[0]
        assert after[1] <= before[1] + 3


def _live_arrays():
    if BACKEND == "jax":
        import jax

        return len(jax.live_arrays())
    if BACKEND == "torch":
        import torch

        # Some of torch's own objects warn when they are asked for their class.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sum(isinstance(obj, torch.Tensor) for obj in gc.get_objects())
    return 0


class TestThreads:
    def test_two_threads_call_two_functions(self):
        counts = [keras.Variable(0.0) for _ in range(2)]
        failures = []

        def work(i):
            count = counts[i]
            seeds = keras.random.SeedGenerator(i)

            @kustom.function
            def step(x):
                with kustom.GradientTape() as tape:
                    y = count * x
                count.assign_add(tape.gradient(y, count))
                return ops.cond(ops.sum(y) >= 0, lambda: keras.random.uniform((), seed=seeds), lambda: ops.zeros(()))

            try:
                for _ in range(20):
                    step(float(i + 1))
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert [number(count.value) for count in counts] == [20, 40]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow has two compilers")
class TestCompilers:
    def test_what_was_asked_for_compiles(self):
        for compiler, xla in (("xla", True), ("graph", False), (None, True)):
            f = kustom.function(lambda x: ops.sum(x), compiler=compiler)
            f(X)
            assert next(iter(f._entries.values()))[0].program.xla is xla

    def test_no_xla_with_a_convolution_or_a_recurrence(self):
        images = np.zeros((1, 6, 6, 1), "float32")
        for layer, x in ((layers.Conv2D(1, 3), images), (layers.LSTM(2), np.zeros((1, 3, 2), "float32"))):
            f = kustom.function(lambda x, layer=layer: layer(x))
            f(x)
            assert next(iter(f._entries.values()))[0].program.xla is False
