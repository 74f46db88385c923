"""What the tests of `Supervised` share: the same training by `fit` and by a loop."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

import kustom

BACKEND = keras.backend.backend()
# `fit` on TensorFlow runs without XLA on a CPU, which is another class of numbers.
ALIKE = "loop+graph" if BACKEND == "tensorflow" else "loop"


def array(x):
    return np.asarray(ops.convert_to_numpy(x))


def weights(model):
    return [array(w) for w in model.weights]


def both(make, data, *, optimizer, execution=ALIKE, epochs=3, batch_size=16, fit=None, **compiled):
    """Train the same model by `fit` and by a loop: the two models, and the two histories."""
    found = []
    for way in ("fit", "loop"):
        keras.utils.set_random_seed(1)
        model = make()
        keras.utils.set_random_seed(2)
        named = dict(zip(("x", "y", "sample_weight"), data, strict=False))
        options = {**named, "epochs": epochs, "batch_size": batch_size, "shuffle": False, "verbose": 0, **(fit or {})}
        if way == "fit":
            model.compile(optimizer=optimizer(), **compiled)
            history = model.fit(**options)
        else:
            supervised = kustom.Supervised(model, optimizer=optimizer(), **compiled)
            history = kustom.Loop(supervised).fit(execution=execution, **options)
        found.append((model, history.history))
    (theirs, expected), (ours, history) = found
    return theirs, ours, expected, history


def agree(theirs, ours, expected, history, rtol=2e-5, atol=2e-6):
    """The two histories have the same names and numbers; and so have the weights."""
    assert set(history) == set(expected)
    for name in expected:
        np.testing.assert_allclose(history[name], expected[name], rtol=rtol, atol=atol, err_msg=name)
    for mine, other in zip(weights(ours), weights(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=rtol, atol=atol)
