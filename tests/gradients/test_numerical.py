"""Differences, and the verdict by their order of convergence."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors
from kustom.backends import keras as private

RNG = np.random.default_rng(0)


def scaled(factor, offset=0.0):
    """The square, with a gradient that is off."""

    @kustom.custom_gradient
    def square(x):
        return x**2, lambda upstream: upstream * 2 * x * factor + offset

    return square


def test_the_notebooks_numbers():
    gradients = kustom.numerical_gradient(lambda w1, w2: 3 * w1**2 + 2 * w1 * w2, 5.0, 3.0)
    np.testing.assert_allclose(gradients, [36.0, 10.0], rtol=1e-10)


def test_differences_of_arrays_and_structures():
    found = kustom.numerical_gradient(lambda p: ops.sum(p["a"] ** 2) * p["b"], {"a": np.array([1.0, 2.0]), "b": np.array(3.0)})
    np.testing.assert_allclose(found["a"], [6.0, 12.0], rtol=1e-9)
    np.testing.assert_allclose(found["b"], 5.0, rtol=1e-9)


def test_integers_are_handed_on():
    first, second = kustom.numerical_gradient(lambda x, i: ops.sum(ops.take(x, i)), [1.0, 2.0], [1, 1])
    np.testing.assert_allclose(first, [0.0, 2.0], atol=1e-9)
    assert second is None


def test_differences_of_what_is_no_scalar_are_refused():
    with pytest.raises(errors.GradientError, match=r"returned the shape \(2,\), where a scalar"):
        kustom.numerical_gradient(lambda x: x, [1.0, 2.0])


RIGHT = {
    "a polynomial": (lambda x: x**3 - x, [[1.0, -2.0, 0.5]]),
    "a product of matrices": (ops.matmul, [RNG.normal(size=(3, 4)), RNG.normal(size=(4, 2))]),
    "softmax": (ops.softmax, [RNG.normal(size=(2, 5))]),
    "steep": (ops.log, [[1e-3, 1e5]]),
    "near the end of its domain": (ops.sqrt, [[1e-6]]),
    "large": (lambda x: ops.exp(x), [[20.0]]),
    "tiny": (lambda x: x * 1e-9, [[3.0]]),
    "a constant": (lambda x: ops.zeros_like(x) + 0 * x, [[3.0]]),
    "several results": (lambda x: (ops.sin(x), {"b": ops.sum(x)}), [[1.0, 2.0]]),
    "many entries": (lambda x: ops.sum(ops.tanh(x) * x), [RNG.normal(size=(150, 100))]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_gradient_agrees(name):
    f, args = RIGHT[name]
    report = kustom.check_gradient(f, *args)
    assert report.ok
    assert report
    assert report.kinks == 0
    assert report.precision == "float64"


WRONG = {
    "twice as large": scaled(2.0),
    "a ten thousandth off": scaled(1.0001),
    "a millionth off": scaled(1.000001),
    "with something added": scaled(1.0, 1e-5),
    "with another sign": scaled(-1.0),
    "not a number": scaled(np.nan),
    "infinite": scaled(np.inf),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gradient_is_found(name):
    with pytest.raises(errors.GradientCheckError, match=r"square: .*do not|square: .*does not"):
        kustom.check_gradient(WRONG[name], [1.0, 2.0, -3.0])


def test_a_small_gradient_reported_as_zero_is_found():
    @kustom.custom_gradient
    def small(x):
        return x * 1e-6, lambda upstream: ops.zeros_like(upstream)

    assert not kustom.check_gradient(small, 2.0, on_fail=None)


def test_one_entry_of_a_thousand_is_found():
    mask = np.ones(1000)
    mask[577] = 1.05

    @kustom.custom_gradient
    def square(x):
        return x**2, lambda upstream: upstream * 2 * x * ops.convert_to_tensor(mask, dtype=x.dtype)

    report = kustom.check_gradient(lambda x: ops.sum(square(x)), RNG.normal(size=1000) + 3, on_fail=None)
    assert [row.where for row in report.failures] == ["d y / d argument 0[577]"]


def test_all_entries_of_a_large_array_a_hundredth_off_are_found():
    assert not kustom.check_gradient(scaled(1.01), RNG.normal(size=(200, 100)), on_fail=None)


@pytest.mark.parametrize("f", [ops.relu, ops.abs, lambda x: ops.maximum(x, 0.0)], ids=["relu", "abs", "maximum"])
def test_kinks_are_told_and_counted(f):
    report = kustom.check_gradient(f, [0.0, 1.0, -1.0])
    assert report.kinks == 1
    assert "1 at a kink" in str(report)


def test_where_every_place_is_a_kink_nothing_was_compared():
    with pytest.raises(errors.GradientCheckError, match="every place is a kink"):
        kustom.check_gradient(ops.abs, [0.0])


def test_a_number_outside_of_the_subgradients_is_wrong_at_a_kink_too():
    @kustom.custom_gradient
    def broken(x):
        return ops.relu(x), lambda upstream: upstream * 7.0

    assert kustom.check_gradient(broken, [0.0, 1.0], on_fail=None).failures


def test_what_computes_in_float32_inside_is_held_against_float32():
    report = kustom.check_gradient(lambda x: ops.cast(ops.cast(x, "float32") ** 2, "float64"), [1.3, 2.7])
    assert report.precision == "float32"
    dense = keras.layers.Dense(3, activation="tanh")
    dense.build((None, 4))
    assert kustom.check_gradient(dense, RNG.normal(size=(2, 4))).precision == "float32"
    # At 0, too, where a step by the number's own size would move nothing.
    shifted = kustom.check_gradient(lambda x: ops.cast(ops.sin(ops.cast(x, "float32") + 1.3), "float64"), np.zeros(3))
    assert shifted.precision == "float32"


def test_a_function_that_is_not_deterministic_is_told():
    rng = np.random.default_rng(0)
    report = kustom.check_gradient(lambda x: x * rng.uniform(), [1.0, 2.0], on_fail=None)
    assert not report.ok


def test_a_seeded_layer_is_the_same_function_each_time_and_keeps_its_state():
    layer = keras.layers.Dropout(0.5, seed=1, dtype="float64")
    before = ops.convert_to_numpy(layer.seed_generator.state).copy()
    assert kustom.check_gradient(lambda x: layer(x, training=True), np.ones((2, 3))).ok
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.seed_generator.state), before)


def test_a_gradient_that_squares_its_upstream_is_told():
    @kustom.custom_gradient
    def broken(x):
        return x**2, lambda upstream: upstream * upstream * 2 * x

    report = kustom.check_gradient(broken, [1.0, 2.0], on_fail=None)
    assert any("not linear" in note for note in report.notes)


def test_a_steep_function_is_no_excuse():
    @kustom.custom_gradient
    def half(x):
        return ops.sin(1e5 * x), lambda upstream: upstream * 0.5e5 * ops.cos(1e5 * x)

    assert kustom.check_gradient(half, [0.3, -1.2, 2.5], on_fail=None).failures


def test_nothing_at_all_is_refused():
    with pytest.raises(errors.GradientError, match="no numbers at all"):
        kustom.check_gradient(lambda x: x[:0], [1.0, 2.0])


def test_a_backward_pass_that_is_not_linear_in_its_upstream_is_told():
    @kustom.custom_gradient
    def broken(x):
        return x * 2.0, lambda upstream: upstream * 0 + 2.0

    report = kustom.check_gradient(lambda x: ops.sum(broken(x)), [1.0, 2.0], on_fail=None)
    assert any("upstream of 0" in note for note in report.notes)


def test_the_report_is_a_table():
    report = kustom.check_gradient(scaled(2.0), [[1.0, 2.0]], on_fail=None)
    lines = str(report).splitlines()
    assert lines[0] == "square: 4 derivatives compared with differences in float64: 2 agree, 2 do not."
    assert lines[1].split() == ["gradient", "differences", "give", "or", "take"]
    assert lines[2].split()[:8] == ["d", "y[0,", "1]", "/", "d", "argument", "0[0,", "1]"]
    assert lines[2].endswith("wrong")
    assert "<table>" in report._repr_html_()
    assert repr(report) == str(report)


def test_on_fail_has_two_words():
    with pytest.raises(errors.GradientError, match="'raise' or None"):
        kustom.check_gradient(ops.sin, 1.0, on_fail="warn")


def test_nothing_to_differentiate_by_is_refused():
    with pytest.raises(errors.GradientError, match="nothing to differentiate by"):
        kustom.check_gradient(lambda i: ops.cast(i, "float32"), [1, 2])
    with pytest.raises(errors.GradientError, match="returned str"):
        kustom.check_gradient(lambda x: "text", 1.0)
    with pytest.raises(errors.GradientError, match="returned int"):
        kustom.check_gradient(lambda x: ops.argmax(x), [1.0, 2.0])


def test_float64_stays_wide_inside_alone():
    before = keras.backend.result_type("float64", float)
    with private.wide_floats():
        assert keras.backend.result_type("float64", float) == "float64"
    assert keras.backend.result_type("float64", float) == before


def test_the_same_seed_gives_the_same_directions():
    f, x = (lambda x: ops.sum(ops.sin(x))), RNG.normal(size=(150, 100))
    assert str(kustom.check_gradient(f, x)) == str(kustom.check_gradient(f, x))
    assert str(kustom.check_gradient(f, x, seed=1)) != str(kustom.check_gradient(f, x))
