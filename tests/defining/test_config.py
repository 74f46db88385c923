"""Configs are plain JSON, and what comes back has the type that went in."""

from __future__ import annotations

import json
import math

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kustom import errors
from kustom.defining.config import decode, encode, same

PLAIN = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text() | st.binary()
ARRAYS = hnp.arrays(
    st.sampled_from(["float32", "float64", "int64", "int8", "bool", "float16", "<U3"]),
    hnp.array_shapes(min_dims=0, min_side=0),
)
VALUES = st.recursive(
    PLAIN | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=8,
)


def _through_json(value):
    return decode(json.loads(json.dumps(encode(value, "setting"), allow_nan=False)))


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_every_value_comes_back_as_it_was(value):
    back = _through_json(value)
    assert same(back, value), (back, value)


@pytest.mark.parametrize("array", [np.ones((0, 3)), np.array(2.0, "float32"), np.array([math.nan, math.inf, -math.inf])])
def test_odd_arrays_come_back(array):
    back = _through_json(array)
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(back, array)


def test_an_array_of_bfloat16_comes_back():
    array = np.array([1.5, math.inf], ml_dtypes.bfloat16)
    back = _through_json(array)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back.astype("float32"), array.astype("float32"))


def test_keras_objects_come_back():
    back = _through_json({"init": keras.initializers.HeNormal(seed=1), "layers": [keras.layers.Dense(3)]})
    assert back["init"].seed == 1
    assert back["layers"][0].units == 3
    assert _through_json(keras.activations.relu) is keras.activations.relu
    assert _through_json(slice(1, 5, None)) == slice(1, 5, None)


def test_a_dict_that_looks_like_a_config_stays_a_dict():
    value = {"class_name": "Dense", "config": {"units": 3}}
    assert _through_json(value) == value


def test_what_keras_wrote_is_read():
    written = keras.saving.serialize_keras_object({"a": np.arange(3), "b": b"x"})
    back = decode(written)
    np.testing.assert_array_equal(back["a"], np.arange(3))
    assert back["b"] == b"x"


@pytest.mark.parametrize(
    "value",
    [object(), lambda x: x, 1 + 2j, np.array([1j]), np.array([object()]), np.array([b"x"]), {1, 2}],
    ids=lambda v: type(v).__name__,
)
def test_what_no_config_can_hold_is_refused_by_name(value):
    with pytest.raises(errors.UnsavableSettingError, match="the setting 'odd'"):
        encode(value, "odd")


def test_same_tells_types_apart():
    assert not same((1, 2), [1, 2])
    assert not same(1, 1.0)
    assert not same(True, 1)
    assert not same(np.ones(2), [1.0, 1.0])
    assert not same(np.ones(2, "float32"), np.ones(2))
    assert same(math.nan, math.nan)
    assert same({"a": (1, np.ones(2))}, {"a": (1, np.ones(2))})
