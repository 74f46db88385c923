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


@kustom.custom_gradient
def square(x):
    return x * x, lambda upstream: upstream * 2 * x


@kustom.custom_gradient
def nested(x):
    """A gradient in whose value and whose slope another one is."""
    y = square(x)
    return y * x, lambda upstream: upstream * 3 * y


def third_by_tape(f, x):
    with kustom.GradientTape() as tape:
        tape.watch(x)
        first, second = second_by_tape(f, x)
    return first, second, tape.gradient(second, x)


def third_by_one_tape(f, x):
    with kustom.GradientTape(persistent=True) as tape:
        tape.watch(x)
        first = tape.gradient(f(x), x)
        second = tape.gradient(first, x)
    return first, second, tape.gradient(second, x)


def third_by_functions(f, x):
    first = kustom.grad(f)
    second = kustom.grad(first)
    return first(x), second(x), kustom.grad(second)(x)


def differences(f, x, step=2e-3):
    """The first three derivatives, central differences in float64."""
    far, near, here, on, farther = (f(x + step * k) for k in (-2, -1, 0, 1, 2))
    return (
        (on - near) / (2 * step),
        (on - 2 * here + near) / step**2,
        (farther - 2 * on + 2 * near - far) / (2 * step**3),
    )


THIRDS = [third_by_tape, third_by_one_tape, third_by_functions]
# The custom gradient inside what is not linear in it: the second derivative is that of the value's way and the slope's.
COMPOSED = [
    pytest.param(lambda x: ops.sin(square(x)), lambda v: np.sin(v * v), id="around"),
    pytest.param(lambda x: square(ops.sin(x)), lambda v: np.sin(v) ** 2, id="inside"),
    pytest.param(lambda x: square(square(x)) * x, lambda v: v**5, id="twice"),
    pytest.param(lambda x: ops.exp(nested(x)), lambda v: np.exp(v**3), id="nested"),
]


@pytest.mark.parametrize(("f", "by_numpy"), COMPOSED)
@pytest.mark.parametrize("third", THIRDS)
def test_higher_orders_are_those_of_the_value_too(third, f, by_numpy):
    found = [float(array(each)) for each in third(f, tensor(0.7))]
    np.testing.assert_allclose(found, differences(by_numpy, 0.7), rtol=2e-4)


@pytest.mark.parametrize("third", THIRDS)
def test_higher_orders_inside_a_compiled_function(third):
    compiled = kustom.function(lambda x: third(lambda x: ops.sin(nested(square(x))), x))
    found = [float(array(each)) for each in compiled(tensor(0.7))]
    np.testing.assert_allclose(found, differences(lambda v: np.sin(v**6), 0.7), rtol=2e-4)


def test_jacobian_hessian_and_hvp_of_what_is_composed():
    x = tensor([0.7, 0.2])

    def f(x):
        return ops.sum(ops.sin(square(x)))

    _, second, _ = differences(lambda v: np.sin(v * v), np.asarray([0.7, 0.2]))
    close(kustom.hessian(f)(x), np.diag(second), rtol=1e-4)
    close(kustom.jacobian(kustom.grad(f))(x), np.diag(second), rtol=1e-4)
    close(kustom.hvp(f)(x, tensor([1.0, -2.0])), second * [1.0, -2.0], rtol=1e-4)


def test_mixed_second_derivatives_of_several_inputs():
    def f(x, y):
        return ops.sin(product(square(x), y))

    x, y = 0.7, 1.3
    mixed = kustom.grad(kustom.grad(f), argnums=1)(tensor(x), tensor(y))
    close(mixed, 2 * x * np.cos(x * x * y) - 2 * x**3 * y * np.sin(x * x * y))
    second = kustom.grad(kustom.grad(f, argnums=1), argnums=1)(tensor(x), tensor(y))
    close(second, -(x**4) * np.sin(x * x * y))


def test_higher_orders_of_several_outputs():
    @kustom.custom_gradient
    def pair(x):
        return (x * x, x * x * x), lambda a, b: a * 2 * x + b * 3 * x * x

    def f(x):
        a, b = pair(x)
        return ops.sin(a) * b

    found = [float(array(each)) for each in third_by_functions(f, tensor(0.7))]
    np.testing.assert_allclose(found, differences(lambda v: np.sin(v**2) * v**3, 0.7), rtol=2e-4)


def test_higher_orders_by_the_variables_that_are_read():
    w = keras.Variable(1.3)

    @kustom.custom_gradient
    def scaled(x):
        def gradient(upstream, variables=None):
            return upstream * 2 * x * w, [upstream * x * x for _ in variables]

        return w * x * x, gradient

    def f(x):
        return ops.sin(scaled(x))

    x, v = tensor(0.7), 0.7
    inner = 1.3 * v * v
    by_x = kustom.grad(f)
    by_w = kustom.grad(f, variables=w)
    close(kustom.grad(by_x)(x), 2.6 * np.cos(inner) - (2.6 * v) ** 2 * np.sin(inner))
    close(kustom.grad(by_x, variables=w)(x), 2 * v * np.cos(inner) - 2.6 * v**3 * np.sin(inner))
    close(kustom.grad(by_w, variables=w)(x), -(v**4) * np.sin(inner))
    close(kustom.function(kustom.grad(by_w, variables=w))(x), -(v**4) * np.sin(inner))
    with kustom.GradientTape() as outer, kustom.GradientTape() as tape:
        y = f(x)
        first = tape.gradient(y, w)
    close(outer.gradient(first, w), -(v**4) * np.sin(inner))


def test_a_variable_that_the_gradient_is_silent_on_has_its_way_through_the_slope_alone():
    w = keras.Variable(1.3)

    @kustom.custom_gradient
    def scaled(x):
        return w * x * x, lambda upstream: upstream * 2 * x * w

    def f(x):
        return ops.sin(scaled(x))

    x, v = tensor(0.7), 0.7
    inner = 1.3 * v * v
    close(kustom.grad(kustom.grad(f))(x), 2.6 * np.cos(inner) - (2.6 * v) ** 2 * np.sin(inner))
    close(kustom.grad(kustom.grad(f), variables=w)(x), 2 * v * np.cos(inner))
