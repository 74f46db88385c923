"""`@kustom.part`: a class whose annotated attributes are its settings."""

from __future__ import annotations

import copy
import enum
import inspect
import json
import pickle
import types
from typing import Annotated, Any, ClassVar, Literal

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors
from kustom.typing import (
    ActivationLike,
    ConstraintLike,
    Converter,
    InitializerLike,
    LossLike,
    MetricLike,
    OptimizerLike,
    RegularizerLike,
)

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = X[:, :1]


@kustom.part
class Scaled(keras.layers.Layer):
    """A layer of the tests."""

    factor: float
    shift: float = 0.0
    kind: ClassVar[str] = "none of the fields"
    kernel: keras.Variable
    inner: list[keras.layers.Layer]

    def call(self, x):
        return self.factor * x + self.shift


@kustom.part
class Holder(keras.layers.Layer):
    anything: Any = None
    numbers: list[float] = [1.0]  # noqa: RUF012
    pair: tuple[int, str] = (1, "a")
    table: dict[str, float] = {"a": 1.0}  # noqa: RUF012
    mode: Literal["same", "valid"] = "same"
    maybe: int | None = None
    text: str = ""
    flag: bool = False
    array: np.ndarray | None = None

    def call(self, x):
        return x


@kustom.part
class Block(keras.layers.Layer):
    units: int
    depth: int = 2
    activation: ActivationLike = "relu"

    def setup(self):
        self.hidden = [keras.layers.Dense(self.units, activation=self.activation) for _ in range(self.depth)]

    def call(self, x):
        for layer in self.hidden:
            x = layer(x)
        return x


@kustom.part
class Wider(Block):
    extra: float = 1.0

    def call(self, x):
        return super().call(x) * self.extra


@kustom.part
class Net(keras.Model):
    units: int = 3
    block: keras.layers.Layer | None = kustom.field(default=None)

    def setup(self):
        self.inner = self.block or Block(self.units)
        self.out = keras.layers.Dense(1)

    def call(self, x, training=None):
        return self.out(self.inner(x, training=training))


@kustom.part
class Gained(keras.layers.Dense):
    gain: float = 1.0

    def call(self, inputs, training=None):
        return super().call(inputs, training=training) * self.gain


@kustom.part
class Momentum(keras.optimizers.Optimizer):
    momentum: float = 0.9

    def build(self, variables):
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient, variable, learning_rate):
        velocity = self.velocities[self._get_variable_index(variable)]
        self.assign(velocity, velocity * self.momentum - ops.cast(learning_rate, variable.dtype) * gradient)
        self.assign_add(variable, velocity)


@kustom.part
class Uniform(keras.initializers.Initializer):
    scale: float = 1.0
    seed: int | None = None

    def __call__(self, shape, dtype=None):
        return keras.random.uniform(shape, -self.scale, self.scale, dtype=dtype, seed=self.seed)


@kustom.part
class Norm(keras.constraints.Constraint):
    at_most: float = 1.0
    axis: int = 0

    def __call__(self, w):
        norm = ops.sqrt(ops.sum(ops.square(w), axis=self.axis, keepdims=True))
        return w * ops.minimum(norm, self.at_most) / (norm + 1e-7)


@kustom.part
class Every(keras.callbacks.Callback):
    steps: int = 10


@kustom.part
class Count(keras.metrics.Metric):
    above: float = 0.0

    def setup(self):
        self.seen = self.add_weight(shape=(), initializer="zeros", name="seen")

    def update_state(self, y_true, y_pred, sample_weight=None):
        hits = ops.cast(y_pred > self.above, "float32")
        self.seen.assign_add(ops.sum(hits if sample_weight is None else hits * sample_weight))

    def result(self):
        return self.seen


def _numpy(x):
    return keras.ops.convert_to_numpy(x)


# --- the constructor


def test_fields_are_constructor_arguments_in_their_order():
    part = Scaled(2, 3.0, name="mine", trainable=False)
    assert (part.factor, part.shift, part.name, part.trainable) == (2.0, 3.0, "mine", False)
    assert list(inspect.signature(Scaled).parameters)[:2] == ["factor", "shift"]
    assert repr(part) == "Scaled(factor=2.0, shift=3.0)"
    assert Scaled.__doc__ == "A layer of the tests."


def test_what_a_part_makes_is_no_field():
    assert not {"kind", "kernel", "inner"} & Scaled(1.0).get_config().keys()
    with pytest.raises(errors.UnknownSettingError, match=r"inner.*kustom.field\(\)"):
        Scaled(1.0, inner=[])


def test_arguments_are_checked():
    with pytest.raises(errors.MissingSettingError, match="Scaled needs factor"):
        Scaled()  # pyright: ignore
    with pytest.raises(errors.UnknownSettingError, match="mean 'factor'"):
        Scaled(factr=1.0)  # pyright: ignore
    with pytest.raises(errors.UnknownSettingError, match="takes 2 settings by position"):
        Scaled(1.0, 2.0, 3.0)  # pyright: ignore
    with pytest.raises(errors.UnknownSettingError, match="'factor' twice"):
        Scaled(1.0, factor=2.0)  # pyright: ignore
    with pytest.raises(errors.SettingError, match="'factor' is a number"):
        Scaled("two")  # pyright: ignore


def test_a_subclass_that_is_not_decorated_is_named_when_it_is_given_its_field():
    class Undecorated(Scaled):
        gain: float = 1.0

    said = r"^Undecorated has no setting 'gain'.*Undecorated is a subclass of the part Scaled and no part itself: decorate it"
    with pytest.raises(errors.UnknownSettingError, match=said):
        Undecorated(2.0, gain=3.0)  # pyright: ignore
    with pytest.raises(errors.UnknownSettingError, match=r"takes 2 settings by position.*decorate it"):
        Undecorated(2.0, 1.0, 3.0)  # pyright: ignore
    with pytest.raises(errors.UnknownSettingError, match=r"^Scaled has no setting 'gain'; [^:]*$"):
        Scaled(2.0, gain=3.0)  # pyright: ignore

    @kustom.part(package="by_hand")
    class ByHand(Scaled):
        def __init__(self, factor=1.0, **kwargs):
            super().__init__(factor=factor, **kwargs)

    with pytest.raises(errors.UnknownSettingError) as caught:
        ByHand(gain=3.0)
    assert "decorate" not in str(caught.value)


def test_a_subclass_of_a_functions_part_that_is_not_decorated_is_named():
    @kustom.loss(package="undecorated")
    def plain(y_true, y_pred, *, factor=1.0):
        return factor * (y_true - y_pred)

    class Undecorated(plain):  # pyright: ignore
        gain: float = 1.0

    with pytest.raises(errors.UnknownSettingError, match=r"^Undecorated has no setting 'gain'.*decorate it with @kustom.part"):
        Undecorated(gain=3.0)  # pyright: ignore
    with pytest.raises(errors.UnknownSettingError, match=r"^plain has no setting 'gain'; [^:]*$"):
        plain(gain=3.0)


def test_an_attribute_without_annotation_is_shown_with_one():
    @kustom.part
    class NotAField(keras.layers.Layer):
        units = 3
        rate = None

        def scale(self): ...

    with pytest.raises(errors.UnknownSettingError, match=r"annotate it: units: int = 3\.$"):
        NotAField(units=4)  # pyright: ignore
    with pytest.raises(errors.UnknownSettingError, match=r"annotate it: rate: <type> = None\.$"):
        NotAField(rate=4)  # pyright: ignore
    with pytest.raises(errors.UnknownSettingError, match=r"'scale'; [^:]*$"):
        NotAField(scale=4)  # pyright: ignore


def test_predictions_before_targets_are_refused():
    with pytest.raises(errors.DefinitionError, match=r"targets first: def call\(self, y_true, y_pred"):

        @kustom.part
        class ReversedLoss(keras.losses.Loss):
            def call(self, y_pred, y_true): ...

    with pytest.raises(errors.DefinitionError, match=r"targets first: def update_state\(self, y_true, y_pred"):

        @kustom.part
        class ReversedMetric(keras.metrics.Metric):
            def update_state(self, y_pred, y_true, sample_weight=None): ...


@pytest.mark.parametrize(
    ("name", "given", "held"),
    [
        ("numbers", (1, np.float32(2)), [1.0, 2.0]),
        ("pair", [3, "b"], (3, "b")),
        ("table", {"x": 2}, {"x": 2.0}),
        ("mode", "valid", "valid"),
        ("maybe", np.int64(3), 3),
        ("text", np.str_("t"), "t"),
        ("flag", np.bool_(True), True),
        ("anything", np.float64(2.5), 2.5),
        ("anything", [(1, {"a": np.int8(2)})], [(1, {"a": 2})]),
    ],
)
def test_values_are_taken_by_kind(name, given, held, trip):
    part = Holder(**{name: given})
    assert getattr(part, name) == held
    assert type(getattr(part, name)) is type(held)
    loaded = trip(keras.Sequential([keras.Input((2,)), part])).layers[0]
    assert getattr(loaded, name) == held
    assert loaded.get_config() == part.get_config()


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("numbers", ["a"], "is a number"),
        ("numbers", None, "None is not among"),
        ("pair", (1,), "a tuple of 2 values"),
        ("pair", (1.5, "a"), "a whole number"),
        ("table", [], "a dict"),
        ("mode", "full", "one of 'same', 'valid'"),
        ("maybe", 1.5, "a whole number or None"),
        ("maybe", True, "a whole number"),
        ("text", 3, "text"),
        ("flag", 1, "True or False"),
        ("array", "x", "an array of numbers"),
    ],
)
def test_values_of_another_kind_are_refused(name, given, expected):
    with pytest.raises(errors.SettingError, match=expected):
        Holder(**{name: given})


@pytest.mark.parametrize("value", [lambda x: x, object(), {1, 2}, keras.Variable(1.0), np.array([object()]), int])
def test_what_no_file_can_hold_is_refused_when_given(value):
    with pytest.raises(errors.UnsavableSettingError, match="'anything'"):
        Holder(anything=value)


def test_arrays_and_tensors_come_back_as_arrays(trip):
    for value in (np.arange(6, dtype="int8").reshape(2, 3), ops.convert_to_tensor([1.5, 2.5])):
        part = Holder(array=value)
        loaded = trip(keras.Sequential([keras.Input((2,)), part])).layers[0]
        assert isinstance(loaded.array, np.ndarray)
        assert loaded.array.dtype == part.array.dtype
        np.testing.assert_array_equal(loaded.array, part.array)


def test_defaults_are_not_shared():
    one, other = Holder(), Holder()
    one.numbers.append(2.0)
    one.table["b"] = 2.0
    assert other.numbers == [1.0]
    assert other.table == {"a": 1.0}


def test_a_list_given_is_not_changed_by_the_part():
    @kustom.part(package="mutating")
    class Mutating(keras.layers.Layer):
        names: list

        def setup(self):
            self.names.append("extra")

    given = ["a"]
    part = Mutating(given)
    assert given == ["a"]
    again = Mutating.from_config(part.get_config())
    assert again.names == part.names == ["a", "extra"]
    part.names.append("later")
    with pytest.raises(errors.UnsavableSettingError, match="no argument gives that back"):
        part.get_config()


def test_converters():
    @kustom.part(package="converters")
    class Percent(keras.layers.Layer):
        share: Annotated[float, Converter(lambda x: float(x) / 100 if x > 1 else float(x), "percents")]
        upper: str = kustom.field(default="a", converter=str.upper)
        fresh: list = kustom.field(default_factory=lambda: [0])

    part = Percent(50, upper="b")
    assert (part.share, part.upper, part.fresh) == (0.5, "B", [0])
    with pytest.raises(errors.SettingError, match="is percents"):
        Percent("x")  # pyright: ignore
    with pytest.raises(errors.DefinitionError, match="not both"):
        kustom.field(default=1, default_factory=list)


def test_fields_that_take_whatever_keras_takes(trip):
    @kustom.part(package="likes")
    class Likes(keras.layers.Layer):
        activation: ActivationLike = None
        constraint: ConstraintLike = "non_neg"
        initializer: InitializerLike = "he_normal"
        loss: LossLike = "mse"
        metric: MetricLike = "mae"
        optimizer: OptimizerLike = "adam"
        regularizer: RegularizerLike = "l2"

        def call(self, x):
            return self.activation(x)

    part = Likes()
    assert part.activation is keras.activations.linear
    assert isinstance(part.constraint, keras.constraints.NonNeg)
    assert isinstance(part.initializer, keras.initializers.HeNormal)
    assert isinstance(part.optimizer, keras.optimizers.Adam)
    assert isinstance(part.regularizer, keras.regularizers.L2)
    loaded = trip(keras.Sequential([keras.Input((2,)), Likes(activation="tanh", constraint=Norm(2.0))])).layers[0]
    assert loaded.activation is keras.activations.tanh
    assert loaded.constraint.at_most == 2.0
    with pytest.raises(errors.SettingError, match="an activation"):
        Likes(activation="no such thing")


# --- the config


@pytest.mark.parametrize(
    "part",
    [Scaled(2.0), Holder(anything=(1, [2])), Uniform(2.0, seed=1), Norm(2.0), Every(3), Count(0.5), Momentum(0.1, momentum=0.5)],
    ids=lambda p: type(p).__name__,
)
def test_the_config_is_plain_json_and_makes_an_equal_part(part):
    config = part.get_config()
    again = type(part).from_config(json.loads(json.dumps(config, allow_nan=False)))
    assert again.get_config() == config
    assert repr(again) == repr(part)


def test_a_setting_changed_later_is_the_one_saved():
    part = Scaled(2.0)
    part.factor = 3
    assert Scaled.from_config(part.get_config()).factor == 3.0
    part.factor = "x"
    with pytest.raises(errors.SettingError, match="'factor'"):
        part.get_config()


def test_unknown_and_missing_entries_are_named():
    with pytest.raises(errors.ConfigError, match=r"no setting 'fctor'.*mean 'factor'"):
        Scaled.from_config({"fctor": 1.0})
    with pytest.raises(errors.ConfigError, match="has no 'factor'"):
        Scaled.from_config({"shift": 1.0})


def test_a_class_in_the_place_of_a_part_is_refused_at_save(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=[Count])
    model.fit(X, Y, verbose=0)
    with pytest.raises(errors.ConfigError, match=r"write Count\(...\), not Count"):
        model.save(tmp_path / "m.keras")


def test_versions_migrate():
    def migrate(config, version):
        assert version == 1
        return {"rate": config.pop("percent") / 100, **config}

    @kustom.part(package="versions", version=2, migrate=migrate)
    class Rated(keras.layers.Layer):
        rate: float = 0.5

    assert Rated(0.25).get_config()["settings_version"] == 2
    assert Rated.from_config(Rated(0.25).get_config()).rate == 0.25
    assert Rated.from_config({"percent": 75}).rate == 0.75
    with pytest.raises(errors.VersionError, match="is of version 3; this Rated reads up to 2"):
        Rated.from_config({"settings_version": 3})

    @kustom.activation(package="versions", version=2, migrate=lambda config, version: {"slope": config["alpha"]})
    def leaky(x, *, slope=0.1):
        return x

    assert type(leaky).from_config({"alpha": 0.5}).slope == 0.5
    assert type(leaky).from_config(leaky(slope=0.3).get_config()).slope == 0.3


def test_versions_are_checked():
    for version, migrate, message in ((0, None, "from 1 on"), (2, None, "needs migrate")):
        with pytest.raises(errors.DefinitionError, match=message):
            kustom.part(version=version, migrate=migrate)
    Bad = kustom.part(package="versions", version=2, migrate=lambda c, v: None)(  # pyright: ignore
        type("Bad", (keras.layers.Layer,), {"__module__": __name__})
    )
    with pytest.raises(errors.ConfigError, match="where a config"):
        Bad.from_config({})


# --- inheritance


def test_a_base_parts_fields_keep_their_places():
    part = Wider(4, 3, "tanh", extra=2.0)
    assert (part.units, part.depth, part.extra) == (4, 3, 2.0)
    assert Wider.from_config(part.get_config()).get_config() == part.get_config()
    with pytest.raises(errors.UnknownSettingError):
        Wider(4, 3, "tanh", 2.0)  # pyright: ignore


def test_keras_own_arguments_keep_theirs(trip):
    part = Gained(3, "relu", gain=2, kernel_initializer="ones")
    assert repr(part) == "Gained(units=3, gain=2.0)"
    model = keras.Sequential([keras.Input((4,)), part])
    loaded = trip(model)
    np.testing.assert_allclose(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    assert loaded.layers[0].gain == 2.0


def test_a_decorated_function_can_be_a_base():
    @kustom.loss(package="bases")
    def distance(y_true, y_pred, *, power=2.0):
        return ops.abs(ops.subtract(y_true, y_pred)) ** power

    @kustom.part(package="bases")
    class Doubled(distance):
        by: float = 2.0

        def call(self, y_true, y_pred):
            return self.by * super().call(y_true, y_pred)

    part = Doubled(power=1.0, by=3.0)
    assert float(part([[0.0]], [[2.0]])) == 6.0
    again = Doubled.from_config(part.get_config())
    assert (again.power, again.by) == (1.0, 3.0)


# --- hand-written methods


def test_a_hand_written_constructor_is_respected(trip):
    @kustom.part(package="written")
    class Fixed(keras.layers.Dense):
        def __init__(self, units, **kwargs):
            super().__init__(units, activation="relu", use_bias=True, **kwargs)

    @kustom.part(package="written")
    class Doubling(keras.layers.Layer):
        def __init__(self, width, rate=0.5, **kwargs):
            super().__init__(**kwargs)
            self.width = width * 2
            self.dense = keras.layers.Dense(self.width)

        def call(self, x):
            return self.dense(x)

    @kustom.part(package="written")
    class Fielded(keras.layers.Layer):
        rate: float
        tail: tuple = (1,)

        def __init__(self, rate, tail=(1,), **kwargs):
            super().__init__(**kwargs)
            self.seen = (self.rate, self.tail)

        def call(self, x):
            return x

    for part, value in ((Fixed(3, name="f"), 3), (Doubling(2, rate=0.1), 4), (Fielded(1, [2, 3]), (1.0, (2, 3)))):
        model = keras.Sequential([keras.Input((4,)), part])
        loaded = trip(model).layers[0]
        np.testing.assert_allclose(_numpy(loaded(X)), _numpy(part(X)))
        assert loaded.get_config() == part.get_config()
        assert value in (getattr(loaded, "units", None), getattr(loaded, "width", None), getattr(loaded, "seen", None))


def test_a_functional_model_made_in_the_constructor(trip):
    @kustom.part(package="written")
    class Tower(keras.Model):
        width: int = 4
        scale: float = 1.0

        def __init__(self, width=4, scale=1.0, **kwargs):
            x = keras.Input((4,))
            super().__init__(inputs=x, outputs=keras.layers.Dense(self.width)(x) * self.scale, **kwargs)

    for model in (Tower(4, 3), Tower(5, scale=3.0)):
        loaded = trip(model)
        assert loaded.scale == 3.0
        np.testing.assert_allclose(loaded.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-6)


def test_a_hand_written_config_is_respected():
    @kustom.part(package="written")
    class Mine(keras.layers.Layer):
        rate: float = 0.5

        def get_config(self):
            return {"rate": self.rate, "name": "fixed"}

    assert Mine(0.1).get_config() == {"rate": 0.1, "name": "fixed"}
    assert Mine.from_config(Mine(0.1).get_config()).rate == 0.1


def test_a_constructor_without_keras_arguments(trip):
    @kustom.part(package="written")
    class Total(keras.metrics.Metric):
        def __init__(self, name="total"):
            super().__init__(name=name)
            self.s = self.add_variable((), "zeros", name="s")

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.s.assign_add(ops.sum(y_pred))

        def result(self):
            return self.s

    @kustom.part(package="written")
    class Bare(keras.layers.Layer):
        def __init__(self, width):
            super().__init__()
            self.width = width

        def call(self, x):
            return x * self.width

    layer = Bare(2)
    layer.trainable = False
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile("sgd", "mse", metrics=[Total()])
    data = np.ones((6, 1), "float32")
    loaded = trip(model)
    assert not loaded.layers[0].trainable
    assert loaded.layers[0].name == layer.name
    assert loaded.evaluate(data, data, batch_size=2, verbose=0)[1] == model.evaluate(data, data, verbose=0)[1] == 12.0


# --- whole models


def test_a_model_of_parts_saves_and_loads_whole(trip):
    model = Net(5, block=Wider(5, extra=0.5))
    model.compile(Momentum(0.01, momentum=0.8), "mse", metrics=[Count()])
    model.fit(X, Y, epochs=2, verbose=0)
    loaded = trip(model)
    np.testing.assert_allclose(loaded.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-6)
    assert isinstance(loaded.optimizer, Momentum)
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    for twin in (model, loaded):
        twin.fit(X, Y, epochs=2, verbose=0, shuffle=False)
    np.testing.assert_allclose(loaded.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-4, atol=1e-6)


def test_setup_runs_once_and_after_the_fields_are_there():
    calls = []

    class Base(keras.layers.Layer):
        def setup(self):
            CALLS.append(self.a)

    CALLS.clear()

    @kustom.part(package="setup")
    class First(Base):
        a: int = 1

    @kustom.part(package="setup")
    class Second(First):
        b: int = 2

    Second(3)
    assert CALLS == [3]
    assert not calls


CALLS: list[int] = []


def test_a_shared_sublayer_is_one_object_again(trip):
    @kustom.part(package="sharing")
    class Wrap(keras.layers.Layer):
        inner: keras.layers.Layer = kustom.field()
        by: float = 1.0

        def call(self, x):
            return self.inner(x) * self.by

    shared, inputs = keras.layers.Dense(2, name="tied"), keras.Input((4,))
    model = keras.Model(inputs, Wrap(shared)(inputs) + Wrap(shared, 2.0)(inputs))
    loaded = trip(model)
    assert len({id(w) for w in loaded.weights}) == 2
    np.testing.assert_allclose(loaded.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-6)


def test_a_metric_that_the_call_updates(trip):
    @kustom.part(package="spying")
    class Spy(keras.layers.Layer):
        def setup(self):
            self.seen = keras.metrics.Mean(name="seen")

        def call(self, x):
            self.seen.update_state(ops.mean(x))
            return x

    model = keras.Sequential([keras.Input((4,)), Spy(), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    history = model.fit(X * 0 + 3, Y, batch_size=4, epochs=2, verbose=0, validation_data=(X * 0 + 6, Y)).history
    assert history["seen"] == [3.0, 3.0]
    assert history["val_seen"] == [6.0, 6.0]
    assert trip(model).evaluate(X * 0 + 1, Y, verbose=0, return_dict=True)["seen"] == 1.0


def test_an_initializer_with_a_seed_draws_anew_each_time():
    first, second = Uniform(seed=3), Uniform(seed=3)
    a, b = _numpy(first((4,))), _numpy(first((4,)))
    assert not np.allclose(a, b)
    np.testing.assert_array_equal(b, [_numpy(second((4,))) for _ in range(2)][1])
    assert first.seed == 3


def test_parts_copy_and_pickle():
    for part in (Uniform(2.0, seed=1), Norm(2.0), Every(3)):
        for twin in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
            assert repr(twin) == repr(part)


# --- building


def test_a_base_that_was_not_built_is_refused_at_build():
    @kustom.part(package="building")
    class Forgetful(keras.layers.Dense):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, x):
            return x * self.scale

    with pytest.raises(errors.BuildError, match=r"does not call super\(\).build\(input_shape\)"):
        Forgetful(3).build((None, 4))


def test_sublayers_that_cannot_be_built_are_refused_at_build():
    @kustom.part(package="building")
    class Untraceable(keras.layers.Layer):
        def setup(self):
            self.dense = keras.layers.Dense(3)

        def call(self, x, context):
            return self.dense(x) + context

    with pytest.raises(errors.BuildError, match=r"left .* unbuilt, and Untraceable\.call cannot be traced"):
        Untraceable().build((None, 4))


def test_a_sublayer_where_keras_saves_none_is_refused():
    class Tools:
        def __init__(self):
            self.dense = keras.layers.Dense(3)

    makers = {
        "set": lambda: {keras.layers.Dense(3)},
        "object": Tools,
        "closure": lambda: (lambda dense: lambda x: dense(x))(keras.layers.Dense(3)),
    }

    @kustom.part(package="tracking")
    class Hiding(keras.layers.Layer):
        where: str

        def setup(self):
            self.kept = MAKERS[self.where]()

    MAKERS.update(makers)
    for where in makers:
        with pytest.raises(errors.TrackingError, match=r"Hiding\.kept.*neither tracks nor saves"):
            Hiding(where)


MAKERS: dict[str, Any] = {}


def test_a_sublayer_that_comes_too_late_is_refused_at_save(tmp_path):
    @kustom.part(package="tracking")
    class Late(keras.layers.Layer):
        def setup(self):
            self.rows = []
            self.rows.append([])

        def call(self, x):
            return x

    layer = Late()
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.rows[0].append(keras.layers.Dense(3))
    with pytest.raises(errors.TrackingError, match="came after the part was built"):
        model.save(tmp_path / "m.keras")


# --- what is refused at definition


def test_bad_classes_are_refused():
    with pytest.raises(errors.DefinitionError, match=r"@kustom\.part decorates a class"):
        kustom.part(len)  # pyright: ignore
    with pytest.raises(errors.DefinitionError, match="derives from none of Keras's"):
        kustom.part(type("Plain", (), {}))
    with pytest.raises(errors.DefinitionError, match="has no annotation"):

        @kustom.part
        class Unannotated(keras.layers.Layer):
            rate = kustom.field(default=1.0)

    with pytest.raises(errors.DefinitionError, match="Give the later field a default"):

        @kustom.part
        class Unordered(keras.layers.Layer):
            a: int = 1
            b: int


RESERVED = """input output path losses metrics weights variables layers compute_dtype name dtype mask training
children type half forward parameters optimizer""".split()


@pytest.mark.parametrize("name", RESERVED)
def test_names_that_keras_needs_are_refused(name):
    base = keras.Model if name in ("layers", "optimizer") else keras.layers.Layer
    with pytest.raises(errors.ReservedNameError, match=f"the field '{name}'"):
        kustom.part(type("Taken", (base,), {"__annotations__": {name: float}, "__module__": __name__, name: 1.0}))


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (keras.losses.Loss, "reduction"),
        (keras.metrics.Metric, "dtype"),
        (keras.layers.Dense, "units"),
        (keras.Optimizer, "learning_rate"),
    ],
)
def test_names_that_the_base_needs_are_refused(base, name):
    with pytest.raises(errors.ReservedNameError, match=f"the field '{name}'"):
        kustom.part(type("Taken", (base,), {"__annotations__": {name: float}, "__module__": __name__}))


# --- settings that no file would hold


class Mode(enum.IntEnum):
    SLOW = 1
    FAST = 2


class Word(str, enum.Enum):  # noqa: UP042
    SLOW = "slow"


@kustom.part
class OfAnEnum(keras.layers.Layer):
    mode: Mode = Mode.SLOW


@kustom.layer
def of_a_word(x, *, word=Word.SLOW):
    return x


@pytest.mark.parametrize(
    "make",
    [
        lambda: OfAnEnum(mode=Mode.FAST),
        OfAnEnum,
        lambda: of_a_word(word=Word.SLOW),
        lambda: Holder(anything=[Word.SLOW]),
        lambda: Holder(maybe=Mode.FAST),
    ],
    ids=["annotated", "default", "function", "inside", "optional"],
)
def test_a_member_of_an_enum_is_refused_since_it_would_come_back_as_another_type(make):
    with pytest.raises(errors.UnsavableSettingError, match=r"give its \.value"):
        make()


def test_a_number_of_an_enum_is_a_plain_number_where_the_setting_is_one():
    assert Holder(numbers=[Mode.FAST]).get_config()["numbers"] == [2.0]


def test_a_member_of_an_enum_that_is_set_later_is_refused_in_the_config():
    part = Holder(anything=1)
    part.anything = Word.SLOW
    with pytest.raises(errors.UnsavableSettingError, match=r"give its \.value"):
        part.get_config()


@kustom.part
class RegularizerByLayer(keras.regularizers.Regularizer):
    net: keras.layers.Layer = kustom.field()

    def __call__(self, w):
        return ops.sum(self.net(w))


@kustom.part
class ConstraintByLayer(keras.constraints.Constraint):
    net: Any = None

    def __call__(self, w):
        return self.net(w)


@kustom.part
class InitializerByLayer(keras.initializers.Initializer):
    def __init__(self, net):
        self.net = net

    def __call__(self, shape, dtype=None):
        return self.net(ops.ones(shape))


@kustom.regularizer
def regularized_by(w, *, net=None):
    return ops.sum(net(w))


@kustom.activation
def activated_by(x, *, net=None):
    return net(x)


@kustom.metric
def measured_by(y_true, y_pred, *, net=None):
    return net(y_pred)


@pytest.mark.parametrize(
    "make",
    [RegularizerByLayer, ConstraintByLayer, InitializerByLayer, regularized_by, activated_by, measured_by],
    ids=lambda make: make.__name__,
)
def test_a_layer_is_refused_where_keras_would_not_save_its_weights(make):
    with pytest.raises(errors.UnsavableSettingError, match="saves no weights"):
        make(net=keras.layers.Dense(1))


# --- constructors


def test_a_constructor_that_takes_any_number_of_settings_is_refused():
    with pytest.raises(errors.DefinitionError, match=r"takes \*exponents"):

        @kustom.part
        class Powers(keras.layers.Layer):
            def __init__(self, *exponents, **kwargs):
                super().__init__(**kwargs)
                self.exponents = exponents

    @kustom.part
    class PowersModel(keras.Model):
        def __init__(self, *exponents, **kwargs):
            super().__init__(**kwargs)
            self.exponents = exponents

    with pytest.raises(errors.DefinitionError, match=r"takes \*exponents"):
        PowersModel(2.0, 3.0)


@kustom.part
class PassedOn(Scaled):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


@kustom.part
class PowersByHand(keras.layers.Layer):
    def __init__(self, *exponents, **kwargs):
        super().__init__(**kwargs)
        self.exponents = exponents

    def get_config(self):
        return {"exponents": list(self.exponents)}

    @classmethod
    def from_config(cls, config):
        return cls(*config["exponents"])


@kustom.part
class AnyTower(keras.Model):
    def __init__(self, *args, **kwargs):
        if not args:
            x = keras.Input((4,))
            args = (x, keras.layers.Dense(1)(x))
        super().__init__(*args, **kwargs)


def test_a_constructor_that_passes_everything_on_loses_nothing(trip):
    loaded = trip(keras.Sequential([keras.Input((4,)), PassedOn(3.0, shift=1.0), PowersByHand(1.0, 2.0)]))
    assert (loaded.layers[0].factor, loaded.layers[0].shift) == (3.0, 1.0)
    assert loaded.layers[1].exponents == (1.0, 2.0)
    x = keras.Input((4,))
    assert AnyTower(x, keras.layers.Dense(2)(x)).output_shape == (None, 2)


@kustom.part
class FixedReduction(keras.losses.Loss):
    def __init__(self, factor=1.0, **kwargs):
        super().__init__(reduction="sum", **kwargs)
        self.factor = factor

    def call(self, y_true, y_pred):
        return self.factor * ops.abs(ops.subtract(y_true, y_pred))


@kustom.part
class FixedName(keras.metrics.Metric):
    def __init__(self, factor=1.0, **kwargs):
        super().__init__(name="fixed", **kwargs)
        self.factor = factor
        self.last = self.add_variable((), "zeros", name="last")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.last.assign(self.factor * ops.mean(y_pred))

    def result(self):
        return self.last


@kustom.part
class FixedNameAndDtype(keras.layers.Dense):
    def __init__(self, units, **kwargs):
        super().__init__(units, name="encoder", dtype="float32", **kwargs)


def test_what_a_constructor_fixes_of_the_common_arguments_is_not_given_twice(trip):
    model = keras.Sequential([keras.Input((4,)), FixedNameAndDtype(1)])
    model.compile("sgd", FixedReduction(3.0), metrics=[FixedName(2.0)])
    loaded = trip(model)
    assert loaded.layers[0].get_config() == model.layers[0].get_config()
    assert loaded.loss.get_config() == model.loss.get_config()
    assert loaded.loss.reduction == "sum"
    assert FixedName.from_config(FixedName(2.0).get_config()).get_config() == FixedName(2.0).get_config()
    assert keras.models.clone_model(model).layers[0].name == "encoder"
    np.testing.assert_allclose(loaded.evaluate(X, Y, verbose=0), model.evaluate(X, Y, verbose=0), rtol=1e-6)


@kustom.part
class FixedField(Scaled):
    def __init__(self, shift=0.0, **kwargs):
        super().__init__(factor=3.0, shift=shift, **kwargs)


@kustom.part
class FixedByPosition(keras.losses.Loss):
    def __init__(self, **kwargs):
        super().__init__("by_position", **kwargs)

    def call(self, y_true, y_pred):
        return ops.abs(ops.subtract(y_true, y_pred))


@pytest.mark.parametrize("part", [FixedField(shift=2.0), FixedByPosition()], ids=["field", "position"])
def test_what_a_constructor_fixes_of_a_base_is_not_given_twice(part):
    again = type(part).from_config(part.get_config())
    assert again.get_config() == part.get_config()


def test_a_constructor_that_fixes_no_common_argument_may_still_fail_by_itself():
    @kustom.part(package="fixing")
    class FixesItsOwn(keras.layers.Layer):
        def __init__(self, factor=1.0, **kwargs):
            super().__init__(**kwargs)
            dict(factor=factor, **{"factor": 2.0})

    with pytest.raises(TypeError, match="multiple values"):
        FixesItsOwn.from_config({"factor": 1.0})


@kustom.layer
def scaled(x, *, factor=2.0):
    return factor * x


@kustom.part
class ScaledByHand(keras.layers.Layer):
    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor


@pytest.mark.parametrize("make", [Scaled, ScaledByHand, scaled], ids=lambda make: make.__name__)
def test_no_autocast_is_in_the_file(make):
    part = make(factor=3.0, autocast=False)
    assert part.get_config()["autocast"] is False
    assert type(part).from_config(part.get_config()).autocast is False
    assert "autocast" not in make(factor=3.0).get_config()


# --- a subclass that is no part


class PlainOverPart(Scaled):
    def __init__(self, extra=1.0, **kwargs):
        super().__init__(**kwargs)
        self.extra = extra


class PlainOverFunction(scaled):
    extra = 1.0


class SavesItself(PlainOverPart):
    def get_config(self):
        return {**Scaled(self.factor).get_config(), "extra": self.extra}


@pytest.mark.parametrize("make", [PlainOverPart, PlainOverFunction], ids=lambda make: make.__name__)
def test_a_subclass_that_is_no_part_is_not_saved_without_what_it_adds(make, tmp_path):
    model = keras.Sequential([keras.Input((4,)), make(factor=2.0)])
    model(X)
    for save in (lambda: keras.models.clone_model(model), lambda: model.save(tmp_path / "model.keras"), model.layers[0].get_config):
        with pytest.raises(errors.ConfigError, match=r"decorate it with @kustom\.part"):
            save()


def test_a_subclass_that_writes_its_own_config_is_saved():
    model = keras.Sequential([keras.Input((4,)), SavesItself(factor=2.0, extra=5.0)])
    assert keras.models.clone_model(model).layers[0].extra == 5.0


# --- where layers hide


class Slotted:
    __slots__ = ("__hidden", "inner")

    def __init__(self, inner):
        self.inner = inner


@kustom.part
class Hides(keras.layers.Layer):
    hide: ClassVar[Any] = None

    def setup(self):
        self.tools = self.hide(keras.layers.Dense(3))


def _object_array(layer):
    array = np.empty(1, object)
    array[0] = layer
    return array


@pytest.mark.parametrize(
    "hide",
    [
        lambda layer: types.SimpleNamespace(inner=layer),
        Slotted,
        _object_array,
        lambda layer: types.MappingProxyType({"inner": layer}),
        lambda layer: {"inner": layer}.values(),
        lambda layer: {"inner": layer}.items(),
    ],
    ids=["namespace", "slots", "array", "mapping", "values", "items"],
)
def test_a_layer_where_keras_does_not_look_is_refused_by_the_attributes_name(hide):
    Hides.hide = staticmethod(hide)
    with pytest.raises(errors.TrackingError, match=r"Hides\.tools.* is a Dense"):
        Hides()


def test_such_objects_without_layers_are_fine():
    @kustom.part(package="hiding")
    class Keeps(keras.layers.Layer):
        def setup(self):
            self.kept = [types.SimpleNamespace(a=1), Slotted(2), np.array([None, "a"], object), {"a": 1}.values(), object()]

    assert Keeps().kept[0].a == 1


@pytest.mark.parametrize("make", [lambda: keras.layers.Dense(3), lambda: [keras.layers.Dense(3)]], ids=["layer", "list"])
def test_a_layer_in_the_body_of_the_class_is_refused_by_its_name(make):
    body = {"__module__": __name__, "inner": make(), "count": 3, "call": lambda self, x: x}
    part = kustom.part(package="bodies")(type("InBody", (keras.layers.Layer,), body))
    with pytest.raises(errors.TrackingError, match=r"InBody\.inner.* is a Dense in the body of the class"):
        part()


# --- shapes


@kustom.part
class TwoOutputs(keras.layers.Layer):
    units: int = 4

    def setup(self):
        self.inner = keras.layers.Dense(self.units)

    def call(self, first, second):
        return self.inner(ops.concatenate([first, second], axis=-1)), {"sum": first + second}


@kustom.layer
def side_by_side(first, second):
    return ops.concatenate([first, second], axis=-1)


def test_a_layer_says_what_shape_it_returns():
    layer = Scaled(2.0)
    assert layer.compute_output_shape((None, 3)) == (None, 3)
    assert layer.built
    pair = TwoOutputs()
    assert pair.compute_output_shape(first_shape=(None, 3), second_shape=(None, 3)) == ((None, 4), {"sum": (None, 3)})
    assert side_by_side().compute_output_shape((None, 3), [None, 2]) == (None, 5)
    over_time = keras.layers.TimeDistributed(Scaled(2.0))
    assert over_time.compute_output_shape((None, 5, 3)) == (None, 5, 3)
    inputs = keras.Input((3,), dtype="int32")
    assert keras.layers.Dense(2).compute_output_shape(side_by_side()(inputs, inputs).shape) == (None, 2)


def test_a_layer_that_says_what_shape_it_returns_is_asked():
    @kustom.part
    class Says(keras.layers.Layer):
        def call(self, x):
            return x

        def compute_output_shape(self, input_shape):
            return (*input_shape, 7)

    assert Says().compute_output_shape((None, 3)) == (None, 3, 7)


@kustom.part
class Cell(keras.layers.Layer):
    units: int

    def setup(self):
        self.state_size = self.units
        self.inputs_to = keras.layers.Dense(self.units)
        self.state_to = keras.layers.Dense(self.units, use_bias=False)

    def call(self, inputs, states, training=False):
        state = ops.tanh(self.inputs_to(inputs) + self.state_to(states[0]))
        return state, [state]


@kustom.part
class CellOfTwo(Cell):
    def setup(self):
        self.state_size = [self.units, 2]
        self.inputs_to = keras.layers.Dense(self.units)
        self.state_to = keras.layers.Dense(self.units)

    def call(self, inputs, states):
        first, second = states
        first = self.inputs_to(inputs) + self.state_to(first)
        return first, [first, second + 1]


@pytest.mark.parametrize("cell", [Cell, CellOfTwo])
def test_a_recurrent_cell_with_sublayers_is_built_by_keras(cell, trip):
    model = keras.Sequential([keras.Input((4, 2)), keras.layers.RNN(cell(3)), keras.layers.Dense(1)])
    x = np.ones((2, 4, 2), "float32")
    model.compile("sgd", "mse")
    model.fit(x, np.ones((2, 1)), verbose=0)
    assert len(model.layers[0].weights) == (3 if cell is Cell else 4)
    assert np.allclose(trip(model).predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_what_keras_is_told_is_shown_where_it_is_not_the_default():
    @kustom.loss
    def quantile(y_true, y_pred, *, q=0.5):
        return ops.maximum(q * (y_true - y_pred), (q - 1) * (y_true - y_pred))

    @kustom.metric
    def miss(y_true, y_pred):
        return ops.abs(y_true - y_pred)

    @kustom.part
    class Pinball(keras.losses.Loss):
        q: float = 0.5

        def call(self, y_true, y_pred):
            return quantile(y_true, y_pred, q=self.q)

    assert repr(quantile(name="q9", reduction="sum")) == "quantile(q=0.5, name='q9', reduction='sum')"
    assert repr(quantile()) == "quantile(q=0.5)"
    assert repr(miss(dtype="bfloat16")) == "miss(dtype='bfloat16')"
    assert repr(Pinball()) == "Pinball(q=0.5)"
    assert repr(Pinball(0.9, name="q9", reduction="none")) == "Pinball(q=0.9, name='q9', reduction='none')"
    assert repr(Pinball.from_config(Pinball(name="q9").get_config())) == "Pinball(q=0.5, name='q9')"
    assert repr(Scaled(2.0, dtype="mixed_float16")).endswith(", dtype='mixed_float16')")
