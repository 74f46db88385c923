"""Programs on torch: a step that is recorded does what eager Keras does, to the last bit where nothing else is said."""

from __future__ import annotations

import gc
import signal
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors
from kustom.backends.lifting.state import BranchOnValue

if keras.backend.backend() != "torch":
    pytest.skip("torch's recorder; the other backends lift otherwise", allow_module_level=True)

import torch

from kustom.backends.lifting.torch import Program


def data(seed: int = 0, samples: int = 64, features: int = 8) -> list[Any]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(samples, features)).astype("float32")
    return [torch.from_numpy(X), torch.from_numpy(X[:, :1] * 2 + np.sin(X[:, 1:2]))]


def network(*layers: Any) -> Any:
    return keras.Sequential([keras.Input((8,)), *(layers or (keras.layers.Dense(6, activation="elu"),)), keras.layers.Dense(1)])


def training(model: Any, optimizer: Any, *metrics: Any) -> Callable[[list[Any]], list[Any]]:
    loss_fn = keras.losses.MeanSquaredError()

    def f(tensors: list[Any]) -> list[Any]:
        x, y = tensors
        with kustom.GradientTape() as tape:
            y_pred = model(x, training=True)
            loss = loss_fn(y, y_pred) + sum(model.losses)
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        for metric in metrics:
            metric.update_state(y, y_pred)
        return [loss.detach()]

    return f


def numbers(variables: list[Any]) -> list[Any]:
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def same(a: list[Any], b: list[Any], names: list[str], close: float | None = None) -> None:
    for x, y, name in zip(a, b, names, strict=True):
        if close is None:
            np.testing.assert_array_equal(x, y, err_msg=name)
        else:
            np.testing.assert_allclose(x, y, rtol=close, atol=close, err_msg=name)


def as_eager(f: Callable[[list[Any]], list[Any]], arrays: list[Any] | None = None, steps: int = 4, close: Any = None) -> Program:
    """Assert that a program of `f` does, in single steps and in a loop, what `f` itself does."""
    arrays = data() if arrays is None else arrays
    size = len(arrays[0]) // 4
    rows = torch.randperm(len(arrays[0]))[: size * 4].reshape(4, size).repeat(1 + steps // 4, 1)[:steps]
    before_chance = torch.get_rng_state()
    program = Program(f, [a[rows[0]] for a in arrays])
    assert torch.equal(torch.get_rng_state(), before_chance)
    kept = program.keep()
    names = [v.path for v in program.variables]
    start = numbers(program.variables)
    outs = [[each.detach().clone() for each in f([a[row] for a in arrays])] for row in rows]
    eager, chance = numbers(program.variables), torch.get_rng_state()
    program.restore(kept)
    same(numbers(program.variables), start, names)
    for row, out in zip(rows, outs, strict=True):
        same([x.detach() for x in program.run([a[row] for a in arrays])], out, [f"output {i}" for i in range(len(out))], close)
    same(numbers(program.variables), eager, names, close)
    assert torch.equal(torch.get_rng_state(), chance)
    if all(out.ndim == 0 for out in outs[0]):
        program.restore(kept)
        totals = program.loop(arrays, rows, 0, steps)
        same(numbers(program.variables), eager, names, close)
        assert torch.equal(torch.get_rng_state(), chance)
        for i, total in enumerate(totals):
            np.testing.assert_allclose(float(total), sum(float(out[i]) for out in outs), rtol=1e-5)
    return program


OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01),
    "RMSprop centered": lambda: keras.optimizers.RMSprop(0.01, momentum=0.9, centered=True),
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "AdamW": lambda: keras.optimizers.AdamW(0.01),
    **{
        name: lambda name=name: getattr(keras.optimizers, name)(0.01)
        for name in ("Adadelta", "Adagrad", "Adamax", "Adafactor", "Nadam", "Ftrl", "Lion", "Lamb", "Muon", "ScheduleFreeAdamW")
        if hasattr(keras.optimizers, name)
    },
    "clipnorm": lambda: keras.optimizers.Adam(0.01, clipnorm=0.1),
    "global_clipnorm": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1),
    "clipvalue": lambda: keras.optimizers.SGD(0.01, clipvalue=0.01),
    "weight_decay": lambda: keras.optimizers.Adam(0.01, weight_decay=0.01),
    "ema": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3),
    "loss_scale_factor": lambda: keras.optimizers.Adam(0.01, loss_scale_factor=8.0),
    "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), dynamic_growth_steps=2),
    "exponential": lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
    "staircase": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5, staircase=True)),
    "piecewise": lambda: keras.optimizers.SGD(keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.1, 0.05, 0.01])),
    "cosine": lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 5, warmup_target=0.1, warmup_steps=2)),
    "restarts": lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecayRestarts(0.01, 2)),
    "polynomial": lambda: keras.optimizers.Adam(keras.optimizers.schedules.PolynomialDecay(0.01, 3, cycle=True)),
    "inverse": lambda: keras.optimizers.Adam(keras.optimizers.schedules.InverseTimeDecay(0.01, 3, 0.5)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("built", [True, False])
def test_every_optimizer_gives_the_numbers_of_eager_keras(name, built):
    model, optimizer = network(), OPTIMIZERS[name]()
    if built:
        optimizer.build(model.trainable_variables)
    program = as_eager(training(model, optimizer), steps=7)
    assert any("iteration" in v.path for v in program.written)


SEEDED: dict[str, Callable[[], Any]] = {
    "Dropout": lambda: keras.layers.Dropout(0.5),
    "Dropout, seed": lambda: keras.layers.Dropout(0.5, seed=1),
    "Dropout, noise_shape": lambda: keras.layers.Dropout(0.5, noise_shape=(None, 1)),
    "GaussianNoise": lambda: keras.layers.GaussianNoise(0.5),
    "GaussianNoise, seed": lambda: keras.layers.GaussianNoise(0.5, seed=1),
    "GaussianDropout": lambda: keras.layers.GaussianDropout(0.5),
    "AlphaDropout": lambda: keras.layers.AlphaDropout(0.5),
}


@pytest.mark.parametrize("name", SEEDED)
def test_every_layer_that_draws_draws_afresh_and_as_eager_keras(name):
    as_eager(training(network(SEEDED[name](), keras.layers.Dense(4)), keras.optimizers.SGD(0.01)))


@pytest.mark.parametrize(
    "kind", ["normal", "uniform", "randint", "truncated_normal", "categorical", "gamma", "beta", "binomial", "shuffle"]
)
@pytest.mark.parametrize("seed", ["generator", "global", "number"])
def test_every_draw(kind, seed):
    generator = {"generator": keras.random.SeedGenerator(3), "global": None, "number": 7}[seed]
    draws = {
        "normal": lambda x: keras.random.normal(x.shape, seed=generator),
        "uniform": lambda x: keras.random.uniform(x.shape, -1, 2, seed=generator),
        "randint": lambda x: ops.cast(keras.random.randint(x.shape, 0, 10, seed=generator), "float32"),
        "truncated_normal": lambda x: keras.random.truncated_normal(x.shape, seed=generator),
        "categorical": lambda x: ops.cast(keras.random.categorical(x, 8, seed=generator), "float32"),
        "gamma": lambda x: keras.random.gamma(x.shape, ops.abs(x) + 0.1, seed=generator),
        "beta": lambda x: keras.random.beta(x.shape, ops.abs(x) + 0.1, 2.0, seed=generator),
        "binomial": lambda x: keras.random.binomial(x.shape, 5.0, ops.sigmoid(x), seed=generator),
        "shuffle": lambda x: keras.random.shuffle(x, seed=generator),
    }
    draw = draws[kind]
    program = as_eager(lambda t: [ops.sum(draw(t[0]) * t[0])])
    if seed != "number":
        one, two = program.run(data(samples=16)), program.run(data(samples=16))
        assert not torch.equal(one[0], two[0])


def test_a_branch_on_a_traced_value_does_what_the_condition_says_and_carries_what_both_ways_assign():
    w, count, seeds = keras.Variable([1.0, 2.0]), keras.Variable(0, dtype="int32", trainable=False), keras.random.SeedGenerator(1)

    def yes(x):
        w.assign_add([1.0, 1.0])
        return ops.sum(x * w)

    def no(x):
        count.assign_add(1)
        return ops.sum(keras.random.normal((2,), seed=seeds) * w)

    def f(tensors):
        [x] = tensors
        nested = ops.cond(ops.sum(x) > 1, lambda: ops.cond(x[0, 0] > 0, lambda: yes(x[0]), lambda: no(x)), lambda: no(x))
        return [nested]

    program = as_eager(f, [torch.randn(64, 2)], steps=16)
    assert len(program.written) == 3


def test_a_switch_and_unrolled_loops():
    v = keras.Variable(1.0)

    def f(tensors):
        [x] = tensors
        index = ops.cast(ops.clip(x[0, 0] * 3, -1, 5), "int32")
        chosen = ops.switch(index, [lambda: v.assign_add(1.0), lambda: v * 2, lambda: v * 0], *[])
        carry, ys = ops.scan(lambda c, a: (c + a * v, c), ops.zeros((2,)), x)
        mapped = ops.map(lambda a: a * v, x)
        many = ops.vectorized_map(lambda a: ops.sum(a) * 2, x)
        counted = ops.while_loop(lambda i, a: i < 3, lambda i, a: (i + 1, a * 2), (0, x))[1]
        return [chosen + ops.sum(carry) + ops.sum(ys) + ops.sum(mapped) + ops.sum(many) + ops.sum(counted)]

    as_eager(f, [torch.randn(64, 2)], steps=8)


def test_gradients_through_a_branch():
    model, optimizer = network(), keras.optimizers.Adam(0.01)
    w = keras.Variable(2.0)

    def f(tensors):
        x, y = tensors
        with kustom.GradientTape() as tape:
            error = ops.mean(ops.square(model(x) - y))
            loss = ops.cond(error > 1.5, lambda: error * w, lambda: ops.sqrt(error) * w)
        variables = [*model.trainable_variables, w]
        optimizer.apply(tape.gradient(loss, variables), variables)
        return [loss.detach()]

    as_eager(f, steps=12)


REFUSED: dict[str, Callable[[Any], Any]] = {
    "if": lambda x: 1.0 if x.sum() > 0 else 2.0,
    "float": lambda x: float(x.sum()),
    "item": lambda x: x.sum().item(),
    "numpy": lambda x: ops.convert_to_numpy(x).sum(),
    "tolist": lambda x: sum(x[0].tolist()),
    "index": lambda x: range(10)[ops.argmax(x[0])],
    "mask": lambda x: x[x > 0].sum(),
    "nonzero": lambda x: torch.nonzero(x).sum(),
    "equal": lambda x: 1.0 if torch.equal(x, x * 1) else 0.0,
    "allclose": lambda x: 1.0 if torch.allclose(x, x * 1) else 0.0,
    "while": lambda x: ops.while_loop(lambda a: ops.sum(a) < 100, lambda a: a + 1.0, (x,))[0].sum(),
    "draw in a branch": lambda x: ops.cond(ops.sum(x) > 0, lambda: torch.rand(()), lambda: ops.sum(x)),
    "another tensor": lambda x: setattr(x, "data", x * 2) or x.sum(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_python_asks_for_is_refused_and_the_line_named(name):
    w, example = keras.Variable([1.0, 2.0]), torch.randn(3, 2)
    chance = torch.get_rng_state()

    def f(tensors):
        w.assign_add([1.0, 1.0])
        torch.rand(3)
        return [torch.as_tensor(REFUSED[name](tensors[0] * w)) * w[0]]

    with pytest.raises(BranchOnValue) as caught:
        Program(f, [example])
    path, line = caught.value.line.rsplit(":", 1)
    assert path == __file__
    with open(__file__, encoding="utf-8") as file:
        assert f'    "{name}"' in file.readlines()[int(line) - 1]
    assert numbers([w])[0].tolist() == [1, 2]
    assert torch.equal(torch.get_rng_state(), chance)


def test_a_tensor_that_python_carries_is_refused_and_one_that_it_holds_is_read_afresh():
    held = {"previous": torch.ones(2), "same": torch.ones(2)}

    def carries(tensors):
        out = held["previous"] * tensors[0]
        held["previous"] = out.detach() + 1
        return [ops.sum(out)]

    with pytest.raises(BranchOnValue, match="keeps from one step to the next"):
        Program(carries, [torch.ones(2)])
    program = Program(lambda t: [ops.sum(held["same"] * t[0])], [torch.ones(2)])
    held["same"].mul_(3)
    assert float(program.run([torch.ones(2)])[0]) == 6


def test_what_is_always_the_same_may_be_asked():
    def f(tensors):
        one = ops.ones((3,))
        return [ops.sum(tensors[0]) * float(ops.sum(one)) if one[0] > 0 else tensors[0]]

    as_eager(f, [torch.randn(64, 2)])


def test_a_failure_while_recording_changes_nothing_and_is_the_users_own():
    class Odd(Exception):
        pass

    model, optimizer, mean = network(keras.layers.BatchNormalization()), keras.optimizers.Adam(), keras.metrics.Mean()
    step = training(model, optimizer, mean)

    def f(tensors):
        step(tensors)
        raise Odd("here")

    with pytest.raises(Odd, match="here"):
        Program(f, data())
    assert optimizer.built
    for v in [*model.variables, *optimizer.variables, *mean.variables]:
        value = v.value
        assert type(value) is torch.nn.Parameter
        assert value.device.type == "cpu"
        assert value.grad_fn is None
        assert value.requires_grad == v.trainable
        assert np.isfinite(numbers([v])[0]).all()
    assert int(optimizer.iterations) == 0
    assert all(not numbers([v])[0].any() for v in optimizer.variables if "momentum" in v.path)
    as_eager(step)


def test_a_failure_while_running_restores_the_state_of_the_start():
    table, w, seeds = keras.Variable(np.ones((4, 2), "float32")), keras.Variable(0.0), keras.random.SeedGenerator(2)

    def f(tensors):
        w.assign_add(1.0)
        torch.rand(2)
        keras.random.normal((2,), seed=seeds)
        return [ops.sum(ops.take(table, tensors[0], axis=0)) * w]

    good, bad = torch.zeros(5, dtype=torch.int64), torch.full((5,), 9)
    program = Program(f, [good])
    for go in (lambda: program.run([bad]), lambda: program.loop([torch.stack([good, good, bad])], None, 0, 3)):
        program.run([good])
        before, chance = numbers([w, seeds.state]), torch.get_rng_state()
        with pytest.raises(IndexError):
            go()
        same(numbers([w, seeds.state]), before, ["w", "seeds"])
        assert torch.equal(torch.get_rng_state(), chance)


def test_the_gradients_that_backward_leaves():
    for clears in (True, False):
        model, optimizer = network(), keras.optimizers.SGD(0.01)
        optimizer.build(model.trainable_variables)

        def f(tensors, model=model, optimizer=optimizer, clears=clears):
            x, y = tensors
            if clears:
                model.zero_grad()
            loss = ops.mean(ops.square(model(x) - y))
            loss.backward()
            optimizer.apply([v.value.grad.clone() for v in model.trainable_variables], model.trainable_variables)
            return [loss.detach()]

        leaves = [v.value for v in model.trainable_variables]
        rows = torch.arange(64).reshape(4, 16)
        program = Program(f, [a[:16] for a in data()])
        assert all(leaf.grad is None for leaf in leaves)
        kept = program.keep()
        eager = [f([a[row] for a in data()])[0] for row in rows]
        gradients, values = [leaf.grad.clone() for leaf in leaves], numbers(model.variables)
        for way in ("run", "loop"):
            program.restore(kept)
            for leaf in leaves:
                leaf.grad = None
            if way == "run":
                assert [float(program.run([a[row] for a in data()])[0]) for row in rows] == [float(x) for x in eager]
            else:
                program.loop(data(), rows, 0, 4)
            same(numbers(model.variables), values, ["w"] * len(values))
            same([leaf.grad for leaf in leaves], gradients, ["gradient"] * len(leaves))


@pytest.mark.parametrize("way", ["tape", "persistent", "nested", "value_and_grad", "jacobian", "custom", "autograd", "torch.func"])
def test_every_way_to_differentiate(way):
    model, optimizer = network(), keras.optimizers.Adam(0.01)
    square = kustom.custom_gradient(lambda x: (x * x, lambda g: 3 * g * x))

    def gradients(x, y):
        variables = model.trainable_variables

        def value(x=x):
            return ops.mean(ops.square(model(x) - y))

        if way == "value_and_grad":
            return kustom.value_and_grad(value, variables=variables)()
        if way == "autograd":
            loss = value()
            return loss, list(torch.autograd.grad(loss, [v.value for v in variables]))
        if way == "torch.func":
            part = torch.func.grad(lambda a: torch.sum(torch.tanh(a) ** 2))(x)
            return torch.sum(part), [ops.ones_like(v) for v in variables]
        with kustom.GradientTape(persistent=way == "persistent") as tape:
            if way == "nested":
                with kustom.GradientTape() as inner:
                    inner.watch(x)
                    y_pred = model(x)
                loss = value() + ops.mean(ops.square(inner.gradient(y_pred, x)))
            elif way == "custom":
                loss = ops.mean(square(model(x) - y))
            elif way == "jacobian":
                y_pred = model(x)
                loss = ops.mean(ops.square(y_pred - y))
            else:
                loss = value()
                more = ops.sum(ops.square(loss))
        if way == "persistent":
            return loss, [a + b for a, b in zip(tape.gradient(loss, variables), tape.gradient(more, variables), strict=True)]
        if way == "jacobian":
            return loss, [ops.mean(each, axis=(0, 1)) for each in tape.jacobian(y_pred, variables)]
        return loss, tape.gradient(loss, variables)

    def f(tensors):
        loss, found = gradients(*tensors)
        optimizer.apply(found, model.trainable_variables)
        return [loss.detach()]

    as_eager(f)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        model = network(keras.layers.Dense(8, activation="gelu"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.2))
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=2.0**17)
        as_eager(training(model, optimizer, keras.metrics.MeanAbsoluteError()), steps=6)
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def test_statistics_metrics_added_losses_constraints_and_two_optimizers():
    class Added(keras.layers.Layer):
        def call(self, x):
            self.add_loss(ops.mean(ops.square(x)) * 0.1)
            return x

    a = network(
        keras.layers.Dense(6, kernel_constraint="max_norm", kernel_regularizer="l2"), keras.layers.BatchNormalization(), Added()
    )
    b = network(keras.layers.LayerNormalization(), keras.layers.Dense(3, activation="selu"))
    metrics = [keras.metrics.MeanAbsoluteError(), keras.metrics.R2Score(), keras.metrics.RootMeanSquaredError()]
    first, second = training(a, keras.optimizers.Adam(0.01), *metrics), training(b, keras.optimizers.Nadam(0.01))
    as_eager(lambda tensors: first(tensors) + second(tensors), steps=6)


def test_a_small_convolutional_network_is_heavy():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu", padding="same"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3, seed=1),
            keras.layers.Dense(1),
        ]
    )
    images = torch.randn(64, 8, 8, 1)
    program = as_eager(training(model, keras.optimizers.Adam(0.01)), [images, images.mean((1, 2))])
    assert program.heavy
    assert not as_eager(training(network(), keras.optimizers.Adam(0.01))).heavy


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "SimpleRNN", "Embedding", "MultiHeadAttention"])
def test_other_layers(layer):
    tokens = keras.Input((5,), dtype="int64")
    x = keras.layers.Embedding(11, 6)(tokens)
    if layer == "MultiHeadAttention":
        x = keras.layers.MultiHeadAttention(2, 3, dropout=0.1)(x, x)
    elif layer != "Embedding":
        x = getattr(keras.layers, layer)(4, return_sequences=True, dropout=0.1)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(tokens, keras.layers.Dense(1)(x))
    batch = [torch.randint(0, 11, (64, 5)), torch.randn(64, 1)]
    program = as_eager(training(model, keras.optimizers.Adam(0.01)), batch)
    assert program.heavy == (layer in ("LSTM", "GRU", "SimpleRNN"))


def test_tensors_of_another_kind_are_refused():
    program = Program(lambda t: [ops.sum(t[0]) / t[0].shape[0]], [torch.ones(2, 3)])
    for other in (torch.ones(3, 3), torch.ones(2, 3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="this program is for tensors of"):
            program.run([other])
        with pytest.raises(ValueError, match="this program is for tensors of"):
            program.loop([other[None]], None, 0, 1)
    with pytest.raises(ValueError, match="this program is for tensors of"):
        program.loop([torch.ones(5, 3)], torch.zeros(1, 3, dtype=torch.int64), 0, 1)


def test_between_two_calls_the_variables_are_the_truth():
    w = keras.Variable([1.0, 2.0])

    def f(tensors):
        w.assign(w * 2 + tensors[0])
        return [ops.sum(w)]

    program = Program(f, [torch.zeros(2)])
    held, value = w.value, w.value.detach()
    program.run([torch.zeros(2)])
    assert w.value is held
    assert value.tolist() == [2, 4]
    w.assign([5.0, 5.0])
    assert float(program.run([torch.zeros(2)])[0]) == 20
    # Another tensor in the variable's place, as a quantization or a move to another device puts there.
    w._value = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    assert float(program.run([torch.zeros(2)])[0]) == 4
    w._value.data = torch.tensor([3.0, 3.0])
    assert float(program.loop([torch.zeros(1, 2)], None, 0, 1)[0]) == 12
    assert numbers([w])[0].tolist() == [6, 6]
    assert held.tolist() == [10, 10]


def test_two_variables_in_one_memory():
    memory = torch.zeros(4)
    a, b = keras.Variable(memory[:2]), keras.Variable(memory[1:3])

    def f(tensors):
        a.assign_add(tensors[0][0])
        b.assign_add(tensors[0][0] * a)
        return [ops.sum(a) + ops.sum(b)]

    as_eager(f, [torch.randn(8, 2)])
    assert numbers([a])[0][1] == numbers([b])[0][0]


def test_variables_made_at_each_call_are_refused():
    with pytest.raises(errors.BranchError, match="makes new variables at each call"):
        Program(lambda t: [ops.sum(keras.Variable([1.0]) * t[0])], [torch.zeros(1)])


def test_a_program_dies_with_its_owner():
    model, optimizer = network(keras.layers.Dropout(0.5, seed=1)), keras.optimizers.Nadam(0.01)
    program = Program(training(model, optimizer), data())
    program.run(data())
    program.loop([a[None] for a in data()], None, 0, 1)
    dead = [weakref.ref(program), weakref.ref(model), weakref.ref(optimizer), weakref.ref(program._engine)]
    from kustom.backends.lifting.torch import lowering

    assert lowering._functions
    del program, model, optimizer
    gc.collect()
    assert [each() for each in dead] == [None] * 4
    assert not lowering._functions


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_images_are_not_copied_for_pooling_and_the_numbers_stay(pooling):
    Pool = keras.layers.MaxPooling2D if pooling == "max" else keras.layers.AveragePooling2D
    images = keras.Input((12, 12, 2))
    x = Pool(2)(keras.layers.Conv2D(4, 3, activation="relu", padding="same")(images))
    x = Pool(2)(keras.layers.Conv2D(8, 3, activation="relu")(x))
    model = keras.Model(images, keras.layers.Dense(1)(keras.layers.Flatten()(x)))
    batch = torch.randn(64, 12, 12, 2)
    program = as_eager(training(model, keras.optimizers.Adam(0.01)), [batch, batch.mean((1, 2, 3))[:, None]], close=1e-6)
    copies = [node for node in program._recording.nodes if node.kwargs.get("memory_format") is torch.contiguous_format]
    assert not [node for node in copies if node.args[0].like.dim() == 4]


def test_the_python_function_does_the_same_where_the_interpreter_is_gone(monkeypatch):
    monkeypatch.delattr(torch._C, "parse_ir")
    model = network(keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(3), keras.layers.Dropout(0.2))
    program = as_eager(training(model, keras.optimizers.Nadam(0.01)))
    assert type(program._engine).__name__ == "Python"


def test_nothing_of_the_interpreter_warns_and_its_names_are_there():
    from kustom.backends.lifting.torch import lowering

    assert type(as_eager(training(network(), keras.optimizers.Nadam(0.01)))._engine) is lowering.Script
    for name in ("parse_ir", "_create_function_from_graph", "_get_graph_executor_optimize", "_set_graph_executor_optimize"):
        assert hasattr(torch._C, name)
    before = torch._C._get_graph_executor_optimize()
    Program(lambda t: [t[0] * 2], [torch.ones(2)]).run([torch.ones(2)])
    assert torch._C._get_graph_executor_optimize() is before


@pytest.mark.parametrize("calls", ["none", "Python in between", "the Python function"])
def test_ctrl_c_waits_until_the_step_is_whole(calls, monkeypatch):
    if calls == "the Python function":
        monkeypatch.delattr(torch._C, "parse_ir")
    table, counts = (
        keras.Variable(np.zeros((200, 200), "float32")),
        [keras.Variable(0, dtype="int64", trainable=False) for _ in range(3)],
    )
    seeds = keras.random.SeedGenerator(1)

    def f(tensors):
        for count in counts:
            table.assign(ops.matmul(table, table) * 0.5)
            if calls != "none":
                keras.random.normal((2,), seed=seeds)
            count.assign_add(1)
        return [tensors[0]]

    program = Program(f, [torch.zeros(())])
    main = threading.get_ident()
    timer = threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()

    def train():
        for _ in range(2000):
            program.loop([torch.zeros(50)], None, 0, 50)

    with pytest.raises(KeyboardInterrupt):
        train()
    timer.join()
    made = {int(count) for count in counts}
    assert len(made) == 1
    assert int(seeds.state[1]) == (0 if calls == "none" else 3 * made.pop())
    program.run([torch.zeros(())])


@pytest.mark.slow
def test_inductor_in_the_same_class_of_numbers():
    model = network(keras.layers.Dense(6, activation="elu"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5))
    f = training(model, keras.optimizers.Nadam(0.01), keras.metrics.MeanAbsoluteError())
    rows = torch.arange(64).reshape(4, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = Program(f, [a[:16] for a in data()], compiler="inductor")
        kept = program.keep()
        for row in rows:
            f([a[row] for a in data()])
        eager = numbers(program.variables)
        program.restore(kept)
        program.loop(data(), rows, 0, 4)
    same(numbers(program.variables), eager, [v.path for v in program.variables], 1e-5)


def test_a_recording_lets_go_of_what_the_function_has_let_go_of():
    held = keras.Variable(np.ones((512, 1024), "float32"))
    alive: list[int] = []

    def f(tensors: list[Any]) -> list[Any]:
        (x,) = tensors
        made = []
        for _ in range(24):
            # Two megabytes each, of which eager torch holds two.
            x = x * 1.01 + held.value
            made.append(weakref.ref(x))
            alive.append(sum(ref() is not None for ref in made))
        return [ops.mean(x)]

    example = torch.ones((512, 1024))
    program = Program(f, [example])
    assert max(alive) < 6
    with torch.no_grad():
        expected = f([example])[0]
    assert torch.equal(program.run([example])[0], expected)


def test_what_a_gradient_needs_is_kept_until_it_is_taken():
    held = keras.Variable(np.full((512, 1024), 0.999, "float32"))

    def f(tensors: list[Any]) -> list[Any]:
        (x,) = tensors
        with kustom.GradientTape() as tape:
            for _ in range(12):
                x = ops.tanh(x * held)
            loss = ops.mean(ops.square(x))
        (gradient,) = tape.gradient(loss, [held])
        return [loss.detach(), ops.sum(gradient), ops.max(ops.abs(gradient))]

    example = torch.linspace(-2, 2, 512 * 1024).reshape(512, 1024)
    for found, expected in zip(Program(f, [example]).run([example]), f([example]), strict=True):
        torch.testing.assert_close(found, expected)
