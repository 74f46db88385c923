"""`kustom.function`: a branch on a value, and what is around a function or inside of it."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom
from kustom.errors import EagerWarning

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def number(x):
    return float(array(x))


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
        with pytest.warns(EagerWarning, match=rf"test_function_around\.py:{line} needs a value") as said:
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
        with pytest.warns(EagerWarning, match=r"test_function_around\.py:\d+ needs a value"):
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
        with pytest.warns(EagerWarning, match=r"test_function_around\.py:\d+ needs a value"):
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
