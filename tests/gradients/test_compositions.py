"""Random compositions of `keras.ops`: the tape, `value_and_grad` and differences agree, in float64.

Each function below takes an array of shape (2, 3) to one of the same shape, or two of them, whatever the numbers: where a
function of Keras has another domain, the numbers are brought into it smoothly first. A composition is drawn as a chain in
which each step takes one or two of the results before it.
"""

from __future__ import annotations

import contextlib

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import ops

import kustom
from kustom.backends import current
from kustom.backends import keras as private

SHAPE = (2, 3)


def positive(x):
    return ops.softplus(x) + 0.5


def unit(x):
    """Inside (-1, 1), away from the ends."""
    return 0.8 * ops.tanh(x)


def square_matrix(x):
    """A matrix (3, 3) that is far from singular."""
    return ops.matmul(ops.transpose(x), x) * 0.1 + ops.cast(ops.eye(3), x.dtype) * 2.0


def keep(matrix):
    """The first two rows: the shape that the others take."""
    return matrix[:2]


def like(x, row):
    return ops.broadcast_to(row, SHAPE)


ONE = {
    "abs": lambda x: ops.abs(x + 5.0),
    "arccos": lambda x: ops.arccos(unit(x)),
    "arccosh": lambda x: ops.arccosh(positive(x) + 1.0),
    "arcsin": lambda x: ops.arcsin(unit(x)),
    "arcsinh": ops.arcsinh,
    "arctan": ops.arctan,
    "arctanh": lambda x: ops.arctanh(unit(x)),
    "average": lambda x: x + ops.average(x),
    "broadcast_to": lambda x: ops.broadcast_to(x[:1], SHAPE),
    "celu": lambda x: ops.celu(x, alpha=0.5),
    "cholesky": lambda x: keep(ops.cholesky(square_matrix(x))),
    "clip": lambda x: ops.clip(x, -10.0, 10.0),
    "concatenate": lambda x: ops.concatenate([x[:, 1:], x[:, :1]], axis=1),
    "conv": lambda x: ops.conv(x[None, :, :], ops.ones((2, 3, 3), dtype=x.dtype) * 0.3, padding="same")[0],
    "cos": ops.cos,
    "cosh": lambda x: ops.cosh(unit(x)),
    "cumprod": lambda x: ops.cumprod(unit(x) + 2.0, axis=1),
    "cumsum": lambda x: ops.cumsum(x, axis=1),
    "det": lambda x: like(x, ops.reshape(ops.det(square_matrix(x)), (1, 1))) * 0.1,
    "diff": lambda x: like(x, ops.diff(x, axis=0)),
    "einsum": lambda x: ops.einsum("ij,kj->ik", x, x)[:, :1] + x,
    "elu": lambda x: ops.elu(x, alpha=1.0),
    "erf": ops.erf,
    "erfinv": lambda x: ops.erfinv(unit(x)),
    "exp": lambda x: ops.exp(unit(x)),
    "exp2": lambda x: ops.exp2(unit(x)),
    "expand_dims": lambda x: ops.expand_dims(x, 0)[0],
    "expm1": lambda x: ops.expm1(unit(x)),
    "flip": lambda x: ops.flip(x, axis=1),
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu, by tanh": lambda x: ops.gelu(x, approximate=True),
    "hard_tanh": lambda x: ops.hard_tanh(unit(x)),
    "inv": lambda x: keep(ops.inv(square_matrix(x))),
    "leaky_relu": lambda x: ops.leaky_relu(x - 20.0),
    "log": lambda x: ops.log(positive(x)),
    "log10": lambda x: ops.log10(positive(x)),
    "log1p": lambda x: ops.log1p(positive(x)),
    "log2": lambda x: ops.log2(positive(x)),
    "log_sigmoid": ops.log_sigmoid,
    "log_softmax": lambda x: ops.log_softmax(x, axis=-1),
    "logsumexp": lambda x: x + ops.logsumexp(x, axis=1, keepdims=True),
    "max": lambda x: x + ops.max(x + ops.convert_to_tensor([0.0, 30.0, 60.0], dtype=x.dtype), axis=1, keepdims=True) * 0.1,
    "mean": lambda x: x - ops.mean(x, axis=1, keepdims=True),
    "min": lambda x: x + ops.min(x + ops.convert_to_tensor([0.0, 30.0, 60.0], dtype=x.dtype), axis=1, keepdims=True) * 0.1,
    "moments": lambda x: x * ops.moments(x, axes=[0], keepdims=True)[1] + ops.moments(x, axes=[1], keepdims=True)[0],
    "moveaxis": lambda x: ops.moveaxis(ops.moveaxis(x, 0, 1), 0, 1),
    "negative": ops.negative,
    "norm": lambda x: x / ops.norm(x + 3.0, axis=1, keepdims=True),
    "normalize": lambda x: ops.normalize(x + 3.0, axis=-1),
    "pad": lambda x: ops.pad(x, [[0, 0], [1, 0]])[:, :3],
    "prod": lambda x: x + ops.prod(unit(x), axis=1, keepdims=True),
    "qr": lambda x: keep(ops.matmul(*ops.qr(square_matrix(x)))),
    "reciprocal": lambda x: ops.reciprocal(positive(x)),
    "relu": lambda x: ops.relu(x + 20.0),
    "relu6": lambda x: ops.relu6(unit(x) + 3.0),
    "repeat": lambda x: ops.repeat(x, 2, axis=1)[:, 1:4],
    "reshape": lambda x: ops.transpose(ops.reshape(x, (3, 2))),
    "roll": lambda x: ops.roll(x, 1, axis=1),
    "rsqrt": lambda x: ops.rsqrt(positive(x)),
    "selu": lambda x: ops.selu(x + 20.0),
    "sigmoid": ops.sigmoid,
    "silu": ops.silu,
    "sin": ops.sin,
    "sinh": lambda x: ops.sinh(unit(x)),
    "slice": lambda x: ops.concatenate([ops.slice(x, [0, 1], [2, 2]), ops.slice(x, [0, 0], [2, 1])], axis=1),
    "slogdet": lambda x: x + ops.slogdet(square_matrix(x))[1],
    "softmax": lambda x: ops.softmax(x, axis=-1),
    "softplus": ops.softplus,
    "softsign": lambda x: ops.softsign(x + 20.0),
    "solve": lambda x: ops.transpose(ops.solve(square_matrix(x), ops.transpose(x))),
    "split": lambda x: ops.concatenate(list(reversed(ops.split(x, 3, axis=1))), axis=1),
    "sqrt": lambda x: ops.sqrt(positive(x)),
    "square": lambda x: ops.square(unit(x)),
    "squeeze": lambda x: ops.squeeze(x[None], axis=0),
    "stack": lambda x: ops.sum(ops.stack([x, 2.0 * x], axis=0), axis=0),
    "std": lambda x: x * ops.std(x + ops.convert_to_tensor([0.0, 3.0, 7.0], dtype=x.dtype), axis=1, keepdims=True),
    "sum": lambda x: x + ops.sum(x, axis=0, keepdims=True),
    "swapaxes": lambda x: ops.swapaxes(ops.swapaxes(x, 0, 1), 0, 1),
    "take": lambda x: ops.take(x, [2, 0, 0], axis=1),
    "take_along_axis": lambda x: ops.take_along_axis(x, ops.convert_to_tensor([[2, 0, 1], [1, 1, 0]], dtype="int32"), axis=1),
    "tan": lambda x: ops.tan(unit(x)),
    "tanh": ops.tanh,
    "tanh_shrink": ops.tanh_shrink,
    "tile": lambda x: ops.tile(x[:, :1], [1, 3]),
    "trace": lambda x: x + ops.trace(square_matrix(x)) * 0.1,
    "transpose": lambda x: ops.transpose(ops.transpose(x) * 2.0),
    "tril": lambda x: ops.tril(x) + x,
    "triu": lambda x: ops.triu(x) + x,
    "unstack": lambda x: ops.stack(ops.unstack(x, axis=0)[::-1], axis=0),
    "var": lambda x: x * ops.var(x, axis=1, keepdims=True),
}
TWO = {
    "add": ops.add,
    "arctan2": lambda x, y: ops.arctan2(x, positive(y)),
    "divide": lambda x, y: ops.divide(x, positive(y)),
    "divide_no_nan": lambda x, y: ops.divide_no_nan(x, positive(y)),
    "dot": lambda x, y: ops.dot(x, ops.transpose(y))[:, :1] * 0.3 + x,
    "hypot": lambda x, y: ops.hypot(positive(x), positive(y)),
    "inner": lambda x, y: ops.inner(x, y)[:, :1] * 0.3 + y,
    "logaddexp": ops.logaddexp,
    "matmul": lambda x, y: ops.matmul(x, square_matrix(y)) * 0.3,
    "maximum": lambda x, y: ops.maximum(x + 50.0, y) - 50.0,
    "minimum": lambda x, y: ops.minimum(x - 50.0, y) + 50.0,
    "multiply": lambda x, y: ops.multiply(unit(x), y),
    "outer": lambda x, y: ops.reshape(ops.outer(x[0, :2], y[0]), SHAPE) * 0.3,
    "power": lambda x, y: ops.power(positive(x), unit(y)),
    "subtract": ops.subtract,
    "tensordot": lambda x, y: ops.tensordot(x, square_matrix(y), axes=1) * 0.3,
    "where": lambda x, y: ops.where(ops.convert_to_tensor([[True, False, True], [False, True, False]]), x, y),
}


def composition(names):
    """A function of one array: each step takes results before it, by their numbers."""

    def f(x):
        results = [x]
        for name, first, second in names:
            one, other = results[first % len(results)], results[second % len(results)]
            # Numbers stay where a function of Keras is neither flat nor steep.
            one, other = 3.0 * ops.tanh(one / 3.0), 3.0 * ops.tanh(other / 3.0)
            results.append(ONE[name](one) if name in ONE else TWO[name](one, other))
        return results[-1]

    return f


@contextlib.contextmanager
def double():
    with current().double_precision(), private.wide_floats():
        yield


def gradients(f, x, weights):
    """By the tape and by `value_and_grad`, of the results' weighted sum."""
    with double():
        tensor = ops.convert_to_tensor(x, dtype="float64")
        seeds = ops.convert_to_tensor(weights, dtype="float64")
        with kustom.GradientTape() as tape:
            tape.watch(tensor)
            y = ops.sum(f(tensor) * seeds)
        by_tape = tape.gradient(y, tensor, unconnected_gradients="zero")
        _, by_function = kustom.value_and_grad(lambda x: ops.sum(f(x) * seeds))(tensor)
        by_function = ops.zeros_like(tensor) if by_function is None else by_function
        return ops.convert_to_numpy(by_tape), ops.convert_to_numpy(by_function)


def agree(f, x):
    weights = np.random.default_rng(1).normal(size=SHAPE)
    by_tape, by_function = gradients(f, x, weights)
    scale = max(1.0, float(np.max(np.abs(by_tape))))
    np.testing.assert_allclose(by_tape, by_function, rtol=0, atol=1e-10 * scale)
    report = kustom.check_gradient(f, x)
    assert report.precision == "float64"
    assert report.kinks == 0, report


def test_there_are_many():
    assert len({name.split(",")[0] for name in (*ONE, *TWO)}) >= 60
    assert all(hasattr(ops, name.split(",")[0]) for name in (*ONE, *TWO))


# On JAX each has a dozen programs to be compiled: there `make test` looks at every fourth.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if keras.backend.backend() == "jax" and i % 4 else name
    for i, name in enumerate([*ONE, *TWO])
]


@pytest.mark.parametrize("name", NAMES)
def test_each_function_alone(name):
    agree(composition([(name, 0, 0)]), np.random.default_rng(0).normal(size=SHAPE))


# Few, since each has operations of its own to be traced; `make test-all` has more.
STEPS = st.lists(st.tuples(st.sampled_from([*ONE, *TWO]), st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=5)
UNHURRIED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "derandomize": True}


@settings(max_examples=15, **UNHURRIED)
@given(names=STEPS, seed=st.integers(0, 1000))
def test_compositions(names, seed):
    agree(composition(names), np.random.default_rng(seed).normal(size=SHAPE))


@pytest.mark.slow
@settings(max_examples=300, **UNHURRIED)
@given(names=STEPS, seed=st.integers(0, 1000))
def test_many_compositions(names, seed):
    agree(composition(names), np.random.default_rng(seed).normal(size=SHAPE))
