"""Rule 8: a program that raises while it runs leaves the state as it was, whatever raises and wherever that is."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def state(*owners):
    return [array(v.value).copy() for owner in owners for v in owner.variables]


def assert_same(values, others):
    for value, other in zip(values, others, strict=True):
        np.testing.assert_array_equal(value, other)


def _index(x, bad):
    return ops.take(x, ops.cast(ops.where(bad, 100, 0), "int32"), axis=0)


def _label(x, bad):
    labels = ops.cast(ops.where(bad, 100, 1), "int32") * ops.ones((8,), "int32")
    return ops.sum(keras.losses.sparse_categorical_crossentropy(labels, x, from_logits=True))


def _cholesky(x, bad):
    return ops.cholesky(ops.eye(3) * ops.where(bad, -1.0, 1.0))


def _division(x, bad):
    return ops.floor_divide(ops.ones((), "int32") * 7, ops.cast(ops.where(bad, 0, 1), "int32"))


# What TensorFlow's and torch's kernels refuse as they run.
REFUSED = [_index, _label, _cholesky, _division]


@pytest.mark.skipif(BACKEND == "jax", reason="XLA refuses no value")
@pytest.mark.parametrize("refused", [REFUSED[0], *(pytest.param(each, marks=pytest.mark.slow) for each in REFUSED[1:])])
@pytest.mark.parametrize("way", ["function", "loop", "step"])
def test_a_value_that_a_kernel_refuses(refused, way):
    """What does not depend on it would be written: a count, the seed, statistics, the weights of the steps before."""
    model = keras.Sequential([layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(3)])
    optimizer, count = keras.optimizers.Adam(0.1), keras.metrics.Sum(name="count")

    def step(x):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(model(x[0], training=True)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        count.update_state(1.0)
        bad = ops.max(x) > 100
        return ops.cast(ops.sum(refused(x[0], bad)), "float32") * 0 + loss

    good, bad = X[None], np.concatenate([X[None], np.full_like(X[None], 1000.0)], 1)[:, 4:12]
    f = kustom.function(step, compiler="graph" if BACKEND == "tensorflow" else None)
    execution = {"loop": "loop", "step": "step"}.get(way, "loop") + ("+graph" if BACKEND == "tensorflow" else "")
    loop = kustom.Loop(step, metrics=[count])

    def run(batches):
        if way == "function":
            for batch in batches:
                f(batch)
        else:
            loop.fit([(batch,) for batch in batches], execution=execution, verbose=0)

    run([good, good, good])
    before = state(model, optimizer)
    with pytest.raises(Exception, match=r"."):
        run([bad])
    assert_same(state(model, optimizer), before)
    run([good])
    assert int(optimizer.iterations.value) == 4


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the rule is TensorFlow's graph's")
def test_what_cannot_raise_costs_no_copy():
    model = keras.Sequential(
        [
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    step = kustom.Supervised(model, optimizer=keras.optimizers.Adam(clipnorm=1.0), loss="mse")
    f = kustom.function(step)
    arguments = f.arguments((np.ones((4, 8, 8, 3), "float32"), np.ones((4, 1), "float32")), {})
    program = f.entry(arguments).program
    assert not program.xla
    assert not program.can_raise
