"""Compiled functions: what people reported of steps compiled by hand, and more of the same kinds.

Reported: steps over `train_on_batch` or a compiled step of one's own are slow, as each batch size or Python number makes a new
trace (20); a compiled function that closes over a model freezes its weights and breaks the model on JAX (23).
"""

from __future__ import annotations

import functools
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom
from kustom.errors import EagerWarning, RetraceWarning

RNG = np.random.default_rng(0)
X = np.full((4, 1), 3.0, "float32")


def array(x):
    return ops.convert_to_numpy(x)


def number(x):
    return float(array(x))


class Counting(layers.Layer):
    """Counts how often Python runs its call."""

    ran = 0

    def call(self, x):
        Counting.ran += 1
        return x * 2


# 20: how often a step is traced.


def test_a_number_that_changes_at_each_step_is_no_trace():
    layer = Counting()
    f = kustom.function(lambda x, step: layer(x) * step)
    for step in range(10):
        np.testing.assert_allclose(array(f(X, step)), X * 2 * step)
    assert f.traces == 1
    ran = Counting.ran
    f(X, 11)
    assert Counting.ran == ran


@pytest.mark.parametrize("kind", [np.int32, np.float32, np.float64, np.asarray, ops.convert_to_tensor], ids=lambda k: k.__name__)
def test_nor_one_of_numpy_or_the_backend(kind):
    f = kustom.function(lambda x, step: x * ops.cast(step, "float32"))
    for step in range(5):
        np.testing.assert_allclose(array(f(X, kind(step))), X * step)
    assert f.traces == 1


def test_the_smaller_last_batch_is_one_trace_more_however_many_epochs():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    f = kustom.function(lambda x: ops.mean(model(x)))
    data = RNG.normal(size=(46, 3)).astype("float32")
    for _ in range(3):
        for start in range(0, 46, 8):
            f(data[start : start + 8])
    assert f.traces == 2


def test_many_sizes_are_said_and_counted():
    f = kustom.function(lambda x: ops.sum(x))

    def run():
        for size in range(1, 13):
            f(np.ones((size, 1), "float32"))

    with pytest.warns(RetraceWarning, match="new shapes"):
        run()
    assert f.traces == 12


def test_a_list_and_a_tuple_are_two_structures_and_a_dicts_order_is_none():
    f = kustom.function(lambda table: table["a"] - table["b"])
    assert number(f({"a": 3.0, "b": 1.0})) == number(f({"b": 1.0, "a": 3.0})) == 2
    assert f.traces == 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_new_lambda_as_an_argument_is_a_trace_each_and_said():
    f = kustom.function(lambda x, g: g(x))

    def run():
        return [number(f(1.0, lambda x, k=k: x + k)) for k in range(12)]

    with pytest.warns(RetraceWarning, match="objects as arguments"):
        assert run() == list(range(1, 13))


def test_a_learning_rate_that_a_loop_lowers_is_no_trace():
    variable, optimizer = keras.Variable(1.0), keras.optimizers.SGD(0.1)
    f = kustom.function(lambda: optimizer.apply([ops.ones(())], [variable]))
    expected = 1.0
    for rate in (0.1, 0.05, 0.025):
        optimizer.learning_rate = rate
        f()
        expected -= rate
        np.testing.assert_allclose(number(variable.value), expected, rtol=1e-5)
    assert f.traces == 1


# 23: a compiled function that closes over a model.


def model_of_report():
    return keras.Sequential(
        [keras.Input((1,)), layers.BatchNormalization(), layers.Dense(1, use_bias=False, kernel_initializer="ones")]
    )


def test_weights_that_change_between_two_calls_are_used():
    model = model_of_report()
    f = kustom.function(lambda x: model(x))
    first = array(f(X))[0, 0]
    model.layers[-1].kernel.assign([[5.0]])
    np.testing.assert_allclose(array(f(X))[0, 0], 5 * first, rtol=1e-6)


def test_a_counter_counts():
    count = keras.Variable(0.0)
    g = kustom.function(lambda: count.assign(count + 1.0))
    g()
    g()
    assert number(count.value) == 2


def test_a_moving_mean_moves():
    model = model_of_report()
    g = kustom.function(lambda x: model(x, training=True))
    g(X)
    np.testing.assert_allclose(array(model.layers[0].moving_mean.value), [0.03], rtol=1e-5)


def test_an_optimizers_step_is_taken():
    model, optimizer = model_of_report(), keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    g = kustom.function(lambda: optimizer.apply([ops.ones_like(v.value) for v in model.trainable_variables]))
    g()
    np.testing.assert_allclose(array(model.layers[-1].kernel.value), [[0.9]], rtol=1e-6)


def test_a_variable_is_an_argument():
    count = keras.Variable(2.0)
    f = kustom.function(lambda v: v * 2)
    assert number(f(count)) == 4
    count.assign(5.0)
    assert number(f(count)) == 10


def test_the_model_is_usable_after_all_that_and_after_an_error():
    model, optimizer = model_of_report(), keras.optimizers.SGD(0.1)

    @kustom.function
    def step(x, fail):
        with kustom.GradientTape() as tape:
            loss = ops.mean(model(x, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        if fail:
            raise RuntimeError("in the middle")
        return loss

    step(X, False)
    before = [array(v.value).copy() for v in model.variables]
    with pytest.raises(RuntimeError, match="in the middle"):
        step(X, True)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(array(variable.value), value)
    assert np.isfinite(array(model(X))).all()
    model.compile("sgd", "mse")
    model.fit(X, X, verbose=0)


def test_a_model_held_by_an_object_a_dict_or_a_partial():
    class Holder:
        def __init__(self, model):
            self.models = {"first": [model]}

        def __call__(self, x):
            return self.models["first"][0](x)

    model = model_of_report()
    holder = Holder(model)
    functions = [kustom.function(holder), kustom.function(functools.partial(lambda m, x: m(x), model))]
    expected = array(model(X))[0, 0]
    for f in functions:
        np.testing.assert_allclose(array(f(X))[0, 0], expected, rtol=1e-6)
    model.layers[-1].kernel.assign([[5.0]])
    for f in functions:
        np.testing.assert_allclose(array(f(X))[0, 0], 5 * expected, rtol=1e-6)
    holder.models["first"] = [model_of_report()]
    np.testing.assert_allclose(array(functions[0](X))[0, 0], expected, rtol=1e-6)


def test_a_metric_and_a_seed_in_a_closure():
    mean, noise = keras.metrics.Mean(), layers.GaussianNoise(1.0, seed=1)

    @kustom.function
    def f(x):
        mean.update_state(x)
        return noise(x, training=True)

    first, second = array(f(X)), array(f(X))
    assert not np.array_equal(first, second)
    assert number(mean.result()) == 3
    assert number(mean.count.value) == 8


def test_a_step_that_prints_its_loss_still_trains():
    """A number is asked for while it is traced: it runs eagerly, and says so once."""
    model, optimizer = model_of_report(), keras.optimizers.SGD(0.1)
    losses = []

    @kustom.function
    def step(x):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(model(x)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        losses.append(float(loss))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            step(X)
    assert [w.category for w in said if issubclass(w.category, EagerWarning)] == [EagerWarning]
    assert len(losses) == 3
    assert losses[2] < losses[1] < losses[0]
