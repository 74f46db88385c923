"""The tape: `tf.GradientTape`'s reference documentation, behaviour by behaviour, on every backend."""

from __future__ import annotations

import gc
import sys
import threading
import warnings
import weakref

import keras
import numpy as np
import pytest
from arrays import array, close, tensor
from keras import ops

import kustom
from kustom import errors
from kustom.backends import keras as private
from kustom.gradients import tape as tape_module

BACKEND = keras.backend.backend()


def f(w1, w2):
    return 3 * w1**2 + 2 * w1 * w2


def compiled(function):
    """The backend's own compiler; torch has none that traces a tape."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    return function


@pytest.fixture
def pair():
    return keras.Variable(5.0), keras.Variable(3.0)


@pytest.fixture
def model():
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((3,)), *layers])


# Variables and tensors that are watched.


def test_trainable_variables_are_watched_by_themselves(pair):
    with kustom.GradientTape() as tape:
        z = f(*pair)
    close(tape.gradient(z, pair[0]), 36.0)


def test_several_sources_come_back_in_their_order(pair):
    with kustom.GradientTape() as tape:
        z = f(*pair)
    assert [float(g) for g in tape.gradient(z, list(pair))] == [36.0, 10.0]


def test_variables_that_are_not_trainable_are_not_watched():
    w = keras.Variable(2.0, trainable=False)
    with kustom.GradientTape() as tape:
        z = w * w
    assert tape.gradient(z, w) is None


def test_they_are_where_that_is_asked():
    w = keras.Variable(2.0, trainable=False)
    with kustom.GradientTape() as tape:
        tape.watch(w)
        z = w * w
    close(tape.gradient(z, w), 4.0)


def test_a_variable_that_was_frozen_is_not_watched():
    w = keras.Variable(2.0)
    w.trainable = False
    with kustom.GradientTape() as tape:
        z = w * w
    assert tape.gradient(z, w) is None
    w.trainable = True
    with kustom.GradientTape() as tape:
        z = w * w
    close(tape.gradient(z, w), 4.0)


def test_plain_tensors_are_not_watched(pair):
    c1, c2 = tensor(5.0), tensor(3.0)
    with kustom.GradientTape() as tape:
        z = f(*pair) + f(c1, c2)
    assert tape.gradient(z, [c1, c2]) == [None, None]


def test_they_are_where_that_is_asked_too():
    c1, c2 = tensor(5.0), tensor(3.0)
    with kustom.GradientTape() as tape:
        tape.watch(c1)
        tape.watch(c2)
        z = f(c1, c2)
    assert [float(g) for g in tape.gradient(z, [c1, c2])] == [36.0, 10.0]


def test_structures_are_watched():
    x = {"a": tensor(2.0), "b": [tensor(3.0), keras.Variable(4.0, trainable=False)]}
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = x["a"] * x["b"][0] * x["b"][1]
    gradients = tape.gradient(y, x)
    assert float(gradients["a"]) == 12.0
    assert [float(g) for g in gradients["b"]] == [8.0, 6.0]


def test_watch_accessed_variables_can_be_switched_off(pair):
    with kustom.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(pair[0])
        z = f(*pair)
    first, second = tape.gradient(z, list(pair))
    close(first, 36.0)
    assert second is None


def test_what_was_computed_before_it_was_watched_does_not_count():
    x = tensor(3.0)
    with kustom.GradientTape() as tape:
        before = x * x
        tape.watch(x)
        y = before + 2 * x
    close(tape.gradient(y, x), 2.0)


def test_watching_integers_is_passed_over():
    i, x = tensor(2, "int32"), tensor(3.0)
    with kustom.GradientTape() as tape:
        tape.watch([i, x])
        y = ops.cast(i, "float32") * x
    integer, floating = tape.gradient(y, [i, x])
    assert integer is None
    close(floating, 2.0)


def test_watching_what_is_no_tensor_is_refused():
    with (
        kustom.GradientTape() as tape,
        pytest.raises(errors.GradientError, match=r"not float 3\.0'?.*ops.convert_to_tensor|not float"),
    ):
        tape.watch(3.0)
    with kustom.GradientTape() as tape, pytest.raises(errors.GradientError, match="not str 'kernel'"):
        tape.watch("kernel")


def test_watching_outside_of_the_block_is_refused():
    tape = kustom.GradientTape()
    with pytest.raises(errors.TapeError, match="call it inside"):
        tape.watch(tensor(1.0))


def test_watched_variables_are_told_in_the_order_of_their_reading(pair):
    w1, w2 = pair
    with kustom.GradientTape() as tape:
        w2 * w1 * w2
    watched = tape.watched_variables()
    assert len(watched) == 2
    assert watched[0] is w2
    assert watched[1] is w1


def test_a_models_trainable_variables_are_watched(model):
    with kustom.GradientTape() as tape:
        model(tensor(np.ones((4, 3))), training=True)
    assert {id(v) for v in tape.watched_variables()} == {id(v) for v in model.trainable_variables}


# What may be asked, and what comes back.


def test_a_tape_gives_one_gradient(pair):
    with kustom.GradientTape() as tape:
        z = f(*pair)
    tape.gradient(z, pair[0])
    with pytest.raises(RuntimeError, match=r"gives one gradient.*persistent=True"):
        tape.gradient(z, pair[1])


def test_a_used_tape_cannot_be_entered_again(pair):
    with kustom.GradientTape() as tape:
        z = f(*pair)
    tape.gradient(z, pair[0])
    with pytest.raises(errors.TapeError, match="make another one"), tape:
        pass
    with pytest.raises(errors.TapeError, match="make another one"):
        tape.reset()


def test_a_persistent_tape_gives_many(pair):
    with kustom.GradientTape(persistent=True) as tape:
        z = f(*pair)
        y = z * z
    close(tape.gradient(z, pair[0]), 36.0)
    close(tape.gradient(z, pair[1]), 10.0)
    close(tape.gradient(y, pair[1]), 2100.0)


def test_the_gradient_may_be_asked_inside_the_block(pair):
    with kustom.GradientTape() as tape:
        z = f(*pair)
        gradient = tape.gradient(z, pair[0])
        with pytest.raises(errors.TapeError):
            tape.gradient(z, pair[0])
    close(gradient, 36.0)


def test_several_targets_are_summed(pair):
    with kustom.GradientTape() as tape:
        z, y = f(*pair), pair[0] * 7
    close(tape.gradient([z, y], pair[0]), 43.0)


def test_targets_may_be_a_structure(pair):
    with kustom.GradientTape() as tape:
        z = {"a": pair[0] * 2, "b": (pair[1] * 3, pair[0] * pair[1])}
    assert [float(g) for g in tape.gradient(z, list(pair))] == [5.0, 8.0]


def test_a_target_that_is_no_scalar_counts_as_its_sum():
    x = tensor([1.0, 2.0, 3.0])
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = x * x
    close(tape.gradient(y, x), [2.0, 4.0, 6.0])


def test_output_gradients_weigh_the_targets():
    x = tensor([1.0, 2.0, 3.0])
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = x * x
    close(tape.gradient(y, x, output_gradients=tensor([1.0, 0.0, 10.0])), [2.0, 0.0, 60.0])


def test_output_gradients_of_several_targets_may_be_left_out_in_part():
    x = tensor([1.0, 2.0])
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y, z = x * x, 3 * x
    close(tape.gradient([y, z], x, output_gradients=[None, tensor([2.0, 0.0])]), [8.0, 4.0])


def test_output_gradients_of_another_shape_or_number_are_refused():
    x = tensor([1.0, 2.0])
    with kustom.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = x * x
    with pytest.raises(errors.GradientError, match=r"shape \(3,\) for a target of the shape \(2,\)"):
        tape.gradient(y, x, output_gradients=tensor([1.0, 1.0, 1.0]))
    with pytest.raises(errors.GradientError, match="2 entries for 1 targets"):
        tape.gradient(y, x, output_gradients=[tensor([1.0, 1.0])] * 2)


def test_a_target_that_is_a_source_has_gradient_one():
    x = tensor([2.0, 3.0])
    with kustom.GradientTape() as tape:
        tape.watch(x)
    close(tape.gradient(x, x), [1.0, 1.0])


def test_a_variable_may_be_the_target(pair):
    with kustom.GradientTape(persistent=True) as tape:
        z = pair[0] * 2
    close(tape.gradient(pair[0], pair[0]), 1.0)
    close(tape.gradient([z, pair[0]], pair[0]), 3.0)


def test_results_inside_the_block_are_sources():
    x = tensor(3.0)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = x * x
        z = y * y
    close(tape.gradient(z, y), 18.0)


def test_results_and_their_ancestors_are_sources_together():
    x = tensor(3.0)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = x * x
        z = y * y + x
    first, second = tape.gradient(z, [y, x])
    close(first, 18.0)
    close(second, 109.0)


def test_the_same_source_twice_has_its_gradient_twice(pair):
    with kustom.GradientTape() as tape:
        z = f(*pair)
    assert [float(g) for g in tape.gradient(z, [pair[0], pair[0]])] == [36.0, 36.0]


def test_a_source_comes_back_in_its_structure(pair):
    with kustom.GradientTape(persistent=True) as tape:
        z = f(*pair)
    assert isinstance(tape.gradient(z, tuple(pair)), tuple)
    assert isinstance(tape.gradient(z, [pair[0]]), list)
    assert {*tape.gradient(z, {"a": pair[0], "b": pair[1]})} == {"a", "b"}
    assert float(tape.gradient(z, [[pair[0]], {"b": (pair[1],)}])[1]["b"][0]) == 10.0
    assert tape.gradient(z, []) == []


def test_an_unconnected_source_is_none(pair):
    with kustom.GradientTape() as tape:
        z = pair[0] * 2
        pair[1] * 3
    assert tape.gradient(z, pair[1]) is None


def test_an_unconnected_source_is_zeros_where_that_is_asked():
    w1, w2 = keras.Variable(5.0), keras.Variable(np.ones((2, 3), "float32"))
    with kustom.GradientTape() as tape:
        z = w1 * 2
        w2 * 3
    first, second = tape.gradient(z, [w1, w2], unconnected_gradients="zero")
    close(first, 2.0)
    close(second, np.zeros((2, 3)))
    assert private.standardize_dtype(second.dtype) == "float32"


def test_unconnected_gradients_has_two_words(pair):
    with kustom.GradientTape() as tape:
        z = f(*pair)
    with pytest.raises(errors.GradientError, match="'none' or 'zero', not 'zeros'"):
        tape.gradient(z, pair[0], unconnected_gradients="zeros")


def test_a_target_outside_of_the_recording_is_unconnected(pair):
    z = f(*pair)
    with kustom.GradientTape() as tape:
        pair[0] * 2
    assert tape.gradient(z, pair[0]) is None


def test_a_target_of_integers_has_no_gradient():
    x = tensor([1.0, 3.0])
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = ops.argmax(x)
    assert tape.gradient(y, x) is None


def test_what_is_no_tensor_is_refused_as_target_and_source(pair):
    with kustom.GradientTape(persistent=True) as tape:
        z = f(*pair)
    with pytest.raises(errors.GradientError, match="not float"):
        tape.gradient(3.0, pair[0])
    with pytest.raises(errors.GradientError, match="not str 'w'"):
        tape.gradient(z, "w")
    with pytest.raises(errors.GradientError, match="not ndarray"):
        tape.gradient(z, np.ones(3))


def test_an_argument_that_is_refused_uses_nothing_up(pair):
    with kustom.GradientTape() as tape:
        z = f(*pair)
    with pytest.raises(errors.GradientError):
        tape.gradient(z, "w")
    close(tape.gradient(z, pair[0]), 36.0)


def test_a_gradient_has_the_sources_shape_and_dtype():
    w = keras.Variable(np.ones((3, 2), "float32"))
    with kustom.GradientTape() as tape:
        z = ops.sum(ops.matmul(tensor(np.ones((4, 3))), w))
    gradient = tape.gradient(z, w)
    assert tuple(gradient.shape) == (3, 2)
    assert private.standardize_dtype(gradient.dtype) == "float32"


# Recording and not recording.


def test_what_is_computed_after_the_block_does_not_count():
    x = tensor(3.0)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = x * x
    z = y * 2
    assert tape.gradient(z, x) is None


def test_a_dependency_made_before_the_block_does_not_count():
    w = keras.Variable(3.0)
    before = w * w
    with kustom.GradientTape() as tape:
        y = before * 2 + w
    close(tape.gradient(y, w), 1.0)


def test_a_result_made_before_the_block_can_be_watched():
    w = keras.Variable(3.0)
    before = w * w
    with kustom.GradientTape() as tape:
        tape.watch(before)
        y = before * before
    close(tape.gradient(y, before), 18.0)


def test_the_gradient_ends_where_the_block_began_even_if_it_is_watched():
    w = keras.Variable(3.0)
    before = w * w
    with kustom.GradientTape() as tape:
        tape.watch(before)
        y = before * before + w
    first, second = tape.gradient(y, [before, w])
    close(first, 18.0)
    close(second, 1.0)


def test_recording_can_be_stopped():
    x = tensor(3.0)
    with kustom.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = x * x
        with tape.stop_recording():
            z = y * 2
        v = z * y
    close(tape.gradient(y, x), 6.0)
    assert tape.gradient(z, x) is None
    close(tape.gradient(v, x), 18.0 * 6)


def test_stopping_one_tape_stops_no_other():
    x = tensor(3.0)
    with kustom.GradientTape() as outer:
        outer.watch(x)
        with kustom.GradientTape() as inner:
            inner.watch(x)
            with inner.stop_recording():
                y = x * x
    assert inner.gradient(y, x) is None
    close(outer.gradient(y, x), 6.0)


def test_variables_read_while_it_is_stopped_are_not_watched(pair):
    with kustom.GradientTape() as tape, tape.stop_recording():
        pair[0] * 2
    assert tape.watched_variables() == ()


def test_stopping_outside_of_the_block_is_refused():
    tape = kustom.GradientTape()
    with pytest.raises(errors.TapeError, match="is not recording"), tape.stop_recording():
        pass


def test_reset_forgets_what_was_recorded(pair):
    with kustom.GradientTape() as tape:
        z = f(*pair)
        tape.reset()
        y = pair[0] * 2
    assert [None if g is None else float(g) for g in tape.gradient([z, y], list(pair))] == [2.0, None]


def test_reset_forgets_what_was_watched():
    x = tensor(3.0)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        tape.reset()
        y = x * x
    assert tape.gradient(y, x) is None


def test_a_tape_can_be_entered_again_and_goes_on(pair):
    tape = kustom.GradientTape()
    with tape:
        z = pair[0] * 2
    with tape:
        y = z * pair[1]
    assert [float(g) for g in tape.gradient(y, list(pair))] == [6.0, 10.0]


def test_a_tape_that_records_cannot_be_entered():
    with kustom.GradientTape() as tape, pytest.raises(errors.TapeError, match="recording already"), tape:
        pass


def test_an_exception_inside_leaves_nothing_behind():
    x = tensor(3.0)
    tape, y = kustom.GradientTape(), x

    def fail():
        nonlocal y
        with tape:
            tape.watch(x)
            y = x * x
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not private.watching.readers_here.all
    close(tape.gradient(y, x), 6.0)
    with kustom.GradientTape() as tape:
        z = x * x
    assert tape.gradient(z, x) is None


def test_a_variables_property_is_keras_own_again_after_the_block():
    before = vars(keras.Variable).get("value")
    with kustom.GradientTape():
        assert vars(keras.Variable)["value"] is not before
    assert vars(keras.Variable).get("value") is before


def test_a_tapes_repr_says_its_state(pair):
    tape = kustom.GradientTape(persistent=True)
    assert repr(tape) == "<kustom.GradientTape, persistent, closed>"
    with tape:
        assert repr(tape) == "<kustom.GradientTape, persistent, recording>"
    with kustom.GradientTape() as tape:
        z = f(*pair)
    tape.gradient(z, pair[0])
    assert repr(tape) == "<kustom.GradientTape, used>"


# Values.


def test_values_inside_are_concrete(pair):
    with kustom.GradientTape() as tape:
        z = pair[0] * 2
        if float(ops.stop_gradient(z)) > 3:
            z = z * 100
        steps = 0
        while float(ops.stop_gradient(z)) > 1:
            z, steps = z / 10, steps + 1
    assert steps == 3
    close(tape.gradient(z, pair[0]), 0.2)


def test_values_stay_concrete_afterwards(pair):
    with kustom.GradientTape() as tape:
        z = f(*pair)
    tape.gradient(z, pair[0])
    assert array(ops.stop_gradient(z)) == 105.0
    assert array(z * 2) == 210.0


def test_values_count_as_they_were_read(pair):
    with kustom.GradientTape(persistent=True) as tape:
        z = f(*pair)
    first = array(tape.gradient(z, pair[0]))
    pair[0].assign(100.0)
    pair[1].assign(-7.0)
    assert array(tape.gradient(z, pair[0])) == first == 36.0


def test_a_persistent_tape_gives_the_same_after_an_optimizer_step(model):
    x, y = tensor(np.ones((4, 3))), tensor(np.zeros((4, 1)))
    optimizer = keras.optimizers.SGD(1.0)
    with kustom.GradientTape(persistent=True) as tape:
        loss = ops.mean((model(x, training=True) - y) ** 2)
    first = [array(g) for g in tape.gradient(loss, model.trainable_variables)]
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    for before, after in zip(first, tape.gradient(loss, model.trainable_variables), strict=True):
        np.testing.assert_array_equal(before, array(after))


def test_two_tapes_at_once_may_have_their_steps_between(pair):
    # As a GAN's training does: the second gradient is that of the values that were read.
    w, v = pair
    with kustom.GradientTape() as one, kustom.GradientTape() as other:
        shared = w * v
        first, second = shared * 2, shared * shared
    g = one.gradient(first, w)
    w.assign_sub(g)
    v.assign(100.0)
    close(other.gradient(second, v), 2 * 15.0 * 5.0)


def test_an_assignment_is_not_differentiated():
    w, x = keras.Variable(2.0), tensor(3.0)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        w.assign(x * x)
        y = w * x
    first, second = tape.gradient(y, [w, x])
    close(first, 3.0)
    close(second, 9.0)


def test_every_read_of_a_variable_counts():
    w = keras.Variable(2.0)
    with kustom.GradientTape(persistent=True) as tape:
        y = w * w
        w.assign(5.0)
        z = y + w * w
    close(tape.gradient(z, w), 4.0 + 10.0)


@pytest.mark.skipif(BACKEND != "torch", reason="TensorFlow and JAX keep what was read")
def test_on_torch_a_lost_value_is_an_error_that_says_so():
    w = keras.Variable(2.0)
    with kustom.GradientTape() as tape:
        y = w * w
    w.assign(5.0)
    with pytest.raises(errors.TapeError, match="persistent=True"):
        tape.gradient(y, w)


def test_the_users_tensors_are_left_as_they_were():
    x = tensor([1.0, 2.0])
    before = getattr(x, "requires_grad", None)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = ops.sum(x * x)
    assert getattr(x, "requires_grad", None) == before
    tape.gradient(y, x)
    assert getattr(x, "requires_grad", None) == before
    assert getattr(x, "grad", None) is None


def test_gradients_are_plain_tensors(pair):
    with kustom.GradientTape() as tape:
        z = f(*pair)
    gradient = tape.gradient(z, pair[0])
    assert np.asarray(gradient) == 36.0
    assert not getattr(gradient, "requires_grad", False)


# Higher orders.


def test_tapes_nest_to_third_order():
    x = tensor([1.0, 2.0])
    with kustom.GradientTape() as third:
        third.watch(x)
        with kustom.GradientTape() as second:
            second.watch(x)
            with kustom.GradientTape() as first:
                first.watch(x)
                y = ops.sin(x) * x**3
            g = first.gradient(y, x)
        h = second.gradient(g, x)
    k = third.gradient(h, x)
    v = array(x)
    close(k, 6 * np.sin(v) + 18 * v * np.cos(v) - 9 * v**2 * np.sin(v) - v**3 * np.cos(v), rtol=1e-4)


def test_second_order_by_variables(pair):
    with kustom.GradientTape() as outer:
        with kustom.GradientTape() as inner:
            z = pair[0] ** 3 * pair[1]
        g = inner.gradient(z, pair[0])
    assert [float(h) for h in outer.gradient(g, list(pair))] == [90.0, 75.0]


def test_one_persistent_tape_gives_second_order_inside_its_block():
    x = tensor([1.0, 2.0])
    with kustom.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = ops.sin(x)
        g = tape.gradient(y, x)
    close(tape.gradient(g, x), -np.sin(array(x)))


def test_a_derivative_that_the_backend_has_not_is_an_error_and_no_zero():
    def slope(x):
        return kustom.grad(lambda x: ops.sum(ops.hard_sigmoid(x) ** 2))(x)

    x = tensor([0.3])
    if BACKEND == "torch":
        with pytest.raises(RuntimeError, match="hardsigmoid_backward is not implemented"):
            kustom.grad(lambda x: ops.sum(slope(x)))(x)
    else:
        close(kustom.grad(lambda x: ops.sum(slope(x)))(x), [2 / 36])
    # Computed before the recording it is a number like any other.
    before = slope(x)
    close(kustom.grad(lambda y: ops.sum(y * before))(x), array(before))


def test_the_hessians_of_the_notebooks_function(pair):
    with kustom.GradientTape(persistent=True) as outer:
        with kustom.GradientTape() as inner:
            z = f(*pair)
        gradients = inner.gradient(z, list(pair))
    rows = [outer.gradient(g, list(pair)) for g in gradients]
    assert [[None if h is None else float(h) for h in row] for row in rows] == [[6.0, 2.0], [2.0, None]]


def test_a_gradient_penalty_reaches_the_weights(model):
    x = tensor(np.random.default_rng(0).normal(size=(4, 3)))
    with kustom.GradientTape() as outer:
        with kustom.GradientTape() as inner:
            inner.watch(x)
            y = ops.sum(model(x, training=False))
        penalty = ops.mean(ops.square(inner.gradient(y, x)))
    gradients = outer.gradient(penalty, model.trainable_variables)
    # The slope does not depend on the last bias, nor on the one of a normalization that only a linear layer follows.
    assert [g is None for g in gradients] == [False, False, False, True, False, True]
    assert all(np.max(np.abs(array(g))) > 0 for g in gradients if g is not None)


# Jacobians.


def test_a_jacobian_has_targets_and_then_sources_axes():
    x = tensor([[1.0, 2.0], [3.0, 4.0]])
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = ops.sum(x * x, axis=0)
    jacobian = tape.jacobian(y, x)
    assert tuple(jacobian.shape) == (2, 2, 2)
    close(jacobian, [[[2.0, 0.0], [6.0, 0.0]], [[0.0, 4.0], [0.0, 8.0]]])


def test_a_jacobian_of_several_sources_by_structure():
    x, w = tensor([1.0, 2.0]), keras.Variable(3.0)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = x * w
    jacobian = tape.jacobian(y, {"x": x, "w": w})
    close(jacobian["x"], [[3.0, 0.0], [0.0, 3.0]])
    close(jacobian["w"], [1.0, 2.0])


def test_a_jacobian_of_what_is_unconnected():
    x, z = tensor([1.0, 2.0]), tensor([1.0, 2.0, 3.0])
    with kustom.GradientTape(persistent=True) as tape:
        tape.watch([x, z])
        y = x * x
    assert tape.jacobian(y, z) is None
    close(tape.jacobian(y, z, unconnected_gradients="zero"), np.zeros((2, 3)))


def test_a_jacobian_of_a_scalar_is_the_gradient():
    x = tensor([1.0, 2.0])
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = ops.sum(x * x)
    close(tape.jacobian(y, x), [2.0, 4.0])


def test_a_jacobian_uses_the_tape_up():
    x = tensor([1.0, 2.0])
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = x * x
    tape.jacobian(y, x)
    with pytest.raises(errors.TapeError):
        tape.gradient(y, x)


def test_jacobians_nest_into_a_hessian():
    x = tensor([1.0, 2.0])
    with kustom.GradientTape() as outer:
        outer.watch(x)
        with kustom.GradientTape() as inner:
            inner.watch(x)
            y = x[0] ** 2 * x[1]
        g = inner.gradient(y, x)
    close(outer.jacobian(g, x), [[4.0, 2.0], [2.0, 0.0]])


def test_a_large_jacobian():
    x = tensor(np.arange(100.0))
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = x * x
    close(tape.jacobian(y, x), np.diag(2 * np.arange(100.0)))


def test_a_batch_jacobian_has_one_batch_axis():
    x = tensor(np.random.default_rng(0).normal(size=(4, 3)))
    w = tensor(np.random.default_rng(1).normal(size=(3, 2)))
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = ops.tanh(ops.matmul(x, w))
    jacobian = tape.batch_jacobian(y, x)
    slope = 1 - np.tanh(array(x) @ array(w)) ** 2
    close(jacobian, slope[:, :, None] * array(w).T[None], rtol=1e-4)


def test_a_batch_jacobian_of_what_is_unconnected():
    x, z = tensor(np.ones((4, 3))), tensor(np.ones((4, 2)))
    with kustom.GradientTape(persistent=True) as tape:
        tape.watch([x, z])
        y = x * x
    assert tape.batch_jacobian(y, z) is None
    close(tape.batch_jacobian(y, z, unconnected_gradients="zero"), np.zeros((4, 3, 2)))


def test_a_batch_jacobian_of_other_shapes_is_refused():
    x = tensor(np.ones((4, 3)))
    with kustom.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = x[:2] * 2
        z = ops.sum(x)
    with pytest.raises(errors.GradientError, match=r"\(2, 3\) and a source of the shape \(4, 3\)"):
        tape.batch_jacobian(y, x)
    with pytest.raises(errors.GradientError, match="first axis of both is the batch"):
        tape.batch_jacobian(z, x)


# Inside other code.


def test_stop_gradient_stops_it(pair):
    with kustom.GradientTape() as tape:
        z = 3 * pair[0] ** 2 + ops.stop_gradient(2 * pair[0] * pair[1])
    first, second = tape.gradient(z, list(pair))
    close(first, 30.0)
    assert second is None


def test_an_embeddings_gradient_takes_plain_arithmetic():
    layer = keras.layers.Embedding(5, 2)
    ids = tensor([[1, 3], [1, 0]], "int32")
    layer(ids)
    with kustom.GradientTape() as tape:
        y = ops.sum(layer(ids) * 2)
    gradient = tape.gradient(y, layer.trainable_variables[0])
    expected = np.zeros((5, 2))
    expected[[0, 1, 3]] = [[2, 2], [4, 4], [2, 2]]
    close(gradient, expected)
    close(gradient * 0.5 + gradient, expected * 1.5)
    close(ops.sqrt(ops.sum(ops.square(gradient))), np.sqrt(np.sum(expected**2)))


def test_mixed_precision_gives_gradients_in_the_variables_dtype():
    layer = keras.layers.Dense(2, dtype="mixed_float16")
    x = tensor(np.ones((4, 3)))
    layer(x)
    with kustom.GradientTape() as tape:
        y = ops.sum(ops.cast(layer(x), "float32") ** 2)
    kernel, bias = tape.gradient(y, layer.trainable_variables)
    assert private.standardize_dtype(kernel.dtype) == private.standardize_dtype(bias.dtype) == "float32"
    assert np.max(np.abs(array(kernel))) > 0


def test_float64_stays_float64():
    scope = __import__("jax").enable_x64(True) if BACKEND == "jax" else warnings.catch_warnings()
    with scope:
        x = ops.convert_to_tensor(np.array([1.0, 2.0]), dtype="float64")
        with kustom.GradientTape() as tape:
            tape.watch(x)
            y = x * x * x
        gradient = tape.gradient(y, x)
        assert private.standardize_dtype(gradient.dtype) == "float64"
        close(gradient, [3.0, 12.0], rtol=1e-12)


@pytest.mark.skipif(BACKEND == "torch", reason="torch has no compiler that traces a tape")
def test_a_tape_inside_a_compiled_function():
    def step(x, y):
        with kustom.GradientTape() as tape:
            tape.watch([x, y])
            z = ops.sum(x * x * y)
        return tape.gradient(z, [x, y])

    x, y = tensor([1.0, 2.0]), tensor([3.0, 4.0])
    for one, other in zip(compiled(step)(x, y), step(x, y), strict=True):
        close(one, array(other))


@pytest.mark.skipif(BACKEND == "torch", reason="torch has no compiler that traces a tape")
def test_nested_tapes_inside_a_compiled_function():
    def second(x):
        with kustom.GradientTape() as outer:
            outer.watch(x)
            with kustom.GradientTape() as inner:
                inner.watch(x)
                y = ops.sum(x**4)
            g = inner.gradient(y, x)
        return outer.gradient(g, x)

    close(compiled(second)(tensor([1.0, 2.0])), [12.0, 48.0])


@pytest.mark.skipif(BACKEND == "torch", reason="torch has no compiler that traces a tape")
def test_a_compiled_function_inside_a_tape(pair):
    w = pair[0]

    def g(x):
        return x * x * w.value

    x = tensor(3.0)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = compiled(g)(x) * 2
    first, second = tape.gradient(y, [x, w])
    close(first, 60.0)
    close(second, 18.0)


@pytest.mark.skipif(BACKEND == "torch", reason="autograd cannot be asked inside torch.vmap; the functional forms work there")
def test_a_tape_inside_a_vectorized_map():
    def slope(row):
        with kustom.GradientTape() as tape:
            tape.watch(row)
            y = ops.sum(ops.sin(row))
        return tape.gradient(y, row)

    x = tensor(np.random.default_rng(0).normal(size=(4, 3)))
    close(ops.vectorized_map(slope, x), np.cos(array(x)), rtol=1e-4)


@pytest.mark.skipif(BACKEND != "torch", reason="only torch's vmap refuses a tape")
def test_a_tape_inside_torch_vmap_is_refused_with_the_way_that_works():
    with pytest.raises(errors.TapeError, match=r"ops.vectorized_map\(kustom.grad"):
        ops.vectorized_map(lambda row: kustom.GradientTape().__enter__(), tensor(np.ones((4, 3))))


def test_a_vectorized_map_inside_a_tape():
    x = tensor(np.random.default_rng(0).normal(size=(4, 3)))
    w = keras.Variable(2.0)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = ops.sum(ops.vectorized_map(lambda row: row * row * w.value, x))
    first, second = tape.gradient(y, [x, w])
    close(first, 4 * array(x), rtol=1e-4)
    close(second, np.sum(array(x) ** 2), rtol=1e-4)


def test_a_scan_inside_a_tape():
    w, xs = keras.Variable(2.0), tensor([1.0, 2.0, 3.0])
    with kustom.GradientTape() as tape:
        tape.watch(xs)
        last, _ = ops.scan(lambda carry, x: (carry * w.value + x, carry), tensor(0.0), xs)
    first, second = tape.gradient(last, [w, xs])
    close(first, 2 * 2.0 * 1.0 + 2.0)
    close(second, [4.0, 2.0, 1.0])


def test_a_cond_inside_a_tape():
    w, x = keras.Variable(2.0), tensor(3.0)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = ops.cond(ops.stop_gradient(x) > 0, lambda: x * w.value, lambda: x - w.value)
    assert [float(g) for g in tape.gradient(y, [x, w])] == [2.0, 3.0]


def test_a_while_loop_can_run_inside_a_tape():
    x = tensor(3.0)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        count = ops.while_loop(lambda i: i < 5, lambda i: (i + 1,), (0,))[0]
        y = x * ops.cast(count, "float32")
    close(tape.gradient(y, x), 5.0)


@pytest.mark.skipif(BACKEND == "torch", reason="torch has no compiler that traces a tape")
def test_a_tape_inside_a_scan():
    def body(carry, x):
        with kustom.GradientTape() as tape:
            tape.watch(x)
            y = x * x * carry
        return carry + 1, tape.gradient(y, x)

    _, slopes = ops.scan(body, tensor(1.0), tensor([1.0, 2.0, 3.0]))
    close(slopes, [2.0, 8.0, 18.0])


@pytest.mark.skipif(BACKEND != "jax", reason="of jax.checkpoint")
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "compiled"])
def test_nested_tapes_around_a_checkpoint(jitted):
    import jax
    import jax.numpy as jnp

    start, xs = jnp.ones(3), jnp.arange(12.0).reshape(4, 3) / 10
    rolled = jax.checkpoint(lambda w: jax.lax.scan(lambda h, x: (jnp.tanh(x + h @ w), h), start, xs))

    def penalty(w):
        with kustom.GradientTape() as inner:
            inner.watch(w)
            loss = (rolled(w)[1] ** 2).sum()
        return (inner.gradient(loss, w) ** 2).sum()

    def by_tape(w):
        with kustom.GradientTape() as outer:
            outer.watch(w)
            value = penalty(w)
        return outer.gradient(value, w)

    def by_jax(w):
        return jax.grad(lambda w: (jax.grad(lambda w: (rolled(w)[1] ** 2).sum())(w) ** 2).sum())(w)

    w = jnp.eye(3) * 0.5
    close((jax.jit(by_tape) if jitted else by_tape)(w), by_jax(w), rtol=1e-4)


def test_a_recurrent_layer():
    layer = keras.layers.LSTM(3)
    x = tensor(np.random.default_rng(0).normal(size=(2, 5, 4)))
    layer(x)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = ops.sum(layer(x))
    gradients = tape.gradient(y, [x, *layer.trainable_variables])
    assert all(g is not None and np.all(np.isfinite(array(g))) for g in gradients)


def test_state_is_updated_once(model):
    counter = keras.metrics.Mean()
    x = tensor(np.random.default_rng(0).normal(size=(8, 3)))
    before = array(model.layers[1].moving_mean).copy()
    with kustom.GradientTape() as tape:
        loss = ops.mean(model(x, training=True) ** 2)
        counter.update_state(ops.stop_gradient(loss))
    tape.gradient(loss, model.trainable_variables)
    hidden = np.tanh(array(x) @ array(model.layers[0].kernel) + array(model.layers[0].bias))
    close(model.layers[1].moving_mean, 0.99 * before + 0.01 * hidden.mean(axis=0), rtol=1e-4)
    assert float(counter.count) == 1.0


def test_added_losses_are_differentiated():
    layer = keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.5), use_bias=False)
    x = tensor(np.ones((4, 3)))
    layer(x)
    with kustom.GradientTape() as tape:
        layer(x)
        loss = sum(layer.losses)
    close(tape.gradient(loss, layer.kernel), array(layer.kernel), rtol=1e-5)


def test_dropout_draws_once_inside_and_outside_alike():
    layer = keras.layers.Dropout(0.5, seed=3)
    x = tensor(np.ones((4, 50)))
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    np.testing.assert_array_equal(array(tape.gradient(y, x)), array(ops.stop_gradient(y)))


def test_a_layer_that_is_built_inside():
    layer = keras.layers.Dense(2)
    x = tensor(np.ones((4, 3)))
    with kustom.GradientTape() as tape:
        y = ops.sum(layer(x))
    kernel, bias = tape.gradient(y, layer.trainable_variables)
    close(kernel, np.full((3, 2), 4.0))
    close(bias, [4.0, 4.0])


def test_a_seeded_draw_inside():
    w = keras.Variable(2.0)
    with kustom.GradientTape() as tape:
        noise = keras.random.normal((3,), seed=1)
        y = ops.sum(noise * w)
    close(tape.gradient(y, w), np.sum(array(noise)), rtol=1e-5)


def test_an_optimizer_applies_a_tapes_gradients(model):
    x, y = tensor(np.random.default_rng(0).normal(size=(32, 3))), tensor(np.ones((32, 1)))
    optimizer = keras.optimizers.Adam(0.05)
    losses = []
    for _ in range(20):
        with kustom.GradientTape() as tape:
            loss = ops.mean((model(x, training=True) - y) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        losses.append(array(ops.stop_gradient(loss)))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="native variables are TensorFlow's")
def test_tensorflows_own_variables():
    import tensorflow as tf

    w1, w2 = tf.Variable(5.0), tf.Variable(3.0)
    with kustom.GradientTape() as tape:
        z = f(w1, w2)
    assert [float(g) for g in tape.gradient(z, [w1, w2])] == [36.0, 10.0]
    assert tape.gradient is not None


# Inside a model, wherever it may be called.


class Force(keras.Model):
    """Minus the gradient of an energy by its input."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = keras.layers.Dense(16, "tanh"), keras.layers.Dense(1, use_bias=False)

    def call(self, x):
        with kustom.GradientTape() as tape:
            tape.watch(x)
            energy = self.out(self.hidden(x))
        return -tape.gradient(energy, x)


def _force_data():
    x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    return x, -2 * x


def test_inside_call_under_fit_evaluate_and_predict():
    x, y = _force_data()
    model = Force()
    model.compile(keras.optimizers.Adam(0.02), "mse")
    losses = model.fit(x, y, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert model.evaluate(x, y, verbose=0) < losses[0]
    assert model.predict(x, verbose=0).shape == (64, 3)
    close(model.predict(x, verbose=0), array(ops.stop_gradient(model(ops.convert_to_tensor(x)))), rtol=1e-4, atol=1e-5)


def test_inside_call_in_keras_shape_inference():
    model = Force()
    outputs = model(keras.KerasTensor((None, 3)))
    assert tuple(outputs.shape) == (None, 3)
    inputs = keras.Input((3,))
    functional = keras.Model(inputs, Force()(inputs))
    assert functional.predict(np.ones((4, 3), "float32"), verbose=0).shape == (4, 3)


def test_a_gradient_by_weights_inside_call_in_shape_inference_and_fit():
    class Sharpness(keras.layers.Layer):
        """Adds the norm of the loss's gradient by its own kernel to the losses."""

        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 1))

        def call(self, x):
            with kustom.GradientTape() as tape:
                y = ops.matmul(x, self.kernel)
                loss = ops.mean(y**2)
            self.add_loss(0.1 * ops.sum(tape.gradient(loss, self.kernel) ** 2))
            return y

    inputs = keras.Input((3,))
    model = keras.Model(inputs, Sharpness()(inputs))
    model.compile(keras.optimizers.SGD(0.05), "mse")
    x, _ = _force_data()
    history = model.fit(x, x[:, :1], epochs=3, verbose=0).history["loss"]
    assert np.all(np.isfinite(history))
    assert history[-1] < history[0]


# Memory, and others.


def test_a_loop_of_tapes_does_not_grow():
    w = keras.Variable(np.ones(1000, "float32"))

    def once():
        with kustom.GradientTape() as tape:
            y = ops.sum(w * w)
        return tape.gradient(y, w)

    for _ in range(50):
        once()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(300):
        once()
    gc.collect()
    assert len(gc.get_objects()) - before < 300


@pytest.mark.slow
def test_a_loop_of_ten_thousand_tapes_does_not_grow():
    w = keras.Variable(np.ones(1000, "float32"))
    gc.collect()
    before = None
    for i in range(10_000):
        with kustom.GradientTape() as tape:
            y = ops.sum(w * w)
        tape.gradient(y, w)
        if i == 1000:
            gc.collect()
            before = len(gc.get_objects())
    gc.collect()
    assert len(gc.get_objects()) - before < 1000


def test_a_used_tape_holds_nothing():
    x = tensor(np.ones(1000))
    if BACKEND == "tensorflow":
        pytest.skip("TensorFlow's tape is TensorFlow's")
    with kustom.GradientTape() as tape:
        tape.watch(x)
        middle = ops.exp(x)
        y = ops.sum(middle * middle)
    gone = weakref.ref(middle)
    tape.gradient(y, x)
    del middle, y
    gc.collect()
    assert gone() is None


def test_two_threads_do_not_see_one_another():
    w = keras.Variable(3.0)
    ready, go = threading.Event(), threading.Event()
    seen = {}

    def other():
        with kustom.GradientTape() as tape:
            y = w * w * w
            ready.set()
            go.wait(10)
        seen["watched"] = len(tape.watched_variables())
        seen["gradient"] = array(tape.gradient(y, w))

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait(10)
    with kustom.GradientTape() as tape:
        z = w * 2
        go.set()
        thread.join(10)
    assert seen["gradient"] == 27.0
    assert seen["watched"] == 1
    close(tape.gradient(z, w), 2.0)


def test_a_thread_without_a_tape_is_not_recorded():
    v = keras.Variable(3.0)

    def work():
        v * v

    with kustom.GradientTape() as tape:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
    assert tape.watched_variables() == ()


def test_a_sum_for_a_loss_is_warned_of_once(model, monkeypatch):
    monkeypatch.setattr(tape_module, "_warned", False)
    x = tensor(np.ones((4, 3)))

    def ask():
        with kustom.GradientTape() as tape:
            loss = model(x, training=True)
        return tape.gradient(loss, model.trainable_variables)

    with pytest.warns(errors.GradientWarning, match=r"\(4, 1\): the gradient is that of the sum.*ops.mean\(loss\)") as caught:
        ask()
    assert caught[0].filename == __file__
    ask()


def test_frames_of_ours_are_hidden(pair):
    with kustom.GradientTape() as tape:
        z = f(*pair)
    with pytest.raises(errors.GradientError) as caught:
        tape.gradient(z, "w")
    assert not any("gradients/tape.py" in str(entry.path) for entry in caught.traceback)
    assert sys.modules["kustom.gradients.tape"] is tape_module


def test_a_state_that_is_assigned_to_and_read_again_hands_nothing_on():
    state, x = keras.Variable(0.0, trainable=False), tensor(3.0)

    def f(x):
        state.assign(x * 2)
        return state * x

    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = f(x)
    close(tape.gradient(y, x), 6.0)
    close(kustom.grad(f)(x), 6.0)
    w = keras.Variable(3.0)

    def g():
        before = w * w
        w.assign(w * 2)
        return before + w * w

    close(kustom.grad(g, variables=w)(), 18.0)


def test_tapes_may_end_in_any_order():
    x = tensor(2.0)
    with kustom.GradientTape() as outer:
        outer.watch(x)
        with kustom.GradientTape() as inner:
            inner.watch(x)
            y = x * x
            slope = outer.gradient(y, x)
            z = x**3
    close(slope, 4.0)
    close(inner.gradient(z, x), 12.0)
    assert not private.watching.readers_here.all
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = x * x
    close(tape.gradient(y, x), 4.0)


def test_two_tapes_of_two_threads_may_watch_one_tensor():
    x = tensor(2.0)
    watched, done = threading.Event(), threading.Event()
    seen = {}

    def other():
        with kustom.GradientTape() as tape:
            tape.watch(x)
            watched.set()
            done.wait(10)
            y = x**3
        seen["gradient"] = array(tape.gradient(y, x))

    thread = threading.Thread(target=other)
    thread.start()
    watched.wait(10)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        z = x * x
    close(tape.gradient(z, x), 4.0)
    done.set()
    thread.join(10)
    assert seen["gradient"] == 12.0
    assert not getattr(x, "requires_grad", False)


def test_the_inner_tape_may_watch_first():
    x = tensor(2.0)
    with kustom.GradientTape() as outer:
        with kustom.GradientTape() as inner:
            inner.watch(x)
            outer.watch(x)
            y = x**3
        slope = inner.gradient(y, x)
    close(outer.gradient(slope, x), 12.0)


def test_a_complex_gradient_is_that_of_tensorflow():
    c = ops.convert_to_tensor(np.array(1 + 2j, "complex64"))
    with kustom.GradientTape() as tape:
        tape.watch(c)
        y = ops.real(c) ** 2 + 3 * ops.imag(c)
    np.testing.assert_allclose(array(tape.gradient(y, c)), 2 + 3j)


@pytest.mark.skipif(BACKEND != "torch", reason="inference_mode is torch's")
def test_inference_mode_is_refused():
    import torch

    with torch.inference_mode(), pytest.raises(errors.TapeError, match="inference_mode"):
        kustom.GradientTape()


def test_a_gradient_flows_through_what_a_scope_gives_a_variable():
    layer = keras.layers.Dense(3)
    layer.build((None, 4))
    factor = ops.convert_to_tensor(2.0)
    with kustom.GradientTape() as tape:
        tape.watch(factor)
        with keras.StatelessScope([(layer.kernel, layer.kernel.value * factor)]):
            y = ops.sum(layer(ops.ones((2, 4))))
    np.testing.assert_allclose(array(tape.gradient(y, factor)), 2 * array(layer.kernel.value).sum(), rtol=1e-5)


def line():
    """A model of one weight, 5, whose output is the weight times the input."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[5.0]])])
    return model, model.trainable_variables[0]


def sloping(by, f, variable):
    """The gradient of `f()` by a variable, by a tape or the function."""
    if by == "function":
        return kustom.grad(f, variables=[variable])()[0]
    with kustom.GradientTape() as tape:
        y = f()
    return tape.gradient(y, variable)


@pytest.mark.parametrize("by", ["tape", "function"])
def test_weights_that_are_handed_to_a_model_are_what_is_differentiated(by):
    model, weight = line()
    x = ops.convert_to_tensor([[2.0]])

    def handed(value):
        return ops.sum(model.stateless_call([value], [], x)[0])

    close(sloping(by, lambda: handed(3.0 * weight), weight), [[6.0]])
    close(sloping(by, lambda: handed(ops.square(weight) * 1.0) + ops.sum(model(x)), weight), [[22.0]])
    close(sloping(by, lambda: handed(weight.value), weight), [[2.0]])
    close(sloping(by, lambda: handed(weight - 0.5 * handed(weight * weight)), weight), [[2.0 * (1.0 - 0.5 * 2.0 * 10.0)]])


def test_weights_of_another_that_are_handed_to_a_model_leave_its_own_out():
    model, weight = line()
    x, other = ops.convert_to_tensor([[2.0]]), ops.convert_to_tensor([[7.0]])
    with kustom.GradientTape() as tape:
        target = ops.sum(model.stateless_call([other], [], x)[0])
        y = target * ops.sum(model(x))
    close(tape.gradient(y, weight), [[28.0]])
    with kustom.GradientTape() as tape:
        target = ops.sum(model.stateless_call([other], [], x)[0])
    assert tape.gradient(target, weight) is None


def test_an_average_that_begins_as_the_weights_is_not_the_weights():
    model, weight = line()
    average = keras.Variable([[0.0]], trainable=False)
    average.assign(weight.value)
    x = ops.convert_to_tensor([[2.0]])
    with kustom.GradientTape() as tape:
        target = ops.sum(model.stateless_call([average.value], [], x)[0])
        y = target * ops.sum(model(x))
    close(tape.gradient(y, weight), [[20.0]])


def test_values_that_were_read_before_and_are_watched_are_differentiated_by():
    model, weight = line()
    x, value = ops.convert_to_tensor([[2.0]]), ops.convert_to_tensor(weight.value)
    with kustom.GradientTape() as tape:
        tape.watch(value)
        y = ops.sum(model.stateless_call([value], [], x)[0])
    close(tape.gradient(y, value), [[2.0]])


def test_a_step_down_its_own_gradient_is_differentiated_as_by_hand():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    x, y = np.array([[1.0], [2.0], [4.0]]), np.array([[1.0], [0.0], [2.0]])

    def loss_of(weights, x, y):
        return ops.mean(ops.square(model.stateless_call(weights, [], x)[0] - y))

    def step(x, y):
        with kustom.GradientTape() as outer:
            weights = [ops.convert_to_tensor(v) for v in model.trainable_variables]
            slopes = kustom.grad(lambda *w: loss_of(list(w), x, y), argnums=(0, 1))(*weights)
            loss = loss_of([w - 0.05 * s for w, s in zip(weights, slopes, strict=True)], x, y)
        return outer.gradient(loss, model.trainable_variables)

    got = [array(each).ravel() for each in kustom.function(step)(x.astype("float32"), y.astype("float32"))]
    # The loss is a quadratic form with this Hessian.
    inputs = np.concatenate([x, np.ones((3, 1))], axis=1)
    hessian = 2 * inputs.T @ inputs / 3
    weights = np.concatenate([w.ravel() for w in model.get_weights()])[:, None]
    down = weights - 0.05 * 2 * inputs.T @ (inputs @ weights - y) / 3
    expected = (np.eye(2) - 0.05 * hessian) @ (2 * inputs.T @ (inputs @ down - y) / 3)
    np.testing.assert_allclose(np.concatenate(got), expected.ravel(), rtol=1e-4, atol=1e-5)


def test_no_gradient_flows_through_an_assignment():
    layer = keras.layers.Dense(3)
    layer.build((None, 4))
    factor = ops.convert_to_tensor(2.0)
    with kustom.GradientTape() as tape:
        tape.watch(factor)
        layer.bias.assign(ops.ones(3) * factor)
        y = ops.sum(layer(ops.ones((2, 4))))
    assert tape.gradient(y, factor) is None
