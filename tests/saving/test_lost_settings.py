"""Models that plain Keras saves and loads without a word, as other models: each is refused when it is saved, or comes back.

These are kinds of fault that were reported, in parts where nobody has reported them yet; what shows in no output among them.
"""

from __future__ import annotations

import collections
import functools
import io
import operator
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
layers = keras.layers
register = keras.saving.register_keras_serializable("lost_settings")


def around(*inner: Any) -> Any:
    return keras.Sequential([keras.Input((3,)), *inner])


def compiled(loss: Any = "mse", metrics: Any = None, optimizer: Any = "sgd", model: Any = None) -> Any:
    model = model or around(layers.Dense(1))
    model.compile(optimizer, loss, metrics=metrics)
    return model


def again(model: Any) -> Any:
    file = io.BytesIO()
    kustom.save(model, file)
    return kustom.load(file)


def refusal(model: Any) -> str:
    with pytest.raises(errors.KustomError) as caught:
        kustom.save(model, io.BytesIO())
    assert isinstance(caught.value, errors.UnsavableError | errors.ClosureError)
    return str(caught.value)


# What shows in no output: settings that a constructor keeps under another name.


@register
class Clipped(keras.constraints.Constraint):
    def __init__(self, at=1.0):
        self.most = at

    def __call__(self, w):
        return ops.clip(w, -self.most, self.most)


@register
class Slower(keras.optimizers.SGD):
    def __init__(self, slower=1.0, **kwargs):
        super().__init__(**kwargs)
        self.divisor = float(slower)


@register
class Falling(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, start=0.1, factor=1.0):
        self.start, self.by = start, factor

    def __call__(self, step):
        return self.start * self.by

    def get_config(self):
        return {"start": self.start}


@register
class Filling(keras.initializers.Initializer):
    def __init__(self, value=1.0):
        self.filled = np.full((), value)

    def __call__(self, shape, dtype=None):
        return ops.full(shape, float(self.filled), dtype)


@register
class Weighted(keras.metrics.Mean):
    def __init__(self, weight=1.0, **kwargs):
        super().__init__(**kwargs)
        self.times = weight

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(self.times * y_pred)


@register
class InTraining(layers.Layer):
    def __init__(self, gain=1.0, **kwargs):
        super().__init__(**kwargs)
        self.by = gain

    def call(self, x, training=False):
        return x * self.by if training else x

    def get_config(self):
        return layers.Layer.get_config(self)


@register
class Penalty(layers.Layer):
    def __init__(self, strength=1.0, **kwargs):
        super().__init__(**kwargs)
        self.how = types.SimpleNamespace(strong=strength)

    def call(self, x):
        self.add_loss(self.how.strong * ops.mean(x * x))
        return x

    def get_config(self):
        return layers.Layer.get_config(self)


@register
class FixedRate(keras.optimizers.SGD):
    """It is told a learning rate by its config, and does not take it."""

    def __init__(self, **kwargs):
        super().__init__(learning_rate=0.5, momentum=0.9)


HIDDEN: dict[str, tuple[Callable[[], Any], str]] = {
    "constraint": (lambda: compiled(model=around(layers.Dense(1, kernel_constraint=Clipped(0.1)))), "'most' is 0.1"),
    "optimizer": (lambda: compiled(optimizer=Slower(10.0)), "'divisor' is 10.0"),
    "schedule": (lambda: compiled(optimizer=keras.optimizers.SGD(Falling(0.1, 0.5))), "'by' is 0.5"),
    "initializer": (lambda: around(layers.Dense(1, kernel_initializer=Filling(3.0))), "'filled' is array"),
    "metric": (lambda: compiled(metrics=[Weighted(5.0)]), "'times' is 5.0"),
    "training": (lambda: compiled(model=around(InTraining(7.0), layers.Dense(1))), "'by' is 7.0"),
    "add_loss": (lambda: compiled(model=around(Penalty(7.0), layers.Dense(1))), "'how' is namespace(strong=7.0)"),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_setting_under_another_name_that_no_config_tells(kind):
    make, said = HIDDEN[kind]
    assert said in refusal(make())


@pytest.mark.parametrize(
    "make",
    [
        lambda: compiled(model=around(layers.Dense(1, kernel_constraint=Clipped()))),
        lambda: compiled(optimizer=Slower()),
        lambda: compiled(optimizer=keras.optimizers.SGD(Falling(0.2))),
        lambda: compiled(metrics=[Weighted()], model=around(InTraining(), Penalty(), layers.Dense(1))),
    ],
)
def test_one_that_is_left_at_its_default(make):
    again(make())


@register
class Raised(keras.metrics.Mean):
    """Its setting is in no attribute."""

    def __init__(self, power=1.0, **kwargs):
        super().__init__(**kwargs)
        self.raised = operator.methodcaller("__pow__", power)

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(self.raised(ops.abs(ops.subtract(y_true, y_pred))))


def test_a_metric_that_would_come_back_with_another_value():
    assert "would come back with another value" in refusal(compiled(metrics=[Raised(3.0)]))
    again(compiled(metrics=[Raised()]))


def test_an_optimizer_that_does_not_take_what_it_is_told():
    assert again(compiled(optimizer=FixedRate())).optimizer.momentum == 0.9
    optimizer = FixedRate()
    optimizer.learning_rate = 0.25
    assert "'learning_rate' is 0.25 and would come back as 0.5" in refusal(compiled(optimizer=optimizer))


def test_a_regularizer_that_has_changed_since(monkeypatch):
    file = io.BytesIO()
    kustom.save(around(layers.Dense(1, kernel_regularizer=Pulled())), file)
    kustom.load(file)
    monkeypatch.setattr(Pulled, "strength", 0.5)
    with pytest.raises(errors.OtherModelError, match=r"the sum of its losses, .* was .* and is"):
        kustom.load(file)


@register
class Pulled(keras.regularizers.Regularizer):
    strength = 0.1

    def __call__(self, w):
        return self.strength * ops.sum(ops.square(w))

    def get_config(self):
        return {}


def test_a_weight_that_is_frozen_by_itself():
    model = around(layers.BatchNormalization(), layers.Dense(1))
    model.layers[0].gamma.trainable = False
    assert "gamma: it is frozen and would come back trained" in refusal(model)


def test_layers_that_are_frozen():
    model = around(layers.BatchNormalization(), layers.Dense(3), around(layers.Dense(1)))
    model.layers[0].trainable = model.layers[2].trainable = False
    assert [weight.path for weight in again(model).trainable_weights] == [weight.path for weight in model.layers[1].weights]


# Functions: no setting of theirs is anywhere, and another can take the name.


def far(times: float) -> Any:
    @register
    def taken(y_true, y_pred, times=times):
        return times * ops.mean(ops.abs(ops.subtract(y_true, y_pred)), axis=-1)

    return taken


def test_a_function_whose_name_another_has_taken():
    first = far(1.0)
    far(5.0)
    for model in (compiled(first), compiled("mse", [first])):
        assert "there is now another" in refusal(model)


@pytest.mark.parametrize("place", ["loss", "metrics"])
def test_a_function_whose_name_another_takes_after_saving(place):
    file = io.BytesIO()
    kustom.save(compiled(**{place: far(1.0) if place == "loss" else [far(1.0)]}), file)
    kustom.load(file)
    far(5.0)
    with pytest.raises(errors.OtherModelError, match=rf"taken at /compile_config/{place}.* was .* for made-up targets and is"):
        kustom.load(file)


class Method:
    def loss(self, y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred), axis=-1)

    def __call__(self, y_true, y_pred):
        return self.loss(y_true, y_pred)


@pytest.mark.parametrize(
    "loss", [functools.partial(far(1.0), times=3.0), Method().loss, Method()], ids=["partial", "method", "object"]
)
def test_a_loss_that_no_file_can_name(loss):
    assert refusal(compiled(loss))


def test_a_function_that_calls_a_closure():
    times = 2.0

    def helper(x):
        return times * x

    @register
    def calling(x):
        return helper(x)

    assert "takes times from the function around it" in refusal(around(layers.Dense(1, activation=calling)))


# Parts of a model that are made late, or that Keras does not see.


@register
class Auxiliary(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head, self.auxiliary = layers.Dense(1), layers.Dense(1)

    def call(self, x, training=False):
        return self.head(x) + self.auxiliary(x) if training else self.head(x)

    def get_config(self):
        return {}


def test_a_layer_that_only_training_builds(tmp_path):
    model = Auxiliary()
    model(X, training=True)
    assert refusal(model).startswith("auxiliary: its weights would be saved and not come back")
    model.save(tmp_path / "model.keras")
    with pytest.raises(errors.WeightsError, match="has no place for auxiliary"):
        kustom.load(tmp_path / "model.keras")


@register
class Holding(layers.Layer):
    """Layers in a structure of some kind, built all."""

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        self.held = {
            "dict of lists": lambda a, b: {"a": [a], "b": {"c": b}},
            "tuple of lists": lambda a, b: ([a], b),
            "ordered": lambda a, b: collections.OrderedDict(z=a, a=b),
            "named": lambda a, b: collections.namedtuple("Two", "a b")(a, b),
            "namespace": lambda a, b: types.SimpleNamespace(a=a, b=b),
            "deque": lambda a, b: collections.deque([a, b]),
            "set": lambda a, b: {a, b},
            "function": lambda a, b: lambda: (a, b),
        }[kind](layers.Dense(3), layers.Dense(3))

    def build(self, input_shape):
        for layer in self.inner():
            layer.build(input_shape)

    def inner(self):
        held = self.held() if callable(self.held) else vars(self.held) if self.kind == "namespace" else self.held
        held = sorted(held, key=lambda layer: layer.name) if self.kind == "set" else held
        # TensorFlow puts tuples into something that Keras does not know for one.
        return keras.tree.flatten(list(held) if self.kind == "deque" or isinstance(held, tuple) else held)

    def call(self, x):
        for layer in self.inner():
            x = layer(x)
        return x

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


@pytest.mark.parametrize("kind", ["dict of lists", "tuple of lists", "ordered", "named"])
def test_layers_in_what_keras_looks_into(kind):
    model = around(Holding(kind))
    loaded = again(model)
    np.testing.assert_array_equal(ops.convert_to_numpy(loaded(X)), ops.convert_to_numpy(model(X)))
    assert len(loaded.trainable_weights) == 4


@pytest.mark.parametrize("kind", ["namespace", "deque", "set", "function"])
def test_layers_in_what_keras_does_not_look_into(kind):
    assert refusal(around(Holding(kind)))


@register
class Perceived(keras.losses.Loss):
    """A loss that has a net of its own, whose weights stand in no file."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.net = keras.Sequential([keras.Input((1,)), layers.Dense(2)])

    def call(self, y_true, y_pred):
        return ops.mean(ops.square(self.net(y_true) - self.net(y_pred)), axis=-1)


def test_a_loss_whose_net_would_be_a_fresh_one():
    assert "would come back with another value" in refusal(compiled(Perceived()))


@register
class Bare(layers.Dense):
    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.built = True

    def call(self, x):
        return x * self.scale


def test_a_layer_that_does_not_hand_its_weights_over():
    assert "has no attribute" in refusal(around(Bare(3)))


# Settings of types that JSON does not have.


@register
class Noted(layers.Layer):
    def __init__(self, value, **kwargs):
        super().__init__(**kwargs)
        self.value = value

    def call(self, x):
        return x

    def get_config(self):
        return {**super().get_config(), "value": self.value}


@pytest.mark.parametrize(
    "value", [{1: "a"}, {(1, 2): 3}, {1, 2}, b"ab", 1 + 2j, np.array(2.0), np.zeros((0, 2)), np.array(["a"]), slice(1, 2)], ids=repr
)
def test_a_value_that_would_be_another_is_refused(value):
    assert refusal(around(Noted(value)))


@pytest.mark.parametrize("value", [{"a": (1, {"b": (2,)})}, [np.arange(2)], {"a": np.float16([1])}, (np.arange(2), 1)], ids=repr)
def test_a_value_in_its_own_types(value):
    loaded = again(around(Noted(value))).layers[-1]
    assert repr(keras.tree.map_structure(lambda leaf: leaf, loaded.value)) == repr(value)


@kustom.part(package="lost_settings")
class Kept(layers.Layer):
    value: Any = None

    def call(self, x):
        return x


@pytest.mark.parametrize(
    "value", [{1: "a"}, {(1, 2): 3}, b"ab", np.array(2.0), np.zeros((0, 2)), np.array(["a"]), float("inf"), slice(1, 2)], ids=repr
)
def test_a_part_of_kustoms_keeps_it(value):
    assert repr(again(around(Kept(value))).layers[-1].value) == repr(value)
