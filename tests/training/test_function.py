"""`kustom.function`: arguments and results, methods, traces, growth, threads, compilers."""

from __future__ import annotations

import collections
import copy
import functools
import gc
import inspect
import threading
import warnings
import weakref
from dataclasses import dataclass

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom
from kustom.errors import FunctionError, RetraceWarning

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

    def test_of_a_class(self):
        class Scale:
            by = 2.0

            @classmethod
            @kustom.function
            def scaled(cls, x):
                return x * cls.by

            @staticmethod
            @kustom.function
            def doubled(x):
                return x * 2

        class Other(Scale):
            by = 3.0

        assert [number(each.scaled(5.0)) for each in (Scale, Scale(), Other)] == [10, 10, 15]
        assert number(Scale.doubled(4.0)) == number(Scale().doubled(4.0)) == 8
        Scale.by = 7.0
        assert [number(each.scaled(5.0)) for each in (Scale, Other)] == [35, 15]

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


def test_one_hot_is_compiled_and_a_class_that_there_is_not_changes_nothing():
    count = keras.Variable(0.0)

    @kustom.function
    def step(ids):
        hot = ops.one_hot(ids, 4)
        count.assign_add(ops.sum(hot))
        return hot

    ids = np.array([[1, 0], [3, -1]], "int32")
    np.testing.assert_array_equal(ops.convert_to_numpy(step(ids)), ops.convert_to_numpy(ops.one_hot(ids, 4)))
    assert float(ops.stop_gradient(count.value)) == 3
    if keras.backend.backend() == "torch":
        # The others give zeros for such a class.
        with pytest.raises(RuntimeError):
            step(np.array([[1, 0], [4, 0]], "int32"))
        assert float(ops.stop_gradient(count.value)) == 3
