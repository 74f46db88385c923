"""Several optimizers, optimizers of a part, and layers that are frozen on the way: alike on every backend."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from alike import array, both, weights
from keras import layers, ops

import kustom
from kustom.errors import OptimizerError

EAGERLY = [False, True]
rng = np.random.default_rng(0)
X = rng.normal(size=(48, 4)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5], [0.0]]) + 0.1).astype("float32")
needs_multi = pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras 3.14 has no MultiOptimizer")


def number(x):
    return float(ops.convert_to_numpy(x))


def pair():
    return keras.Variable(1.0, name="a"), keras.Variable(1.0, name="b")


def applied(optimizer, sources, targets=None, *, eagerly=False):
    """A step that applies an optimizer to the gradients of the sum of all variables, which are 1."""

    @kustom.function(run_eagerly=eagerly)
    def step():
        with kustom.GradientTape() as tape:
            loss = sum(source * 1.0 for source in sources)
        optimizer.apply(tape.gradient(loss, targets or sources), targets or sources)

    return step


def dense():
    hidden, out = layers.Dense(3, "tanh", name="hidden"), layers.Dense(1, name="out")
    return keras.Sequential([keras.Input((4,)), hidden, out])


def multi():
    first, second = keras.optimizers.Adam(0.05), keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5))
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(first, {".*out/.*": second}))


def moved(variable, before):
    return bool((array(variable) != before).any())


@pytest.mark.parametrize("eagerly", EAGERLY)
def test_two_in_one_step_each_with_its_own_count(eagerly):
    a, b = pair()
    fast, slow = keras.optimizers.Adam(0.1), keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5))
    calls = keras.Variable(0, dtype="int32", trainable=False)

    @kustom.function(run_eagerly=eagerly)
    def step():
        with kustom.GradientTape() as tape:
            loss = a + b
        for_a, for_b = tape.gradient(loss, [a, b])
        fast.apply([for_a], [a])
        calls.assign_add(1)
        # Every second time.
        ops.cond(calls % 2 == 0, lambda: slow.apply([for_b], [b]), lambda: None)

    slow.build([b])
    for _ in range(4):
        step()
    assert (int(fast.iterations), int(slow.iterations)) == (4, 2)
    assert number(a.value) == pytest.approx(0.6, abs=1e-4)
    assert number(b.value) == pytest.approx(1 - 0.1 - 0.05)


@needs_multi
def test_a_multi_optimizer_in_fit_and_in_a_loop():
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(self.model.optimizer)

    fit = {"callbacks": [Look()]}
    theirs, ours, expected, history = both(dense, (X, Y), optimizer=multi, loss="mse", epochs=2, fit=fit)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    for mine, other in zip(weights(ours), weights(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
    # A callback finds it there.
    assert isinstance(seen[1], keras.optimizers.MultiOptimizer)
    assert [int(each.iterations) for each in (seen[1], *seen[1].optimizers)] == [6, 6, 6]


@needs_multi
def test_a_multi_optimizer_comes_back_from_a_file_and_goes_on(tmp_path):
    def trained(epochs, model=None):
        if model is None:
            keras.utils.set_random_seed(1)
            model = dense()
            model.compile(multi(), "mse")
        kustom.Loop(kustom.Supervised(model, optimizer=model.optimizer, loss="mse")).fit(
            X, Y, epochs=epochs, shuffle=False, verbose=0
        )
        return model

    whole, half = trained(4), trained(2)
    half.save(tmp_path / "model.keras")
    back = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(back.optimizer, keras.optimizers.MultiOptimizer)
    assert [int(each.iterations) for each in back.optimizer.optimizers] == [4, 4]
    for mine, other in zip(weights(trained(2, back)), weights(whole), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eagerly", EAGERLY)
def test_a_part_through_an_optimizer_that_was_built_for_all(eagerly):
    a, b = pair()
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build([a, b])
    applied(optimizer, [b], eagerly=eagerly)()
    assert (number(a.value), number(b.value)) == (1.0, pytest.approx(0.9))
    applied(optimizer, [a], eagerly=eagerly)()
    assert number(a.value) == pytest.approx(0.9)
    # In another order than it was built in.
    applied(optimizer, [b, a], eagerly=eagerly)()
    assert number(b.value) == number(a.value) == pytest.approx(0.9 - 0.1 - 0.09)


@needs_multi
@pytest.mark.parametrize("eagerly", EAGERLY)
def test_a_part_through_a_multi_optimizer_is_refused_before_any_write(eagerly):
    a, b = pair()
    inner = keras.optimizers.Adam(0.1)
    optimizer = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(inner, {"b": keras.optimizers.SGD(0.1)}))
    both_of_them = applied(optimizer, [b, a], eagerly=eagerly)
    both_of_them()
    before = [array(v).copy() for v in (a, b, *optimizer.variables)]
    for some in ([a], [b], [a, a]):
        with pytest.raises(OptimizerError, match=r"of its 2 variables, without [ab]; it takes all of them at once"):
            applied(optimizer, some, eagerly=eagerly)()
    for variable, value in zip((a, b, *optimizer.variables), before, strict=True):
        np.testing.assert_array_equal(array(variable), value)
    # The optimizer of a part takes its part.
    applied(inner, [a], eagerly=eagerly)()
    assert (int(inner.iterations), int(optimizer.iterations)) == (2, 1)


@pytest.mark.parametrize("eagerly", EAGERLY)
def test_an_optimizer_that_is_built_by_its_first_part_refuses_the_second(eagerly):
    a, b = pair()
    optimizer = keras.optimizers.Adam(0.1)

    @kustom.function(run_eagerly=eagerly)
    def step():
        for variable in (a, b):
            with kustom.GradientTape() as tape:
                loss = variable * 1.0
            optimizer.apply(tape.gradient(loss, [variable]), [variable])

    with pytest.raises(OptimizerError, match=r"is applied to b, and was built for other variables: a\. Build it for all"):
        step()
    assert (number(a.value), number(b.value)) == (1.0, 1.0)


@pytest.mark.parametrize("eagerly", EAGERLY)
def test_a_variable_without_a_gradient_is_left_out_with_a_warning(eagerly):
    a, b = pair()
    optimizer = keras.optimizers.SGD(0.1, global_clipnorm=0.5)
    with pytest.warns(UserWarning, match=r"Gradients do not exist for variables \['b'\]"):
        applied(optimizer, [a], [a, b], eagerly=eagerly)()
    assert (number(a.value), number(b.value), int(optimizer.iterations)) == (pytest.approx(0.95), 1.0, 1)
    with pytest.raises(ValueError, match=r"No gradients provided for any variable"):
        applied(optimizer, [keras.Variable(1.0)], [a, b], eagerly=eagerly)()
    assert int(optimizer.iterations) == 1


def frozen(layer, epoch):
    """Freezes a layer when an epoch begins, and keeps what it then held."""

    def begin(number, logs=None):
        if number == epoch:
            layer.trainable = False
            kept.append(array(layer.kernel).copy())

    kept: list[np.ndarray] = []
    return keras.callbacks.LambdaCallback(on_epoch_begin=begin), kept


# Two layers of one shape, whose values nothing may exchange.
def twins():
    return keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(4)])


@pytest.mark.parametrize("execution", ["auto", "eager"])
def test_a_layer_is_frozen_between_runs_and_by_a_callback(execution):
    for optimizer in (keras.optimizers.SGD(0.1), keras.optimizers.AdamW(0.1, weight_decay=0.1, use_ema=True)):
        model = twins()
        first, second = model.layers
        loop = kustom.Loop(kustom.Supervised(model, optimizer=optimizer, loss="mse"))
        hook, kept = frozen(first, 1)
        before = array(first.kernel).copy()
        loop.fit(X, X[:, ::-1].copy(), epochs=3, verbose=0, callbacks=[hook], execution=execution)
        assert (kept[0] != before).any()
        np.testing.assert_array_equal(array(first.kernel), kept[0])
        before = array(second.kernel).copy()
        loop.fit(X, X[:, ::-1].copy(), verbose=0, execution=execution)
        np.testing.assert_array_equal(array(first.kernel), kept[0])
        assert moved(second.kernel, before)
        # And it learns again, since the optimizer knows it.
        first.trainable = True
        loop.fit(X, X[:, ::-1].copy(), verbose=0, execution=execution)
        assert moved(first.kernel, kept[0])


def test_a_layer_that_was_frozen_when_the_optimizer_was_built():
    def loop(optimizer):
        model = twins()
        first = model.layers[0]
        everything = list(model.trainable_variables)
        first.trainable = False
        if optimizer.name == "built":
            optimizer.build(everything)
        made = kustom.Loop(kustom.Supervised(model, optimizer=optimizer, loss="mse"))
        made.fit(X, X, verbose=0)
        first.trainable = True
        return made, model, first

    made, model, first = loop(keras.optimizers.Adam(0.1))
    before = weights(model)
    with pytest.raises(OptimizerError, match=r"was built for other variables.*Build it for all that it will ever train"):
        made.fit(X, X, verbose=0)
    assert all((mine == other).all() for mine, other in zip(weights(model), before, strict=True))
    first.trainable = False
    made.fit(X, X, verbose=0)
    made, model, first = loop(keras.optimizers.Adam(0.1, name="built"))
    before = array(first.kernel).copy()
    made.fit(X, X, verbose=0)
    assert moved(first.kernel, before)


@needs_multi
def test_a_layer_that_is_frozen_under_a_multi_optimizer_is_refused():
    model = dense()
    loop = kustom.Loop(kustom.Supervised(model, optimizer=multi(), loss="mse"))
    loop.fit(X, Y, verbose=0)
    before = weights(model)
    model.layers[0].trainable = False
    with pytest.raises(OptimizerError, match=r"2 of its 4 variables, without .*hidden"):
        loop.fit(X, Y, verbose=0)
    assert all((mine == other).all() for mine, other in zip(weights(model), before, strict=True))


def gan():
    critic = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    generator = keras.Sequential([keras.Input((2,)), layers.Dense(4)])
    both_of_them = keras.Sequential([generator, critic])
    own = kustom.Supervised(critic, optimizer=keras.optimizers.SGD(0.1), loss="mse")
    stacked = kustom.Supervised(both_of_them, optimizer=keras.optimizers.SGD(0.1), loss="mse")
    return critic, generator, own, stacked


def test_the_classic_recipe_of_two_models_one_frozen_in_the_other():
    critic, generator, own, stacked = gan()
    of_critic, of_stacked = kustom.Loop(own), kustom.Loop(stacked)
    z = rng.normal(size=(48, 2)).astype("float32")
    for _ in range(2):
        critic.trainable = True
        kept = array(critic.layers[0].kernel).copy()
        of_critic.fit(X, Y, verbose=0)
        assert moved(critic.layers[0].kernel, kept)
        critic.trainable = False
        kept, others = array(critic.layers[0].kernel).copy(), array(generator.layers[0].kernel).copy()
        of_stacked.fit(z, Y, verbose=0)
        assert not moved(critic.layers[0].kernel, kept)
        assert moved(generator.layers[0].kernel, others)
    # To forget it is not silent.
    with pytest.warns(UserWarning, match=r"has no trainable variables: nothing is trained. Is it frozen"):
        of_critic.fit(X, Y, verbose=0)


@pytest.mark.parametrize("execution", ["auto", "eager"])
def test_the_recipe_in_one_step(execution):
    critic, generator, own, stacked = gan()

    def step(batch):
        x, y, z = batch
        critic.trainable = True
        own(x, y)
        critic.trainable = False
        stacked(z, y)

    loop = kustom.Loop(step, metrics={"critic": own.metrics[0], "generator": stacked.metrics[0]}, model=generator)
    before = array(critic.layers[0].kernel), array(generator.layers[0].kernel)
    z = rng.normal(size=(48, 2)).astype("float32")
    history = loop.fit([((X, Y, z),)] * 3, epochs=2, verbose=0, execution=execution)
    assert moved(critic.layers[0].kernel, before[0])
    assert moved(generator.layers[0].kernel, before[1])
    assert int(own.optimizer.iterations) == int(stacked.optimizer.iterations) == 6
    assert {*history.history} == {"critic", "generator"}
