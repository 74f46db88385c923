"""What a part has that no config tells: of Keras's own that it derives from, of the layers that it makes, of its weights.

Plain Keras saves and loads each of these without a word, as another model, and nothing of it shows in what the model gives
for a batch outside of training.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import re
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import pytest
from keras import ops

import kustom
from kustom import errors
from kustom.backends import keras as private
from kustom.saving.differing import alike

layers = keras.layers
register = keras.saving.register_keras_serializable("lost_sublayers")


def around(*inner: Any, optimizer: Any = None) -> Any:
    model: Any = keras.Sequential([keras.Input((3,)), *inner])
    if optimizer is not None:
        model.compile(optimizer, "mse")
    return model


def again(model: Any) -> Any:
    file = io.BytesIO()
    kustom.save(model, file)
    return kustom.load(file)


def refusal(model: Any) -> str:
    with pytest.raises(errors.UnsavableError) as caught:
        kustom.save(model, io.BytesIO())
    return str(caught.value)


# Settings of Keras's own, which a `get_config` of one's own leaves out.


def without(base: Any, *names: str) -> Any:
    """A class that derives from one of Keras's and does not tell some settings of it."""

    def get_config(self):
        return {name: value for name, value in base.get_config(self).items() if name not in names}

    cls = type(f"{base.__name__}Without{'And'.join(names)}", (base,), {"get_config": get_config, "__module__": __name__})
    return register(cls)


UNTOLD: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "activation": (
        lambda: around(without(layers.Dense, "activation")(2, activation="relu")),
        lambda: around(without(layers.Dense, "activation")(2)),
        "'activation' is 'relu'",
    ),
    "momentum": (
        lambda: around(without(layers.BatchNormalization, "momentum")(momentum=0.5)),
        lambda: around(without(layers.BatchNormalization, "momentum")()),
        "'momentum' is 0.5",
    ),
    "rate": (
        lambda: around(Half(0.9)),
        lambda: around(Half(0.5)),
        "'rate' is 0.9",
    ),
    "constraint": (
        lambda: around(without(layers.Dense, "kernel_constraint")(2, kernel_constraint="non_neg")),
        lambda: around(without(layers.Dense, "kernel_constraint")(2)),
        "'kernel_constraint' is",
    ),
    "dtype": (
        lambda: around(without(layers.Dense, "dtype")(2, dtype="float16")),
        lambda: around(without(layers.Dense, "dtype")(2)),
        "'dtype' is",
    ),
    "beta_1": (
        lambda: around(layers.Dense(1), optimizer=without(keras.optimizers.Adam, "beta_1")(beta_1=0.5)),
        lambda: around(layers.Dense(1), optimizer=without(keras.optimizers.Adam, "beta_1")()),
        "'beta_1' is 0.5",
    ),
}


@register
class Half(layers.Dropout):
    def get_config(self):
        return {"rate": 0.5}


@pytest.mark.parametrize("kind", UNTOLD)
def test_a_setting_of_keras_own_that_no_config_tells(kind):
    lost, default, said = UNTOLD[kind]
    assert said in refusal(lost())
    again(default())


# Settings that a constructor hides in another way than under a name of its own.


@dataclasses.dataclass(slots=True)
class Slotted:
    gain: float = 1.0


@dataclasses.dataclass
class Options:
    gain: float = 1.0


class Pair(NamedTuple):
    gain: float
    bias: float


def times(x, by):
    return x * by


@register
class Hiding(layers.Layer):
    """Its gain is that of training alone, and stands somewhere."""

    def __init__(self, how, gain=1.0, **kwargs):
        super().__init__(**kwargs)
        self.how = how
        if how == "method":
            self._hide(gain)
        elif how == "setattr":
            setattr(self, "scale", gain)  # noqa: B010  (the case)
        elif how == "object":
            self.options = Options(gain)
        elif how == "slots":
            self.options = Slotted(gain)
        elif how == "closure":
            self.scaled = lambda x: x * gain
        elif how == "partial":
            self.scaled = functools.partial(times, by=gain)
        elif how == "regularizer":
            self.penalty = keras.regularizers.L2(gain)

    def _hide(self, gain):
        self.scale = gain

    def call(self, x):
        return x

    def get_config(self):
        return {**layers.Layer.get_config(self), "how": self.how}


@pytest.mark.parametrize("how", ["method", "setattr", "object", "slots", "closure", "partial", "regularizer"])
def test_a_setting_that_a_constructor_hides(how):
    assert "would come back as" in refusal(around(Hiding(how, gain=3.0)))
    again(around(Hiding(how)))


@register
class Popping(layers.Layer):
    def __init__(self, **kwargs):
        self.times = kwargs.pop("gain", 1.0)
        super().__init__(**kwargs)

    def call(self, x, training=False):
        return x * self.times if training else x

    def get_config(self):
        return layers.Layer.get_config(self)


def test_a_setting_that_is_taken_out_of_the_rest():
    assert "'times' is 3.0 and would come back as 1.0" in refusal(around(Popping(gain=3.0)))
    again(around(Popping()))


@register
class Counting(layers.Layer):
    def __init__(self, **rest):
        super().__init__(**rest)
        self.calls = 0

    def call(self, x):
        self.calls += 1
        return x


def test_what_a_layer_counts_is_no_setting():
    model = around(Counting())
    model(ops.ones((1, 3)))
    again(model)


@register
class Noting(layers.Layer):
    def __init__(self, note, **kwargs):
        super().__init__(**kwargs)
        self.note = note

    def call(self, x):
        return x

    def get_config(self):
        return {**super().get_config(), "note": self.note}


def test_a_named_tuple_would_lose_its_names():
    assert "Pair(gain=1.0, bias=2.0) and would come back as (1.0, 2.0)" in refusal(around(Noting(Pair(1.0, 2.0))))


def test_a_layer_that_nobody_reads_again():
    # On PyTorch a layer in an attribute stands among the modules.
    assert "'note' is <ReLU" in refusal(around(Noting(layers.ReLU())))


# Layers that a constructor makes.


@register
class Within(keras.Model):
    def __init__(self, rate=0.1, momentum=0.9, **kwargs):
        super().__init__(**kwargs)
        self.inner = [layers.Dense(3), {"norm": layers.BatchNormalization(momentum=momentum)}]
        self.drop = layers.Dropout(rate)
        self.own = Hiding("method")

    def call(self, x, training=False):
        x = self.inner[1]["norm"](self.inner[0](x), training=training)
        return self.own(self.drop(x, training=training))

    def get_config(self):
        return {}


def built(**settings: Any) -> Any:
    model: Any = Within(**settings)
    model(ops.ones((2, 3)))
    return model


def frozen(model: Any) -> Any:
    model.inner[0].trainable = False
    return model


def replaced() -> Any:
    model: Any = Within()
    model.drop = layers.GaussianDropout(0.1)
    model(ops.ones((2, 3)))
    return model


def constrained(model: Any) -> Any:
    model.inner[0].kernel_constraint = keras.constraints.NonNeg()
    return model


def hidden(model: Any) -> Any:
    model.own.scale = 7.0
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: built(rate=0.9), "Dropout 'dropout[_0-9]*' has the setting 'rate' as 0.9 and would have it as 0.1"),
        (lambda: built(momentum=0.5), "'momentum' as 0.5 and would have it as 0.9"),
        (lambda: frozen(built()), "'trainable' as False and would have it as True"),
        (lambda: constrained(built()), "'kernel_constraint' as .*NonNeg.* and would have it as None"),
        (lambda: hidden(built()), "Hiding 'hiding[_0-9]*' has the setting 'scale' as 7.0 and would have it as 1.0"),
        (lambda: replaced(), "GaussianDropout .* would (be one of|come back as) .*Dropout"),
    ],
)
def test_a_setting_of_a_layer_that_no_config_tells(make, said):
    message = refusal(make())
    assert re.search(said, message), message
    assert "Within 'within" in message


def test_layers_that_are_made_as_they_were():
    loaded = again(built())
    assert (loaded.drop.rate, loaded.inner[1]["norm"].momentum) == (0.1, 0.9)


def test_each_layer_has_a_place():
    for model, known in ((built(), private.sublayers), (around(layers.Dense(2), layers.ReLU()), lambda model: model.layers)):
        assert sorted(map(id, private.sublayers_by_place(model).values())) == sorted(map(id, known(model)))


# Weights.


def test_rules_of_a_weight_that_no_layer_knows():
    model = around(layers.Dense(2))
    model.layers[0].kernel.constraint = keras.constraints.NonNeg()
    assert "kernel: its constraint is <" in refusal(model)
    model = around(layers.Dense(2))
    model.layers[0].kernel_constraint = keras.constraints.NonNeg()
    assert "kernel: its constraint is None and would come back as <" in refusal(model)


def test_a_regularizer_that_comes_too_late():
    model = around(layers.Dense(2))
    model.layers[0].kernel_regularizer = keras.regularizers.L2(0.1)
    assert "the sum of its losses" in refusal(model)


def test_values_that_are_alike_all_the_way_down():
    one, other = types.SimpleNamespace(a=[1]), types.SimpleNamespace(a=[1])
    one.me, other.me = one, other
    assert alike(one, other)
    other.a = [2]
    assert not alike(one, other)


# What is said.


def test_the_part_is_named_that_has_no_config():
    model = around(layers.Dense(1), Noting(Slotted()))
    assert re.match(r"test_lost_sublayers\.Noting 'noting[_0-9]*' has no config: TypeError: .*Slotted", refusal(model))


def test_text_that_is_none_is_refused():
    assert re.search(r"\(Noting\): a setting is no JSON: .*surrogates", refusal(around(Noting("\udcff"))))


@register
class Needing(keras.Model):
    def __init__(self, inputs, outputs, gain, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.gain = gain


def test_what_keras_quotes_of_a_config_is_not_repeated():
    inputs = keras.Input((3,))
    message = refusal(Needing(inputs, layers.Dense(1)(inputs), 2.0))
    assert re.fullmatch(
        r"the model could not be made again from its config, at test_lost_sublayers\.Needing 'needing[_0-9]*': TypeError: "
        r".*missing .* arguments?: .*'gain'.*",
        message,
    )
    assert len(message) < 250
