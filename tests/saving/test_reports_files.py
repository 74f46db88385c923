"""Trouble with files that people reported with custom parts in plain Keras: each is right here, or refused with the reason.

Each report is followed by one more of its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
register = keras.saving.register_keras_serializable("reports_files")


@pytest.fixture
def again(tmp_path: Path) -> Callable[..., Any]:
    """Save a model with kustom, load it with kustom."""

    def go(model: Any, **options: Any) -> Any:
        kustom.save(model, tmp_path / "model.keras", **options)
        return kustom.load(tmp_path / "model.keras")

    return go


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Have kustom refuse to save a model; gives the message."""

    def go(model: Any, error: type[Exception] = errors.UnsavableError) -> str:
        with pytest.raises(error) as caught:
            kustom.save(model, tmp_path / "model.keras")
        assert list(tmp_path.iterdir()) == []
        return str(caught.value)

    return go


def around(*layers: Any, size: int = 3) -> Any:
    return keras.Sequential([keras.Input((size,)), *layers])


def outputs(model: Any, x: Any = X) -> np.ndarray:
    return ops.convert_to_numpy(model(x))


@register
class Grid(keras.layers.Layer):
    def __init__(self, how, **kwargs):
        super().__init__(**kwargs)
        self.how, self.grid = how, []
        for _ in range(2):
            row: Any = [] if how == "row first" else [keras.layers.Dense(3) for _ in range(2)]
            self.grid.append(row)
            for _ in range(2 if how == "row first" else 0):
                row.append(keras.layers.Dense(3))

    def build(self, input_shape):
        for row in self.grid:
            for cell in row:
                cell.build(input_shape)

    def call(self, x):
        for row in self.grid:
            for cell in row:
                x = cell(x)
        return x

    def get_config(self):
        return {**super().get_config(), "how": self.how}


def test_01_sublayers_in_a_list_of_lists_that_is_complete(again):
    model = around(Grid("row complete"))
    np.testing.assert_array_equal(outputs(again(model)), outputs(model))


def test_01_sublayers_that_are_saved_and_not_trained(refused):
    assert "never trained" in refused(around(Grid("row first")))


@register
class Hidden(keras.layers.Layer):
    def build(self, input_shape):
        object.__setattr__(self, "_tools", {"dense": keras.layers.Dense(3)})
        self._tools["dense"].build(input_shape)

    def call(self, x):
        return self._tools["dense"](x)


def test_01_a_sublayer_that_nobody_tracks(refused):
    assert refused(around(Hidden()))


@register
class OwnOnly(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.d1, self.d2 = keras.layers.Dense(3), keras.layers.Dense(3)

    def build(self, input_shape):
        self.k = self.add_weight(shape=(), name="k", initializer="ones")

    def call(self, x):
        return self.d2(self.d1(x)) * self.k

    def get_config(self):
        return {}


@register
class All(OwnOnly):
    def build(self, input_shape):
        super().build(input_shape)
        self.d1.build(input_shape)
        self.d2.build((*input_shape[:-1], 3))


@register
class Late(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Dense(3)

    def build(self, input_shape):
        self.built = True

    def call(self, x):
        return self.inner(x)


def test_11_a_build_that_forgets_the_children(refused):
    model = OwnOnly()
    model(X)
    assert "made by the first call" in refused(model)


def test_11_a_layer_whose_child_only_the_call_builds(again):
    # The call by which a functional model is made again builds it.
    model = around(Late())
    np.testing.assert_array_equal(outputs(again(model)), outputs(model))


def test_11_a_build_that_builds_the_children(again):
    model = All()
    model(X)
    np.testing.assert_array_equal(outputs(again(model)), outputs(model))


@register
class Tower(keras.Model):
    def __init__(self, width=4, scale=1.0, **kwargs):
        x = keras.Input((3,))
        super().__init__(inputs=x, outputs=keras.layers.Dense(width)(x) * scale, **kwargs)
        self.width, self.scale = width, scale


@register
class ToldTower(Tower):
    def get_config(self):
        return {"name": self.name, "width": self.width, "scale": self.scale}


@register
class QuietTower(keras.Model):
    def __init__(self, factor=1.0, **kwargs):
        x = keras.Input((3,))
        super().__init__(inputs=x, outputs=keras.layers.Dense(2)(x) * factor, **kwargs)


def test_15_a_functional_model_with_arguments(refused):
    message = refused(Tower(4, 3.0))
    assert "'scale' is 3.0 and would come back as 1.0" in message


def test_15_one_that_cannot_be_made_without_them(refused):
    assert "width" in refused(Tower(5, 3.0))


def test_15_one_that_keeps_its_argument_in_no_attribute(refused):
    assert "another output" in refused(QuietTower(3.0))


def test_15_one_that_tells_its_arguments(again):
    loaded = again(ToldTower(5, 3.0))
    assert (loaded.width, loaded.scale) == (5, 3.0)


def make_pinball(q):
    @register
    def pinball(y_true, y_pred):
        error = ops.subtract(y_true, y_pred)
        return ops.mean(ops.maximum(q * error, (q - 1) * error), axis=-1)

    return pinball


def make_scaled(k):
    @register
    class Scaled(keras.layers.Layer):
        def call(self, x):
            return x * k

    return Scaled


def compiled(loss: Any, metrics: Any = None) -> Any:
    model = around(keras.layers.Dense(1))
    model.compile("sgd", loss=loss, metrics=metrics)
    return model


def test_17_a_loss_that_is_a_closure(refused):
    assert "takes q from the function around it" in refused(compiled(make_pinball(0.9)), errors.ClosureError)


def test_17_a_layer_that_is_a_closure(refused):
    assert "takes k from the function around it" in refused(around(make_scaled(2.0)()), errors.ClosureError)


def test_17_a_loss_that_is_a_lambda(refused):
    assert "lambda" in refused(compiled(lambda y_true, y_pred: ops.abs(y_true - y_pred)))


@register
class A(keras.layers.Layer):
    def __init__(self, n, rate=0.5, **kwargs):
        super().__init__(**kwargs)
        self.n, self.rate = n, rate

    def call(self, x):
        return x


@register
class Appends(A):
    def __init__(self, n, **kwargs):
        super().__init__(n, **kwargs)
        n.append("extra")


class Other:
    pass


def test_20_settings_that_nobody_changed(again):
    loaded = again(around(A(3, rate=0.1))).layers[-1]
    assert (loaded.n, loaded.rate) == (3, 0.1)


def test_20_a_setting_that_was_changed_afterwards(refused):
    layer = A(1)
    layer.rate = 0.9
    assert "its setting 'rate' is 0.9 and would come back as 0.5" in refused(around(layer))


def test_20_a_list_that_the_layer_changes(refused):
    assert "'n'" in refused(around(Appends([1])))


@pytest.mark.parametrize("value", [np.tanh, Other(), np.arange(3.0)], ids=["function", "object", "array"])
def test_20_a_setting_that_no_config_tells(refused, value):
    assert "get_config" in refused(around(A(value)))


def test_20_a_tuple(again):
    assert again(around(A((1, (2, 3))))).layers[-1].n == (1, (2, 3))


@register
class HuberByHand(keras.losses.Loss):
    def __init__(self, threshold=1.0, **kwargs):
        super().__init__(**kwargs)
        self.limit = threshold

    def call(self, y_true, y_pred):
        error = ops.abs(y_true - y_pred)
        return ops.mean(ops.where(error < self.limit, error**2 / 2, self.limit * error - self.limit**2 / 2), axis=-1)


def test_20_the_setting_of_a_loss_without_get_config(refused):
    assert "'limit' is 2.0 and would come back as 1.0" in refused(compiled(HuberByHand(2.0)))


def lib(k):
    @keras.saving.register_keras_serializable()
    class Gate(keras.layers.Layer):
        factor = k

        def call(self, x):
            return x * self.factor

    return Gate


def test_22_a_class_whose_name_another_has_taken(refused):
    first = around(lib(2.0)())
    lib(-7.0)
    assert "as which it would come back" in refused(first)


def test_22_a_name_that_another_takes_after_saving(tmp_path):
    model = around(lib(2.0)())
    kustom.save(model, tmp_path / "model.keras")
    lib(-7.0)
    with pytest.raises(errors.OtherModelError, match="output was"):
        kustom.load(tmp_path / "model.keras")


def test_22_a_class_that_is_given_wins(tmp_path):
    first = lib(2.0)
    model = around(first())
    kustom.save(model, tmp_path / "model.keras")
    lib(-7.0)
    loaded = kustom.load(tmp_path / "model.keras", trust={"Custom>Gate": first})
    np.testing.assert_array_equal(outputs(loaded), outputs(model))
    assert type(loaded.layers[-1]) is first


@pytest.mark.parametrize("name", ["Gate", "Other>Gate", "Custom>Gates"])
def test_22_a_class_that_is_given_under_another_name(tmp_path, name):
    # Keras passes over what it is given so.
    first = lib(2.0)
    around(first()).save(tmp_path / "model.keras")
    lib(-7.0)
    with pytest.raises(errors.UntrustedError, match=r"gives '.*Gates?', and no part .* there is 'Custom>Gate'"):
        kustom.load(tmp_path / "model.keras", trust={name: first})
    unneeded = {"Custom>Gate": first, "other>Thing": Tail}
    assert type(kustom.load(tmp_path / "model.keras", trust=unneeded).layers[-1]) is first


@register
class Tail(keras.layers.Layer):
    def __init__(self, tail=(2,), **kwargs):
        super().__init__(**kwargs)
        self.tail = tail

    def build(self, input_shape):
        self.saw = type(input_shape).__name__
        self.w = self.add_weight(shape=input_shape[-1:] + self.tail, name="w")

    def call(self, x):
        return ops.matmul(x, self.w)

    def get_config(self):
        return {**super().get_config(), "tail": self.tail}


@register
class Two(keras.layers.Layer):
    def build(self, input_shape):
        self.saw = [type(each).__name__ for each in input_shape]
        self.built = True

    def call(self, inputs):
        return inputs[0] + inputs[1]


@register
class TwoInATuple(keras.layers.Layer):
    def build(self, input_shape):
        self.saw = type(input_shape).__name__

    def call(self, inputs):
        return inputs[0] + inputs[1]


def test_23_shapes_and_settings_are_tuples_after_loading(again):
    loaded = again(around(Tail())).layers[-1]
    assert (loaded.saw, loaded.tail) == ("tuple", (2,))


def test_23_the_shapes_of_several_inputs(again):
    one, other = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([one, other], Two()([one, other]))
    assert again(model).layers[-1].saw == ["tuple", "tuple"]


def test_23_several_inputs_in_a_tuple(again):
    one, other = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([one, other], TwoInATuple()((one, other)))
    assert again(model).layers[-1].saw == model.layers[-1].saw == "tuple"


def test_23_a_file_of_plain_keras(tmp_path):
    model = around(Tail())
    model.save(tmp_path / "model.keras")
    with pytest.raises(errors.RebuildError, match="can only concatenate"):
        # The shape is a tuple here, too; that the setting was one, the file does not know.
        kustom.load(tmp_path / "model.keras")


@register
class Total(keras.metrics.Metric):
    def __init__(self, name="total"):
        super().__init__(name=name)
        self.s = self.add_variable((), "zeros", name="s")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.s.assign_add(ops.sum(y_pred))

    def result(self):
        return self.s + 0.0


@register
class Positional(keras.losses.Loss):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, y_true, y_pred):
        return ops.mean(self.factor * ops.abs(y_true - y_pred), axis=-1)


def test_26_a_metric_that_takes_no_dtype(refused):
    assert "unexpected keyword argument 'dtype'" in refused(compiled("mse", [Total()]))


def test_26_a_loss_that_takes_no_name(refused):
    assert "unexpected keyword argument" in refused(compiled(Positional(2.0)))


@register
class Fast(keras.layers.Dense):
    def __init__(self, units, **kwargs):
        super().__init__(units, activation="relu", use_bias=True, **kwargs)


@register
class Own(keras.layers.Dense):
    def __init__(self, units, gain=1.0, **kwargs):
        super().__init__(units, **kwargs)
        self.gain = gain

    def call(self, x):
        return super().call(x) * self.gain


@register
class OwnDropout(keras.layers.Dropout):
    def __init__(self, rate, warm=0, **kwargs):
        super().__init__(rate, **kwargs)
        self.warm = warm


def test_28_fixed_arguments(refused):
    assert "multiple values for keyword argument" in refused(around(Fast(2)))


def test_28_an_extra_setting(refused):
    assert "'gain' is 5.0 and would come back as 1.0" in refused(around(Own(2, gain=5.0)))


def test_28_an_extra_setting_that_shows_in_no_output(refused):
    assert "'warm' is 3 and would come back as 0" in refused(around(OwnDropout(0.5, warm=3)))


@register
class Wrap(keras.layers.Layer):
    def __init__(self, inner, k=1.0, **kwargs):
        super().__init__(**kwargs)
        self.inner, self.k = inner, k

    def build(self, input_shape):
        if not self.inner.built:
            self.inner.build(input_shape)

    def call(self, x):
        return self.inner(x) * self.k

    def get_config(self):
        return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner), "k": self.k}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("inner")), **config)


def test_30_one_layer_in_two_parts_is_one_after_loading(again):
    shared = keras.layers.Dense(2, name="tied")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Wrap(shared)(inputs) + Wrap(shared, 2.0)(inputs))
    loaded = again(model)
    wraps = [layer for layer in loaded.layers if isinstance(layer, Wrap)]
    assert wraps[0].inner is wraps[1].inner
    assert len(loaded.weights) == 2
    for each in (model, loaded):
        each.compile(keras.optimizers.SGD(0.01), "mse")
        each.fit(X, np.ones((4, 2)), verbose=0)
    np.testing.assert_allclose(outputs(loaded), outputs(model), rtol=1e-6)


def in_a_sequential() -> Any:
    shared, inputs = keras.layers.Dense(3, name="tied"), keras.Input((3,))
    return keras.Model(inputs, around(shared, keras.layers.Dense(3))(inputs) + shared(shared(inputs)))


def in_a_functional_model() -> Any:
    one, other, inputs = keras.Input((3,)), keras.Input((3,)), keras.Input((3,))
    inner = keras.Model(one, keras.layers.Dense(3)(one))
    outer = keras.Model(other, [inner(other) * 2.0, inner(other)])
    return keras.Model(inputs, {"a": outer(inputs), "b": inner(inputs)})


def as_the_last_layer() -> Any:
    shared, inputs = around(keras.layers.Dense(3)), keras.Input((3,))
    return keras.Model(inputs, shared(around(shared, keras.layers.ReLU())(inputs)))


@pytest.mark.parametrize("make", [in_a_sequential, in_a_functional_model, as_the_last_layer])
def test_30_one_layer_in_a_model_and_in_a_model_of_that_is_one_after_loading(again, make):
    model = make()
    loaded = again(again(model))
    assert len(loaded.weights) == len(model.weights)
    for one, other in zip(keras.tree.flatten(model(X)), keras.tree.flatten(loaded(X)), strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))


def test_30_one_loss_of_two_outputs_is_one_after_loading(again):
    inputs = keras.Input((3,))
    loss = kustom.textbook.HuberLoss(2.0)
    model = keras.Model(inputs, {"a": keras.layers.Dense(1, name="a")(inputs), "b": keras.layers.Dense(1, name="b")(inputs)})
    model.compile("sgd", loss={"a": loss, "b": loss})
    loaded = again(model)
    assert loaded.loss["a"] is loaded.loss["b"]


@register
class Pull(keras.regularizers.Regularizer):
    def __init__(self, target, strength=0.1):
        self.target, self.strength = target, strength

    def __call__(self, w):
        return self.strength * ops.sum(ops.square(w - ops.convert_to_tensor(self.target)))

    def get_config(self):
        return {"target": self.target, "strength": self.strength}


@register
class Shift(keras.layers.Layer):
    def __init__(self, by, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def call(self, x):
        return ops.add(x, self.by)

    def get_config(self):
        return {**super().get_config(), "by": self.by}


def test_31_an_array_in_a_regularizer(again):
    loaded = again(around(keras.layers.Dense(2, kernel_regularizer=Pull(np.full((3, 2), 0.5, "float32")))))
    target = loaded.layers[-1].kernel_regularizer.target
    assert isinstance(target, np.ndarray)
    assert (target.dtype, target.shape) == ("float32", (3, 2))


def test_31_an_array_in_a_layer(again):
    model = around(Shift(np.arange(3, dtype="float32")))
    loaded = again(model)
    np.testing.assert_array_equal(loaded.layers[-1].by, np.arange(3, dtype="float32"))
    np.testing.assert_array_equal(outputs(loaded), outputs(model))


def test_31_numpy_scalars(again):
    assert again(around(Shift(np.float32(2)))).layers[-1].by == 2.0
