"""What a layer's `call` makes, or takes from the module around it, is refused; what the part holds is not."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom
from kustom import errors
from kustom.backends.keras import get_keras_mask

X = np.ones((2, 3), "float32")


@kustom.part
class MakesDense(layers.Layer):
    units: int = 3

    def call(self, x):
        return layers.Dense(self.units)(x)


@kustom.layer
def makes_dense(x, *, units=3):
    return layers.Dense(units)(x)


@kustom.part
class MakesModel(keras.Model):
    units: int = 3

    def call(self, x):
        return keras.Sequential([layers.Dense(self.units), layers.Dense(1)])(x)


@kustom.part
class MakesVariable(layers.Layer):
    def call(self, x):
        return x * keras.Variable(lambda shape, dtype: ops.ones(shape, dtype), shape=(3,))


@kustom.part
class MakesDropout(layers.Layer):
    def call(self, x):
        return layers.Dropout(0.5)(x)


@kustom.part
class MakesWithABuild(layers.Layer):
    def setup(self):
        self.first = layers.Dense(3)

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(3,), initializer="ones")

    def call(self, x):
        return layers.Dense(3)(self.first(x))


MAKERS = [MakesDense, makes_dense, MakesModel, MakesVariable, MakesDropout, MakesWithABuild]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__)
def test_what_call_makes_is_refused_on_data(maker):
    with pytest.raises(errors.TrackingError, match=rf"{maker.__name__}(\.call)? makes .* neither counted, trained nor saved"):
        maker()(X)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__)
def test_what_call_makes_is_refused_in_a_functional_model(maker):
    with pytest.raises(errors.TrackingError, match=r"in setup\(\) or build\(\), as an attribute of self"):
        maker()(keras.Input((3,)))


@pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__)
def test_it_is_refused_again_the_next_time(maker):
    part = maker()
    for _ in range(2):
        with pytest.raises(errors.TrackingError):
            part(X)


def test_it_is_refused_while_a_model_of_such_layers_trains():
    @kustom.part
    class Outer(keras.Model):
        def setup(self):
            self.inner = MakesDense()

        def call(self, x):
            return self.inner(x)

    model = Outer()
    model.compile("sgd", "mse")
    with pytest.raises(errors.TrackingError, match=r"MakesDense\.call makes"):
        model.fit(X, X, verbose=0)


def test_what_the_plain_function_makes_is_refused():
    with pytest.raises(errors.TrackingError, match="makes_dense makes"):
        makes_dense(X)


def test_what_only_training_makes_is_refused():
    @kustom.part
    class Noisy(layers.Layer):
        def call(self, x, training=False):
            return layers.Dense(3)(x) if training else x

    part = Noisy()
    part(X, training=False)
    with pytest.raises(errors.TrackingError):
        part(X, training=True)


@kustom.part
class WithoutState(layers.Layer):
    """Layers without weights may be made anywhere: nothing is lost."""

    def call(self, x):
        return layers.Add()([layers.ReLU()(x), x])


@kustom.part
class Draws(layers.Layer):
    """Keras keeps one seed for everybody, and makes it when it is first asked for."""

    def call(self, x):
        return x + keras.random.normal((3,))


@kustom.part
class BuiltByCall(layers.Layer):
    def setup(self):
        self.blocks = [layers.Dense(3), keras.Sequential([layers.Dense(3), layers.Dropout(0.1)])]
        self.seen = keras.metrics.Mean()

    def call(self, x, training=False):
        for block in self.blocks:
            x = block(x, training=training) if isinstance(block, keras.Model) else block(x)
        self.seen.update_state(ops.mean(x))
        return x


@kustom.layer
def applies(x, *, inner: layers.Layer):
    return inner(x)


def test_layers_without_weights_may_be_made_in_call():
    assert np.allclose(ops.convert_to_numpy(WithoutState()(X)), 2 * X)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="Keras refuses to draw without a seed while JAX traces")
def test_the_seed_that_keras_keeps_for_all_is_not_the_parts():
    model = keras.Sequential([keras.Input((3,)), Draws()])
    assert model(X).shape == (2, 3)
    keras.utils.clear_session()
    assert Draws()(X).shape == (2, 3)


def test_what_the_part_holds_may_be_built_by_its_call():
    assert BuiltByCall()(X).shape == (2, 3)
    assert BuiltByCall()(keras.Input((3,))).shape == (None, 3)
    inner = layers.Dense(2)
    assert applies(X, inner=inner).shape == (2, 2)
    assert applies(inner=layers.Dense(2))(X).shape == (2, 2)


shared = layers.Dense(3)
scale = keras.Variable(2.0)
seen = keras.metrics.Mean()
towers = [layers.Dense(3)]
flat = layers.Flatten()
dense = layers.Dense(3)


@kustom.part
class UsesShared(layers.Layer):
    def call(self, x):
        return shared(x)


@kustom.layer
def uses_shared(x):
    return shared(x)


@kustom.layer
def uses_scale(x):
    return x * scale


@kustom.part
class UsesMetric(layers.Layer):
    def call(self, x):
        seen.update_state(ops.mean(x))
        return x


@kustom.part
class UsesTowers(layers.Layer):
    def call(self, x):
        return next(tower(x) for tower in towers)


def through_shared(x):
    return shared(x)


@kustom.part
class UsesAFunction(layers.Layer):
    def call(self, x):
        return through_shared(x)


USERS = {
    UsesShared: "uses shared, a Dense",
    uses_shared: "uses shared, a Dense",
    uses_scale: "uses scale, a .*Variable",
    UsesMetric: "uses seen, a Mean",
    UsesTowers: "uses towers, a Dense",
    UsesAFunction: "uses shared, a Dense",
}


@pytest.mark.parametrize(("user", "said"), USERS.items(), ids=lambda p: getattr(p, "__name__", ""))
@pytest.mark.parametrize("symbolic", [False, True])
def test_state_of_the_module_is_refused(user, said, symbolic):
    with pytest.raises(errors.TrackingError, match=said):
        user()(keras.Input((3,)) if symbolic else X)


def test_layers_of_the_module_without_weights_may_be_used():
    @kustom.part
    class Flat(layers.Layer):
        def call(self, x):
            return flat(x)

    assert Flat()(X).shape == (2, 3)


def test_an_attribute_under_the_name_of_something_in_the_module_is_the_parts_own():
    @kustom.part
    class OwnDense(layers.Layer):
        def setup(self):
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    assert OwnDense()(X).shape == (2, 2)


@kustom.part
class Doubled(layers.Layer):
    def call(self, x, mask=None):
        return 2.0 * x


@kustom.part
class MeanOverTime(layers.Layer):
    def call(self, x, mask=None):
        if mask is None:
            return ops.mean(x, axis=1)
        counted = ops.expand_dims(ops.cast(mask, x.dtype), -1)
        return ops.sum(x * counted, axis=1) / ops.sum(counted, axis=1)


@kustom.part
class Own(layers.Layer):
    def call(self, x, mask=None):
        return 2.0 * x

    def compute_mask(self, inputs, previous_mask):
        return None if previous_mask is None else ops.logical_not(previous_mask)


def test_a_class_that_names_mask_passes_it_on_where_its_axes_are_kept(masked):
    x = masked([[[1.0], [2.0]]], [[True, False]])
    assert ops.convert_to_numpy(get_keras_mask(Doubled()(x))).tolist() == [[True, False]]
    assert get_keras_mask(MeanOverTime()(x)) is None
    assert ops.convert_to_numpy(get_keras_mask(Own()(x))).tolist() == [[False, True]]
    assert get_keras_mask(Doubled()(ops.ones((1, 2, 1)))) is None


def test_masks_reach_what_comes_behind_a_class_that_names_them(trip):
    inputs = keras.Input((4,), dtype="int32")
    hidden = Doubled()(layers.Embedding(5, 2, mask_zero=True)(inputs))
    model = keras.Model(inputs, MeanOverTime()(hidden))
    words = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    table = model.layers[1].get_weights()[0]
    expected = [2 * table[[1, 2]].mean(axis=0), 2 * table[3]]
    assert np.allclose(model.predict(words, verbose=0), expected, atol=1e-6)
    assert np.allclose(trip(model).predict(words, verbose=0), expected, atol=1e-6)
