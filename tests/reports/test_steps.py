"""Steps of one's own: every variable carried, every batch once, true numbers, what is frozen, what is reported.

Reports: a GAN with two optimizers on JAX (keras#18881, keras#19358), steps_per_execution (keras#20411), the first batch eaten
(keras#20394) and a ghost step at the end of a stream, freezing after compile (keras PR 22104, keras#20474), what a custom step
reports (keras-core#485, keras PR 19529). Each with `kustom.Model` and with `kustom.Loop`, and one more of its kind.
"""

# What Keras says of its own types does not hold.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import kustom


def array_of(variable: Any) -> np.ndarray:
    return np.array(ops.convert_to_numpy(ops.stop_gradient(variable.value)))


class ByStep(kustom.Model):
    """A model whose step is any function of its data."""

    def __init__(self, step: Any, parts: Any = ()) -> None:
        super().__init__()
        self.parts = list(parts)
        self.step = step

    def train_step(self, data):
        return self.step(data)

    def test_step(self, data):
        return self.step(data)


def run(way: str, step: Any, data: Any, *, parts: Any = (), k: int = 1, **options: Any) -> dict[str, Any]:
    """Train by a step of one argument, in a model or in a loop."""
    if way == "model":
        model = ByStep(step, parts)
        model.compile(optimizer=None, steps_per_execution=k)
        return model.fit(data, verbose=0, **options).history
    return kustom.Loop(step).fit(data, verbose=0, **options).history


both = pytest.mark.parametrize("way", ["model", "loop"])


class Ends(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.ends: list[int] = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(batch)


def adversaries() -> Any:
    """Two models, their optimizers, and a step that trains both; nothing is built."""
    generator, critic = keras.Sequential([keras.layers.Dense(2)]), keras.Sequential([keras.layers.Dense(1)])
    of_generator, of_critic = keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.01)
    seeds = keras.random.SeedGenerator(0)

    def step(real):
        noise = keras.random.normal((ops.shape(real)[0], 3), seed=seeds)
        with kustom.GradientTape(persistent=True) as tape:
            judged = critic(generator(noise))
            losses = ops.mean(judged - critic(real)), -ops.mean(judged)
        for model, loss, optimizer in zip((critic, generator), losses, (of_critic, of_generator), strict=True):
            optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True))
        return {"critic": losses[0], "generator": losses[1]}

    return step, generator, critic, of_generator, of_critic, seeds


@both
def test_01_two_optimizers_in_one_step(way):
    keras.utils.set_random_seed(0)
    step, generator, critic, of_generator, of_critic, seeds = adversaries()
    x = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
    run(way, step, x, parts=[generator, critic], batch_size=8, epochs=1)
    before = [array_of(generator.weights[0]), array_of(critic.weights[0]), array_of(seeds.state)]
    run(way, step, x, parts=[generator, critic], batch_size=8, epochs=1)
    assert all(
        np.any(array_of(v) != w) for v, w in zip((generator.weights[0], critic.weights[0], seeds.state), before, strict=True)
    )
    assert (int(array_of(of_generator.iterations)), int(array_of(of_critic.iterations))) == (8, 8)


@both
def test_01_more_a_critic_trained_twice_as_often_as_its_generator(way):
    step, generator, critic, of_generator, of_critic, _ = adversaries()

    def often(real):
        with kustom.GradientTape() as tape:
            loss = -ops.mean(critic(real))
        of_critic.apply_gradients(zip(tape.gradient(loss, critic.trainable_variables), critic.trainable_variables, strict=True))
        return step(real)

    run(way, often, np.ones((32, 2), "float32"), parts=[generator, critic], batch_size=8)
    assert (int(array_of(of_generator.iterations)), int(array_of(of_critic.iterations))) == (4, 8)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_07_steps_per_execution(k):
    traces = []
    seen, loss = keras.Variable(0, dtype="int32", trainable=False), []
    weight, optimizer = keras.Variable(1.0), keras.optimizers.SGD(0.1)

    def step(data):
        traces.append(0)
        seen.assign_add(1)
        with kustom.GradientTape() as tape:
            error = ops.mean(ops.square(weight * data - 2.0))
        optimizer.apply_gradients([(tape.gradient(error, weight), weight)])
        return {"loss": error}

    ends = Ends()
    loss = run("model", step, np.ones((44, 3), "float32"), k=k, batch_size=4, epochs=2, shuffle=False, callbacks=[ends])["loss"]
    assert len(traces) <= 4
    assert (int(array_of(seen)), int(array_of(optimizer.iterations))) == (22, 22)
    assert ends.ends == [min(first + k, 11) - 1 for first in range(0, 11, k)] * 2
    errors = [float(np.float32(0.8) ** (2 * i)) for i in range(22)]
    assert loss == pytest.approx([np.mean(errors[:11]), np.mean(errors[11:])], rel=1e-4)


@both
def test_07_more_another_learning_rate_between_batches(way):
    rates = []
    weight, optimizer = keras.Variable(0.0), keras.optimizers.SGD(1.0)

    def step(data):
        with kustom.GradientTape() as tape:
            loss = ops.mean(data) * weight
        optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])

    class Halves(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            rates.append(batch)
            optimizer.learning_rate = 0.5 ** len(rates)

    run(way, step, np.ones((44, 1), "float32"), k=4, batch_size=4, callbacks=[Halves()])
    taken = (4, 4, 3) if way == "model" else (1,) * 11
    assert float(array_of(weight)) == pytest.approx(-sum(steps * 0.5**i for i, steps in enumerate(taken)), rel=1e-5)


def powers(n: int) -> Any:
    return (np.full((1, 1), 10.0**i, "float32") for i in range(n))


@both
@pytest.mark.parametrize("options", [{"epochs": 1}, {"epochs": 2, "steps_per_epoch": 3}])
def test_13_no_batch_is_eaten(way, options):
    layer = keras.layers.Dense(1)
    total, count = keras.Variable(0.0), keras.Variable(0.0)

    def step(data):
        layer(data)
        total.assign_add(ops.sum(data))
        count.assign_add(1.0)

    run(way, step, powers(6), parts=[layer], **options)
    assert (float(array_of(count)), float(array_of(total))) == (6, 111111)


@both
def test_13_more_none_is_eaten_by_a_validation_or_a_second_call(way):
    total = keras.Variable(0.0)

    def step(data):
        total.assign_add(ops.sum(data))

    stream = powers(6)
    for _ in range(3):
        run(way, step, stream, steps_per_epoch=2)
    assert float(array_of(total)) == 111111


def endless(kind: str, n: int) -> Any:
    if kind == "generator":
        return (np.ones((2, 1), "float32") for _ in range(n))
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(np.ones((2 * n, 1), "float32")).filter(lambda x: True).batch(2)


@both
@pytest.mark.parametrize(("kind", "k", "epochs"), [("generator", 2, 1), ("tf.data", 1, 2)])
def test_13b_no_ghost_step_at_the_end(way, kind, k, epochs):
    weight, count = keras.Variable(1.0), keras.Variable(0.0)
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=1.0)
    drop = keras.layers.Dropout(0.5, seed=1)
    drop.build((None, 1))
    before = array_of(drop.seed_generator.state)

    def step(data):
        count.assign_add(1.0)
        with kustom.GradientTape() as tape:
            loss = 0.0 * ops.mean(drop(data, training=True) * weight)
        optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])

    run(way, step, endless(kind, 3), parts=[drop], k=k, epochs=epochs)
    steps = 3 * epochs
    assert (int(array_of(optimizer.iterations)), float(array_of(count))) == (steps, steps)
    assert float(array_of(weight)) == pytest.approx(0.9**steps, rel=1e-5)
    assert array_of(drop.seed_generator.state).astype("int64")[1] == before.astype("int64")[1] + steps


@both
def test_13b_more_a_smaller_last_batch_is_one_step(way):
    count = keras.Variable(0.0)

    def step(data):
        count.assign_add(1.0)

    run(way, step, (np.ones((size, 1), "float32") for size in (4, 4, 4, 1)))
    assert float(array_of(count)) == 4


def frozen_step(layers: Any, optimizer: Any) -> Any:
    def step(data):
        with kustom.GradientTape() as tape:
            out = data
            for layer in layers:
                out = layer(out)
            loss = ops.mean(ops.square(out - 1.0))
        variables = [v for layer in layers for v in layer.trainable_variables]
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    return step


def two_layers() -> Any:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(3), keras.layers.Dense(3)]
    for layer in layers:
        layer.build((None, 3))
    return layers


x3 = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


@both
def test_14_frozen_and_thawed_between_fits(way):
    layers, optimizer = two_layers(), keras.optimizers.SGD(0.1)
    step = frozen_step(layers, optimizer)
    if way == "model":
        model = ByStep(step, layers)
        model.compile(optimizer=None)
        fit: Any = lambda: model.fit(x3, verbose=0)  # noqa: E731
    else:
        loop = kustom.Loop(step)
        fit = lambda: loop.fit(x3, verbose=0)  # noqa: E731
    moved = []
    for trainable in (True, False, True):
        layers[0].trainable = trainable
        before = [array_of(layer.kernel) for layer in layers]
        fit()
        moved.append([bool(np.any(array_of(layer.kernel) != w)) for layer, w in zip(layers, before, strict=True)])
    assert moved == [[True, True], [False, True], [True, True]]


@both
@pytest.mark.parametrize("rate", [0.1, 0.0])
def test_14_frozen_by_a_callback(way, rate):
    layers, optimizer = two_layers(), keras.optimizers.SGD(rate)
    kept = [array_of(layer.kernel) for layer in layers]

    class Freezes(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                layers[0].trainable = False
                kept[0] = array_of(layers[0].kernel)

    run(way, frozen_step(layers, optimizer), x3, parts=layers, epochs=3, callbacks=[Freezes()])
    np.testing.assert_array_equal(array_of(layers[0].kernel), kept[0])
    assert np.any(array_of(layers[1].kernel) != kept[1]) == bool(rate)


def test_14_the_classic_recipe_of_a_gan():
    inputs, noise = keras.Input((3,)), keras.Input((2,))
    critic = kustom.Model(inputs, keras.layers.Dense(1)(inputs))
    critic.compile(keras.optimizers.SGD(0.1), "mse")
    generator = kustom.Model(noise, keras.layers.Dense(3)(noise))
    critic.trainable = False
    stacked = kustom.Model(noise, critic(generator(noise)))
    stacked.compile(keras.optimizers.SGD(0.1), "mse")
    y, z = np.ones((8, 1), "float32"), np.ones((8, 2), "float32")

    def moves(layer: Any, run: Any) -> bool:
        before = array_of(layer.kernel)
        run()
        return bool(np.any(array_of(layer.kernel) != before))

    assert not moves(critic.layers[-1], lambda: stacked.train_on_batch(z, y))
    assert moves(generator.layers[-1], lambda: stacked.train_on_batch(z, y))
    # The set that is trained is read at each call: what is frozen is not trained, by whomever.
    critic.trainable = True
    assert moves(critic.layers[-1], lambda: critic.train_on_batch(x3, y))


@both
def test_14_more_a_single_variable_is_frozen(way):
    layers, optimizer = two_layers(), keras.optimizers.SGD(0.1)
    step = frozen_step(layers, optimizer)
    run(way, step, x3, parts=layers)
    layers[0].bias.trainable = False
    before = [array_of(layers[0].kernel), array_of(layers[0].bias)]
    run(way, step, x3, parts=layers)
    assert np.any(array_of(layers[0].kernel) != before[0])
    np.testing.assert_array_equal(array_of(layers[0].bias), before[1])


means = np.array([[1.0]] * 4 + [[2.0]] * 4 + [[9.0]] * 2, "float32")


@both
@pytest.mark.parametrize("key", ["loss", "mine"])
def test_24_what_a_step_returns_is_averaged_over_the_samples(way, key):
    step = lambda data: {key: ops.mean(data)}  # noqa: E731
    assert run(way, step, means, batch_size=4, shuffle=False) == {key: [pytest.approx(3.0)]}
    if way == "model":
        for loss in ("mse", None):
            model = ByStep(step)
            model.compile("sgd", loss)
            values = model.evaluate(means, batch_size=4, verbose=0, return_dict=True)
            history = model.fit(means, batch_size=4, shuffle=False, verbose=0, validation_data=means).history
            assert values == {key: pytest.approx(3.0)}
            assert history == {key: [pytest.approx(3.0)], f"val_{key}": [pytest.approx(3.0)]}
    else:
        assert kustom.Loop(step, eval_step=step).evaluate(means, batch_size=4) == {key: pytest.approx(3.0)}


@both
def test_24_more_a_metric_that_no_mean_can_replace(way):
    largest, root = keras.metrics.MeanMetricWrapper(lambda t, p: p, name="mean"), keras.metrics.RootMeanSquaredError(name="root")

    def step(data):
        largest.update_state(data, data)
        root.update_state(0 * data, data)
        return {"root": root, "mean": largest}

    history = run(way, step, means, batch_size=4, epochs=2, shuffle=False)
    assert history["root"] == pytest.approx([float(np.sqrt(np.mean(means**2)))] * 2)
    assert history["mean"] == pytest.approx([3.0, 3.0])
