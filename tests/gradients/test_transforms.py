"""`grad` and its kin, also of functions and models with state."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from arrays import array, close, tensor
from keras import ops

import kustom
from kustom import errors

BACKEND = keras.backend.backend()
RNG = np.random.default_rng(0)


def cube(x):
    return x**3


@pytest.fixture
def model():
    stack = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((3,)), *stack])


# Gradients.


def test_the_gradient_of_an_argument():
    close(kustom.grad(cube)(tensor(2.0)), 12.0)


def test_numbers_are_arguments_too():
    close(kustom.grad(cube)(2.0), 12.0)


def test_value_and_gradient():
    value, gradient = kustom.value_and_grad(lambda x: ops.sum(x**2))(tensor([1.0, 2.0]))
    close(value, 5.0)
    close(gradient, [2.0, 4.0])


@pytest.mark.parametrize(("argnums", "expected"), [(0, 36.0), (1, 10.0), (-1, 10.0)])
def test_argnums_chooses_the_argument(argnums, expected):
    close(kustom.grad(lambda a, b: 3 * a**2 + 2 * a * b, argnums=argnums)(tensor(5.0), tensor(3.0)), expected)


def test_several_argnums_give_a_tuple():
    gradients = kustom.grad(lambda a, b: 3 * a**2 + 2 * a * b, argnums=(1, 0))(tensor(5.0), tensor(3.0))
    assert isinstance(gradients, tuple)
    assert [float(array(g)) for g in gradients] == [10.0, 36.0]


def test_an_argument_may_be_a_structure():
    gradients = kustom.grad(lambda p, x: ops.sum(p["w"] * x + p["b"][0]))(
        {"w": tensor(2.0), "b": [tensor(1.0)]}, tensor([1.0, 2.0])
    )
    close(gradients["w"], 3.0)
    close(gradients["b"][0], 2.0)


def test_keywords_are_handed_on():
    close(kustom.grad(lambda x, *, power: x**power)(tensor(2.0), power=4), 32.0)


def test_the_gradient_by_variables_alone():
    w, v = keras.Variable(3.0), keras.Variable(2.0)
    gradients = kustom.grad(lambda x: ops.sum(w * v * x), variables=[w, v])(tensor([1.0, 2.0]))
    assert [float(array(g)) for g in gradients] == [6.0, 9.0]


def test_one_variable_gives_one_gradient():
    w = keras.Variable(3.0)
    close(kustom.grad(lambda: w**2, variables=w)(), 6.0)


def test_arguments_and_variables_give_a_pair():
    w = keras.Variable(3.0)
    by_x, by_w = kustom.grad(lambda x: w * x**2, argnums=0, variables={"w": w})(tensor(2.0))
    close(by_x, 12.0)
    close(by_w["w"], 4.0)


def test_a_variable_may_be_an_argument():
    w = keras.Variable(3.0)
    close(kustom.grad(lambda v: v**2)(w), 6.0)


def test_variables_need_not_be_trainable():
    w = keras.Variable(3.0, trainable=False)
    close(kustom.grad(lambda: w**2, variables=w)(), 6.0)


def test_what_comes_beside():
    gradient, aux = kustom.grad(lambda x: (x**2, {"twice": 2 * x, "what": "text", "none": None}), has_aux=True)(tensor(3.0))
    close(gradient, 6.0)
    close(aux["twice"], 6.0)
    assert aux["what"] == "text"
    assert aux["none"] is None
    (value, aux), gradient = kustom.value_and_grad(lambda x: (x**2, 7), has_aux=True)(tensor(3.0))
    close(value, 9.0)
    assert aux == 7


def test_what_is_unconnected_is_none_alike():
    f = kustom.grad(lambda a, b, i: a * ops.cast(i, "float32"), argnums=(0, 1, 2))
    a, b, i = f(tensor(2.0), tensor(3.0), tensor(4, "int32"))
    close(a, 4.0)
    assert b is None
    assert i is None
    w, v = keras.Variable(1.0), keras.Variable(1.0)
    assert kustom.grad(lambda: w * 2, variables=[w, v])()[1] is None
    assert kustom.grad(lambda x: ops.sum(ops.stop_gradient(x)) + 0 * w, argnums=0, variables=w)(tensor(1.0))[0] is None


def test_they_nest_to_third_order():
    f = cube
    for expected in (12.0, 12.0, 6.0):
        f = kustom.grad(f)
        close(f(tensor(2.0)), expected)


def test_they_nest_by_variables():
    w = keras.Variable(2.0)
    close(kustom.grad(lambda x: kustom.grad(lambda: w**3 * x, variables=w)())(tensor(5.0)), 12.0)
    close(kustom.grad(lambda: kustom.grad(lambda x: w**3 * x**2)(tensor(5.0)), variables=w)(), 120.0)


def test_the_same_tensor_twice_is_two_arguments():
    x = tensor(3.0)
    first, second = kustom.grad(lambda a, b: a * a * b, argnums=(0, 1))(x, x)
    close(first, 18.0)
    close(second, 9.0)


def test_inside_a_tape():
    x, w = tensor(2.0), keras.Variable(3.0)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        slope = kustom.grad(lambda t: w * t**3)(x)
    first, second = tape.gradient(slope, [x, w])
    close(first, 36.0)
    close(second, 12.0)


def test_a_tape_inside():
    def slope(x):
        with kustom.GradientTape() as tape:
            tape.watch(x)
            y = x**3
        return tape.gradient(y, x)

    close(kustom.grad(slope)(tensor(2.0)), 12.0)


def test_the_users_tensors_are_left_as_they_were():
    x = tensor(2.0)
    before = getattr(x, "requires_grad", None)
    kustom.grad(cube)(x)
    assert getattr(x, "requires_grad", None) == before
    assert getattr(x, "grad", None) is None


# Functions with state.


def test_state_is_updated_once(model):
    x = tensor(RNG.normal(size=(8, 3)))
    mean = keras.metrics.Mean()

    def loss():
        y = model(x, training=True)
        value = ops.mean(y**2)
        mean.update_state(value)
        return value

    before = array(model.layers[1].moving_mean).copy()
    seed = array(model.layers[2].seed_generator.state).copy()
    value, gradients = kustom.value_and_grad(loss, variables=model.trainable_variables)()
    hidden = array(x) @ array(model.layers[0].kernel) + array(model.layers[0].bias)
    close(model.layers[1].moving_mean, 0.99 * before + 0.01 * hidden.mean(axis=0), rtol=1e-4)
    assert float(array(mean.count)) == 1.0
    close(mean.result(), array(value), rtol=1e-4)
    assert int(array(model.layers[2].seed_generator.state)[1]) == int(seed[1]) + 1
    assert len(gradients) == len(model.trainable_variables)


def test_no_variable_is_left_with_a_tracer(model):
    x = tensor(RNG.normal(size=(8, 3)))
    kustom.grad(lambda: ops.mean(model(x, training=True)), variables=model.trainable_variables)()
    for variable in model.variables:
        assert np.all(np.isfinite(array(variable)))
    model(x, training=True)


def test_added_losses_count():
    layer = keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.5), activity_regularizer=keras.regularizers.L1(1.0))
    x = tensor(np.ones((4, 3)))
    layer(x)

    def loss():
        layer(x)
        return ops.sum(ops.stack([ops.convert_to_tensor(each) for each in layer.losses]))

    value, [kernel, _] = kustom.value_and_grad(loss, variables=layer.trainable_variables)()
    y = array(x) @ array(layer.kernel)
    close(value, 0.5 * np.sum(array(layer.kernel) ** 2) + np.sum(np.abs(y)) / 4, rtol=1e-4)
    close(kernel, array(layer.kernel) + array(x).T @ np.sign(y) / 4, rtol=1e-4)


def test_a_model_that_is_built_inside():
    layer = keras.layers.Dense(2, kernel_initializer="ones")
    x = tensor(np.ones((4, 3)))
    close(kustom.grad(lambda x: ops.sum(layer(x)))(x), np.full((4, 3), 2.0))
    assert layer.built
    close(layer.kernel, np.ones((3, 2)))


def test_an_assignment_inside_is_done():
    w = keras.Variable(2.0, trainable=False)

    def f(x):
        w.assign_add(1.0)
        return x * w

    close(kustom.grad(f)(tensor(5.0)), 3.0)
    close(w, 3.0)


def test_it_agrees_with_the_tape(model):
    x, y = tensor(RNG.normal(size=(8, 3))), tensor(RNG.normal(size=(8, 1)))

    def loss():
        return ops.mean((model(x, training=False) - y) ** 2)

    with kustom.GradientTape() as tape:
        value = loss()
    for one, other in zip(
        tape.gradient(value, model.trainable_variables),
        kustom.grad(loss, variables=model.trainable_variables)(),
        strict=True,
    ):
        close(one, array(other), rtol=1e-4)


def test_a_gradient_a_sample():
    x = tensor(RNG.normal(size=(5, 3)))
    close(ops.vectorized_map(kustom.grad(lambda row: ops.sum(ops.sin(row))), x), np.cos(array(x)), rtol=1e-4)


def test_a_gradient_a_sample_by_weights(model):
    x = tensor(RNG.normal(size=(5, 3)))

    def loss(row):
        return ops.sum(model(row[None], training=False))

    gradients = ops.vectorized_map(lambda row: kustom.grad(lambda: loss(row), variables=model.trainable_variables)(), x)
    rows = [kustom.grad(lambda i=i: loss(x[i]), variables=model.trainable_variables)() for i in range(5)]
    for index, gradient in enumerate(gradients):
        close(gradient, np.stack([array(row[index]) for row in rows]), rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(BACKEND != "jax", reason="a tracer is JAX's")
def test_state_that_would_keep_a_tracer_is_refused(model):
    import jax

    f = kustom.grad(lambda x: ops.sum(model(x, training=True)))
    with pytest.raises(errors.TapeError, match="would keep a tracer"):
        jax.jit(f)(np.ones((4, 3), "float32"))
    model(np.ones((4, 3), "float32"))


# Jacobians, Hessians.


def test_a_jacobian():
    x = tensor([1.0, 2.0, 3.0])
    close(kustom.jacobian(lambda x: ops.stack([ops.sum(x), ops.sum(x**2)]))(x), [[1, 1, 1], [2, 4, 6]])


def test_a_jacobian_of_several_results_by_several_arguments():
    x, y = tensor([1.0, 2.0]), tensor(3.0)
    found = kustom.jacobian(lambda x, y: {"a": x * y, "b": [ops.sum(x)]}, argnums=(0, 1))(x, y)
    close(found["a"][0], [[3.0, 0.0], [0.0, 3.0]])
    close(found["a"][1], [1.0, 2.0])
    close(found["b"][0][0], [1.0, 1.0])
    assert found["b"][0][1] is None


def test_a_jacobian_by_variables():
    w = keras.Variable([1.0, 2.0])
    close(kustom.jacobian(lambda x: x * w**2, variables=w)(tensor(3.0)), [[6.0, 0.0], [0.0, 12.0]])


def test_a_jacobian_with_what_comes_beside():
    jacobian, aux = kustom.jacobian(lambda x: (x**2, "beside"), has_aux=True)(tensor([1.0]))
    close(jacobian, [[2.0]])
    assert aux == "beside"


def test_a_hessian():
    close(kustom.hessian(lambda x: x[0] ** 2 * x[1])(tensor([1.0, 3.0])), [[6.0, 2.0], [2.0, 0.0]])


def test_a_hessian_of_several_arguments():
    (aa, ab), (ba, bb) = kustom.hessian(lambda a, b: a**2 * b, argnums=(0, 1))(tensor(2.0), tensor(5.0))
    assert [float(array(h)) for h in (aa, ab, ba, bb)] == [10.0, 4.0, 4.0, 0.0]


def test_a_hessian_of_what_is_linear_is_zero():
    close(kustom.hessian(lambda x: ops.sum(3 * x))(tensor([1.0, 2.0])), np.zeros((2, 2)))


def test_a_hessian_by_variables():
    w, v = keras.Variable([1.0, 2.0]), keras.Variable(3.0)
    found = kustom.hessian(lambda: ops.sum(w**2) * v, variables=[w, v])()
    close(found[0][0], [[6.0, 0.0], [0.0, 6.0]])
    close(found[0][1], [2.0, 4.0])
    close(found[1][0], [2.0, 4.0])
    close(found[1][1], 0.0)


@pytest.mark.parametrize("axes", [0, 1])
def test_the_hessian_of_a_variance_through_moments(axes):
    x = tensor([[1.0], [2.0], [4.0]]) if axes == 0 else tensor([[1.0, 2.0, 4.0]])
    found = kustom.hessian(lambda x: ops.sum(ops.moments(x, axes=[axes])[1]))(x)
    close(array(found).reshape(3, 3), 2 / 3 * (np.eye(3) - np.ones((3, 3)) / 3), rtol=1e-4)


def test_a_product_of_hessian_and_vector():
    x, v = tensor([1.0, 3.0, 2.0]), tensor([1.0, -2.0, 0.5])

    def f(x):
        return ops.sum(x**3) + x[0] * x[1] * x[2]

    close(kustom.hvp(f)(x, v), array(kustom.hessian(f)(x)) @ array(v), rtol=1e-4)


def test_a_product_by_variables_in_their_structure():
    w, b = keras.Variable([1.0, 2.0]), keras.Variable(3.0)
    found = kustom.hvp(lambda: ops.sum(w**2) * b, variables=[w, b])([tensor([1.0, 0.0]), tensor(2.0)])
    close(found[0], [6.0 + 4.0, 8.0])
    close(found[1], 2.0)


def test_a_product_of_a_large_model_needs_no_hessian():
    w = keras.Variable(RNG.normal(size=5000).astype("float32"))
    v = tensor(RNG.normal(size=5000))
    close(kustom.hvp(lambda: ops.sum(w**2), variables=w)(v), 2 * array(v), rtol=1e-4)


# What is refused.


def test_a_value_that_is_no_scalar_is_refused():
    with pytest.raises(errors.GradientError, match=r"cube returned the shape \(2,\).*jacobian"):
        kustom.grad(cube)(tensor([1.0, 2.0]))


def test_a_value_that_is_no_tensor_is_refused():
    with pytest.raises(errors.GradientError, match="returned float"):
        kustom.grad(lambda x: 3.0)(tensor(1.0))


def test_an_argument_that_is_not_there_is_refused():
    with pytest.raises(errors.GradientError, match="argnums=2, and cube was given 1 arguments"):
        kustom.grad(cube, argnums=2)(tensor(1.0))


@pytest.mark.parametrize("argnums", ["x", (0, 0), (0, "x"), 1.0])
def test_argnums_are_positions(argnums):
    with pytest.raises((errors.GradientError, TypeError)):
        kustom.grad(cube, argnums=argnums)


def test_variables_that_are_none_or_no_variables_are_refused():
    with pytest.raises(errors.GradientError, match="not built yet"):
        kustom.grad(cube, variables=keras.Sequential([keras.layers.Dense(1)]).trainable_variables)
    with pytest.raises(errors.GradientError, match=r"takes keras\.Variables"):
        kustom.grad(cube, variables=[tensor(1.0)])


def test_a_function_that_is_none_is_refused():
    with pytest.raises(errors.GradientError, match="give the function itself"):
        kustom.grad(tensor(1.0))


def test_a_missing_pair_is_refused():
    with pytest.raises(errors.GradientError, match="return \\(value, aux\\)"):
        kustom.grad(cube, has_aux=True)(tensor(1.0))


def test_a_vector_that_does_not_fit_is_refused():
    with pytest.raises(errors.GradientError, match=r"\[\(3,\)\]; what is differentiated by has \[\(2,\)\]"):
        kustom.hvp(lambda x: ops.sum(x**2))(tensor([1.0, 2.0]), tensor([1.0, 2.0, 3.0]))


def test_a_failure_inside_changes_nothing():
    w = keras.Variable(2.0, trainable=False)

    def f(x):
        if BACKEND == "jax":
            w.assign(7.0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kustom.grad(f)(tensor(1.0))
    close(w, 2.0)
    close(kustom.grad(cube)(tensor(2.0)), 12.0)


def test_names_and_signatures_are_the_functions():
    def loss(x, *, scale=1.0):
        return x * scale

    assert [*inspect.signature(kustom.grad(loss)).parameters] == ["x", "scale"]
    assert "loss" in kustom.grad(loss).__doc__


@pytest.mark.skipif(BACKEND != "torch", reason="only torch keeps a graph in a value")
def test_a_training_steps_value_keeps_no_graph(model):
    x = tensor(RNG.normal(size=(8, 3)))

    def loss():
        y = model(x, training=True)
        return ops.mean(y**2), {"y": y}

    (value, aux), _ = kustom.value_and_grad(loss, variables=model.trainable_variables, has_aux=True)()
    assert not value.requires_grad
    assert not aux["y"].requires_grad
    with kustom.GradientTape() as tape:
        value, _ = kustom.value_and_grad(lambda: loss()[0], variables=model.trainable_variables)()
    assert tape.gradient(value, model.trainable_variables[0]) is not None
