"""Variables inside `ops.cond`, `switch`, `while_loop`, `fori_loop`, `scan` and `map` in a compiled function (rule 4)."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom
from kustom.errors import BranchError

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def number(x):
    return float(array(x))


# How often it goes round is not known to a list of operations.
on_torch_by_itself = pytest.mark.filterwarnings(
    f"{'ignore' if BACKEND == 'torch' else 'error'}:.*runs without being compiled:kustom.errors.EagerWarning"
)


def test_cond_writes_the_branch_that_is_taken():
    one, two = keras.Variable(0.0), keras.Variable(0.0)

    @kustom.function
    def f(x):
        return ops.cond(x > 0, lambda: one.assign_add(x) * 2, lambda: two.assign_add(x) * 3)

    assert [number(f(x)) for x in (1.0, -2.0, 3.0)] == [2, -6, 8]
    assert (number(one.value), number(two.value), f.traces) == (4, -2, 1)


def test_cond_of_a_variable_and_without_a_result():
    flag, count = keras.Variable(True, dtype="bool", trainable=False), keras.Variable(0.0)

    @kustom.function
    def f():
        ops.cond(flag.value, lambda: _nothing(count.assign_add(1.0)), lambda: None)

    def _nothing(_):
        return None

    f()
    flag.assign(False)
    f()
    assert number(count.value) == 1


def test_nested_branches():
    count = keras.Variable(0.0)

    @kustom.function
    def f(x):
        def inner():
            return ops.cond(x > 10, lambda: count.assign_add(10.0) * 1, lambda: count.assign_add(1.0) * 1)

        return ops.cond(x > 0, inner, lambda: count * 1)

    assert [number(f(x)) for x in (-1.0, 1.0, 11.0)] == [0, 1, 11]


def test_a_seed_drawn_in_a_branch_goes_on_only_where_it_is_drawn():
    seeds = keras.random.SeedGenerator(1)

    def f(x):
        return ops.cond(x > 0, lambda: keras.random.uniform((), seed=seeds), lambda: ops.zeros(()))

    f = kustom.function(f, compiler="graph" if BACKEND == "tensorflow" else None)
    drawn = [number(f(x)) for x in (1.0, -1.0, 1.0)]
    again = keras.random.SeedGenerator(1)
    expected = [number(keras.random.uniform((), seed=again)) for _ in range(2)]
    np.testing.assert_allclose(drawn, [expected[0], 0, expected[1]], rtol=1e-6)
    assert list(array(seeds.state.value)) == [1, 2]


def test_switch():
    counts = [keras.Variable(0.0) for _ in range(3)]

    @kustom.function
    def f(i, x):
        return ops.switch(i, [lambda x, c=c: c.assign_add(x) * 1 for c in counts], x)

    assert [number(f(i, 2.0)) for i in (0, 2, 2, 7)] == [2, 2, 4, 6]
    assert [number(c.value) for c in counts] == [2, 0, 6]
    assert f.traces == 1


@on_torch_by_itself
def test_while_loop():
    count = keras.Variable(0.0)

    @kustom.function
    def f(n):
        def body(i, total):
            count.assign_add(1.0)
            return i + 1, total + count

        return ops.while_loop(lambda i, total: i < n, body, (ops.convert_to_tensor(0), ops.zeros(())))

    _, total = f(3)
    assert (number(total), number(count.value)) == (6, 3)
    _, total = f(2)
    assert (number(total), number(count.value), f.traces) == (9, 5, 1)


@on_torch_by_itself
def test_while_loop_whose_condition_reads_a_variable_and_which_stops_in_time():
    count = keras.Variable(0.0)

    @kustom.function
    def f():
        def body(i):
            count.assign_add(1.0)
            return i + 1

        return ops.while_loop(lambda i: count < 100, body, ops.convert_to_tensor(0), maximum_iterations=4)

    assert number(f()) == 4
    assert number(count.value) == 4


def test_fori_loop():
    count = keras.Variable(0.0)

    @kustom.function
    def f(x):
        return ops.fori_loop(0, 4, lambda i, total: total + count.assign_add(x), ops.zeros(()))

    assert number(f(1.0)) == 1 + 2 + 3 + 4
    assert number(count.value) == 4


@pytest.mark.parametrize("reverse", [False, True])
def test_scan(reverse):
    count = keras.Variable(0.0)

    @kustom.function
    def f(xs):
        def once(carry, x):
            count.assign_add(x)
            return carry + x, count * 1

        return ops.scan(once, ops.zeros(()), xs, reverse=reverse)

    xs = np.arange(1, 5, dtype="float32")
    total, seen = f(xs)
    order = xs[::-1] if reverse else xs
    sums = np.cumsum(order)
    np.testing.assert_allclose(array(seen), sums[::-1] if reverse else sums)
    assert number(total) == number(count.value) == 10


def test_map():
    count = keras.Variable(0.0)
    f = kustom.function(lambda xs: ops.map(lambda x: x * count.assign_add(1.0), xs))
    np.testing.assert_allclose(array(f(np.ones(3, "float32"))), [1, 2, 3])
    assert number(count.value) == 3


@pytest.mark.parametrize("many", ["vectorized_map", "associative_scan"])
def test_what_computes_all_at_once_reads_and_may_not_write(many):
    count = keras.Variable(2.0)
    xs = np.arange(1, 4, dtype="float32")
    if many == "vectorized_map":
        reading = kustom.function(lambda xs: ops.vectorized_map(lambda x: x * count, xs))
        writing = kustom.function(lambda xs: ops.vectorized_map(lambda x: x * count.assign_add(1.0), xs))
        expected = 2 * xs
    else:
        reading = kustom.function(lambda xs: ops.associative_scan(lambda a, b: a + b * count / 2, xs))
        writing = kustom.function(lambda xs: ops.associative_scan(lambda a, b: a + b + 0 * count.assign_add(1.0), xs))
        expected = np.cumsum(xs)
    np.testing.assert_allclose(array(reading(xs)), expected)
    with pytest.raises(BranchError, match="assigned to inside"):
        writing(xs)
    assert number(count.value) == 2


def test_an_optimizer_applied_in_a_branch():
    model, optimizer = keras.Sequential([keras.Input((3,)), layers.Dense(1)]), keras.optimizers.Adam(0.1)
    variables = model.trainable_variables

    @kustom.function
    def step(x, on):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(model(x)))
        gradients = tape.gradient(loss, variables)

        def update():
            optimizer.apply(gradients, variables)
            return ops.ones(())

        return ops.cond(on > 0, update, lambda: ops.zeros(()))

    before = model.get_weights()
    assert number(step(X, -1.0)) == 0
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    assert int(optimizer.iterations.value) == 0
    assert number(step(X, 1.0)) == 1
    assert np.abs(model.get_weights()[0] - before[0]).min() > 0.05
    assert int(optimizer.iterations.value) == 1
    assert step.traces == 1


def test_gradients_through_a_branch_by_variables():
    one, two = keras.Variable(2.0), keras.Variable(5.0)
    count = keras.Variable(0.0, trainable=False)

    @kustom.function
    def f(x):
        with kustom.GradientTape() as tape:

            def square():
                count.assign_add(1.0)
                return one * one * x

            y = ops.cond(x > 0, square, lambda: two * x)
        return tape.gradient(y, [one, two], unconnected_gradients="zero")

    np.testing.assert_allclose([number(g) for g in f(3.0)], [12, 0])
    np.testing.assert_allclose([number(g) for g in f(-3.0)], [0, -3])
    assert number(count.value) == 1


def test_gradients_through_a_scan_by_variables():
    weight = keras.Variable(2.0)
    count = keras.Variable(0.0, trainable=False)

    @kustom.function
    def f(xs):
        with kustom.GradientTape() as tape:

            def once(carry, x):
                count.assign_add(1.0)
                carry = carry * weight + x
                return carry, carry

            last, _ = ops.scan(once, ops.zeros(()), xs)
        return last, tape.gradient(last, weight)

    last, gradient = f(np.ones(4, "float32"))
    assert number(last) == 15
    # 1 + w + w² + w³ by w.
    np.testing.assert_allclose(number(gradient), 1 + 2 * 2 + 3 * 4)
    assert number(count.value) == 4


def test_an_added_loss_in_a_branch_is_refused():
    class Adding(layers.Layer):
        def call(self, x):
            self.add_loss(ops.sum(x))
            return x

    layer = Adding()
    f = kustom.function(lambda x: ops.cond(ops.sum(x) > 0, lambda: layer(x), lambda: x))
    if BACKEND != "jax":
        pytest.skip("an added loss is a tensor like others there, and fails where it is used")
    with pytest.raises(BranchError, match="add_loss"):
        f(X)


@pytest.mark.filterwarnings("ignore:.*runs without being compiled:kustom.errors.EagerWarning")
def test_in_an_eager_step_too():
    """Eager Keras on JAX traces branches, and fails where they assign."""
    count, optimizer = keras.Variable(1.0), keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=4.0)

    @kustom.function(run_eagerly=True)
    def step(x):
        with kustom.GradientTape() as tape:
            loss = optimizer.scale_loss(count * x)
        optimizer.apply([tape.gradient(loss, count)], [count])
        ops.fori_loop(0, 2, lambda i, t: t + count.assign_add(1.0), ops.zeros(()))

    step(1.0)
    assert number(count.value) == 1 - 0.5 + 2
    step(float("inf"))
    assert number(count.value) == 1 - 0.5 + 4
