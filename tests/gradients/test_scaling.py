"""An optimizer that scales the loss, in a step of ours: to forget `scale_loss` is an error, and nothing else is."""

from __future__ import annotations

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom.errors import LossScaleError

BACKEND = keras.backend.backend()
EAGERLY = [False, True]
SCALE = 1024.0


def number(x):
    return float(ops.convert_to_numpy(x))


def scaling(kind="dynamic", rate=0.1, **options):
    if kind == "factor":
        return keras.optimizers.SGD(rate, loss_scale_factor=SCALE, **options)
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(rate, **options), initial_scale=SCALE)


def by_the_backend(f, variables):
    """The gradient of `f()` by the backend's own means."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = f()
        return tape.gradient(loss, [v.value for v in variables])
    if BACKEND == "torch":
        for v in variables:
            v.value.grad = None
        f().backward()
        return [v.value.grad for v in variables]
    import jax

    def pure(values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return f()

    return jax.grad(pure)([v.value for v in variables])


def by_a_tape(f, variables):
    with kustom.GradientTape() as tape:
        loss = f()
    return tape.gradient(loss, variables)


def by_value_and_grad(f, variables):
    return kustom.value_and_grad(f, variables=variables)()[1]


MEANS = [by_a_tape, by_value_and_grad, by_the_backend]


@pytest.mark.parametrize("eagerly", EAGERLY)
@pytest.mark.parametrize("means", MEANS)
@pytest.mark.parametrize("kind", ["dynamic", "factor"])
def test_a_scaled_loss_gives_the_right_update_and_a_forgotten_one_an_error(kind, means, eagerly):
    variable, optimizer = keras.Variable(1.0), scaling(kind)
    optimizer.build([variable])

    @kustom.function(run_eagerly=eagerly)
    def right(x):
        optimizer.apply(means(lambda: optimizer.scale_loss(x * variable), [variable]), [variable])

    @kustom.function(run_eagerly=eagerly)
    def wrong(x):
        optimizer.apply(means(lambda: x * variable, [variable]), [variable])

    for expected in (0.9, 0.8):
        right(1.0)
        assert number(variable.value) == pytest.approx(expected)
    with pytest.raises(LossScaleError, match=f"'{optimizer.name}' divides gradients by a scale.*{optimizer.name}.scale_loss"):
        wrong(1.0)
    assert number(variable.value) == pytest.approx(0.8)
    assert int(optimizer.iterations) == 2
    right(1.0)
    assert number(variable.value) == pytest.approx(0.7)


@pytest.mark.parametrize("eagerly", EAGERLY)
@pytest.mark.parametrize("means", MEANS)
def test_to_scale_and_differentiate_the_other_is_an_error(means, eagerly):
    variable, optimizer = keras.Variable(1.0), scaling()
    optimizer.build([variable])

    @kustom.function(run_eagerly=eagerly)
    def step(x):
        def f():
            loss = x * variable
            optimizer.scale_loss(loss)
            return loss

        optimizer.apply(means(f, [variable]), [variable])

    if means is not by_a_tape and BACKEND == "jax":
        # JAX differentiates all that it traces, whether or not anybody asks for it.
        step(1.0)
        return
    with pytest.raises(LossScaleError, match="it is not what was differentiated"):
        step(1.0)


@pytest.mark.parametrize("eagerly", EAGERLY)
def test_of_two_losses_the_one_that_was_not_scaled_is_found(eagerly):
    first, second, optimizer = keras.Variable(1.0), keras.Variable(1.0), scaling()
    optimizer.build([first, second])

    @kustom.function(run_eagerly=eagerly)
    def step(x, both):
        optimizer.apply(by_a_tape(lambda: optimizer.scale_loss(x * first), [first]), [first])
        optimizer.apply(by_a_tape(lambda: optimizer.scale_loss(x * second) if both else x * second, [second]), [second])

    step(1.0, True)
    assert number(second.value) == pytest.approx(0.9)
    with pytest.raises(LossScaleError):
        step(1.0, False)
    assert number(first.value) == pytest.approx(0.9)


@pytest.mark.parametrize("eagerly", EAGERLY)
def test_each_of_two_optimizers_is_asked_for_its_own(eagerly):
    v, w, scaled, other = keras.Variable(1.0), keras.Variable(1.0), scaling(), scaling()
    scaled.build([v])
    other.build([w])

    @kustom.function(run_eagerly=eagerly)
    def step(x, right):
        with kustom.GradientTape(persistent=True) as tape:
            loss = x * v * w
            for_v = scaled.scale_loss(loss)
            for_w = (other if right else scaled).scale_loss(loss)
        scaled.apply(tape.gradient(for_v, [v]), [v])
        other.apply(tape.gradient(for_w, [w]), [w])

    step(1.0, True)
    assert number(v.value) == number(w.value) == pytest.approx(0.9)
    with pytest.raises(LossScaleError):
        step(1.0, False)


@pytest.mark.parametrize("eagerly", EAGERLY)
def test_an_optimizer_without_a_scale_is_not_asked(eagerly):
    variable, optimizer = keras.Variable(1.0), keras.optimizers.SGD(0.1)

    @kustom.function(run_eagerly=eagerly)
    def step(x):
        optimizer.apply(by_a_tape(lambda: x * variable, [variable]), [variable])

    step(1.0)
    assert number(variable.value) == pytest.approx(0.9)


def accumulated(optimizer, variable, total):
    # The gradients of one step are applied by another.
    @kustom.function
    def add(x):
        total.assign_add(by_a_tape(lambda: optimizer.scale_loss(x * variable), [variable])[0])

    @kustom.function
    def update(x):
        optimizer.apply([total.value], [variable])
        total.assign(0.0)

    return lambda x: (add(x * 0.5), add(x * 0.5), update(x))


def inside_a_branch(optimizer, variable, total):
    @kustom.function
    def step(x):
        gradients = by_a_tape(lambda: optimizer.scale_loss(x * variable), [variable])
        ops.cond(x > 0, lambda: optimizer.apply(gradients, [variable]), lambda: None)

    return step


def changed_in_between(optimizer, variable, total):
    @kustom.function
    def step(x):
        [gradient] = by_a_tape(lambda: optimizer.scale_loss(2 * x * variable), [variable])
        optimizer.apply([gradient / 2], [variable])

    return step


def by_weights(optimizer, variable, total):
    # The scale stands in the weights of the target.
    @kustom.function
    def step(x):
        with kustom.GradientTape() as tape:
            loss = x * variable
        optimizer.apply(tape.gradient(loss, [variable], output_gradients=optimizer.scale_loss(ops.ones(()))), [variable])

    return step


def by_hand(optimizer, variable, total):
    @kustom.function
    def step(x):
        optimizer.apply(by_a_tape(lambda: x * variable * optimizer.dynamic_scale, [variable]), [variable])

    return step


def the_gradient_is_scaled(optimizer, variable, total):
    # As the report's program does.
    @kustom.function
    def step(x):
        optimizer.apply([optimizer.scale_loss(x * variable / variable)], [variable])

    return step


def twice_from_a_persistent_tape(optimizer, variable, total):
    @kustom.function
    def step(x):
        with kustom.GradientTape(persistent=True) as tape:
            scaled = optimizer.scale_loss(x * variable / 2)
        for _ in range(2):
            optimizer.apply(tape.gradient(scaled, [variable]), [variable])

    return step


def computed_by_another_function(optimizer, variable, total):
    gradients = kustom.function(lambda x: by_a_tape(lambda: optimizer.scale_loss(x * variable), [variable]))
    gradients(1.0)

    @kustom.function(run_eagerly=True)
    def step(x):
        optimizer.apply(gradients(x + 0 * ops.convert_to_tensor(variable)), [variable])

    return step


def scaled_by_its_own_rule(optimizer, variable, total):
    class Mine(keras.optimizers.SGD):
        def scale_loss(self, loss):
            return loss * self.loss_scale_factor

    mine = Mine(0.1, loss_scale_factor=8.0)

    @kustom.function
    def step(x):
        mine.apply(by_a_tape(lambda: mine.scale_loss(x * variable), [variable]), [variable])

    return step


RIGHT = [
    accumulated,
    inside_a_branch,
    changed_in_between,
    by_weights,
    by_hand,
    the_gradient_is_scaled,
    twice_from_a_persistent_tape,
    computed_by_another_function,
    scaled_by_its_own_rule,
]


@pytest.mark.parametrize("make", RIGHT)
def test_what_is_right_is_no_error(make):
    variable, optimizer, total = keras.Variable(1.0), scaling(), keras.Variable(0.0, trainable=False)
    optimizer.build([variable])
    step = make(optimizer, variable, total)
    for expected in (0.9, 0.8):
        step(1.0)
        assert number(variable.value) == pytest.approx(expected)


@pytest.mark.parametrize("eagerly", EAGERLY)
def test_numbers_and_second_derivatives_are_those_without_a_notice(eagerly):
    variable, optimizer = keras.Variable(2.0), scaling()
    optimizer.build([variable])

    @kustom.function(run_eagerly=eagerly)
    def step():
        with kustom.GradientTape() as outer:
            with kustom.GradientTape() as tape:
                scaled = optimizer.scale_loss(variable**3)
            [first] = tape.gradient(scaled, [variable])
            loss = first**2
        [second] = outer.gradient(loss, [variable])
        optimizer.apply([first], [variable])
        return scaled, first, second

    scaled, first, second = map(number, step())
    assert (scaled, first) == (8 * SCALE, 12 * SCALE)
    assert second == pytest.approx(2 * 12 * 12 * SCALE**2)
    assert number(variable.value) == pytest.approx(2 - 1.2)


@pytest.mark.parametrize("eagerly", EAGERLY)
def test_a_step_that_overflows_is_left_out_and_does_not_count(eagerly):
    variable = keras.Variable(1.0)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=SCALE, dynamic_growth_steps=2)
    optimizer.build([variable])

    @kustom.function(run_eagerly=eagerly)
    def step(x):
        optimizer.apply(by_a_tape(lambda: optimizer.scale_loss(x * variable), [variable]), [variable])

    seen = []
    for x in (np.inf, 1.0, 1.0, 1.0):
        step(np.float32(x))
        seen.append((round(number(variable.value), 4), number(optimizer.dynamic_scale.value), int(optimizer.iterations)))
    assert seen == [(1.0, 512.0, 0), (0.9, 512.0, 1), (0.8, 1024.0, 2), (0.7, 1024.0, 3)]


def test_outside_of_a_step_keras_is_as_it_was():
    before = [vars(keras.optimizers.Optimizer).get(name) for name in ("apply", "scale_loss")]
    plain = keras.optimizers.LossScaleOptimizer.apply
    test_a_scaled_loss_gives_the_right_update_and_a_forgotten_one_an_error("dynamic", by_a_tape, True)
    assert [vars(keras.optimizers.Optimizer).get(name) for name in ("apply", "scale_loss")] == before
    assert keras.optimizers.LossScaleOptimizer.apply is plain
    variable, optimizer = keras.Variable(1.0), scaling("factor")
    optimizer.apply([ops.convert_to_tensor(1.0)], [variable])
    assert number(variable.value) == pytest.approx(1 - 0.1 / SCALE)


def test_a_program_does_not_keep_its_optimizer_alive_by_the_notice():
    variable = keras.Variable(1.0)

    def run():
        optimizer = scaling()
        optimizer.build([variable])

        @kustom.function
        def step(x):
            optimizer.apply(by_a_tape(lambda: optimizer.scale_loss(x * variable), [variable]), [variable])

        step(1.0)
        return weakref.ref(optimizer)

    kept = run()
    gc.collect()
    assert kept() is None
