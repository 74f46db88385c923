"""A stateful recurrence takes its states from one batch to the next, whatever trains it.

Keras's own `fit` loses them on JAX, where each batch begins from zeros, and cannot differentiate on torch.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 4, 2)).astype("float32")
Y = RNG.normal(size=(30, 1)).astype("float32")
RATE, SIZE, EPOCHS = 0.1, 10, 2


def array(x):
    return np.asarray(ops.convert_to_numpy(x))


def made():
    """A recurrence that keeps its states, and its output."""
    keras.utils.set_random_seed(1)
    recurrent = layers.SimpleRNN(3, stateful=True)
    inputs = keras.Input(batch_shape=(SIZE, 4, 2))
    return recurrent, inputs, layers.Dense(1)(recurrent(inputs))


def by_hand():
    """The loss of each epoch and the states at the end, in float64, by backpropagation through the steps of one batch."""
    _, inputs, outputs = made()
    weights = [array(w).astype("float64") for w in keras.Model(inputs, outputs).trainable_variables]
    state, losses = np.zeros((SIZE, 3)), []
    for _ in range(EPOCHS):
        of_epoch = []
        for at in range(0, len(X), SIZE):
            x, y = X[at : at + SIZE].astype("float64"), Y[at : at + SIZE]
            kernel, recurrence, bias, out, offset = weights
            states = [state]
            for t in range(x.shape[1]):
                states.append(np.tanh(x[:, t] @ kernel + states[-1] @ recurrence + bias))
            state = states[-1]
            error = state @ out + offset - y
            of_epoch.append(np.mean(error**2))
            slope = 2 * error / SIZE
            gradients = [np.zeros_like(kernel), np.zeros_like(recurrence), np.zeros_like(bias), state.T @ slope, slope.sum(0)]
            back = slope @ out.T
            for t in range(x.shape[1] - 1, -1, -1):
                back = back * (1 - states[t + 1] ** 2)
                gradients[0] += x[:, t].T @ back
                gradients[1] += states[t].T @ back
                gradients[2] += back.sum(0)
                back = back @ recurrence.T
            weights = [w - RATE * g for w, g in zip(weights, gradients, strict=True)]
        losses.append(np.mean(of_epoch))
    return losses, state


@pytest.mark.parametrize("execution", ["loop", "eager"])
@pytest.mark.parametrize("kind", ["supervised", "model", "step"])
def test_the_states_of_a_batch_are_those_of_the_next(kind, execution):
    recurrent, inputs, outputs = made()
    options = {"batch_size": SIZE, "epochs": EPOCHS, "shuffle": False, "verbose": 0}
    optimizer = keras.optimizers.SGD(RATE)
    model = keras.Model(inputs, outputs)
    if kind == "model":
        model = kustom.Model(inputs, outputs)
        model.compile(optimizer, "mse", run_eagerly=execution == "eager")
        history = model.fit(X, Y, **options)
    elif kind == "step":

        def step(x, y):
            with kustom.GradientTape(persistent=True) as tape:
                loss = ops.mean(ops.square(model(x, training=True) - y))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            return loss

        history = kustom.Loop(step).fit(X, Y, execution=execution, **options)
    else:
        history = kustom.Loop(kustom.Supervised(model, optimizer=optimizer, loss="mse")).fit(X, Y, execution=execution, **options)
    losses, state = by_hand()
    np.testing.assert_allclose(history.history["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(array(recurrent.states[0]), state, rtol=1e-4, atol=1e-5)
