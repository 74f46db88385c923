"""Gradients through every layer of Keras that has weights: the backend's own, and once more right where that is differentiated."""

from __future__ import annotations

import functools
import inspect
import threading
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as of_keras
from keras import ops
from layers import (
    BACKEND,
    CASES,
    NOT_OF_KERAS,
    WITHOUT_WEIGHTS,
    Subject,
    by_backend,
    by_tape,
    in_keras,
    precision,
    twice_by_tape,
    usable,
)

import kustom

USABLE = usable()
# On JAX an operation at a time is compiled an operation: these stand for the rest, which is compiled a layer.
EAGER = [
    "Dense-regularized",
    "Embedding",
    "Conv2D",
    "LayerNormalization",
    "BatchNormalization",
    "GRU",
    "SimpleRNN-dropout",
    "MultiHeadAttention",
]
COMPILED = BACKEND == "jax"
# JAX compiles each layer twice; on it `make test` looks at these, and `make test-all` at all.
QUICK = {
    *EAGER,
    *["Conv1DTranspose", "DepthwiseConv2D", "LSTM", "PReLU", "GroupNormalization", "Bidirectional", "MultiHeadAttention-scores"],
    *["critic-layer-norm", "critic-batch-norm", "critic-group-norm", "BatchNormalization-renorm", "SpectralNormalization", "text"],
}
IDS = [pytest.param(id_, marks=pytest.mark.slow) if COMPILED and id_ not in QUICK else id_ for id_ in USABLE]


@functools.cache
def _measured(id_: str) -> tuple[Any, ...]:
    """In float64: where, the gradients of the loss, those of the penalty, and what the backend itself gives."""
    with precision("float64"):
        subject = Subject(id_, USABLE[id_], "float64")
        start = subject.start
        first, second = twice_by_tape(subject, compiled=COMPILED)
        return start, first, second, by_backend(subject)


@pytest.mark.parametrize("name", sorted(in_keras()))
def test_every_layer_of_keras_is_in_the_table_or_has_no_weights(name):
    tested = {id_.split("-")[0] for id_ in CASES}
    assert (name in tested) + (name in WITHOUT_WEIGHTS) + (name in NOT_OF_KERAS) == 1, f"{name}: say in layers.py what it is"


@pytest.mark.parametrize("name", sorted(WITHOUT_WEIGHTS & set(in_keras())))
def test_layers_that_are_left_out_add_no_weights(name):
    cls = in_keras()[name]
    own = cls.__mro__[: cls.__mro__.index(of_keras.Layer)]
    assert not [base for base in own if "add_weight(" in inspect.getsource(base)]


def _is_close(found: list[Any], expected: list[Any]) -> None:
    for index, (mine, own) in enumerate(zip(found, expected, strict=True)):
        if mine is None or own is None:
            # jax.grad has zeros where there is no way.
            assert mine is None, index
            assert own is None or (BACKEND == "jax" and not own.any()), index
        else:
            np.testing.assert_allclose(mine, own, rtol=1e-5, atol=1e-6, err_msg=str(index))


@pytest.mark.parametrize("id_", IDS)
def test_the_gradients_are_the_backends_own(id_):
    if BACKEND in USABLE[id_].differs:
        pytest.skip(USABLE[id_].differs[BACKEND])
    start, first, _, backend = _measured(id_)
    with precision("float64"):
        _is_close(first, backend(start)[0])


@pytest.mark.parametrize("id_", EAGER if COMPILED else USABLE)
def test_the_gradients_in_float32_are_the_backends_own(id_):
    if BACKEND in USABLE[id_].differs:
        pytest.skip(USABLE[id_].differs[BACKEND])
    subject = Subject(id_, USABLE[id_], "float32")
    start = subject.start
    found = by_tape(subject)
    assert all(g is None or g.dtype == "float32" for g in found)
    _is_close(found, by_backend(subject)(start)[0])


@pytest.mark.parametrize("id_", ["BatchNormalization", "BatchNormalization-renorm", "SpectralNormalization", "SimpleRNN-dropout"])
def test_a_call_under_a_tape_leaves_the_state_of_a_call_without(id_):
    subject = Subject(id_, USABLE[id_], "float32")
    subject.call(subject.tensors())
    plain = [np.array(ops.convert_to_numpy(v)) for v in subject.layer.variables]
    by_tape(subject)
    for variable, value, start in zip(subject.layer.variables, plain, subject.state, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(variable), value, rtol=1e-6, atol=1e-6)
        if not variable.trainable:
            assert (value != start).any()


@pytest.mark.parametrize("id_", IDS)
def test_the_gradient_of_a_penalty_agrees_with_differences(id_):
    case = USABLE[id_]
    for reason in (case.narrow.get(BACKEND), case.stops):
        if reason:
            pytest.skip(reason)
    start, _, second, backend = _measured(id_)
    norms = [0.0 if g is None else float(np.linalg.norm(g)) for g in second]
    step = 1e-4
    with precision("float64"):
        for index, gradient in enumerate(second):
            direction = np.random.default_rng(index).normal(size=start[index].shape)
            direction /= np.linalg.norm(direction)
            values = []
            for sign in (1, -1):
                moved = [w + sign * step * direction if i == index else w for i, w in enumerate(start)]
                values.append(backend(moved)[1])
            difference = (values[0] - values[1]) / (2 * step)
            found = 0.0 if gradient is None else float((gradient * direction).sum())
            assert abs(found - difference) <= 1e-6 * norms[index] + 1e-8 * sum(norms), index


@pytest.mark.parametrize("id_", ["critic-layer-norm", "critic-batch-norm", "critic-group-norm"])
@pytest.mark.skipif(BACKEND != "tensorflow", reason="of tf.nn.moments")
def test_the_gradient_of_a_penalty_is_right_in_a_tf_function(id_):
    import tensorflow as tf

    with precision("float64"):
        subject = Subject(id_, USABLE[id_], "float64")
        xs = subject.tensors()

        @tf.function
        def step(x):
            with kustom.GradientTape() as outer:
                outer.watch(x)
                with kustom.GradientTape() as inner:
                    inner.watch(x)
                    loss = subject.loss([x])
                total = ops.mean(ops.square(inner.gradient(loss, x)))
            return outer.gradient(total, [*subject.trained, x])

        compiled = step(xs[0])
    for mine, right in zip(compiled, _measured(id_)[2], strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-9, atol=1e-12)


def _penalized(tape: Any, subject: Subject) -> np.ndarray:
    subject.reset()
    [x] = subject.tensors()
    with tape() as outer:
        with tape() as inner:
            inner.watch(x)
            loss = subject.loss([x])
        total = ops.mean(ops.square(inner.gradient(loss, x)))
    return np.array(ops.convert_to_numpy(outer.gradient(total, subject.trained[0].value)))


@pytest.mark.parametrize("id_", ["critic-layer-norm", "critic-batch-norm", "critic-group-norm"])
@pytest.mark.skipif(BACKEND != "tensorflow", reason="only Keras's moments on TensorFlow are wrong when differentiated twice")
def test_code_without_a_tape_of_kustom_gets_the_number_of_keras(id_):
    import tensorflow as tf

    subject = Subject(id_, USABLE[id_], "float32")
    before = _penalized(tf.GradientTape, subject)
    right = _penalized(kustom.GradientTape, subject)
    assert abs(before - right).max() > 1e-3 * abs(right).max()

    meanwhile: list[np.ndarray] = []
    with kustom.GradientTape():
        other = threading.Thread(target=lambda: meanwhile.append(_penalized(tf.GradientTape, subject)))
        other.start()
        other.join()
    [elsewhere] = meanwhile
    np.testing.assert_array_equal(elsewhere, before)
    np.testing.assert_array_equal(_penalized(tf.GradientTape, subject), before)


def test_what_keras_calls_its_moments_is_put_back():
    from kustom.backends.keras import backend_module

    module = backend_module("nn")
    plain = module.moments, getattr(module, "_compute_moments", None)
    with pytest.raises(ZeroDivisionError), kustom.GradientTape():
        _ = 1 / 0
    assert (module.moments, getattr(module, "_compute_moments", None)) == plain
    assert keras.ops.moments is ops.moments


@pytest.mark.parametrize("source", ["input", "weight", "intermediate"])
@pytest.mark.parametrize("how", ["called", "compiled", "trained", "symbolic"])
def test_a_layer_with_a_tape_in_a_model_that_is_not_built(source, how):
    """Keras infers its shape by a symbolic call, wherever that happens."""

    class Slope(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], 1))

        def call(self, x):
            with kustom.GradientTape() as tape:
                tape.watch(x)
                hidden = ops.tanh(x)
                y = ops.sum(ops.square(hidden @ self.w))
            found = tape.gradient(y, {"input": x, "weight": self.w, "intermediate": hidden}[source])
            assert found is not None
            return x * ops.mean(found)

    model = keras.Sequential([Slope(), keras.layers.Dense(1)])
    x = np.ones((4, 3), "float32")
    if how == "called":
        assert model(x).shape == (4, 1)
    elif how == "compiled":
        assert kustom.function(lambda x: model(x))(x).shape == (4, 1)
    elif how == "trained":
        step = kustom.Supervised(model, optimizer=keras.optimizers.SGD(0.01), loss="mse")
        assert np.isfinite(kustom.Loop(step).fit(x, x[:, :1], verbose=0).history["loss"][0])
    else:
        assert model(keras.Input((3,))).shape == (None, 1)
