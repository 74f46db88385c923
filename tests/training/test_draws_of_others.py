"""A step that draws from NumPy's or Python's generators draws anew in each call, and says that it is not compiled."""

from __future__ import annotations

import random
import warnings
from random import gauss

import keras
import numpy as np
import pytest
from keras import layers, ops
from numpy.random import normal

import kustom
from kustom import errors

GENERATOR = np.random.default_rng(0)
X = np.ones((12, 2), "float32")


class Noisy:
    """A step with a generator of its own."""

    def __init__(self):
        self.rng = np.random.RandomState(0)

    def __call__(self, x):
        return {"drawn": ops.sum(x) * 0 + self.rng.normal()}


def helper():
    return float(np.random.normal())


def imported_inside(x):
    import numpy

    return {"drawn": ops.sum(x) * 0 + numpy.random.normal()}


STEPS = {
    "np.random": lambda x: {"drawn": ops.sum(x) * 0 + np.random.normal()},
    "from numpy.random": lambda x: {"drawn": ops.sum(x) * 0 + normal()},
    "a helper": lambda x: {"drawn": ops.sum(x) * 0 + helper()},
    "a generator": lambda x: {"drawn": ops.sum(x) * 0 + GENERATOR.normal()},
    "an attribute": Noisy(),
    "random": lambda x: {"drawn": ops.sum(x) * 0 + random.random()},
    "from random": lambda x: {"drawn": ops.sum(x) * 0 + gauss(0, 1)},
    "imported inside": imported_inside,
}


@pytest.mark.parametrize("name", STEPS)
def test_each_call_draws_anew(name):
    with pytest.warns(errors.EagerWarning, match=r"draws from (np\.random|a generator of NumPy's|Python's random)"):
        history = kustom.Loop(STEPS[name]).fit(X, batch_size=12, epochs=4, verbose=0).history
    assert len(set(history["drawn"])) == 4


def test_a_seed_of_numpys_is_kept():
    """Looking at a step draws nothing from its generator."""
    f = kustom.function(lambda x: ops.sum(x) + float(np.random.normal()))
    np.random.seed(3)
    expected = [float(2 + np.random.normal()) for _ in range(3)]
    np.random.seed(3)
    with pytest.warns(errors.EagerWarning):
        drawn = [f(X[:1]) for _ in range(3)]
    np.testing.assert_allclose([float(ops.convert_to_numpy(each)) for each in drawn], expected, rtol=1e-5)


def test_in_a_step_that_trains():
    model, optimizer = keras.Sequential([layers.Dense(1)]), keras.optimizers.Adam()

    def step(x):
        noise = ops.convert_to_tensor(np.random.normal(size=(12, 2)).astype("float32"))
        with kustom.GradientTape() as tape:
            loss = ops.mean(model(x + noise) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return {"loss": loss, "noise": ops.sum(noise)}

    with pytest.warns(errors.EagerWarning, match=r"np\.random"):
        history = kustom.Loop(step).fit(X, batch_size=12, epochs=4, verbose=0).history
    assert len(set(history["noise"])) == 4
    assert int(optimizer.iterations) == 4


class Starting:
    """A step that draws for what it makes on its first call alone."""

    def __init__(self):
        self.start = None

    def __call__(self, x):
        if self.start is None:
            self.start = keras.Variable(np.random.normal(size=2).astype("float32"))
        return {"mean": ops.mean(x * self.start)}


def test_draws_for_what_is_made_are_compiled():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = kustom.Loop(Starting())
        history = loop.fit(X, batch_size=4, epochs=3, verbose=0).history
    assert len({round(value, 5) for value in history["mean"]}) == 1


def test_who_names_numpy_and_draws_by_keras_is_compiled():
    model = keras.Sequential([keras.Input((2,)), layers.Dropout(0.5)])

    def step(x):
        return {"mean": ops.mean(model(x, training=True)) * float(np.sqrt(4.0)), "random": keras.random.normal(())}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = kustom.Loop(step).fit(X, batch_size=12, epochs=4, verbose=0).history
    assert len(set(history["random"])) == 4
