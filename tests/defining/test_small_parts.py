"""Decorated activations, initializers, regularizers, constraints and layers."""

from __future__ import annotations

import copy
import inspect
import json
import pickle

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors
from kustom.typing import ActivationLike


@kustom.activation
def leaky(x, *, slope: float = 0.01):
    """Leaky ReLU."""
    return ops.where(x < 0, slope * x, x)


@kustom.initializer
def gaussian(shape, dtype, *, stddev=1.0, seed=None):
    return keras.random.normal(shape, stddev=stddev, dtype=dtype, seed=seed)


@kustom.initializer
def filled(shape, dtype=None, *, value: float):
    return ops.full(shape, value, dtype=dtype)


@kustom.initializer
def transposed(shape, dtype=None):
    return ops.zeros(shape[::-1], dtype=dtype)


@kustom.initializer
def shapely(shape):
    return ops.ones(shape, "int32")


@kustom.regularizer
def l1(w, *, factor=0.01):
    return factor * ops.sum(ops.abs(w))


@kustom.regularizer
def not_summed(w):
    return ops.abs(w)


@kustom.regularizer
def towards(w, *, target: np.ndarray, strength=0.1):
    return strength * ops.sum(ops.square(w - target))


@kustom.constraint
def positive(w):
    return ops.where(w < 0.0, 0.0, w)


@kustom.constraint
def shrunk(w):
    return w[:1]


@kustom.layer
def power(x, *, exponent=2.0):
    """The power of each entry, with its sign."""
    return ops.sign(x) * ops.abs(x) ** exponent


@kustom.layer
def noise(x, *, stddev=1.0, seed: int | None = None, training=None):
    return x + keras.random.normal(ops.shape(x), stddev=stddev, seed=seed, dtype=x.dtype) if training else x


@kustom.layer
def masked_mean(x, *, mask=None):
    if mask is None:
        return ops.mean(x, axis=1)
    weight = ops.cast(mask, x.dtype)[..., None]
    return ops.sum(x * weight, axis=1) / ops.sum(weight, axis=1)


@kustom.layer
def added(a, b, *, scale=1.0):
    return a + scale * b


@kustom.layer
def activated(x, *, activation: ActivationLike = "relu"):
    return activation(x)


X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")


def _numpy(x):
    return keras.ops.convert_to_numpy(x)


# --- activations


def test_an_activations_name_is_the_default_part():
    np.testing.assert_allclose(leaky([-1.0, 2.0]), [-0.01, 2.0])
    np.testing.assert_allclose(leaky([-1.0, 2.0], slope=0.5), [-0.5, 2.0])
    assert leaky.slope == 0.01
    assert leaky.get_config() == {"slope": 0.01}
    assert leaky().get_config() == leaky.get_config()


def test_with_settings_an_activation_is_another_part():
    part = leaky(slope=0.5)
    np.testing.assert_allclose(part([-1.0]), [-0.5])
    assert repr(part) == "leaky(slope=0.5)"
    assert repr(part()) == "leaky(slope=0.5)"


def test_an_activation_looks_like_its_function():
    assert leaky.__name__ == "leaky"
    assert leaky.__doc__ == "Leaky ReLU."
    assert list(inspect.signature(leaky).parameters) == ["x", "slope"]
    assert inspect.isfunction(leaky.fn)


def test_an_activation_keeps_the_dtype_of_its_data():
    assert keras.backend.standardize_dtype(leaky(ops.ones((2,), "float16")).dtype) == "float16"
    assert keras.backend.standardize_dtype(leaky(np.ones(2)).dtype) == "float32"


def test_activations_pickle_and_copy():
    for part in (leaky, leaky(slope=0.5)):
        for twin in (pickle.loads(pickle.dumps(part)), copy.deepcopy(part)):
            assert twin.get_config() == part.get_config()


@pytest.mark.parametrize("activation", [leaky, leaky(slope=0.5), power], ids=repr)
def test_a_layer_takes_and_saves_an_activation(activation, trip):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation=activation), keras.layers.Dense(1)])
    loaded = trip(model)
    np.testing.assert_allclose(model.predict(X, verbose=0), loaded.predict(X, verbose=0), rtol=1e-6)
    assert loaded.layers[0].get_config()["activation"] == model.layers[0].get_config()["activation"]


def test_unknown_settings_of_an_activation():
    with pytest.raises(errors.UnknownSettingError, match="mean 'slope'"):
        leaky(slop=0.5)


# --- initializers


def test_two_draws_of_one_part_differ_and_a_new_part_repeats_them():
    first, second = gaussian(seed=3), gaussian(seed=3)
    a, b = _numpy(first((4, 4))), _numpy(first((4, 4)))
    assert not np.allclose(a, b)
    np.testing.assert_array_equal(a, _numpy(second((4, 4))))
    np.testing.assert_array_equal(b, _numpy(second((4, 4))))
    np.testing.assert_array_equal(a, _numpy(gaussian((4, 4), seed=3)))


def test_without_a_seed_two_parts_differ_and_the_global_seed_repeats_them():
    keras.utils.set_random_seed(5)
    a, b = _numpy(gaussian()((4,))), _numpy(gaussian()((4,)))
    keras.utils.set_random_seed(5)
    assert not np.allclose(a, b)
    np.testing.assert_array_equal(a, _numpy(gaussian()((4,))))


def test_a_seed_generator_moves_on_by_itself(trip):
    part = gaussian(seed=keras.random.SeedGenerator(7))
    assert not np.allclose(_numpy(part((4,))), _numpy(part((4,))))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_have_the_shape_and_dtype_asked_for(dtype):
    for part in (gaussian(), filled(value=2.0), shapely()):
        values = part((2, 3), dtype)
        assert tuple(values.shape) == (2, 3)
        assert keras.backend.standardize_dtype(values.dtype) == dtype
    assert keras.backend.standardize_dtype(shapely()((2,)).dtype) == "float32"


def test_another_shape_is_refused():
    with pytest.raises(errors.ShapeError, match=r"asked for the shape \(2, 3\) and returned \(3, 2\)"):
        transposed()((2, 3))


@pytest.mark.parametrize("identifier", [gaussian, gaussian(seed=1), filled(value=0.5)], ids=repr)
def test_a_layer_takes_and_saves_an_initializer(identifier, trip):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, kernel_initializer=identifier)])
    loaded = trip(model).layers[0].kernel_initializer
    assert isinstance(loaded, keras.initializers.Initializer)
    assert loaded.get_config() == model.layers[0].kernel_initializer.get_config()


def test_a_registered_name_works_as_text_for_an_initializer():
    layer = keras.layers.Dense(2, kernel_initializer=keras.saving.get_registered_name(gaussian))
    layer.build((None, 3))
    assert isinstance(layer.kernel_initializer, gaussian)


def test_copies_of_an_initializer_go_on_from_where_it_is():
    part = gaussian(seed=1)
    part((2,))
    twin = copy.deepcopy(part)
    np.testing.assert_array_equal(_numpy(part((3,))), _numpy(twin((3,))))
    assert pickle.loads(pickle.dumps(part)).get_config() == part.get_config()


# --- regularizers and constraints


def test_a_regularizer_gets_a_tensor_and_gives_one_number(trip):
    assert float(ops.stop_gradient(l1(factor=0.5)(keras.Variable([1.0, -3.0])))) == 2.0
    with pytest.raises(errors.ShapeError, match=r"returned the shape \(2,\).*one number"):
        not_summed()(np.ones(2))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, kernel_regularizer=l1(factor=0.3))])
    model.compile("sgd", "mse")
    model.fit(X, X[:, :1] + np.zeros(4), verbose=0)
    assert trip(model).layers[0].kernel_regularizer.factor == 0.3


def test_a_regularizer_of_the_activity():
    layer = keras.layers.Dense(2, activity_regularizer=l1, kernel_initializer="ones")
    layer(np.ones((1, 3), "float32"))
    assert float(ops.stop_gradient(layer.losses[0])) == pytest.approx(0.06)


def test_an_array_setting_of_a_regularizer_comes_back_as_it_was(trip):
    target = np.full((3, 2), 0.5, "float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_regularizer=towards(target=target))])
    loaded = trip(model).layers[0].kernel_regularizer
    np.testing.assert_array_equal(loaded.target, target)
    assert loaded.target.dtype == target.dtype
    json.dumps(model.layers[0].get_config(), allow_nan=False)


def test_a_constraint_works_compiled_and_is_saved(trip):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, kernel_constraint=positive)])
    model.compile("sgd", "mse")
    model.fit(X, -np.ones((6, 4)), verbose=0, epochs=2)
    assert _numpy(model.layers[0].kernel).min() >= 0
    assert isinstance(trip(model).layers[0].kernel_constraint, positive)


def test_a_constraint_keeps_shape_and_dtype():
    assert keras.backend.standardize_dtype(positive()(ops.ones((2,), "float16")).dtype) == "float16"
    with pytest.raises(errors.ShapeError, match=r"shape \(2, 2\) and returned \(1, 2\)"):
        shrunk()(np.ones((2, 2)))


# --- layers


def test_a_layer_in_every_kind_of_model(trip):
    inputs = keras.Input((3,))
    functional = keras.Model(inputs, power(power(exponent=1.5)(inputs)))
    sequential = keras.Sequential([keras.Input((3,)), power(exponent=1.5), power()])
    for model in (functional, sequential):
        loaded = trip(model)
        np.testing.assert_allclose(model.predict(X, verbose=0), loaded.predict(X, verbose=0))
        assert [layer.exponent for layer in loaded.layers if isinstance(layer, power)] == [1.5, 2.0]
    np.testing.assert_allclose(_numpy(power(X, exponent=3.0)), np.sign(X) * abs(X) ** 3, rtol=1e-5)


def test_a_bare_layer_is_no_layer_instance():
    assert isinstance(power(), keras.layers.Layer)
    assert not isinstance(power, keras.layers.Layer)


def test_training_and_seed_are_handed_over(trip):
    layer = noise(seed=1)
    np.testing.assert_array_equal(_numpy(layer(X)), X)
    a, b = _numpy(layer(X, training=True)), _numpy(layer(X, training=True))
    assert not np.allclose(a, X)
    assert not np.allclose(a, b)
    np.testing.assert_array_equal(a, _numpy(noise(seed=1)(X, training=True)))
    model = keras.Sequential([keras.Input((3,)), noise(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(X, X[:, :1], verbose=0, epochs=2)
    assert trip(model).layers[0].get_config() == model.layers[0].get_config()


def test_a_list_of_numbers_is_one_input():
    np.testing.assert_allclose(_numpy(power([1.0, -2.0])), [1.0, -4.0])


def test_an_array_default_takes_a_list():
    @kustom.regularizer(package="arrays")
    def weighted(w, *, scale=np.ones(2)):  # noqa: B008
        return ops.sum(w * scale)

    assert float(weighted(scale=[2.0, 3.0])([1.0, 1.0])) == 5.0


def test_a_mask_is_used_and_passed_on():
    ids = np.array([[1, 2, 0], [3, 0, 0]])
    embedded = keras.layers.Embedding(5, 4, mask_zero=True)(ids)
    from kustom.backends.keras import get_keras_mask

    np.testing.assert_array_equal(_numpy(get_keras_mask(power()(embedded))), ids != 0)
    pooled = masked_mean()(embedded)
    np.testing.assert_allclose(_numpy(pooled)[1], _numpy(embedded)[1, 0], rtol=1e-5)
    assert get_keras_mask(pooled) is None
    np.testing.assert_allclose(_numpy(masked_mean(embedded)), _numpy(pooled), rtol=1e-6)


def test_several_inputs(trip):
    a, b = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([a, b], added(scale=2.0)(a, b))
    np.testing.assert_allclose(trip(model).predict([X, X], verbose=0), 3 * X, rtol=1e-6)


def test_a_layer_setting_may_be_an_activation(trip):
    model = keras.Sequential([keras.Input((3,)), activated(activation=leaky(slope=0.5))])
    np.testing.assert_allclose(trip(model).predict(X, verbose=0), np.where(X < 0, X / 2, X), rtol=1e-6)
    assert activated().activation is keras.activations.relu


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_a_layer_computes_in_its_policys_dtype(policy):
    layer = power(dtype=policy)
    assert keras.backend.standardize_dtype(layer(X).dtype) == layer.compute_dtype


def test_a_layer_made_of_symbolic_data_is_a_node_of_the_model(trip):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, power(inputs, exponent=3.0))
    assert isinstance(model.layers[1], power)
    assert trip(model).layers[1].exponent == 3.0


def test_bad_layer_functions_are_refused():
    with pytest.raises(errors.DefinitionError, match="a setting is keyword-only"):

        @kustom.layer
        def positional(x, rate=0.5): ...

    with pytest.raises(errors.ReservedNameError, match="'losses'"):

        @kustom.layer
        def reserved(x, *, losses=1): ...


@kustom.layer
def scaled_attention(q, k, v, *, scale=1.0):
    return ops.matmul(ops.softmax(scale * ops.matmul(q, ops.transpose(k, (0, 2, 1)))), v)


@pytest.mark.parametrize("symbolic", [False, True])
def test_a_list_is_one_argument_of_a_layer_of_several_inputs(symbolic):
    x = keras.Input((2, 3)) if symbolic else np.ones((1, 2, 3), "float32")
    said = r"scaled_attention takes 3 inputs \(q, k, v\) and was given one argument, a list of 3\..*attention\(...\)\(q, k, v\)"
    with pytest.raises(errors.UnknownSettingError, match=said):
        scaled_attention()([x, x, x])
    with pytest.raises(errors.UnknownSettingError, match="and was given 2"):
        scaled_attention()(x, x)
    assert scaled_attention()(x, k=x, v=x).shape == x.shape


@pytest.mark.parametrize("kind", [kustom.regularizer, kustom.constraint, kustom.activation, kustom.layer], ids=lambda k: k.__name__)
def test_a_missing_return_is_named(kind):
    @kind(package=f"silent_{kind.__name__}")
    def silent(x):
        ops.abs(x)

    with pytest.raises(errors.ReturnError, match=r"silent returned None.*is a return missing\?"):
        silent(np.ones(3, "float32"))


def test_a_missing_return_of_a_class_is_named():
    @kustom.part
    class SilentPenalty(keras.regularizers.Regularizer):
        def __call__(self, x):
            ops.sum(x)

    with pytest.raises(errors.ReturnError, match="SilentPenalty returned None"):
        SilentPenalty()(np.ones(3, "float32"))
