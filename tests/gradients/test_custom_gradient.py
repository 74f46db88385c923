"""`custom_gradient`: one signature on every backend."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from arrays import array, close, tensor
from keras import ops

import kustom
from kustom import errors

BACKEND = keras.backend.backend()


@kustom.custom_gradient
def cube(x):
    return x * x * x, lambda upstream: upstream * 3.0 * x * x


@kustom.custom_gradient
def tenfold(x):
    """Its gradient is not that of what it computes, so that the two are told apart."""
    return x * 1.0, lambda upstream: upstream * 10.0


@kustom.custom_gradient
def product(x, y):
    return x * y, lambda upstream: (upstream * y, upstream * x)


@kustom.custom_gradient
def softplus(z):
    return ops.logaddexp(z, 0.0), lambda upstream: upstream * ops.sigmoid(z)


def by_tape(f, *inputs):
    with kustom.GradientTape() as tape:
        tape.watch(inputs)
        y = f(*inputs)
    return tape.gradient(y, list(inputs))


def second_by_tape(f, x):
    with kustom.GradientTape() as outer:
        outer.watch(x)
        with kustom.GradientTape() as inner:
            inner.watch(x)
            y = f(x)
        gradient = inner.gradient(y, x)
    return gradient, outer.gradient(gradient, x)


def test_the_value_is_the_functions():
    close(cube(tensor(3.0)), 27.0)
    close(cube(3.0), 27.0)


def test_the_gradient_is_the_one_that_is_written():
    close(by_tape(tenfold, tensor(3.0))[0], 10.0)
    close(kustom.grad(tenfold)(tensor(3.0)), 10.0)


def test_upstream_is_multiplied():
    close(by_tape(lambda x: 2 * tenfold(x) ** 2, tensor(3.0))[0], 120.0)


def test_second_order():
    first, second = second_by_tape(cube, tensor(3.0))
    close(first, 27.0)
    close(second, 18.0)
    close(kustom.grad(kustom.grad(cube))(tensor(3.0)), 18.0)
    close(kustom.grad(kustom.grad(kustom.grad(cube)))(tensor(3.0)), 6.0)


def test_several_inputs():
    x, y = tensor(3.0), tensor(4.0)
    assert [float(array(g)) for g in by_tape(product, x, y)] == [4.0, 3.0]
    close(kustom.grad(lambda x: product(x, x))(x), 6.0)
    close(kustom.grad(kustom.grad(lambda x: product(x, x)))(x), 2.0)


def test_none_for_an_input_without_a_gradient():
    @kustom.custom_gradient
    def first(x, y):
        return x * y, lambda upstream: (upstream * y, None)

    one, other = by_tape(first, tensor(3.0), tensor(4.0))
    close(one, 4.0)
    assert other is None
    one, other = kustom.grad(first, argnums=(0, 1))(tensor(3.0), tensor(4.0))
    close(one, 4.0)
    assert other is None


def test_several_outputs_with_an_upstream_each():
    @kustom.custom_gradient
    def pair(x):
        return (x * 2, x * 3), lambda a, b: a * 20 + b * 30

    close(kustom.grad(lambda x: pair(x)[0] + pair(x)[1])(tensor(1.0)), 50.0)
    close(kustom.grad(lambda x: pair(x)[1])(tensor(1.0)), 30.0)
    close(by_tape(lambda x: pair(x)[0] * 2, tensor(1.0))[0], 40.0)


def test_several_outputs_with_one_upstream():
    @kustom.custom_gradient
    def pair(x):
        return {"a": x * 2, "b": x * 3}, lambda upstream: upstream["a"] * 20 + upstream["b"] * 30

    assert {*pair(tensor(1.0))} == {"a", "b"}
    close(kustom.grad(lambda x: pair(x)["a"] + pair(x)["b"])(tensor(1.0)), 50.0)


def test_structures_as_inputs():
    @kustom.custom_gradient
    def total(xs):
        return xs[0] + xs[1], lambda upstream: [upstream * 5, upstream * 7]

    assert [float(array(g)) for g in kustom.grad(total)([tensor(1.0), tensor(2.0)])] == [5.0, 7.0]


def test_keyword_arguments():
    @kustom.custom_gradient
    def power(x, *, exponent=2, scale=None):
        scale = 1.0 if scale is None else scale
        return scale * x**exponent, lambda upstream: upstream * scale * exponent * x ** (exponent - 1)

    close(kustom.grad(power)(tensor(2.0)), 4.0)
    close(kustom.grad(power)(tensor(2.0), exponent=4), 32.0)
    close(kustom.grad(power)(tensor(2.0), exponent=4, scale=tensor(10.0)), 320.0)


def test_tensors_by_keyword_may_have_gradients():
    @kustom.custom_gradient
    def scaled(x, *, scale):
        return x * scale, lambda upstream: (upstream * scale, upstream * x)

    close(kustom.grad(lambda s: scaled(tensor(3.0), scale=s))(tensor(2.0)), 3.0)


def test_a_variable_that_is_read_inside():
    w = keras.Variable(2.0)

    @kustom.custom_gradient
    def scaled(x):
        return x * w, lambda upstream: upstream * 10.0

    close(by_tape(scaled, tensor(3.0))[0], 10.0)
    close(kustom.grad(scaled)(tensor(3.0)), 10.0)
    assert kustom.grad(scaled, variables=w)(tensor(3.0)) is None
    with kustom.GradientTape() as tape:
        y = scaled(tensor(3.0))
    assert tape.gradient(y, w) is None


def test_a_variable_in_the_gradient_has_its_second_derivative():
    w = keras.Variable(2.0)

    @kustom.custom_gradient
    def scaled(x):
        return x * w, lambda upstream: upstream * w

    close(kustom.grad(lambda x: kustom.grad(scaled)(x), variables=w)(tensor(3.0)), 1.0)


def test_gradients_for_variables_that_are_read():
    w = keras.Variable(2.0)

    @kustom.custom_gradient
    def scaled(x):
        def gradient(upstream, variables=None):
            return upstream * w, [upstream * x * 100 for _ in variables]

        return x * w, gradient

    with kustom.GradientTape(persistent=True) as tape:
        y = scaled(tensor(3.0))
    close(tape.gradient(y, w), 300.0)
    close(kustom.grad(scaled, variables=w)(tensor(3.0)), 300.0)
    close(kustom.grad(scaled)(tensor(3.0)), 2.0)


def test_a_variable_as_an_argument():
    w = keras.Variable(3.0)
    with kustom.GradientTape() as tape:
        y = cube(w)
    close(tape.gradient(y, w), 27.0)


def test_a_gradient_in_another_dtype_is_cast():
    @kustom.custom_gradient
    def wide(x):
        return x * 2, lambda upstream: ops.cast(upstream, "float16") * 3

    gradient = kustom.grad(wide)(tensor(1.0))
    assert keras.backend.standardize_dtype(gradient.dtype) == "float32"
    close(gradient, 3.0)


def test_integer_inputs_are_passed_over():
    @kustom.custom_gradient
    def pick(x, index):
        return ops.take(x, index), lambda upstream: ops.one_hot(index, 3) * upstream * 5

    close(kustom.grad(pick)(tensor([1.0, 2.0, 3.0]), tensor(1, "int32")), [0.0, 5.0, 0.0])


def test_it_is_stable_where_the_notebooks_is_not():
    x = tensor([-100.0, 0.0, 100.0, 1000.0])
    close(by_tape(softplus, x)[0], [0.0, 0.5, 1.0, 1.0])
    close(softplus(x), [0.0, np.log(2), 100.0, 1000.0])


@pytest.mark.skipif(BACKEND == "torch", reason="torch has no compiler that traces a tape")
def test_inside_a_compiled_function():
    if BACKEND == "jax":
        import jax as compiler

        compiled = compiler.jit
    else:
        import tensorflow as compiler

        compiled = compiler.function
    close(compiled(lambda x: by_tape(tenfold, x)[0])(tensor(3.0)), 10.0)
    close(compiled(lambda x: second_by_tape(cube, x)[1])(tensor(3.0)), 18.0)
    close(compiled(kustom.grad(cube))(tensor(3.0)), 27.0)


def test_inside_a_model_under_fit():
    class Layer(keras.layers.Layer):
        def call(self, x):
            return tenfold(x)

    inputs = keras.Input((1,))
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = keras.Model(inputs, Layer()(dense(inputs)))
    model.compile(keras.optimizers.SGD(0.01), "mse")
    model.fit(np.ones((4, 1), "float32"), np.zeros((4, 1), "float32"), verbose=0)
    # The slope of the mean square is 2, and ten times that here.
    close(dense.kernel, [[0.8]], rtol=1e-4)
    assert model.predict(np.ones((4, 1), "float32"), verbose=0).shape == (4, 1)


def test_a_gradient_a_sample():
    x = tensor([1.0, 2.0, 3.0])
    close(ops.vectorized_map(kustom.grad(tenfold), x), [10.0, 10.0, 10.0])


def test_bad_returns_are_refused():
    @kustom.custom_gradient
    def no_pair(x):
        return x

    with pytest.raises(errors.GradientError, match=r"no_pair returned .*returns \(y, gradient\)"):
        no_pair(tensor(1.0))

    @kustom.custom_gradient
    def too_few(x, y):
        return x * y, lambda upstream: (upstream,)

    with pytest.raises(errors.GradientError, match="too_few returned 1 gradients for 2 tensors"):
        kustom.grad(too_few)(tensor(1.0), tensor(2.0))

    @kustom.custom_gradient
    def other_shape(x):
        return ops.sum(x), lambda upstream: upstream

    with pytest.raises(errors.GradientError, match=r"other_shape has the shape \(\) for an argument of the shape \(2,\)"):
        kustom.grad(other_shape)(tensor([1.0, 2.0]))
    with pytest.raises(errors.GradientError, match="decorates a function"):
        kustom.custom_gradient(3)


def test_it_looks_like_the_function():
    assert cube.__name__ == "cube"
    assert "told apart" in tenfold.__doc__


def test_gradients_go_by_the_functions_parameters_however_it_is_called():
    @kustom.custom_gradient
    def scaled(x, alpha):
        return x * alpha, lambda upstream: (upstream * alpha, upstream * x)

    @kustom.custom_gradient
    def named(x, *, b, a):
        return x * b * a, lambda upstream: (upstream * b * a, upstream * x * a, upstream * x * b)

    x, alpha = tensor(2.0), tensor(5.0)
    assert [float(array(g)) for g in by_tape(lambda x, a: scaled(alpha=a, x=x), x, alpha)] == [5.0, 2.0]
    found = by_tape(lambda x, b, a: named(x, a=a, b=b), x, tensor(3.0), tensor(7.0))
    assert [float(array(g)) for g in found] == [21.0, 14.0, 6.0]


def test_an_integer_argument_may_have_its_none():
    @kustom.custom_gradient
    def pick(x, index):
        return ops.take(x, index), lambda upstream: (ops.one_hot(index, 3) * upstream * 5, None)

    close(kustom.grad(pick)(tensor([1.0, 2.0, 3.0]), tensor(1, "int32")), [0.0, 5.0, 0.0])
