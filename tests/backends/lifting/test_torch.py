"""Programs on torch: a step that is recorded does what eager Keras does, to the last bit where nothing else is said."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import kustom
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


@pytest.mark.parametrize("kind", ["normal", "uniform", "randint", "truncated_normal", "categorical", "gamma", "beta", "binomial", "shuffle"])
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
