"""The rules of lifting: each was paid for by an experiment, and each is a test that fails without it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom
from kustom.errors import EagerWarning, TracerWarning

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def number(x):
    return float(array(x))


def test_rule_1_added_losses_are_collected():
    class Adding(layers.Layer):
        def call(self, x):
            self.add_loss(7.0 * ops.mean(x))
            return x

    layer = Adding()

    @kustom.function
    def f(x):
        layer(x)
        return sum(layer.losses)

    assert number(f(np.ones((2, 2), "float32"))) == 7
    assert number(f(np.full((2, 2), 2, "float32"))) == 14


def test_rule_2_a_look_sees_everything_each_time_and_a_read_is_the_same_read():
    """A variable that is made by the first call has its gradient in that call."""
    layer = layers.Dense(1, use_bias=False)

    def f(x):
        with kustom.GradientTape() as tape:
            y = ops.sum(layer(x)) + ops.sum(layer(x))
        return tape.gradient(y, layer.kernel)

    for _ in range(2):
        # The same function again: what JAX remembers of it has no variables.
        np.testing.assert_allclose(array(kustom.function(f)(X))[:, 0], 2 * X.sum(0), rtol=1e-5)


def test_rule_3_a_read_is_seen_before_the_cast():
    layer = layers.Dense(1, use_bias=False, dtype="mixed_bfloat16")

    @kustom.function
    def f(x):
        with kustom.GradientTape() as tape:
            y = ops.sum(ops.cast(layer(x), "float32"))
        return tape.gradient(y, layer.kernel)

    gradient = f(X)
    assert keras.backend.standardize_dtype(gradient.dtype) == "float32"
    np.testing.assert_allclose(array(gradient)[:, 0], X.sum(0), rtol=0.05, atol=0.05)


def test_rule_4_a_branch_carries_the_variables_that_it_touches():
    """The rest stands in `test_branches.py`."""
    variable, optimizer = keras.Variable(1.0), keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=4.0)

    @kustom.function
    def step(x):
        with kustom.GradientTape() as tape:
            loss = optimizer.scale_loss(variable * x)
        optimizer.apply([tape.gradient(loss, variable)], [variable])

    step(1.0)
    assert number(variable.value) == 0.5
    step(float("inf"))
    assert number(variable.value) == 0.5
    assert number(optimizer.dynamic_scale.value) == 2


def test_rule_5_what_is_drawn_is_drawn_from_state():
    layer = layers.Dropout(0.5, seed=1)
    f = kustom.function(lambda x: layer(x, training=True))
    x = np.ones((1, 64), "float32")
    start = array(layer.seed_generator.state.value).copy()
    first, second = array(f(x)), array(f(x))
    assert not np.array_equal(first, second)
    layer.seed_generator.state.assign(start)
    np.testing.assert_array_equal(array(f(x)), first)


def test_rule_5_so_is_what_is_drawn_without_a_seed():
    f = kustom.function(lambda: keras.random.uniform((64,)))
    drawn = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        drawn += [array(f()), array(f())]
    assert not np.array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[:2], drawn[2:])
    assert f.traces == 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_rule_6_a_branch_on_a_value_is_not_frozen():
    def f(x):
        return x * 2 if x > 0 else x * 3

    f = kustom.function(f)
    with pytest.warns(EagerWarning, match="needs a value"):
        assert [number(f(x)) for x in (1.0, -1.0, 1.0)] == [2, -3, 2]


@pytest.mark.skipif(BACKEND == "torch", reason="what is recorded there is computed as it is recorded")
def test_rule_6_an_attribute_that_gains_a_tracer_is_restored_and_reported():
    class Keeping(layers.Layer):
        last = None

        def call(self, x):
            self.last = ops.mean(x)
            return x

    layer = Keeping()
    with pytest.warns(TracerWarning, match="'last'"):
        kustom.function(lambda x: layer(x))(X)
    assert layer.last is None


def test_rule_7_a_buffer_that_somebody_else_holds_is_not_given_away():
    one, two = keras.Variable(np.zeros(3, "float32")), keras.Variable(np.ones(3, "float32"))

    @kustom.function
    def step():
        one.assign_add(ops.ones(3))
        two.assign_add(ops.ones(3))

    step()
    one.assign(two)
    held = one.value
    step()
    np.testing.assert_array_equal(array(one.value), [3] * 3)
    np.testing.assert_array_equal(array(two.value), [3] * 3)
    if BACKEND == "jax":
        np.testing.assert_array_equal(array(held), [2] * 3)


def test_rule_8_a_failure_changes_nothing():
    model, optimizer = keras.Sequential([layers.Dense(1)]), keras.optimizers.Adam(0.1)
    mean = keras.metrics.Mean()
    asked = []

    @kustom.function
    def step(x):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(model(x)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        mean(loss)
        if asked:
            raise ValueError("as asked")

    step(X)

    def state():
        return [array(v.value).copy() for v in (*model.variables, *optimizer.variables, *mean.variables)]

    before = state()
    asked.append(1)
    # Another shape, so that it is traced.
    with pytest.raises(ValueError, match="as asked"):
        step(X[:2])
    for value, other in zip(state(), before, strict=True):
        np.testing.assert_array_equal(value, other)
    asked.clear()
    step(X[:2])
    assert int(optimizer.iterations.value) == 2


def _steps(way):
    """Three steps of a program, one by one or as a loop; what the variables then hold."""
    keras.utils.set_random_seed(0)
    model, optimizer = (
        keras.Sequential([layers.Dense(4, "tanh"), layers.Dropout(0.3, seed=1), layers.Dense(1)]),
        keras.optimizers.Adam(0.1),
    )

    def step(x):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(model(x, training=True)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    f = kustom.function(step)
    data = [ops.convert_to_tensor(np.stack([X, 2 * X, 3 * X]))]
    program = f.entry(f.arguments((X,), {})).program
    if way == "run":
        outs = [number(program.run([data[0][i]])[0]) for i in range(3)]
    elif way == "pick":
        outs = [number(program.pick(data, None, i)[0]) for i in range(3)]
    else:
        outs = [number(program.loop(data, None, 0, 1)[0]), number(program.loop(data, None, 1, 2)[0])]
    return sum(outs), [array(v.value) for v in (*model.variables, *optimizer.variables)]


@pytest.mark.parametrize("way", ["pick", "loop"])
def test_rule_9_a_step_and_a_loop_are_of_one_class(way):
    """Bitwise on JAX; on the others to the last bits, with the same random numbers."""
    total, values = _steps("run")
    other_total, others = _steps(way)
    np.testing.assert_allclose(total, other_total, rtol=1e-5)
    for value, other in zip(values, others, strict=True):
        if BACKEND == "jax":
            np.testing.assert_array_equal(value, other)
        else:
            np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(BACKEND == "torch", reason="nothing is compiled for a length there")
def test_rule_10_another_length_is_no_other_program(monkeypatch):
    traced = []
    if BACKEND == "jax":
        from kustom.backends.lifting import jax as lifting

        repeated = lifting.Program._repeated
        monkeypatch.setattr(lifting.Program, "_repeated", lambda self, *args: traced.append(1) or repeated(self, *args))
    count = keras.Variable(0.0)

    @kustom.function
    def step(x):
        count.assign_add(ops.sum(x))
        return count * 1

    program = step.entry(step.arguments((np.float32(1),), {})).program
    data = [ops.convert_to_tensor(np.ones(10, "float32"))]
    for length in (1, 3, 5):
        program.loop(data, None, 0, length)
    assert number(count.value) == 9
    assert (len(traced) if BACKEND == "jax" else program._loop.experimental_get_tracing_count()) == 1


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution is JAX's")
def test_layouts_are_kept_under_data_parallel():
    code = """
    import keras, numpy as np, kustom
    from keras import ops
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    model, optimizer = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), keras.optimizers.SGD(0.05)
    @kustom.function
    def step(x):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(model(x) - 1))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss
    layout = model.layers[0].kernel.value.sharding
    assert len(layout.device_set) == 4
    losses = [float(step(np.ones((8, 3), "float32"))) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert step.traces == 1
    assert model.layers[0].kernel.value.sharding.is_equivalent_to(layout, 2), model.layers[0].kernel.value.sharding
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
