"""Numbers as arguments of a compiled function: those that are large, and those that are sizes."""

from __future__ import annotations

import functools
import re
import warnings

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom.errors import EagerWarning, FunctionError

BACKEND = keras.backend.backend()
LARGE = [2**31, -(2**31) - 1, 3_000_000_000, 2**40, -(2**63), 2**63 - 1]


def whole(x):
    return int(ops.convert_to_numpy(x))


@pytest.mark.skipif(BACKEND == "jax", reason="there are no wider integers there than of 32 bits")
@pytest.mark.parametrize("value", LARGE)
def test_a_large_number_comes_through(value):
    f = kustom.function(lambda v: v + 0)
    assert [whole(f(each)) for each in (3, value, 4, value)] == [3, value, 4, value]


@pytest.mark.skipif(BACKEND != "jax", reason="there are wider integers there than of 32 bits")
@pytest.mark.parametrize("value", LARGE)
def test_a_large_number_is_refused_on_jax(value):
    f = kustom.function(lambda v: v + 0)
    with pytest.raises(FunctionError, match="static_argnames"):
        f(value)
    assert whole(f(3)) == 3


@pytest.mark.parametrize("value", [2**31 - 1, -(2**31)])
def test_the_largest_that_fits_everywhere(value):
    f = kustom.function(lambda v: v + 0)
    assert [whole(f(3)), whole(f(value))] == [3, value]
    assert f.traces == 1


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400])
def test_a_number_beyond_all_integers(value):
    with pytest.raises(FunctionError, match="widest integers"):
        kustom.function(lambda v: v)(value)


def test_a_large_number_as_part_of_the_program():
    f = kustom.function(lambda x, v: x * float(v), static_argnames="v")
    assert float(ops.convert_to_numpy(f(2.0, 2**40))) == 2.0**41


@pytest.mark.parametrize("given", [np.array([2**40]), np.int64(2**40)])
def test_a_large_number_in_an_array(given):
    f = kustom.function(lambda x: ops.cast(ops.max(x) // 2**20, "float32"))
    if keras.backend.backend() != "jax":
        assert float(ops.convert_to_numpy(f(given))) == 2**20
        return
    with pytest.raises(FunctionError, match="from 1099511627776 to 1099511627776, and the widest integers of jax are int32"):
        f(given)


@pytest.mark.parametrize("given", [np.array([None]), np.array(["2020-01-01"], "datetime64[D]")])
def test_an_array_that_is_no_tensor_is_named(given):
    with pytest.raises(FunctionError, match=f"array of {re.escape(str(given.dtype))}, of which"):
        kustom.function(lambda x: x)(given)


def test_a_size_is_a_number_that_is_asked_for():
    @kustom.function
    def zeros(n):
        return ops.sum(ops.ones((n,)))

    if BACKEND == "tensorflow":
        # There a shape may be a tensor.
        assert whole(zeros(3)) == 3
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert [whole(zeros(n)) for n in (3, 4)] == [3, 4]
    assert ["static_argnames" in str(each.message) for each in seen if each.category is EagerWarning] == [True]


def test_another_type_error_is_none_of_a_size():
    @kustom.function
    def f(x):
        return ops.reshape(x, "three")

    with warnings.catch_warnings():
        warnings.simplefilter("error", EagerWarning)
        with pytest.raises((TypeError, ValueError, RuntimeError), match=r"."):
            f(np.ones(3, "float32"))


def generates(n):
    yield n


async def awaits(n):
    return n


async def generates_asynchronously(n):
    yield n


class Generates:
    def __call__(self, n):
        yield n


class Keeps:
    def generates(self, n):
        yield n


@pytest.mark.parametrize(
    ("f", "kind"),
    [
        (generates, "generator"),
        (generates_asynchronously, "generator"),
        (awaits, "async"),
        (functools.partial(generates, 2), "generator"),
        (Generates(), "generator"),
        (Keeps().generates, "generator"),
        (Keeps.generates, "generator"),
    ],
)
def test_what_computes_nothing_when_it_is_called_is_refused(f, kind):
    with pytest.raises(FunctionError, match=kind):
        kustom.function(f)
