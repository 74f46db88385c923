"""Optimizers: accumulation that is not the large batch, a scale that is forgotten, several of them, and parts.

Reports: gradient accumulation done wrong, which plain Keras still does with a schedule, an average of the weights and a rest
(keras#19990); a `LossScaleOptimizer` in a loop of one's own, whose `scale_loss` is forgotten in silence, and which fails
eagerly on JAX (keras#19479, #20894, #19244); optimizers over groups of variables (keras#21741, tensorflow#45582). To each
one more of its kind.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom
from kustom.errors import LossScaleError, OptimizerError, SettingError

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(48, 5)).astype("float32"), rng.normal(size=(48, 1)).astype("float32")
needs_multi = pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras 3.14 has no MultiOptimizer")


def number(x):
    return round(float(ops.convert_to_numpy(ops.stop_gradient(ops.sum(x)))), 4)


def trained(optimizer, batch_size, n=48, epochs=2):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    supervised = kustom.Supervised(model, optimizer=optimizer, loss="mse")
    kustom.Loop(supervised).fit(X[:n], Y[:n], batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
    return flat(model), int(supervised.optimizer.iterations)


def flat(model):
    return np.concatenate([ops.convert_to_numpy(w).ravel() for w in model.weights])


def rate(scheduled):
    return keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5) if scheduled else 0.1


ACCUMULATED = {
    "plain": (False, {}),
    "global_clipnorm": (False, {"global_clipnorm": 0.1}),
    "schedule": (True, {}),
    "average": (False, {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2}),
}


@pytest.mark.parametrize(
    "kind", [k if k in ("schedule", "average") else pytest.param(k, marks=pytest.mark.slow) for k in ACCUMULATED]
)
def test_05_three_batches_of_four_are_one_of_twelve(kind):
    scheduled, options = ACCUMULATED[kind]
    large, updates = trained(keras.optimizers.AdamW(rate(scheduled), weight_decay=0.1, **options), 12)
    small, count = trained(keras.optimizers.AdamW(rate(scheduled), weight_decay=0.1, gradient_accumulation_steps=3, **options), 4)
    np.testing.assert_allclose(small, large, atol=1e-5)
    assert updates == count == 8


def test_05_the_rest_is_not_left_in_the_accumulator():
    large, updates = trained(keras.optimizers.Adam(0.1), 12, n=16, epochs=1)
    small, count = trained(keras.optimizers.Adam(0.1, gradient_accumulation_steps=3), 4, n=16, epochs=1)
    np.testing.assert_allclose(small, large, atol=1e-5)
    assert updates == count == 2


@needs_multi
def test_05_more_of_several_optimizers_each_with_its_schedule():
    def multi(steps):
        first = keras.optimizers.Adam(rate(True), gradient_accumulation_steps=steps)
        second = keras.optimizers.SGD(rate(True), momentum=0.9, gradient_accumulation_steps=steps)
        return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(first, {".*bias": second}))

    (large, updates), (small, count) = trained(multi(None), 12), trained(multi(3), 4)
    np.testing.assert_allclose(small, large, atol=1e-5)
    assert updates == count == 8


def scaled(inner, **options):
    variable = keras.Variable(1.0)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0, **options)
    optimizer.build([variable])
    return variable, optimizer


def stepped(optimizer, variable, way, forget=False):
    """A step, run eagerly, compiled or by a loop, that takes the gradient and applies it."""

    def step(x):
        x = ops.sum(x)
        with kustom.GradientTape() as tape:
            loss = x * variable
            loss = loss if forget else optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(loss, [variable]), [variable])

    if way == "loop":
        loop = kustom.Loop(step)
        return lambda x: loop.fit(np.array([x], "float32"), batch_size=1, verbose=0, on_nonfinite="ignore")
    return kustom.function(step, run_eagerly=way == "eagerly")


WAYS = ["eagerly", "compiled", "loop"]


@pytest.mark.parametrize("way", WAYS)
def test_06_a_scale_that_is_forgotten_is_an_error(way):
    variable, optimizer = scaled(keras.optimizers.SGD(0.1))
    stepped(optimizer, variable, way)(1.0)
    assert number(variable) == 0.9
    with pytest.raises(LossScaleError, match="did not pass through its scale_loss"):
        stepped(optimizer, variable, way, forget=True)(1.0)
    assert number(variable) == 0.9


@pytest.mark.parametrize("way", WAYS)
def test_06_an_overflow_is_left_out_and_not_counted(way):
    variable, optimizer = scaled(keras.optimizers.SGD(0.1), dynamic_growth_steps=2)
    step, seen = stepped(optimizer, variable, way), []
    for x in (np.inf, 1.0, 1.0, 1.0):
        step(np.float32(x))
        seen.append((number(variable), number(optimizer.dynamic_scale), int(optimizer.iterations)))
    assert seen == [(1.0, 512.0, 0), (0.9, 512.0, 1), (0.8, 1024.0, 2), (0.7, 1024.0, 3)]


def test_06_more_a_fixed_factor_is_asked_alike():
    variable = keras.Variable(1.0)
    optimizer = keras.optimizers.Adam(0.1, loss_scale_factor=256.0)
    stepped(optimizer, variable, "compiled")(1.0)
    assert number(variable) == 0.9
    with pytest.raises(LossScaleError, match=r"Adam 'adam.*divides gradients by a scale"):
        stepped(optimizer, variable, "compiled", forget=True)(1.0)


def test_06_more_mixed_precision_makes_the_updates_of_single_precision():
    """But for the batches whose gradients overflow: which these are differs by backend; they are the first, or among them."""
    batches = np.split(np.tile(np.arange(48), 2), 8)

    def supervised():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
        return model, kustom.Supervised(model, optimizer=keras.optimizers.SGD(0.1), loss="mse")

    before, taken = keras.config.dtype_policy(), []
    keras.config.set_dtype_policy("mixed_float16")
    try:
        mixed, step = supervised()
        start, compiled = flat(mixed), kustom.function(step)
        for batch in batches:
            count = int(step.optimizer.iterations)
            compiled(X[batch], Y[batch])
            taken.append(int(step.optimizer.iterations) > count)
    finally:
        keras.config.set_dtype_policy(before)
    assert sum(taken[4:]) >= 3
    rows = np.concatenate([batch for batch, counts in zip(batches, taken, strict=True) if counts])
    single, step = supervised()
    kustom.Loop(step).fit(X[rows], Y[rows], batch_size=12, shuffle=False, verbose=0)
    np.testing.assert_allclose(flat(mixed), flat(single), atol=5e-3)
    assert np.abs(flat(mixed) - start).max() > 0.1


def pair():
    return keras.Variable(1.0, name="a"), keras.Variable(1.0, name="b")


def applying(optimizer):
    """A compiled function that applies an optimizer to parts: lists of gradients and variables."""
    return kustom.function(lambda *parts: [optimizer.apply(*part) for part in parts] and None)


def test_15_an_optimizer_that_is_not_built_on_parts():
    optimizer, (a, b) = keras.optimizers.Adam(0.1), pair()
    one = ops.ones(())
    with pytest.raises(OptimizerError, match=r"applied to b, and was built for other variables: a\. Build it for all"):
        applying(optimizer)(([one], [a]), ([one], [b]))
    assert (number(a), number(b)) == (1.0, 1.0)


def test_15_parts_of_one_that_is_and_one_for_each():
    optimizer, (a, b) = keras.optimizers.SGD(0.1), pair()
    optimizer.build([a, b])
    one = ops.ones(())
    applying(optimizer)(([one], [a]), ([one], [b]))
    assert (number(a), number(b)) == (0.9, 0.9)
    first, second, (a, b) = keras.optimizers.Adam(0.1), keras.optimizers.Adam(0.1), pair()
    applying(first)(([one], [a]))
    applying(second)(([one], [b]))
    assert (number(a), number(b)) == (0.9, 0.9)
    assert (int(first.iterations), int(second.iterations)) == (1, 1)


def test_15_no_gradient_clipping_and_order():
    one, zero = ops.ones(()), ops.zeros(())
    for options, expected in (({}, 0.9), ({"global_clipnorm": 0.5}, 0.95)):
        optimizer, (a, b) = keras.optimizers.SGD(0.1, **options), pair()
        with pytest.warns(UserWarning, match=r"Gradients do not exist for variables \['b'\]"):
            applying(optimizer)(([one, None], [a, b]))
        assert (number(a), number(b)) == (expected, 1.0)
        with pytest.raises(ValueError, match="No gradients provided for any variable"):
            applying(optimizer)(([None, None], [a, b]))
    optimizer, (a, b) = keras.optimizers.SGD(0.1, momentum=0.9), pair()
    optimizer.build([a, b])
    applying(optimizer)(([one, zero], [b, a]))
    assert (number(a), number(b)) == (1.0, 0.9)


def test_15_a_list_of_optimizers_is_none():
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    with pytest.raises(SettingError, match="optimizer is nothing that Keras knows"):
        kustom.Supervised(model, optimizer=[keras.optimizers.SGD(), keras.optimizers.Adam()], loss="mse")


@needs_multi
def test_15_more_several_behind_a_scale():
    a, b = pair()
    inner = keras.optimizers.SGD(0.1)
    several = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(inner, {"b": keras.optimizers.SGD(0.5)}))
    optimizer = keras.optimizers.LossScaleOptimizer(several, initial_scale=64.0)
    optimizer.build([a, b])

    @kustom.function
    def step(x, some):
        with kustom.GradientTape() as tape:
            scaled = optimizer.scale_loss(x * (a + b))
        variables = [a] if some else [b, a]
        optimizer.apply(tape.gradient(scaled, variables), variables)

    step(1.0, False)
    assert (number(a), number(b), int(inner.iterations)) == (0.9, 0.5, 1)
    step(np.float32(np.inf), False)
    assert (number(a), number(b), int(inner.iterations)) == (0.9, 0.5, 1)
    with pytest.raises(OptimizerError, match="1 of its 2 variables, without b"):
        step(1.0, True)
    assert (number(a), number(b), int(inner.iterations)) == (0.9, 0.5, 1)
